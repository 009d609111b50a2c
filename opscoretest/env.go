package opscoretest

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opscore/opscore"
)

// Env is what a test works with: a store, a client of it, a worker and a keeper at work. Its methods are for the test's own
// goroutine, and not for its subtests.
type Env struct {
	Client   *opscore.Client
	Store    opscore.Store // a *sqlite.Store or a *postgres.Store
	Database string        // where the store is, for other programs: a path or a postgres:// URL
	Broker   string        // the broker's URL; "" if there is none
	Tier     Tier

	t        *testing.T
	fake     bool          // time is
	patience time.Duration // how long a test waits for something in real time
	pulse    *pulse
	tap      *tap
	hire     func() (hand, error)
	keep     func() (stop func())
	hand     hand // nil if there is no worker
	crashed  []hand
	unkeep   func()
	dropped  time.Time // until then the store cannot be reached
	faults   faults
}

// Bounds of what is waited for.
const (
	maxFakeWait  = 365 * 24 * time.Hour
	maxFakeDrain = 24 * time.Hour
	maxFakeDue   = time.Hour // that a task may be due while no other is running
	heedWithin   = 10 * time.Second
)

// Advance lets d pass, and everything that is due in it happen. In fake time that takes no time; with [Live] it does.
func (e *Env) Advance(d time.Duration) {
	e.t.Helper()
	e.pulse.beat()
	if !e.fake {
		<-time.After(d)
		return
	}
	for end := time.Now().Add(d); time.Until(end) > 0; {
		if rest := e.idle(end); rest > worthAHalt {
			e.halt(rest)
			continue
		}
		time.Sleep(min(time.Until(end), worthAHalt))
	}
	synctest.Wait()
}

// Drain lets time pass until no task is running or due. Tasks that wait for a later time, as after a failed attempt, are left
// waiting; so are, with a line in the test's log, those that no live worker runs. It fails the test if there is no worker at all, or if
// it takes more than a day of fake time or [Options].Patience of real time.
func (e *Env) Drain() {
	e.t.Helper()
	for began := time.Now(); ; e.step(time.Since(began)) {
		busy, left := e.busy()
		switch {
		case len(busy) == 0 && len(left) > 0 && len(e.workers()) == 0:
			e.t.Fatalf("%s\n%s", e.nobody(left[0]), e.describe(left[0].ID))
		case len(busy) == 0:
			for _, t := range left {
				e.t.Logf("Drain leaves task %s: %s", t.ID, e.nobody(t))
			}
			return
		}
		for _, t := range busy {
			if why := e.stuck(t); why != "" {
				e.t.Fatalf("%s\n%s", why, e.describe(t.ID))
			}
		}
		if why := e.ended(); why != "" {
			e.t.Fatal(why)
		}
		if limit := e.limit(maxFakeDrain); time.Since(began) > limit && !e.faulty() {
			e.t.Fatalf("%d tasks are still due or running after %s, such as this one:\n%s%s", len(busy), limit, e.describe(busy[0].ID), e.doing())
		}
	}
}

// busy returns the tasks that are running or due, and those among the due ones that nobody runs.
func (e *Env) busy() (busy, left []opscore.Task) {
	e.t.Helper()
	workers := e.workers()
	for t := range e.tasks(opscore.Pending, opscore.Running) {
		switch {
		case t.State == opscore.Running || !t.RunAt.After(time.Now()) && takes(workers, t):
			busy = append(busy, t)
		case !t.RunAt.After(time.Now()):
			left = append(left, t)
		}
	}
	return busy, left
}

// tasks returns those in the given states, or in any, the latest first and without their args and results.
func (e *Env) tasks(states ...opscore.State) iter.Seq[opscore.Task] {
	return func(yield func(opscore.Task) bool) {
		e.t.Helper()
		f := opscore.Filter{States: states, Limit: 1000}
		for {
			page, err := e.Client.List(e.t.Context(), f)
			if err != nil {
				e.t.Fatal(err)
			}
			if len(page) == 0 {
				return
			}
			for _, t := range page {
				if !yield(t) {
					return
				}
				f.Before = t.ID
			}
		}
	}
}

// MustComplete lets time pass until the task is over, and fails the test, telling the task's state, errors and log, unless it
// completed. It fails at once if no worker runs such tasks or if the handler ignores its timeout. It gives up after a year of fake
// time or [Options].Patience of real time.
func (e *Env) MustComplete(id opscore.ID) opscore.Task {
	e.t.Helper()
	t := e.MustEnd(id)
	if t.State != opscore.Completed {
		e.t.Fatalf("the task did not complete:\n%s", e.describe(id))
	}
	return t
}

// Failed is [Env.MustComplete] for a task that must fail, with an error or for a code that contains want.
func (e *Env) Failed(id opscore.ID, want string) opscore.Task {
	e.t.Helper()
	t := e.MustEnd(id)
	switch {
	case t.State != opscore.Failed:
		e.t.Fatalf("the task did not fail:\n%s", e.describe(id))
	case !strings.Contains(t.Error, want) && !strings.Contains(string(t.Code), want):
		e.t.Fatalf("the task failed, but not with %q:\n%s", want, e.describe(id))
	}
	return t
}

// MustEnd is [Env.MustComplete] for a task that may end in any way.
func (e *Env) MustEnd(id opscore.ID) opscore.Task {
	e.t.Helper()
	return e.follow(id, func(t opscore.Task) bool { return t.State.Terminal() })
}

// follow lets time pass until the task is as wanted.
func (e *Env) follow(id opscore.ID, wanted func(opscore.Task) bool) opscore.Task {
	e.t.Helper()
	for began := time.Now(); ; {
		t, err := e.Client.Get(e.t.Context(), id)
		if err != nil {
			e.t.Fatal(err)
		}
		if wanted(t) {
			return t
		}
		if why := e.hopeless(t, time.Since(began)); why != "" {
			e.t.Fatalf("%s\n%s", why, e.describe(id))
		}
		if rest := time.Until(t.RunAt); e.fake && t.State == opscore.Pending && rest > 0 {
			e.Advance(rest)
			continue
		}
		e.step(time.Since(began))
	}
}

// step lets a moment pass. Moments grow, so that long tasks are not looked at all the time.
func (e *Env) step(waited time.Duration) {
	e.t.Helper()
	if e.fake {
		e.Advance(min(max(10*time.Millisecond, waited/10), max(time.Second, waited/200)))
		return
	}
	<-time.After(min(max(2*time.Millisecond, waited/10), 100*time.Millisecond))
}

// limit is how long something may take that may take as long as fake in fake time.
func (e *Env) limit(fake time.Duration) time.Duration {
	if e.fake {
		return fake
	}
	return e.patience
}

// hopeless says why there is no use in waiting for a task, or "".
func (e *Env) hopeless(t opscore.Task, waited time.Duration) string {
	due := time.Since(t.RunAt)
	if t.State == opscore.Pending && due >= 0 && !takes(e.workers(), t) {
		return e.nobody(t)
	}
	if why := e.stuck(t); why != "" {
		return why
	}
	if why := e.ended(); why != "" {
		return why
	}
	limit := e.limit(maxFakeWait)
	switch {
	case e.fake && t.State == opscore.Pending && due > maxFakeDue && !e.running() && !e.faulty():
		return fmt.Sprintf("the task has been due for %s and nobody started it", maxFakeDue)
	case !e.fake && t.State == opscore.Pending && -due > limit-waited:
		return fmt.Sprintf("the task is not due for another %s, and the test waits for %s: see Options.Patience, or Run, where time is fake", -due, limit)
	case waited > limit:
		return fmt.Sprintf("the task is not over after %s%s", limit, e.doing())
	}
	return ""
}

// ended says that the worker has ended although nobody asked it to, or "".
func (e *Env) ended() string {
	if e.hand == nil || e.hand.gone() == nil {
		return ""
	}
	return fmt.Sprintf("the worker has ended: %v", e.hand.gone())
}

func (e *Env) faulty() bool { return e.hand != nil && e.hand.faulty() }

// stuck says that a handler goes on although its timeout is over, or "".
func (e *Env) stuck(t opscore.Task) string {
	over := time.Since(t.StartedAt) - time.Duration(t.Timeout)
	waits := t.Suspect() && !t.Alone // for other tasks to end: its handler has not started
	if t.State != opscore.Running || waits || over < heedWithin || e.hand == nil || e.faulty() {
		return ""
	}
	return fmt.Sprintf("the handler of actor %s ignores that its context has ended, %s ago:\n%s\n", t.Actor, over, e.hand.stacks())
}

// running reports whether any task is.
func (e *Env) running() bool {
	e.t.Helper()
	for range e.tasks(opscore.Running) {
		return true
	}
	return false
}

// doing tells what handlers are doing, for the end of a message.
func (e *Env) doing() string {
	if e.hand == nil {
		return ""
	}
	if s := e.hand.stacks(); s != "" {
		return "\nhandlers at work:\n" + s
	}
	return ""
}

// workers returns the live workers, and the test's own whether or not its lease holds just now.
func (e *Env) workers() []opscore.WorkerInfo {
	e.t.Helper()
	registered, err := e.Store.Workers(e.t.Context(), 0)
	if err != nil {
		e.t.Fatal(err)
	}
	var live []opscore.WorkerInfo
	for _, w := range registered {
		if w.Live && (e.hand == nil || w.ID != e.hand.info().ID) {
			live = append(live, w)
		}
	}
	if e.hand != nil {
		live = append(live, e.hand.info())
	}
	return live
}

// takes reports whether one of the workers runs such tasks.
func takes(workers []opscore.WorkerInfo, t opscore.Task) bool {
	return slices.ContainsFunc(workers, func(w opscore.WorkerInfo) bool { return w.Takes(t.Queue, t.Actor) })
}

// nobody is the sentence that says why nobody runs a due task.
func (e *Env) nobody(t opscore.Task) string {
	workers := e.workers()
	if len(workers) == 0 {
		return fmt.Sprintf("no worker is running in this test, so nothing will run the task of actor %s: give handlers to Run, or to Live in its Options", t.Actor)
	}
	var has []string
	for _, w := range workers {
		has = append(has, fmt.Sprintf("actors %s on queues %s", strings.Join(w.Actors, ", "), strings.Join(w.Queues, ", ")))
	}
	return fmt.Sprintf("no live worker has actor %s on queue %s, so nothing will run this task; there is one with %s",
		t.Actor, t.Queue, strings.Join(has, ", one with "))
}
