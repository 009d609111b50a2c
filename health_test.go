package opscore_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
	"github.com/opscore/opscore/storetest"
)

func registered(t *testing.T, store opscore.Store) []opscore.WorkerInfo {
	t.Helper()
	workers, err := store.Workers(t.Context(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return workers
}

func TestAWorkerSaysHowItWasStartedAndWhatItIsConnectedTo(t *testing.T) {
	store := open(t)
	employ(t, &opscore.Worker{Store: store, Handlers: handlers(ok)})
	w := registered(t, store)[0]
	p := w.Process
	dir, err := os.Getwd()
	if err != nil || p.Dir != dir {
		t.Errorf("dir = %q, want %q, %v", p.Dir, dir, err)
	}
	if age := time.Since(p.Started); age < 0 || age > time.Hour {
		t.Errorf("the process started %s ago", age)
	}
	if len(p.Args) == 0 || !strings.Contains(p.Args[0], "opscore.test") || !strings.HasPrefix(p.Go, "go1.") {
		t.Errorf("process = %+v", p)
	}
	if _, err := os.Stat("/proc/self/stat"); err == nil && !slices.Contains(p.Parents, "go") {
		t.Errorf("parents = %q, want the go command among them", p.Parents)
	}
	if !slices.Contains([]string{"tty", "file", "pipe", "socket", "null"}, p.Stdout) {
		t.Errorf("stdout = %q", p.Stdout)
	}
	want := opscore.Endpoint{Kind: "sqlite", Name: store.Path(), Instance: w.Endpoints[0].Instance}
	if len(w.Endpoints) != 1 || w.Endpoints[0] != want || want.Instance == "" {
		t.Errorf("endpoints = %+v", w.Endpoints)
	}
}

func TestAWorkerThatIsAskedToStopDrainsAndSaysWhoAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		log := &logged{}
		w := &opscore.Worker{Store: store, Log: slog.New(slog.NewTextHandler(log, nil)), Handlers: handlers(func(context.Context, mail) (string, error) {
			time.Sleep(10 * time.Second)
			return "sent", nil
		})}
		done := make(chan error, 1)
		go func() { done <- w.Run(t.Context()) }()
		id := add(t, store)
		time.Sleep(time.Second)
		if _, err := store.StopWorkers(t.Context(), []opscore.ID{w.Info().ID}, "ann@example.com"); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if task := look(t, store, id); task.State != opscore.Completed {
			t.Errorf("what ran is %s", task.State)
		}
		got := registered(t, store)[0]
		if got.State != opscore.WorkerGone || got.Cause != "stopped: asked to by ann@example.com" {
			t.Errorf("it is %s: %s", got.State, got.Cause)
		}
		if d := got.Report.Drained; d == nil || d.Finished != 1 || d.HandedBack != 0 || d.Released != 0 || d.Took <= 0 {
			t.Errorf("drained = %+v", d)
		}
		if log.count(`msg=stopping why="asked to by ann@example.com"`) != 1 {
			t.Errorf("log = %s", log.buf.String())
		}
	})
}

func TestAPausedWorkerThatWasAskedToStopStopsWhenItGoesOnAsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		w := &opscore.Worker{Store: store, Log: slog.New(slog.DiscardHandler), Handlers: handlers(ok)}
		done := make(chan error, 1)
		go func() { done <- w.Run(t.Context()) }()
		time.Sleep(time.Second)
		id := w.Info().ID
		if _, err := store.StopWorkers(t.Context(), []opscore.ID{id}, "ann"); err != nil {
			t.Fatal(err)
		}
		if err := store.Leave(t.Context(), id, "its lease ran out", opscore.Report{}); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		for _, got := range registered(t, store) {
			if got.State != opscore.WorkerGone {
				t.Errorf("%s is %s", got.ID, got.State)
			}
		}
	})
}

// slow is a source that is not ready at once.
type slow struct {
	opscore.Source
	mu    sync.Mutex
	check opscore.Check
}

func (s *slow) Checks() []opscore.Check {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []opscore.Check{s.check}
}

func (s *slow) set(state opscore.CheckState, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.check = opscore.Check{Name: opscore.CheckBroker, State: state, Text: text}
}

// logged is a worker's log.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

func TestAWorkerIsReadyOnlyWhenNoCheckFailsAndSaysEveryTenSecondsWhichDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		source := &slow{Source: opscore.FromStore(store, 0)}
		source.set(opscore.CheckFailed, "not subscribed to images")
		ctx, stop := context.WithCancel(t.Context())
		log, ready, done := &logged{}, make(chan struct{}), make(chan error, 1)
		w := &opscore.Worker{
			Store: store, Handlers: handlers(ok), Sources: []opscore.Source{source}, Log: slog.New(slog.NewTextHandler(log, nil)),
			OnReady: func(opscore.WorkerInfo) { close(ready) },
		}
		if w.Info().State != "" {
			t.Error("it knows a state before it runs")
		}
		go func() { done <- w.Run(ctx) }()
		time.Sleep(35 * time.Second)
		if n := log.count(`"worker is not ready" check=broker why="not subscribed to images"`); n != 3 {
			t.Errorf("in 35 s it was said %d times: %s", n, log.buf.String())
		}
		for name, got := range map[string]opscore.WorkerInfo{"registry": registered(t, store)[0], "info": w.Info()} {
			if got.State != opscore.WorkerBooting || got.Report.Check(opscore.CheckBroker).State != opscore.CheckFailed {
				t.Errorf("%s: state = %s, report = %+v", name, got.State, got.Report)
			}
		}
		select {
		case <-ready:
			t.Error("it says that it is ready")
		default:
		}
		source.set(opscore.CheckDegraded, "pulls")
		<-ready
		time.Sleep(opscore.HeartbeatEvery + time.Second)
		if got := registered(t, store)[0]; got.State != opscore.WorkerReady || got.Report.Check(opscore.CheckBroker).Text != "pulls" {
			t.Errorf("state = %s, report = %+v", got.State, got.Report)
		}
		time.Sleep(30 * time.Second)
		source.set(opscore.CheckOK, "")
		time.Sleep(30 * time.Second)
		if said, over := log.count("worker is degraded"), log.count("worker has recovered"); said != 1 || over != 1 {
			t.Errorf("degraded was said %d times, and %d times that it is over", said, over)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestAWorkerThatIsToldToStopBeforeItIsReadyStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		source := &slow{Source: opscore.FromStore(store, 0)}
		source.set(opscore.CheckFailed, "never")
		ctx, stop := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("a signal"))
		defer stop()
		w := &opscore.Worker{Store: store, Handlers: handlers(ok), Sources: []opscore.Source{source}, Log: slog.New(slog.DiscardHandler)}
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
		if got := registered(t, store)[0]; got.State != opscore.WorkerGone || got.Cause != "stopped: a signal" {
			t.Errorf("it is %s: %s", got.State, got.Cause)
		}
	})
}

func TestAStoreThatDoesNotAnswerMakesAWorkerNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		down := errors.New("the cable was cut")
		var cut sync.Map
		faulty := &storetest.Faulty{Store: store, Before: func(call string, _ int) error {
			if _, isCut := cut.Load(call); isCut {
				return down
			}
			return nil
		}}
		w := &opscore.Worker{Store: faulty, Handlers: handlers(ok)}
		employ(t, w)
		cut.Store("Heartbeat", true)
		time.Sleep(3 * opscore.HeartbeatEvery)
		info := w.Info()
		check := info.Report.Check(opscore.CheckStore)
		if check.State != opscore.CheckFailed || !strings.Contains(check.Text, "the cable was cut") {
			t.Errorf("check = %+v", check)
		}
		if silent := time.Since(check.Since); silent < 2*opscore.HeartbeatEvery || silent > 3*opscore.HeartbeatEvery {
			t.Errorf("it has failed for %s", silent)
		}
		cut.Delete("Heartbeat")
		time.Sleep(opscore.HeartbeatEvery + time.Second)
		if info := w.Info(); len(info.Report.Failed()) != 0 {
			t.Errorf("afterwards: %+v", info.Report)
		}
	})
}

func TestAStoreThatRefusesClaimsOrOutcomesMakesAWorkerNotReady(t *testing.T) {
	for call, want := range map[string]string{"Claim": "cannot take tasks: permission denied", "Finish": "cannot record outcomes: permission denied"} {
		synctest.Test(t, func(t *testing.T) {
			store := open(t)
			var refused atomic.Bool
			faulty := &storetest.Faulty{Store: store, Before: func(called string, _ int) error {
				if refused.Load() && called == call {
					return errors.New("permission denied")
				}
				return nil
			}}
			w := &opscore.Worker{Store: faulty, Handlers: handlers(ok)}
			employ(t, w)
			refused.Store(true)
			id := add(t, store)
			time.Sleep(opscore.HeartbeatEvery - time.Second)
			info := w.Info()
			if check := info.Report.Check(opscore.CheckStore); check.State != opscore.CheckOK {
				t.Errorf("%s: after a moment: %+v", call, check)
			}
			time.Sleep(3 * opscore.HeartbeatEvery)
			info = w.Info()
			if check := info.Report.Check(opscore.CheckStore); check.State != opscore.CheckFailed || check.Text != want {
				t.Errorf("%s: check = %+v", call, check)
			}
			refused.Store(false)
			time.Sleep(2 * opscore.HeartbeatEvery)
			if info = w.Info(); len(info.Report.Failed()) != 0 {
				t.Errorf("%s: afterwards: %+v", call, info.Report)
			}
			if got := look(t, store, id); got.State != opscore.Completed {
				t.Errorf("%s: the task is %s", call, got.State)
			}
		})
	}
}

func TestALeaseOfItsOwnIsRenewedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		for _, lease := range []time.Duration{time.Millisecond, 2 * time.Hour} {
			err := (&opscore.Worker{Store: store, Handlers: handlers(ok), Lease: lease}).Run(t.Context())
			if !errors.Is(err, opscore.ErrInvalid) {
				t.Errorf("a lease of %s: %v", lease, err)
			}
		}
		employ(t, &opscore.Worker{Store: store, Handlers: handlers(ok), Lease: 2 * time.Second})
		for range 100 {
			time.Sleep(300 * time.Millisecond)
			if !registered(t, store)[0].Live {
				t.Fatal("the lease ran out")
			}
		}
	})
}

// ahead is a store whose clock is an hour ahead of this process's.
type ahead struct{ *sqlite.Store }

func (a ahead) Heartbeat(ctx context.Context, w opscore.ID, s opscore.WorkerState, r opscore.Report) (opscore.Heard, error) {
	heard, err := a.Store.Heartbeat(ctx, w, s, r)
	heard.Clock = heard.Clock.Add(time.Hour)
	return heard, err
}

func TestAWorkerReportsHowItsClockDiffersFromTheStores(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		employ(t, &opscore.Worker{Store: ahead{store}, Handlers: handlers(ok)})
		time.Sleep(opscore.HeartbeatEvery + time.Second)
		if skew := registered(t, store)[0].Report.Skew; skew != opscore.Duration(-time.Hour) {
			t.Errorf("skew = %s", skew)
		}
	})
}
