// Package opscoretest runs a user's handlers for real inside a test: a live worker on a real store, in fake time.
package opscoretest

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

// Env is what a test of [Run] works with.
type Env struct {
	Client *opscore.Client
	Store  *sqlite.Store

	t *testing.T
}

// Run calls test with a worker for h and a keeper at work on a new SQLite file. It all happens in a bubble of fake time
// (see testing/synctest): time passes only while every goroutine waits, so an hour of backoff takes milliseconds.
// Inside, time.Sleep and timers are fake as well; sockets and subprocesses are not, so a handler under test must not
// wait for them. When test returns, the worker is drained and the file removed. What the worker logs from level Warn up
// becomes the test's log.
func Run(t *testing.T, h opscore.Handlers, test func(t *testing.T, env *Env)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		store, err := sqlite.Open(filepath.Join(dir, "opscore.db"))
		if err != nil {
			t.Fatalf("open store: %v", err)
		}
		stop := start(t, store, h)
		defer func() {
			stop()
			if err := store.Close(); err != nil {
				t.Errorf("close store: %v", err)
			}
		}()
		test(t, &Env{Client: &opscore.Client{Store: store}, Store: store, t: t})
	})
}

// start runs a worker and a keeper, waits until the worker is ready, and returns what stops them.
func start(t *testing.T, store opscore.Store, h opscore.Handlers) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, failed := make(chan struct{}), make(chan error, 1)
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	w := &opscore.Worker{
		Store: store, Handlers: h, Log: log, OnReady: func(opscore.WorkerInfo) { close(ready) },
		// Submits in this process wake the worker; polling 4 times a second would only make fake hours slow.
		Sources: []opscore.Source{opscore.FromStore(store, time.Second)},
	}
	k := &opscore.Keeper{Store: store, Log: log}
	var wg sync.WaitGroup
	wg.Go(func() { failed <- w.Run(ctx) })
	select {
	case <-ready:
	case err := <-failed:
		cancel()
		t.Fatalf("the worker did not start: %v", err)
	}
	wg.Go(func() {
		if err := k.Run(ctx); err != nil {
			t.Errorf("keeper: %v", err)
		}
	})
	return func() {
		cancel()
		wg.Wait()
		if err := <-failed; err != nil {
			t.Errorf("worker: %v", err)
		}
	}
}

// Advance lets d pass, and everything that is due in it happen.
func (e *Env) Advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// Drain lets time pass until no task is running or due. Tasks that wait for a later time, as after a failed attempt,
// are left waiting. It fails the test if that takes more than a day.
func (e *Env) Drain() {
	e.t.Helper()
	// The steps grow with the wait, so that a task that runs for hours is not looked at every few milliseconds.
	for began := time.Now(); ; e.Advance(max(10*time.Millisecond, time.Since(began)/10)) {
		busy := e.busy()
		if len(busy) == 0 {
			return
		}
		if time.Since(began) > 24*time.Hour {
			e.t.Fatalf("tasks are still due or running after a day:\n%s", e.describe(busy[0]))
		}
	}
}

func (e *Env) busy() []opscore.ID {
	e.t.Helper()
	var busy []opscore.ID
	f := opscore.Filter{States: []opscore.State{opscore.Pending, opscore.Running}, Limit: 1000}
	for {
		tasks, err := e.Client.List(e.t.Context(), f)
		if err != nil {
			e.t.Fatal(err)
		}
		if len(tasks) == 0 {
			return busy
		}
		for _, t := range tasks {
			if t.State == opscore.Running || !t.RunAt.After(time.Now()) {
				busy = append(busy, t.ID)
			}
			f.Before = t.ID
		}
	}
}

// MustComplete lets time pass until the task is over, and fails the test, telling the task's state, errors and
// log, unless it completed. It gives up after a year.
func (e *Env) MustComplete(id opscore.ID) opscore.Task {
	e.t.Helper()
	t := e.MustEnd(id)
	if t.State != opscore.Completed {
		e.t.Fatalf("the task did not complete:\n%s", e.describe(id))
	}
	return t
}

// MustEnd lets time pass until the task is over, in whatever way. It gives up after a year.
func (e *Env) MustEnd(id opscore.ID) opscore.Task {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 365*24*time.Hour)
	defer cancel()
	t, err := e.Client.Wait(ctx, id)
	if err != nil {
		e.t.Fatalf("%v\n%s", err, e.describe(id))
	}
	return t
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
	if t.State == opscore.Pending {
		fmt.Fprintf(&b, ", due in %s", time.Until(t.RunAt))
	}
	if t.Code != "" {
		fmt.Fprintf(&b, "\n  %s: %s", t.Code, t.Error)
	}
	attempts, err := e.Client.Attempts(ctx, id)
	if err != nil {
		return err.Error()
	}
	for _, a := range attempts {
		fmt.Fprintf(&b, "\n  attempt ended %s with %s: %s", a.EndedAt.Format(time.TimeOnly), a.Code, a.Error)
	}
	lines, err := e.Client.Logs(ctx, id)
	if err != nil {
		return err.Error()
	}
	for _, l := range lines {
		fmt.Fprintf(&b, "\n  log %s %s", l.Level, l.Text)
	}
	return b.String()
}
