package opscoretest

import (
	"context"
	"sync"
	"time"

	"github.com/opscore/opscore"
)

// gate stands between a worker and its store, and makes the worker's calls go wrong on demand.
type gate struct {
	opscore.Store
	pulse *pulse

	door sync.RWMutex // held for reading by each call that is on its way; what changes calls waits for them

	mu      sync.Mutex
	worker  opscore.ID // as which it is registered
	dead    bool       // no call is answered any more
	paused  time.Time  // until then calls wait
	down    time.Time  // until then they fail
	failing int        // so many of the next fail
	changed chan struct{}
}

func newGate(s opscore.Store, p *pulse) *gate {
	return &gate{Store: s, pulse: p, changed: make(chan struct{})}
}

var (
	errCrashed = &opscore.Error{Code: opscore.CodeUnavailable, Message: "the test crashed this worker"}
	errDown    = &opscore.Error{Code: opscore.CodeUnavailable, Message: "the test cut the worker off from its store"}
	errFailing = &opscore.Error{Code: opscore.CodeUnavailable, Message: "the test made this call fail"}
	errNoReply = &opscore.Error{Code: opscore.CodeUnavailable, Message: "the test lost the answer to this call"}
)

// change changes what happens to calls, also to those that wait. When it returns, no call is on its way that knows nothing of it.
func (g *gate) change(how func()) {
	g.door.Lock()
	defer g.door.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	how()
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *gate) kill()                 { g.change(func() { g.dead = true }) }
func (g *gate) pause(d time.Duration) { g.change(func() { g.paused = time.Now().Add(d) }) }
func (g *gate) drop(d time.Duration)  { g.change(func() { g.down = time.Now().Add(d) }) }
func (g *gate) fail(n int)            { g.change(func() { g.failing += n }) }
func (g *gate) heal()                 { g.change(func() { g.paused, g.down, g.failing = time.Time{}, time.Time{}, 0 }) }

// faulty reports whether something is wrong, or will be with the next call.
func (g *gate) faulty() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	return g.dead || g.failing > 0 || g.paused.After(now) || g.down.After(now)
}

func (g *gate) killed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.dead
}

func (g *gate) registered() opscore.ID {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.worker
}

// enter waits while the worker is paused, and says what becomes of its call. Of calls that fail every second one is done
// all the same: only its answer is lost. It holds the door open until leave.
func (g *gate) enter(ctx context.Context) (leave func(), before, after error) {
	for {
		g.door.RLock()
		g.mu.Lock()
		rest, changed := time.Until(g.paused), g.changed
		if rest <= 0 || g.dead {
			before, after = g.fate()
			g.mu.Unlock()
			return g.door.RUnlock, before, after
		}
		g.mu.Unlock()
		g.door.RUnlock()
		over := time.NewTimer(rest)
		select {
		case <-ctx.Done():
			over.Stop()
			return func() {}, context.Cause(ctx), nil
		case <-changed:
		case <-over.C:
		}
		over.Stop()
	}
}

func (g *gate) fate() (before, after error) {
	switch {
	case g.dead:
		return errCrashed, nil
	case time.Until(g.down) > 0:
		return errDown, nil
	case g.failing == 0:
		return nil, nil
	}
	g.failing--
	if g.failing%2 == 0 {
		return errFailing, nil
	}
	return nil, errNoReply
}

func pass[T any](ctx context.Context, g *gate, call func() (T, error)) (T, error) {
	g.pulse.beat()
	var none T
	leave, before, after := g.enter(ctx)
	defer leave()
	if before != nil {
		return none, before
	}
	v, err := call()
	if err == nil && after != nil {
		return none, after
	}
	return v, err
}

func passErr(ctx context.Context, g *gate, call func() error) error {
	_, err := pass(ctx, g, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

// Wake passes on the store's wake-ups, if it has any.
func (g *gate) Wake() <-chan struct{} {
	if w, ok := g.Store.(opscore.Waker); ok {
		return w.Wake()
	}
	return nil
}

// Claim implements [opscore.Runs].
func (g *gate) Claim(ctx context.Context, want opscore.Claim) (opscore.Claimed, error) {
	return pass(ctx, g, func() (opscore.Claimed, error) { return g.Store.Claim(ctx, want) })
}

// Finish implements [opscore.Runs]. A dead worker is told that its outcomes are recorded: it ends sooner.
func (g *gate) Finish(ctx context.Context, outcomes []opscore.Outcome) ([]opscore.Recorded, error) {
	if g.killed() {
		return make([]opscore.Recorded, len(outcomes)), nil
	}
	return pass(ctx, g, func() ([]opscore.Recorded, error) { return g.Store.Finish(ctx, outcomes) })
}

// Note implements [opscore.Runs].
func (g *gate) Note(ctx context.Context, notes []opscore.Note) error {
	return passErr(ctx, g, func() error { return g.Store.Note(ctx, notes) })
}

// Register implements [opscore.Registry].
func (g *gate) Register(ctx context.Context, w opscore.WorkerInfo) error {
	return passErr(ctx, g, func() error {
		err := g.Store.Register(ctx, w)
		if err == nil {
			g.mu.Lock()
			g.worker = w.ID
			g.mu.Unlock()
		}
		return err
	})
}

// Heartbeat implements [opscore.Registry].
func (g *gate) Heartbeat(ctx context.Context, worker opscore.ID, state opscore.WorkerState, r opscore.Report) (opscore.Heard, error) {
	return pass(ctx, g, func() (opscore.Heard, error) { return g.Store.Heartbeat(ctx, worker, state, r) })
}

// Leave implements [opscore.Registry].
func (g *gate) Leave(ctx context.Context, worker opscore.ID, cause string, last opscore.Report) error {
	return passErr(ctx, g, func() error { return g.Store.Leave(ctx, worker, cause, last) })
}
