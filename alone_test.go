package opscore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/opscoretest"
	"github.com/opscore/opscore/storetest"
)

// lose has a pending task lost with a worker that is gone before it starts anything else, and waits until it is due again. It runs in a bubble.
func lose(t *testing.T, store opscore.Store, id opscore.ID) {
	t.Helper()
	worker := uuid.Must(uuid.NewV7())
	err := store.Register(t.Context(), opscore.WorkerInfo{ID: worker, Host: "elsewhere", PID: 7, State: opscore.WorkerReady})
	if err != nil {
		t.Fatal(err)
	}
	got, err := store.Claim(t.Context(), opscore.Claim{Worker: worker, Queues: []string{"default"}, Actors: []string{"send"}, IDs: []opscore.ID{id}, Max: 1})
	if err != nil || len(got.Tasks) != 1 {
		t.Fatalf("claim = %v, %v", got.Tasks, err)
	}
	if err := store.Leave(t.Context(), worker, "killed", opscore.Report{}); err != nil {
		t.Fatal(err)
	}
	if lost, err := store.Rescue(t.Context()); err != nil || len(lost) != 1 {
		t.Fatalf("rescued = %v, %v", lost, err)
	}
	time.Sleep(opscore.LostDelay(look(t, store, id).Lost))
}

// addSuspect submits a task that has to run alone; to says what its handler does.
func addSuspect(t *testing.T, store opscore.Store, to string, opts ...opscore.Option) opscore.ID {
	t.Helper()
	id := addTo(t, store, to, opts...)
	for range opscore.MaxLost - 1 {
		lose(t, store, id)
	}
	return id
}

func addTo(t *testing.T, store opscore.Store, to string, opts ...opscore.Option) opscore.ID {
	t.Helper()
	sub, err := send.Submit(t.Context(), &opscore.Client{Store: store}, mail{to}, append([]opscore.Option{opscore.Timeout(time.Hour)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return sub.ID
}

// stage is where handlers run: each for as long as its mail says. It notes what runs beside what in a worker.
type stage struct {
	mu      sync.Mutex
	inside  map[opscore.ID]opscore.ID // the workers of those who run
	met     map[opscore.ID][]opscore.ID
	started map[opscore.ID][]time.Time
	ended   map[opscore.ID]time.Time
}

func newStage() *stage {
	return &stage{
		inside: map[opscore.ID]opscore.ID{}, met: map[opscore.ID][]opscore.ID{}, started: map[opscore.ID][]time.Time{},
		ended: map[opscore.ID]time.Time{},
	}
}

func (s *stage) handlers() opscore.Handlers {
	return handlers(func(ctx context.Context, m mail) (string, error) {
		d, err := time.ParseDuration(m.To)
		if err != nil {
			return "", opscore.Abort(err)
		}
		s.enter(opscore.FromContext(ctx))
		defer s.leave(opscore.FromContext(ctx))
		select {
		case <-time.After(d):
			return "sent", nil
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	})
}

func (s *stage) enter(r *opscore.Run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for other, worker := range s.inside {
		if worker == r.Worker {
			s.met[other], s.met[r.ID] = append(s.met[other], r.ID), append(s.met[r.ID], other)
		}
	}
	s.inside[r.ID] = r.Worker
	s.started[r.ID] = append(s.started[r.ID], time.Now())
}

func (s *stage) leave(r *opscore.Run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.inside, r.ID)
	s.ended[r.ID] = time.Now()
}

// wantAlone checks that a task ran once, and with nothing beside it.
func (s *stage) wantAlone(t *testing.T, id opscore.ID) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.started[id]) != 1 || len(s.met[id]) != 0 {
		t.Errorf("the suspect ran %d times, beside %v", len(s.started[id]), s.met[id])
	}
}

func (s *stage) runs(id opscore.ID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.started[id])
}

func wantState(t *testing.T, store opscore.Store, id opscore.ID, want opscore.State) opscore.Task {
	t.Helper()
	task := look(t, store, id)
	if task.State != want {
		t.Errorf("task is %s, %s: %s; want %s", task.State, task.Code, task.Error, want)
	}
	return task
}

func TestASuspectWaitsForTheOthersAndRunsWithNothingBesideIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, stage := open(t), newStage()
		suspect := addSuspect(t, store, "1m", opscore.Priority(5))
		var before, after []opscore.ID
		for range 3 {
			before = append(before, addTo(t, store, "10s"))
		}
		employ(t, &opscore.Worker{Store: store, Handlers: stage.handlers(), Slots: 4})
		time.Sleep(time.Second)
		for range 3 {
			after = append(after, addTo(t, store, "10s"))
		}
		time.Sleep(8 * time.Second)
		if task := wantState(t, store, suspect, opscore.Running); task.Alone || stage.runs(suspect) != 0 {
			t.Errorf("while others run: alone %v, started %d times", task.Alone, stage.runs(suspect))
		}
		time.Sleep(30 * time.Second)
		if task := wantState(t, store, suspect, opscore.Running); !task.Alone || time.Since(task.StartedAt) > 30*time.Second {
			t.Errorf("while it runs: alone %v, started at %v", task.Alone, task.StartedAt)
		}
		for _, id := range after {
			wantState(t, store, id, opscore.Pending)
		}
		time.Sleep(45 * time.Second)
		for _, id := range append(append(before, after...), suspect) {
			wantState(t, store, id, opscore.Completed)
		}
		stage.wantAlone(t, suspect)
		for _, id := range before {
			if stage.started[id][0].After(stage.started[suspect][0]) {
				t.Error("one that was claimed with it started after it")
			}
		}
	})
}

func TestSuspectsRunOneAfterTheOtherInAWorkerAndAtTheSameTimeInTwo(t *testing.T) {
	for workers, took := range map[int]time.Duration{1: 4 * time.Minute, 2: 2 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			store, stage := open(t), newStage()
			var suspects []opscore.ID
			for range 4 {
				suspects = append(suspects, addSuspect(t, store, "1m"))
			}
			began := time.Now()
			for range workers {
				employ(t, &opscore.Worker{Store: store, Handlers: stage.handlers()})
			}
			time.Sleep(30 * time.Second)
			running, err := store.List(t.Context(), opscore.Filter{States: []opscore.State{opscore.Running}})
			if err != nil || len(running) != workers {
				t.Errorf("%d workers own %d suspects, %v", workers, len(running), err)
			}
			waiting, err := store.List(t.Context(), opscore.Filter{States: []opscore.State{opscore.Pending}})
			if err != nil || len(waiting) != 4-workers || !strings.Contains(waiting[0].Error, "lost 2 times") || waiting[0].Attempt != 0 {
				t.Errorf("those that wait for a worker: %+v, %v", waiting, err)
			}
			time.Sleep(5 * time.Minute)
			for _, id := range suspects {
				wantState(t, store, id, opscore.Completed)
				stage.wantAlone(t, id)
				if got := codes(history(t, store, id)); got != "lost lost completed" {
					t.Errorf("history = %s", got)
				}
				if d := stage.ended[id].Sub(began); d > took+5*time.Second {
					t.Errorf("%d workers took %s", workers, d)
				}
			}
		})
	}
}

func TestAMixtureOfSuspectsAndOthersFromTwoSourcesOfTwoWorkersCompletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, stage := open(t), newStage()
		var suspects, others []opscore.ID
		for range 20 {
			suspects = append(suspects, addSuspect(t, store, "3s"))
		}
		for i := range 60 {
			others = append(others, addTo(t, store, fmt.Sprintf("%dms", 100*(i%17))))
		}
		for range 2 {
			employ(t, &opscore.Worker{
				Store: store, Handlers: stage.handlers(), Slots: 3, Sources: []opscore.Source{opscore.FromStore(store, 0), opscore.FromStore(store, 0)},
			})
		}
		time.Sleep(5 * time.Minute)
		for _, id := range append(slices.Clone(suspects), others...) {
			wantState(t, store, id, opscore.Completed)
		}
		for _, id := range suspects {
			stage.wantAlone(t, id)
		}
	})
}

func TestAWorkerThatStopsGivesAWaitingSuspectBackAndLetsARunningOneFinish(t *testing.T) {
	for name, beside := range map[string]string{"waiting": "15s", "running": "0s"} {
		synctest.Test(t, func(t *testing.T) {
			store, stage := open(t), newStage()
			suspect := addSuspect(t, store, "15s")
			other := addTo(t, store, beside)
			stop := employ(t, &opscore.Worker{Store: store, Handlers: stage.handlers()})
			time.Sleep(5 * time.Second)
			if err := stop(); err != nil {
				t.Error(err)
			}
			wantState(t, store, other, opscore.Completed)
			if name == "running" {
				wantState(t, store, suspect, opscore.Completed)
				return
			}
			task := wantState(t, store, suspect, opscore.Pending)
			if got := codes(history(t, store, suspect)); task.Attempt != 0 || task.Lost != 2 || got != "lost lost" || stage.runs(suspect) != 0 {
				t.Errorf("attempt %d, lost %d, history %s", task.Attempt, task.Lost, got)
			}
		})
	}
}

func TestAStopThatCannotWaitHandsASuspectBackWithoutALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, stage := open(t), newStage()
		suspect := addSuspect(t, store, "1h")
		stop := employ(t, &opscore.Worker{Store: store, Handlers: stage.handlers()})
		time.Sleep(time.Second)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if task := wantState(t, store, suspect, opscore.Pending); task.Lost != 2 || task.Attempt != 0 || task.Code != opscore.CodeShutdown {
			t.Errorf("lost %d, attempt %d, %s", task.Lost, task.Attempt, task.Code)
		}
	})
}

func TestASuspectWhoseLeaseIsLostWhileItWaitsDoesNotStartAndIsNoPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, stage := open(t), newStage()
		var cut atomic.Bool
		faulty := &storetest.Faulty{Store: store, Before: func(string, int) error {
			if cut.Load() {
				return errDown
			}
			return nil
		}}
		suspect := addSuspect(t, store, "1s")
		addTo(t, store, "50s")
		employ(t, &opscore.Worker{Store: faulty, Handlers: stage.handlers()})
		keep(t, store)
		time.Sleep(time.Second)
		wantState(t, store, suspect, opscore.Running)
		cut.Store(true)
		time.Sleep(59 * time.Second)
		if task := wantState(t, store, suspect, opscore.Pending); task.Lost != 3 || stage.runs(suspect) != 0 || !strings.Contains(task.Error, "waited to run alone") {
			t.Errorf("lost %d, started %d times: %s", task.Lost, stage.runs(suspect), task.Error)
		}
		cut.Store(false)
		time.Sleep(2 * time.Minute) // the other one runs again first
		wantState(t, store, suspect, opscore.Completed)
		stage.wantAlone(t, suspect)
		if got := codes(history(t, store, suspect)); got != "lost lost lost completed" {
			t.Errorf("history = %s", got)
		}
	})
}

func TestASuspectThatIsCancelledWhileItWaitsDoesNotStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, stage := open(t), newStage()
		suspect, long := addSuspect(t, store, "1s"), addTo(t, store, "10m")
		employ(t, &opscore.Worker{Store: store, Handlers: stage.handlers()})
		time.Sleep(time.Second)
		next := addTo(t, store, "1s")
		if task, err := (&opscore.Client{Store: store}).Cancel(t.Context(), suspect, "ann"); err != nil || task.State != opscore.Running {
			t.Fatalf("cancel = %s, %v", task.State, err)
		}
		time.Sleep(opscore.HeartbeatEvery + 2*time.Second)
		wantState(t, store, suspect, opscore.Cancelled)
		wantState(t, store, next, opscore.Completed) // the worker takes tasks again
		wantState(t, store, long, opscore.Running)
		if stage.runs(suspect) != 0 {
			t.Error("it started")
		}
	})
}

func TestASuspectThatExpiresWhileItWaitsDoesNotStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, stage := open(t), newStage()
		keep(t, store)
		suspect, long := addSuspect(t, store, "1s", opscore.ExpiresAfter(time.Minute)), addTo(t, store, "10m")
		employ(t, &opscore.Worker{Store: store, Handlers: stage.handlers()})
		time.Sleep(50 * time.Second)
		wantState(t, store, suspect, opscore.Running)
		time.Sleep(15 * time.Second)
		if task := wantState(t, store, suspect, opscore.Failed); task.Code != opscore.CodeExpired || stage.runs(suspect) != 0 {
			t.Errorf("code %s, started %d times", task.Code, stage.runs(suspect))
		}
		wantState(t, store, long, opscore.Running)
	})
}

func TestASuspectStartsOnlyOnceTheStoreKnowsThatItIsAlone(t *testing.T) {
	for _, lost := range []string{"request", "answer"} {
		synctest.Test(t, func(t *testing.T) {
			store, stage := open(t), newStage()
			var down atomic.Bool
			down.Store(true)
			fail := func(when string) func(method string, _ int) error {
				return func(method string, _ int) error {
					if method == "Isolate" && when == lost && down.Load() {
						return errDown
					}
					return nil
				}
			}
			faulty := &storetest.Faulty{Store: store, Before: fail("request"), After: fail("answer")}
			suspect := addSuspect(t, store, "10s")
			employ(t, &opscore.Worker{Store: faulty, Handlers: stage.handlers()})
			time.Sleep(time.Minute)
			if n := faulty.Calls("Isolate"); stage.runs(suspect) != 0 || n < 10 || n > 40 {
				t.Errorf("started %d times after %d attempts to tell the store", stage.runs(suspect), n)
			}
			down.Store(false)
			time.Sleep(opscore.HeartbeatEvery + time.Second)
			if task := wantState(t, store, suspect, opscore.Running); !task.Alone {
				t.Error("the store does not know")
			}
			time.Sleep(10 * time.Second)
			wantState(t, store, suspect, opscore.Completed)
			stage.wantAlone(t, suspect)
		})
	}
}

func TestAStopWhileTheStoreDoesNotAnswerLeavesASuspectUnstarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, stage := open(t), newStage()
		faulty := &storetest.Faulty{Store: store, Before: func(method string, _ int) error {
			if method == "Isolate" {
				return errDown
			}
			return nil
		}}
		suspect := addSuspect(t, store, "10s")
		stop := employ(t, &opscore.Worker{Store: faulty, Handlers: stage.handlers()})
		time.Sleep(time.Minute)
		began := time.Now()
		if err := stop(); err != nil || time.Since(began) > time.Second {
			t.Errorf("stopped after %s, %v", time.Since(began), err)
		}
		if task := wantState(t, store, suspect, opscore.Pending); task.Lost != 2 || task.Attempt != 0 || stage.runs(suspect) != 0 {
			t.Errorf("lost %d, attempt %d", task.Lost, task.Attempt)
		}
	})
}

// What has run but is not recorded would be lost with a suspect, or the suspect with what comes after it.
func TestASuspectIsAloneUntilOutcomesAreRecordedBeforeItAndAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, stage := open(t), newStage()
		var down atomic.Bool
		down.Store(true)
		faulty := &storetest.Faulty{Store: store, Before: func(method string, _ int) error {
			if method == "Finish" && down.Load() {
				return errDown
			}
			return nil
		}}
		suspect, before := addSuspect(t, store, "20s"), addTo(t, store, "1s")
		employ(t, &opscore.Worker{Store: faulty, Handlers: stage.handlers()})
		time.Sleep(30 * time.Second)
		wantState(t, store, before, opscore.Running)
		if stage.runs(before) != 1 || stage.runs(suspect) != 0 {
			t.Errorf("before the outcome is recorded: %d, %d runs", stage.runs(before), stage.runs(suspect))
		}
		down.Store(false)
		time.Sleep(10 * time.Second)
		wantState(t, store, before, opscore.Completed)
		if stage.runs(suspect) != 1 {
			t.Error("it did not start once the outcome was recorded")
		}
		down.Store(true)
		after := addTo(t, store, "1s")
		time.Sleep(40 * time.Second)
		wantState(t, store, suspect, opscore.Running)
		wantState(t, store, after, opscore.Pending)
		down.Store(false)
		time.Sleep(10 * time.Second)
		wantState(t, store, suspect, opscore.Completed)
		wantState(t, store, after, opscore.Completed)
		stage.wantAlone(t, suspect)
	})
}

func TestAWorkerThatTakesNothingForASuspectSaysSoEveryMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, stage := open(t), newStage()
		suspect := addSuspect(t, store, "1s")
		addTo(t, store, "210s")
		var log bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		w := &opscore.Worker{Store: store, Handlers: stage.handlers(), Slots: 5, Log: slog.New(slog.NewTextHandler(&log, nil))}
		go func() { done <- w.Run(ctx) }()
		time.Sleep(5 * time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		wantState(t, store, suspect, opscore.Completed)
		if n := strings.Count(log.String(), "still waits for others to end"); n != 3 || !strings.Contains(log.String(), "slots_taken=1") {
			t.Errorf("said %d times, want 3:\n%s", n, log.String())
		}
	})
}

func TestABystanderThatWasLostFiveTimesCompletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, stage := open(t), newStage()
		id := addTo(t, store, "1s")
		for range 5 {
			lose(t, store, id)
		}
		employ(t, &opscore.Worker{Store: store, Handlers: stage.handlers()})
		time.Sleep(5 * time.Second)
		if task := wantState(t, store, id, opscore.Completed); task.Lost != 5 {
			t.Errorf("lost %d times", task.Lost)
		}
		stage.wantAlone(t, id)
	})
}

func TestASuspectThatComesToAnEndAloneRunsBesideOthersAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		var running, beside atomic.Int64
		h := handlers(func(ctx context.Context, m mail) (string, error) {
			defer running.Add(-1)
			if running.Add(1) > 1 {
				beside.Add(1)
			}
			time.Sleep(10 * time.Second)
			if m.To == "suspect" && opscore.FromContext(ctx).Attempt == 1 {
				return "", opscore.RetryAfter(0, errors.New("not yet"))
			}
			return "sent", nil
		})
		id := addSuspect(t, store, "suspect")
		employ(t, &opscore.Worker{Store: store, Handlers: h})
		time.Sleep(5 * time.Second)
		other := addTo(t, store, "other")
		time.Sleep(20 * time.Second)
		if task := wantState(t, store, id, opscore.Completed); task.Lost != 0 || task.Attempt != 2 {
			t.Errorf("lost %d, attempt %d", task.Lost, task.Attempt)
		}
		wantState(t, store, other, opscore.Completed)
		if beside.Load() != 1 {
			t.Errorf("%d tasks started beside another one, want 1: the second attempt and the other one overlap", beside.Load())
		}
	})
}

func TestATaskThatKillsItsWorkerAloneIsPoisonAndItsNeighboursComplete(t *testing.T) {
	var killer atomic.Pointer[opscore.ID]
	var deadly, together atomic.Int64
	h := handlers(func(ctx context.Context, _ mail) (string, error) {
		if id := killer.Load(); id != nil && opscore.FromContext(ctx).ID == *id {
			deadly.Add(1)
			<-ctx.Done()
			return "", ctx.Err()
		}
		together.Add(1)
		select {
		case <-time.After(10 * time.Second):
			return "sent", nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	})
	opscoretest.Run(t, h, func(t *testing.T, env *opscoretest.Env) {
		id := uuid.Must(uuid.NewV7())
		killer.Store(&id)
		submit(t, env, opscore.WithID(id), opscore.Timeout(time.Hour))
		var others []opscore.ID
		for range 5 {
			others = append(others, submit(t, env))
		}
		for n := range int64(opscore.MaxLost) {
			for deadly.Load() == n {
				env.Advance(time.Second)
			}
			env.CrashWorker()
		}
		task := look(t, env.Store, id)
		if task.State != opscore.Failed || task.Code != opscore.CodePoison || task.Lost != opscore.MaxLost || !strings.Contains(task.Error, "crashed by a test") {
			t.Errorf("the killer is %s, %s, lost %d times: %s", task.State, task.Code, task.Lost, task.Error)
		}
		for _, other := range others {
			env.MustComplete(other)
		}
		if together.Load() <= 5 {
			t.Error("nobody was lost with the killer: the test tests nothing")
		}
	})
}
