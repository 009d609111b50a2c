package postgres

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
)

// batchSize bounds what one call of a chore does.
const batchSize = 500

// forgetAfter is how long workers are listed after they are gone.
const forgetAfter = 30 * 24 * time.Hour

// observations are the workers that were past their lease when last looked at. They hold only as long as the database
// was there all the time: an outage must not look like the death of every worker.
type observations struct {
	serverStart time.Time // of the postmaster that was asked
	lapsed      map[opscore.ID]lapsed
}

type lapsed struct {
	beats int64
	at    time.Time // monotonic
}

// Rescue implements [opscore.Chores].
func (s *Store) Rescue(ctx context.Context) ([]opscore.Task, error) {
	rescued, err := s.rescue(ctx)
	if err != nil {
		s.mu.Lock()
		s.observed.lapsed = nil // the session was interrupted: observe anew
		s.mu.Unlock()
		return nil, unavailable("rescue tasks", err)
	}
	return rescued, nil
}

func (s *Store) rescue(ctx context.Context) ([]opscore.Task, error) {
	dead, err := s.dead(ctx)
	if err != nil {
		return nil, err
	}
	for id, beats := range dead {
		// Unless it heartbeat meanwhile.
		if _, err := s.pool.Exec(ctx, s.sql(`UPDATE opscore.worker SET state = 'gone', gone_at = clock_timestamp(), cause = 'its lease ran out'
			WHERE id = $1 AND state <> 'gone' AND beats = $2 AND lease_until < clock_timestamp()`), id, beats); err != nil {
			return nil, err
		}
	}
	return s.rescueOwnerless(ctx)
}

// dead returns the workers that were past their lease in two observations at least one heartbeat apart, without a
// heartbeat, a failed statement or a restart of the server in between, with their beats.
func (s *Store) dead(ctx context.Context) (map[opscore.ID]int64, error) {
	var start time.Time
	expired := map[opscore.ID]int64{}
	err := each(ctx, s.pool, func(rows pgx.Rows) error {
		var id *opscore.ID
		var beats *int64
		err := rows.Scan(&start, &id, &beats)
		if id != nil && beats != nil {
			expired[*id] = *beats
		}
		return err
	}, s.sql(`SELECT s.start, w.id, w.beats FROM (SELECT pg_postmaster_start_time() AS start) s
		LEFT JOIN opscore.worker w ON w.state <> 'gone' AND w.lease_until < clock_timestamp()`))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.observed
	if !before.serverStart.Equal(start) {
		before.lapsed = nil
	}
	s.observed = observations{serverStart: start, lapsed: map[opscore.ID]lapsed{}}
	dead := map[opscore.ID]int64{}
	for id, beats := range expired {
		seen, again := before.lapsed[id]
		if !again || seen.beats != beats {
			seen = lapsed{beats, time.Now()}
		} else if time.Since(seen.at) >= opscore.HeartbeatEvery {
			dead[id] = beats
			continue
		}
		s.observed.lapsed[id] = seen
	}
	return dead, nil
}

// rescueOwnerless takes back running tasks whose worker is gone.
func (s *Store) rescueOwnerless(ctx context.Context) (rescued []opscore.Task, err error) {
	const ownerless = `FROM opscore.task t LEFT JOIN opscore.worker w ON w.id = t.worker
		WHERE t.state = 'running' AND coalesce(w.state, 'gone') = 'gone'`
	var found bool
	if err := s.pool.QueryRow(ctx, s.sql("SELECT EXISTS (SELECT "+ownerless+")")).Scan(&found); err != nil || !found {
		return nil, err
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var lost []opscore.Task
		var owners []opscore.WorkerInfo
		err := each(ctx, tx, func(rows pgx.Rows) error {
			var w opscore.WorkerInfo
			t, err := scanTask(rows, &w.Host, &w.PID, &w.Cause)
			lost, owners = append(lost, t), append(owners, w)
			return err
		}, s.sql("SELECT "+head+", coalesce(w.host, ''), coalesce(w.pid, 0), coalesce(w.cause, '') "+ownerless+" ORDER BY t.id LIMIT $1 FOR UPDATE OF t SKIP LOCKED"), batchSize)
		if err != nil {
			return err
		}
		b := &pgx.Batch{}
		ids := make([]opscore.ID, len(lost))
		for i, t := range lost {
			ids[i] = t.ID
			o := opscore.LostOutcome(t, owners[i])
			s.queueEnd(b, &o, true, func(opscore.State) {})
		}
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		rescued, err = s.get(ctx, tx, ids)
		return err
	})
	if len(rescued) > 0 {
		s.lanes.changed()
		s.wake.all()
	}
	return rescued, err
}

// Expire implements [opscore.Chores].
func (s *Store) Expire(ctx context.Context) (expired []opscore.Task, err error) {
	err = each(ctx, s.pool, func(rows pgx.Rows) error {
		t, err := scanTask(rows)
		expired = append(expired, t)
		return err
	}, s.sql(`WITH l AS MATERIALIZED (
			SELECT id FROM opscore.task WHERE state = 'pending' AND expires_at IS NOT NULL AND expires_at <= clock_timestamp()
			ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED)
		UPDATE opscore.task t SET state = 'failed', code = 'expired', error = 'it was not started before its expiry',
			finished_at = clock_timestamp()
		FROM l WHERE t.id = l.id RETURNING `+head), batchSize)
	if err != nil {
		return nil, unavailable("expire tasks", err)
	}
	return expired, nil
}

// Prune implements [opscore.Chores].
func (s *Store) Prune(ctx context.Context, r opscore.Retention) (int, error) {
	own := slices.Sorted(maps.Keys(r.Queues))
	for _, state := range []opscore.State{opscore.Completed, opscore.Failed, opscore.Cancelled} {
		for _, q := range append(slices.Clone(own), "") {
			n, err := s.prune(ctx, state, q, own, r.For(q, state))
			if err != nil {
				return 0, unavailable("prune tasks", err)
			}
			if n > 0 {
				return n, nil
			}
		}
	}
	_, err := s.pool.Exec(ctx, s.sql("DELETE FROM opscore.worker WHERE state = 'gone' AND gone_at < clock_timestamp() - $1 * interval '1 microsecond'"),
		forgetAfter.Microseconds())
	if err != nil {
		return 0, unavailable("forget gone workers", err)
	}
	return 0, s.forgetOrphans(ctx, cmp.Or(r.Orphans, opscore.OrphanFor))
}

// Discard implements [opscore.Discarder].
func (s *Store) Discard(ctx context.Context, canaries []opscore.ID) (n int, err error) {
	err = s.pool.QueryRow(ctx, s.sql(`WITH l AS MATERIALIZED (
			SELECT id FROM opscore.task WHERE id = ANY($1) AND actor = $2 AND state IN ('completed', 'failed', 'cancelled') ORDER BY id FOR UPDATE),
		`+removeSQL), canaries, opscore.CanaryActor).Scan(&n)
	return n, unavailable("discard canaries", err)
}

// removeSQL deletes the tasks l with their history.
const removeSQL = `d AS (DELETE FROM opscore.task t USING l WHERE t.id = l.id RETURNING t.id),
		a AS (DELETE FROM opscore.attempt a USING l WHERE a.task = l.id),
		g AS (DELETE FROM opscore.log g USING l WHERE g.task = l.id)
		SELECT count(*) FROM d`

// prune removes tasks of one state that finished longer than keep ago: those of queue, or, for queue "", those of all
// queues without a period of their own.
func (s *Store) prune(ctx context.Context, state opscore.State, queue string, own []string, keep time.Duration) (n int, err error) {
	if keep == opscore.Forever {
		return 0, nil
	}
	index := "state = 'completed'"
	if state != opscore.Completed {
		index = "state IN ('failed', 'cancelled')"
	}
	err = s.pool.QueryRow(ctx, s.sql(`WITH l AS MATERIALIZED (
			SELECT id FROM opscore.task WHERE `+index+` AND state = $1 AND finished_at < clock_timestamp() - $2 * interval '1 microsecond'
				AND CASE WHEN $3 = '' THEN queue <> ALL($4) ELSE queue = $3 END
			ORDER BY id LIMIT $5 FOR UPDATE SKIP LOCKED),
		`+removeSQL), state, keep.Microseconds(), queue, list(own), batchSize).Scan(&n)
	return n, err
}
