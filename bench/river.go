package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// River is measured beside the PostgreSQL tier: the same work, on the same server, in the same run.

type riverNoop struct{}

func (riverNoop) Kind() string { return "noop" }

// riverSettings are how River is set up. The zero durations are its defaults; so is a pool of 0.
type riverSettings struct {
	workers        int
	cooldown, poll time.Duration
	pool           int // connections
}

func (s riverSettings) String() string {
	if s == riverDefault {
		return fmt.Sprintf("default settings, MaxWorkers %d", s.workers)
	}
	return fmt.Sprintf("MaxWorkers %d, FetchCooldown %s, FetchPollInterval %s, %d connections", s.workers, s.cooldown, s.poll, s.pool)
}

var (
	riverDefault = riverSettings{workers: 100}
	riverTuned   = []riverSettings{
		{500, time.Millisecond, 2 * time.Millisecond, 20},
		{1000, time.Millisecond, 2 * time.Millisecond, 20},
		{2000, time.Millisecond, 2 * time.Millisecond, 20},
	}
)

// riverPatience is for a drain at its defaults, whose rate is the same all the time.
const riverPatience = 10 * time.Second

// withRiver makes River's tables in a fresh database for do.
func withRiver(ctx context.Context, s *server, set riverSettings, do func(*pgxpool.Pool) error) error {
	return s.withDatabase(ctx, func(url string) error {
		config, err := pgxpool.ParseConfig(url)
		if err != nil {
			return err
		}
		if set.pool > 0 {
			config.MaxConns = int32(set.pool)
		}
		pool, err := pgxpool.NewWithConfig(ctx, config)
		if err != nil {
			return err
		}
		defer pool.Close()
		migrator, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Logger: quiet()})
		if err != nil {
			return err
		}
		if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
			return err
		}
		return do(pool)
	})
}

func riverSubmitOne(ctx context.Context, s *server) ([]result, error) {
	var rates []float64
	err := withRiver(ctx, s, riverDefault, func(pool *pgxpool.Pool) error {
		client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{Logger: quiet()})
		if err != nil {
			return err
		}
		for range runs {
			began := time.Now()
			for range singles {
				if _, err := client.Insert(ctx, riverNoop{}, nil); err != nil {
					return err
				}
			}
			rates = append(rates, perSecond(singles, began))
		}
		return nil
	})
	return []result{{"River: insert one by one, one goroutine", "tasks/s", median(rates)}}, err
}

func riverSubmitBatch(ctx context.Context, s *server) ([]result, error) {
	rate, err := medianOf(func() (rate float64, err error) {
		err = withRiver(ctx, s, riverDefault, func(pool *pgxpool.Pool) error {
			began := time.Now()
			err := riverFill(ctx, pool, batch)
			rate = perSecond(tasks, began)
			return err
		})
		return rate, err
	})
	return []result{{fmt.Sprintf("River: InsertManyFast in batches of %d", batch), "tasks/s", rate}}, err
}

// riverFill inserts all the tasks in batches.
func riverFill(ctx context.Context, pool *pgxpool.Pool, size int) error {
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{Logger: quiet()})
	if err != nil {
		return err
	}
	for range tasks / size {
		params := make([]river.InsertManyParams, size)
		for i := range params {
			params[i].Args = riverNoop{}
		}
		if _, err := client.InsertManyFast(ctx, params); err != nil {
			return err
		}
	}
	return nil
}

func riverDrain(ctx context.Context, s *server) ([]result, error) {
	rate, err := riverDrainOnce(ctx, s, riverDefault, riverPatience)
	return []result{{fmt.Sprintf("River: drain %d no-op tasks (%s at most), %s", tasks, riverPatience, riverDefault), "tasks/s", rate}}, err
}

func riverDrainBest(ctx context.Context, s *server) ([]result, error) {
	best := result{unit: "tasks/s"}
	for _, set := range riverTuned {
		rate, err := riverDrainOnce(ctx, s, set, noLimit)
		if err != nil {
			return nil, err
		}
		if rate > best.value {
			best.what, best.value = fmt.Sprintf("River: drain %d no-op tasks, best of three: %s", tasks, set), rate
		}
	}
	return []result{best}, nil
}

func riverDrainOnce(ctx context.Context, s *server, set riverSettings, limit time.Duration) (rate float64, err error) {
	err = withRiver(ctx, s, set, func(pool *pgxpool.Pool) (err error) {
		if err = riverFill(ctx, pool, batch); err != nil {
			return err
		}
		rate, err = measured(ctx, limit, func(ctx context.Context, finished func()) error {
			return riverWork(ctx, pool, set, finished)
		})
		return err
	})
	return rate, err
}

// riverWork works until ctx ends. River tells that a job is completed when that is committed.
func riverWork(ctx context.Context, pool *pgxpool.Pool, set riverSettings, finished func()) error {
	client, err := riverClient(pool, set, func() {})
	if err != nil {
		return err
	}
	// It drops events that find no room.
	events, unsubscribe := client.SubscribeConfig(&river.SubscribeConfig{
		ChanSize: 2 * tasks, Kinds: []river.EventKind{river.EventKindJobCompleted},
	})
	defer unsubscribe()
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	for {
		select {
		case <-events:
			finished()
		case <-ctx.Done():
			return client.Stop(context.WithoutCancel(ctx))
		}
	}
}

func riverClient(pool *pgxpool.Pool, set riverSettings, handle func()) (*river.Client[pgx.Tx], error) {
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(func(context.Context, *river.Job[riverNoop]) error {
		handle()
		return nil
	}))
	return river.NewClient(riverpgxv5.New(pool), &river.Config{
		Queues:        map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: set.workers}},
		FetchCooldown: set.cooldown, FetchPollInterval: set.poll, Workers: workers, Logger: quiet(),
	})
}

func riverContinuous(ctx context.Context, s *server) ([]result, error) {
	rate, err := riverContinuousOnce(ctx, s, riverDefault)
	return []result{{riverContinuousName(riverDefault), "tasks/s", rate}}, err
}

func riverContinuousBest(ctx context.Context, s *server) ([]result, error) {
	best := result{unit: "tasks/s"}
	for _, set := range riverTuned {
		rate, err := riverContinuousOnce(ctx, s, set)
		if err != nil {
			return nil, err
		}
		if rate > best.value {
			best.what, best.value = riverContinuousName(set)+" (best of three)", rate
		}
	}
	return []result{best}, nil
}

func riverContinuousName(set riverSettings) string {
	return fmt.Sprintf("River: InsertManyFast in batches of %d and work, %s", smallBatch, set)
}

func riverContinuousOnce(ctx context.Context, s *server, set riverSettings) (rate float64, err error) {
	err = withRiver(ctx, s, set, func(pool *pgxpool.Pool) (err error) {
		rate, err = measured(ctx, continuous, func(ctx context.Context, finished func()) error {
			return beside(ctx, func(ctx context.Context) error {
				return riverFill(ctx, pool, smallBatch)
			}, func(ctx context.Context) error { return riverWork(ctx, pool, set, finished) })
		})
		return err
	})
	return rate, err
}

func riverLatency(ctx context.Context, s *server) ([]result, error) {
	return riverLatencyOf(ctx, s, riverDefault)
}

func riverLatencyBest(ctx context.Context, s *server) ([]result, error) {
	return riverLatencyOf(ctx, s, riverTuned[0])
}

func riverLatencyOf(ctx context.Context, s *server, set riverSettings) (results []result, err error) {
	err = withRiver(ctx, s, set, func(pool *pgxpool.Pool) error {
		started := make(chan time.Time)
		client, err := riverClient(pool, set, func() { started <- time.Now() })
		if err != nil {
			return err
		}
		if err := client.Start(context.WithoutCancel(ctx)); err != nil {
			return err
		}
		took, err := toStart(idleSamples, idle, started, func() error {
			_, err := client.Insert(ctx, riverNoop{}, nil)
			return err
		})
		if err != nil {
			return err
		}
		results = percentiles(fmt.Sprintf("River: insert to start, idle, %s", set), took)
		return client.Stop(context.WithoutCancel(ctx))
	})
	return results, err
}
