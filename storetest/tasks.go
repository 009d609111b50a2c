package storetest

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opscore/opscore"
)

var submits = []scenario{
	{"a submitted task is pending and keeps everything it was given", func(e *env) {
		at := time.Now().Add(time.Hour).Truncate(time.Millisecond)
		id := e.submit(opscore.At(at), opscore.ExpiresAt(at.Add(time.Hour)), opscore.Priority(7), opscore.Unique("k"),
			opscore.Labels(map[string]string{"tenant": "a:b", "x.y": `quote " and \`}), args(`{"a":[1,2]}`),
			opscore.Timeout(1500*time.Millisecond))
		t := e.get(id)
		want(e, "state", t.State, opscore.Pending)
		want(e, "actor", t.Actor, "act")
		want(e, "queue", t.Queue, "q")
		want(e, "priority", t.Priority, 7)
		want(e, "unique key", t.UniqueKey, "k")
		want(e, "max attempts", t.MaxAttempts, 3)
		want(e, "timeout", t.Timeout, opscore.Duration(1500*time.Millisecond))
		want(e, "attempt", t.Attempt, 0)
		want(e, "claim number", t.ClaimSeq, 0)
		want(e, "run at", t.RunAt.Equal(at), true)
		want(e, "expires at", t.ExpiresAt.Equal(at.Add(time.Hour)), true)
		e.wantBytes("args", t.Args, `{"a":[1,2]}`)
		e.wantAbout("created at", t.CreatedAt, time.Now())
		if !maps.Equal(t.Labels, map[string]string{"tenant": "a:b", "x.y": `quote " and \`}) {
			e.Errorf("labels = %v", t.Labels)
		}
		if !t.StartedAt.IsZero() || !t.FinishedAt.IsZero() || t.Worker != (opscore.ID{}) {
			e.Errorf("a pending task has started: %+v", t)
		}
	}},
	{"args and results are opaque bytes", func(e *env) {
		doc := "{\"nul\":\"\\u0000\",\"lone\":\"\\ud800\",\"big\":1e400000,\"utf8\":\"\u00e9\u2028\"}"
		t := e.claimOne(e.worker(), args(doc))
		e.wantBytes("claimed args", t.Args, doc)
		o := ends(t, opscore.Completed)
		o.Result = []byte(doc)
		e.finish(o)
		e.wantBytes("result", e.get(t.ID).Result, doc)
	}},
	{"delays count from the submit by the store's clock", func(e *env) {
		t := e.get(e.submit(opscore.After(time.Minute), opscore.ExpiresAfter(time.Hour)))
		want(e, "run after", t.RunAt.Sub(t.CreatedAt), time.Minute)
		want(e, "expires after", t.ExpiresAt.Sub(t.CreatedAt), time.Hour)
	}},
	{"get returns what exists in the order asked for", func(e *env) {
		a, b := e.submit(), e.submit()
		tasks, err := e.store.Get(e.ctx, []opscore.ID{b, newID(), a})
		if err != nil {
			e.Fatalf("get: %v", err)
		}
		e.wantIDs("get", ids(tasks), b, a)
	}},
	{"the same request again is the same task", func(e *env) {
		r := request()
		e.insert(r)
		again := e.insert(r)[0]
		want(e, "again", again, opscore.Inserted{ID: r.ID, Duplicate: true})
		e.wantIDs("tasks", e.list(opscore.Filter{}), r.ID)
	}},
	{"the same request is recognised after its task has finished", func(e *env) {
		r := request()
		e.insert(r)
		c := wants(e.worker(), 1)
		e.finish(ends(e.claim(c)[0], opscore.Completed))
		want(e, "again", e.insert(r)[0], opscore.Inserted{ID: r.ID, Duplicate: true})
		e.wantState(r.ID, opscore.Completed)
	}},
	{"the id of another task is a conflict, and stores nothing of its batch", func(e *env) {
		r := request()
		e.insert(r)
		for _, change := range []opscore.Option{actor("other"), args(`{"n":2}`)} {
			_, err := e.store.Insert(e.ctx, []opscore.Request{request(), request(opscore.WithID(r.ID), change), request()})
			e.wantCode(err, opscore.CodeConflict)
		}
		e.wantIDs("tasks", e.list(opscore.Filter{}), r.ID)
	}},
	{"a request that holds its own unique key is recognised, and another with its id is a conflict", func(e *env) {
		r := request(opscore.Unique("k"))
		e.insert(r)
		want(e, "again", e.insert(r)[0], opscore.Inserted{ID: r.ID, Duplicate: true})
		_, err := e.store.Insert(e.ctx, []opscore.Request{request(opscore.WithID(r.ID), opscore.Unique("k"), args(`{"n":2}`))})
		e.wantCode(err, opscore.CodeConflict)
	}},
	{"a unique key is held while its task is pending, running or completed", func(e *env) {
		w := e.worker()
		holder := e.submit(opscore.Unique("k"))
		check := func(when string) {
			in := e.insert(request(opscore.Unique("k"), args(`{"n":2}`)))[0]
			want(e, when, in, opscore.Inserted{ID: holder, Duplicate: true})
		}
		check("while pending")
		t := e.claim(wants(w, 1))[0]
		check("while running")
		e.finish(ends(t, opscore.Completed))
		check("after completion")
		e.wantIDs("tasks", e.list(opscore.Filter{}), holder)
	}},
	{"a failed or cancelled task holds no unique key", func(e *env) {
		w := e.worker()
		failed := e.claimOne(w, opscore.Unique("k"))
		e.finish(ends(failed, opscore.Failed))
		cancelled := e.submit(opscore.Unique("k"))
		e.cancel(cancelled)
		e.submit(opscore.Unique("k"))
	}},
	{"a unique key is the actor's own", func(e *env) {
		e.submit(opscore.Unique("k"))
		e.submit(opscore.Unique("k"), actor("other"))
	}},
	{"a unique key holds within one batch", func(e *env) {
		a, b := request(opscore.Unique("k")), request(opscore.Unique("k"))
		in := e.insert(a, b)
		want(e, "first", in[0], opscore.Inserted{ID: a.ID})
		want(e, "second", in[1], opscore.Inserted{ID: a.ID, Duplicate: true})
	}},
	{"of many submits of one key at once one wins and the others learn its id", func(e *env) {
		var wg sync.WaitGroup
		answers := make([]opscore.Inserted, 20)
		for i := range answers {
			wg.Go(func() {
				in, err := e.store.Insert(e.ctx, []opscore.Request{request(opscore.Unique("k"))})
				if err != nil {
					e.Errorf("insert: %v", err)
					return
				}
				answers[i] = in[0]
			})
		}
		wg.Wait()
		winners := 0
		for _, a := range answers {
			want(e, "id", a.ID, answers[0].ID)
			if !a.Duplicate {
				winners++
			}
		}
		want(e, "tasks stored", winners, 1)
	}},
}

var clients = []scenario{
	{"a list is newest first, and its pages show every task once", func(e *env) {
		var all []opscore.ID
		for range 23 {
			all = append(all, e.submit())
		}
		slices.Reverse(all)
		for _, size := range []int{1, 5, 22, 23, 24} {
			var pages []opscore.ID
			f := opscore.Filter{Limit: size}
			for {
				page := e.list(f)
				if len(page) == 0 || len(pages) > len(all) {
					break
				}
				if len(page) > size {
					e.Fatalf("a page of %d has %d tasks", size, len(page))
				}
				pages = append(pages, page...)
				f.Before = page[len(page)-1]
			}
			e.wantIDs(fmt.Sprintf("pages of %d", size), pages, all...)
		}
	}},
	{"a list shows what matches all of its filter", func(e *env) {
		w := e.worker()
		red := opscore.Labels(map[string]string{"colour": "red", "size": "1"})
		a := e.submit(red)
		b := e.submit(red, opscore.Queue("r"), actor("other"))
		c := e.submit(opscore.Labels(map[string]string{"colour": "blue"}))
		d := e.claimOne(w, red)
		f := e.claimOne(w)
		e.finish(ends(f, opscore.Failed))
		check := func(what string, f opscore.Filter, want ...opscore.ID) {
			e.Helper()
			e.wantIDs(what, e.list(f), want...)
		}
		check("running", opscore.Filter{States: []opscore.State{opscore.Running}}, d.ID)
		check("failed", opscore.Filter{States: []opscore.State{opscore.Failed}}, f.ID)
		check("failed or cancelled", opscore.Filter{States: []opscore.State{opscore.Cancelled, opscore.Failed}}, f.ID)
		check("failed or running", opscore.Filter{States: []opscore.State{opscore.Running, opscore.Failed}}, f.ID, d.ID)
		check("queue", opscore.Filter{Queue: "r"}, b)
		check("actor", opscore.Filter{Actor: "act"}, f.ID, d.ID, c, a)
		check("label", opscore.Filter{Labels: map[string]string{"colour": "red"}}, d.ID, b, a)
		check("labels", opscore.Filter{Labels: map[string]string{"colour": "red", "size": "2"}})
		check("all of it", opscore.Filter{
			States: []opscore.State{opscore.Pending}, Queue: "q", Actor: "act", Labels: map[string]string{"colour": "red"},
		}, a)
	}},
	{"counts are by queue, actor and state", func(e *env) {
		w := e.worker()
		e.submit()
		e.submit()
		e.submit(opscore.Queue("r"))
		e.finish(ends(e.claimOne(w), opscore.Completed))
		got, err := e.store.Count(e.ctx)
		if err != nil {
			e.Fatalf("count: %v", err)
		}
		if want := []opscore.Count{
			{Queue: "q", Actor: "act", State: opscore.Completed, Tasks: 1},
			{Queue: "q", Actor: "act", State: opscore.Pending, Tasks: 2},
			{Queue: "r", Actor: "act", State: opscore.Pending, Tasks: 1},
		}; !slices.Equal(got, want) {
			e.Errorf("counts = %v, want %v", got, want)
		}
	}},
	{"a pending task is cancelled at once and never runs", func(e *env) {
		w := e.worker()
		t := e.cancel(e.submit())
		want(e, "state", t.State, opscore.Cancelled)
		want(e, "by", t.CancelledBy, "ann")
		e.wantAbout("finished at", t.FinishedAt, time.Now())
		e.wantIDs("claim", ids(e.claim(wants(w, 10))))
	}},
	{"a running task is asked to cancel through its worker's heartbeat", func(e *env) {
		w := e.worker()
		t := e.claimOne(w)
		want(e, "owned before", e.heartbeat(w)[0], opscore.Owned{Task: t.ID, ClaimSeq: t.ClaimSeq})
		c := e.cancel(t.ID)
		want(e, "state", c.State, opscore.Running)
		want(e, "requested", c.CancelRequestedAt.IsZero(), false)
		want(e, "owned after", e.heartbeat(w)[0], opscore.Owned{Task: t.ID, ClaimSeq: t.ClaimSeq, Cancel: true})
		r := e.finish(ends(t, opscore.Cancelled))
		want(e, "recorded", r[0], opscore.Recorded{State: opscore.Cancelled})
		e.wantState(t.ID, opscore.Cancelled)
	}},
	{"cancelling what is over changes nothing, and what is unknown is left out", func(e *env) {
		t := e.claimOne(e.worker())
		e.finish(ends(t, opscore.Completed))
		before := e.get(t.ID)
		tasks, err := e.store.Cancel(e.ctx, []opscore.ID{t.ID, newID()}, "ann")
		if err != nil || len(tasks) != 1 {
			e.Fatalf("cancel = %v, %v", ids(tasks), err)
		}
		want(e, "state", tasks[0].State, opscore.Completed)
		want(e, "cancel requested", tasks[0].CancelRequestedAt, before.CancelRequestedAt)
	}},
	{"a failed or cancelled task that is retried starts afresh", func(e *env) {
		w := e.worker()
		t := e.claimOne(w, opscore.ExpiresAfter(time.Hour))
		e.finish(ends(t, opscore.Failed))
		c := e.submit()
		e.cancel(c)
		e.pass(2 * time.Hour)
		tasks, err := e.store.Retry(e.ctx, []opscore.ID{t.ID, c}, "ann")
		if err != nil {
			e.Fatalf("retry: %v", err)
		}
		e.wantIDs("retried", ids(tasks), t.ID, c)
		got := e.wantState(t.ID, opscore.Pending)
		want(e, "attempt", got.Attempt, 0)
		want(e, "claim number", got.ClaimSeq, t.ClaimSeq+1)
		want(e, "expires", got.ExpiresAt.IsZero(), true)
		want(e, "finished", got.FinishedAt.IsZero(), true)
		want(e, "error", got.Error, "")
		want(e, "cancel requested", e.get(c).CancelRequestedAt.IsZero(), true)
		want(e, "claims", len(e.claim(wants(w, 10))), 2)
		history := e.attempts(t.ID)
		want(e, "history", len(history), 2)
		want(e, "last of history", history[len(history)-1].Code, opscore.CodeRetried)
	}},
	{"only failed and cancelled tasks can be retried, all or none", func(e *env) {
		w := e.worker()
		f := e.claimOne(w)
		e.finish(ends(f, opscore.Failed))
		done := e.claimOne(w)
		e.finish(ends(done, opscore.Completed))
		running, pending := e.claimOne(w), e.submit()
		for _, id := range []opscore.ID{done.ID, running.ID, pending} {
			_, err := e.store.Retry(e.ctx, []opscore.ID{f.ID, id}, "ann")
			e.wantCode(err, opscore.CodeConflict)
		}
		_, err := e.store.Retry(e.ctx, []opscore.ID{f.ID, newID()}, "ann")
		e.wantCode(err, opscore.CodeTaskNotFound)
		e.wantState(f.ID, opscore.Failed)
		e.wantState(done.ID, opscore.Completed)
	}},
	{"a task whose unique key has a new holder cannot be retried", func(e *env) {
		id := e.submit(opscore.Unique("k"))
		e.cancel(id)
		e.submit(opscore.Unique("k"))
		_, err := e.store.Retry(e.ctx, []opscore.ID{id}, "ann")
		e.wantCode(err, opscore.CodeConflict)
		e.wantState(id, opscore.Cancelled)
	}},
	{"a paused queue gives no tasks until it is resumed", func(e *env) {
		w := e.worker()
		id := e.submit()
		other := e.submit(opscore.Queue("r"))
		for range 2 {
			if err := e.store.Pause(e.ctx, []string{"q"}, "ann", "deploy"); err != nil {
				e.Fatalf("pause: %v", err)
			}
		}
		paused, err := e.store.Paused(e.ctx)
		if err != nil || len(paused) != 1 || paused[0].Queue != "q" || paused[0].By != "ann" || paused[0].Comment != "deploy" {
			e.Fatalf("paused = %v, %v", paused, err)
		}
		c := wants(w, 10)
		c.Queues = []string{"q", "r"}
		e.wantIDs("while paused", ids(e.claim(c)), other)
		c.IDs = []opscore.ID{id}
		e.wantIDs("by id while paused", ids(e.claim(c)))
		if err := e.store.Resume(e.ctx, []string{"q", "never-paused"}); err != nil {
			e.Fatalf("resume: %v", err)
		}
		e.wantIDs("after", ids(e.claim(wants(w, 10))), id)
	}},
}
