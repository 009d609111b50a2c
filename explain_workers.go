package opscore

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

func (v *view) worker(id ID) *WorkerInfo {
	for i := range v.Workers {
		if v.Workers[i].ID == id {
			return &v.Workers[i]
		}
	}
	return nil
}

// name names a worker for people.
func (w *WorkerInfo) name() string {
	return fmt.Sprintf("worker %s (%s, process %d)", w.ID, w.Host, w.PID)
}

// beatEvery is how often a worker heartbeats.
func (w *WorkerInfo) beatEvery() time.Duration {
	return time.Duration(cmp.Or(w.Lease, Duration(LeaseFor))) / 6
}

// leaseEnds is when a worker's tasks may be given to others, unless it heartbeats.
func (w *WorkerInfo) leaseEnds() time.Time { return w.LastBeat.Add(6 * w.beatEvery()) }

// silentAfter is how many heartbeats a worker may miss before that needs an explanation.
const silentAfter = 3

func (v *view) fit(w WorkerInfo) bool {
	_, fit := v.condition(&w)
	return fit
}

// condition says whether a worker is alive and takes tasks, or why not.
func (v *view) condition(w *WorkerInfo) (why Cause, fit bool) {
	about := func(c Cause) Cause {
		return c.with(SourceStore, "worker", w.ID).with(SourceStore, "host", w.Host).with(SourceStore, "pid", w.PID).
			with(SourceStore, "last heartbeat", moment(w.LastBeat))
	}
	if w.State == WorkerGone {
		code := CauseWorkerLeft
		if !strings.HasPrefix(w.Cause, "stopped") {
			code = CauseWorkerDied
		}
		return about(because(code, "%s is gone since %s: %s", w.name(), moment(w.GoneAt), cmp.Or(w.Cause, "why is not known")).since(w.GoneAt)).
			with(SourceStore, "cause", w.Cause), false
	}
	if why, sick := v.processCondition(w); sick {
		return about(why), false
	}
	silent := v.At.Sub(w.LastBeat)
	switch failed := w.Report.Failed(); {
	case !w.Live || !w.LastBeat.IsZero() && silent > silentAfter*w.beatEvery():
		return about(v.silent(w, silent)), false
	case w.State == WorkerDraining:
		return about(because(CauseWorkerNotReady, "%s is stopping%s: it takes nothing", w.name(), askedBy(w))).
			fix(act("wait for another worker, or start one")), false
	case w.State == WorkerBooting && len(failed) == 0:
		return about(because(CauseWorkerNotReady, "%s is starting since %s", w.name(), moment(w.StartedAt)).since(w.StartedAt)).
			fix(act("wait, and look at its log if it does not become ready")), false
	case len(failed) > 0:
		c := about(because(checkCode(failed[0], CauseWorkerNotReady), "%s is not ready: %s", w.name(), checkTexts(failed)).since(failed[0].Since))
		for _, check := range failed {
			c = c.with(SourceStore, "check "+check.Name, check.Text)
		}
		return c.fix(act("on host %s, mend what the check says of process %d: %s", w.Host, w.PID, checkTexts(failed))), false
	}
	return why, true
}

// silent says that a worker does not heartbeat, and whether its process is alive, if this host can tell.
func (v *view) silent(w *WorkerInfo, silent time.Duration) Cause {
	c := because(CauseWorkerSilent, "%s has not been heard of for %s, although it heartbeats every %s; its tasks are given to others from %s on",
		w.name(), brief(silent), brief(w.beatEvery()), moment(w.leaseEnds())).since(w.LastBeat).next(w.leaseEnds())
	if p := v.process(w); p != nil { // it exists: else the worker has died
		return c.with("host", fmt.Sprintf("process %d state", p.PID), p.State).
			fix(act("process %d is alive on this host: look at its log, its load, and whether it reaches the database", p.PID))
	}
	return c.fix(act("look at process %d on host %s: continue it if it is stopped, start it again if it is gone", w.PID, w.Host))
}

// present reports whether a worker is registered, and not dead as far as is known.
func (v *view) present(w WorkerInfo) bool {
	p := v.process(&w)
	return w.Live && (p == nil || p.Exists && p.State != "Z")
}

func askedBy(w *WorkerInfo) string {
	if w.Stop == "" {
		return ""
	}
	return " because " + w.Stop + " asked it to"
}

// checkCode is the code of a check that has one of its own, else the other one.
func checkCode(c Check, other string) string {
	if c.Name == CheckPool {
		return CausePoolExhausted
	}
	return other
}

func checkTexts(checks []Check) string {
	var texts []string
	for _, c := range checks {
		texts = append(texts, strings.TrimSuffix(c.Name+": "+c.Text, ": "))
	}
	return strings.Join(texts, "; ")
}

// crewFor returns the workers that take such tasks and are fit, and why the others are not.
func (v *view) crewFor(queue, actor string) (fit []WorkerInfo, unfit []Cause) {
	for _, w := range v.Workers {
		if w.State == WorkerGone || !w.Takes(queue, actor) {
			continue
		}
		if why, ok := v.condition(&w); ok {
			fit = append(fit, w)
		} else {
			unfit = append(unfit, why)
		}
	}
	return fit, unfit
}

// unstaffed says why nobody could take such a task; nothing if somebody could.
func (v *view) unstaffed(queue, actor string) []Cause {
	const shown = 3
	fit, unfit := v.crewFor(queue, actor)
	if len(fit) > 0 {
		return nil
	}
	causes := unfit[:min(len(unfit), shown)]
	if !slices.ContainsFunc(unfit, func(c Cause) bool { return c.Code != CauseWorkerDied && c.Code != CauseWorkerOOMKilled }) {
		causes = append(causes, v.nobody(queue, actor)...)
	}
	return causes
}

// nobody says why no live worker takes tasks of the queue for the actor; nothing if one does. Empty names stand for any.
func (v *view) nobody(queue, actor string) []Cause {
	var queues, hosts []string
	knows, listens := false, false
	for _, w := range v.Workers {
		if !v.present(w) {
			continue
		}
		if w.Takes(queue, actor) {
			return nil
		}
		queues = append(queues, w.Queues...)
		listens = listens || slices.Contains(w.Queues, queue)
		if slices.Contains(w.Actors, actor) {
			knows = true
			hosts = append(hosts, w.Queues...)
		}
	}
	list := func(names []string) string {
		return strings.Join(slices.Compact(slices.Sorted(slices.Values(names))), ", ")
	}
	start := []Remedy{safe(act("start a worker that listens to queue %s and has actor %s", queue, actor))}
	var c Cause
	switch {
	case len(queues) == 0:
		c = because(CauseNoWorker, "no live worker is registered")
		if queue == "" {
			start = []Remedy{safe(command("opscore worker"))}
		} else {
			start = append(start, safe(command("opscore worker --queues=%s", queue)))
		}
	case !knows:
		c = because(CauseActorUnknown, "no live worker knows actor %s", actor)
	case !listens:
		c = because(CauseQueueNotListened, "no live worker listens to queue %s; those that know actor %s listen to %s", queue, actor, list(hosts))
		start = append(start, safe(command("opscore worker --queues=%s", queue)))
	default:
		c = because(CauseQueueNotListened, "no live worker that listens to queue %s knows actor %s; those that know it listen to %s", queue, actor, list(hosts))
	}
	return []Cause{v.aboutStaff(c, queue, actor).fix(start...)}
}

// aboutStaff adds who works now, and who could have taken such tasks last.
func (v *view) aboutStaff(c Cause, queue, actor string) Cause {
	const shown = 3
	n := 0
	for _, w := range v.Workers {
		if v.present(w) && n < shown {
			n++
			c = c.with(SourceStore, "live worker "+w.ID.String(), fmt.Sprintf("queues=[%s] actors=[%s] build %s",
				strings.Join(w.Queues, ","), clip(strings.Join(w.Actors, ","), 200), w.Build))
		}
	}
	if n == 0 {
		c = c.with(SourceStore, "live workers", 0)
	}
	var last *WorkerInfo
	until := func(w *WorkerInfo) time.Time {
		if w.GoneAt.IsZero() {
			return w.LastBeat
		}
		return w.GoneAt
	}
	for i := range v.Workers {
		w := &v.Workers[i]
		if !v.present(*w) && (queue == "" || w.Takes(queue, actor) || c.Code == CauseActorUnknown && slices.Contains(w.Actors, actor)) &&
			(last == nil || until(w).After(until(last))) {
			last = w
		}
	}
	if last == nil {
		return c
	}
	return c.since(until(last)).with(SourceStore, "last one", fmt.Sprintf("%s, build %s, until %s: %s",
		last.name(), last.Build, moment(until(last)), cmp.Or(last.Cause, "silent since")))
}

// taken is how many of a worker's slots are.
func (v *view) taken(w *WorkerInfo) int {
	for _, l := range v.Loads {
		if l.Worker == w.ID {
			if l.Running.More {
				return max(l.Running.N, w.Report.Running)
			}
			return l.Running.N
		}
	}
	return 0
}

// shut returns the task that a worker runs alone, or is about to: meanwhile it takes no other.
func (v *view) shut(w *WorkerInfo) *RunState {
	for _, l := range v.Loads {
		if l.Worker == w.ID && len(l.Runs) > 0 && l.Runs[0].Lost >= MaxLost-1 {
			return &l.Runs[0]
		}
	}
	return nil
}

// ahead is how many tasks a worker takes before t.
func (v *view) ahead(w *WorkerInfo, t *Task, higher bool) (n Tally) {
	for _, s := range v.Queues {
		for _, l := range s.Lines {
			if s.Paused == nil && w.Takes(l.Queue, l.Actor) && (!higher || l.Priority > t.Priority) {
				n = n.plus(l.Ahead)
			}
		}
	}
	return n
}

// turn says whose turn it is before that of t; free says that a worker can take it now.
func (v *view) turn(t *Task) (causes []Cause, free bool) {
	if causes := v.unstaffed(t.Queue, t.Actor); len(causes) > 0 {
		return causes, false
	}
	fit, _ := v.crewFor(t.Queue, t.Actor)
	var best *WorkerInfo
	var ahead Tally
	room, shut := 0, 0
	for i := range fit {
		w := &fit[i]
		n, slots := v.ahead(w, t, false), w.Slots-v.taken(w)
		if v.shut(w) != nil {
			shut, slots = shut+1, 0
		}
		if slots > n.N && !n.More {
			return []Cause{v.ready(w, t, slots)}, true
		}
		room += max(slots, 0)
		if best == nil || !n.More && n.N < ahead.N {
			best, ahead = w, n
		}
	}
	switch {
	case shut == len(fit):
		causes = append(causes, v.suspects(fit))
	case room == 0:
		causes = append(causes, v.busy(fit))
	}
	if ahead.N > 0 {
		causes = append(v.behind(best, t, ahead), causes...)
		if len(causes) > 1 && causes[0].Code != CauseStarved { // the slots are what all of them wait for
			causes[0], causes[1] = causes[1], causes[0]
		}
	}
	return causes, false
}

func (v *view) ready(w *WorkerInfo, t *Task, slots int) Cause {
	return because(CauseReady, "task %s can start now: %s takes it and has %d of %d slots free", t.ID, w.name(), slots, w.Slots).since(t.RunAt).
		with(SourceStore, "worker", w.ID).with(SourceStore, "free slots", slots).with(SourceStore, "due since", moment(t.RunAt))
}

// suspects says that all workers are kept by tasks that run alone.
func (v *view) suspects(fit []WorkerInfo) Cause {
	c := because(CauseWaitsForSuspect, "%s that could run it %s a task that was lost with its workers, which runs alone",
		countOf(len(fit), "worker"), map[bool]string{true: "runs", false: "run"}[len(fit) == 1])
	for i := range fit {
		r := v.shut(&fit[i])
		c = c.with(SourceStore, "runs alone in "+fit[i].ID.String(), fmt.Sprintf("task %s (%s), lost %d times, for %s", r.Task, r.Actor, r.Lost, v.ago(r.StartedAt)))
	}
	return c
}

// busy says what takes the slots.
func (v *view) busy(fit []WorkerInfo) Cause {
	const shown = 3
	slots, taken := 0, 0
	var runs []RunState
	for i := range fit {
		slots, taken = slots+fit[i].Slots, taken+v.taken(&fit[i])
		for _, l := range v.Loads {
			if l.Worker == fit[i].ID {
				runs = append(runs, l.Runs...)
			}
		}
	}
	slices.SortFunc(runs, func(a, b RunState) int { return a.StartedAt.Compare(b.StartedAt) })
	text := fmt.Sprintf("all %d slots of the %d workers that take it are taken", slots, len(fit))
	switch {
	case slots == 1:
		text = "the only slot of the only worker that takes it is taken"
	case len(fit) == 1:
		text = fmt.Sprintf("all %d slots of the only worker that takes it are taken", slots)
	}
	if len(runs) > 0 {
		text += fmt.Sprintf("; the longest has been running for %s: task %s (%s)", v.ago(runs[0].StartedAt), runs[0].Task, runs[0].Actor)
	}
	c := because(CauseSlotsBusy, "%s", text).with(SourceStore, "slots taken", fmt.Sprintf("%d of %d", taken, slots))
	for _, r := range runs[:min(len(runs), shown)] {
		c = c.with(SourceStore, "running", fmt.Sprintf("task %s (%s) for %s", r.Task, r.Actor, v.ago(r.StartedAt)))
	}
	return c
}

// fewCompleted is the rate below which a minute tells nothing of the next.
const fewCompleted = 3 / float64(RatesOver/time.Second)

// aWhile tells a stream of tasks from a heap that came at once.
const aWhile = 5 * time.Second

// flow is how fast more urgent tasks come to the lines that a worker takes from, whether they go on to, and how fast any are completed.
func (v *view) flow(w *WorkerInfo, priority int) (arriving, completing float64, goesOn bool) {
	for _, s := range v.Queues {
		for _, l := range s.Lines {
			if !w.Takes(l.Queue, l.Actor) {
				continue
			}
			completing += l.Completing
			if l.Priority > priority {
				arriving += l.Arriving
				goesOn = goesOn || l.LastCame.Sub(l.FirstCame) >= aWhile && v.At.Sub(l.LastCame) <= aWhile
			}
		}
	}
	return arriving, completing, goesOn
}

// starving names the lines of a queue whose tasks never start, since more urgent ones come faster than any are completed.
func (v *view) starving(s Standing) (causes []Cause) {
	for i, l := range s.Lines { // the most urgent first
		fit, _ := v.crewFor(s.Queue, l.Actor)
		if l.Due.N == 0 || len(fit) == 0 || v.At.Sub(l.Oldest) < aWhile {
			continue
		}
		var higher Tally
		for _, above := range s.Lines[:i] {
			if above.Priority > l.Priority && fit[0].Takes(s.Queue, above.Actor) {
				higher = higher.plus(above.Due)
			}
		}
		arriving, completing, goesOn := v.flow(&fit[0], l.Priority)
		if goesOn && completing > 0 && arriving >= completing && higher.N > fit[0].Slots {
			causes = append(causes, because(CauseStarved, "in queue %s, tasks of actor %s with priority %d wait since %s: more urgent ones come faster (%.3g/s) than any are completed (%.3g/s)",
				s.Queue, l.Actor, l.Priority, moment(l.Oldest), arriving, completing).since(l.Oldest).with(SourceStore, "due", l.Due).with(SourceStore, "more urgent", higher).
				fix(safe(act("start more workers that listen to queue %s and have actor %s", s.Queue, l.Actor)), act("submit fewer tasks of a priority above %d", l.Priority)))
		}
	}
	return causes
}

// behind says how long the line is, and whether it can come to its end.
func (v *view) behind(w *WorkerInfo, t *Task, ahead Tally) []Cause {
	arriving, completing, goesOn := v.flow(w, t.Priority)
	rates := func(c Cause) Cause {
		return c.since(t.RunAt).with(SourceStore, "ahead", ahead).with(SourceStore, "completed per second", fmt.Sprintf("%.3g", completing)).
			with(SourceStore, "more urgent ones arriving per second", fmt.Sprintf("%.3g", arriving))
	}
	place := Tally{ahead.N + 1, ahead.More}
	if higher := v.ahead(w, t, true); completing > 0 && arriving >= completing && goesOn && higher.N > w.Slots {
		return []Cause{rates(because(CauseStarved,
			"task %s is number %s in line, and tasks of a higher priority come faster (%.3g/s) than any are completed (%.3g/s): at this rate it never starts",
			t.ID, place, arriving, completing)).
			fix(safe(act("start more workers that listen to queue %s and have actor %s", t.Queue, t.Actor)),
				act("submit fewer tasks of a priority above %d", t.Priority))}
	}
	text := fmt.Sprintf("task %s is number %s in line", t.ID, place)
	c := because(CauseBehindOthers, "%s", text)
	if rate := completing - arriving; rate > 0 && completing >= fewCompleted && !ahead.More {
		eta := time.Duration(float64(ahead.N+1) / rate * float64(time.Second))
		c = because(CauseBehindOthers, "%s; at %.3g completed per second it starts in about %s", text, completing, brief(eta)).next(v.At.Add(eta))
	}
	return []Cause{rates(c)}
}

// choreLate is how long what a keeper does every few seconds may be overdue.
const choreLate = 30 * time.Second

func (v *view) noKeeper(format string, args ...any) Cause {
	return because(CauseNoKeeper, format, args...).fix(safe(command("opscore worker")), act("or start any process that runs a keeper"))
}

// rescueLate notices that a task should have been taken back long ago.
func (v *view) rescueLate(w *WorkerInfo, alive bool) []Cause {
	if alive || w == nil {
		return nil
	}
	due := w.leaseEnds().Add(HeartbeatEvery) // it is observed twice
	if w.State == WorkerGone {
		due = w.GoneAt
	}
	late := v.At.Sub(due)
	if late < choreLate {
		return nil
	}
	return []Cause{v.noKeeper("no keeper has taken back what worker %s ran, although it could have %s ago", w.ID, brief(late)).since(due).
		with(SourceStore, "worker", w.ID).with(SourceStore, "overdue since", moment(due))}
}

// unrescued looks for workers that have long been dead and still own tasks.
func (v *view) unrescued() (causes []Cause) {
	for _, l := range v.Loads {
		if w := v.worker(l.Worker); w != nil && !w.Live {
			causes = append(causes, v.rescueLate(w, false)...)
		}
	}
	return causes
}

// skewWorthTelling is less than any timeout that people set.
const skewWorthTelling = 5 * time.Second

// degraded says what is not well with a worker that works all the same.
func (v *view) degraded(w *WorkerInfo) (causes []Cause) {
	if w.State == WorkerGone {
		return nil
	}
	causes = v.output(w)
	for _, check := range w.Report.Checks {
		blocked := check.Name == CheckLog && len(causes) > 0
		if check.State != CheckDegraded || blocked || v.Task != nil && check.Name == CheckHandlers {
			continue
		}
		causes = append(causes, because(checkCode(check, CauseWorkerDegraded), "%s is degraded, check %s: %s", w.name(), check.Name, check.Text).since(check.Since).
			with(SourceStore, "worker", w.ID).with(SourceStore, "check "+check.Name, check.Text).
			fix(act("on host %s, mend what the check says of process %d", w.Host, w.PID)))
	}
	if skew := time.Duration(w.Report.Skew); skew.Abs() >= skewWorthTelling {
		causes = append(causes, because(CauseClockSkew, "the clock of %s is off by %s", w.name(), skew).
			with(SourceStore, "clock_skew", skew).fix(safe(act("set the clock of host %s: run an NTP client", w.Host))))
	}
	return causes
}

// examineWorkers says what is wrong with workers, of whichever queue. One that starts or stops is only wrong if it does not get on.
func (v *view) examineWorkers() (causes []Cause) {
	for _, w := range v.Workers {
		why, fit := v.condition(&w)
		switch {
		case fit || w.State == WorkerGone, w.State == WorkerDraining && why.Code == CauseWorkerNotReady:
		case w.State == WorkerBooting && why.Code == CauseWorkerNotReady && v.At.Sub(w.StartedAt) < choreLate:
		default:
			causes = append(causes, why)
		}
	}
	return causes
}

// examineQueue says what keeps the tasks of a queue from starting.
func (v *view) examineQueue(s Standing) (causes []Cause) {
	causes = append(v.paused(s.Queue), v.unheard(s)...)
	if s.Paused == nil {
		causes = append(causes, v.starving(s)...)
	}
	var actors []string
	due, scheduled := map[string]Tally{}, map[string]Tally{}
	for _, l := range s.Lines {
		if l.Due.N+l.Scheduled.N == 0 {
			continue
		}
		if !slices.Contains(actors, l.Actor) {
			actors = append(actors, l.Actor)
		}
		due[l.Actor], scheduled[l.Actor] = due[l.Actor].plus(l.Due), scheduled[l.Actor].plus(l.Scheduled)
	}
	for _, actor := range actors {
		for _, c := range v.unstaffed(s.Queue, actor) {
			causes = append(causes, c.with(SourceStore, "waiting in "+s.Queue, fmt.Sprintf("%s due, %s scheduled for actor %s", due[actor], scheduled[actor], actor)))
		}
	}
	return causes
}

// unheard says that no worker listens to a queue in which nothing waits: somebody asked for it by name.
func (v *view) unheard(s Standing) []Cause {
	var queues []string
	for _, w := range v.Workers {
		if v.present(w) {
			queues = append(queues, w.Queues...)
		}
	}
	if len(s.Lines) > 0 || s.Paused != nil || len(queues) == 0 || slices.Contains(queues, s.Queue) {
		return nil
	}
	return []Cause{v.aboutStaff(because(CauseQueueNotListened, "no live worker listens to queue %s", s.Queue), s.Queue, "").
		fix(safe(command("opscore worker --queues=%s", s.Queue)))}
}

// submitWarnings says why a task on queue for actor would not start, given the registry and the paused queues.
func submitWarnings(queue, actor string, workers []WorkerInfo, paused []Pause) []Cause {
	v := newView(Facts{Workers: workers, Queues: standings(nil, paused, []string{queue})})
	return append(v.paused(queue), v.nobody(queue, actor)...)
}
