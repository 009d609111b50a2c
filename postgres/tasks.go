package postgres

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/opscore/opscore"
)

// head are the columns of a task that scanTask reads, without args and result.
const head = `t.id, t.queue, t.actor, -t.rank, t.state, t.run_at, t.created_at, t.expires_at, t.timeout, t.max_attempts, t.attempt,
	t.lost, t.claim_seq, t.worker, t.started_at, t.finished_at, t.cancel_at, t.cancel_by, t.unique_key, t.labels, t.code, t.error,
	t.progress, t.progress_text, t.state = 'running' AND t.alone_seq = t.claim_seq`

// scanTask reads head, then more.
func scanTask(rows pgx.Rows, more ...any) (t opscore.Task, err error) {
	var worker *opscore.ID
	var run, created time.Time
	var expires, started, finished, cancelled *time.Time
	var timeout int64
	err = rows.Scan(append([]any{
		&t.ID, &t.Queue, &t.Actor, &t.Priority, (*string)(&t.State), &run, &created, &expires, &timeout, &t.MaxAttempts,
		&t.Attempt, &t.Lost, &t.ClaimSeq, &worker, &started, &finished, &cancelled, &t.CancelledBy, &t.UniqueKey, &t.Labels,
		(*string)(&t.Code), &t.Error, &t.Progress, &t.ProgressText, &t.Alone,
	}, more...)...)
	if worker != nil {
		t.Worker = *worker
	}
	t.RunAt, t.CreatedAt, t.ExpiresAt = run.UTC(), created.UTC(), timeOf(expires)
	t.StartedAt, t.FinishedAt, t.CancelRequestedAt = timeOf(started), timeOf(finished), timeOf(cancelled)
	t.Timeout = opscore.Duration(time.Duration(timeout) * time.Microsecond)
	return t, err
}

// insertSQL stores requests, given as an array per column. In times and durations, in microseconds, 0 means none; so does ” as labels.
const insertSQL = `
	INSERT INTO opscore.task
		(id, queue, actor, rank, state, run_at, created_at, expires_at, timeout, max_attempts, unique_key, labels, args)
	SELECT r.id, r.queue, r.actor, r.rank, 'pending',
		CASE WHEN r.at = 0 THEN c.now + r.after * c.us ELSE timestamptz 'epoch' + r.at * c.us END, c.now,
		CASE WHEN r.expires <> 0 THEN timestamptz 'epoch' + r.expires * c.us WHEN r.lifetime <> 0 THEN c.now + r.lifetime * c.us END,
		r.timeout, r.attempts, r.key, nullif(r.labels, '')::jsonb, r.args
	FROM (SELECT clock_timestamp() AS now, interval '1 microsecond' AS us) c,
		unnest($1::uuid[], $2::text[], $3::text[], $4::smallint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[],
			$10::integer[], $11::text[], $12::text[], $13::bytea[])
		AS r (id, queue, actor, rank, at, after, expires, lifetime, timeout, attempts, key, labels, args)
	ON CONFLICT DO NOTHING
	RETURNING id`

// columns are requests as insertSQL wants them.
type columns struct {
	ids                                     [][16]byte
	queues, actors, keys, labels            []string
	ranks                                   []int16
	at, after, expires, lifetimes, timeouts []int64
	attempts                                []int32
	args                                    [][]byte
}

// columnsOf orders the requests by unique key: two batches that insert the same keys in different orders would otherwise wait
// for each other.
func columnsOf(requests []opscore.Request) (*columns, error) {
	if slices.ContainsFunc(requests, func(r opscore.Request) bool { return r.UniqueKey != "" }) {
		requests = slices.Clone(requests)
		slices.SortStableFunc(requests, func(a, b opscore.Request) int {
			return cmp.Or(strings.Compare(a.Actor, b.Actor), strings.Compare(a.UniqueKey, b.UniqueKey))
		})
	}
	c := &columns{}
	for i := range requests {
		r := &requests[i]
		labels := ""
		if len(r.Labels) > 0 {
			doc, err := json.Marshal(r.Labels)
			if err != nil {
				return nil, err
			}
			labels = string(doc)
		}
		c.ids, c.args = append(c.ids, r.ID), append(c.args, r.Args)
		c.queues, c.actors = append(c.queues, r.Queue), append(c.actors, r.Actor)
		c.keys, c.labels = append(c.keys, r.UniqueKey), append(c.labels, labels)
		c.ranks, c.attempts = append(c.ranks, int16(-r.Priority)), append(c.attempts, int32(r.MaxAttempts))
		c.at, c.after = append(c.at, microsOrZero(r.At)), append(c.after, r.After.Microseconds())
		c.expires, c.lifetimes = append(c.expires, microsOrZero(r.ExpiresAt)), append(c.lifetimes, r.ExpiresAfter.Microseconds())
		c.timeouts = append(c.timeouts, r.Timeout.Microseconds())
	}
	return c, nil
}

func microsOrZero(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(t.UnixMicro(), 1)
}

// parameters are insertSQL's.
func (c *columns) parameters() []any {
	return []any{
		c.ids, c.queues, c.actors, c.ranks, c.at, c.after, c.expires, c.lifetimes, c.timeouts, c.attempts, c.keys, c.labels, c.args,
	}
}

// literals are the same as text, for drivers that know no arrays.
func (c *columns) literals() ([]any, error) {
	types := []uint32{
		pgtype.UUIDArrayOID, pgtype.TextArrayOID, pgtype.TextArrayOID, pgtype.Int2ArrayOID, pgtype.Int8ArrayOID, pgtype.Int8ArrayOID,
		pgtype.Int8ArrayOID, pgtype.Int8ArrayOID, pgtype.Int8ArrayOID, pgtype.Int4ArrayOID, pgtype.TextArrayOID, pgtype.TextArrayOID,
		pgtype.ByteaArrayOID,
	}
	m, params := pgtype.NewMap(), c.parameters()
	for i, p := range params {
		text, err := m.Encode(types[i], pgtype.TextFormatCode, p, nil)
		if err != nil {
			return nil, err
		}
		params[i] = string(text)
	}
	return params, nil
}

// inserter is what an insert needs of a transaction, whatever driver it comes from.
type inserter struct {
	insert func(c *columns) (ids []opscore.ID, err error)                         // runs insertSQL
	byID   func(id opscore.ID) (actor string, args []byte, found bool, err error) // runs byIDSQL
	holder func(actor, key string) (id opscore.ID, found bool, err error)         // runs holderSQL
}

const (
	byIDSQL   = "SELECT actor, args FROM opscore.task WHERE id = $1"
	holderSQL = `SELECT id FROM opscore.task
		WHERE actor = $1 AND unique_key = $2 AND unique_key <> '' AND state IN ('pending', 'running', 'completed')`
)

// run inserts what is new and finds out what stood in the way of the rest. A holder may end between the two: then its
// key is free and the request has another try.
func (in inserter) run(requests []opscore.Request) ([]opscore.Inserted, error) {
	inserted := make([]opscore.Inserted, len(requests))
	todo := requests
	index := make(map[opscore.ID][]int, len(requests))
	for i := range requests {
		index[requests[i].ID] = append(index[requests[i].ID], i)
	}
	for range 10 {
		c, err := columnsOf(todo)
		if err != nil {
			return nil, err
		}
		stored, err := in.insert(c)
		if err != nil {
			return nil, err
		}
		for _, id := range stored {
			inserted[index[id][0]] = opscore.Inserted{ID: id}
		}
		var again []opscore.Request
		for i := range requests {
			if inserted[i].ID != (opscore.ID{}) {
				continue
			}
			answer, known, err := in.explain(&requests[i])
			if err != nil {
				return nil, err
			}
			if known {
				inserted[i] = answer
			} else {
				again = append(again, requests[i])
			}
		}
		if todo = again; len(todo) == 0 {
			return inserted, nil
		}
	}
	return nil, &opscore.Error{Code: opscore.CodeUnavailable, Message: "insert tasks: their unique keys change hands all the time; try again"}
}

// explain says which task stood in the way of a request that was not inserted.
func (in inserter) explain(r *opscore.Request) (opscore.Inserted, bool, error) {
	actor, args, found, err := in.byID(r.ID)
	switch {
	case err != nil:
		return opscore.Inserted{}, false, err
	case found && (actor != r.Actor || !bytes.Equal(args, r.Args)):
		return opscore.Inserted{}, false, &opscore.Error{
			Code:    opscore.CodeConflict,
			Message: fmt.Sprintf("task %s exists already, with another actor or other args", r.ID),
		}
	case found:
		return opscore.Inserted{ID: r.ID, Duplicate: true}, true, nil
	}
	holder, held, err := in.holder(r.Actor, r.UniqueKey)
	return opscore.Inserted{ID: holder, Duplicate: true}, held, err
}

// inserter runs an insert on q, with the statements' texts made by text.
func inserterOn(ctx context.Context, q querier, text func(string) string) inserter {
	return inserter{
		insert: func(c *columns) (ids []opscore.ID, err error) {
			err = each(ctx, q, func(rows pgx.Rows) error {
				var id [16]byte
				err := rows.Scan(&id)
				ids = append(ids, id)
				return err
			}, text(insertSQL), c.parameters()...)
			return ids, err
		},
		byID: func(id opscore.ID) (actor string, args []byte, found bool, err error) {
			err = each(ctx, q, func(rows pgx.Rows) error {
				found = true
				return rows.Scan(&actor, &args)
			}, text(byIDSQL), id)
			return actor, args, found, err
		},
		holder: func(actor, key string) (id opscore.ID, found bool, err error) {
			err = each(ctx, q, func(rows pgx.Rows) error {
				found = true
				return rows.Scan(&id)
			}, text(holderSQL), actor, key)
			return id, found, err
		},
	}
}

// Insert implements [opscore.Inserter].
func (s *Store) Insert(ctx context.Context, requests []opscore.Request) (inserted []opscore.Inserted, err error) {
	if len(requests) == 1 { // one statement stores it or does not: that needs no transaction around it
		inserted, err = inserterOn(ctx, s.pool, s.sql).run(requests)
		err = unavailable("insert tasks", err)
	} else {
		err = s.transact(ctx, "insert tasks", func(tx pgx.Tx) error {
			inserted, err = inserterOn(ctx, tx, s.sql).run(requests)
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	s.lanes.inserted(requests)
	s.wake.all()
	s.notify()
	return inserted, nil
}

// Get implements [opscore.Tasks].
func (s *Store) Get(ctx context.Context, ids []opscore.ID) ([]opscore.Task, error) {
	tasks, err := s.get(ctx, s.pool, ids)
	if err != nil {
		return nil, unavailable("get tasks", err)
	}
	return tasks, nil
}

func (s *Store) get(ctx context.Context, q querier, ids []opscore.ID) (tasks []opscore.Task, err error) {
	err = each(ctx, q, func(rows pgx.Rows) error {
		var args, result, origin []byte
		var retry *opscore.Backoff
		t, err := scanTask(rows, &args, &result, &retry, &origin)
		t.Args, t.Result, t.Origin = args, result, origin
		if retry != nil {
			t.Retry = *retry
		}
		tasks = append(tasks, t)
		return err
	}, s.sql("SELECT "+head+`, t.args, t.result, t.retry, t.origin
		FROM unnest($1::uuid[]) WITH ORDINALITY AS a (id, n) JOIN opscore.task t ON t.id = a.id ORDER BY a.n`), ids)
	return tasks, err
}

// List implements [opscore.Tasks].
func (s *Store) List(ctx context.Context, f opscore.Filter) (tasks []opscore.Task, err error) {
	where, args := conditions(f)
	limit := f.Limit
	if limit <= 0 {
		limit = 50
	}
	args = append(args, min(limit, 1000))
	err = each(ctx, s.pool, func(rows pgx.Rows) error {
		t, err := scanTask(rows)
		tasks = append(tasks, t)
		return err
	}, s.sql("SELECT "+head+" FROM opscore.task t WHERE "+where+fmt.Sprintf(" ORDER BY t.id DESC LIMIT $%d", len(args))), args...)
	if err != nil {
		return nil, unavailable("list tasks", err)
	}
	return tasks, nil
}

// conditions compiles a filter. Values are bound; the text holds only constants.
func conditions(f opscore.Filter) (where string, args []any) {
	terms := []string{"true"}
	add := func(term string, value any) {
		args = append(args, value)
		terms = append(terms, fmt.Sprintf(term, len(args)))
	}
	if len(f.States) > 0 {
		add("t.state = ANY($%d)", f.States)
		if !slices.ContainsFunc(f.States, func(st opscore.State) bool { return st != opscore.Failed && st != opscore.Cancelled }) {
			terms = append(terms, "t.state IN ('failed', 'cancelled')") // lets PostgreSQL use task_ended
		}
	}
	if f.Queue != "" {
		add("t.queue = $%d", f.Queue)
	}
	if f.Actor != "" {
		add("t.actor = $%d", f.Actor)
	}
	if len(f.Labels) > 0 {
		add("t.labels @> $%d", f.Labels)
	}
	if f.Before != (opscore.ID{}) {
		add("t.id < $%d", f.Before)
	}
	return strings.Join(terms, " AND "), args
}

// Count implements [opscore.Tasks].
func (s *Store) Count(ctx context.Context) (counts []opscore.Count, err error) {
	err = each(ctx, s.pool, func(rows pgx.Rows) error {
		var n opscore.Count
		err := rows.Scan(&n.Queue, &n.Actor, (*string)(&n.State), &n.Tasks)
		counts = append(counts, n)
		return err
	}, s.sql("SELECT queue, actor, state, count(*) FROM opscore.task GROUP BY queue, actor, state ORDER BY queue, actor, state"))
	if err != nil {
		return nil, unavailable("count tasks", err)
	}
	return counts, nil
}

// locked locks the tasks in the order of their ids, as every writer of several rows does.
const locked = `l AS MATERIALIZED (SELECT id FROM opscore.task WHERE id = ANY($1) ORDER BY id FOR UPDATE)`

// Cancel implements [opscore.Tasks].
func (s *Store) Cancel(ctx context.Context, ids []opscore.ID, by string) (tasks []opscore.Task, err error) {
	err = s.transact(ctx, "cancel tasks", func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, s.sql(`WITH `+locked+`
			UPDATE opscore.task t SET
				finished_at = CASE WHEN t.state = 'pending' THEN clock_timestamp() END,
				code        = CASE WHEN t.state = 'pending' THEN 'cancelled' ELSE t.code END,
				state       = CASE WHEN t.state = 'pending' THEN 'cancelled' ELSE t.state END,
				cancel_at   = clock_timestamp(), cancel_by = $2
			FROM l WHERE t.id = l.id AND (t.state = 'pending' OR t.state = 'running' AND t.cancel_at IS NULL)`), ids, by); err != nil {
			return err
		}
		tasks, err = s.get(ctx, tx, ids)
		return err
	})
	return tasks, err
}

// Retry implements [opscore.Tasks].
func (s *Store) Retry(ctx context.Context, ids []opscore.ID, by string) (tasks []opscore.Task, err error) {
	err = s.transact(ctx, "retry tasks", func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, s.sql("SELECT id FROM opscore.task WHERE id = ANY($1) ORDER BY id FOR UPDATE"), ids); err != nil {
			return err
		}
		before, err := s.get(ctx, tx, ids)
		if err != nil {
			return err
		}
		for _, id := range ids {
			i := slices.IndexFunc(before, func(t opscore.Task) bool { return t.ID == id })
			if i < 0 {
				return &opscore.Error{Code: opscore.CodeTaskNotFound, Message: fmt.Sprintf("task %s not found", id)}
			}
			if err := s.retry(ctx, tx, before[i], by); err != nil {
				return err
			}
		}
		tasks, err = s.get(ctx, tx, ids)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.lanes.changed()
	s.wake.all()
	s.notify()
	return tasks, nil
}

func (s *Store) retry(ctx context.Context, tx pgx.Tx, t opscore.Task, by string) error {
	conflict := func(why string) error {
		return &opscore.Error{Code: opscore.CodeConflict, Message: fmt.Sprintf("task %s cannot be retried: %s", t.ID, why)}
	}
	if t.State != opscore.Failed && t.State != opscore.Cancelled {
		return conflict("it is " + string(t.State) + "; only failed and cancelled tasks can")
	}
	if t.UniqueKey != "" {
		holder, held, err := inserterOn(ctx, tx, s.sql).holder(t.Actor, t.UniqueKey)
		if err != nil {
			return err
		}
		if held {
			return conflict(fmt.Sprintf("its unique key %q is held by task %s now", t.UniqueKey, holder))
		}
	}
	_, err := tx.Exec(ctx, s.sql(`
		WITH t AS (
			UPDATE opscore.task SET
				state = 'pending', claim_seq = claim_seq + 1, run_at = clock_timestamp(), expires_at = NULL, attempt = 0, lost = 0,
				worker = NULL, finished_at = NULL, cancel_at = NULL, cancel_by = '', code = '', error = '', progress = 0,
				progress_text = ''
			WHERE id = $1 AND state IN ('failed', 'cancelled')
			RETURNING id, claim_seq)
		INSERT INTO opscore.attempt (task, claim_seq, build, ended_at, code, error, late)
		SELECT id, claim_seq, '', clock_timestamp(), 'retried', $2, false FROM t`), t.ID, "put back by "+by)
	if uniqueViolation(err) {
		return conflict("its unique key has just been taken by another task")
	}
	return err
}

// Attempts implements [opscore.History].
func (s *Store) Attempts(ctx context.Context, task opscore.ID) (attempts []opscore.Attempt, err error) {
	err = each(ctx, s.pool, func(rows pgx.Rows) error {
		a := opscore.Attempt{Task: task}
		var worker *opscore.ID
		var started, ended *time.Time
		err := rows.Scan(&a.ClaimSeq, &worker, &a.Build, &started, &ended, (*string)(&a.Code), &a.Error, &a.Late)
		if worker != nil {
			a.Worker = *worker
		}
		a.StartedAt, a.EndedAt = timeOf(started), timeOf(ended)
		attempts = append(attempts, a)
		return err
	}, s.sql(`SELECT claim_seq, worker, build, started_at, ended_at, code, error, late
		FROM opscore.attempt WHERE task = $1 ORDER BY claim_seq, seq`), task)
	if err != nil {
		return nil, unavailable("read attempts", err)
	}
	return attempts, nil
}

// Logs implements [opscore.History].
func (s *Store) Logs(ctx context.Context, task opscore.ID) (lines []opscore.LogLine, err error) {
	err = each(ctx, s.pool, func(rows pgx.Rows) error {
		l := opscore.LogLine{Task: task}
		err := rows.Scan(&l.ClaimSeq, &l.At, &l.Level, &l.Text)
		l.At = l.At.UTC()
		lines = append(lines, l)
		return err
	}, s.sql("SELECT claim_seq, at, level, text FROM opscore.log WHERE task = $1 ORDER BY claim_seq, seq"), task)
	if err != nil {
		return nil, unavailable("read logs", err)
	}
	return lines, nil
}
