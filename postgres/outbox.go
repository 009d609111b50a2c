package postgres

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
)

var _ opscore.Outbox = (*Store)(nil)

// outgoing remembers up to where the lanes are out, so that a relay does not step over what is out each time it looks. It is only
// speed: which tasks are out is decided by the tickets.
type outgoing struct {
	mu      sync.Mutex
	cursors map[lane]cursor
}

type cursor struct {
	front
	begun time.Time // when it stood at the lane's front: what came since may be behind it
}

// cursorFor bounds how long a task may not be seen that was put into its lane behind others that are out already.
const cursorFor = 250 * time.Millisecond

// read takes note of the lanes' fronts and returns the queues in which something is due.
func (o *outgoing) read(fronts map[lane]front, now time.Time) (due []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	next := make(map[lane]cursor, len(fronts))
	for at, f := range fronts {
		c, known := o.cursors[at]
		if !known || now.Sub(c.begun) > cursorFor || c.before(f.runAt, f.id) {
			c = cursor{f, now}
		}
		c.paused = f.paused
		next[at] = c
		if !f.paused && !f.due.After(now) {
			due = append(due, at.queue)
		}
	}
	o.cursors = next
	slices.Sort(due)
	return slices.Compact(due)
}

// of returns the lanes of a queue.
func (o *outgoing) of(queue string, actors []string) (from starts) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for at, c := range o.cursors {
		if !c.paused && at.queue == queue && slices.Contains(actors, at.actor) {
			from.add(at, c.front)
		}
	}
	return from
}

// issued moves the cursor of a lane behind a task.
func (o *outgoing) issued(at lane, runAt time.Time, id opscore.ID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c, known := o.cursors[at]; known && c.before(runAt, id) {
		c.runAt, c.id = runAt, id
		o.cursors[at] = c
	}
}

// restart makes the next look begin at the fronts.
func (o *outgoing) restart() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.cursors)
}

// Due implements [opscore.Outbox].
func (s *Store) Due(ctx context.Context) ([]string, error) {
	sent := time.Now()
	fronts, _, err := s.readFronts(ctx, opscore.ID{}, sent)
	if err != nil {
		return nil, err
	}
	return s.outgoing.read(fronts, time.Now()), nil
}

// outSQL counts what is out in the queue $1, once nobody else issues for it: of two relays one would issue what the other one
// just has. It is the queue's lock, for a transaction, that says so; a session's would not survive a pooling proxy.
const (
	relayLockSQL = `SELECT pg_try_advisory_xact_lock(hashtext($1), hashtext($2))`
	outSQL       = `SELECT coalesce(sum(cardinality(tasks)), 0), coalesce((extract(epoch FROM clock_timestamp() - min(at)) * 1e6)::bigint, 0)
		FROM opscore.ticket WHERE queue = $1`
)

// issueSQL finds the most urgent $7 tasks of the lanes that are not out. Nothing is locked: whoever claims, cancels or puts back one
// of them meanwhile leaves a ticket that names a task with nothing to do. The lanes are those of claimDue.
const issueSQL = `WITH ` + outCTE + `),
	lane AS (
		SELECT * FROM unnest($2::text[], $3::text[], $4::smallint[], $5::timestamptz[], $6::uuid[]) AS l (queue, actor, rank, run_at, id)
		WHERE queue NOT IN (SELECT queue FROM opscore.pause))
	SELECT t.actor, t.rank, t.run_at, t.id, t.claim_seq FROM lane CROSS JOIN LATERAL (
		SELECT actor, rank, run_at, id, claim_seq FROM opscore.task
		WHERE state = 'pending' AND queue = lane.queue AND actor = lane.actor AND rank = lane.rank
			AND (run_at, id) >= (lane.run_at, lane.id)
			AND run_at <= clock_timestamp() AND (expires_at IS NULL OR expires_at > clock_timestamp())
			AND (id, claim_seq) NOT IN (SELECT task, seq FROM away)
		ORDER BY run_at, id LIMIT $7) t
	ORDER BY t.rank, t.run_at, t.id LIMIT $7`

// outCTE is what is out in the queues $1, to be closed.
const outCTE = `away AS MATERIALIZED (
		SELECT a.task, a.seq FROM opscore.ticket k CROSS JOIN LATERAL unnest(k.tasks, k.seqs) AS a (task, seq)
		WHERE k.queue = ANY($1)`

// Issue implements [opscore.Outbox].
func (s *Store) Issue(ctx context.Context, want opscore.Issue) (issued opscore.Issued, err error) {
	from := s.outgoing.of(want.Queue, want.Actors)
	if len(from.queues) == 0 {
		return issued, nil
	}
	err = s.transact(ctx, "issue tickets", func(tx pgx.Tx) error {
		if err := s.countOut(ctx, tx, want.Queue, &issued); err != nil || issued.Busy || issued.Out >= want.Window {
			return err
		}
		issued.Tickets, err = s.issue(ctx, tx, want, from, want.Window-issued.Out)
		return err
	})
	return issued, err
}

func (s *Store) countOut(ctx context.Context, tx pgx.Tx, queue string, issued *opscore.Issued) error {
	b := &pgx.Batch{}
	b.Queue(steer)
	b.Queue("SET LOCAL work_mem = '64MB'") // the planner guesses how much is out; looking through all of it for each task would be the end
	b.Queue(relayLockSQL, s.schema+" relay", queue).QueryRow(func(row pgx.Row) error {
		var ours bool
		err := row.Scan(&ours)
		issued.Busy = !ours
		return err
	})
	b.Queue(s.sql(outSQL), queue).QueryRow(func(row pgx.Row) error {
		var oldest int64
		err := row.Scan(&issued.Out, &oldest)
		issued.Oldest = time.Duration(oldest) * time.Microsecond
		return err
	})
	return tx.SendBatch(ctx, b).Close()
}

// issue makes at most room tasks' tickets and remembers them.
func (s *Store) issue(ctx context.Context, tx pgx.Tx, want opscore.Issue, from starts, room int) ([]opscore.Ticket, error) {
	var tasks []opscore.ID
	var seqs []int64
	err := each(ctx, tx, func(rows pgx.Rows) error {
		at, runAt, id, seq := lane{queue: want.Queue}, time.Time{}, opscore.ID{}, int64(0)
		if err := rows.Scan(&at.actor, &at.rank, &runAt, (*[16]byte)(&id), &seq); err != nil {
			return err
		}
		tasks, seqs = append(tasks, id), append(seqs, seq)
		s.outgoing.issued(at, runAt, id)
		return nil
	}, s.sql(issueSQL), []string{want.Queue}, from.queues, from.actors, from.ranks, from.runAts, from.ids, room)
	if err != nil || len(tasks) == 0 {
		return nil, err
	}
	tickets, err := divide(want, tasks, seqs)
	if err != nil {
		return nil, err
	}
	var ofTicket, flat [][16]byte
	for _, t := range tickets {
		for _, id := range t.Tasks {
			ofTicket, flat = append(ofTicket, t.ID), append(flat, id)
		}
	}
	_, err = tx.Exec(ctx, s.sql(`
		INSERT INTO opscore.ticket (id, queue, at, tasks, seqs)
		SELECT o.ticket, $1, clock_timestamp(), array_agg(o.task ORDER BY o.n), array_agg(o.seq ORDER BY o.n)
		FROM unnest($2::uuid[], $3::uuid[], $4::bigint[]) WITH ORDINALITY AS o (ticket, task, seq, n) GROUP BY o.ticket`),
		want.Queue, ofTicket, flat, seqs)
	return tickets, err
}

// divide puts the tasks into tickets, in order.
func divide(want opscore.Issue, tasks []opscore.ID, seqs []int64) (tickets []opscore.Ticket, err error) {
	size := max(min(want.Size, opscore.MaxTicket, len(tasks)/max(want.Spread, 1)), 1)
	for n := range slices.Chunk(tasks, size) {
		t := opscore.Ticket{Queue: want.Queue, Tasks: n, ClaimSeqs: seqs[:len(n)]}
		if t.ID, err = uuid.NewV7(); err != nil {
			return nil, err
		}
		seqs = seqs[len(n):]
		tickets = append(tickets, t)
	}
	return tickets, nil
}

// Withdraw implements [opscore.Outbox].
func (s *Store) Withdraw(ctx context.Context, tickets []opscore.ID) error {
	tag, err := s.pool.Exec(ctx, s.sql("DELETE FROM opscore.ticket WHERE id = ANY($1)"), tickets)
	if err != nil {
		return unavailable("withdraw tickets", err)
	}
	if tag.RowsAffected() > 0 {
		s.outgoing.restart()
	}
	return nil
}

// Forget implements [opscore.Outbox].
func (s *Store) Forget(ctx context.Context, queue string, waiting int, age time.Duration) (int, error) {
	tag, err := s.pool.Exec(ctx, s.sql(`DELETE FROM opscore.ticket WHERE at < now() - $3 * interval '1 microsecond'
		AND id IN (SELECT id FROM opscore.ticket WHERE queue = $1 ORDER BY at DESC, id DESC OFFSET $2)`),
		queue, waiting, age.Microseconds())
	if err != nil {
		return 0, unavailable("forget tickets", err)
	}
	s.outgoing.restart()
	return int(tag.RowsAffected()), nil
}

// Deployment says who this database is.
func (s *Store) Deployment(ctx context.Context) (d opscore.Deployment, err error) {
	var epoch *opscore.ID
	if err := s.pool.QueryRow(ctx, s.sql("SELECT instance, epoch FROM opscore.deployment")).Scan(&d.Instance, &epoch); err != nil {
		return d, unavailable("read the deployment", err)
	}
	if epoch != nil {
		d.Epoch = *epoch
	}
	return d, nil
}

// BeginEpoch notes that the broker's state is a new one, unless somebody else has noted so since before was read, and returns
// the epoch that holds. What was out under the old one is not out any more.
func (s *Store) BeginEpoch(ctx context.Context, before, next opscore.ID) (now opscore.ID, err error) {
	err = s.transact(ctx, "begin an epoch of the broker", func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, s.sql("UPDATE opscore.deployment SET epoch = $2 WHERE coalesce(epoch, $3) = $1"), before, next, opscore.ID{})
		if err == nil && tag.RowsAffected() == 1 && before != (opscore.ID{}) {
			_, err = tx.Exec(ctx, s.sql("DELETE FROM opscore.ticket"))
		}
		if err != nil {
			return err
		}
		return tx.QueryRow(ctx, s.sql("SELECT epoch FROM opscore.deployment")).Scan(&now)
	})
	s.outgoing.restart()
	return now, err
}
