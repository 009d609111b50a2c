package opscore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/google/uuid"
)

// register enters the registry under a new id.
func (c *crew) register(ctx context.Context, state WorkerState) error {
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.info.ID, c.info.State, c.info.StartedAt, c.info.LastBeat = id, state, time.Now().UTC(), time.Now().UTC()
	info := c.info
	c.mu.Unlock()
	sent := time.Now()
	if err := c.Store.Register(ctx, info); err != nil {
		return err
	}
	c.renew(sent)
	return nil
}

// renew starts the lease at the moment its renewal was sent, less a margin of a fifth.
func (c *crew) renew(sent time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lease = deadlineAt(sent.Add(time.Duration(c.info.Lease) * 8 / 10))
}

func (c *crew) leased() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.lease.passed(time.Now())
}

// deadline passes when either clock says so: the monotonic one stands still while the machine is suspended, and the wall clock
// can be set back.
type deadline struct{ monotonic, wall time.Time }

func deadlineAt(t time.Time) deadline { return deadline{t, t.Round(0)} }

func (d deadline) passed(now time.Time) bool {
	return !now.Before(d.monotonic) || !now.Round(0).Before(d.wall)
}

func (c *crew) identity() WorkerInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.info
}

// beatEvery is how often the worker heartbeats.
func (c *crew) beatEvery() time.Duration { return time.Duration(c.info.Lease) / 6 }

// beat keeps the lease.
func (c *crew) beat(ctx context.Context) {
	tick := time.NewTicker(c.beatEvery())
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := c.heartbeat(ctx); err != nil && ctx.Err() == nil {
			c.log.Error("heartbeat failed", "worker", c.identity().ID, "error", err)
		}
	}
}

// enter changes the worker's state and tells the registry.
func (c *crew) enter(ctx context.Context, state WorkerState) error {
	c.mu.Lock()
	c.info.State = state
	id := c.info.ID
	c.mu.Unlock()
	emit(c.OnEvent, Event{Kind: EventWorker, Worker: id, Code: Code(state)})
	return c.heartbeat(ctx)
}

// heartbeat renews the lease and compares, both ways, what the store and this process think is running.
func (c *crew) heartbeat(ctx context.Context) error {
	c.beating.Lock()
	defer c.beating.Unlock()
	r := c.report()
	c.mu.Lock()
	id, state := c.info.ID, c.info.State
	before := maps.Clone(c.runs) // what is claimed from here on may be missing in the answer
	c.mu.Unlock()
	sent := time.Now()
	heard, err := c.Store.Heartbeat(ctx, id, state, r)
	c.hear(heard, sent, err)
	if errors.Is(err, ErrLeaseLost) {
		err = c.reincarnate(ctx, state)
	} else if err == nil {
		c.renew(sent)
		c.reconcile(id, before, heard.Owned)
	}
	if heard.Stop != "" && ctx.Err() == nil {
		c.dismissed(heard.Stop)
	}
	return err
}

// hear takes notice of how the store answers.
func (c *crew) hear(heard Heard, sent time.Time, err error) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && !errors.Is(err, ErrLeaseLost) {
		c.silence.keep(err, now)
		return
	}
	c.silence = silence{}
	if heard.Clock.IsZero() {
		return
	}
	c.info.LastBeat = heard.Clock.UTC()
	took := now.Sub(sent)
	c.skew = sent.Add(took / 2).Sub(heard.Clock).Round(time.Millisecond)
	if c.skew.Abs() <= took/2+time.Millisecond {
		c.skew = 0 // the answer may have taken that long on its way
	}
}

// silence is since when the store has not answered heartbeats, and how it failed last.
type silence struct {
	since time.Time
	err   error
}

func (s *silence) keep(err error, now time.Time) {
	if s.err = err; s.since.IsZero() {
		s.since = now
	}
}

// dismissed ends the work because somebody asked for it through the store.
func (c *crew) dismissed(by string) {
	c.mu.Lock()
	again := c.info.Stop != ""
	c.info.Stop = by
	c.mu.Unlock()
	if !again {
		c.log.Info("stopping", "why", "asked to by "+by)
		c.dismiss(errors.New("asked to by " + by))
	}
}

// reincarnate continues under a new id after this one was declared gone: its runs belong to others now.
func (c *crew) reincarnate(ctx context.Context, state WorkerState) error {
	old := c.identity().ID
	c.mu.Lock()
	for _, r := range c.runs {
		r.interrupt(ErrLeaseLost)
	}
	c.strays = map[fence]bool{}
	c.mu.Unlock()
	if err := c.register(ctx, state); err != nil {
		return err
	}
	id := c.identity().ID
	c.log.Warn("the lease was lost: the worker continues under a new id", "old", old, "new", id)
	emit(c.OnEvent, Event{Kind: EventWorker, Worker: id, Code: Code(state)})
	return nil
}

// reconcile cancels runs that are no longer ours or shall not go on, and releases what the store has as ours but
// nobody here runs.
func (c *crew) reconcile(id ID, before map[fence]*running, owned []Owned) {
	var orphaned []Outcome
	c.mu.Lock()
	known := make(map[fence]bool, len(owned))
	strays := map[fence]bool{}
	for _, o := range owned {
		f := fence{o.Task, o.ClaimSeq}
		known[f] = true
		switch r := c.runs[f]; {
		case r != nil && o.Cancel:
			r.interrupt(errCancelled)
		case r == nil && c.strays[f]:
			// Seen at two heartbeats: the answer to its claim was lost.
			orphaned = append(orphaned, Outcome{
				Task: o.Task, ClaimSeq: o.ClaimSeq, Worker: id, State: Pending, Uncounted: true, Code: CodeLostInWorker,
			})
		case r == nil:
			strays[f] = true
		}
	}
	c.strays = strays
	for f, r := range before {
		if !known[f] && !r.done && r.task.Worker == id {
			r.interrupt(ErrLeaseLost)
		}
	}
	c.mu.Unlock()
	c.release(orphaned)
}

// leave ends the lease. A store that does not answer is not waited for: the lease runs out by itself.
func (c *crew) leave(cause string) error {
	ctx, cancel := context.WithTimeout(context.Background(), HeartbeatEvery)
	defer cancel()
	c.mu.Lock()
	c.info.State = WorkerGone
	c.mu.Unlock()
	if err := c.Store.Leave(ctx, c.identity().ID, cause, c.report()); err != nil && !errors.Is(err, ErrLeaseLost) {
		return fmt.Errorf("leave the registry: %w", err)
	}
	emit(c.OnEvent, Event{Kind: EventWorker, Worker: c.identity().ID, Code: Code(WorkerGone)})
	return nil
}
