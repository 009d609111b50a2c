package opscore

import (
	"context"
	"time"
)

// Source is where a worker gets tasks that it owns.
type Source interface {
	// Next returns at most want.Max tasks, claimed for want.Worker. It may wait for the first, up to about a second,
	// and then return none.
	Next(ctx context.Context, want Claim) ([]Task, error)
}

// pollEvery bounds how long a pulling worker does not see tasks that another process submitted.
const pollEvery = 250 * time.Millisecond

// FromStore returns the source that pulls due tasks from the store. It sleeps until the next known due time, a submit
// in this process if the store is a [Waker], or for poll; poll 0 means 250 ms.
func FromStore(store Runs, poll time.Duration) Source {
	s := &pull{store: store, poll: poll}
	if s.poll <= 0 {
		s.poll = pollEvery
	}
	s.waker, _ = store.(Waker)
	return s
}

type pull struct {
	store Runs
	waker Waker
	poll  time.Duration
}

// Next claims what is due, or waits and lets the worker ask again: its free slots may have changed meanwhile.
func (s *pull) Next(ctx context.Context, want Claim) ([]Task, error) {
	var woken <-chan struct{}
	if s.waker != nil {
		woken = s.waker.Wake() // taken before the claim, so that nothing that comes after it is missed
	}
	got, err := s.store.Claim(ctx, want)
	if err != nil || len(got.Tasks) > 0 {
		return got.Tasks, err
	}
	wait := s.poll
	if got.Next > 0 {
		wait = min(wait, got.Next)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-woken:
	case <-timer.C:
	}
	return nil, nil
}

// Only returns a source that takes nothing but the given tasks from s.
func Only(s Source, ids ...ID) Source { return only{s, ids} }

type only struct {
	source Source
	ids    []ID
}

func (o only) Next(ctx context.Context, want Claim) ([]Task, error) {
	want.IDs = o.ids
	return o.source.Next(ctx, want)
}
