package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opscore/opscore"
)

// Probe sends a canary through a queue, on the way that every task goes, and measures each hop of it. The canary is removed at the end.
type Probe struct {
	Store    opscore.Store
	Queue    string
	Patience time.Duration         // for each hop; 0 means 10 s, in which what a ticket did not bring is pulled
	OnHop    func(opscore.ID, Hop) // called when a hop is over, or has not answered; nil for none
}

const probePatience = 10 * time.Second

// The hops of a task, in their order. Without a broker, or where a worker was faster than a ticket, there is neither relay nor deliver.
const (
	HopInsert  = "insert"  // until the task is durable
	HopRelay   = "relay"   // until a ticket for it is out
	HopDeliver = "deliver" // until the ticket is with a worker
	HopClaim   = "claim"   // until a worker owns it
	HopStart   = "start"   // until its handler is called
	HopFinish  = "finish"  // until its outcome is recorded
)

// Hop is one part of the way.
type Hop struct {
	Name string           `json:"hop"`
	Took opscore.Duration `json:"took"`
	At   time.Time        `json:"at,omitzero"`     // its end, by the store's clock
	Note string           `json:"note,omitempty"`  // what is known of it besides
	Err  string           `json:"error,omitempty"` // it did not answer: Took is how long that was waited for
}

// Trace is the way of one canary.
type Trace struct {
	Queue string           `json:"queue"`
	Task  opscore.ID       `json:"task"`
	Hops  []Hop            `json:"hops"`
	Took  opscore.Duration `json:"took"`            // from the insert to the recorded outcome
	Stuck string           `json:"stuck,omitempty"` // the hop that did not answer; "" if the canary came through
	By    opscore.Canary   `json:"by,omitzero"`     // who ran it
	Left  bool             `json:"left,omitempty"`  // it could not be removed: a worker that does not answer has it. A keeper does when that is over
}

// Run sends the canary. A hop that does not answer is no error; an error says that the store does not, or that ctx has ended.
func (p Probe) Run(ctx context.Context) (Trace, error) {
	if err := opscore.ValidName("queue", p.Queue); err != nil {
		return Trace{}, err
	}
	f := &flight{Probe: p, trace: Trace{Queue: p.Queue}}
	f.Patience = cmp.Or(f.Patience, probePatience)
	f.tickets = f.byTicket(ctx)
	err := f.insert(ctx)
	if err == nil {
		err = f.follow(ctx)
		err = errors.Join(err, f.land(context.WithoutCancel(ctx)))
	}
	return f.trace, err
}

// flight is a canary on its way.
type flight struct {
	Probe
	trace   Trace
	tickets bool // are expected
	client  opscore.Client
}

// ticketed is implemented by stores that remember which tickets are out.
type ticketed interface {
	TicketOut(ctx context.Context, queue string, task opscore.ID) (since time.Time, out bool, err error)
}

// byTicket reports whether a broker brings the tasks of the queue: whether a worker that listens to it is connected to one.
func (f *flight) byTicket(ctx context.Context) bool {
	workers, err := f.Store.Workers(ctx, 0)
	if _, ok := f.Store.(ticketed); !ok || err != nil {
		return false // the insert tells why the store does not answer
	}
	return slices.ContainsFunc(workers, func(w opscore.WorkerInfo) bool {
		return w.Live && w.Takes(f.Queue, opscore.CanaryActor) &&
			slices.ContainsFunc(w.Endpoints, func(e opscore.Endpoint) bool { return e.Kind == "rabbitmq" })
	})
}

func (f *flight) insert(ctx context.Context) error {
	f.client.Store = f.Store
	bounded, cancel := context.WithTimeout(ctx, f.Patience)
	defer cancel()
	t := timed{f.Store, new(time.Duration)}
	canary := opscore.NewCanary(f.Queue)
	opscore.Via(t)(&canary)
	began := time.Now()
	subs, err := f.client.Submit(bounded, canary)
	if err != nil {
		f.stuck(HopInsert, time.Since(began), err.Error())
		return err
	}
	f.trace.Task = subs[0].ID
	task, err := f.client.Get(bounded, subs[0].ID)
	if err != nil {
		return err
	}
	f.hop(Hop{Name: HopInsert, Took: opscore.Duration(*t.took), At: task.CreatedAt})
	return nil
}

// timed measures an insert: a submit does more.
type timed struct {
	opscore.Inserter
	took *time.Duration
}

func (t timed) Insert(ctx context.Context, requests []opscore.Request) ([]opscore.Inserted, error) {
	began := time.Now()
	defer func() { *t.took = time.Since(began) }()
	return t.Inserter.Insert(ctx, requests)
}

func (f *flight) hop(h Hop) {
	f.trace.Hops = append(f.trace.Hops, h)
	if f.OnHop != nil {
		f.OnHop(f.trace.Task, h)
	}
}

func (f *flight) stuck(name string, after time.Duration, why string) {
	f.trace.Stuck = name
	f.hop(Hop{Name: name, Took: opscore.Duration(after), Err: why})
}

// follow looks at the canary until it is over, or has not moved for too long.
func (f *flight) follow(ctx context.Context) error {
	const fastest, slowest = 2 * time.Millisecond, 50 * time.Millisecond
	moved, before, delay := time.Now(), "", fastest
	for {
		task, out, err := f.look(ctx)
		if err != nil {
			return err
		}
		if task.State.Terminal() {
			return f.arrived(task)
		}
		stage := fmt.Sprint(task.State, out)
		if stage != before {
			moved, before, delay = time.Now(), stage, fastest
		}
		if since := time.Since(moved); since >= f.Patience {
			f.lost(task, out, since)
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(delay):
			delay = min(2*delay, slowest)
		}
	}
}

// look reads the canary's row and whether a ticket for it is out.
func (f *flight) look(ctx context.Context) (task opscore.Task, out time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, f.Patience)
	defer cancel()
	if f.tickets {
		if out, _, err = f.Store.(ticketed).TicketOut(ctx, f.Queue, f.trace.Task); err != nil {
			return task, out, err
		}
	}
	task, err = f.client.Get(ctx, f.trace.Task)
	return task, out, err
}

// lost says which hop did not answer.
func (f *flight) lost(task opscore.Task, out time.Time, after time.Duration) {
	switch {
	case task.State == opscore.Running:
		f.hop(Hop{Name: HopClaim, Took: opscore.Duration(task.StartedAt.Sub(task.CreatedAt)), At: task.StartedAt})
		f.stuck(HopFinish, after, fmt.Sprintf("worker %s owns it and does not end it", task.Worker))
	case !f.tickets:
		f.stuck(HopClaim, after, "no worker claims it")
	case out.IsZero():
		f.stuck(HopRelay, after, "no ticket for it goes out, and no worker pulls it")
	default:
		f.hop(Hop{Name: HopRelay, Took: opscore.Duration(out.Sub(task.CreatedAt)), At: out})
		f.stuck(HopDeliver, after, "its ticket is out, and no worker claims it")
	}
}

// arrived takes the way apart into hops.
func (f *flight) arrived(task opscore.Task) error {
	if task.State != opscore.Completed {
		f.stuck(HopFinish, task.FinishedAt.Sub(task.CreatedAt), fmt.Sprintf("it is %s (%s): %s", task.State, task.Code, task.Error))
		return nil
	}
	by := &f.trace.By
	if err := json.Unmarshal(task.Result, by); err != nil {
		return fmt.Errorf("read the result of canary %s: %w", task.ID, err)
	}
	at := task.CreatedAt
	next := func(name string, end time.Time, note string) {
		f.hop(Hop{Name: name, Took: opscore.Duration(end.Sub(at)), At: end, Note: note})
		at = end
	}
	note := ""
	if !by.Out.IsZero() {
		next(HopRelay, by.Out, "")
		next(HopDeliver, later(by.Out, task.StartedAt.Add(-time.Duration(by.Waited))), "")
	} else if f.tickets {
		note = "pulled: no ticket brought it"
	}
	next(HopClaim, task.StartedAt, note)
	next(HopStart, earlier(task.StartedAt.Add(time.Duration(by.Start)), task.FinishedAt), "")
	next(HopFinish, task.FinishedAt, "")
	f.trace.Took = opscore.Duration(task.FinishedAt.Sub(task.CreatedAt))
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// land removes the canary, which is cancelled if it is still on its way.
func (f *flight) land(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, f.Patience)
	defer cancel()
	if _, err := f.client.Cancel(ctx, f.trace.Task, "opscore doctor"); err != nil {
		return err
	}
	d, ok := f.Store.(opscore.Discarder)
	if !ok {
		return nil // it is kept as others are
	}
	n, err := d.Discard(ctx, []opscore.ID{f.trace.Task})
	f.trace.Left = err == nil && n == 0
	return err
}
