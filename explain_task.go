package opscore

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ended says how a task ended.
func (v *view) ended() []Cause {
	t := v.Task
	if t.State == Completed {
		return []Cause{because(CauseCompleted, "task %s was completed %s ago", t.ID, v.ago(t.FinishedAt)).since(t.FinishedAt).
			with(SourceStore, "state", t.State).with(SourceStore, "finished", moment(t.FinishedAt))}
	}
	if t.State == Cancelled {
		return []Cause{because(CauseCancelled, "task %s was cancelled by %s %s ago", t.ID, cmp.Or(t.CancelledBy, "somebody"), v.ago(t.FinishedAt)).
			since(t.FinishedAt).with(SourceStore, "cancelled by", t.CancelledBy).with(SourceStore, "cancelled", moment(t.CancelRequestedAt)).
			fix(safe(command("opscore task retry %s", t.ID)))}
	}
	code, ok := map[Code]string{
		CodeAborted: CauseAborted, CodeResultInvalid: CauseResultInvalid, CodeExpired: CauseExpired, CodePoison: CausePoison,
		CodeError: CauseAttemptsExhausted, CodePanic: CauseAttemptsExhausted, CodeTimeout: CauseAttemptsExhausted,
	}[t.Code]
	if !ok {
		code = CauseFailed
	}
	c := because(code, "%s", v.endText(code)).since(t.FinishedAt)
	for _, g := range groupAttempts(v.Attempts) {
		c = c.with(SourceStore, "attempts", g)
	}
	if len(c.Evidence) == 0 {
		c = c.with(SourceStore, "error", strings.TrimSpace(string(t.Code)+": "+firstLine(t.Error)))
	}
	return []Cause{c.fix(safe(command("opscore task retry %s", t.ID)))}
}

func (v *view) endText(code string) string {
	t := v.Task
	last := told(t.Error)
	switch code {
	case CauseExpired:
		if t.Attempt > 0 {
			return fmt.Sprintf("task %s expired at %s, after %s: another one was not started in time", t.ID, moment(t.ExpiresAt), countOf(t.Attempt, "attempt"))
		}
		return fmt.Sprintf("task %s was not started before it expired at %s", t.ID, moment(t.ExpiresAt))
	case CausePoison:
		return fmt.Sprintf("task %s kills its worker: it was lost %d times with it, the last time while it ran alone", t.ID, t.Lost)
	case CauseAborted:
		return fmt.Sprintf("task %s was given up by its handler at attempt %d: %s", t.ID, t.Attempt, last)
	case CauseResultInvalid:
		return fmt.Sprintf("task %s returned a result that cannot be stored: %s", t.ID, last)
	case CauseAttemptsExhausted:
		return fmt.Sprintf("task %s failed at all of its %s, the last time %s ago: %s", t.ID, countOf(t.Attempt, "attempt"), v.ago(t.FinishedAt), last)
	}
	return fmt.Sprintf("task %s failed (%s): %s", t.ID, t.Code, last)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// atMost shows how many attempts a task may have.
func atMost(attempts int) string {
	if attempts >= ForeverAttempts {
		return "any number"
	}
	return strconv.Itoa(attempts)
}

// told is as much of an error as a sentence bears.
func told(err string) string { return clip(firstLine(err), 300) }

// groupAttempts counts attempts that ended alike, the latest kind first: "3 times error: boom, from … to …".
func groupAttempts(attempts []Attempt) (groups []string) {
	type group struct {
		text        string
		n           int
		first, last time.Time
	}
	var all []*group
	for _, a := range attempts {
		if a.Code == CodeRetried || a.Code == "" || a.Code == Code(Completed) {
			continue
		}
		text := strings.TrimSuffix(string(a.Code)+": "+told(a.Error), ": ")
		i := slices.IndexFunc(all, func(g *group) bool { return g.text == text })
		if i < 0 {
			all = append(all, &group{text: text, first: a.EndedAt})
			i = len(all) - 1
		}
		all[i].n, all[i].last = all[i].n+1, a.EndedAt
	}
	slices.SortStableFunc(all, func(a, b *group) int { return b.last.Compare(a.last) })
	for _, g := range all {
		groups = append(groups, fmt.Sprintf("%s %s, first at %s, last at %s", countOf(g.n, "time"), g.text, moment(g.first), moment(g.last)))
	}
	return groups
}

// missing says what is known of an id that no task has.
func (v *view) missing() []Cause {
	var causes []Cause
	for _, o := range v.Orphans {
		if o.Message == v.ID || o.ID == v.ID {
			causes = append(causes, because(CauseOrphan, "message %s came to queue %s %s, but did not become a task (%s): %s",
				v.ID, o.Queue, countOf(o.Count, "time"), o.Reason, o.Why).since(o.FirstSeen).
				with(SourceStore, "reason", o.Reason).with(SourceStore, "why", o.Why).with(SourceStore, "last seen", moment(o.LastSeen)).
				fix(command("opscore orphan adopt %s", o.ID), safe(command("opscore orphan show %s", o.ID))))
		}
	}
	if len(causes) > 0 {
		return causes
	}
	made, dated := madeAt(v.ID)
	if d := v.Database; d != nil {
		for _, b := range d.Idle {
			if slices.ContainsFunc(b.Locking, func(table string) bool { return strings.HasSuffix(table, "task") }) &&
				(!dated || !b.Begun.After(made.Add(time.Minute))) {
				causes = append(causes, v.aboutBackend(because(CauseTransactionOpen,
					"no task %s is committed, but a transaction that has written to the tasks is open: %s, %s for %s",
					v.ID, b.name(), b.State, v.ago(b.Since)), b).since(b.Begun))
			}
		}
	}
	where := cmp.Or(v.Store.String(), "this database")
	base := func(code, format string, args ...any) Cause {
		c := because(code, format, args...).with(SourceStore, "looked in", where)
		if v.Store.Instance != "" {
			c = c.with(SourceStore, "instance", v.Store.Instance)
		}
		if dated {
			c = c.with("id", "made", moment(made))
		}
		return c
	}
	const margin = 24 * time.Hour // of clocks and time zones
	switch {
	case !dated || made.After(v.At.Add(margin)):
		return append(causes, base(CauseTaskUnknown, "no task %s is in %s, and its id does not say when it was made", v.ID, where).
			fix(act("compare the id and the database with those of the submitter: opscore config show")))
	case !v.Made.IsZero() && made.Before(v.Made.Add(-margin)):
		return append(causes, base(CauseOtherDatabase, "task %s was made at %s, before %s was (%s): it belongs to another database",
			v.ID, moment(made), where, moment(v.Made)).with(SourceStore, "database made", moment(v.Made)).
			fix(act("ask the database that the submitter uses: opscore --database … explain %s", v.ID)))
	case v.Kept > 0 && v.At.Sub(made) > time.Duration(v.Kept):
		return append(causes, base(CausePruned, "no task %s is in %s; it was made %s ago, and tasks that are over are removed after %s",
			v.ID, where, v.ago(made), brief(time.Duration(v.Kept))).with("configuration", "kept for", brief(time.Duration(v.Kept))))
	}
	c := base(CauseNeverCommitted, "no task %s is in %s, although its id was made only %s ago: its submit was not committed there",
		v.ID, where, v.ago(made)).since(made)
	c, restored := v.restarted(c, made)
	return append(causes, c.fix(act("look how the submitting transaction ended%s, and compare its database with %s; then submit again with the same id", restored, where)))
}

// firstTimeline is that of a server which has only its own history.
const firstTimeline = "00000001"

// restarted adds that the server was started after the task was made, and what may have become of the task then.
func (v *view) restarted(c Cause, made time.Time) (with Cause, look string) {
	d := v.Database
	if d == nil || !d.Started.After(made) {
		return c, ""
	}
	c = c.with(SourcePostgres, "server started", moment(d.Started))
	if d.Timeline == "" || d.Timeline == firstTimeline {
		return c, ""
	}
	return c.with(SourcePostgres, "timeline", d.Timeline),
		fmt.Sprintf(", and whether what was committed before %s was lost when the server was restored or promoted", moment(d.Started))
}

// madeAt is when an id was made, if it tells.
func madeAt(id ID) (at time.Time, ok bool) {
	if id.Version() != 7 {
		return at, false
	}
	var ms int64
	for _, b := range id[:6] {
		ms = ms<<8 | int64(b)
	}
	return time.UnixMilli(ms).UTC(), true
}

// pending says why a task waits.
func (v *view) pending() []Cause {
	t := v.Task
	causes, waits := v.waiting()
	causes = append(causes, v.paused(t.Queue)...)
	paused := v.standing(t.Queue).Paused != nil
	blocked := v.database()
	causes = append(causes, blocked...)
	hinders := append(v.broker(t.Queue, true), v.host([]string{t.Queue})...)
	if a, _ := v.asked(SourceStore); a.Err != "" { // who is busy, and who is ahead, is not known
		return append(causes, hinders...)
	}
	turn, free := v.turn(t)
	switch {
	case waits || paused: // whoever is busy now does not matter yet
		turn = slices.DeleteFunc(turn, func(c Cause) bool { return c.Severity == Reason })
		return append(causes, slices.Concat(turn, hinders)...)
	case !free: // what is wrong comes before what is only so, for somebody can mend it
		wrong := slices.DeleteFunc(slices.Clone(turn), func(c Cause) bool { return c.Severity == Reason })
		usual := slices.DeleteFunc(turn, func(c Cause) bool { return c.Severity != Reason })
		return append(causes, slices.Concat(wrong, hinders, usual)...)
	}
	causes = append(causes, hinders...)
	if slices.ContainsFunc(causes, func(c Cause) bool { return c.Severity == Fault }) {
		return causes
	}
	if v.At.Sub(t.RunAt) > takenWithin {
		told := slices.DeleteFunc(slices.Clone(causes), Cause.beside)
		aside := slices.DeleteFunc(causes, func(c Cause) bool { return !c.beside() })
		if len(told) == 0 {
			told = []Cause{v.unknown("task %s could have started %s ago, a worker that takes it is ready, and yet it has not", t.ID, v.ago(t.RunAt)).since(t.RunAt)}
		}
		causes = append(told, aside...)
	}
	return append(causes, turn...)
}

// beside reports whether a cause never is why a task does not start.
func (c Cause) beside() bool {
	return c.untold() || c.Code == CauseClockSkew || c.Code == CauseOutputBlocked
}

// takenWithin is how long a task that can start may wait before that needs an explanation.
const takenWithin = 15 * time.Second

// waiting says why a task is not due, or no longer.
func (v *view) waiting() (causes []Cause, waits bool) {
	t := v.Task
	if !t.ExpiresAt.IsZero() && !t.ExpiresAt.After(v.At) {
		c := because(CauseExpired, "task %s expired %s ago; a keeper is about to fail it", t.ID, v.ago(t.ExpiresAt)).since(t.ExpiresAt).
			with(SourceStore, "expires_at", moment(t.ExpiresAt))
		if late := v.At.Sub(t.ExpiresAt); late > choreLate {
			return []Cause{v.noKeeper("task %s expired %s ago, and no keeper has failed it", t.ID, brief(late)).since(t.ExpiresAt).with(SourceStore, "expires_at", moment(t.ExpiresAt)), c}, true
		}
		return []Cause{c}, true
	}
	if !t.RunAt.After(v.At) {
		return nil, false
	}
	c := because(v.waitCode(), "%s", v.waitText()).next(t.RunAt).with(SourceStore, "run_at", moment(t.RunAt))
	if !t.ExpiresAt.IsZero() && !t.ExpiresAt.After(t.RunAt) {
		c = because(v.waitCode(), "%s; before that, at %s, it expires", v.waitText(), moment(t.ExpiresAt)).next(t.ExpiresAt).
			with(SourceStore, "run_at", moment(t.RunAt)).with(SourceStore, "expires_at", moment(t.ExpiresAt))
	}
	if t.Code != "" {
		c = c.with(SourceStore, "last attempt", strings.TrimSuffix(string(t.Code)+": "+told(t.Error), ": "))
		c = c.with(SourceStore, "attempt", fmt.Sprintf("%d of %s", t.Attempt, atMost(t.MaxAttempts)))
	}
	if t.Code == CodeArgsIncompatible {
		c = c.fix(act("deploy a build of the worker that takes the args of task %s", t.ID), command("opscore task cancel %s", t.ID))
	}
	if t.Code == CodeLost {
		c = c.with(SourceStore, "lost", fmt.Sprintf("%d of %d", t.Lost, MaxLost))
		if w := v.lastOwner(); w != nil {
			if dead := v.oom(w); dead != nil {
				return []Cause{*dead, c}, true
			}
		}
	}
	return []Cause{c}, true
}

func (v *view) waitCode() string {
	code, ok := map[Code]string{
		"": CauseScheduled, CodeRetried: CauseScheduled, CodeSnoozed: CauseSnoozed, CodeArgsIncompatible: CauseArgsIncompatible,
		CodeLost: CauseWorkerDied, CodeShutdown: CauseHandedBack, CodeLostInWorker: CauseHandedBack,
	}[v.Task.Code]
	if !ok {
		return CauseRetryBackoff
	}
	return code
}

func (v *view) waitText() string {
	t := v.Task
	in := brief(t.RunAt.Sub(v.At))
	switch v.waitCode() {
	case CauseScheduled:
		return fmt.Sprintf("task %s is scheduled for %s, in %s", t.ID, moment(t.RunAt), in)
	case CauseSnoozed:
		return fmt.Sprintf("the handler of task %s put it off until %s, in %s", t.ID, moment(t.RunAt), in)
	case CauseArgsIncompatible:
		return fmt.Sprintf("the worker that claimed task %s cannot decode its args; it is tried again in %s: %s", t.ID, in, told(t.Error))
	case CauseWorkerDied:
		return fmt.Sprintf("task %s was lost with its worker, %d of %d times; it is tried again in %s: %s", t.ID, t.Lost, MaxLost, in, told(t.Error))
	case CauseHandedBack:
		return fmt.Sprintf("task %s was handed back by its worker (%s); it is tried again in %s", t.ID, t.Code, in)
	}
	return fmt.Sprintf("attempt %d of %s of task %s failed; it is retried in %s: %s", t.Attempt, atMost(t.MaxAttempts), t.ID, in, told(t.Error))
}

// lastOwner is the worker of the last attempt that is known.
func (v *view) lastOwner() *WorkerInfo {
	for _, a := range slices.Backward(v.Attempts) {
		if w := v.worker(a.Worker); w != nil {
			return w
		}
	}
	return nil
}

// paused says who paused the queue.
func (v *view) paused(queue string) []Cause {
	p := v.standing(queue).Paused
	if p == nil {
		return nil
	}
	text := fmt.Sprintf("queue %s is paused by %s", queue, p.By)
	if !p.At.IsZero() && !v.At.IsZero() {
		text += " since " + moment(p.At)
	}
	if p.Comment != "" {
		text += ": " + p.Comment
	}
	return []Cause{because(CauseQueuePaused, "%s", text).since(p.At).with(SourceStore, "paused by", p.By).
		with(SourceStore, "paused at", moment(p.At)).with(SourceStore, "comment", p.Comment).
		fix(safe(command("opscore queue resume %s", queue)))}
}

// running says what becomes of a task that a worker owns.
func (v *view) running() []Cause {
	t := v.Task
	owner := v.worker(t.Worker)
	var causes []Cause
	alive := false
	if owner == nil {
		causes = []Cause{because(CauseWorkerDied, "task %s runs on worker %s, which is not registered any more: a keeper is about to take it back", t.ID, t.Worker).
			with(SourceStore, "worker", t.Worker)}
		if v.At.Sub(t.StartedAt) > choreLate {
			causes = append(causes, v.noKeeper("no keeper has taken back task %s, although its worker has long been gone", t.ID).with(SourceStore, "started", moment(t.StartedAt)))
		}
	} else if why, fit := v.condition(owner); !fit && (why.Code != CauseWorkerNotReady || owner.State == WorkerGone) {
		causes = []Cause{why}
	} else {
		alive = true
	}
	causes = append(causes, v.rescueLate(owner, alive)...)
	if alive {
		causes = append(causes, v.run(owner)...)
	}
	causes = slices.Concat(v.database(), causes)
	if owner != nil {
		causes = append(causes, v.degraded(owner)...)
	}
	if !alive { // then the task has to find its way to another worker
		causes = append(causes, v.nobody(t.Queue, t.Actor)...)
		causes = append(causes, v.broker(t.Queue, true)...)
	}
	return append(causes, v.host([]string{t.Queue})...)
}

// run says how the run goes of a worker that is alive.
func (v *view) run(w *WorkerInfo) []Cause {
	t := v.Task
	on := fmt.Sprintf("worker %s (%s, process %d)", w.ID, w.Host, w.PID)
	about := func(c Cause) Cause {
		return c.with(SourceStore, "worker", w.ID).with(SourceStore, "host", w.Host).with(SourceStore, "pid", w.PID)
	}
	over := v.At.Sub(t.StartedAt) - time.Duration(t.Timeout)
	told := v.At.Sub(t.CancelRequestedAt)
	handlers := w.Report.Check(CheckHandlers)
	named := handlers.State != CheckOK && strings.Contains(handlers.Text, t.ID.String())
	if handlers.State == CheckOK && over > DefaultGrace && w.LastBeat.After(t.StartedAt.Add(time.Duration(t.Timeout)+DefaultGrace+time.Second)) {
		return []Cause{about(because(CauseRunning, "the handler of task %s has ended in %s, as far as that says; its outcome is about to be recorded, %s after its time of %s",
			t.ID, on, brief(over), t.Timeout).since(t.StartedAt)).with(SourceStore, "check handlers", handlers.State)}
	}
	switch {
	case t.Suspect() && !t.Alone:
		return []Cause{about(because(CauseWaitsAlone, "task %s was lost %d times with its worker and has to run alone: %s lets its other tasks end first", t.ID, t.Lost, on).
			since(t.StartedAt)).with(SourceStore, "other tasks", max(v.taken(w)-1, 0))}
	case named || over > DefaultGrace || !t.CancelRequestedAt.IsZero() && told > time.Duration(w.Lease)/3+DefaultGrace:
		why := fmt.Sprintf("its time of %s was over %s ago", t.Timeout, brief(over))
		if over <= 0 {
			why = "its context has ended"
			if !t.CancelRequestedAt.IsZero() {
				why = fmt.Sprintf("%s cancelled it %s ago", cmp.Or(t.CancelledBy, "somebody"), brief(told))
			}
		}
		c := about(because(CauseHandlerStuck, "the handler %s of task %s goes on in %s, although %s", t.Actor, t.ID, on, why).since(handlers.Since))
		if named {
			c = c.with(SourceStore, "check handlers", handlers.Text)
		}
		return []Cause{c.with(SourceStore, "started", moment(t.StartedAt)).with(SourceStore, "timeout", t.Timeout).
			fix(command("opscore worker stop %s", w.ID), act("mend the handler of actor %s so that it heeds its context", t.Actor))}
	case !t.CancelRequestedAt.IsZero():
		return []Cause{about(because(CauseCancelRequested, "%s cancelled task %s %s ago; %s is told at its next heartbeat",
			cmp.Or(t.CancelledBy, "somebody"), t.ID, brief(told), on).since(t.CancelRequestedAt)).next(w.LastBeat.Add(w.beatEvery()))}
	}
	c := about(because(CauseRunning, "task %s has been running for %s in %s, attempt %d of %s", t.ID, v.ago(t.StartedAt), on, t.Attempt, atMost(t.MaxAttempts)).
		since(t.StartedAt)).next(t.StartedAt.Add(time.Duration(t.Timeout)))
	if t.Progress > 0 || t.ProgressText != "" {
		c = c.with(SourceStore, "progress", fmt.Sprintf("%.0f%% %s", 100*t.Progress, t.ProgressText))
	}
	return []Cause{c}
}
