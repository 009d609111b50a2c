package opscoretest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opscore/opscore"
)

// Submitted fails the test unless a task of the actor was submitted whose input matches; a nil match takes any. It returns the latest
// such task, whatever became of it.
func Submitted[In, Out any](e *Env, a opscore.Actor[In, Out], match func(In) bool) opscore.Task {
	e.t.Helper()
	of, all := submitted(e, a.Name)
	for _, t := range of {
		if matches(e, t, match) {
			return t
		}
	}
	switch {
	case len(of) > 0:
		e.t.Fatalf("no task of actor %s that was submitted matches; they are:%s", a.Name, inputs(of))
	case len(all) > 0:
		e.t.Fatalf("no task of actor %s was submitted; others were:%s", a.Name, inputs(all))
	default:
		e.t.Fatalf("no task of actor %s was submitted, nor of any other", a.Name)
	}
	return opscore.Task{}
}

// NotSubmitted fails the test if a task of the actor was submitted whose input matches; a nil match takes any.
func NotSubmitted[In, Out any](e *Env, a opscore.Actor[In, Out], match func(In) bool) {
	e.t.Helper()
	of, _ := submitted(e, a.Name)
	for _, t := range of {
		if matches(e, t, match) {
			e.t.Fatalf("a task of actor %s was submitted:\n%s", a.Name, e.describe(t.ID))
		}
	}
}

func matches[In any](e *Env, t opscore.Task, match func(In) bool) bool {
	e.t.Helper()
	if match == nil {
		return true
	}
	var in In
	if err := json.Unmarshal(t.Args, &in); err != nil {
		e.t.Fatalf("decode args of task %s: %v\n%s", t.ID, err, e.describe(t.ID))
	}
	return match(in)
}

// submitted returns the tasks of an actor, and those of all, the latest first.
func submitted(e *Env, actor string) (of, all []opscore.Task) {
	e.t.Helper()
	var ids []opscore.ID
	for t := range e.tasks() {
		ids = append(ids, t.ID)
	}
	for some := range slices.Chunk(ids, 500) {
		whole, err := e.Store.Get(e.t.Context(), some)
		if err != nil {
			e.t.Fatal(err)
		}
		for _, t := range whole {
			all = append(all, t)
			if t.Actor == actor {
				of = append(of, t)
			}
		}
	}
	return of, all
}

// inputs lists what some of the tasks are for.
func inputs(tasks []opscore.Task) string {
	const most = 20
	var b strings.Builder
	for i, t := range tasks {
		if i == most {
			fmt.Fprintf(&b, "\n  and %d more", len(tasks)-most)
			break
		}
		args := string(t.Args)
		if len(args) > 200 {
			args = args[:200] + " …"
		}
		fmt.Fprintf(&b, "\n  %s %s (%s)", t.Actor, args, t.State)
	}
	return b.String()
}

// Attempts fails the test unless handlers have made n attempts at the task; those that a crash or a shutdown ended do not count. It
// returns all of them, oldest first.
func (e *Env) Attempts(id opscore.ID, n int) []opscore.Attempt {
	e.t.Helper()
	t, err := e.Client.Get(e.t.Context(), id)
	if err != nil {
		e.t.Fatal(err)
	}
	if t.Attempt != n {
		e.t.Fatalf("the task has had %d attempts, want %d:\n%s", t.Attempt, n, e.describe(id))
	}
	attempts, err := e.Client.Attempts(e.t.Context(), id)
	if err != nil {
		e.t.Fatal(err)
	}
	return attempts
}

// describe tells all that is known of a task.
func (e *Env) describe(id opscore.ID) string {
	ctx := e.t.Context()
	t, err := e.Client.Get(ctx, id)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "task %s: actor %s, queue %s, %s, attempt %d of %d", id, t.Actor, t.Queue, t.State, t.Attempt, t.MaxAttempts)
	switch {
	case t.State == opscore.Pending && time.Until(t.RunAt) > 0:
		fmt.Fprintf(&b, ", due in %s", time.Until(t.RunAt))
	case t.State == opscore.Pending:
		fmt.Fprintf(&b, ", due since %s", time.Since(t.RunAt))
		if paused := e.paused(t.Queue); paused != "" {
			fmt.Fprintf(&b, ", but its queue is paused by %s", paused)
		}
	case t.State == opscore.Running:
		fmt.Fprintf(&b, ", for %s", time.Since(t.StartedAt))
	}
	fmt.Fprintf(&b, "\n  args %s", t.Args)
	if t.Code != "" {
		fmt.Fprintf(&b, "\n  %s: %s", t.Code, t.Error)
	}
	attempts, err := e.Client.Attempts(ctx, id)
	if err != nil {
		return b.String() + "\n  " + err.Error()
	}
	for _, a := range attempts {
		if !a.EndedAt.IsZero() {
			fmt.Fprintf(&b, "\n  attempt ended %s with %s: %s", a.EndedAt.Format(time.TimeOnly), a.Code, a.Error)
		}
	}
	lines, err := e.Client.Logs(ctx, id)
	if err != nil {
		return b.String() + "\n  " + err.Error()
	}
	for _, l := range lines {
		fmt.Fprintf(&b, "\n  log %s %s", l.Level, l.Text)
	}
	return b.String()
}

// paused says who paused a queue, or "".
func (e *Env) paused(queue string) string {
	paused, err := e.Store.Paused(e.t.Context())
	if err != nil {
		return err.Error()
	}
	for _, p := range paused {
		if p.Queue == queue {
			return p.By
		}
	}
	return ""
}
