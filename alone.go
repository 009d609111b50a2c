package opscore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// door is what new tasks come in by. One who shuts it has the worker to himself once those inside have left.
type door struct {
	mu    sync.Mutex
	opens chan struct{} // closed when it is opened again; nil while it is open
}

// shut shuts the door; false means that somebody else has.
func (d *door) shut() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.opens != nil {
		return false
	}
	d.opens = make(chan struct{})
	return true
}

func (d *door) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.opens)
	d.opens = nil
}

// state returns a channel to wait for if the door is shut, else nil.
func (d *door) state() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.opens
}

// enterSlot waits until the door is open and a slot is free, and takes it. It reports false when ctx has ended.
func (c *crew) enterSlot(ctx context.Context) bool {
	for {
		opens := c.door.state()
		slots := c.slots
		if opens != nil {
			slots = nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-opens:
			continue
		case <-slots:
		}
		if ctx.Err() == nil && c.door.state() == nil {
			return true
		}
		c.slots <- struct{}{}
	}
}

// startAll begins what was claimed, each with a slot of its own: suspects after the others.
func (c *crew) startAll(ctx context.Context, tasks []Task) {
	var suspects []Task
	for _, t := range tasks {
		if t.Suspect() {
			suspects = append(suspects, t)
			continue
		}
		c.start(ctx, t)
	}
	if len(suspects) > 0 {
		c.startSuspects(ctx, suspects)
	}
}

// startSuspects runs the first of them alone, unless another one is at it, and gives the others back before: a worker that may die with one
// task holds no second one. It returns when that run is over and its outcome recorded, or ctx has ended.
func (c *crew) startSuspects(ctx context.Context, suspects []Task) {
	mine := c.door.shut()
	c.vacate(len(suspects))
	if !mine {
		c.postpone(suspects)
		return
	}
	defer c.door.open()
	c.postpone(suspects[1:])
	run, r := c.admit(ctx, suspects[0])
	waits, cancel := context.WithTimeout(run, startsWithin(&r.task))
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	if !c.empty(waits, r) {
		c.giveUp(run, r)
		return
	}
	if !c.isolate(waits, r) {
		c.vacate(cap(c.slots))
		c.giveUp(run, r)
		return
	}
	c.performAlone(ctx, run, r)
	c.vacate(cap(c.slots) - 1) // the last one was the run's
}

// startsWithin is how long a task that was just claimed may wait for its start.
func startsWithin(t *Task) time.Duration {
	if t.ExpiresAt.IsZero() {
		return Forever
	}
	return t.ExpiresAt.Sub(t.StartedAt) // both by the store's clock
}

// vacate gives slots back.
func (c *crew) vacate(n int) {
	for range n {
		c.slots <- struct{}{}
	}
}

// postpone gives suspects back that another worker may run meanwhile.
func (c *crew) postpone(suspects []Task) {
	c.giveBack(suspects, CodeLost, func(t *Task) string {
		return fmt.Sprintf("it was lost %d times with its worker and has to run alone: it waits for a worker that does not wait for another such task", t.Lost)
	})
}

// empty takes all slots, so that nothing runs, and waits until what ran is recorded, so that nothing can be lost with r. It reports false, and
// has taken none, if ctx ended before.
func (c *crew) empty(ctx context.Context, r *running) bool {
	c.log.Info("a task that was lost with its workers runs alone: the others end first", "task", r.task.ID, "actor", r.task.Actor, "lost", r.task.Lost)
	remind := time.NewTicker(time.Minute)
	defer remind.Stop()
	for n := 0; n < cap(c.slots); {
		select {
		case <-ctx.Done():
			c.vacate(n)
			return false
		case <-remind.C:
			c.log.Warn("a task that has to run alone still waits for others to end; the worker takes nothing", "task", r.task.ID, "slots_taken", cap(c.slots)-n)
		case <-c.slots:
			n++
		}
	}
	if !c.settle(ctx) {
		c.vacate(cap(c.slots))
		return false
	}
	return true
}

// settle waits until no outcome is unrecorded. It reports false if ctx ended before.
func (c *crew) settle(ctx context.Context) bool {
	n := c.takeBacklog(ctx)
	for range n {
		<-c.backlog
	}
	return n == cap(c.backlog)
}

// isolate tells the store that r runs alone from now on, again and again while the store fails or the lease is in doubt. It reports false if r
// must not run.
func (c *crew) isolate(ctx context.Context, r *running) bool {
	for backoff := 50 * time.Millisecond; ctx.Err() == nil; backoff = min(2*backoff, HeartbeatEvery) {
		if c.leased() {
			err := c.noteAlone(ctx, &r.task)
			if err == nil {
				return ctx.Err() == nil
			}
			if errors.Is(err, ErrLeaseLost) {
				r.cancel(ErrLeaseLost)
				return false
			}
			c.log.Error("cannot isolate a task; it waits", "task", r.task.ID, "retry_in", backoff, "error", err)
		}
		pause(ctx, backoff)
	}
	return false
}

// noteAlone is not cut off in the middle: it would not be known then what the store has.
func (c *crew) noteAlone(ctx context.Context, t *Task) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), HeartbeatEvery)
	defer cancel()
	return c.Store.Isolate(ctx, t.ID, t.ClaimSeq, t.Worker)
}

// performAlone runs r and waits until its outcome is recorded: until then the death of the worker would be blamed on it. Once stop ends, the
// drain does the waiting.
func (c *crew) performAlone(stop, run context.Context, r *running) {
	ended := make(chan struct{})
	c.performing.Add(1)
	go func() {
		defer close(ended)
		c.perform(run, r)
	}()
	select {
	case <-ended:
		c.settle(stop)
	case <-stop.Done():
	}
}

// giveUp gives a suspect back that did not start, unless its claim is lost. The store cancels it if somebody asked for that.
func (c *crew) giveUp(run context.Context, r *running) {
	if !errors.Is(context.Cause(run), ErrLeaseLost) {
		c.handBack([]Task{r.task})
	}
	r.cancel(nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.runs, fence{r.task.ID, r.task.ClaimSeq})
}
