package storetest

import (
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opscore/opscore"
)

var workers = []scenario{
	{"a registered worker is listed as it is, and lives while it heartbeats", func(e *env) {
		w := e.worker()
		find := func() opscore.WorkerInfo {
			all, err := e.store.Workers(e.ctx, time.Hour)
			if err != nil || len(all) != 1 {
				e.Fatalf("workers = %v, %v", all, err)
			}
			return all[0]
		}
		got := find()
		want(e, "id", got.ID, w)
		want(e, "host", got.Host, "host")
		want(e, "build", got.Build, "build")
		want(e, "slots", got.Slots, workerSlots)
		want(e, "state", got.State, opscore.WorkerReady)
		want(e, "live", got.Live, true)
		if !slices.Equal(got.Queues, []string{"q"}) || !slices.Equal(got.Actors, []string{"act"}) {
			e.Errorf("queues and actors = %v %v", got.Queues, got.Actors)
		}
		e.pass(opscore.LeaseFor - time.Second)
		e.heartbeat(w)
		e.pass(opscore.LeaseFor - time.Second)
		want(e, "live with a heartbeat", find().Live, true)
		e.pass(2 * time.Second)
		want(e, "live without", find().Live, false)
		if _, err := e.store.Heartbeat(e.ctx, w, opscore.WorkerDraining, opscore.Report{}); err != nil {
			e.Fatalf("heartbeat after the lease ran out, before anybody rescued: %v", err)
		}
		want(e, "state", find().State, opscore.WorkerDraining)
		if err := e.store.Leave(e.ctx, w, "told to", opscore.Report{}); err != nil {
			e.Fatalf("leave: %v", err)
		}
		got = find()
		want(e, "state", got.State, opscore.WorkerGone)
		want(e, "cause", got.Cause, "told to")
		want(e, "live when gone", got.Live, false)
		e.pass(time.Minute)
		for goneFor, listed := range map[time.Duration]int{0: 0, 30 * time.Second: 0, time.Hour: 1, opscore.Forever: 1} {
			all, err := e.store.Workers(e.ctx, goneFor)
			if err != nil || len(all) != listed {
				e.Errorf("gone for less than %s: %d workers, want %d, %v", goneFor, len(all), listed, err)
			}
		}
	}},
	{"a heartbeat tells what the worker owns and nothing else", func(e *env) {
		w, other := e.worker(), e.worker()
		t := e.claimOne(w)
		e.claimOne(other)
		e.finish(ends(e.claimOne(w), opscore.Completed))
		owned := e.heartbeat(w)
		if !slices.Equal(owned, []opscore.Owned{{Task: t.ID, ClaimSeq: t.ClaimSeq}}) {
			e.Errorf("owned = %v", owned)
		}
	}},
	{"a worker that is gone cannot heartbeat back to life", func(e *env) {
		w := e.worker()
		if err := e.store.Leave(e.ctx, w, "", opscore.Report{}); err != nil {
			e.Fatalf("leave: %v", err)
		}
		for _, gone := range []opscore.ID{w, newID()} {
			_, err := e.store.Heartbeat(e.ctx, gone, opscore.WorkerReady, opscore.Report{})
			e.wantCode(err, opscore.CodeLeaseLost)
		}
	}},
}

var registry = []scenario{
	{"what a worker says of itself is kept: how it was started, its reports, the last one when it is gone", func(e *env) {
		about := opscore.About{
			Process: opscore.Process{
				Started: time.Unix(1700000000, 0).UTC(), Parents: []string{"sh", `odd ")\u00e4`}, Args: []string{"worker", "--slots", "3"},
				Dir: "/", Go: "go1", Stdout: "pipe", Stderr: "tty",
			},
			Endpoints: []opscore.Endpoint{{Kind: "sqlite", Name: "/file", Instance: "7"}, {Kind: "rabbitmq", Address: "127.0.0.1:5672", Name: "/"}},
		}
		w := opscore.WorkerInfo{ID: newID(), Queues: []string{"q"}, Actors: []string{"act"}, State: opscore.WorkerBooting, About: about}
		if err := e.store.Register(e.ctx, w); err != nil {
			e.Fatalf("register: %v", err)
		}
		want(e, "lease", e.info(w.ID).Lease, opscore.Duration(opscore.LeaseFor))
		if got := e.info(w.ID); !reflect.DeepEqual(got.About, about) || !reflect.DeepEqual(got.Report, opscore.Report{}) {
			e.Errorf("about = %+v, report = %+v", got.About, got.Report)
		}
		report := opscore.Report{
			Checks:  []opscore.Check{{Name: opscore.CheckBroker, State: opscore.CheckDegraded, Text: "a\x00b \"c\"", Since: time.Unix(1700000001, 5000).UTC()}},
			Running: 3, Skew: opscore.Duration(-time.Hour), LogDropped: 12,
		}
		if _, err := e.store.Heartbeat(e.ctx, w.ID, opscore.WorkerReady, report); err != nil {
			e.Fatalf("heartbeat: %v", err)
		}
		if got := e.info(w.ID); !reflect.DeepEqual(got.Report, report) || !reflect.DeepEqual(got.About, about) {
			e.Errorf("report = %+v, want %+v; about = %+v", got.Report, report, got.About)
		}
		last := opscore.Report{Drained: &opscore.Drained{Finished: 1, HandedBack: 2, Released: 3, Stuck: []string{"act"}, Took: 4}}
		if err := e.store.Leave(e.ctx, w.ID, "stopped", last); err != nil {
			e.Fatalf("leave: %v", err)
		}
		if got := e.info(w.ID); !reflect.DeepEqual(got.Report, last) {
			e.Errorf("last report = %+v, want %+v", got.Report, last)
		}
	}},
	{"the store's answer has its clock", func(e *env) {
		w := e.worker()
		for range 2 {
			heard, err := e.store.Heartbeat(e.ctx, w, opscore.WorkerReady, opscore.Report{})
			if beat := e.info(w).LastBeat; err != nil || !heard.Clock.Equal(beat) || beat.IsZero() {
				e.Errorf("heartbeat at %s = %+v, %v", beat, heard, err)
			}
			e.pass(time.Second)
		}
	}},
	{"a worker with a lease of its own lives so long", func(e *env) {
		w := opscore.WorkerInfo{ID: newID(), State: opscore.WorkerReady, Lease: opscore.Duration(2 * time.Second)}
		if err := e.store.Register(e.ctx, w); err != nil {
			e.Fatalf("register: %v", err)
		}
		for range 2 {
			e.pass(time.Second)
			want(e, "live", e.info(w.ID).Live, true)
			e.heartbeat(w.ID)
		}
		e.pass(3 * time.Second)
		want(e, "live", e.info(w.ID).Live, false)
		want(e, "lease", e.info(w.ID).Lease, w.Lease)
	}},
	{"a worker that is asked to stop learns of it and of who asked first, also when it is gone by then", func(e *env) {
		w, other, gone := e.worker(), e.worker(), e.worker()
		if err := e.store.Leave(e.ctx, gone, "", opscore.Report{}); err != nil {
			e.Fatalf("leave: %v", err)
		}
		stop := func(by string) {
			e.Helper()
			asked, err := e.store.StopWorkers(e.ctx, []opscore.ID{gone, w, newID()}, by)
			if err != nil || !slices.Equal(asked, []opscore.ID{w}) {
				e.Errorf("asked = %v, %v; want %v", asked, err, w)
			}
		}
		hear := func(w opscore.ID) opscore.Heard {
			heard, err := e.store.Heartbeat(e.ctx, w, opscore.WorkerReady, opscore.Report{})
			if err != nil && opscore.CodeOf(err) != opscore.CodeLeaseLost {
				e.Errorf("heartbeat: %v", err)
			}
			return heard
		}
		want(e, "asked", hear(w).Stop, "")
		stop("ann")
		stop("ben")
		want(e, "asked by", hear(w).Stop, "ann")
		want(e, "listed", e.info(w).Stop, "ann")
		want(e, "the other", hear(other).Stop, "")
		if err := e.store.Leave(e.ctx, w, "paused for too long", opscore.Report{}); err != nil {
			e.Fatalf("leave: %v", err)
		}
		want(e, "asked by, when gone", hear(w).Stop, "ann")
		want(e, "one that never was", hear(newID()).Stop, "")
	}},
}

// info returns a worker's row.
func (e *env) info(id opscore.ID) opscore.WorkerInfo {
	e.Helper()
	all, err := e.store.Workers(e.ctx, time.Hour)
	i := slices.IndexFunc(all, func(w opscore.WorkerInfo) bool { return w.ID == id })
	if err != nil || i < 0 {
		e.Fatalf("worker %s is not among %v, %v", id, all, err)
	}
	return all[i]
}

// lapse lets the leases of all workers but those given run out and be seen twice.
func (e *env) lapse(alive ...opscore.ID) []opscore.Task {
	e.Helper()
	beat := func() {
		for _, w := range alive {
			e.heartbeat(w)
		}
	}
	for range 2 {
		e.pass(opscore.LeaseFor / 2)
		beat()
	}
	e.pass(time.Second)
	rescued := e.rescue()
	if len(rescued) > 0 {
		e.Errorf("rescued %d tasks at the first observation", len(rescued))
	}
	beat()
	e.pass(opscore.HeartbeatEvery)
	return e.rescue()
}

// claimAgain claims a task for a new worker.
func (e *env) claimAgain(id opscore.ID) opscore.Task {
	e.Helper()
	c := wants(e.worker(), 1)
	c.IDs = []opscore.ID{id}
	tasks := e.claim(c)
	if len(tasks) != 1 {
		e.Fatalf("claim of %s = %v", id, ids(tasks))
	}
	return tasks[0]
}

// die ends a worker with its tasks.
func (e *env) die(worker opscore.ID) {
	e.Helper()
	if err := e.store.Leave(e.ctx, worker, "killed by a test", opscore.Report{}); err != nil {
		e.Fatalf("leave: %v", err)
	}
	e.rescue()
}

// suspect submits a task, has it lost as often as makes it one, and claims it.
func (e *env) suspect() opscore.Task {
	e.Helper()
	id := e.submit()
	for n := 1; n < opscore.MaxLost; n++ {
		e.die(e.claimAgain(id).Worker)
		e.pass(opscore.LostDelay(n))
	}
	t := e.claimAgain(id)
	want(e, "suspect", t.Suspect(), true)
	return t
}

func (e *env) isolate(t opscore.Task) {
	e.Helper()
	if err := e.store.Isolate(e.ctx, t.ID, t.ClaimSeq, t.Worker); err != nil {
		e.Fatalf("isolate: %v", err)
	}
}

var chores = []scenario{
	{"the tasks of a live worker are never rescued", func(e *env) {
		w := e.worker()
		t := e.claimOne(w)
		for range 20 {
			e.pass(opscore.HeartbeatEvery)
			e.heartbeat(w)
			e.wantIDs("rescued", ids(e.rescue()))
		}
		e.wantState(t.ID, opscore.Running)
	}},
	{"the tasks of a worker past its lease are rescued after two observations", func(e *env) {
		dead, alive := e.worker(), e.worker()
		t := e.claimOne(dead)
		mine, done := e.claimOne(alive), e.claimOne(dead)
		e.finish(ends(done, opscore.Completed))
		waiting := e.submit()
		before := e.get(waiting)
		rescued := e.lapse(alive)
		e.wantIDs("rescued", ids(rescued), t.ID)
		got := e.wantState(t.ID, opscore.Pending)
		want(e, "returned state", rescued[0].State, opscore.Pending)
		want(e, "lost", got.Lost, 1)
		want(e, "attempt", got.Attempt, 0)
		want(e, "claim number", got.ClaimSeq, t.ClaimSeq+1)
		want(e, "code", got.Code, opscore.CodeLost)
		e.wantAbout("due", got.RunAt, time.Now().Add(opscore.LostDelay(1)))
		history := e.attempts(t.ID)
		want(e, "history", len(history), 1)
		want(e, "in history", history[0].Code, opscore.CodeLost)
		e.wantState(mine.ID, opscore.Running)
		e.wantState(done.ID, opscore.Completed)
		want(e, "claim number of a pending task", e.get(waiting).ClaimSeq, before.ClaimSeq)
		want(e, "late outcome", e.finish(ends(t, opscore.Completed))[0].Late, true)
		e.wantState(t.ID, opscore.Pending)
		late := e.attempts(t.ID)
		want(e, "late in history", late[len(late)-1].Late, true)
	}},
	{"a heartbeat between the two observations saves the worker", func(e *env) {
		w := e.worker()
		t := e.claimOne(w)
		e.pass(opscore.LeaseFor + time.Second)
		e.rescue()
		e.heartbeat(w)
		e.pass(opscore.LeaseFor + time.Second)
		e.wantIDs("rescued", ids(e.rescue()))
		e.wantState(t.ID, opscore.Running)
		e.heartbeat(w)
	}},
	{"a worker that is slow to heartbeat is safe until its lease runs out", func(e *env) {
		t := e.claimOne(e.worker())
		for range 4 {
			e.pass(opscore.LeaseFor / 5)
			e.wantIDs("rescued", ids(e.rescue()))
		}
		e.wantState(t.ID, opscore.Running)
	}},
	{"two observations at the same moment are one", func(e *env) {
		w := e.worker()
		t := e.claimOne(w)
		e.pass(opscore.LeaseFor + time.Second)
		for range 3 {
			e.wantIDs("rescued", ids(e.rescue()))
		}
		e.wantState(t.ID, opscore.Running)
	}},
	{"a worker whose tasks were rescued is gone", func(e *env) {
		w := e.worker()
		e.claimOne(w)
		e.lapse()
		_, err := e.store.Heartbeat(e.ctx, w, opscore.WorkerReady, opscore.Report{})
		e.wantCode(err, opscore.CodeLeaseLost)
	}},
	{"what a worker left behind is rescued without waiting", func(e *env) {
		w := e.worker()
		t := e.claimOne(w)
		if err := e.store.Leave(e.ctx, w, "", opscore.Report{}); err != nil {
			e.Fatalf("leave: %v", err)
		}
		e.wantIDs("rescued", ids(e.rescue()), t.ID)
		e.wantIDs("rescued again", ids(e.rescue()))
	}},
	{"of many rescuers at once one rescues", func(e *env) {
		w := e.worker()
		for range 10 {
			e.claimOne(w)
		}
		if err := e.store.Leave(e.ctx, w, "", opscore.Report{}); err != nil {
			e.Fatalf("leave: %v", err)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		total := 0
		for range 5 {
			wg.Go(func() {
				tasks, err := e.store.Rescue(e.ctx)
				if err != nil {
					e.Errorf("rescue: %v", err)
				}
				mu.Lock()
				defer mu.Unlock()
				total += len(tasks)
			})
		}
		wg.Wait()
		want(e, "rescued", total, 10)
	}},
	{"a task lost too often is failed as poison if it was alone the last time", func(e *env) {
		t := e.suspect()
		e.isolate(t)
		e.die(t.Worker)
		got := e.wantState(t.ID, opscore.Failed)
		want(e, "code", got.Code, opscore.CodePoison)
		want(e, "lost", got.Lost, opscore.MaxLost)
		want(e, "attempt", got.Attempt, 0)
		want(e, "claim number", got.ClaimSeq, t.ClaimSeq+1)
		want(e, "alone", got.Alone, false)
		history := e.attempts(t.ID)
		last := history[len(history)-1]
		want(e, "in history", last.Code, opscore.CodePoison)
		for _, known := range []string{"3 times", "alone", t.Worker.String(), "host", "process 1", "killed by a test"} {
			if !strings.Contains(last.Error, known) || last.Error != got.Error {
				e.Errorf("the errors do not say %q: %q, %q", known, last.Error, got.Error)
			}
		}
		want(e, "late outcome", e.finish(ends(t, opscore.Completed))[0], opscore.Recorded{State: opscore.Failed, Late: true})
		if _, err := e.store.Retry(e.ctx, []opscore.ID{t.ID}, "ann"); err != nil {
			e.Fatalf("retry: %v", err)
		}
		want(e, "lost, once an operator put it back", e.get(t.ID).Lost, 0)
	}},
	{"a task that is never alone is never poison, however often it is lost", func(e *env) {
		id := e.submit()
		for n := 1; n <= 2*opscore.MaxLost; n++ {
			t := e.claimAgain(id)
			want(e, "suspect", t.Suspect(), n >= opscore.MaxLost)
			want(e, "alone", e.get(id).Alone, false)
			e.die(t.Worker)
			got := e.wantState(id, opscore.Pending)
			want(e, "lost", got.Lost, n)
			want(e, "code", got.Code, opscore.CodeLost)
			e.wantAbout("due", got.RunAt, time.Now().Add(opscore.LostDelay(n)))
			e.pass(opscore.LostDelay(n))
		}
	}},
	{"a task that is lost alone for the first time is pending again", func(e *env) {
		t := e.claimOne(e.worker())
		e.isolate(t)
		e.die(t.Worker)
		want(e, "code", e.wantState(t.ID, opscore.Pending).Code, opscore.CodeLost)
	}},
	{"a task is alone until its claim ends, and no longer", func(e *env) {
		t := e.suspect()
		e.isolate(t)
		o := ends(t, opscore.Pending)
		o.Uncounted, o.Code = true, opscore.CodeShutdown
		e.finish(o)
		got := e.wantState(t.ID, opscore.Pending)
		want(e, "alone when pending", got.Alone, false)
		want(e, "lost, after it was handed back", got.Lost, opscore.MaxLost-1)
		again := e.claimAgain(t.ID)
		want(e, "alone under the next claim", e.get(t.ID).Alone, false)
		e.die(again.Worker)
		want(e, "lost among others", e.wantState(t.ID, opscore.Pending).Lost, opscore.MaxLost)
	}},
	{"an attempt that ends by itself clears a task that was alone", func(e *env) {
		for _, end := range []struct {
			code      opscore.Code
			uncounted bool
			lost      int
		}{
			{opscore.CodeError, false, 0},
			{opscore.CodeTimeout, false, 0},
			{opscore.CodeSnoozed, true, 0},
			{opscore.CodeShutdown, true, opscore.MaxLost - 1},
			{opscore.CodeLost, true, opscore.MaxLost - 1},
		} {
			for _, alone := range []bool{true, false} {
				t := e.suspect()
				lost := opscore.MaxLost - 1
				if alone {
					e.isolate(t)
					lost = end.lost
				}
				o := ends(t, opscore.Pending)
				o.Code, o.Uncounted, o.Delay = end.code, end.uncounted, time.Hour
				e.finish(o)
				if got := e.get(t.ID).Lost; got != lost {
					e.Errorf("lost = %d after %s, alone: %v; want %d", got, end.code, alone, lost)
				}
			}
		}
	}},
	{"a task is isolated only by who runs it", func(e *env) {
		t := e.claimOne(e.worker())
		if err := e.store.Leave(e.ctx, e.worker(), "", opscore.Report{}); err != nil {
			e.Fatalf("leave: %v", err)
		}
		for _, f := range []opscore.Task{
			{ID: newID(), ClaimSeq: t.ClaimSeq, Worker: t.Worker},
			{ID: t.ID, ClaimSeq: t.ClaimSeq + 1, Worker: t.Worker},
			{ID: t.ID, ClaimSeq: t.ClaimSeq, Worker: e.worker()},
		} {
			e.wantCode(e.store.Isolate(e.ctx, f.ID, f.ClaimSeq, f.Worker), opscore.CodeLeaseLost)
		}
		want(e, "alone", e.get(t.ID).Alone, false)
		e.pass(time.Minute)
		e.isolate(t)
		e.isolate(t)
		got := e.wantState(t.ID, opscore.Running)
		want(e, "alone", got.Alone, true)
		want(e, "claim number", got.ClaimSeq, t.ClaimSeq)
		e.wantAbout("started", got.StartedAt, time.Now())
		e.finish(ends(t, opscore.Completed))
		want(e, "alone when completed", e.wantState(t.ID, opscore.Completed).Alone, false)
		e.wantCode(e.store.Isolate(e.ctx, t.ID, t.ClaimSeq, t.Worker), opscore.CodeLeaseLost)
	}},
	{"a task of a worker that is gone is not isolated any more", func(e *env) {
		t := e.claimOne(e.worker())
		if err := e.store.Leave(e.ctx, t.Worker, "", opscore.Report{}); err != nil {
			e.Fatalf("leave: %v", err)
		}
		e.wantCode(e.store.Isolate(e.ctx, t.ID, t.ClaimSeq, t.Worker), opscore.CodeLeaseLost)
		want(e, "alone", e.get(t.ID).Alone, false)
	}},
	{"a lost task that was to be cancelled is cancelled", func(e *env) {
		w := e.worker()
		t := e.claimOne(w)
		e.cancel(t.ID)
		if err := e.store.Leave(e.ctx, w, "", opscore.Report{}); err != nil {
			e.Fatalf("leave: %v", err)
		}
		e.rescue()
		got := e.wantState(t.ID, opscore.Cancelled)
		want(e, "claim number", got.ClaimSeq, t.ClaimSeq+1)
		want(e, "late outcome", e.finish(ends(t, opscore.Completed))[0], opscore.Recorded{State: opscore.Cancelled, Late: true})
		e.wantState(t.ID, opscore.Cancelled)
	}},
	{"pending tasks that cannot start in time are failed as expired", func(e *env) {
		w := e.worker()
		id, later := e.submit(opscore.ExpiresAfter(time.Minute)), e.submit(opscore.ExpiresAfter(time.Hour))
		never, running := e.submit(), e.claimOne(w, opscore.ExpiresAfter(time.Minute))
		ancient := e.submit(opscore.ExpiresAt(time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC)))
		expire := func() []opscore.ID {
			tasks, err := e.store.Expire(e.ctx)
			if err != nil {
				e.Fatalf("expire: %v", err)
			}
			return ids(tasks)
		}
		e.wantIDs("before", expire(), ancient)
		e.pass(time.Minute)
		e.wantIDs("after", expire(), id)
		e.wantIDs("again", expire())
		got := e.wantState(id, opscore.Failed)
		want(e, "code", got.Code, opscore.CodeExpired)
		want(e, "finished", got.FinishedAt.IsZero(), false)
		e.wantState(later, opscore.Pending)
		e.wantState(never, opscore.Pending)
		e.wantState(running.ID, opscore.Running)
	}},
	{"terminal tasks are removed after their retention, with all that belongs to them", func(e *env) {
		w := e.worker()
		end := func(s opscore.State, opts ...opscore.Option) opscore.ID {
			t := e.claimOne(w, opts...)
			o := ends(t, s)
			o.Log = []opscore.LogLine{{Task: t.ID, ClaimSeq: t.ClaimSeq, At: time.Now(), Level: "INFO", Text: "x"}}
			e.finish(o)
			return t.ID
		}
		prune := func(r opscore.Retention) int {
			n, err := e.store.Prune(e.ctx, r)
			if err != nil {
				e.Fatalf("prune: %v", err)
			}
			return n
		}
		done, failed := end(opscore.Completed), end(opscore.Failed)
		short := end(opscore.Completed, opscore.Queue("short"))
		pending, running := e.submit(), e.claimOne(w)
		r := opscore.Retention{Queues: map[string]opscore.Keep{"short": {Completed: time.Hour}}}
		want(e, "removed at once", prune(r), 0)
		want(e, "removed at once by default", prune(opscore.Retention{}), 0)
		e.pass(time.Hour + time.Second)
		want(e, "removed after an hour", prune(r), 1)
		tasks, err := e.store.Get(e.ctx, []opscore.ID{short})
		if err != nil || len(tasks) != 0 {
			e.Errorf("pruned task = %v, %v", tasks, err)
		}
		e.pass(7 * 24 * time.Hour)
		want(e, "removed after a week, by default", prune(opscore.Retention{}), 1)
		e.wantIDs("left", e.list(opscore.Filter{}), running.ID, pending, failed)
		lines, err := e.store.Logs(e.ctx, done)
		if err != nil || len(lines) != 0 {
			e.Errorf("logs of a pruned task = %v, %v", lines, err)
		}
		want(e, "removed failed", prune(opscore.Retention{Default: opscore.Keep{Failed: time.Hour}}), 1)
		want(e, "attempts of a pruned task", len(e.attempts(failed)), 0)
		want(e, "removed then", prune(r), 0)
	}},
	{"a task put back by an operator is not pruned", func(e *env) {
		t := e.claimOne(e.worker())
		e.finish(ends(t, opscore.Failed))
		if _, err := e.store.Retry(e.ctx, []opscore.ID{t.ID}, "ann"); err != nil {
			e.Fatalf("retry: %v", err)
		}
		beside := e.claimOne(e.worker())
		e.finish(ends(beside, opscore.Failed))
		e.pass(time.Hour)
		n, err := e.store.Prune(e.ctx, opscore.Retention{Default: opscore.Keep{Completed: time.Minute, Failed: time.Minute, Cancelled: time.Minute}})
		if err != nil || n != 1 {
			e.Errorf("pruned %d, %v", n, err)
		}
		e.wantIDs("left", e.list(opscore.Filter{}), t.ID)
	}},
}
