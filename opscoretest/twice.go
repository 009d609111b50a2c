package opscoretest

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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
	crash   func() // ends the worker; nil once it has
}

// Effect records that something happened outside of opscore's store, such as a charge or a mail: what a test's stand-in for the
// outside world calls when it does it. What is equal is the same thing twice.
func (tr *Trial) Effect(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	tr.mu.Lock()
	tr.effects = append(tr.effects, text)
	tr.mu.Unlock()
	tr.point("after " + text)
}

// Twice shows what a handler does twice, or not at all, if its worker crashes. It runs the handler on in once without a crash, and then
// once for every place where the worker might die: at each call that it makes to opscore (Submit, Cancel and Retry through the Client, Log, Progress),
// after each [Trial.Effect], and after its end, before the result is recorded. Each time the task runs again on the next worker. The
// test fails, naming place and effects, if in the end something happened more often than without a crash, or less often, or the task
// ended otherwise. A task that was submitted with equal args counts as an effect.
//
// Each run is a trial of its own, in fake time: handler makes a handler for it, with stand-ins that know nothing of other trials, and uses the t that
// it is given. At a
// crash the handler's goroutine ends inside the call; deferred functions still run, which a real crash would not do.
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
	path := filepath.Join(t.TempDir(), "opscore.db")
	watch(t, stillFor, func(p *pulse) {
		synctest.Test(t, func(t *testing.T) {
			p.enter()
			store, err := sqlite.Open(path)
			if err != nil {
				t.Fatalf("open store: %v", err)
			}
			tr := &Trial{Client: &opscore.Client{Store: &overheard{Store: store}}, Store: store, crashAt: crashAt}
			tr.Client.Store.(*overheard).trial = tr
			a := opscore.Actor[In, Out]{Name: "trial"}
			h := opscore.Handlers{}
			opscore.Handle(h, a, attempt(tr, handler(t, tr)))
			e := newFake(t, store, h, &p.beats)
			defer p.leave()
			defer e.close(store.Close)
			e.start()
			crashed := make(chan struct{})
			tr.crash = func() {
				e.hand.(*local).gate.kill()
				close(crashed)
			}
			sub, err := a.Submit(t.Context(), e.Client, in)
			if err != nil {
				t.Fatal(err)
			}
			tr.followCrash(e, crashed, sub.ID)
			o = tr.end(e, sub.ID)
		})
	})
	return o
}

// followCrash waits for the crash, or for the task's end if there is none, and gives the task the next worker.
func (tr *Trial) followCrash(e *Env, crashed <-chan struct{}, id opscore.ID) {
	for began := time.Now(); ; e.step(time.Since(began)) {
		select {
		case <-crashed:
			e.CrashWorker()
			return
		default:
		}
		t, err := e.Client.Get(e.t.Context(), id)
		if err != nil {
			e.t.Fatal(err)
		}
		if t.State.Terminal() || e.hopeless(t, time.Since(began)) != "" {
			return
		}
	}
}

// attempt wraps a handler, so that a trial hears of what it does.
func attempt[In, Out any](tr *Trial, fn func(context.Context, In) (Out, error)) func(context.Context, In) (Out, error) {
	return func(ctx context.Context, in In) (Out, error) {
		run := opscore.FromContext(ctx)
		task := opscore.Task{
			ID: run.ID, Actor: run.Actor, Queue: run.Queue, Attempt: run.Attempt, MaxAttempts: run.MaxAttempts,
			ClaimSeq: run.ClaimSeq, Worker: run.Worker, Labels: run.Labels,
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

// overheard is the store of a handler's client: each call is two places to crash at.
type overheard struct {
	opscore.Store
	trial *Trial
}

// Insert implements [opscore.Inserter].
func (o *overheard) Insert(ctx context.Context, requests []opscore.Request) ([]opscore.Inserted, error) {
	defer o.between("Submit " + requests[0].Actor)()
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
