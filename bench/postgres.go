package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/postgres"
)

const (
	singles     = 2000             // submitted one by one; three times that
	continuous  = 20 * time.Second // at most
	smallBatch  = 100              // of a submitter beside a worker
	idleSamples = 100
)

// withPostgres opens a store in a fresh database for do.
func withPostgres(ctx context.Context, s *server, do func(store *postgres.Store, url string) error) error {
	return s.withDatabase(ctx, func(url string) error {
		if err := postgres.Migrate(ctx, url, postgres.Options{}); err != nil {
			return err
		}
		store, err := postgres.Open(ctx, url, postgres.Options{})
		if err != nil {
			return err
		}
		defer store.Close()
		return do(store, url)
	})
}

func pgSubmitOne(ctx context.Context, s *server) ([]result, error) {
	var rates []float64
	err := withPostgres(ctx, s, func(store *postgres.Store, _ string) (err error) {
		rates, err = submitSingles(ctx, store, singles)
		return err
	})
	return []result{{"opscore/postgres: submit one by one, one goroutine", "tasks/s", median(rates)}}, err
}

func pgSubmitBatch(ctx context.Context, s *server) ([]result, error) {
	rate, err := medianOf(func() (rate float64, err error) {
		err = withPostgres(ctx, s, func(store *postgres.Store, _ string) error {
			began := time.Now()
			err := fill(ctx, store, tasks)
			rate = perSecond(tasks, began)
			return err
		})
		return rate, err
	})
	return []result{{fmt.Sprintf("opscore/postgres: submit in batches of %d", batch), "tasks/s", rate}}, err
}

// manySlots is a worker with as many as River has at its best.
const manySlots = 1000

// pgSettings says how opscore is set up: with so many slots, 0 being the default.
func pgSettings(slots int) string {
	if slots == 0 {
		return "default settings"
	}
	return fmt.Sprintf("%d slots", slots)
}

func pgDrain(slots int) func(context.Context, *server) ([]result, error) {
	return func(ctx context.Context, s *server) ([]result, error) {
		rate, err := medianOf(func() (float64, error) { return pgDrainOnce(ctx, s, tasks, slots) })
		return []result{{fmt.Sprintf("opscore/postgres: drain %d no-op tasks, %s", tasks, pgSettings(slots)), "tasks/s", rate}}, err
	}
}

func pgDrainMillion(ctx context.Context, s *server) ([]result, error) {
	const waiting = 1_000_000
	rate, err := medianOf(func() (float64, error) { return pgDrainOnce(ctx, s, waiting, 0) })
	return []result{{fmt.Sprintf("opscore/postgres: drain %d no-op tasks of %d, default settings", tasks, waiting), "tasks/s", rate}}, err
}

func pgDrainOnce(ctx context.Context, s *server, waiting, slots int) (rate float64, err error) {
	err = withPostgres(ctx, s, func(store *postgres.Store, _ string) (err error) {
		if err = fill(ctx, store, waiting); err == nil {
			rate, err = drainOnce(ctx, store, slots)
		}
		return err
	})
	return rate, err
}

// pgContinuous submits and works at the same time in one process.
func pgContinuous(slots int) func(context.Context, *server) ([]result, error) {
	return func(ctx context.Context, s *server) ([]result, error) {
		var rate float64
		err := withPostgres(ctx, s, func(store *postgres.Store, _ string) (err error) {
			rate, err = measured(ctx, continuous, func(ctx context.Context, finished func()) error {
				return beside(ctx, func(ctx context.Context) error {
					return submitAll(ctx, store, tasks, smallBatch)
				}, func(ctx context.Context) error { return work(ctx, store, slots, finished) })
			})
			return err
		})
		return []result{{
			fmt.Sprintf("opscore/postgres: submit in batches of %d and work, %s", smallBatch, pgSettings(slots)), "tasks/s", rate,
		}}, err
	}
}

func pgLatency(ctx context.Context, s *server) (results []result, err error) {
	err = withPostgres(ctx, s, func(store *postgres.Store, _ string) error {
		results, err = latencies(ctx, store, "opscore/postgres")
		return err
	})
	return results, err
}

// latencies submits to an idle worker, from its own process and from another one, which is another set of connections.
func latencies(ctx context.Context, store *postgres.Store, who string, sources ...opscore.Source) (results []result, err error) {
	err = whileIdle(ctx, store, func(started <-chan time.Time) error {
		other, err := postgres.Open(ctx, store.Pool().Config().ConnString(), postgres.Options{})
		if err != nil {
			return err
		}
		defer other.Close()
		for _, from := range []struct {
			name  string
			store *postgres.Store
		}{{"from another process", other}, {"one process", store}} {
			c := &opscore.Client{Store: from.store}
			took, err := toStart(idleSamples, idle, started, func() error {
				_, err := noop.Submit(ctx, c, none{})
				return err
			})
			if err != nil {
				return err
			}
			results = append(results, percentiles(who+": submit to start, idle, "+from.name+", default settings", took)...)
		}
		return nil
	}, sources...)
	return results, err
}

// idle is longer than the 100 ms that River waits after it fetched, so that neither meets the task before.
func idle() time.Duration { return 100*time.Millisecond + rand.N(50*time.Millisecond) }

// beside runs both until the second returns, which ends the first.
func beside(ctx context.Context, first, second func(context.Context) error) error {
	firstCtx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- first(firstCtx) }()
	err := second(ctx)
	stop()
	if e := <-ended; !errors.Is(e, context.Canceled) && !errors.Is(e, context.DeadlineExceeded) {
		err = errors.Join(err, e)
	}
	return err
}

// pgBare is what bare is in SQLite: a claim and a finish by the batch on one connection, without fence and history.
func pgBare(ctx context.Context, s *server) (results []result, err error) {
	for _, size := range []int{100, 1000} {
		rate, err := medianOf(func() (rate float64, err error) {
			err = s.withDatabase(ctx, func(url string) (err error) {
				rate, err = pgBareOnce(ctx, url, size)
				return err
			})
			return rate, err
		})
		if err != nil {
			return nil, err
		}
		results = append(results, result{
			fmt.Sprintf("PostgreSQL: bare loop without fence and history, %d at a time, %d tasks", size, tasks), "tasks/s", rate,
		})
	}
	return results, nil
}

func pgBareOnce(ctx context.Context, url string, size int) (rate float64, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if _, err := conn.Exec(ctx, `
		CREATE TABLE task (id uuid PRIMARY KEY, state smallint NOT NULL, run_at timestamptz NOT NULL, args bytea NOT NULL, result bytea)
			WITH (fillfactor = 80);
		CREATE INDEX due ON task (run_at, id) WHERE state = 0;`); err != nil {
		return 0, err
	}
	if _, err := conn.CopyFrom(ctx, pgx.Identifier{"task"}, []string{"id", "state", "run_at", "args"},
		pgx.CopyFromSlice(tasks, func(int) ([]any, error) {
			id, err := uuid.NewV7()
			return []any{id, int16(0), time.Now(), []byte("{}")}, err
		})); err != nil {
		return 0, err
	}
	began := time.Now()
	for n := 0; n < tasks; {
		done, err := pgBareStep(ctx, conn, size)
		if err != nil {
			return 0, err
		}
		n += done
	}
	return perSecond(tasks, began), nil
}

// pgBareStep claims in one transaction and finishes in another.
func pgBareStep(ctx context.Context, conn *pgx.Conn, size int) (done int, err error) {
	rows, err := conn.Query(ctx, `
		WITH pick AS MATERIALIZED (
			SELECT id FROM task WHERE state = 0 AND run_at <= now() ORDER BY run_at, id LIMIT $1 FOR UPDATE SKIP LOCKED)
		UPDATE task SET state = 1 FROM pick WHERE task.id = pick.id RETURNING task.id, task.args`, size)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var ids []uuid.UUID
	var results [][]byte
	for rows.Next() {
		var id uuid.UUID
		var args []byte
		if err := rows.Scan(&id, &args); err != nil {
			return 0, err
		}
		ids, results = append(ids, id), append(results, []byte("{}"))
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	if len(ids) == 0 {
		return 0, errors.New("nothing is left to claim")
	}
	_, err = conn.Exec(ctx, `
		UPDATE task SET state = 2, result = o.result FROM unnest($1::uuid[], $2::bytea[]) AS o (id, result)
		WHERE task.id = o.id`, ids, results)
	return len(ids), err
}
