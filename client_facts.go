package opscore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// recently is how long ago a worker may have gone to be of interest to others than its tasks.
const recently = time.Hour

// Facts reads what the store knows about a task, or, for the zero id, about the whole deployment. With an error there are facts too: what
// was read, and that the store did not answer.
func (c *Client) Facts(ctx context.Context, id ID) (Facts, error) {
	began := time.Now()
	f := Facts{ID: id, At: began.UTC(), Kept: Duration(c.Retention.shortest())}
	var err error
	if id == (ID{}) {
		err = c.readDeployment(ctx, &f)
	} else {
		err = c.readTask(ctx, &f)
	}
	asked := Asked{Source: SourceStore}
	if l, ok := c.Store.(Located); ok && err == nil {
		f.Store, err = l.Endpoint(ctx)
		asked.At = f.Store.String()
	}
	asked.Took = Duration(time.Since(began).Round(100 * time.Microsecond))
	if err != nil {
		asked.Err = err.Error()
		err = fmt.Errorf("read facts: %w", err)
	}
	f.Sources = []Asked{asked}
	return f, err
}

// Explain says why a task is where it is, as far as the store knows. Package doctor asks others as well.
func (c *Client) Explain(ctx context.Context, id ID) ([]Cause, error) {
	f, err := c.Facts(ctx, id)
	return Explain(f), err
}

// readTask reads around a task, and again if it went on meanwhile: else what belongs to different moments would be put together.
func (c *Client) readTask(ctx context.Context, f *Facts) error {
	const tries = 3
	for range tries {
		before, err := c.find(ctx, f.ID)
		if err != nil {
			return err
		}
		f.Task = before
		if err := c.readAround(ctx, f); err != nil {
			return err
		}
		after, err := c.find(ctx, f.ID)
		if err != nil {
			return err
		}
		if before == nil && after == nil || before != nil && after != nil && before.State == after.State && before.ClaimSeq == after.ClaimSeq {
			break
		}
		f.Task = after
	}
	return nil
}

// find returns a task, or nil if there is none.
func (c *Client) find(ctx context.Context, id ID) (*Task, error) {
	t, err := c.Get(ctx, id)
	if errors.Is(err, ErrTaskNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t.Args, t.Result = nil, nil // no cause depends on them
	return &t, nil
}

func (c *Client) readAround(ctx context.Context, f *Facts) (err error) {
	t := f.Task
	if t == nil {
		if f.Workers, err = c.Store.Workers(ctx, recently); err == nil {
			err = c.readOrphans(ctx, f, OrphanFilter{Message: f.ID})
		}
		if err == nil {
			err = c.readStand(ctx, f, nil, nil)
		}
		return err
	}
	if f.Attempts, err = c.Store.Attempts(ctx, f.ID); err != nil || t.State.Terminal() {
		if err == nil {
			err = c.readStand(ctx, f, []string{t.Queue}, nil)
		}
		return err
	}
	if f.Workers, err = c.Store.Workers(ctx, recently); err != nil {
		return err
	}
	staffed := slices.ContainsFunc(f.Workers, func(w WorkerInfo) bool { return w.Live && w.Takes(t.Queue, t.Actor) })
	if t.State == Pending && !staffed { // who did it last?
		if f.Workers, err = c.Store.Workers(ctx, Forever); err != nil {
			return err
		}
	}
	if t.State == Running {
		return c.readStand(ctx, f, []string{t.Queue}, nil)
	}
	queues := []string{t.Queue}
	for _, w := range f.Workers {
		if w.Live && w.Takes(t.Queue, t.Actor) {
			queues = append(queues, w.Queues...)
		}
	}
	slices.Sort(queues[1:])
	return c.readStand(ctx, f, slices.Compact(queues), t)
}

// readStand reads where the tasks of the queues stand, or those of all.
func (c *Client) readStand(ctx context.Context, f *Facts, queues []string, of *Task) error {
	stand, err := c.Store.Stand(ctx, queues, of)
	if err != nil {
		return err
	}
	paused, err := c.Store.Paused(ctx)
	if err != nil {
		return err
	}
	f.At, f.Made, f.Loads, f.Ticket = stand.At, stand.Made, stand.Loads, stand.Ticket
	f.Queues = standings(stand.Lines, paused, queues)
	return nil
}

func (c *Client) readOrphans(ctx context.Context, f *Facts, filter OrphanFilter) (err error) {
	if store, ok := c.Store.(Orphans); ok {
		f.Orphans, err = store.ListOrphans(ctx, filter)
	}
	return err
}

func (c *Client) readDeployment(ctx context.Context, f *Facts) (err error) {
	if f.Workers, err = c.Store.Workers(ctx, recently); err != nil {
		return err
	}
	if err := c.readOrphans(ctx, f, OrphanFilter{NewerThan: recently}); err != nil {
		return err
	}
	return c.readStand(ctx, f, nil, nil)
}

// shortest is how long any task that is over is kept at least.
func (r Retention) shortest() time.Duration {
	least := Forever
	for _, s := range []State{Completed, Failed, Cancelled} {
		least = min(least, r.For("", s))
		for q := range r.Queues {
			least = min(least, r.For(q, s))
		}
	}
	return least
}
