package opscoretest

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
)

// faults is what a live environment's ways to its servers can suffer.
type faults struct {
	toStore  *nodes.Proxy // nil if there is nothing to cut
	toBroker *nodes.Proxy
	tickets  *tamper // nil if there is no broker
	purge    func(ctx context.Context, queues []string) error
	cuts     map[*nodes.Proxy]*cut
}

// cut is a proxy that does not let anything pass until then.
type cut struct {
	until time.Time
	timer *time.Timer
}

// CrashWorker ends the worker as kill -9 does: nothing is handed back, and no outcome of what it was running is recorded. Its death is
// noticed at once, so its tasks are pending again, after the backoff of a loss (1 s, then 2 s), and another worker is ready when it returns.
//
// If the store is dropped, that ends first, for no worker could start.
//
// A worker in the test's own process cannot really be killed. The contexts of its handlers end, and no outcome, note or completion of theirs counts
// any more; but they go on until they return, and what they submit with another context is submitted. See [Options].Process for a worker that dies for real.
func (e *Env) CrashWorker() {
	e.t.Helper()
	h := e.theWorker("CrashWorker")
	who := h.info()
	if err := h.crash(); err != nil {
		e.t.Fatalf("crash worker: %v", err)
	}
	e.crashed, e.hand = append(e.crashed, h), nil
	if err := e.bury(who, h); err != nil {
		e.t.Fatalf("crash worker: %v", err)
	}
	e.Advance(max(0, time.Until(e.dropped)))
	next, err := e.hire()
	for began := time.Now(); err != nil && time.Since(began) < e.limit(time.Minute); {
		e.step(time.Since(began)) // the way to the store may have to be found again
		next, err = e.hire()
	}
	if err != nil {
		e.t.Fatalf("the next worker did not start: %v", err)
	}
	e.hand = next
}

// bury tells the store what a lease would tell it half a minute later.
func (e *Env) bury(who opscore.WorkerInfo, h hand) error {
	ctx := e.t.Context()
	ids := []opscore.ID{who.ID}
	if l, ok := h.(*local); ok {
		ids = []opscore.ID{l.gate.registered()}
	} else if registered, err := e.Store.Workers(ctx, 0); err == nil {
		for _, w := range registered {
			if w.PID == who.PID && w.Host == who.Host && w.ID != who.ID {
				ids = append(ids, w.ID)
			}
		}
	}
	for _, id := range ids {
		if err := e.Store.Leave(ctx, id, "crashed by a test", opscore.Report{}); err != nil && !errors.Is(err, opscore.ErrLeaseLost) { // a keeper may have been faster
			return err
		}
	}
	for {
		tasks, err := e.Store.Rescue(ctx)
		if err != nil || len(tasks) == 0 {
			return err
		}
	}
}

// PauseWorker keeps the worker from doing anything for d, as SIGSTOP does or a virtual machine that is moved, and returns at once. After
// 30 s its lease is over and its tasks belong to others. Of a worker in the test's own process only the dealings with the store are paused.
func (e *Env) PauseWorker(d time.Duration) {
	e.t.Helper()
	if err := e.theWorker("PauseWorker").suffer(order{Do: doPause, For: d}); err != nil {
		e.t.Fatalf("pause worker: %v", err)
	}
}

// FailStore makes the worker's next n calls to the store fail. Of every two of them the first one has been done all the
// same: only its answer is lost. What the test itself does is not affected.
func (e *Env) FailStore(n int) {
	e.t.Helper()
	if err := e.theWorker("FailStore").suffer(order{Do: doFail, N: n}); err != nil {
		e.t.Fatalf("fail store: %v", err)
	}
}

// DropStore cuts the worker off from the store for d, and returns at once. With PostgreSQL its connections are cut, and those of the
// keeper; the test itself and its Client have others.
func (e *Env) DropStore(d time.Duration) {
	e.t.Helper()
	h := e.theWorker("DropStore")
	if until := time.Now().Add(d); until.After(e.dropped) {
		e.dropped = until
	}
	if e.faults.toStore != nil {
		e.faults.cut(e.faults.toStore, d)
		return
	}
	if err := h.suffer(order{Do: doDrop, For: d}); err != nil {
		e.t.Fatalf("drop store: %v", err)
	}
}

// DropBroker cuts the connections of worker and keeper to the broker, keeps them from making new ones for d, and returns at once.
func (e *Env) DropBroker(d time.Duration) {
	e.t.Helper()
	e.needBroker("DropBroker")
	e.faults.cut(e.faults.toBroker, d)
}

// LoseTickets loses all tickets that wait in the broker now, and all that are published from now on: as far as the broker can tell,
// they were delivered. Workers find the tasks by themselves, after [opscore.TicketFor] (5 s) and up to a second more.
func (e *Env) LoseTickets() {
	e.t.Helper()
	e.needBroker("LoseTickets")
	e.faults.tickets.lose.Store(true)
	var queues []string
	for _, w := range e.workers() {
		queues = append(queues, w.Queues...)
	}
	if err := e.faults.purge(e.t.Context(), queues); err != nil {
		e.t.Fatalf("lose tickets: %v", err)
	}
}

// DuplicateDelivery publishes every ticket twice from now on.
func (e *Env) DuplicateDelivery() {
	e.t.Helper()
	e.needBroker("DuplicateDelivery")
	e.faults.tickets.double.Store(true)
}

func (e *Env) theWorker(what string) hand {
	e.t.Helper()
	if e.hand == nil {
		e.t.Fatalf("%s: no worker is running in this test: give handlers to Run, or to Live in its Options", what)
	}
	return e.hand
}

func (e *Env) needBroker(what string) {
	e.t.Helper()
	if e.faults.tickets == nil {
		e.t.Fatalf("%s: this environment has no broker: it needs Live on the tier Cluster, or Options.Broker", what)
	}
}

// cut keeps a proxy from letting anything pass for d, or longer if it was asked to before.
func (f *faults) cut(p *nodes.Proxy, d time.Duration) {
	p.Cut()
	until := time.Now().Add(d)
	if was := f.cuts[p]; was != nil {
		was.timer.Stop()
		if was.until.After(until) {
			until = was.until
		}
	}
	if f.cuts == nil {
		f.cuts = map[*nodes.Proxy]*cut{}
	}
	f.cuts[p] = &cut{until, time.AfterFunc(time.Until(until), p.Heal)}
}

// heal ends all faults that end by themselves, so that what is left can end in order.
func (f *faults) heal() {
	for _, c := range f.cuts {
		c.timer.Stop()
	}
	for _, p := range []*nodes.Proxy{f.toStore, f.toBroker} {
		if p != nil {
			p.Heal()
		}
	}
}

// tamper is a publisher whose tickets get lost or come twice.
type tamper struct {
	opscore.Publisher
	lose, double atomic.Bool
}

// Publish implements [opscore.Publisher].
func (p *tamper) Publish(ctx context.Context, tickets []opscore.Ticket) ([]opscore.ID, error) {
	if p.lose.Load() {
		return nil, nil
	}
	if p.double.Load() {
		if refused, err := p.Publisher.Publish(ctx, tickets); err != nil {
			return refused, err
		}
	}
	return p.Publisher.Publish(ctx, tickets)
}
