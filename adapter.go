package opscore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"time"
)

// Adapter lets a worker run tasks that were made of another system's messages: those with an [Adoption.Origin]. A worker without one gives
// them back.
type Adapter interface {
	// Open makes the input for a handler that takes in of the args and the origin of a task, which [FromContext] has. An error is a failed attempt.
	Open(ctx context.Context, in reflect.Type, args json.RawMessage) (json.RawMessage, error)
	// Ended is called with the outcome of an attempt before it is recorded, to store what follows from it. As long as it fails it is called
	// again, and nothing is recorded. It may be called for an attempt whose claim was lost, and for one that is made again.
	Ended(ctx context.Context, t *Task, o *Outcome) error
}

// Defaults returns what the actor asks for of its tasks, a zero field where it says nothing, and its own backoff; ok is false if it has no handler.
func (h Handlers) Defaults(actor string) (r Request, retry Backoff, ok bool) {
	handler, ok := h[actor]
	return handler.defaults, handler.retry, ok
}

// open returns what a handler is called with.
func (c *crew) open(ctx context.Context, h Handler, t *Task) (json.RawMessage, error) {
	if len(t.Origin) == 0 {
		return t.Args, nil
	}
	if c.Adapter == nil {
		return nil, argsError{errors.New("the task was made of another system's message, and this worker has no adapter for it")}
	}
	args, err := c.Adapter.Open(ctx, h.in, t.Args)
	if err != nil {
		return nil, err
	}
	var bad argsError
	if err := h.check(args); errors.As(err, &bad) {
		return nil, fmt.Errorf("TypeError: %w", bad.err) // the message's mistake, not that of this build
	}
	return args, nil
}

// follow stores what follows from an outcome. It reports false if the worker stopped before it could.
func (c *crew) follow(r *running, o *Outcome) bool {
	if c.Adapter == nil || len(r.task.Origin) == 0 {
		return true
	}
	defer c.owe(r, false)
	for backoff := 50 * time.Millisecond; ; backoff = min(2*backoff, HeartbeatEvery) {
		ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), runKey{}, r.run), HeartbeatEvery)
		err := c.adaptEnd(ctx, &r.task, o)
		cancel()
		if err == nil {
			return true
		}
		c.owe(r, true)
		c.log.Error("cannot store what follows from an attempt; its outcome waits", "task", r.task.ID, "retry_in", backoff, "error", err)
		select {
		case <-c.stop:
			return false
		case <-time.After(backoff):
		}
	}
}

// adaptEnd calls the adapter. A panic would come again: what follows is given up.
func (c *crew) adaptEnd(ctx context.Context, t *Task, o *Outcome) (err error) {
	defer func() {
		if v := recover(); v != nil {
			c.log.Error("what follows from an attempt is given up", "task", t.ID, "error", panicError{v, debug.Stack()})
			err = nil
		}
	}()
	return c.Adapter.Ended(ctx, t, o)
}

// owe notes whether an outcome waits for what follows from it: if it still does when the worker stops, its task is given back.
func (c *crew) owe(r *running, owes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.owes = owes
}
