package storetest

import (
	"slices"
	"sync"
	"time"

	"github.com/opscore/opscore"
)

var claims = []scenario{
	{"a claim makes due tasks running and owned", func(e *env) {
		w := e.worker()
		t := e.claimOne(w)
		want(e, "state", t.State, opscore.Running)
		want(e, "worker", t.Worker, w)
		want(e, "claim number", t.ClaimSeq, 1)
		want(e, "attempt", t.Attempt, 1)
		got := e.wantState(t.ID, opscore.Running)
		want(e, "stored worker", got.Worker, w)
		want(e, "stored claim number", got.ClaimSeq, 1)
		e.wantAbout("started at", got.StartedAt, time.Now())
		e.wantIDs("second claim", ids(e.claim(wants(w, 10))))
	}},
	{"a task is not claimed before its time, and a claim says when that is", func(e *env) {
		w := e.worker()
		e.submit(opscore.After(2 * time.Hour))
		id := e.submit(opscore.After(time.Hour), opscore.Priority(-5))
		e.submit(opscore.After(time.Minute), opscore.Queue("not-mine"))
		got, err := e.store.Claim(e.ctx, wants(w, 10))
		if err != nil || len(got.Tasks) != 0 {
			e.Fatalf("claim = %v, %v", ids(got.Tasks), err)
		}
		if got.Next > time.Hour || got.Next < time.Hour-time.Second {
			e.Errorf("next = %v, want about 1h", got.Next)
		}
		c := wants(w, 10)
		c.IDs = []opscore.ID{id}
		e.wantIDs("by id before its time", ids(e.claim(c)))
		e.pass(time.Hour)
		e.heartbeat(w)
		e.wantIDs("at its time", ids(e.claim(wants(w, 10))), id)
	}},
	{"the most urgent come first: by priority, then due time, then age, across queues and actors", func(e *env) {
		w := e.worker()
		past := time.Now().Add(-time.Hour)
		at := func(d time.Duration) opscore.Option { return opscore.At(past.Add(d)) }
		low := e.submit(opscore.Priority(-1), at(0))
		early := e.submit(at(time.Minute), opscore.Queue("r"))
		late := e.submit(at(3 * time.Minute))
		middle := e.submit(at(2*time.Minute), actor("other"))
		middle2 := e.submit(at(2 * time.Minute))
		high := e.submit(opscore.Priority(1), at(4*time.Minute), opscore.Queue("r"))
		c := wants(w, 4)
		c.Queues, c.Actors = []string{"q", "r"}, []string{"act", "other"}
		e.wantIDs("first four", ids(e.claim(c)), high, early, middle, middle2)
		e.wantIDs("the rest", ids(e.claim(c)), late, low)
	}},
	{"of tasks of one kind the first due is claimed first", func(e *env) {
		w := e.worker()
		past := time.Now().Add(-time.Hour)
		second, first, third := e.submit(opscore.At(past.Add(time.Second))), e.submit(opscore.At(past)), e.submit()
		for _, id := range []opscore.ID{first, second, third} {
			e.wantIDs("claim of one", ids(e.claim(wants(w, 1))), id)
		}
	}},
	{"a due task is claimed alone among those of its kind that are not due", func(e *env) {
		w := e.worker()
		e.submit(opscore.After(time.Second))
		id := e.submit()
		e.submit(opscore.After(time.Hour))
		e.wantIDs("claim", ids(e.claim(wants(w, 10))), id)
	}},
	{"a task in the future does not stand in the way of a due one of lower priority", func(e *env) {
		w := e.worker()
		for range 10 {
			e.submit(opscore.Priority(100), opscore.After(time.Hour))
		}
		id := e.submit(opscore.Priority(-100))
		e.wantIDs("claim", ids(e.claim(wants(w, 10))), id)
	}},
	{"a claim sees at once what has changed since the last one", func(e *env) {
		w := e.worker()
		elsewhere := wants(w, 1)
		elsewhere.Queues = []string{"elsewhere"}
		next := func(what string, want ...opscore.ID) {
			e.Helper()
			e.wantIDs(what, ids(e.claim(wants(w, 1))), want...)
		}
		var waiting []opscore.ID
		for range 5 {
			waiting = append(waiting, e.submit())
		}
		next("the first", waiting[0])
		next("a more urgent one came", e.submit(opscore.Priority(5)))
		next("one came that has been due for longer", e.submit(opscore.At(time.Now().Add(-time.Hour))))

		snoozed, failed := e.claimOne(w, opscore.Priority(7)), e.claimOne(w, opscore.Priority(8))
		e.finish(ends(failed, opscore.Failed))
		e.wantIDs("elsewhere", ids(e.claim(elsewhere)))
		next("none of higher priority waits", waiting[1])
		e.finish(ends(snoozed, opscore.Pending))
		next("one was put back", snoozed.ID)
		e.wantIDs("elsewhere", ids(e.claim(elsewhere)))
		next("none of higher priority waits", waiting[2])
		if _, err := e.store.Retry(e.ctx, []opscore.ID{failed.ID}, "someone"); err != nil {
			e.Fatalf("retry: %v", err)
		}
		next("an operator put one back", failed.ID)

		if err := e.store.Pause(e.ctx, []string{"q"}, "someone", ""); err != nil {
			e.Fatalf("pause: %v", err)
		}
		next("the queue was paused")
		if err := e.store.Resume(e.ctx, []string{"q"}); err != nil {
			e.Fatalf("resume: %v", err)
		}
		next("the pause has ended", waiting[3])
	}},
	{"a claim takes at most what it asks for", func(e *env) {
		w := e.worker()
		for range 5 {
			e.submit()
		}
		want(e, "claimed", len(e.claim(wants(w, 3))), 3)
		want(e, "claimed of none", len(e.claim(wants(w, 0))), 0)
		want(e, "claimed then", len(e.claim(wants(w, 3))), 2)
	}},
	{"a claim takes only from its queues and for its actors", func(e *env) {
		w := e.worker()
		e.submit(opscore.Queue("r"))
		other := e.submit(actor("other"))
		id := e.submit()
		e.wantIDs("claim", ids(e.claim(wants(w, 10))), id)
		c := wants(w, 10)
		c.IDs = []opscore.ID{other}
		e.wantIDs("by id of an actor that is not ours", ids(e.claim(c)))
		want(e, "attempts of it", e.get(other).Attempt, 0)
	}},
	{"a claim by id takes only those, whatever their queue", func(e *env) {
		w := e.worker()
		e.submit()
		a, b := e.submit(opscore.Queue("r")), e.submit()
		c := wants(w, 10)
		c.IDs = []opscore.ID{a, newID(), b}
		got := ids(e.claim(c))
		slices.SortFunc(got, func(x, y opscore.ID) int { return slices.Compare(x[:], y[:]) })
		e.wantIDs("claim", got, a, b)
	}},
	{"an expired task is not claimed", func(e *env) {
		w := e.worker()
		id := e.submit(opscore.ExpiresAfter(time.Minute))
		e.pass(time.Minute)
		e.heartbeat(w)
		e.wantIDs("claim", ids(e.claim(wants(w, 10))))
		c := wants(w, 10)
		c.IDs = []opscore.ID{id}
		e.wantIDs("by id", ids(e.claim(c)))
	}},
	{"a worker that is gone claims nothing", func(e *env) {
		w := e.worker()
		id := e.submit()
		if err := e.store.Leave(e.ctx, w, "test", opscore.Report{}); err != nil {
			e.Fatalf("leave: %v", err)
		}
		for _, gone := range []opscore.ID{w, newID()} {
			_, err := e.store.Claim(e.ctx, wants(gone, 1))
			e.wantCode(err, opscore.CodeLeaseLost)
		}
		e.wantState(id, opscore.Pending)
	}},
	{"each task is claimed by one of many workers", func(e *env) {
		const tasks, workers = 400, 8
		requests := make([]opscore.Request, tasks)
		for i := range requests {
			requests[i] = request()
		}
		e.insert(requests...)
		var wg sync.WaitGroup
		var mu sync.Mutex
		owners := map[opscore.ID]int{}
		for range workers {
			w := e.worker()
			wg.Go(func() {
				for {
					got, err := e.store.Claim(e.ctx, wants(w, 4))
					if err != nil {
						e.Errorf("claim: %v", err)
						return
					}
					if len(got.Tasks) == 0 {
						return
					}
					mu.Lock()
					for _, t := range got.Tasks {
						owners[t.ID]++
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		want(e, "tasks claimed", len(owners), tasks)
		for id, n := range owners {
			if n != 1 {
				e.Errorf("task %s was claimed %d times", id, n)
			}
		}
	}},
}

var finishes = []scenario{
	{"a completed task keeps its result and costs no history", func(e *env) {
		t := e.claimOne(e.worker())
		r := e.finish(ends(t, opscore.Completed))
		want(e, "recorded", r[0], opscore.Recorded{State: opscore.Completed})
		got := e.wantState(t.ID, opscore.Completed)
		e.wantBytes("result", got.Result, `"done"`)
		e.wantAbout("finished at", got.FinishedAt, time.Now())
		want(e, "attempt", got.Attempt, 1)
		want(e, "history", len(e.attempts(t.ID)), 0)
	}},
	{"a failed attempt waits for its delay and goes into the history", func(e *env) {
		w := e.worker()
		t := e.claimOne(w)
		o := ends(t, opscore.Pending)
		o.Delay = time.Minute
		want(e, "recorded", e.finish(o)[0], opscore.Recorded{State: opscore.Pending})
		got := e.wantState(t.ID, opscore.Pending)
		want(e, "attempt", got.Attempt, 1)
		want(e, "claim number", got.ClaimSeq, t.ClaimSeq+1)
		want(e, "error", got.Error, "boom")
		e.wantAbout("due", got.RunAt, time.Now().Add(time.Minute))
		e.wantIDs("claim at once", ids(e.claim(wants(w, 1))))
		history := e.attempts(t.ID)
		want(e, "history", len(history), 1)
		h := history[0]
		h.StartedAt, h.EndedAt = time.Time{}, time.Time{}
		want(e, "attempt", h, opscore.Attempt{
			Task: t.ID, ClaimSeq: t.ClaimSeq, Worker: w, Build: "build", Code: opscore.CodeError, Error: "boom",
		})
		e.pass(time.Minute)
		e.heartbeat(w)
		again := e.claim(wants(w, 1))
		e.wantIDs("claim at its time", ids(again), t.ID)
		want(e, "second attempt", again[0].Attempt, 2)
		want(e, "claim number", again[0].ClaimSeq, t.ClaimSeq+2)
		e.finish(ends(again[0], opscore.Completed))
		want(e, "error of a completed task", e.get(t.ID).Error, "")
	}},
	{"an uncounted attempt is taken back", func(e *env) {
		t := e.claimOne(e.worker())
		o := ends(t, opscore.Pending)
		o.Uncounted, o.Code = true, opscore.CodeSnoozed
		e.finish(o)
		want(e, "attempt", e.get(t.ID).Attempt, 0)
		want(e, "history", len(e.attempts(t.ID)), 1)
	}},
	{"an attempt that never started leaves its cause on the task and none in the history", func(e *env) {
		t := e.claimOne(e.worker())
		o := ends(t, opscore.Pending)
		o.Uncounted, o.Unstarted, o.Code, o.Error = true, true, opscore.CodeArgsIncompatible, "unknown field"
		e.finish(o)
		got := e.wantState(t.ID, opscore.Pending)
		want(e, "code", got.Code, opscore.CodeArgsIncompatible)
		want(e, "error", got.Error, "unknown field")
		want(e, "history", len(e.attempts(t.ID)), 0)
	}},
	{"a failed task keeps its error", func(e *env) {
		t := e.claimOne(e.worker())
		want(e, "recorded", e.finish(ends(t, opscore.Failed))[0], opscore.Recorded{State: opscore.Failed})
		got := e.wantState(t.ID, opscore.Failed)
		want(e, "code", got.Code, opscore.CodeError)
		want(e, "error", got.Error, "boom")
		want(e, "claim number", got.ClaimSeq, t.ClaimSeq)
		want(e, "history", len(e.attempts(t.ID)), 1)
	}},
	{"an outcome under another claim number or worker changes nothing and is kept as late", func(e *env) {
		w := e.worker()
		t := e.claimOne(w)
		stale, foreign, unknown := ends(t, opscore.Completed), ends(t, opscore.Failed), ends(t, opscore.Completed)
		stale.ClaimSeq--
		foreign.Worker = e.worker()
		unknown.Task = newID()
		for _, r := range e.finish(stale, foreign, unknown) {
			want(e, "late", r.Late, true)
		}
		got := e.wantState(t.ID, opscore.Running)
		want(e, "result", len(got.Result), 0)
		want(e, "finished", got.FinishedAt.IsZero(), true)
		history := e.attempts(t.ID)
		want(e, "history", len(history), 2)
		for _, a := range history {
			want(e, "late in history", a.Late, true)
		}
		want(e, "the claim that holds", e.finish(ends(t, opscore.Completed))[0], opscore.Recorded{State: opscore.Completed})
	}},
	{"the result of a revoked claim never becomes the task's, even while a new claim runs", func(e *env) {
		w := e.worker()
		first := e.claimOne(w)
		e.finish(ends(first, opscore.Pending))
		second := e.claim(wants(w, 1))[0]
		zombie := ends(first, opscore.Completed)
		zombie.Result = []byte(`"wrong"`)
		// The same claim ended before: it is known already, and not this.
		e.finish(zombie)
		e.wantState(first.ID, opscore.Running)
		e.finish(ends(second, opscore.Completed))
		e.finish(zombie)
		e.wantBytes("result", e.get(first.ID).Result, `"done"`)
	}},
	{"an outcome recorded twice is recorded once and not late", func(e *env) {
		w := e.worker()
		for _, s := range []opscore.State{opscore.Completed, opscore.Failed, opscore.Pending, opscore.Cancelled} {
			t := e.claimOne(w)
			o := ends(t, s)
			o.Delay = time.Hour
			first := e.finish(o)[0]
			after := e.get(t.ID)
			want(e, string(s)+" again", e.finish(o)[0], first)
			again := e.get(t.ID)
			want(e, "attempt", again.Attempt, after.Attempt)
			want(e, "claim number", again.ClaimSeq, after.ClaimSeq)
			want(e, "finished", again.FinishedAt, after.FinishedAt)
			want(e, "late in history", slices.ContainsFunc(e.attempts(t.ID), func(a opscore.Attempt) bool { return a.Late }), false)
		}
	}},
	{"outcomes of one batch do not hinder each other", func(e *env) {
		w := e.worker()
		a, b := e.claimOne(w), e.claimOne(w)
		stale := ends(a, opscore.Completed)
		stale.ClaimSeq += 5
		r := e.finish(stale, ends(b, opscore.Completed), ends(a, opscore.Failed))
		want(e, "stale", r[0].Late, true)
		want(e, "second", r[1], opscore.Recorded{State: opscore.Completed})
		want(e, "third", r[2], opscore.Recorded{State: opscore.Failed})
	}},
	{"success wins over a cancellation, everything else becomes cancelled", func(e *env) {
		w := e.worker()
		for _, tc := range []struct{ end, want opscore.State }{
			{opscore.Completed, opscore.Completed},
			{opscore.Pending, opscore.Cancelled},
			{opscore.Failed, opscore.Cancelled},
			{opscore.Cancelled, opscore.Cancelled},
		} {
			t := e.claimOne(w)
			e.cancel(t.ID)
			o := ends(t, tc.end)
			o.Delay = time.Minute
			want(e, "recorded", e.finish(o)[0], opscore.Recorded{State: tc.want})
			got := e.wantState(t.ID, tc.want)
			want(e, "finished", got.FinishedAt.IsZero(), false)
			want(e, "claim number", got.ClaimSeq, t.ClaimSeq)
		}
		e.wantIDs("nothing is left to claim", ids(e.claim(wants(w, 10))))
	}},
	{"progress and log lines are kept while the claim holds", func(e *env) {
		w := e.worker()
		t := e.claimOne(w)
		line := func(text string) []opscore.LogLine {
			return []opscore.LogLine{{Task: t.ID, ClaimSeq: t.ClaimSeq, At: time.Now().Truncate(time.Millisecond), Level: "INFO", Text: text}}
		}
		note := opscore.Note{Task: t.ID, ClaimSeq: t.ClaimSeq, Worker: w, Progress: 0.5, Text: "half", Log: line("one")}
		stale := note
		stale.ClaimSeq, stale.Progress, stale.Log = 9, 0.9, line("stale")
		quiet := note
		quiet.Progress, quiet.Text, quiet.Log = -1, "", line("two")
		if err := e.store.Note(e.ctx, []opscore.Note{note, stale, quiet}); err != nil {
			e.Fatalf("note: %v", err)
		}
		got := e.get(t.ID)
		want(e, "progress", got.Progress, 0.5)
		want(e, "progress text", got.ProgressText, "half")
		o := ends(t, opscore.Completed)
		o.Log = line("three")
		e.finish(o)
		e.finish(o) // again, as after a lost answer
		late := note
		late.Progress, late.Log = 0.1, line("four")
		if err := e.store.Note(e.ctx, []opscore.Note{late, stale}); err != nil {
			e.Fatalf("note: %v", err)
		}
		want(e, "progress after the end", e.get(t.ID).Progress, 0.5)
		lines, err := e.store.Logs(e.ctx, t.ID)
		if err != nil {
			e.Fatalf("logs: %v", err)
		}
		var texts []string
		for _, l := range lines {
			texts = append(texts, l.Text)
			want(e, "claim number of line", l.ClaimSeq, t.ClaimSeq)
		}
		if !slices.Equal(texts, []string{"one", "two", "three", "four"}) {
			e.Errorf("log = %v", texts)
		}
	}},
}
