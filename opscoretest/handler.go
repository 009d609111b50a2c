package opscoretest

import (
	"cmp"
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/opscore/opscore"
)

// Handler calls fn once as a worker would call the handler of actor a, without a store: the context has the actor's timeout and
// belongs to a run, whose log and progress become the test's log, and in and result pass through JSON, as between
// processes. It fails the test if an input cannot be decoded by fn's own type, or a result cannot be stored. The error is fn's own.
func Handler[In, Out any](t testing.TB, a opscore.Actor[In, Out], fn func(context.Context, In) (Out, error), in In) (Out, error) {
	t.Helper()
	h := opscore.Handlers{}
	opscore.Handle(h, a, fn)
	r := a.Request(in)
	if err := h.Check(a.Name, r.Args); err != nil {
		t.Fatalf("the handler cannot take this input: %v", err)
	}
	var decoded In
	if err := json.Unmarshal(r.Args, &decoded); err != nil {
		t.Fatalf("decode args of actor %s: %v", a.Name, err)
	}
	task := opscore.Task{
		ID: uuid.Must(uuid.NewV7()), Actor: a.Name, Queue: cmp.Or(a.Queue, opscore.DefaultQueue), State: opscore.Running, Attempt: 1,
		MaxAttempts: cmp.Or(a.MaxAttempts, opscore.DefaultMaxAttempts), ClaimSeq: 1, Worker: uuid.Must(uuid.NewV7()), Labels: a.Labels,
	}
	ctx, cancel := context.WithTimeout(t.Context(), cmp.Or(a.Timeout, opscore.DefaultTimeout))
	defer cancel()
	ctx = opscore.NewContext(ctx, task, func(n opscore.Note) { show(t, n) })
	out, err := fn(ctx, decoded)
	if err != nil {
		return out, err
	}
	doc, err := opscore.FromContext(ctx).Encode(out)
	if err != nil {
		t.Fatal(err)
	}
	var stored Out
	if err := json.Unmarshal(doc, &stored); err != nil {
		t.Fatalf("decode result of actor %s: %v", a.Name, err)
	}
	return stored, nil
}

// show makes a run's news the test's log.
func show(t testing.TB, n opscore.Note) {
	t.Helper()
	for _, l := range n.Log {
		t.Logf("%s %s %s", l.At.Format(time.TimeOnly), l.Level, l.Text)
	}
	if n.Progress >= 0 {
		t.Logf("progress %.0f %% %s", 100*n.Progress, n.Text)
	}
}
