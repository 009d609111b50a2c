// Package opscoretest runs a user's handlers for real inside a test: a live worker on a real store, in fake time or in real time,
// with faults on demand.
package opscoretest

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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
	path := filepath.Join(t.TempDir(), "opscore.db")
	watch(t, limit, func(p *pulse) {
		synctest.Test(t, func(t *testing.T) {
			p.enter()
			store, err := sqlite.Open(path)
			if err != nil {
				t.Fatalf("open store: %v", err)
			}
			e := newFake(t, store, h, &p.beats)
			defer p.leave()
			defer e.close(store.Close)
			e.start()
			test(t, e)
		})
	})
}

func newFake(t *testing.T, store *sqlite.Store, h opscore.Handlers, beats *atomic.Int64) *Env {
	log := slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})
	e := &Env{Client: &opscore.Client{Store: store}, Store: store, Database: store.Path(), Tier: Embedded, t: t, fake: true}
	if len(h) > 0 {
		p := post{handlers: h, log: log, sources: func(g *gate) ([]opscore.Source, func(), error) {
			// Submits in this process wake the worker; polling 4 times a second would only make fake hours slow.
			return []opscore.Source{opscore.FromStore(g, time.Second)}, func() {}, nil
		}}
		e.hire = func() (hand, error) { return hireLocal(t.Context(), newGate(store, beats), p) }
	}
	e.keep = func() func() { return keep(t, &opscore.Keeper{Store: store, Log: slog.New(log)}) }
	return e
}

// start starts a keeper and, if there are handlers, a worker, and returns when it is ready.
func (e *Env) start() {
	e.t.Helper()
	if e.hire != nil {
		h, err := e.hire()
		if err != nil {
			e.t.Fatalf("the worker did not start: %v", err)
		}
		e.hand = h
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
	if time.Until(end) <= worthAHalt || e.hand == nil || e.hand.faulty() {
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
	wake := e.Store.(opscore.Waker).Wake()
	e.stop()
	over := time.NewTimer(d)
	defer over.Stop()
	select {
	case <-over.C:
	case <-wake:
	}
	e.start()
}

// pulse is how a watcher outside a bubble knows that it is alive.
type pulse struct {
	beats  atomic.Int64 // grows with every call of the worker to the store and with fake time
	bubble atomic.Pointer[string]
	quit   chan struct{} // of the bubble
}

// enter begins to beat in the bubble that it is called in.
func (p *pulse) enter() {
	name := ownBubble()
	p.bubble.Store(&name)
	p.quit = make(chan struct{})
	go func() {
		tick := time.NewTicker(10 * time.Minute)
		defer tick.Stop()
		for {
			select {
			case <-p.quit:
				return
			case <-tick.C:
				p.beats.Add(1)
			}
		}
	}()
}

func (p *pulse) leave() { close(p.quit) }

// watch calls do, which runs a bubble, and fails the test with the stacks of its goroutines if it does not move for limit of real time, or
// ends with goroutines that will never end. What hangs is left behind.
func watch(t *testing.T, limit time.Duration, do func(*pulse)) {
	t.Helper()
	p, done, well := &pulse{}, make(chan struct{}), false
	go func() {
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				t.Errorf("%v\n%s", v, p.stacks())
			}
		}()
		do(p)
		well = true
	}()
	tick := time.NewTicker(limit / 10)
	defer tick.Stop()
	for still, last := 0, int64(-1); ; still++ {
		select {
		case <-done:
			if !well { // what ended it has failed the test
				t.FailNow()
			}
			return
		case <-tick.C:
		}
		if now := p.beats.Load(); now != last {
			still, last = 0, now
		}
		if still >= 10 {
			t.Fatalf("nothing has moved for %s of real time: a handler or the test does not come to an end, or waits for something outside its bubble\n%s",
				limit, p.stacks())
		}
	}
}

// stacks returns those of the handlers in the bubble, or of all its goroutines if there is none.
func (p *pulse) stacks() string {
	bubble := p.bubble.Load()
	if bubble == nil {
		return ""
	}
	if s := handlerStacks(*bubble); s != "" {
		return s
	}
	return strings.Join(stacks(*bubble, func(string) bool { return true }), "\n\n")
}
