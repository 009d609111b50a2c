package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/opscore/opscore"
)

// lane is the pending tasks of one queue, actor and priority; next is when its first is due.
type lane struct {
	queue, actor string
	rank         int
	next         int64
}

// laneSQL steps through the index from lane to lane, one column at a time (SQLite would search only the first of a row
// value), so its cost does not grow with the tasks in them.
const laneSQL = `
		WITH RECURSIVE lane (queue, actor, rank, run_at) AS (
			SELECT * FROM (
				SELECT queue, actor, rank, run_at FROM opscore_task
				WHERE state = 'pending' ORDER BY queue, actor, rank, run_at LIMIT 1)
			UNION ALL
			SELECT t.queue, t.actor, t.rank, t.run_at FROM lane l, opscore_task t
			WHERE t.rowid = coalesce(
				(SELECT rowid FROM opscore_task n
					WHERE n.state = 'pending' AND n.queue = l.queue AND n.actor = l.actor AND n.rank > l.rank
					ORDER BY n.rank, n.run_at LIMIT 1),
				(SELECT rowid FROM opscore_task n
					WHERE n.state = 'pending' AND n.queue = l.queue AND n.actor > l.actor
					ORDER BY n.actor, n.rank, n.run_at LIMIT 1),
				(SELECT rowid FROM opscore_task n
					WHERE n.state = 'pending' AND n.queue > l.queue
					ORDER BY n.queue, n.actor, n.rank, n.run_at LIMIT 1))
		)`

// lanes returns the lanes that a worker may take from, most urgent first.
func lanes(c *conn, want opscore.Claim) (found []lane, err error) {
	err = c.query(func(rows *sql.Rows) error {
		var l lane
		if err := rows.Scan(&l.queue, &l.actor, &l.rank, &l.next); err != nil {
			return err
		}
		if slices.Contains(want.Queues, l.queue) && slices.Contains(want.Actors, l.actor) {
			found = append(found, l)
		}
		return nil
	}, laneSQL+`
		SELECT queue, actor, rank, run_at FROM lane
		WHERE queue NOT IN (SELECT queue FROM opscore_pause) ORDER BY rank`)
	return found, err
}

// Claim implements [opscore.Runs].
func (s *Store) Claim(ctx context.Context, want opscore.Claim) (got opscore.Claimed, err error) {
	// A look without the write lock first: idle workers must not hold up the one writer.
	due := false
	if err := s.read(ctx, "look for due tasks", func(c *conn) error {
		due, got.Next, err = s.look(c, want)
		return err
	}); err != nil || !due {
		return got, err
	}
	err = s.write(ctx, "claim tasks", func(c *conn) error {
		got, err = claim(c, want)
		return err
	})
	if err != nil {
		return opscore.Claimed{}, err // a commit that failed leaves what was read
	}
	return got, nil
}

// look reports whether something may be due, or else when the next task is.
func (s *Store) look(c *conn, want opscore.Claim) (due bool, next time.Duration, err error) {
	if want.Max <= 0 {
		return false, 0, nil
	}
	at := now()
	if len(want.IDs) > 0 {
		chosen, err := chooseByID(c, want, at)
		return len(chosen) > 0, 0, err
	}
	found, err := lanes(c, want)
	for _, l := range found {
		due = due || l.next <= at
		if wait := time.Duration(l.next-at) * time.Microsecond; next == 0 || wait < next {
			next = wait
		}
	}
	return due, next, err
}

// candidate is a task that may be claimed.
type candidate struct {
	rowid, run int64
	id         opscore.ID
}

func claim(c *conn, want opscore.Claim) (got opscore.Claimed, err error) {
	alive := false
	if err := c.query(func(*sql.Rows) error {
		alive = true
		return nil
	}, "SELECT 1 FROM opscore_worker WHERE id = ? AND state <> 'gone'", want.Worker[:]); err != nil {
		return got, err
	}
	if !alive {
		return got, opscore.ErrLeaseLost
	}
	at := now()
	var chosen []int64
	if len(want.IDs) > 0 {
		chosen, err = chooseByID(c, want, at)
	} else {
		chosen, err = choose(c, want, at)
	}
	if err != nil || len(chosen) == 0 {
		return got, err
	}
	got.Tasks, err = run(c, chosen, want.Worker, at)
	return got, err
}

// choose picks the most urgent due tasks: lane by lane in order of priority, lanes of equal priority merged by due
// time and id.
func choose(c *conn, want opscore.Claim, at int64) (chosen []int64, err error) {
	found, err := lanes(c, want)
	if err != nil {
		return nil, err
	}
	for len(found) > 0 && len(chosen) < want.Max {
		n := 1
		for n < len(found) && found[n].rank == found[0].rank {
			n++
		}
		var level []candidate
		for _, l := range found[:n] {
			if l.next > at {
				continue
			}
			err := c.query(func(rows *sql.Rows) error {
				var k candidate
				err := scanID(rows, &k.id, &k.rowid, &k.run)
				level = append(level, k)
				return err
			}, `SELECT id, rowid, run_at FROM opscore_task
				WHERE state = 'pending' AND queue = ? AND actor = ? AND rank = ? AND run_at <= ? AND (expires_at = 0 OR expires_at > ?)
				ORDER BY run_at, id LIMIT ?`, l.queue, l.actor, l.rank, at, at, want.Max-len(chosen))
			if err != nil {
				return nil, err
			}
		}
		if n > 1 {
			slices.SortFunc(level, func(a, b candidate) int {
				return cmp.Or(cmp.Compare(a.run, b.run), slices.Compare(a.id[:], b.id[:]))
			})
		}
		for _, k := range level[:min(len(level), want.Max-len(chosen))] {
			chosen = append(chosen, k.rowid)
		}
		found = found[n:]
	}
	return chosen, nil
}

func chooseByID(c *conn, want opscore.Claim, at int64) (chosen []int64, err error) {
	for _, id := range want.IDs[:min(len(want.IDs), want.Max)] {
		err := c.query(func(rows *sql.Rows) error {
			var rowid int64
			var actor string
			err := rows.Scan(&rowid, &actor)
			if slices.Contains(want.Actors, actor) {
				chosen = append(chosen, rowid)
			}
			return err
		}, `SELECT rowid, actor FROM opscore_task
			WHERE id = ? AND state = 'pending' AND run_at <= ? AND (expires_at = 0 OR expires_at > ?)
				AND queue NOT IN (SELECT queue FROM opscore_pause)`, id[:], at, at)
		if err != nil {
			return nil, err
		}
	}
	return chosen, nil
}

// run makes the chosen tasks running under the worker, and returns them in the order of urgency.
func run(c *conn, chosen []int64, worker opscore.ID, at int64) ([]opscore.Task, error) {
	rowids, err := json.Marshal(chosen)
	if err != nil {
		return nil, err
	}
	tasks := make([]opscore.Task, 0, len(chosen))
	err = c.query(func(rows *sql.Rows) error {
		t, err := scanClaimed(rows)
		t.State, t.Worker, t.StartedAt = opscore.Running, worker, timeOf(at)
		tasks = append(tasks, t)
		return err
	}, `UPDATE opscore_task SET
			state = 'running', claim_seq = claim_seq + 1, attempt = attempt + 1, worker = ?, started_at = ?,
			progress = 0, progress_text = ''
		WHERE rowid IN (SELECT value FROM json_each(?)) AND state = 'pending'
		RETURNING `+claimedColumns, worker[:], at, string(rowids))
	slices.SortFunc(tasks, func(a, b opscore.Task) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), a.RunAt.Compare(b.RunAt), slices.Compare(a.ID[:], b.ID[:]))
	})
	return tasks, err
}

// claimedColumns are what a worker needs of a task: on this path every column counts.
const claimedColumns = `id, queue, actor, rank, run_at, created_at, expires_at, timeout, max_attempts, attempt, lost, claim_seq,
	unique_key, labels, args`

func scanClaimed(rows *sql.Rows) (t opscore.Task, err error) {
	var run, created, expires, timeout int64
	var labels string
	var args []byte
	if err := scanID(rows, &t.ID, &t.Queue, &t.Actor, &t.Priority, &run, &created, &expires, &timeout, &t.MaxAttempts, &t.Attempt,
		&t.Lost, &t.ClaimSeq, &t.UniqueKey, &labels, &args); err != nil {
		return t, err
	}
	t.Priority, t.Args = -t.Priority, args
	t.RunAt, t.CreatedAt, t.ExpiresAt = timeOf(run), timeOf(created), timeOf(expires)
	t.Timeout = opscore.Duration(time.Duration(timeout) * time.Microsecond)
	return t, scanLabels(labels, &t)
}

// Finish implements [opscore.Runs].
func (s *Store) Finish(ctx context.Context, outcomes []opscore.Outcome) (recorded []opscore.Recorded, err error) {
	err = s.write(ctx, "record outcomes", func(c *conn) error {
		recorded = make([]opscore.Recorded, len(outcomes))
		at := now()
		for i := range outcomes {
			if recorded[i], err = finish(c, &outcomes[i], at); err != nil {
				return fmt.Errorf("outcome of task %s: %w", outcomes[i].Task, err)
			}
		}
		return nil
	})
	return recorded, err
}

func finish(c *conn, o *opscore.Outcome, at int64) (r opscore.Recorded, err error) {
	var held bool
	if o.State == opscore.Completed {
		r.State = opscore.Completed
		held, err = complete(c, o.Task, o.ClaimSeq, o.Worker, o.Result, at)
	} else {
		r, held, err = endOtherwise(c, o, at, false)
	}
	if err != nil {
		return r, err
	}
	if held {
		return r, addLog(c, o.Log)
	}
	if r, err = notHeld(c, o, at); err != nil {
		return r, err
	}
	return r, addMissingLog(c, o.Task, o.ClaimSeq, o.Log)
}

// complete is the happy path: one statement.
func complete(c *conn, task opscore.ID, seq int64, worker opscore.ID, result []byte, at int64) (held bool, err error) {
	n, err := c.exec(`
		UPDATE opscore_task SET state = 'completed', finished_at = ?, result = ?, code = '', error = ''
		WHERE id = ? AND state = 'running' AND claim_seq = ? AND worker = ?`, at, result, task[:], seq, worker[:])
	return n == 1, err
}

// endOtherwise records an attempt that did not complete its task, in the row and in the history.
// revoke says that the owner did not end it itself: whatever it says from now on is late.
func endOtherwise(c *conn, o *opscore.Outcome, at int64, revoke bool) (r opscore.Recorded, held bool, err error) {
	var started int64
	back := o.State == opscore.Pending
	err = c.query(func(rows *sql.Rows) error {
		held = true
		return rows.Scan((*string)(&r.State), &started)
	}, `UPDATE opscore_task SET
			state       = CASE WHEN cancel_at > 0 THEN 'cancelled' ELSE ?1 END,
			finished_at = CASE WHEN cancel_at > 0 OR NOT ?2 THEN ?3 ELSE 0 END,
			claim_seq   = claim_seq + (cancel_at = 0 AND ?2 OR ?11),
			run_at      = CASE WHEN cancel_at = 0 AND ?2 THEN ?3 + ?4 ELSE run_at END,
			attempt     = attempt - ?5,
			lost        = CASE WHEN ?11 THEN lost + 1 WHEN ?12 AND alone_seq = claim_seq THEN 0 ELSE lost END,
			code        = CASE WHEN cancel_at > 0 THEN 'cancelled' ELSE ?6 END,
			error       = ?7
		WHERE id = ?8 AND state = 'running' AND claim_seq = ?9 AND worker = ?10
		RETURNING state, started_at`,
		string(o.State), back, at, o.Delay.Microseconds(), o.Uncounted, string(o.Code), o.Error, o.Task[:], o.ClaimSeq, o.Worker[:],
		revoke, o.Clears())
	if err != nil || !held {
		return r, held, err
	}
	c.wakes = c.wakes || back
	if o.Unstarted {
		return r, held, nil
	}
	return r, held, addAttempt(c, opscore.Attempt{
		Task: o.Task, ClaimSeq: o.ClaimSeq, Worker: o.Worker, StartedAt: timeOf(started), EndedAt: timeOf(at), Code: o.Code, Error: o.Error,
	})
}

// notHeld tells an outcome that is recorded already from one whose claim was revoked. The latter goes into the history:
// it happened, but it is not the task's outcome.
func notHeld(c *conn, o *opscore.Outcome, at int64) (r opscore.Recorded, err error) {
	exists, mine, known := false, false, false
	err = c.query(func(rows *sql.Rows) error {
		exists = true
		return rows.Scan((*string)(&r.State), &mine)
	}, `SELECT state, coalesce(claim_seq = ?1 AND worker = ?2, 0) AND state <> 'running' FROM opscore_task WHERE id = ?3`,
		o.ClaimSeq, o.Worker[:], o.Task[:])
	if err != nil || mine {
		return r, err
	}
	err = c.query(func(rows *sql.Rows) error {
		known = true
		return rows.Scan(&r.Late)
	}, `SELECT late FROM opscore_attempt WHERE task = ? AND claim_seq = ? AND worker = ? AND code NOT IN ('lost', 'poison') ORDER BY late LIMIT 1`,
		o.Task[:], o.ClaimSeq, o.Worker[:])
	if err != nil || known {
		return r, err
	}
	if o.Unstarted {
		return r, nil
	}
	r.Late = true
	if !exists {
		return r, nil
	}
	return r, addAttempt(c, opscore.Attempt{
		Task: o.Task, ClaimSeq: o.ClaimSeq, Worker: o.Worker, EndedAt: timeOf(at),
		Code: cmp.Or(o.Code, opscore.Code(o.State)), Error: o.Error, Late: true,
	})
}

func addLog(c *conn, lines []opscore.LogLine) error {
	for _, l := range lines {
		if _, err := c.exec("INSERT INTO opscore_log (task, claim_seq, at, level, text) VALUES (?, ?, ?, ?, ?)",
			l.Task[:], l.ClaimSeq, micros(l.At), l.Level, l.Text); err != nil {
			return err
		}
	}
	return nil
}

// addMissingLog adds the lines of a claim that is over, if it was ever made: they may have been stored before.
func addMissingLog(c *conn, task opscore.ID, seq int64, lines []opscore.LogLine) error {
	for _, l := range lines {
		if _, err := c.exec(`
			INSERT INTO opscore_log (task, claim_seq, at, level, text) SELECT ?1, ?2, ?3, ?4, ?5
			WHERE EXISTS (SELECT 1 FROM opscore_task WHERE id = ?1 AND claim_seq >= ?2)
				AND NOT EXISTS (SELECT 1 FROM opscore_log WHERE task = ?1 AND claim_seq = ?2 AND at = ?3 AND text = ?5)`,
			task[:], seq, micros(l.At), l.Level, l.Text); err != nil {
			return err
		}
	}
	return nil
}

// Isolate implements [opscore.Runs]. The mark names the claim, so it ends with it.
func (s *Store) Isolate(ctx context.Context, task opscore.ID, claimSeq int64, worker opscore.ID) error {
	return s.write(ctx, "isolate a task", func(c *conn) error {
		n, err := c.exec(`
			UPDATE opscore_task SET alone_seq = claim_seq, started_at = ?
			WHERE id = ? AND state = 'running' AND claim_seq = ? AND worker = ?
				AND worker IN (SELECT id FROM opscore_worker WHERE state <> 'gone')`, now(), task[:], claimSeq, worker[:])
		if err == nil && n == 0 {
			err = opscore.ErrLeaseLost
		}
		return err
	})
}

// Note implements [opscore.Runs].
func (s *Store) Note(ctx context.Context, notes []opscore.Note) error {
	return s.write(ctx, "store progress and logs", func(c *conn) error {
		for i := range notes {
			n := &notes[i]
			held, err := c.exec(`
				UPDATE opscore_task SET
					progress = CASE WHEN ?1 >= 0 THEN ?1 ELSE progress END,
					progress_text = CASE WHEN ?1 >= 0 THEN ?2 ELSE progress_text END
				WHERE id = ?3 AND state = 'running' AND claim_seq = ?4 AND worker = ?5`,
				n.Progress, n.Text, n.Task[:], n.ClaimSeq, n.Worker[:])
			if err != nil {
				return err
			}
			if held == 0 {
				err = addMissingLog(c, n.Task, n.ClaimSeq, n.Log)
			} else {
				err = addLog(c, n.Log)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}
