package postgres

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
)

// Pause implements [opscore.Queues].
func (s *Store) Pause(ctx context.Context, queues []string, by, comment string) error {
	_, err := s.pool.Exec(ctx, s.sql(`
		INSERT INTO opscore.pause (queue, at, by, comment)
		SELECT DISTINCT q, clock_timestamp(), $2, $3 FROM unnest($1::text[]) AS q ORDER BY q
		ON CONFLICT (queue) DO NOTHING`), queues, by, comment)
	if err != nil {
		return unavailable("pause queues", err)
	}
	return nil
}

// Resume implements [opscore.Queues].
func (s *Store) Resume(ctx context.Context, queues []string) error {
	if _, err := s.pool.Exec(ctx, s.sql("DELETE FROM opscore.pause WHERE queue = ANY($1)"), queues); err != nil {
		return unavailable("resume queues", err)
	}
	s.lanes.changed()
	s.wake.all()
	s.notify()
	return nil
}

// Paused implements [opscore.Queues].
func (s *Store) Paused(ctx context.Context) (paused []opscore.Pause, err error) {
	err = each(ctx, s.pool, func(rows pgx.Rows) error {
		var p opscore.Pause
		err := rows.Scan(&p.Queue, &p.At, &p.By, &p.Comment)
		p.At = p.At.UTC()
		paused = append(paused, p)
		return err
	}, s.sql("SELECT queue, at, by, comment FROM opscore.pause ORDER BY queue"))
	if err != nil {
		return nil, unavailable("read paused queues", err)
	}
	return paused, nil
}

// Register implements [opscore.Registry].
func (s *Store) Register(ctx context.Context, w opscore.WorkerInfo) error {
	lease := time.Duration(cmp.Or(w.Lease, opscore.Duration(opscore.LeaseFor))).Microseconds()
	_, err := s.beats.Exec(ctx, s.sql(`
		INSERT INTO opscore.worker (id, host, pid, build, queues, actors, slots, lease, about, state, started_at, last_beat, lease_until)
		SELECT $1, $2, $3, $4, $5, $6, $7, $8::bigint, $9, $10, now, now, now + $8::bigint * interval '1 microsecond' FROM clock_timestamp() AS now`),
		w.ID, w.Host, w.PID, w.Build, list(w.Queues), list(w.Actors), w.Slots, lease, w.About, w.State)
	if err != nil {
		return unavailable("register worker", err)
	}
	s.wake.all() // somebody may have waited for it
	s.notify()
	return nil
}

// list is never NULL.
func list(names []string) []string { return append([]string{}, names...) }

// Heartbeat implements [opscore.Registry]. It has its own connection, and gives up before the next one is due: a
// lock must not hold it up for longer.
func (s *Store) Heartbeat(ctx context.Context, worker opscore.ID, state opscore.WorkerState, r opscore.Report) (heard opscore.Heard, err error) {
	ctx, cancel := context.WithTimeout(ctx, opscore.HeartbeatEvery*9/10)
	defer cancel()
	var beats int64
	var timeline string
	conn, err := s.beats.Acquire(ctx)
	if err != nil {
		return heard, unavailable("heartbeat", err)
	}
	defer conn.Release()
	err = conn.QueryRow(ctx, s.sql(`
		UPDATE opscore.worker SET state = $2, report = $3, last_beat = clock_timestamp(), beats = beats + 1,
			lease_until = clock_timestamp() + lease * interval '1 microsecond'
		WHERE id = $1 AND state <> 'gone' RETURNING beats, last_beat, stop_by, `+timelineSQL), worker, state, r).
		Scan(&beats, &heard.Clock, &heard.Stop, &timeline)
	if errors.Is(err, pgx.ErrNoRows) {
		err = conn.QueryRow(ctx, s.sql("SELECT coalesce(max(stop_by), '') FROM opscore.worker WHERE id = $1"), worker).Scan(&heard.Stop)
		if err == nil {
			return heard, opscore.ErrLeaseLost
		}
	}
	if err != nil {
		return opscore.Heard{}, unavailable("heartbeat", err)
	}
	if err := s.observe(ctx, conn, timeline, worker, beats); err != nil {
		return opscore.Heard{}, err
	}
	err = each(ctx, conn, func(rows pgx.Rows) error {
		var o opscore.Owned
		err := rows.Scan(&o.Task, &o.ClaimSeq, &o.Cancel)
		heard.Owned = append(heard.Owned, o)
		return err
	}, s.sql("SELECT id, claim_seq, cancel_at IS NOT NULL FROM opscore.task WHERE state = 'running' AND worker = $1"), worker)
	if err != nil {
		return opscore.Heard{}, unavailable("heartbeat", err)
	}
	return heard, nil
}

// Leave implements [opscore.Registry].
func (s *Store) Leave(ctx context.Context, worker opscore.ID, cause string, last opscore.Report) error {
	tag, err := s.beats.Exec(ctx, s.sql(`UPDATE opscore.worker SET state = 'gone', gone_at = clock_timestamp(), cause = $2, report = $3
		WHERE id = $1 AND state <> 'gone'`), worker, cause, last)
	if err != nil {
		return unavailable("leave the registry", err)
	}
	if tag.RowsAffected() == 0 {
		return opscore.ErrLeaseLost
	}
	return nil
}

// StopWorkers implements [opscore.Registry].
func (s *Store) StopWorkers(ctx context.Context, workers []opscore.ID, by string) (asked []opscore.ID, err error) {
	err = each(ctx, s.pool, func(rows pgx.Rows) error {
		var id opscore.ID
		err := rows.Scan(&id)
		asked = append(asked, id)
		return err
	}, s.sql(`WITH l AS MATERIALIZED (SELECT id FROM opscore.worker WHERE id = ANY($1) AND state <> 'gone' ORDER BY id FOR UPDATE)
		UPDATE opscore.worker w SET stop_by = coalesce(nullif(w.stop_by, ''), $2) FROM l WHERE w.id = l.id RETURNING w.id`), workers, by)
	if err != nil {
		return nil, unavailable("stop workers", err)
	}
	return asked, nil
}

// Workers implements [opscore.Registry].
func (s *Store) Workers(ctx context.Context, goneFor time.Duration) (workers []opscore.WorkerInfo, err error) {
	err = each(ctx, s.pool, func(rows pgx.Rows) error {
		var w opscore.WorkerInfo
		var gone *time.Time
		var lease int64
		err := rows.Scan(&w.ID, &w.Host, &w.PID, &w.Build, &w.Queues, &w.Actors, &w.Slots, &lease, &w.About, (*string)(&w.State), &w.StartedAt,
			&w.LastBeat, &w.Live, &w.Report, &w.Stop, &gone, &w.Cause)
		w.Lease = opscore.Duration(time.Duration(lease) * time.Microsecond)
		w.StartedAt, w.LastBeat, w.GoneAt = w.StartedAt.UTC(), w.LastBeat.UTC(), timeOf(gone)
		workers = append(workers, w)
		return err
	}, s.sql(`SELECT id, host, pid, build, queues, actors, slots, lease, about, state, started_at, last_beat,
			state <> 'gone' AND lease_until > clock_timestamp(), report, stop_by, gone_at, cause
		FROM opscore.worker WHERE state <> 'gone' OR gone_at > clock_timestamp() - $1 * interval '1 microsecond' ORDER BY id`), min(goneFor, forgetAfter).Microseconds())
	if err != nil {
		return nil, unavailable("read workers", err)
	}
	return workers, nil
}
