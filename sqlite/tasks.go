package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opscore/opscore"
)

// head are the columns of a task that scanTask reads, without args and result.
const head = `id, queue, actor, rank, state, run_at, created_at, expires_at, timeout, max_attempts, attempt, lost, claim_seq,
	worker, started_at, finished_at, cancel_at, cancel_by, unique_key, labels, code, error, progress, progress_text,
	state = 'running' AND alone_seq = claim_seq`

// scanTask reads head, then more.
func scanTask(rows *sql.Rows, more ...any) (opscore.Task, error) {
	var (
		t                                                            opscore.Task
		id, worker                                                   sql.RawBytes
		run, created, expires, timeout, started, finished, cancelled int64
		labels                                                       string
	)
	dest := append([]any{
		&id, &t.Queue, &t.Actor, &t.Priority, (*string)(&t.State), &run, &created, &expires, &timeout,
		&t.MaxAttempts, &t.Attempt, &t.Lost, &t.ClaimSeq, &worker, &started, &finished, &cancelled, &t.CancelledBy,
		&t.UniqueKey, &labels, (*string)(&t.Code), &t.Error, &t.Progress, &t.ProgressText, &t.Alone,
	}, more...)
	if err := rows.Scan(dest...); err != nil {
		return t, err
	}
	copy(t.ID[:], id)
	copy(t.Worker[:], worker)
	t.Priority = -t.Priority
	t.RunAt, t.CreatedAt, t.ExpiresAt = timeOf(run), timeOf(created), timeOf(expires)
	t.StartedAt, t.FinishedAt, t.CancelRequestedAt = timeOf(started), timeOf(finished), timeOf(cancelled)
	t.Timeout = opscore.Duration(time.Duration(timeout) * time.Microsecond)
	return t, scanLabels(labels, &t)
}

func scanLabels(labels string, t *opscore.Task) error {
	if labels == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(labels), &t.Labels); err != nil {
		return fmt.Errorf("labels of task %s: %w", t.ID, err)
	}
	return nil
}

// Insert implements [opscore.Inserter].
func (s *Store) Insert(ctx context.Context, requests []opscore.Request) (inserted []opscore.Inserted, err error) {
	err = s.write(ctx, "insert tasks", func(c *conn) error {
		inserted, err = insert(c, requests)
		return err
	})
	return inserted, err
}

func insert(c *conn, requests []opscore.Request) ([]opscore.Inserted, error) {
	at := now()
	inserted := make([]opscore.Inserted, len(requests))
	for i := range requests {
		r := &requests[i]
		inserted[i] = opscore.Inserted{ID: r.ID}
		if r.UniqueKey != "" {
			holder, held, err := keyHolder(c, r.Actor, r.UniqueKey)
			if err != nil {
				return nil, err
			}
			if held && holder != r.ID {
				inserted[i] = opscore.Inserted{ID: holder, Duplicate: true}
				continue
			}
		}
		fresh, err := insertOne(c, r, at)
		if err != nil {
			return nil, err
		}
		if !fresh {
			inserted[i].Duplicate = true
			if err := sameRequest(c, r); err != nil {
				return nil, err
			}
		}
	}
	c.wakes = true
	return inserted, nil
}

func insertOne(c *conn, r *opscore.Request, at int64) (fresh bool, err error) {
	labels := ""
	if len(r.Labels) > 0 {
		b, err := json.Marshal(r.Labels)
		if err != nil {
			return false, err
		}
		labels = string(b)
	}
	run, expires := at+r.After.Microseconds(), micros(r.ExpiresAt)
	if !r.At.IsZero() {
		run = micros(r.At)
	}
	if r.ExpiresAfter > 0 {
		expires = at + r.ExpiresAfter.Microseconds()
	}
	n, err := c.exec(`
		INSERT INTO opscore_task
			(id, queue, actor, rank, state, run_at, created_at, expires_at, timeout, max_attempts, unique_key, labels, args)
		VALUES (?, ?, ?, ?, 'pending', ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO NOTHING`,
		r.ID[:], r.Queue, r.Actor, -r.Priority, run, at, expires, r.Timeout.Microseconds(), r.MaxAttempts, r.UniqueKey, labels,
		[]byte(r.Args))
	return n == 1, err
}

func keyHolder(c *conn, actor, key string) (holder opscore.ID, held bool, err error) {
	err = c.query(func(rows *sql.Rows) error {
		held = true
		return scanID(rows, &holder)
	}, `SELECT id FROM opscore_task
		WHERE actor = ? AND unique_key = ? AND unique_key <> '' AND state IN ('pending', 'running', 'completed')`, actor, key)
	return holder, held, err
}

func scanID(rows *sql.Rows, id *opscore.ID, more ...any) error {
	var raw sql.RawBytes
	if err := rows.Scan(append([]any{&raw}, more...)...); err != nil {
		return err
	}
	copy(id[:], raw)
	return nil
}

// sameRequest checks that the task with the request's id is what the request asks for.
func sameRequest(c *conn, r *opscore.Request) error {
	return c.query(func(rows *sql.Rows) error {
		var actor string
		var args []byte
		if err := rows.Scan(&actor, &args); err != nil {
			return err
		}
		if actor == r.Actor && bytes.Equal(args, r.Args) {
			return nil
		}
		return &opscore.Error{
			Code:    opscore.CodeConflict,
			Message: fmt.Sprintf("task %s exists already, with another actor or other args", r.ID),
		}
	}, "SELECT actor, args FROM opscore_task WHERE id = ?", r.ID[:])
}

// Get implements [opscore.Tasks].
func (s *Store) Get(ctx context.Context, ids []opscore.ID) (tasks []opscore.Task, err error) {
	err = s.read(ctx, "get tasks", func(c *conn) error {
		tasks, err = get(c, ids)
		return err
	})
	return tasks, err
}

func get(c *conn, ids []opscore.ID) ([]opscore.Task, error) {
	tasks := make([]opscore.Task, 0, len(ids))
	for _, id := range ids {
		err := c.query(func(rows *sql.Rows) error {
			var args, result []byte
			t, err := scanTask(rows, &args, &result)
			t.Args, t.Result = args, result
			tasks = append(tasks, t)
			return err
		}, "SELECT "+head+", args, result FROM opscore_task WHERE id = ?", id[:])
		if err != nil {
			return nil, err
		}
	}
	return tasks, nil
}

// List implements [opscore.Tasks].
func (s *Store) List(ctx context.Context, f opscore.Filter) (tasks []opscore.Task, err error) {
	where, args := conditions(f)
	query := "SELECT " + head + " FROM opscore_task WHERE " + where + " ORDER BY id DESC LIMIT ?"
	limit := f.Limit
	if limit <= 0 {
		limit = 50
	}
	err = s.read(ctx, "list tasks", func(*conn) error {
		rows, err := s.reader.QueryContext(ctx, query, append(args, min(limit, 1000))...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			t, err := scanTask(rows)
			if err != nil {
				return err
			}
			tasks = append(tasks, t)
		}
		return rows.Err()
	})
	return tasks, err
}

// conditions compiles a filter. Values are bound; the text holds only constants.
func conditions(f opscore.Filter) (where string, args []any) {
	terms := []string{"true"}
	add := func(term string, values ...any) {
		terms, args = append(terms, term), append(args, values...)
	}
	if len(f.States) > 0 {
		add("state IN (?" + strings.Repeat(", ?", len(f.States)-1) + ")")
		for _, st := range f.States {
			args = append(args, string(st))
		}
		if !slices.ContainsFunc(f.States, func(st opscore.State) bool { return st != opscore.Failed && st != opscore.Cancelled }) {
			add("state IN ('failed', 'cancelled')") // lets SQLite use opscore_task_ended
		}
	}
	if f.Queue != "" {
		add("queue = ?", f.Queue)
	}
	if f.Actor != "" {
		add("actor = ?", f.Actor)
	}
	for k, v := range f.Labels {
		add("labels <> '' AND labels ->> ? = ?", `$."`+k+`"`, v)
	}
	if f.Before != (opscore.ID{}) {
		add("id < ?", f.Before[:])
	}
	return strings.Join(terms, " AND "), args
}

// Count implements [opscore.Tasks].
func (s *Store) Count(ctx context.Context) (counts []opscore.Count, err error) {
	err = s.read(ctx, "count tasks", func(c *conn) error {
		return c.query(func(rows *sql.Rows) error {
			var n opscore.Count
			err := rows.Scan(&n.Queue, &n.Actor, (*string)(&n.State), &n.Tasks)
			counts = append(counts, n)
			return err
		}, "SELECT queue, actor, state, count(*) FROM opscore_task GROUP BY queue, actor, state ORDER BY queue, actor, state")
	})
	return counts, err
}

// Cancel implements [opscore.Tasks].
func (s *Store) Cancel(ctx context.Context, ids []opscore.ID, by string) (tasks []opscore.Task, err error) {
	err = s.write(ctx, "cancel tasks", func(c *conn) error {
		at := now()
		for _, id := range ids {
			if _, err := c.exec(`
				UPDATE opscore_task SET state = 'cancelled', code = 'cancelled', finished_at = ?, cancel_at = ?, cancel_by = ?
				WHERE id = ? AND state = 'pending'`, at, at, by, id[:]); err != nil {
				return err
			}
			if _, err := c.exec(`
				UPDATE opscore_task SET cancel_at = ?, cancel_by = ?
				WHERE id = ? AND state = 'running' AND cancel_at = 0`, at, by, id[:]); err != nil {
				return err
			}
		}
		tasks, err = get(c, ids)
		return err
	})
	return tasks, err
}

// Retry implements [opscore.Tasks].
func (s *Store) Retry(ctx context.Context, ids []opscore.ID, by string) (tasks []opscore.Task, err error) {
	err = s.write(ctx, "retry tasks", func(c *conn) error {
		if tasks, err = get(c, ids); err != nil {
			return err
		}
		for _, id := range ids {
			i := slices.IndexFunc(tasks, func(t opscore.Task) bool { return t.ID == id })
			if i < 0 {
				return &opscore.Error{Code: opscore.CodeTaskNotFound, Message: fmt.Sprintf("task %s not found", id)}
			}
			if err := retry(c, tasks[i], by); err != nil {
				return err
			}
		}
		c.wakes = true
		tasks, err = get(c, ids)
		return err
	})
	return tasks, err
}

func retry(c *conn, t opscore.Task, by string) error {
	conflict := func(why string) error {
		return &opscore.Error{Code: opscore.CodeConflict, Message: fmt.Sprintf("task %s cannot be retried: %s", t.ID, why)}
	}
	if t.State != opscore.Failed && t.State != opscore.Cancelled {
		return conflict("it is " + string(t.State) + "; only failed and cancelled tasks can")
	}
	if t.UniqueKey != "" {
		holder, held, err := keyHolder(c, t.Actor, t.UniqueKey)
		if err != nil {
			return err
		}
		if held {
			return conflict(fmt.Sprintf("its unique key %q is held by task %s now", t.UniqueKey, holder))
		}
	}
	at := now()
	if _, err := c.exec(`
		UPDATE opscore_task SET
			state = 'pending', claim_seq = claim_seq + 1, run_at = ?, expires_at = 0, attempt = 0, lost = 0, worker = NULL,
			finished_at = 0, cancel_at = 0, cancel_by = '', code = '', error = '', progress = 0, progress_text = ''
		WHERE id = ? AND state IN ('failed', 'cancelled')`, at, t.ID[:]); err != nil {
		return err
	}
	return addAttempt(c, opscore.Attempt{
		Task: t.ID, ClaimSeq: t.ClaimSeq + 1, EndedAt: timeOf(at), Code: opscore.CodeRetried, Error: "put back by " + by,
	})
}

// addAttempt writes a row of history and drops what is older than 200 claims, so that a task that snoozes for
// years keeps a bounded history.
func addAttempt(c *conn, a opscore.Attempt) error {
	if _, err := c.exec(`
		INSERT INTO opscore_attempt (task, claim_seq, worker, build, started_at, ended_at, code, error, late)
		VALUES (?, ?, ?, coalesce((SELECT build FROM opscore_worker WHERE id = ?), ''), ?, ?, ?, ?, ?)`,
		a.Task[:], a.ClaimSeq, idOrNull(a.Worker), a.Worker[:], micros(a.StartedAt), micros(a.EndedAt), string(a.Code), a.Error,
		a.Late); err != nil {
		return err
	}
	if a.ClaimSeq <= keptClaims {
		return nil
	}
	for _, q := range []string{
		"DELETE FROM opscore_attempt WHERE task = ? AND claim_seq <= ?",
		"DELETE FROM opscore_log WHERE task = ? AND claim_seq <= ?",
	} {
		if _, err := c.exec(q, a.Task[:], a.ClaimSeq-keptClaims); err != nil {
			return err
		}
	}
	return nil
}

// keptClaims bounds a task's history; a claim and its revoke are two.
const keptClaims = 400

func idOrNull(id opscore.ID) any {
	if id == (opscore.ID{}) {
		return nil
	}
	return id[:]
}

// Attempts implements [opscore.History].
func (s *Store) Attempts(ctx context.Context, task opscore.ID) (attempts []opscore.Attempt, err error) {
	err = s.read(ctx, "read attempts", func(c *conn) error {
		return c.query(func(rows *sql.Rows) error {
			a := opscore.Attempt{Task: task}
			var worker sql.RawBytes
			var started, ended int64
			if err := rows.Scan(&a.ClaimSeq, &worker, &a.Build, &started, &ended, (*string)(&a.Code), &a.Error, &a.Late); err != nil {
				return err
			}
			copy(a.Worker[:], worker)
			a.StartedAt, a.EndedAt = timeOf(started), timeOf(ended)
			attempts = append(attempts, a)
			return nil
		}, `SELECT claim_seq, worker, build, started_at, ended_at, code, error, late
			FROM opscore_attempt WHERE task = ? ORDER BY claim_seq, rowid`, task[:])
	})
	return attempts, err
}

// Logs implements [opscore.History].
func (s *Store) Logs(ctx context.Context, task opscore.ID) (lines []opscore.LogLine, err error) {
	err = s.read(ctx, "read logs", func(c *conn) error {
		return c.query(func(rows *sql.Rows) error {
			l := opscore.LogLine{Task: task}
			var at int64
			err := rows.Scan(&l.ClaimSeq, &at, &l.Level, &l.Text)
			l.At = timeOf(at)
			lines = append(lines, l)
			return err
		}, "SELECT claim_seq, at, level, text FROM opscore_log WHERE task = ? ORDER BY claim_seq, rowid", task[:])
	})
	return lines, err
}
