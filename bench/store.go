package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

type none struct{}

var noop = opscore.Actor[none, none]{Name: "noop"}

const (
	runs  = 3 // the median is printed
	tasks = 100_000
	batch = 1000
)

// withStore opens a fresh file for do.
func withStore(dir, name string, do func(*sqlite.Store) error) error {
	s, err := sqlite.Open(filepath.Join(dir, name+".db"))
	if err != nil {
		return err
	}
	return errors.Join(do(s), s.Close())
}

func submitOne(ctx context.Context, dir string) ([]result, error) {
	var rates []float64
	err := withStore(dir, "one", func(s *sqlite.Store) (err error) {
		rates, err = submitSingles(ctx, s, 5000)
		return err
	})
	return []result{{"submit one by one, one goroutine", "tasks/s", median(rates)}}, err
}

// submitSingles submits n tasks, as often as there are runs.
func submitSingles(ctx context.Context, s opscore.Store, n int) (rates []float64, err error) {
	c := &opscore.Client{Store: s}
	for range runs {
		began := time.Now()
		for range n {
			if _, err := noop.Submit(ctx, c, none{}); err != nil {
				return nil, err
			}
		}
		rates = append(rates, perSecond(n, began))
	}
	return rates, nil
}

func submitBatch(ctx context.Context, dir string) ([]result, error) {
	n := 0
	rate, err := medianOf(func() (rate float64, err error) {
		n++
		err = withStore(dir, fmt.Sprint(n), func(s *sqlite.Store) error {
			began := time.Now()
			err := fill(ctx, s, tasks)
			rate = perSecond(tasks, began)
			return err
		})
		return rate, err
	})
	return []result{{fmt.Sprintf("submit in batches of %d", batch), "tasks/s", rate}}, err
}

// fill submits n tasks in batches.
func fill(ctx context.Context, s opscore.Store, n int) error { return submitAll(ctx, s, n, batch) }

func submitAll(ctx context.Context, s opscore.Store, n, size int) error {
	c := &opscore.Client{Store: s}
	for range n / size {
		requests := make([]opscore.Request, size)
		for i := range requests {
			requests[i] = noop.Request(none{})
		}
		if _, err := c.Submit(ctx, requests...); err != nil {
			return err
		}
	}
	return nil
}

func drain(ctx context.Context, dir string) ([]result, error) {
	n := 0
	rate, err := medianOf(func() (rate float64, err error) {
		n++
		err = withStore(dir, fmt.Sprint(n), func(s *sqlite.Store) (err error) {
			if err = fill(ctx, s, tasks); err == nil {
				rate, err = drainOnce(ctx, s, 0)
			}
			return err
		})
		return rate, err
	})
	return []result{{fmt.Sprintf("drain %d no-op tasks, default settings", tasks), "tasks/s", rate}}, err
}

// drainOnce counts from the start of the worker to the commit of the last outcome.
func drainOnce(ctx context.Context, s opscore.Store, slots int) (float64, error) {
	return measured(ctx, noLimit, func(ctx context.Context, finished func()) error { return work(ctx, s, slots, finished) })
}

// work runs a worker with the default settings, but for the slots if they are not 0, until ctx ends.
func work(ctx context.Context, s opscore.Store, slots int, finished func()) error {
	return workFrom(ctx, s, slots, finished)
}

// workFrom is work with tasks from the sources, if any are given.
func workFrom(ctx context.Context, s opscore.Store, slots int, finished func(), sources ...opscore.Source) error {
	h := opscore.Handlers{}
	opscore.Handle(h, noop, func(context.Context, none) (none, error) { return none{}, nil })
	return (&opscore.Worker{Store: s, Sources: sources, Handlers: h, Slots: slots, Log: quiet(), OnEvent: func(e opscore.Event) {
		if e.Kind == opscore.EventFinished {
			finished()
		}
	}}).Run(ctx)
}

// noLimit is far beyond what a drain takes.
const noLimit = 10 * time.Minute

// measured ends the context of do when it has finished all the tasks or after the limit, and returns how many it finished a second
// until then.
func measured(ctx context.Context, limit time.Duration, do func(ctx context.Context, finished func()) error) (float64, error) {
	within, stop := context.WithTimeout(ctx, limit)
	defer stop()
	var done atomic.Int64
	var rate float64
	over := make(chan struct{})
	began := time.Now()
	context.AfterFunc(within, func() {
		defer close(over)
		rate = perSecond(int(done.Load()), began)
	})
	err := do(within, func() {
		if done.Add(1) == tasks {
			stop()
		}
	})
	stop() // also if do failed
	<-over
	if err == nil {
		err = ctx.Err()
	}
	if got := done.Load(); err == nil && got < tasks && time.Since(began) < limit {
		err = fmt.Errorf("%d of %d tasks are left", tasks-got, tasks)
	}
	return rate, err
}

// latency is from before the submit to the first line of the handler, with nothing else to do.
func latency(ctx context.Context, dir string) (results []result, err error) {
	err = withStore(dir, "latency", func(s *sqlite.Store) error {
		return whileIdle(ctx, s, func(started <-chan time.Time) error {
			c := &opscore.Client{Store: s}
			took, err := toStart(1000, func() time.Duration { return 5 * time.Millisecond }, started, func() error {
				_, err := noop.Submit(ctx, c, none{})
				return err
			})
			results = percentiles("submit to start, idle, one process", took)
			return err
		})
	})
	return results, err
}

// whileIdle runs a worker beside do that tells when a handler started.
func whileIdle(ctx context.Context, s opscore.Store, do func(started <-chan time.Time) error, sources ...opscore.Source) (err error) {
	h := opscore.Handlers{}
	started := make(chan time.Time)
	opscore.Handle(h, noop, func(context.Context, none) (none, error) {
		started <- time.Now()
		return none{}, nil
	})
	working, stop := context.WithCancel(ctx)
	ready, stopped := make(chan struct{}), make(chan error, 1)
	w := &opscore.Worker{Store: s, Sources: sources, Handlers: h, Log: quiet(), OnReady: func(opscore.WorkerInfo) { close(ready) }}
	go func() { stopped <- w.Run(working) }()
	defer func() {
		stop()
		err = errors.Join(err, <-stopped)
	}()
	select {
	case <-ready:
	case err := <-stopped:
		stopped <- nil
		return err
	}
	return do(started)
}

// toStart returns how long it took from before each submit to its start, shortest first.
func toStart(samples int, pause func() time.Duration, started <-chan time.Time, submit func() error) ([]time.Duration, error) {
	const warm = 5 // that do not count: connections are made and listening begins
	var took []time.Duration
	for i := range warm + samples {
		time.Sleep(pause()) // the worker is idle again
		began := time.Now()
		if err := submit(); err != nil {
			return nil, err
		}
		select {
		case at := <-started:
			if i >= warm {
				took = append(took, at.Sub(began))
			}
		case <-time.After(30 * time.Second):
			return nil, errors.New("a task did not start within 30 s")
		}
	}
	slices.Sort(took)
	return took, nil
}

func percentiles(what string, sorted []time.Duration) (results []result) {
	for _, p := range []int{50, 99} {
		if len(sorted) > 0 {
			results = append(results, result{
				fmt.Sprintf("%s, p%d", what, p), "ms", sorted[(len(sorted)*p-1)/100].Seconds() * 1000,
			})
		}
	}
	return results
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
