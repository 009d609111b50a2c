package storetest

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opscore/opscore"
)

// RunAdopter runs the suite of a store that is an [opscore.Adopter] and keeps [opscore.Orphans].
func RunAdopter(t *testing.T, h Harness) {
	for _, group := range [][]scenario{adoptions, orphans} {
		for _, sc := range group {
			t.Run(sc.name, func(t *testing.T) {
				h.Around(t, func(t *testing.T) { sc.test(newEnv(t, h, t.TempDir())) })
			})
		}
	}
}

// message is one that can become a task.
func message(opts ...opscore.Option) opscore.Adoption {
	return opscore.Adoption{Request: request(opts...), Message: opscore.Orphan{Queue: "theirs", Headers: "{}", Body: []byte("body")}}
}

func (e *env) adopt(want opscore.Claim, messages ...opscore.Adoption) []opscore.Adopted {
	e.Helper()
	adopted, err := e.store.(opscore.Adopter).Adopt(e.ctx, want, messages)
	if err != nil || len(adopted) != len(messages) {
		e.Fatalf("adopt %d messages = %+v, %v", len(messages), adopted, err)
	}
	return adopted
}

// verdict is an answer in a word.
func verdict(a opscore.Adopted) string {
	switch {
	case a.Orphan != "":
		return string(a.Orphan)
	case a.Duplicate:
		return "duplicate"
	case a.Claimed:
		return "claimed"
	}
	return string(a.Task.State)
}

func (e *env) wantVerdicts(what string, adopted []opscore.Adopted, want ...string) {
	e.Helper()
	var got []string
	for _, a := range adopted {
		got = append(got, verdict(a))
	}
	if !slices.Equal(got, want) {
		e.Errorf("%s: %v, want %v", what, got, want)
	}
}

// wantKept checks the orphans of a message id.
func (e *env) wantKept(id opscore.ID, reasons ...opscore.Code) {
	e.Helper()
	var got []opscore.Code
	for _, o := range e.orphans(opscore.OrphanFilter{Message: id}) {
		got = append(got, o.Reason)
	}
	if !slices.Equal(got, reasons) {
		e.Errorf("orphans of message %s: %v, want %v", id, got, reasons)
	}
}

var adoptions = []scenario{
	{"a due message is a running task at once, with all that it brought", func(e *env) {
		w := e.worker()
		m := message(opscore.Priority(7), opscore.Labels(map[string]string{"a": "b"}), opscore.ExpiresAfter(time.Hour), opscore.MaxAttempts(5))
		m.Retry = opscore.Backoff{Base: 15 * time.Second, Factor: 2, Jitter: 0.25, Max: time.Hour}
		m.Attempts, m.Made, m.Origin = 2, time.Now().Add(-time.Hour).Truncate(time.Millisecond), json.RawMessage(`{"on_success":"next"}`)
		got := e.adopt(wants(w, 1), m)[0]
		want(e, "claimed", got.Claimed, true)
		row := e.get(m.Request.ID)
		for _, t := range []opscore.Task{got.Task, row} {
			want(e, "id", t.ID, m.Request.ID)
			want(e, "state", t.State, opscore.Running)
			want(e, "worker", t.Worker, w)
			want(e, "claim number", t.ClaimSeq, 1)
			want(e, "attempt", t.Attempt, 3)
			want(e, "max attempts", t.MaxAttempts, 5)
			want(e, "priority", t.Priority, 7)
			want(e, "queue and actor", t.Queue+" "+t.Actor, "q act")
			want(e, "timeout", t.Timeout, opscore.Duration(time.Minute))
			want(e, "label", t.Labels["a"], "b")
			want(e, "retry", t.Retry, m.Retry)
			want(e, "created", t.CreatedAt.Equal(m.Made), true)
			e.wantAbout("started", t.StartedAt, time.Now())
			e.wantAbout("run at", t.RunAt, time.Now())
			e.wantAbout("expires", t.ExpiresAt, time.Now().Add(time.Hour))
			e.wantBytes("args", t.Args, `{"n":1}`)
			e.wantBytes("origin", t.Origin, `{"on_success":"next"}`)
		}
		want(e, "owned", len(e.heartbeat(w)), 1)
		want(e, "recorded", e.finish(ends(got.Task, opscore.Completed))[0].State, opscore.Completed)
	}},
	{"a task that was adopted keeps its own wait and its origin from claim to claim, and its attempts count", func(e *env) {
		w := e.worker()
		m := message()
		m.Retry, m.Origin, m.Attempts = opscore.Backoff{Base: time.Minute}, json.RawMessage(`[1]`), 1
		e.finish(ends(e.adopt(wants(w, 1), m)[0].Task, opscore.Pending))
		want(e, "history", len(e.attempts(m.Request.ID)), 1)
		t := e.claim(wants(w, 1))[0]
		want(e, "retry", t.Retry, m.Retry)
		want(e, "attempt", t.Attempt, 3)
		want(e, "claim number", t.ClaimSeq, 3)
		e.wantBytes("origin", t.Origin, `[1]`)
	}},
	{"no more than asked for are claimed, the most urgent ones; the others wait and are claimed at once", func(e *env) {
		w := e.worker()
		e.claim(wants(w, 10)) // whatever a store remembers of what is due
		past := time.Now().Add(-time.Hour)
		low, late := message(opscore.Priority(-1), opscore.At(past)), message(opscore.At(past.Add(time.Minute)))
		early, high := message(opscore.At(past)), message(opscore.Priority(1))
		e.wantVerdicts("adopted", e.adopt(wants(w, 2), low, late, early, high), "pending", "pending", "claimed", "claimed")
		e.wantIDs("claimed then", ids(e.claim(wants(w, 10))), late.Request.ID, low.Request.ID)
	}},
	{"one that waits is seen by the next claim although others wait that are less urgent", func(e *env) {
		w := e.worker()
		for range 3 {
			e.submit(opscore.Priority(-5))
		}
		e.claim(wants(w, 1)) // whatever a store remembers of what is due
		m := message()
		e.wantVerdicts("without room", e.adopt(wants(w, 0), m), "pending")
		e.wantIDs("claimed then", ids(e.claim(wants(w, 1))), m.Request.ID)
	}},
	{"what may not start is pending", func(e *env) {
		w := e.worker()
		if err := e.store.Pause(e.ctx, []string{"paused"}, "ann", ""); err != nil {
			e.Fatalf("pause: %v", err)
		}
		expired := message(opscore.At(time.Now().Add(time.Hour)), opscore.ExpiresAt(time.Now().Add(-time.Second)))
		late := message(opscore.ExpiresAt(time.Now().Add(-time.Minute)))
		adopted := e.adopt(wants(w, 10), message(opscore.Queue("paused")), message(opscore.After(time.Hour)), message(actor("other")), expired, late, message())
		e.wantVerdicts("adopted", adopted, "pending", "pending", "pending", "pending", "pending", "claimed")
		e.wantVerdicts("without room", e.adopt(wants(w, 0), message()), "pending")
		e.wantVerdicts("without a worker", e.adopt(opscore.Claim{Actors: []string{"act"}, Max: 10}, message()), "pending")
		tasks, err := e.store.Expire(e.ctx)
		if err != nil {
			e.Fatalf("expire: %v", err)
		}
		want(e, "expired", len(tasks), 2)
		want(e, "code", e.wantState(late.Request.ID, opscore.Failed).Code, opscore.CodeExpired)
	}},
	{"a message that comes again while its task is not over changes nothing", func(e *env) {
		w, other := e.worker(), e.worker()
		running, waiting := message(), message(opscore.After(time.Hour))
		again := running
		again.Attempts, again.Request.Priority = 5, 9
		adopted := e.adopt(wants(w, 10), running, waiting, again)
		e.wantVerdicts("at first", adopted, "claimed", "pending", "duplicate")
		before := e.get(running.Request.ID)
		at := waiting
		at.Request.After = 0 // as the broker moves it
		e.wantVerdicts("again", e.adopt(wants(other, 10), again, at, message()), "duplicate", "duplicate", "claimed")
		after := e.get(running.Request.ID)
		want(e, "owner", after.Worker, w)
		want(e, "claim number", after.ClaimSeq, before.ClaimSeq)
		want(e, "attempt", after.Attempt, before.Attempt)
		want(e, "priority", after.Priority, 0)
		e.wantState(waiting.Request.ID, opscore.Pending)
		want(e, "orphans", len(e.orphans(opscore.OrphanFilter{})), 0)
	}},
	{"duplicates do not use up the room for claims", func(e *env) {
		w := e.worker()
		first, second := message(opscore.At(time.Now().Add(-time.Hour))), message(opscore.At(time.Now().Add(-time.Hour)))
		e.adopt(wants(w, 10), first, second)
		e.wantVerdicts("adopted", e.adopt(wants(w, 1), first, second, message()), "duplicate", "duplicate", "claimed")
	}},
	{"the id of a task that is over is kept as replayed: nothing runs", func(e *env) {
		w := e.worker()
		for _, s := range []opscore.State{opscore.Completed, opscore.Failed, opscore.Cancelled} {
			m := message()
			e.finish(ends(e.adopt(wants(w, 1), m)[0].Task, s))
			got := e.adopt(wants(w, 1), m, message())
			e.wantVerdicts(string(s), got, "replayed", "claimed")
			want(e, "its task is", got[0].Task.State, s)
			want(e, "dropped", got[0].Dropped, false)
			e.wantState(m.Request.ID, s)
			e.wantKept(m.Request.ID, opscore.CodeReplayed)
		}
		o := e.getOrphan(e.orphans(opscore.OrphanFilter{Limit: 1})[0].ID)
		want(e, "actor", o.Actor, "act")
		want(e, "queue", o.Queue, "theirs")
		e.wantBytes("body", o.Body, "body")
	}},
	{"the id of a task with another actor or other args is kept as a conflict", func(e *env) {
		w := e.worker()
		m := message()
		otherActor, otherArgs := m, m
		otherActor.Request.Actor = "other"
		otherArgs.Request.Args = json.RawMessage(`{"n":2}`)
		otherArgs.Message.Body = []byte("another body")
		e.wantVerdicts("in one batch", e.adopt(wants(w, 9), m, otherActor, otherArgs), "claimed", "conflict", "conflict")
		e.wantVerdicts("later", e.adopt(wants(w, 9), otherArgs), "conflict")
		e.wantKept(m.Request.ID, opscore.CodeConflict, opscore.CodeConflict)
		e.wantBytes("args", e.get(m.Request.ID).Args, `{"n":1}`)
	}},
	{"a message that cannot be a task does not hinder the others", func(e *env) {
		w := e.worker()
		nameless, noJSON, unstorable := message(actor("no name")), message(args(`{`)), message(opscore.Labels(map[string]string{"a": "\x00"}))
		keyed, timeless, noID := message(opscore.Unique("k")), message(), message(opscore.WithID(opscore.ID{}))
		timeless.Made = time.Now().AddDate(9000, 0, 0)
		large := message(args(`"` + strings.Repeat("x", opscore.DefaultMaxArgs) + `"`))
		got := e.adopt(wants(w, 10), nameless, message(), noJSON, unstorable, keyed, timeless, noID, large, message())
		e.wantVerdicts("adopted", got, "invalid", "claimed", "invalid", "invalid", "invalid", "invalid", "invalid", "too_large", "claimed")
		want(e, "kept", len(e.orphans(opscore.OrphanFilter{})), 7)
		want(e, "owned", len(e.heartbeat(w)), 2)
		for i, a := range got {
			if a.Orphan != "" && (a.Err == nil || a.Dropped) {
				e.Errorf("answer %d = %+v", i, a)
			}
		}
	}},
	{"a worker whose lease is lost adopts nothing", func(e *env) {
		w, other := e.worker(), e.worker()
		if err := e.store.Leave(e.ctx, w, "", opscore.Report{}); err != nil {
			e.Fatalf("leave: %v", err)
		}
		m, known := message(), message()
		e.adopt(wants(other, 1), known)
		for _, some := range [][]opscore.Adoption{{m}, {known}, {m, known}} {
			_, err := e.store.(opscore.Adopter).Adopt(e.ctx, wants(w, 10), some)
			e.wantCode(err, opscore.CodeLeaseLost)
		}
		if tasks, err := e.store.Get(e.ctx, []opscore.ID{m.Request.ID}); err != nil || len(tasks) != 0 {
			e.Errorf("it stored %v, %v", tasks, err)
		}
	}},
	{"of many that adopt the same messages each gets what no other has", func(e *env) {
		var messages []opscore.Adoption
		for range 40 {
			messages = append(messages, message())
		}
		var mu sync.Mutex
		owners := map[opscore.ID]int{}
		var wg sync.WaitGroup
		for n := range 6 {
			w := e.worker()
			some := slices.Clone(messages)
			slices.Reverse(some[n*5:])
			wg.Go(func() {
				for part := range slices.Chunk(some, 10) {
					adopted, err := e.store.(opscore.Adopter).Adopt(e.ctx, wants(w, 10), part)
					if err != nil {
						e.Errorf("adopt: %v", err)
					}
					mu.Lock()
					for _, a := range adopted {
						if a.Claimed && a.Task.Worker == w {
							owners[a.Task.ID]++
						} else if a.Claimed || a.Orphan != "" {
							e.Errorf("answer = %+v", a)
						}
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		claimed := e.list(opscore.Filter{States: []opscore.State{opscore.Running}, Limit: 1000})
		want(e, "tasks", len(e.list(opscore.Filter{Limit: 1000})), len(messages))
		want(e, "running", len(claimed), len(owners))
		for id, n := range owners {
			if n != 1 {
				e.Errorf("task %s has %d owners", id, n)
			}
		}
	}},
	{"an adoption in a context that has ended does nothing", func(e *env) {
		ctx, cancel := context.WithCancel(e.ctx)
		cancel()
		if _, err := e.store.(opscore.Adopter).Adopt(ctx, wants(e.worker(), 1), []opscore.Adoption{message()}); err == nil {
			e.Errorf("it was adopted")
		}
		want(e, "tasks", len(e.list(opscore.Filter{})), 0)
	}},
	{"nothing to adopt is no error", func(e *env) { e.adopt(wants(e.worker(), 1)) }},
}
