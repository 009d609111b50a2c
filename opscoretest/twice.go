package opscoretest

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

// Trial is the world of one run of a handler under [Twice]: a store of its own, and a record of what happened.
type Trial struct {
	Client *opscore.Client // for the handler
	Store  *sqlite.Store

	crashAt int // the point to crash at; 0 for none

	mu      sync.Mutex
	points  []string // that were passed
	effects []string
	known   map[string]bool // keys of effects
	crash   func()          // ends the worker
}

// Effect records that something happens outside of opscore's store, such as a mail: what a test's stand-in for the outside world calls in
// order to do it. What is equal is the same thing twice. The worker may crash before and after: then Effect does not return, so a
// stand-in that holds a lock must release it with defer, and one with a memory of its own would remember what has not happened: see [Trial.EffectOnce].
func (tr *Trial) Effect(format string, args ...any) { tr.EffectOnce("", format, args...) }

// EffectOnce is Effect for a world that knows keys, as a bank does that takes a charge with a key that it has had for the same charge: with
// a key that was there before, nothing happens. An empty key is none.
func (tr *Trial) EffectOnce(key, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	tr.point("before " + text)
	tr.mu.Lock()
	if !tr.known[key] {
		tr.effects = append(tr.effects, text)
		tr.known[key] = key != ""
	}
	tr.mu.Unlock()
	tr.point("after " + text)
}

// Twice shows what a handler does twice, or not at all, if its worker crashes. It runs the handler on in once without a crash, and then
// once for every place where the worker might die: around each effect ([Trial.Effect]), Submit, Cancel and Retry of the Client, at Log and Progress, and after
// the handler's end, before its result is recorded. Each time the task runs again on the next worker. The
// test fails, naming place and effects, if in the end something happened more often than without a crash, or less often, or the task
// ended otherwise. A task that was submitted with equal args counts as an effect. The task has three attempts.
//
// Each run is a trial of its own, in fake time: handler makes a handler for it, with stand-ins that know nothing of other trials, and uses the t that
// it is given. At a crash the handler's goroutine ends inside the call. Deferred functions still run, and so do other goroutines that the
// handler has started, which a real crash would not allow.
func Twice[In, Out any](t *testing.T, handler func(*testing.T, *Trial) func(context.Context, In) (Out, error), in In) {
	t.Helper()
	once := try(t, handler, in, 0)
	for i, place := range once.points {
		again := try(t, handler, in, i+1)
		if report := again.compare(once); report != "" {
			t.Errorf("with a crash %s (%d of %d):%s", place, i+1, len(once.points), report)
		}
	}
}

// try runs one trial.
func try[In, Out any](t *testing.T, handler func(*testing.T, *Trial) func(context.Context, In) (Out, error), in In, crashAt int) (o ended) {
	t.Helper()
	h := opscore.Handlers{}
	inBubbleOf(t, stillFor, h, func(t *testing.T, e *Env) {
		tr := &Trial{Store: e.Store.(*sqlite.Store), crashAt: crashAt, known: map[string]bool{}}
		tr.Client = &opscore.Client{Store: &overheard{e.Client.Store, tr}, OnEvent: tr.submitted}
		a := opscore.Actor[In, Out]{Name: "trial", MaxAttempts: 3}
		opscore.Handle(h, a, attempt(tr, handler(t, tr)))
		tr.points, tr.effects = nil, nil // of making it
		e.start()
		gate := e.hand.(*local).gate
		tr.crash = gate.kill
		sub, err := a.Submit(t.Context(), e.Client, in)
		if err != nil {
			t.Fatal(err)
		}
		e.follow(sub.ID, func(t opscore.Task) bool { return t.State.Terminal() || gate.killed() })
		if gate.killed() {
			e.CrashWorker()
		}
		o = tr.end(e, sub.ID)
	})
	return o
}

// attempt wraps a handler, so that a trial hears of what it does.
func attempt[In, Out any](tr *Trial, fn func(context.Context, In) (Out, error)) func(context.Context, In) (Out, error) {
	return func(ctx context.Context, in In) (Out, error) {
		run := opscore.FromContext(ctx)
		task := opscore.Task{
			ID: run.ID, Actor: run.Actor, Queue: run.Queue, Attempt: run.Attempt, MaxAttempts: run.MaxAttempts,
			ClaimSeq: run.ClaimSeq, Worker: run.Worker, Labels: run.Labels, Origin: run.Origin,
		}
		out, err := fn(opscore.NewContext(ctx, task, func(n opscore.Note) { tr.heard(run, n) }), in)
		tr.point("after its end")
		return out, err
	}
}

// heard passes on what the handler logs and how far it is.
func (tr *Trial) heard(run *opscore.Run, n opscore.Note) {
	for _, l := range n.Log {
		tr.point(fmt.Sprintf("at Log %q", l.Text))
		run.Log.Info(l.Text)
	}
	if n.Progress >= 0 {
		tr.point(fmt.Sprintf("at Progress %.0f %%", 100*n.Progress))
		run.Progress(n.Progress, n.Text)
	}
}

// point is a place where the worker may crash: then the goroutine ends here.
func (tr *Trial) point(place string) {
	tr.mu.Lock()
	tr.points = append(tr.points, place)
	crash := tr.crash
	if len(tr.points) != tr.crashAt {
		crash = nil
	}
	tr.mu.Unlock()
	if crash != nil {
		crash()
		runtime.Goexit()
	}
}

// ended is what a trial came to.
type ended struct {
	points  []string
	effects map[string]int
	end     string
}

// end waits for the task's end and counts what happened.
func (tr *Trial) end(e *Env, id opscore.ID) ended {
	t := e.MustEnd(id)
	o := ended{effects: map[string]int{}, end: string(t.State)}
	if t.State != opscore.Completed {
		first, _, _ := strings.Cut(t.Error, "\n")
		o.end += ": " + first
	}
	_, all := submitted(e, "")
	for _, other := range all {
		if other.ID != id {
			o.effects[fmt.Sprintf("submitted %s %s", other.Actor, other.Args)]++
		}
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, text := range tr.effects {
		o.effects[text]++
	}
	o.points = tr.points
	return o
}

// compare says how a trial with a crash differs from the one without.
func (o ended) compare(once ended) string {
	var b strings.Builder
	texts := slices.Compact(slices.Sorted(slices.Values(slices.Concat(slices.Collect(maps.Keys(o.effects)), slices.Collect(maps.Keys(once.effects))))))
	for _, text := range texts {
		switch got, want := o.effects[text], once.effects[text]; {
		case want == 0:
			fmt.Fprintf(&b, "\n  happened only then: %s", text)
		case got == 0:
			fmt.Fprintf(&b, "\n  never happened: %s", text)
		case got > want:
			fmt.Fprintf(&b, "\n  happened %s: %s", times(got, want), text)
		case got < want:
			fmt.Fprintf(&b, "\n  happened only %d of %d times: %s", got, want, text)
		}
	}
	if o.end != once.end {
		fmt.Fprintf(&b, "\n  the task ended %s; without a crash it is %s", o.end, once.end)
	}
	return b.String()
}

func times(got, want int) string {
	if got == 2 && want == 1 {
		return "twice"
	}
	return fmt.Sprintf("%d times instead of %d", got, want)
}

// submitted hears of submits, also of those in transactions.
func (tr *Trial) submitted(e opscore.Event) {
	if e.Kind == opscore.EventSubmitted {
		tr.point("after Submit " + e.Actor)
	}
}

// overheard is the store of a handler's client: each call is two places to crash at.
type overheard struct {
	opscore.Store
	trial *Trial
}

// Insert implements [opscore.Inserter].
func (o *overheard) Insert(ctx context.Context, requests []opscore.Request) ([]opscore.Inserted, error) {
	o.trial.point("before Submit " + requests[0].Actor)
	return o.Store.Insert(ctx, requests)
}

// Cancel implements [opscore.Tasks].
func (o *overheard) Cancel(ctx context.Context, ids []opscore.ID, by string) ([]opscore.Task, error) {
	defer o.between("Cancel")()
	return o.Store.Cancel(ctx, ids, by)
}

// Retry implements [opscore.Tasks].
func (o *overheard) Retry(ctx context.Context, ids []opscore.ID, by string) ([]opscore.Task, error) {
	defer o.between("Retry")()
	return o.Store.Retry(ctx, ids, by)
}

func (o *overheard) between(what string) (after func()) {
	o.trial.point("before " + what)
	return func() { o.trial.point("after " + what) }
}
