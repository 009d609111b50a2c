package storetest

import (
	"context"
	"sync"
	"time"

	"github.com/opscore/opscore"
)

// Faulty is a store whose calls go wrong on demand. A nil hook does nothing; both may wait, to delay a call.
type Faulty struct {
	opscore.Store
	// Before is called ahead of each call with the method's name and the number of the call, from 1.
	// Its error is returned and the store not asked.
	Before func(method string, n int) error
	// After is called once the store has answered. Its error replaces the answer: done, but nobody knows.
	After func(method string, n int) error

	mu    sync.Mutex
	calls map[string]int
}

// Calls returns how often a method was called.
func (f *Faulty) Calls(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[method]
}

// Wake passes on the store's wake-ups, if it has any.
func (f *Faulty) Wake() <-chan struct{} {
	if w, ok := f.Store.(opscore.Waker); ok {
		return w.Wake()
	}
	return nil
}

func call[T any](f *Faulty, method string, do func() (T, error)) (T, error) {
	f.mu.Lock()
	if f.calls == nil {
		f.calls = map[string]int{}
	}
	f.calls[method]++
	n := f.calls[method]
	f.mu.Unlock()
	var zero T
	if f.Before != nil {
		if err := f.Before(method, n); err != nil {
			return zero, err
		}
	}
	v, err := do()
	if err == nil && f.After != nil {
		if err := f.After(method, n); err != nil {
			return zero, err
		}
	}
	return v, err
}

func callErr(f *Faulty, method string, do func() error) error {
	_, err := call(f, method, func() (struct{}, error) { return struct{}{}, do() })
	return err
}

// Insert implements [opscore.Inserter].
func (f *Faulty) Insert(ctx context.Context, requests []opscore.Request) ([]opscore.Inserted, error) {
	return call(f, "Insert", func() ([]opscore.Inserted, error) { return f.Store.Insert(ctx, requests) })
}

// Get implements [opscore.Tasks].
func (f *Faulty) Get(ctx context.Context, ids []opscore.ID) ([]opscore.Task, error) {
	return call(f, "Get", func() ([]opscore.Task, error) { return f.Store.Get(ctx, ids) })
}

// Claim implements [opscore.Runs].
func (f *Faulty) Claim(ctx context.Context, want opscore.Claim) (opscore.Claimed, error) {
	return call(f, "Claim", func() (opscore.Claimed, error) { return f.Store.Claim(ctx, want) })
}

// Finish implements [opscore.Runs].
func (f *Faulty) Finish(ctx context.Context, outcomes []opscore.Outcome) ([]opscore.Recorded, error) {
	return call(f, "Finish", func() ([]opscore.Recorded, error) { return f.Store.Finish(ctx, outcomes) })
}

// Note implements [opscore.Runs].
func (f *Faulty) Note(ctx context.Context, notes []opscore.Note) error {
	return callErr(f, "Note", func() error { return f.Store.Note(ctx, notes) })
}

// Isolate implements [opscore.Runs].
func (f *Faulty) Isolate(ctx context.Context, task opscore.ID, claimSeq int64, worker opscore.ID) error {
	return callErr(f, "Isolate", func() error { return f.Store.Isolate(ctx, task, claimSeq, worker) })
}

// Register implements [opscore.Registry].
func (f *Faulty) Register(ctx context.Context, w opscore.WorkerInfo) error {
	return callErr(f, "Register", func() error { return f.Store.Register(ctx, w) })
}

// Heartbeat implements [opscore.Registry].
func (f *Faulty) Heartbeat(ctx context.Context, worker opscore.ID, state opscore.WorkerState, r opscore.Report) (opscore.Heard, error) {
	return call(f, "Heartbeat", func() (opscore.Heard, error) { return f.Store.Heartbeat(ctx, worker, state, r) })
}

// Leave implements [opscore.Registry].
func (f *Faulty) Leave(ctx context.Context, worker opscore.ID, cause string, last opscore.Report) error {
	return callErr(f, "Leave", func() error { return f.Store.Leave(ctx, worker, cause, last) })
}

// StopWorkers implements [opscore.Registry].
func (f *Faulty) StopWorkers(ctx context.Context, workers []opscore.ID, by string) ([]opscore.ID, error) {
	return call(f, "StopWorkers", func() ([]opscore.ID, error) { return f.Store.StopWorkers(ctx, workers, by) })
}

// Workers implements [opscore.Registry].
func (f *Faulty) Workers(ctx context.Context, goneFor time.Duration) ([]opscore.WorkerInfo, error) {
	return call(f, "Workers", func() ([]opscore.WorkerInfo, error) { return f.Store.Workers(ctx, goneFor) })
}

// Rescue implements [opscore.Chores].
func (f *Faulty) Rescue(ctx context.Context) ([]opscore.Task, error) {
	return call(f, "Rescue", func() ([]opscore.Task, error) { return f.Store.Rescue(ctx) })
}

// Stand implements [opscore.Standings].
func (f *Faulty) Stand(ctx context.Context, queues []string, of *opscore.Task) (opscore.Stand, error) {
	return call(f, "Stand", func() (opscore.Stand, error) { return f.Store.Stand(ctx, queues, of) })
}
