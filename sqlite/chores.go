package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/opscore/opscore"
)

// batchSize bounds what one call of a chore does.
const batchSize = 500

// forgetAfter is how long workers are listed after they are gone.
const forgetAfter = 30 * 24 * time.Hour

// lapsed is an observation of a worker that was past its lease.
type lapsed struct {
	beats int64
	at    time.Time // monotonic
}

// suspect is a worker that may be dead.
type suspect struct {
	id    opscore.ID
	beats int64
	cause string
}

// Rescue implements [opscore.Chores].
func (s *Store) Rescue(ctx context.Context) (rescued []opscore.Task, err error) {
	var expired []suspect
	var ownerless bool
	err = s.read(ctx, "look for dead workers", func(c *conn) error {
		if expired, err = s.suspects(c); err != nil {
			return err
		}
		ownerless, err = hasOwnerless(c)
		return err
	})
	if err != nil || len(expired) == 0 && !ownerless {
		return nil, err
	}
	err = s.write(ctx, "rescue tasks", func(c *conn) error {
		for _, w := range s.dead(expired) {
			if err := declareGone(c, w); err != nil {
				return err
			}
		}
		rescued, err = rescueOwnerless(c)
		return err
	})
	return rescued, err
}

// suspects returns the workers that are past their lease, and those whose lock proves that their process is dead.
func (s *Store) suspects(c *conn) (found []suspect, err error) {
	at := now()
	err = c.query(func(rows *sql.Rows) error {
		var w suspect
		var lease int64
		if err := scanID(rows, &w.id, &w.beats, &lease); err != nil {
			return err
		}
		switch {
		case s.provenDead(w.id):
			w.cause = "its process is dead"
			found = append(found, w)
		case lease < at:
			found = append(found, w)
		default:
			s.mu.Lock()
			delete(s.observed, w.id)
			s.mu.Unlock()
		}
		return nil
	}, "SELECT id, beats, lease_until FROM opscore_worker WHERE state <> 'gone'")
	return found, err
}

// provenDead reports whether the lock of a worker of this host was released. A missing file proves nothing.
func (s *Store) provenDead(worker opscore.ID) bool {
	s.mu.Lock()
	_, ours := s.locks[worker]
	s.mu.Unlock()
	if ours {
		return false
	}
	f, err := tryLock(s.lockPath(worker), os.O_RDWR)
	if err != nil || f == nil {
		return false
	}
	return f.Close() == nil
}

// dead returns the suspects that are dead by proof, or by two observations. It runs with the write lock held, so a
// worker that could not heartbeat because of a long transaction had its chance between the two.
func (s *Store) dead(expired []suspect) (dead []suspect) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range expired {
		seen, again := s.observed[w.id]
		switch {
		case w.cause != "":
			dead = append(dead, w)
		case !again || seen.beats != w.beats:
			s.observed[w.id] = lapsed{w.beats, time.Now()}
		case time.Since(seen.at) >= opscore.HeartbeatEvery:
			w.cause = "its lease ran out"
			dead = append(dead, w)
			delete(s.observed, w.id)
		}
	}
	return dead
}

// declareGone ends a dead worker's lease, unless it heartbeat meanwhile.
func declareGone(c *conn, w suspect) error {
	_, err := c.exec("UPDATE opscore_worker SET state = 'gone', gone_at = ?, cause = ? WHERE id = ? AND state <> 'gone' AND beats = ?",
		now(), w.cause, w.id[:], w.beats)
	return err
}

const ownerless = `FROM opscore_task
	WHERE state = 'running' AND worker NOT IN (SELECT id FROM opscore_worker WHERE state <> 'gone') LIMIT ?`

func hasOwnerless(c *conn) (found bool, err error) {
	err = c.query(func(*sql.Rows) error {
		found = true
		return nil
	}, "SELECT 1 "+ownerless, 1)
	return found, err
}

// rescueOwnerless takes back running tasks whose worker is gone.
func rescueOwnerless(c *conn) (rescued []opscore.Task, err error) {
	var lost []opscore.Task
	err = c.query(func(rows *sql.Rows) error {
		t, err := scanTask(rows)
		lost = append(lost, t)
		return err
	}, "SELECT "+head+" "+ownerless, batchSize)
	if err != nil {
		return nil, err
	}
	at := now()
	for _, t := range lost {
		owner, err := deceased(c, t.Worker)
		if err != nil {
			return nil, err
		}
		o := opscore.LostOutcome(t, owner)
		if _, _, err := endOtherwise(c, &o, at, true); err != nil {
			return nil, err
		}
		after, err := get(c, []opscore.ID{t.ID})
		if err != nil {
			return nil, err
		}
		rescued = append(rescued, after...)
	}
	return rescued, nil
}

// deceased is what the register knows of a dead worker.
func deceased(c *conn, worker opscore.ID) (w opscore.WorkerInfo, err error) {
	err = c.query(func(rows *sql.Rows) error { return rows.Scan(&w.Host, &w.PID, &w.Cause) },
		"SELECT host, pid, cause FROM opscore_worker WHERE id = ?", worker[:])
	return w, err
}

// Expire implements [opscore.Chores].
func (s *Store) Expire(ctx context.Context) (expired []opscore.Task, err error) {
	due := false
	err = s.read(ctx, "look for expired tasks", func(c *conn) error {
		return c.query(func(*sql.Rows) error {
			due = true
			return nil
		}, "SELECT 1 FROM opscore_task WHERE state = 'pending' AND expires_at > 0 AND expires_at <= ? LIMIT 1", now())
	})
	if err != nil || !due {
		return nil, err
	}
	err = s.write(ctx, "expire tasks", func(c *conn) error {
		expired = nil
		at := now()
		return c.query(func(rows *sql.Rows) error {
			t, err := scanTask(rows)
			expired = append(expired, t)
			return err
		}, `UPDATE opscore_task SET state = 'failed', code = 'expired', error = 'it was not started before its expiry', finished_at = ?1
			WHERE state = 'pending' AND rowid IN (
				SELECT rowid FROM opscore_task
				WHERE state = 'pending' AND expires_at > 0 AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2)
			RETURNING `+head, at, batchSize)
	})
	return expired, err
}

// Prune implements [opscore.Chores].
func (s *Store) Prune(ctx context.Context, r opscore.Retention) (removed int, err error) {
	own := append([]string{}, slices.Sorted(maps.Keys(r.Queues))...) // not nil: it becomes a JSON array
	var old []opscore.ID
	err = s.read(ctx, "look for old tasks", func(c *conn) error {
		for _, state := range []opscore.State{opscore.Completed, opscore.Failed, opscore.Cancelled} {
			for _, q := range append(slices.Clone(own), "") {
				if old, err = oldTasks(c, old, state, q, own, r.For(q, state)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	if len(old) == 0 {
		return 0, s.forgetWorkers(ctx)
	}
	err = s.write(ctx, "prune tasks", func(c *conn) error {
		removed = 0
		for _, id := range old {
			n, err := remove(c, id, "")
			if err != nil {
				return err
			}
			removed += n
		}
		return nil
	})
	return removed, err
}

// Discard implements [opscore.Discarder].
func (s *Store) Discard(ctx context.Context, canaries []opscore.ID) (removed int, err error) {
	err = s.write(ctx, "discard canaries", func(c *conn) error {
		removed = 0
		for _, id := range canaries {
			n, err := remove(c, id, " AND actor = '"+opscore.CanaryActor+"'")
			if err != nil {
				return err
			}
			removed += n
		}
		return nil
	})
	return removed, err
}

// remove deletes a terminal task with its history, if it is one that is meant, and says whether it did: 1, or 0 if an operator put it back meanwhile.
func remove(c *conn, id opscore.ID, meant string) (int, error) {
	n, err := c.exec("DELETE FROM opscore_task WHERE id = ? AND state IN ('completed', 'failed', 'cancelled')"+meant, id[:])
	if err != nil || n == 0 {
		return 0, err
	}
	for _, q := range []string{"DELETE FROM opscore_attempt WHERE task = ?", "DELETE FROM opscore_log WHERE task = ?"} {
		if _, err := c.exec(q, id[:]); err != nil {
			return 0, err
		}
	}
	return 1, nil
}

// oldTasks adds the tasks of one state that finished longer than keep ago: those of queue, or, for queue "", those of
// all queues without a period of their own.
func oldTasks(c *conn, old []opscore.ID, state opscore.State, queue string, own []string, keep time.Duration) ([]opscore.ID, error) {
	if keep == opscore.Forever || len(old) >= batchSize {
		return old, nil
	}
	index := "state = 'completed'"
	if state != opscore.Completed {
		index = "state IN ('failed', 'cancelled')"
	}
	except, err := json.Marshal(own)
	if err != nil {
		return nil, err
	}
	err = c.query(func(rows *sql.Rows) error {
		var id opscore.ID
		err := scanID(rows, &id)
		old = append(old, id)
		return err
	}, "SELECT id FROM opscore_task WHERE "+index+` AND state = ?1 AND finished_at < ?2
		AND CASE WHEN ?3 = '' THEN queue NOT IN (SELECT value FROM json_each(?4)) ELSE queue = ?3 END LIMIT ?5`,
		string(state), now()-keep.Microseconds(), queue, string(except), batchSize-len(old))
	return old, err
}

// forgetWorkers removes long gone workers and the lock files of dead ones.
func (s *Store) forgetWorkers(ctx context.Context) error {
	var gone []opscore.ID
	err := s.read(ctx, "look for gone workers", func(c *conn) error {
		return c.query(func(rows *sql.Rows) error {
			var id opscore.ID
			err := scanID(rows, &id)
			gone = append(gone, id)
			return err
		}, "SELECT id FROM opscore_worker WHERE state = 'gone' AND gone_at < ? LIMIT ?", now()-forgetAfter.Microseconds(), batchSize)
	})
	if err != nil || len(gone) == 0 {
		return err
	}
	for _, id := range gone {
		if err := os.Remove(s.lockPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return unavailable("remove a dead worker's lock", err)
		}
	}
	return s.write(ctx, "forget gone workers", func(c *conn) error {
		for _, id := range gone {
			if _, err := c.exec("DELETE FROM opscore_worker WHERE id = ? AND state = 'gone'", id[:]); err != nil {
				return err
			}
		}
		return nil
	})
}
