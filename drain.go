package opscore

import (
	"cmp"
	"context"
	"strings"
	"sync"
	"time"
)

// drain lets running tasks end, then makes them, then hands back what is left.
func (c *crew) drain() error {
	if err := c.enter(context.Background(), WorkerDraining); err != nil {
		c.log.Error("heartbeat failed", "error", err)
	}
	began := time.Now()
	c.mu.Lock()
	c.drained = Drained{}
	c.mu.Unlock()
	performed := after(&c.performing)
	if !wait(performed, cmp.Or(c.Drain, DefaultDrain), c.Hurry) {
		c.cancelAll(errShutdown)
		wait(performed, cmp.Or(c.Grace, DefaultGrace), nil)
	}
	stuck, released := c.releaseStuck()
	recorded, cancel := context.WithTimeout(context.Background(), cmp.Or(c.Grace, DefaultGrace))
	defer cancel()
	c.takeBacklog(recorded) // for good: a handler that returns after all finds no room
	close(c.stop)
	c.mu.Lock()
	c.drained.Released, c.drained.Stuck, c.drained.Took = released, stuck, Duration(time.Since(began))
	d := c.drained
	c.mu.Unlock()
	c.log.Info("worker drained", "finished", d.Finished, "handed_back", d.HandedBack, "released", d.Released, "took", d.Took)
	if len(stuck) > 0 {
		return &Error{Code: CodeHandlerStuck, Message: "handlers ignored their cancelled context: " + strings.Join(stuck, ", ")}
	}
	return nil
}

func after(wg *sync.WaitGroup) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	return done
}

func wait(done <-chan struct{}, limit time.Duration, hurry <-chan struct{}) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-hurry:
	case <-timer.C:
	}
	return false
}

// takeBacklog waits until no outcome is unrecorded: then the whole backlog can be had. It returns how much of it was, if ctx ended before.
func (c *crew) takeBacklog(ctx context.Context) (taken int) {
	for ctx.Err() == nil && taken < cap(c.backlog) {
		select {
		case c.backlog <- struct{}{}:
			taken++
		case <-ctx.Done():
		}
	}
	return taken
}

func (c *crew) cancelAll(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.runs {
		r.interrupt(cause)
	}
}

// handBack releases tasks that were claimed while the worker was told to stop: nobody ran them.
func (c *crew) handBack(tasks []Task) {
	c.giveBack(tasks, CodeShutdown, func(*Task) string { return "" })
}

// giveBack releases tasks that did not start, and says why.
func (c *crew) giveBack(tasks []Task, code Code, why func(*Task) string) {
	outcomes := make([]Outcome, len(tasks))
	for i := range tasks {
		t := &tasks[i]
		outcomes[i] = Outcome{
			Task: t.ID, ClaimSeq: t.ClaimSeq, Worker: t.Worker, State: Pending,
			Uncounted: true, Unstarted: true, Code: code, Error: why(t),
		}
	}
	c.release(outcomes)
}

// release records outcomes at once; if that fails, the tasks are rescued when the lease ends.
func (c *crew) release(outcomes []Outcome) {
	if len(outcomes) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), HeartbeatEvery)
	defer cancel()
	if _, err := c.Store.Finish(ctx, outcomes); err != nil {
		c.log.Error("cannot release tasks: they are rescued when the lease ends", "tasks", len(outcomes), "error", err)
	}
}
