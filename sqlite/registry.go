package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opscore/opscore"
)

// Pause implements [opscore.Queues].
func (s *Store) Pause(ctx context.Context, queues []string, by, comment string) error {
	return s.write(ctx, "pause queues", func(c *conn) error {
		for _, q := range queues {
			if _, err := c.exec(`
				INSERT INTO opscore_pause (queue, at, by, comment) VALUES (?, ?, ?, ?)
				ON CONFLICT (queue) DO NOTHING`, q, now(), by, comment); err != nil {
				return err
			}
		}
		return nil
	})
}

// Resume implements [opscore.Queues].
func (s *Store) Resume(ctx context.Context, queues []string) error {
	return s.write(ctx, "resume queues", func(c *conn) error {
		for _, q := range queues {
			if _, err := c.exec("DELETE FROM opscore_pause WHERE queue = ?", q); err != nil {
				return err
			}
		}
		c.wakes = true
		return nil
	})
}

// Paused implements [opscore.Queues].
func (s *Store) Paused(ctx context.Context) (paused []opscore.Pause, err error) {
	err = s.read(ctx, "read paused queues", func(c *conn) error {
		return c.query(func(rows *sql.Rows) error {
			var p opscore.Pause
			var at int64
			err := rows.Scan(&p.Queue, &at, &p.By, &p.Comment)
			p.At = timeOf(at)
			paused = append(paused, p)
			return err
		}, "SELECT queue, at, by, comment FROM opscore_pause ORDER BY queue")
	})
	return paused, err
}

// lockPath is the file that a worker of this host holds locked while its process lives.
func (s *Store) lockPath(worker opscore.ID) string {
	return filepath.Join(s.path+".workers", worker.String())
}

// Register implements [opscore.Registry].
func (s *Store) Register(ctx context.Context, w opscore.WorkerInfo) error {
	if err := s.holdLock(w.ID); err != nil {
		return unavailable("register worker", err)
	}
	queues, err1 := json.Marshal(w.Queues)
	actors, err2 := json.Marshal(w.Actors)
	about, err3 := json.Marshal(w.About)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	lease := time.Duration(cmp.Or(w.Lease, opscore.Duration(opscore.LeaseFor))).Microseconds()
	err := s.write(ctx, "register worker", func(c *conn) error {
		at := now()
		_, err := c.exec(`
			INSERT INTO opscore_worker (id, host, pid, build, queues, actors, slots, lease, about, state, started_at, last_beat, lease_until)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			w.ID[:], w.Host, w.PID, w.Build, string(queues), string(actors), w.Slots, lease, string(about), string(w.State), at, at, at+lease)
		return err
	})
	if err != nil {
		s.dropLock(w.ID)
	}
	return err
}

func (s *Store) holdLock(worker opscore.ID) error {
	path := s.lockPath(worker)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := tryLock(path, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return err
	}
	if f == nil {
		return fmt.Errorf("%s is locked by another process", path)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.locks[worker] = f
	return nil
}

func (s *Store) dropLock(worker opscore.ID) {
	s.mu.Lock()
	f := s.locks[worker]
	delete(s.locks, worker)
	s.mu.Unlock()
	if f == nil {
		return
	}
	// What stays behind is harmless: an unlocked file of a worker that is gone.
	_ = os.Remove(f.Name())
	_ = f.Close()
}

// Heartbeat implements [opscore.Registry].
func (s *Store) Heartbeat(ctx context.Context, worker opscore.ID, state opscore.WorkerState, r opscore.Report) (heard opscore.Heard, err error) {
	if err := s.sameFile(); err != nil {
		return heard, unavailable("heartbeat", err)
	}
	report, err := json.Marshal(r)
	if err != nil {
		return heard, err
	}
	gone := false
	err = s.write(ctx, "heartbeat", func(c *conn) error {
		heard, gone = opscore.Heard{}, true
		if err := knownSchema(c); err != nil {
			return err
		}
		at := now()
		heard.Clock = timeOf(at)
		if err := c.query(func(rows *sql.Rows) error {
			var present string
			err := rows.Scan(&present, &heard.Stop)
			gone = present == string(opscore.WorkerGone)
			return err
		}, "SELECT state, stop_by FROM opscore_worker WHERE id = ?", worker[:]); err != nil || gone {
			return err
		}
		if _, err := c.exec("UPDATE opscore_worker SET state = ?, report = ?, last_beat = ?, beats = beats + 1, lease_until = ? + lease WHERE id = ?",
			string(state), string(report), at, at, worker[:]); err != nil {
			return err
		}
		return c.query(func(rows *sql.Rows) error {
			var o opscore.Owned
			err := scanID(rows, &o.Task, &o.ClaimSeq, &o.Cancel)
			heard.Owned = append(heard.Owned, o)
			return err
		}, "SELECT id, claim_seq, cancel_at > 0 FROM opscore_task WHERE state = 'running' AND worker = ?", worker[:])
	})
	if err == nil && gone {
		s.dropLock(worker)
		err = opscore.ErrLeaseLost
	}
	return heard, err
}

// Leave implements [opscore.Registry].
func (s *Store) Leave(ctx context.Context, worker opscore.ID, cause string, last opscore.Report) error {
	defer s.dropLock(worker)
	report, err := json.Marshal(last)
	if err != nil {
		return err
	}
	return s.write(ctx, "leave the registry", func(c *conn) error {
		n, err := c.exec("UPDATE opscore_worker SET state = 'gone', gone_at = ?, cause = ?, report = ? WHERE id = ? AND state <> 'gone'",
			now(), cause, string(report), worker[:])
		if err == nil && n == 0 {
			err = opscore.ErrLeaseLost
		}
		return err
	})
}

// StopWorkers implements [opscore.Registry].
func (s *Store) StopWorkers(ctx context.Context, workers []opscore.ID, by string) (asked []opscore.ID, err error) {
	err = s.write(ctx, "stop workers", func(c *conn) error {
		asked = nil
		for _, id := range workers {
			n, err := c.exec("UPDATE opscore_worker SET stop_by = CASE stop_by WHEN '' THEN ? ELSE stop_by END WHERE id = ? AND state <> 'gone'", by, id[:])
			if err != nil {
				return err
			}
			if n > 0 {
				asked = append(asked, id)
			}
		}
		return nil
	})
	return asked, err
}

// columns of the registry, as Workers reads them.
const workerColumns = `id, host, pid, build, queues, actors, slots, lease, about, state, started_at, last_beat, lease_until, report, stop_by, gone_at, cause`

// Workers implements [opscore.Registry].
func (s *Store) Workers(ctx context.Context, goneFor time.Duration) (workers []opscore.WorkerInfo, err error) {
	err = s.read(ctx, "read workers", func(c *conn) error {
		return c.query(func(rows *sql.Rows) error {
			var w opscore.WorkerInfo
			var queues, actors, about, report string
			var lease, started, beat, until, gone int64
			if err := scanID(rows, &w.ID, &w.Host, &w.PID, &w.Build, &queues, &actors, &w.Slots, &lease, &about, (*string)(&w.State), &started,
				&beat, &until, &report, &w.Stop, &gone, &w.Cause); err != nil {
				return err
			}
			w.StartedAt, w.LastBeat, w.GoneAt = timeOf(started), timeOf(beat), timeOf(gone)
			w.Lease = opscore.Duration(time.Duration(lease) * time.Microsecond)
			w.Live = w.State != opscore.WorkerGone && until > now()
			for text, into := range map[*string]any{&queues: &w.Queues, &actors: &w.Actors, &about: &w.About, &report: &w.Report} {
				if err := json.Unmarshal([]byte(*text), into); err != nil {
					return err
				}
			}
			workers = append(workers, w)
			return nil
		}, "SELECT "+workerColumns+" FROM opscore_worker WHERE state <> 'gone' UNION ALL SELECT "+workerColumns+
			" FROM opscore_worker WHERE state = 'gone' AND gone_at > ? ORDER BY id", now()-goneFor.Microseconds())
	})
	return workers, err
}
