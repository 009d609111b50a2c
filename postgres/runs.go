package postgres

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/opscore/opscore"
)

// claimed makes the picked tasks running under worker $3 and returns what a worker needs of them, in no order.
const claimed = `
	UPDATE opscore.task t SET
		state = 'running', claim_seq = t.claim_seq + 1, attempt = t.attempt + 1, worker = $3, started_at = clock_timestamp(),
		progress = 0, progress_text = ''
	FROM pick WHERE t.ctid = pick.at
	RETURNING id, queue, actor, -rank, run_at, created_at, expires_at, timeout, max_attempts, attempt, lost, claim_seq, started_at,
		unique_key, labels, args, retry, origin, `

// claimDue takes the most urgent $4 of the lanes that begin at $1 (queue), $2 (actor), $5 (rank), $6 (due time) and $7 (id).
// SKIP LOCKED never waits, so the order of locking does not matter here. claimNotOut leaves out what tickets younger than $8 name.
const (
	claimDue    = "WITH " + claimLanes + claimEnd + claimed + noTicket
	claimNotOut = "WITH " + outCTE + " AND k.at > now() - $8 * interval '1 microsecond'), " + claimLanes +
		" AND (id, claim_seq) NOT IN (SELECT task, seq FROM away)" + claimEnd + claimed + noTicket
)

const (
	claimLanes = `lane AS (
		SELECT * FROM unnest($1::text[], $2::text[], $5::smallint[], $6::timestamptz[], $7::uuid[]) AS l (queue, actor, rank, run_at, id)
		WHERE queue NOT IN (SELECT queue FROM opscore.pause)),
	pick AS MATERIALIZED (
		SELECT t.at FROM lane CROSS JOIN LATERAL (
			SELECT ctid AS at, rank, run_at, id FROM opscore.task
			WHERE state = 'pending' AND queue = lane.queue AND actor = lane.actor AND rank = lane.rank
				AND (run_at, id) >= (lane.run_at, lane.id)
				AND run_at <= clock_timestamp() AND (expires_at IS NULL OR expires_at > clock_timestamp())`
	claimEnd = `
			ORDER BY run_at, id LIMIT $4 FOR UPDATE SKIP LOCKED) t
		WHERE EXISTS (SELECT FROM opscore.worker WHERE id = $3 AND state <> 'gone')
		ORDER BY t.rank, t.run_at, t.id LIMIT $4)`
)

// claimByID takes those of the given tasks that can be had. $1 are the ids, $2 the actors. claimTickets does so for tasks that the
// tickets $5 named, which are over if all their tasks are claimed here. The state is compared in a way that task_due cannot serve: else the
// planner might read all that is due for them.
const (
	claimByID    = "WITH " + claimIDs + claimed + noTicket
	claimTickets = "WITH " + claimIDs + `,
	ended AS MATERIALIZED (
		SELECT id FROM opscore.ticket k WHERE k.id = ANY($5)
			AND NOT EXISTS (SELECT FROM unnest(k.tasks) AS task WHERE task NOT IN (SELECT pick.task FROM pick))
		ORDER BY id FOR UPDATE SKIP LOCKED),
	over AS (DELETE FROM opscore.ticket k USING ended WHERE k.id = ended.id)` + claimed + `CASE t.actor WHEN 'opscore' || '.canary'
		THEN (SELECT min(at) FROM opscore.ticket k WHERE k.id = ANY($5) AND t.id = ANY(k.tasks)) END`
)

// noTicket is in place of when the ticket of a canary was issued. Its name is in two parts in the statement, or it would be taken for the schema's.
const noTicket = "NULL::timestamptz"

const claimIDs = `pick AS MATERIALIZED (
		SELECT ctid AS at, id AS task FROM opscore.task
		WHERE id = ANY($1) AND state IN ('pending', '') AND actor = ANY($2)
			AND run_at <= clock_timestamp() AND (expires_at IS NULL OR expires_at > clock_timestamp())
			AND queue NOT IN (SELECT queue FROM opscore.pause)
			AND EXISTS (SELECT FROM opscore.worker WHERE id = $3 AND state <> 'gone')
		ORDER BY id LIMIT $4 FOR UPDATE SKIP LOCKED)`

// Claim implements [opscore.Runs].
func (s *Store) Claim(ctx context.Context, want opscore.Claim) (got opscore.Claimed, err error) {
	if want.Max <= 0 {
		return got, nil
	}
	if len(want.IDs) > 0 {
		got.Tasks, err = s.claimIDs(ctx, &want)
	} else if from, fresh := s.lanes.of(&want); fresh {
		got.Tasks, err = s.claimFrom(ctx, &want, from)
	}
	if err != nil || len(got.Tasks) > 0 {
		return got, err
	}
	if err := s.readLanes(ctx, want.Worker); err != nil {
		return got, err
	}
	if len(want.IDs) == 0 {
		from, _ := s.lanes.of(&want)
		got.Tasks, err = s.claimFrom(ctx, &want, from)
	}
	if err == nil && len(got.Tasks) == 0 {
		got.Next = s.lanes.next(&want)
	}
	return got, err
}

// claimIDs takes the tasks that want names.
func (s *Store) claimIDs(ctx context.Context, want *opscore.Claim) ([]opscore.Task, error) {
	if len(want.Tickets) > 0 {
		return s.claim(ctx, want, claimTickets, raw(want.IDs), want.Actors, want.Worker, want.Max, raw(want.Tickets))
	}
	return s.claim(ctx, want, claimByID, raw(want.IDs), want.Actors, want.Worker, want.Max)
}

// raw returns the ids as pgx encodes them several times faster.
func raw(ids []opscore.ID) [][16]byte {
	all := make([][16]byte, len(ids))
	for i, id := range ids {
		all[i] = id
	}
	return all
}

// claimFrom takes the most urgent tasks of the lanes.
func (s *Store) claimFrom(ctx context.Context, want *opscore.Claim, from starts) ([]opscore.Task, error) {
	if len(from.queues) == 0 {
		return nil, nil
	}
	text, args := claimDue, []any{from.queues, from.actors, want.Worker, want.Max, from.ranks, from.runAts, from.ids}
	if want.NotOut {
		text, args = claimNotOut, append(args, opscore.TicketFor.Microseconds())
	}
	tasks, err := s.claim(ctx, want, text, args...)
	if !want.NotOut { // else what was left out is still there
		s.lanes.taken(tasks)
	}
	return tasks, err
}

// claim runs a claim to its end although ctx may end before: what is cut off in the middle may be ours without our knowing.
func (s *Store) claim(ctx context.Context, want *opscore.Claim, text string, args ...any) (tasks []opscore.Task, err error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	ctx, cancel := within(context.WithoutCancel(ctx), opscore.HeartbeatEvery)
	defer cancel()
	err = s.steered(ctx, s.pool, func(rows pgx.Rows) error {
		if tasks == nil {
			tasks = make([]opscore.Task, 0, min(want.Max, batchSize))
		}
		tasks = append(tasks, opscore.Task{State: opscore.Running, Worker: want.Worker})
		return scanClaimed(rows, &tasks[len(tasks)-1])
	}, text, args...)
	if err != nil {
		return nil, unavailable("claim tasks", err) // rows come before the commit: what came may not be ours
	}
	slices.SortFunc(tasks, func(a, b opscore.Task) int {
		return cmp.Or(b.Priority-a.Priority, a.RunAt.Compare(b.RunAt), bytes.Compare(a.ID[:], b.ID[:]))
	})
	return tasks, nil
}

func scanClaimed(rows pgx.Rows, t *opscore.Task) error {
	var expires, out *time.Time
	var timeout int64
	var retry *opscore.Backoff
	err := rows.Scan((*[16]byte)(&t.ID), &t.Queue, &t.Actor, &t.Priority, &t.RunAt, &t.CreatedAt, &expires, &timeout, &t.MaxAttempts, &t.Attempt,
		&t.Lost, &t.ClaimSeq, &t.StartedAt, &t.UniqueKey, &t.Labels, (*[]byte)(&t.Args), &retry, (*[]byte)(&t.Origin), &out)
	if retry != nil {
		t.Retry = *retry
	}
	t.Arrival.Out = timeOf(out)
	t.ExpiresAt, t.Timeout = timeOf(expires), opscore.Duration(time.Duration(timeout)*time.Microsecond)
	return err
}

// Finish implements [opscore.Runs].
func (s *Store) Finish(ctx context.Context, outcomes []opscore.Outcome) ([]opscore.Recorded, error) {
	ctx, cancel := within(ctx, recordFor)
	defer cancel()
	recorded, wrote := make([]opscore.Recorded, len(outcomes)), make([]bool, len(outcomes))
	rest, err := s.completePlain(ctx, outcomes, recorded, wrote)
	if err == nil && len(rest) > 0 {
		err = s.finishRest(ctx, outcomes, rest, recorded, wrote)
	}
	if err != nil && len(outcomes) > 1 && refused(err) {
		// One row that cannot be stored must not block its neighbours.
		return s.finishEach(ctx, outcomes)
	}
	if err != nil {
		return nil, err
	}
	s.replay.remember(outcomes, recorded, wrote)
	for _, r := range recorded {
		if r.State == opscore.Pending {
			s.lanes.changed()
			s.wake.all()
			break
		}
	}
	return recorded, nil
}

// completePlain records the outcomes of the happy path, results without log lines, in one statement. It says which it
// wrote and returns the indexes of the others, and of those whose fence does not hold.
func (s *Store) completePlain(
	ctx context.Context, outcomes []opscore.Outcome, recorded []opscore.Recorded, wrote []bool,
) (rest []int, err error) {
	var plain []int
	var c completions
	for i := range outcomes {
		if o := &outcomes[i]; o.State == opscore.Completed && len(o.Log) == 0 {
			plain = append(plain, i)
			c.add(o)
		} else {
			rest = append(rest, i)
		}
	}
	if len(plain) == 0 {
		return rest, nil
	}
	err = s.steered(ctx, s.pool, func(rows pgx.Rows) error {
		var n int
		err := rows.Scan(&n)
		if err == nil {
			recorded[plain[n-1]].State, wrote[plain[n-1]] = opscore.Completed, true
		}
		return err
	}, completeSQL, c.ids, c.seqs, c.workers, c.results)
	if err != nil {
		return nil, unavailable("record outcomes", err)
	}
	for _, i := range plain {
		if recorded[i].State != opscore.Completed {
			rest = append(rest, i)
		}
	}
	return rest, nil
}

// finishRest records the outcomes that take more than one statement, in one transaction.
func (s *Store) finishRest(
	ctx context.Context, outcomes []opscore.Outcome, rest []int, recorded []opscore.Recorded, wrote []bool,
) error {
	some := make([]opscore.Outcome, len(rest))
	for k, i := range rest {
		some[k] = outcomes[i]
	}
	return s.transact(ctx, "record outcomes", func(tx pgx.Tx) error {
		got, held, err := s.finish(ctx, tx, some)
		if err != nil {
			return err
		}
		for k, i := range rest {
			recorded[i], wrote[i] = got[k], held[k]
		}
		return nil
	})
}

// refused reports whether the database understood the batch and did not want it, as opposed to not answering.
func refused(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code[:2] == "22" || pg.Code[:2] == "23" || pg.Code[:2] == "54")
}

func (s *Store) finishEach(ctx context.Context, outcomes []opscore.Outcome) ([]opscore.Recorded, error) {
	recorded := make([]opscore.Recorded, len(outcomes))
	for i := range outcomes {
		one, err := s.Finish(ctx, outcomes[i:i+1])
		if err != nil && refused(err) {
			o := outcomes[i]
			o.State, o.Result, o.Log, o.Code = opscore.Failed, nil, nil, opscore.CodeResultInvalid
			o.Error = "the outcome cannot be stored: " + redacted(err)
			one, err = s.Finish(ctx, []opscore.Outcome{o})
		}
		if err != nil {
			return nil, err
		}
		recorded[i] = one[0]
	}
	return recorded, nil
}

// finish records outcomes and says whose fence held.
func (s *Store) finish(ctx context.Context, q pgx.Tx, outcomes []opscore.Outcome) (recorded []opscore.Recorded, held []bool, err error) {
	recorded = make([]opscore.Recorded, len(outcomes))
	if held, err = s.lockHeld(ctx, q, outcomes); err != nil {
		return nil, nil, err
	}
	var done completions
	b := &pgx.Batch{}
	for i := range outcomes {
		o := &outcomes[i]
		switch {
		case !held[i]:
			if recorded[i], err = s.notHeld(ctx, q, o); err != nil {
				return nil, nil, fmt.Errorf("outcome of task %s: %w", o.Task, err)
			}
			s.queueLog(b, o.Task, o.ClaimSeq, o.Log, true)
		case o.State == opscore.Completed:
			recorded[i].State = opscore.Completed
			done.add(o)
			s.queueLog(b, o.Task, o.ClaimSeq, o.Log, false)
		default:
			s.queueEnd(b, o, false, func(state opscore.State) { recorded[i].State = state })
			s.queueLog(b, o.Task, o.ClaimSeq, o.Log, false)
		}
	}
	if len(done.ids) > 0 {
		b.Queue(s.sql(completeSQL), done.ids, done.seqs, done.workers, done.results)
	}
	return recorded, held, q.SendBatch(ctx, b).Close()
}

// lockHeld locks the tasks whose fence holds, in the order of their ids, and says which outcomes hold. Of two
// outcomes for one claim the first holds.
func (s *Store) lockHeld(ctx context.Context, q querier, outcomes []opscore.Outcome) ([]bool, error) {
	ids, seqs, workers := make([][16]byte, len(outcomes)), make([]int64, len(outcomes)), make([][16]byte, len(outcomes))
	for i, o := range outcomes {
		ids[i], seqs[i], workers[i] = o.Task, o.ClaimSeq, o.Worker
	}
	held := make([]bool, len(outcomes))
	taken := make(map[opscore.ID]bool, len(outcomes))
	err := s.steered(ctx, q, func(rows pgx.Rows) error {
		var n int
		if err := rows.Scan(&n); err != nil {
			return err
		}
		if id := outcomes[n-1].Task; !taken[id] {
			taken[id], held[n-1] = true, true
		}
		return nil
	}, lockHeldSQL, ids, seqs, workers)
	return held, err
}

const lockHeldSQL = `
	SELECT o.n FROM unnest($1::uuid[], $2::bigint[], $3::uuid[]) WITH ORDINALITY AS o (id, seq, worker, n)
		JOIN opscore.task t ON t.id = o.id
	WHERE t.state IN ('running', '') AND t.claim_seq = o.seq AND t.worker = o.worker
	ORDER BY t.id, o.n FOR UPDATE OF t`

// completions are results, as completeSQL wants them.
type completions struct {
	ids, workers [][16]byte // which pgx encodes several times faster than ids
	seqs         []int64
	results      [][]byte
}

func (c *completions) add(o *opscore.Outcome) {
	c.ids, c.workers = append(c.ids, o.Task), append(c.workers, o.Worker)
	c.seqs, c.results = append(c.seqs, o.ClaimSeq), append(c.results, o.Result)
}

// completeSQL completes the tasks whose fence holds and returns their places in the arrays. The state is compared in a way that
// task_running cannot serve, here and in lockHeldSQL: else the planner, which learns late how many tasks run, might read all running ones for
// each outcome.
const completeSQL = `
	WITH l AS MATERIALIZED (
		SELECT t.ctid AS at, o.result, o.n
		FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::bytea[]) WITH ORDINALITY AS o (id, seq, worker, result, n)
			JOIN opscore.task t ON t.id = o.id
		WHERE t.state IN ('running', '') AND t.claim_seq = o.seq AND t.worker = o.worker
		ORDER BY t.id FOR UPDATE OF t)
	UPDATE opscore.task t SET state = 'completed', finished_at = clock_timestamp(), result = l.result, code = '', error = ''
	FROM l WHERE t.ctid = l.at RETURNING l.n`

// endSQL records an attempt that did not complete its task, in the row and in the history. $11 says that the owner did
// not end it itself: whatever the owner says from now on is late.
const endSQL = `
	WITH u AS (
		UPDATE opscore.task t SET
			state       = CASE WHEN t.cancel_at IS NOT NULL THEN 'cancelled' ELSE $4 END,
			finished_at = CASE WHEN t.cancel_at IS NOT NULL OR $4 <> 'pending' THEN clock_timestamp() END,
			claim_seq   = t.claim_seq + (t.cancel_at IS NULL AND $4 = 'pending' OR $11)::integer,
			run_at      = CASE WHEN t.cancel_at IS NULL AND $4 = 'pending' THEN clock_timestamp() + $5 * interval '1 microsecond' ELSE t.run_at END,
			attempt     = t.attempt - $6::boolean::integer,
			lost        = CASE WHEN $11 THEN t.lost + 1 WHEN $12 AND t.alone_seq = t.claim_seq THEN 0 ELSE t.lost END,
			code        = CASE WHEN t.cancel_at IS NOT NULL THEN 'cancelled' ELSE $8 END,
			error       = $9
		WHERE t.id = $1 AND t.state = 'running' AND t.claim_seq = $2 AND t.worker = $3
		RETURNING t.state, t.started_at),
	h AS (
		INSERT INTO opscore.attempt (task, claim_seq, worker, build, started_at, ended_at, code, error, late)
		SELECT $1, $2, $3, coalesce((SELECT build FROM opscore.worker WHERE id = $3), ''), u.started_at, clock_timestamp(), $10, $9, false
		FROM u WHERE NOT $7::boolean),
	old AS (DELETE FROM opscore.attempt WHERE task = $1 AND claim_seq <= $2 - 400),
	lines AS (DELETE FROM opscore.log WHERE task = $1 AND claim_seq <= $2 - 400)
	SELECT state FROM u`

// queueEnd queues endSQL; ended is called with the task's state after it.
func (s *Store) queueEnd(b *pgx.Batch, o *opscore.Outcome, revoke bool, ended func(opscore.State)) {
	b.Queue(s.sql(endSQL), o.Task, o.ClaimSeq, o.Worker, o.State, o.Delay.Microseconds(), o.Uncounted, o.Unstarted,
		string(o.Code), o.Error, string(o.Code), revoke, o.Clears()).QueryRow(func(row pgx.Row) error {
		var state opscore.State
		err := row.Scan((*string)(&state))
		if err == nil {
			ended(state)
		}
		return err
	})
}

// notHeld tells an outcome that is recorded already from one whose claim was revoked. The latter goes into the history:
// it happened, but it is not the task's outcome.
func (s *Store) notHeld(ctx context.Context, q querier, o *opscore.Outcome) (r opscore.Recorded, err error) {
	exists, mine, known := false, false, false
	err = each(ctx, q, func(rows pgx.Rows) error {
		exists = true
		return rows.Scan((*string)(&r.State), &mine)
	}, s.sql(`SELECT state, coalesce(claim_seq = $2 AND worker = $3, false) AND state <> 'running' FROM opscore.task WHERE id = $1`),
		o.Task, o.ClaimSeq, o.Worker)
	if err != nil || mine {
		return r, err
	}
	err = each(ctx, q, func(rows pgx.Rows) error {
		known = true
		return rows.Scan(&r.Late)
	}, s.sql(`SELECT late FROM opscore.attempt WHERE task = $1 AND claim_seq = $2 AND worker = $3 AND code NOT IN ('lost', 'poison') ORDER BY late LIMIT 1`),
		o.Task, o.ClaimSeq, o.Worker)
	if err != nil || known || o.Unstarted {
		return r, err
	}
	r.Late = true
	if !exists {
		return r, nil
	}
	code := o.Code
	if code == "" {
		code = opscore.Code(o.State)
	}
	_, err = q.Exec(ctx, s.sql(`
		INSERT INTO opscore.attempt (task, claim_seq, worker, build, ended_at, code, error, late)
		VALUES ($1, $2, $3, coalesce((SELECT build FROM opscore.worker WHERE id = $3), ''), clock_timestamp(), $4, $5, true)`),
		o.Task, o.ClaimSeq, o.Worker, string(code), o.Error)
	return r, err
}

// queueLog queues the lines. Those of a claim that is over may have been stored before, and the claim may never have
// been made.
func (s *Store) queueLog(b *pgx.Batch, task opscore.ID, seq int64, lines []opscore.LogLine, over bool) {
	text := "INSERT INTO opscore.log (task, claim_seq, at, level, text) VALUES ($1, $2, $3, $4, $5)"
	if over {
		text = `INSERT INTO opscore.log (task, claim_seq, at, level, text) SELECT $1, $2, $3, $4, $5
			WHERE EXISTS (SELECT FROM opscore.task WHERE id = $1 AND claim_seq >= $2)
				AND NOT EXISTS (SELECT FROM opscore.log WHERE task = $1 AND claim_seq = $2 AND at = $3 AND text = $5)`
	}
	for _, l := range lines {
		b.Queue(s.sql(text), task, seq, l.At, l.Level, l.Text)
	}
}

// Isolate implements [opscore.Runs]. The mark names the claim, so it ends with it.
func (s *Store) Isolate(ctx context.Context, task opscore.ID, claimSeq int64, worker opscore.ID) error {
	tag, err := s.pool.Exec(ctx, s.sql(`
		UPDATE opscore.task SET alone_seq = claim_seq, started_at = clock_timestamp()
		WHERE id = $1 AND state = 'running' AND claim_seq = $2 AND worker = $3
			AND EXISTS (SELECT FROM opscore.worker WHERE id = $3 AND state <> 'gone')`), task, claimSeq, worker)
	if err != nil {
		return unavailable("isolate a task", err)
	}
	if tag.RowsAffected() == 0 {
		return opscore.ErrLeaseLost
	}
	return nil
}

// Note implements [opscore.Runs].
func (s *Store) Note(ctx context.Context, notes []opscore.Note) error {
	return s.transact(ctx, "store progress and logs", func(tx pgx.Tx) error {
		outcomes := make([]opscore.Outcome, len(notes))
		for i, n := range notes {
			outcomes[i] = opscore.Outcome{Task: n.Task, ClaimSeq: n.ClaimSeq, Worker: n.Worker}
		}
		if _, err := s.lockHeld(ctx, tx, outcomes); err != nil {
			return err
		}
		b := &pgx.Batch{}
		for i := range notes {
			n := &notes[i]
			if n.Progress >= 0 {
				b.Queue(s.sql(`UPDATE opscore.task SET progress = $4, progress_text = $5
					WHERE id = $1 AND state = 'running' AND claim_seq = $2 AND worker = $3`), n.Task, n.ClaimSeq, n.Worker, n.Progress, n.Text)
			}
			s.queueLog(b, n.Task, n.ClaimSeq, n.Log, true)
		}
		return tx.SendBatch(ctx, b).Close()
	})
}

func uniqueViolation(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "23505"
}
