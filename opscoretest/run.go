// Package opscoretest runs a user's handlers for real inside a test: a live worker on a real store, in fake time or in real time,
// with faults on demand.
package opscoretest

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

// Run calls test with a worker for h and a keeper at work on a new SQLite file. It all happens in a bubble of fake time
// (see testing/synctest): time passes only while every goroutine waits, so a month of backoff takes no time at all.
// Inside, time.Sleep and timers are fake as well; sockets and subprocesses are not, so a handler under test must not
// wait for them: see [Live]. Without handlers there is no worker, for tests of what submits.
//
// Use the t that test is given, and contexts that come from it. It cannot have subtests (t.Run) or be parallel: call Run in those instead.
//
// When test returns, the worker is drained and the file removed. What the worker logs from level Warn up becomes the test's log. A handler, or
// a test, that does not come to an end fails the test with its stack: if it ignores that its timeout is over, or if nothing at all
// has moved for 20 s of real time, as in an endless loop or while it waits for a socket.
func Run(t *testing.T, h opscore.Handlers, test func(t *testing.T, env *Env)) {
	t.Helper()
	run(t, h, stillFor, test)
}

// stillFor is how much real time may pass without a sign of life.
const stillFor = 20 * time.Second

func run(t *testing.T, h opscore.Handlers, limit time.Duration, test func(t *testing.T, env *Env)) {
	t.Helper()
	if len(h) == 0 {
		h = nil
	}
	skipped := false
	inBubbleOf(t, limit, h, func(t *testing.T, e *Env) {
		defer func() { skipped = t.Skipped() }()
		e.start()
		test(t, e)
	})
	if skipped {
		t.SkipNow()
	}
}

// inBubbleOf calls do in a bubble, with an environment that is not started yet: if h is not nil, with a worker for what it holds then.
func inBubbleOf(t *testing.T, limit time.Duration, h opscore.Handlers, do func(t *testing.T, e *Env)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "opscore.db")
	watch(t, limit, func(p *pulse) {
		synctest.Test(t, func(t *testing.T) {
			defer p.enter()()
			store, err := sqlite.Open(path)
			if err != nil {
				t.Fatalf("open store: %v", err)
			}
			e := newFake(t, store, h, p)
			defer e.close(store.Close)
			do(t, e)
		})
	})
}

func newFake(t *testing.T, store *sqlite.Store, h opscore.Handlers, p *pulse) *Env {
	log := slog.NewTextHandler(p.output(t.Output()), &slog.HandlerOptions{Level: slog.LevelWarn})
	e := &Env{Store: store, Database: store.Path(), Tier: Embedded, t: t, fake: true, pulse: p}
	e.tap = &tap{Store: store, pulse: p}
	e.Client = &opscore.Client{Store: e.tap}
	if h != nil {
		post := post{handlers: h, log: log, sources: func(g *gate) ([]opscore.Source, func(), error) {
			// Submits in this process wake the worker; polling 4 times a second would only make fake hours slow.
			return []opscore.Source{opscore.FromStore(g, time.Second)}, func() {}, nil
		}}
		e.hire = func() (hand, error) { return hireLocal(t.Context(), newGate(store, p), post) }
	}
	e.keep = func() func() { return keep(t, &opscore.Keeper{Store: store, Log: slog.New(log)}) }
	return e
}

// start starts a keeper and, if there are handlers, a worker, and returns when it is ready.
func (e *Env) start() {
	e.t.Helper()
	if e.hire != nil {
		var err error
		if e.hand, err = e.hire(); err != nil {
			e.t.Fatalf("the worker did not start: %v", err)
		}
	}
	e.unkeep = e.keep()
}

// stop stops what start started. Its errors fail the test.
func (e *Env) stop() {
	e.t.Helper()
	if e.hand != nil {
		if err := e.hand.stop(e.t.Failed()); err != nil {
			e.t.Errorf("worker: %v", err)
		}
		e.hand = nil
	}
	if e.unkeep != nil {
		e.unkeep()
		e.unkeep = nil
	}
}

// close ends everything.
func (e *Env) close(store func() error) {
	e.t.Helper()
	e.pulse.beat()
	e.stop()
	for _, h := range e.crashed {
		if err := h.stop(true); err != nil {
			e.t.Errorf("crashed worker: %v", err)
		}
	}
	if err := store(); err != nil {
		e.t.Errorf("close store: %v", err)
	}
}

// keep runs a keeper until it is stopped.
func keep(t *testing.T, k *opscore.Keeper) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := k.Run(ctx); err != nil {
			t.Errorf("keeper: %v", err)
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// worthAHalt is how much fake time without any work is worth to stop the worker for: its heartbeats, and the keeper's chores, make
// a fake day last for seconds.
const worthAHalt = 5 * time.Minute

// idle returns how long nothing will happen, until end at most, as far as the store knows.
func (e *Env) idle(end time.Time) time.Duration {
	e.t.Helper()
	if time.Until(end) <= worthAHalt || e.hand == nil || e.faulty() {
		return 0
	}
	workers := e.workers()
	for t := range e.tasks(opscore.Pending, opscore.Running) {
		for _, next := range []time.Time{t.RunAt, t.ExpiresAt} {
			if next.After(time.Now()) && next.Before(end) {
				end = next
			}
		}
		if t.State == opscore.Running || !t.RunAt.After(time.Now()) && takes(workers, t) {
			return 0
		}
	}
	return time.Until(end)
}

// halt lets d pass without worker and keeper, less if a task is submitted meanwhile.
func (e *Env) halt(d time.Duration) {
	e.t.Helper()
	wake := e.Store.(opscore.Waker).Wake() // by a submit in a transaction
	called, resume := e.tap.halt()
	e.stop()
	over := time.NewTimer(d)
	defer over.Stop()
	select {
	case <-over.C:
	case <-wake:
	case <-called:
	}
	e.start()
	resume()
}

// tap is the store of the test's own client. It is a sign of life, and while the worker is halted a submit has it back first.
type tap struct {
	opscore.Store
	pulse *pulse

	mu      sync.Mutex
	halted  bool
	called  chan struct{} // closed by the first who needs the worker
	running chan struct{} // closed when it is back
}

// halt makes submits wait until resume is called; the first of them closes called.
func (p *tap) halt() (called <-chan struct{}, resume func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.halted, p.called, p.running = true, make(chan struct{}), make(chan struct{})
	return p.called, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.halted = false
		close(p.running)
	}
}

// Insert implements [opscore.Inserter].
func (p *tap) Insert(ctx context.Context, requests []opscore.Request) ([]opscore.Inserted, error) {
	p.pulse.beat()
	p.mu.Lock()
	running := p.running
	if p.halted {
		select {
		case <-p.called:
		default:
			close(p.called)
		}
		p.mu.Unlock()
		<-running
	} else {
		p.mu.Unlock()
	}
	return p.Store.Insert(ctx, requests)
}

// Get implements [opscore.Tasks].
func (p *tap) Get(ctx context.Context, ids []opscore.ID) ([]opscore.Task, error) {
	p.pulse.beat()
	return p.Store.Get(ctx, ids)
}

// List implements [opscore.Tasks].
func (p *tap) List(ctx context.Context, f opscore.Filter) ([]opscore.Task, error) {
	p.pulse.beat()
	return p.Store.List(ctx, f)
}
