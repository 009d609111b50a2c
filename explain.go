package opscore

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Explain says why a task is where it is: every cause that the facts show, the decisive one first. It reads nothing but the facts.
// A task that waits as it should has causes too, whose severity is [Reason]. Where nothing explains it, the cause is
// [CauseUnknown], with what was collected.
func Explain(f Facts) []Cause {
	v := newView(f)
	causes := v.silence() // what the store does not say, nobody else can
	switch {
	case f.Task == nil && v.storeAnswered():
		causes = append(causes, v.missing()...)
	case f.Task == nil:
		causes = append(causes, v.around(v.queues()...)...)
	case f.Task.State.Terminal():
		causes = append(causes, v.ended()...)
	case f.Task.State == Running:
		causes = append(causes, v.running()...)
	default:
		causes = append(causes, v.pending()...)
	}
	return v.settled(causes)
}

// Examine says what would keep tasks from running, or hinder them, in a whole deployment, by the same rules as [Explain]: faults first, then
// warnings. Nothing means that nothing is amiss.
func Examine(f Facts) []Cause {
	v := newView(f)
	causes := v.silence()
	for _, s := range f.Queues {
		causes = append(causes, v.examineQueue(s)...)
	}
	unmanned := func(c Cause) bool { return c.Code == CauseNoWorker }
	if v.storeAnswered() && !slices.ContainsFunc(causes, unmanned) && !slices.ContainsFunc(v.Workers, v.present) {
		causes = append(causes, v.nobody("", "")...)
	}
	causes = append(causes, v.examineWorkers()...)
	causes = append(causes, v.unrescued()...)
	causes = append(causes, v.around(v.queues()...)...)
	causes = v.unanswered(v.distinct(causes))
	causes = slices.DeleteFunc(causes, func(c Cause) bool { return c.Severity == Reason && c.Code != CauseQueuePaused })
	slices.SortStableFunc(causes, func(a, b Cause) int { return cmp.Compare(a.Severity.rank(), b.Severity.rank()) })
	return causes
}

func (s Severity) rank() int { return slices.Index([]Severity{Fault, Warning, Reason}, s) }

// view is the facts as the rules look at them.
type view struct{ Facts }

func newView(f Facts) *view { return &view{f} }

// asked returns what became of the question to a source.
func (v *view) asked(source string) (a Asked, ok bool) {
	i := slices.IndexFunc(v.Sources, func(a Asked) bool { return a.Source == source })
	if i < 0 {
		return a, false
	}
	return v.Sources[i], true
}

// SourceStore is the name of the store among the sources of facts.
const SourceStore = "store"

func (v *view) storeAnswered() bool {
	a, asked := v.asked(SourceStore)
	return !asked || a.Err == "" || v.Task != nil
}

// queues returns the queues that matter: the task's, or all.
func (v *view) queues() (names []string) {
	if v.Task != nil {
		return []string{v.Task.Queue}
	}
	for _, s := range v.Queues {
		names = append(names, s.Queue)
	}
	return names
}

func (v *view) standing(queue string) Standing {
	for _, s := range v.Queues {
		if s.Queue == queue {
			return s
		}
	}
	return Standing{Queue: queue}
}

// ago shows how far a moment is behind.
func (v *view) ago(t time.Time) string { return brief(v.At.Sub(t)) }

// around is what is wrong with what a task needs besides a worker: the database, the broker, this host.
func (v *view) around(queues ...string) (causes []Cause) {
	causes = append(causes, v.database()...)
	for i, q := range queues {
		causes = append(causes, v.broker(q, i == 0)...)
	}
	if len(queues) == 0 {
		causes = append(causes, v.broker("", true)...)
	}
	return append(causes, v.host(queues)...)
}

// settled completes the answer for one task.
func (v *view) settled(causes []Cause) []Cause {
	causes = v.distinct(causes)
	if v.Task == nil || !v.Task.State.Terminal() {
		causes = v.unanswered(causes)
	}
	told := slices.DeleteFunc(slices.Clone(causes), Cause.untold)
	if len(told) == 0 {
		told = []Cause{v.unknown("nothing that was read explains it")}
	}
	return append(told, slices.DeleteFunc(causes, func(c Cause) bool { return !c.untold() })...)
}

// unanswered adds the sources that did not answer, or not everything, where no cause says why.
func (v *view) unanswered(causes []Cause) []Cause {
	for _, a := range v.Sources {
		if a.Source != SourceStore && a.Err != "" && !explained(a, causes) {
			causes = append(causes, because(CauseSourceSilent, "%s did not answer: %s", a.Source, a.Err).
				with(a.Source, "error", a.Err).with(a.Source, "asked for", a.Took))
		}
	}
	return causes
}

// untold reports whether a cause only says what could not be read: that explains nothing.
func (c Cause) untold() bool { return c.Code == CauseSourceSilent }

// explained reports whether a cause says what is the matter with a source that did not answer, or not everything.
func explained(a Asked, causes []Cause) bool {
	return slices.ContainsFunc(causes, func(c Cause) bool {
		return slices.ContainsFunc(c.Evidence, func(e Evidence) bool { return e.Source == a.Source })
	})
}

// distinct leaves out what was said before, and says when it was read.
func (v *view) distinct(causes []Cause) (some []Cause) {
	for _, c := range causes {
		for i := range c.Evidence {
			if c.Evidence[i].At.IsZero() {
				c.Evidence[i].At = v.At
			}
		}
		if !slices.ContainsFunc(some, func(d Cause) bool { return d.Code == c.Code && d.Text == c.Text }) {
			some = append(some, c)
		}
	}
	return some
}

// unknown is the answer where there is none, with what was collected.
func (v *view) unknown(format string, args ...any) Cause {
	c := because(CauseUnknown, format, args...)
	if t := v.Task; t != nil {
		c = c.with(SourceStore, "task", fmt.Sprintf("%s in queue %s for actor %s, due at %s", t.State, t.Queue, t.Actor, moment(t.RunAt)))
	}
	for _, a := range v.Sources {
		c = c.with(a.Source, "answered", cmp.Or(a.Err, "in "+a.Took.String()))
	}
	if v.storeAnswered() {
		c = c.with(SourceStore, "workers", countOf(len(v.Workers), "worker"))
	}
	for _, w := range v.Workers {
		if v.Task != nil && w.State != WorkerGone && w.Takes(v.Task.Queue, v.Task.Actor) {
			c = c.with(SourceStore, "worker "+w.ID.String(), fmt.Sprintf("%s on %s, process %d, %d of %d slots taken, heartbeat at %s",
				w.State, w.Host, w.PID, v.taken(&w), w.Slots, moment(w.LastBeat)))
		}
	}
	if v.Task != nil {
		for _, l := range v.standing(v.Task.Queue).Lines {
			c = c.with(SourceStore, fmt.Sprintf("line %s, priority %d", l.Actor, l.Priority), fmt.Sprintf("%s due, %s ahead", l.Due, l.Ahead))
		}
	}
	if b := v.Broker; b != nil {
		c = c.with("rabbitmq", "reached", b.Reached)
		for _, q := range b.Queues {
			c = c.with("rabbitmq", "queue "+q.Name, fmt.Sprintf("%d messages, %d consumers", q.Messages, q.Consumers))
		}
	}
	return c
}
