package opscoretest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/opscore/opscore"
)

// hand is a live worker of a test, in this process or in one of its own.
type hand interface {
	// info says who it was when it became ready.
	info() opscore.WorkerInfo
	// crash ends it without a goodbye. Whatever it may still do changes nothing in the store.
	crash() error
	// suffer carries out an order to pause, fail or drop, and returns at once.
	suffer(o order) error
	// faulty reports whether something of that is under way.
	faulty() bool
	// gone returns why it has ended, if nobody asked it to.
	gone() error
	// stacks returns what its handlers are doing.
	stacks() string
	// stop drains it, or, in a hurry, interrupts its handlers at once. It returns why it ended, if that was not as it should be.
	stop(hurry bool) error
}

// order is what a test wants of a worker.
type order struct {
	Do    string
	N     int           // calls to fail
	For   time.Duration // to be paused, or cut off
	Hurry bool          // to stop
}

const (
	doPause  = "pause"
	doFail   = "fail"
	doDrop   = "drop"
	doStacks = "stacks"
	doStop   = "stop"
)

// local is a worker in the process of the test.
type local struct {
	gate    *gate
	was     opscore.WorkerInfo
	bubble  string // that it lives in, if it does
	hurry   chan struct{}
	rushing sync.Once
	end     context.CancelFunc
	ended   chan struct{}
	err     error
}

// post is what a worker works with.
type post struct {
	handlers opscore.Handlers
	queues   []string
	slots    int
	drain    time.Duration
	log      slog.Handler
	sources  func(*gate) (sources []opscore.Source, done func(), err error)
}

// hireLocal starts a worker behind the gate and returns when it is ready.
func hireLocal(ctx context.Context, g *gate, p post) (hand, error) {
	sources, done, err := p.sources(g)
	if err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(ctx)
	w := &local{gate: g, bubble: ownBubble(), hurry: make(chan struct{}), end: end, ended: make(chan struct{})}
	ready := make(chan opscore.WorkerInfo, 1)
	worker := &opscore.Worker{
		Store: g, Sources: sources, Handlers: p.handlers, Queues: p.queues, Slots: p.slots, Drain: p.drain, Hurry: w.hurry,
		Log: slog.New(&mortal{p.log, g}), OnReady: func(info opscore.WorkerInfo) { ready <- info },
	}
	go func() {
		defer close(w.ended)
		defer done()
		w.err = worker.Run(ctx)
	}()
	select {
	case w.was = <-ready:
		return w, nil
	case <-w.ended:
		end()
		return nil, w.err
	}
}

func (w *local) info() opscore.WorkerInfo { return w.was }

// crash cannot stop the goroutines of handlers: their contexts end, and the gate and the fence keep out what they do.
func (w *local) crash() error {
	w.gate.kill()
	w.rush()
	w.end()
	return nil
}

func (w *local) suffer(o order) error {
	switch o.Do {
	case doPause:
		w.gate.pause(o.For)
	case doFail:
		w.gate.fail(o.N)
	case doDrop:
		w.gate.drop(o.For)
	}
	return nil
}

func (w *local) faulty() bool { return w.gate.faulty() }
func (w *local) gone() error {
	select {
	case <-w.ended:
		return cmp.Or(w.err, errors.New("it has ended"))
	default:
		return nil
	}
}

func (w *local) stacks() string { return handlerStacks(w.bubble) }

// rush skips what is left of the drain.
func (w *local) rush() { w.rushing.Do(func() { close(w.hurry) }) }

func (w *local) stop(hurry bool) error {
	w.gate.heal()
	if hurry {
		w.rush()
	}
	w.end()
	<-w.ended
	if w.gate.killed() { // it was crashed: that it could not say goodbye is no news
		return nil
	}
	if errors.Is(w.err, opscore.ErrHandlerStuck) {
		return fmt.Errorf("%w\n%s", w.err, w.stacks())
	}
	return w.err
}

// mortal is a worker's log, silent once the worker was crashed.
type mortal struct {
	slog.Handler
	gate *gate
}

// Enabled implements [slog.Handler].
func (m *mortal) Enabled(ctx context.Context, l slog.Level) bool {
	return !m.gate.killed() && m.Handler.Enabled(ctx, l)
}

// WithAttrs implements [slog.Handler].
func (m *mortal) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &mortal{m.Handler.WithAttrs(attrs), m.gate}
}

// WithGroup implements [slog.Handler].
func (m *mortal) WithGroup(name string) slog.Handler {
	return &mortal{m.Handler.WithGroup(name), m.gate}
}
