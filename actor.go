package opscore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Actor is a named kind of work with input In and result Out, both encoded as JSON. Its fields are the
// defaults of its tasks; a zero field means the general default. Copy it freely; it is a value.
type Actor[In, Out any] struct {
	Name         string
	Queue        string
	Priority     int
	After        time.Duration
	ExpiresAfter time.Duration
	MaxAttempts  int
	Timeout      time.Duration
	Unique       func(In) string // the unique key of an input; "" for none
	Labels       map[string]string
	Retry        Backoff // applied by the worker that runs the task
}

// Request makes a request to run the actor on in, to be given to [Client.Submit] with others.
// An input that does not encode is reported by Submit.
func (a Actor[In, Out]) Request(in In, opts ...Option) Request {
	r := Request{
		Actor: a.Name, Queue: a.Queue, Priority: a.Priority, After: a.After, ExpiresAfter: a.ExpiresAfter,
		MaxAttempts: a.MaxAttempts, Timeout: a.Timeout, Labels: a.Labels,
	}
	if a.Unique != nil {
		r.UniqueKey = a.Unique(in)
	}
	args, err := encode(in)
	if err != nil {
		r.err = invalid("args of actor %s: %s", a.Name, err)
	}
	r.Args = args
	r.apply(opts)
	return r
}

// Submit stores one task that runs the actor on in. It returns once the task is durable, or, with a
// store's In option, part of the caller's transaction.
func (a Actor[In, Out]) Submit(ctx context.Context, c *Client, in In, opts ...Option) (Submission, error) {
	subs, err := c.Submit(ctx, a.Request(in, opts...))
	if err != nil {
		return Submission{}, err
	}
	return subs[0], nil
}

// Wait returns the task's result as soon as it is completed, or a [*TaskError] if it ends otherwise.
func (a Actor[In, Out]) Wait(ctx context.Context, c *Client, id ID) (Out, error) {
	var out Out
	t, err := c.Wait(ctx, id)
	if err != nil {
		return out, err
	}
	if t.Actor != a.Name {
		return out, invalid("task %s belongs to actor %s, not %s", id, t.Actor, a.Name)
	}
	if t.State != Completed {
		return out, &TaskError{Task: t}
	}
	if err := json.Unmarshal(t.Result, &out); err != nil {
		return out, fmt.Errorf("decode result of task %s: %w", id, err)
	}
	return out, nil
}

// TaskError says that a task ended without a result.
type TaskError struct{ Task Task }

func (e *TaskError) Error() string {
	if e.Task.Error == "" {
		return fmt.Sprintf("task %s is %s", e.Task.ID, e.Task.State)
	}
	return fmt.Sprintf("task %s is %s (%s): %s", e.Task.ID, e.Task.State, e.Task.Code, e.Task.Error)
}

// Handlers maps actor names to the handlers of one worker. Fill it with [Handle] before the worker runs.
type Handlers map[string]Handler

// Handler runs the tasks of one actor: what [Handle] makes of a typed function.
type Handler struct {
	queue    string
	retry    Backoff
	in       reflect.Type
	defaults Request // as the actor gives them
	check    func(args []byte) error
	run      func(ctx context.Context, args []byte) ([]byte, error)
	err      error
}

// Handle registers fn as the handler of actor a. Registering an actor twice, with invalid fields or with a name that begins with
// [ReservedPrefix] makes the worker refuse to start.
func Handle[In, Out any](h Handlers, a Actor[In, Out], fn func(context.Context, In) (Out, error)) {
	handle(h, a, fn)
	if strings.HasPrefix(a.Name, ReservedPrefix) {
		refused := h[a.Name]
		refused.err = invalid("actor %s: names that begin with %s are opscore's own", a.Name, ReservedPrefix)
		h[a.Name] = refused
	}
}

func handle[In, Out any](h Handlers, a Actor[In, Out], fn func(context.Context, In) (Out, error)) {
	decode := func(args []byte) (in In, err error) {
		if err := decodeStrict(args, &in); err != nil {
			return in, argsError{fmt.Errorf("args of actor %s: %w", a.Name, err)}
		}
		return in, nil
	}
	probe := Request{
		Actor: a.Name, Queue: a.Queue, Priority: a.Priority, After: a.After, ExpiresAfter: a.ExpiresAfter,
		MaxAttempts: a.MaxAttempts, Timeout: a.Timeout, Labels: a.Labels,
	}
	defaults := probe
	probe.complete()
	err := cmp.Or(probe.validate(DefaultMaxArgs), a.Retry.validate())
	if err != nil {
		err = fmt.Errorf("actor %s: %w", a.Name, err)
	}
	if _, twice := h[a.Name]; twice {
		err = invalid("actor %s has two handlers", a.Name)
	}
	h[a.Name] = Handler{
		queue:    probe.Queue,
		retry:    a.Retry,
		in:       reflect.TypeFor[In](),
		defaults: defaults,
		err:      err,
		check: func(args []byte) error {
			_, err := decode(args)
			return err
		},
		run: func(ctx context.Context, args []byte) ([]byte, error) {
			in, err := decode(args)
			if err != nil {
				return nil, err
			}
			out, err := fn(ctx, in)
			if err != nil {
				return nil, err
			}
			result, err := encode(out)
			if err != nil {
				return nil, &resultError{fmt.Sprintf("result of actor %s: %s", a.Name, err)}
			}
			return result, nil
		},
	}
}

// Check reports whether the actor's handler could decode args, before anything is stored.
func (h Handlers) Check(actor string, args []byte) error {
	handler, ok := h[actor]
	if !ok {
		return invalid("actor %q is not registered; registered: %v", actor, h.Actors())
	}
	if err := handler.check(args); err != nil {
		return invalid("%s", err)
	}
	return nil
}

// Actors returns the sorted names of the registered actors.
func (h Handlers) Actors() []string { return slices.Sorted(maps.Keys(h)) }

// Queues returns the sorted default queues of the registered actors.
func (h Handlers) Queues() []string {
	set := map[string]bool{}
	for _, handler := range h {
		set[handler.queue] = true
	}
	return slices.Sorted(maps.Keys(set))
}

func encode(v any) ([]byte, error) {
	if raw, ok := v.(json.RawMessage); ok && raw != nil {
		if !json.Valid(raw) {
			return nil, errors.New("not valid JSON: " + syntaxError(raw))
		}
		return raw, nil
	}
	return json.Marshal(v)
}

// decodeStrict decodes one JSON document and refuses unknown fields: an argument that nobody reads is a mistake
// of the sender. A struct{} input takes null as well.
func decodeStrict(doc []byte, v any) error {
	if raw, ok := v.(*json.RawMessage); ok {
		*raw = doc
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON document")
	}
	return nil
}
