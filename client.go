package opscore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Client submits tasks and looks after them. It needs only a store; it is safe for concurrent use.
type Client struct {
	Store   Store
	MaxArgs int         // bytes of a task's args; 0 means 1 MiB
	OnEvent func(Event) // called for each event; nil for none
	// Retention is that of the deployment's keepers: it tells an id that was removed from one that never was.
	Retention Retention

	mu   sync.Mutex
	seen registryView
}

// Submission is the answer to one request.
type Submission struct {
	ID        ID      `json:"id"`
	Duplicate bool    `json:"duplicate,omitempty"` // nothing was stored: ID is the task that was there
	Warnings  []Cause `json:"warnings,omitempty"`  // why the task, although stored, would not start now; what changed within the last second may be missing
}

// Submit stores the requests, all or none, and returns once they are durable: an acknowledged task survives every
// crash. It never waits for a worker. Wrong input is an [ErrInvalid] or has [CodeTooLarge], and stores nothing.
// After an error of the store the tasks may or may not exist; submit again with the same IDs to be sure.
func (c *Client) Submit(ctx context.Context, requests ...Request) ([]Submission, error) {
	if len(requests) == 0 {
		return nil, nil
	}
	requests = slices.Clone(requests) // the caller's stay as they are
	inserter, err := c.prepare(requests)
	if err != nil {
		return nil, fmt.Errorf("submit: %w", err)
	}
	inserted, err := inserter.Insert(ctx, requests)
	if err != nil {
		return nil, fmt.Errorf("submit: %w", err)
	}
	subs := make([]Submission, len(requests))
	warn := c.warner(ctx)
	for i, in := range inserted {
		r := &requests[i]
		subs[i] = Submission{ID: in.ID, Duplicate: in.Duplicate, Warnings: warn(r.Queue, r.Actor)}
		e := Event{Kind: EventSubmitted, Task: in.ID, Actor: r.Actor, Queue: r.Queue}
		if !in.Duplicate {
			e.State = Pending
		}
		emit(c.OnEvent, e)
	}
	return subs, nil
}

// prepare completes and validates the requests and picks the one inserter they all go through.
func (c *Client) prepare(requests []Request) (Inserter, error) {
	var inserter Inserter = c.Store
	for i := range requests {
		r := &requests[i]
		r.complete()
		if err := r.validate(cmp.Or(c.MaxArgs, DefaultMaxArgs)); err != nil {
			return nil, err
		}
		if r.ID == (ID{}) {
			id, err := uuid.NewV7()
			if err != nil {
				return nil, fmt.Errorf("make an id: %w", err)
			}
			r.ID = id
		}
		if r.via != nil {
			inserter = r.via
		}
	}
	for i := range requests {
		if via := requests[i].via; via != nil && via != inserter || via == nil && inserter != Inserter(c.Store) {
			return nil, invalid("requests of one submit must share one transaction")
		}
	}
	return inserter, nil
}

// viewFor is how long a client believes that tasks of a kind start because they did when it last looked.
const viewFor = time.Second

// registryView is what decides whether a task would start.
type registryView struct {
	at      time.Time
	workers []WorkerInfo
	paused  []Pause
}

// warner returns the warnings for each kind of task. What it warns of is true now; that there is nothing to warn of may be
// true of up to a second ago, so that most submits do not read the registry. The tasks are stored by now: a registry that
// cannot be read costs the warnings, not the submit.
func (c *Client) warner(ctx context.Context) func(queue, actor string) []Cause {
	c.mu.Lock()
	view := c.seen
	c.mu.Unlock()
	fresh := false
	look := func() {
		fresh, view = true, c.look(ctx)
	}
	if time.Since(view.at) >= viewFor {
		look()
	}
	type kind struct{ queue, actor string }
	known := map[kind][]Cause{}
	return func(queue, actor string) []Cause {
		k := kind{queue, actor}
		w, ok := known[k]
		if !ok {
			if w = view.warnings(queue, actor); len(w) > 0 && !fresh {
				look()
				w = view.warnings(queue, actor)
			}
			known[k] = w
		}
		return w
	}
}

// Warnings says why a task of the queue and the actor would not start now; nothing, too, if the registry cannot be read.
func (c *Client) Warnings(ctx context.Context, queue, actor string) []Cause {
	return c.look(ctx).warnings(queue, actor)
}

// look reads the registry; the zero view says that it cannot be read.
func (c *Client) look(ctx context.Context) registryView {
	view := registryView{at: time.Now()}
	var err error
	if view.workers, err = c.Store.Workers(ctx, 0); err == nil {
		view.paused, err = c.Store.Paused(ctx)
	}
	if err != nil {
		view = registryView{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = view
	return view
}

func (v registryView) warnings(queue, actor string) []Cause {
	if v.at.IsZero() {
		return nil
	}
	return submitWarnings(queue, actor, v.workers, v.paused)
}

// Get returns a task, or [ErrTaskNotFound].
func (c *Client) Get(ctx context.Context, id ID) (Task, error) {
	tasks, err := c.Store.Get(ctx, []ID{id})
	if err != nil {
		return Task{}, fmt.Errorf("get task %s: %w", id, err)
	}
	if len(tasks) == 0 {
		return Task{}, notFound(id)
	}
	return tasks[0], nil
}

func notFound(id ID) error {
	return &Error{Code: CodeTaskNotFound, Message: fmt.Sprintf("task %s not found", id)}
}

// List returns the tasks that match, newest first. To page on, set Before to the last one's ID.
func (c *Client) List(ctx context.Context, f Filter) ([]Task, error) {
	if f.Limit < 0 || f.Limit > 1000 {
		return nil, invalid("limit %d: must be between 1 and 1000", f.Limit)
	}
	f.Limit = cmp.Or(f.Limit, 50)
	for k := range f.Labels {
		if err := ValidName("label", k); err != nil {
			return nil, err
		}
	}
	tasks, err := c.Store.List(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	return tasks, nil
}

// Count counts the tasks by queue, actor and state. It reads every task: seconds on millions.
func (c *Client) Count(ctx context.Context) ([]Count, error) {
	counts, err := c.Store.Count(ctx)
	if err != nil {
		return nil, fmt.Errorf("count tasks: %w", err)
	}
	return counts, nil
}

// Wait returns the task once it is terminal. It looks again after 2 ms, then less and less often, up to once a second.
func (c *Client) Wait(ctx context.Context, id ID) (Task, error) {
	for delay := 2 * time.Millisecond; ; delay = min(delay*3/2, time.Second) {
		t, err := c.Get(ctx, id)
		if err != nil && ctx.Err() != nil {
			return t, fmt.Errorf("wait for task %s: %w", id, context.Cause(ctx)) // a look that was interrupted says less
		}
		if err != nil || t.State.Terminal() {
			return t, err
		}
		select {
		case <-ctx.Done():
			return t, fmt.Errorf("wait for task %s: %w", id, context.Cause(ctx))
		case <-time.After(delay):
		}
	}
}

// Cancel ends a task on behalf of by: a pending one at once, a running one by cancelling its context, at its worker's
// next heartbeat at the latest. A task that is over already stays as it is. It returns the task as it is then.
func (c *Client) Cancel(ctx context.Context, id ID, by string) (Task, error) {
	tasks, err := c.Store.Cancel(ctx, []ID{id}, by)
	if err != nil {
		return Task{}, fmt.Errorf("cancel task %s: %w", id, err)
	}
	if len(tasks) == 0 {
		return Task{}, notFound(id)
	}
	emit(c.OnEvent, taskEvent(EventCancelled, &tasks[0]))
	return tasks[0], nil
}

// Retry puts a failed or cancelled task back on behalf of by: due now, with all its attempts again.
// In another state, or if its unique key has a new holder, it is an [ErrConflict].
func (c *Client) Retry(ctx context.Context, id ID, by string) (Task, error) {
	tasks, err := c.Store.Retry(ctx, []ID{id}, by)
	if err != nil {
		return Task{}, fmt.Errorf("retry task %s: %w", id, err)
	}
	emit(c.OnEvent, taskEvent(EventRetried, &tasks[0]))
	return tasks[0], nil
}

// Attempts returns a task's attempts, oldest first, its current or completing one included.
func (c *Client) Attempts(ctx context.Context, id ID) ([]Attempt, error) {
	t, err := c.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	attempts, err := c.Store.Attempts(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("read attempts of task %s: %w", id, err)
	}
	if t.State != Running && t.State != Completed {
		return attempts, nil
	}
	// The row itself holds this attempt: history costs nothing on the happy path.
	last := Attempt{Task: id, ClaimSeq: t.ClaimSeq, Worker: t.Worker, StartedAt: t.StartedAt, EndedAt: t.FinishedAt}
	if t.State == Completed {
		last.Code = Code(Completed)
	}
	workers, err := c.Store.Workers(ctx, Forever)
	if err != nil {
		return nil, fmt.Errorf("read workers: %w", err)
	}
	for _, w := range workers {
		if w.ID == t.Worker {
			last.Build = w.Build
		}
	}
	return append(attempts, last), nil
}

// Logs returns what the task's attempts logged, oldest first.
func (c *Client) Logs(ctx context.Context, id ID) ([]LogLine, error) {
	if _, err := c.Get(ctx, id); err != nil {
		return nil, err
	}
	lines, err := c.Store.Logs(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("read logs of task %s: %w", id, err)
	}
	return lines, nil
}

// Pause stops the start of tasks from a queue, on behalf of by; running ones go on.
func (c *Client) Pause(ctx context.Context, queue, by, comment string) error {
	if err := ValidName("queue", queue); err != nil {
		return err
	}
	defer c.forget()
	return c.Store.Pause(ctx, []string{queue}, by, comment)
}

// forget makes the next submit look at the registry.
func (c *Client) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = registryView{}
}

// Resume ends the pause of a queue.
func (c *Client) Resume(ctx context.Context, queue string) error {
	if err := ValidName("queue", queue); err != nil {
		return err
	}
	return c.Store.Resume(ctx, []string{queue})
}
