package postgres

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
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

// Of two relays one would issue what the other one just has: relayLockSQL is for the one that is first, for a transaction, since a
// session's lock would not survive a pooling proxy. The statements after it see what the relay before has committed.
const (
	relayLockSQL = `SELECT set_config('relay.ours', pg_try_advisory_xact_lock(hashtext($1), hashtext($2))::text, true)`
	outSQL       = `SELECT coalesce(sum(cardinality(tasks)), 0), coalesce((extract(epoch FROM clock_timestamp() - min(at)) * 1e6)::bigint, 0)
		FROM opscore.ticket WHERE queue = ANY($1)`
)

// outCTE is what is out in the queues $1, to be closed.
const outCTE = `away AS MATERIALIZED (
		SELECT a.task, a.seq FROM opscore.ticket k CROSS JOIN LATERAL unnest(k.tasks, k.seqs) AS a (task, seq)
		WHERE k.queue = ANY($1)`

// issueSQL finds the most urgent tasks of the lanes that are not out, until $7 are out, and puts them into tickets of $8 tasks, of fewer if there
// are not enough for $9 tickets, with the ids $10. Nothing else is locked: whoever claims, cancels or puts back one of them meanwhile leaves a ticket
// that names a task with nothing to do. The lanes are those of claimDue.
const issueSQL = `WITH ` + outCTE + `),
	lane AS (
		SELECT * FROM unnest($2::text[], $3::text[], $4::smallint[], $5::timestamptz[], $6::uuid[]) AS l (queue, actor, rank, run_at, id)
		WHERE queue NOT IN (SELECT queue FROM opscore.pause) AND current_setting('relay.ours') = 'true'),
	room AS MATERIALIZED (SELECT least(greatest($7 - (SELECT count(*) FROM away), 0), cardinality($10::uuid[]) * $8) AS tasks),
	pick AS MATERIALIZED (
		SELECT t.*, row_number() OVER (ORDER BY t.rank, t.run_at, t.id) - 1 AS n FROM lane CROSS JOIN LATERAL (
			SELECT queue, actor, rank, run_at, id, claim_seq FROM opscore.task
			WHERE state = 'pending' AND queue = lane.queue AND actor = lane.actor AND rank = lane.rank
				AND (run_at, id) >= (lane.run_at, lane.id)
				AND run_at <= clock_timestamp() AND (expires_at IS NULL OR expires_at > clock_timestamp())
				AND (id, claim_seq) NOT IN (SELECT task, seq FROM away)
			ORDER BY run_at, id LIMIT (SELECT tasks FROM room)) t
		ORDER BY t.rank, t.run_at, t.id LIMIT (SELECT tasks FROM room)),
	size AS MATERIALIZED (SELECT greatest(least($8::bigint, count(*) / $9::bigint), 1) AS tasks FROM pick),
	made AS (
		INSERT INTO opscore.ticket (id, queue, at, tasks, seqs)
		SELECT ($10::uuid[])[n / size.tasks + 1], min(queue), clock_timestamp(), array_agg(id ORDER BY n), array_agg(claim_seq ORDER BY n)
		FROM pick, size GROUP BY n / size.tasks, size.tasks)
	SELECT actor, rank, run_at, id, claim_seq FROM pick ORDER BY n`

// Issue implements [opscore.Outbox]. It takes one round trip.
func (s *Store) Issue(ctx context.Context, want opscore.Issue) (issued opscore.Issued, err error) {
	from := s.outgoing.of(want.Queue, want.Actors) // none after a restart: then it only counts
	want.Size, want.Spread = max(min(want.Size, opscore.MaxTicket), 1), max(want.Spread, 1)
	ids := make([][16]byte, max(min(want.Window/want.Size+1, opscore.MaxIssue), 2*want.Spread))
	for i := range ids {
		id, err := uuid.NewV7()
		if err != nil {
			return issued, err
		}
		ids[i] = id
	}
	var tasks []opscore.ID
	var seqs []int64
	b := &pgx.Batch{}
	b.Queue(steer)
	b.Queue("SELECT set_config('work_mem', '64MB', true)") // the planner guesses how much is out; to look through all of it for each task would be the end
	b.Queue(relayLockSQL, s.schema+" relay", want.Queue).QueryRow(func(row pgx.Row) error {
		var ours string
		err := row.Scan(&ours)
		issued.Busy = ours != "true"
		return err
	})
	b.Queue(s.sql(outSQL), []string{want.Queue}).QueryRow(func(row pgx.Row) error {
		var oldest int64
		err := row.Scan(&issued.Out, &oldest)
		issued.Oldest = time.Duration(oldest) * time.Microsecond
		return err
	})
	b.Queue(s.sql(issueSQL), []string{want.Queue}, from.queues, from.actors, from.ranks, from.runAts, from.ids, want.Window, want.Size, want.Spread, ids).
		Query(func(rows pgx.Rows) error {
			return scanAll(rows, func(rows pgx.Rows) error {
				at, runAt, id, seq := lane{queue: want.Queue}, time.Time{}, opscore.ID{}, int64(0)
				if err := rows.Scan(&at.actor, &at.rank, &runAt, (*[16]byte)(&id), &seq); err != nil {
					return err
				}
				tasks, seqs = append(tasks, id), append(seqs, seq)
				s.outgoing.issued(at, runAt, id)
				return nil
			})
		})
	if err := s.pool.SendBatch(ctx, b).Close(); err != nil {
		return opscore.Issued{}, errors.Join(unavailable("issue tickets", err), s.unissue(ctx, ids))
	}
	issued.Tickets = divide(want, ids, tasks, seqs)
	return issued, nil
}

// unissue takes back what may have been issued although the answer was lost.
func (s *Store) unissue(ctx context.Context, ids [][16]byte) error {
	s.outgoing.restart()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opscore.HeartbeatEvery)
	defer cancel()
	_, err := s.pool.Exec(ctx, s.sql(withdrawSQL), ids)
	return unavailable("withdraw tickets", err)
}

// divide puts the tasks into tickets as issueSQL has.
func divide(want opscore.Issue, ids [][16]byte, tasks []opscore.ID, seqs []int64) (tickets []opscore.Ticket) {
	size := max(min(want.Size, len(tasks)/want.Spread), 1)
	for n := range slices.Chunk(tasks, size) {
		tickets = append(tickets, opscore.Ticket{ID: ids[len(tickets)], Queue: want.Queue, Tasks: n, ClaimSeqs: seqs[:len(n)]})
		seqs = seqs[len(n):]
	}
	return tickets
}

// endTickets deletes the tickets l. They are locked in the order of their ids, and who finds one locked leaves it to the other, who
// deletes it as well.
const (
	endTickets  = " ORDER BY id FOR UPDATE SKIP LOCKED) DELETE FROM opscore.ticket k USING l WHERE k.id = l.id"
	withdrawSQL = "WITH l AS MATERIALIZED (SELECT id FROM opscore.ticket WHERE id = ANY($1)" + endTickets
	forgetSQL   = `WITH l AS MATERIALIZED (SELECT id FROM opscore.ticket WHERE at < now() - $3 * interval '1 microsecond'
		AND id IN (SELECT id FROM opscore.ticket WHERE queue = $1 ORDER BY at DESC, id DESC OFFSET $2)` + endTickets
)

// Withdraw implements [opscore.Outbox].
func (s *Store) Withdraw(ctx context.Context, tickets []opscore.ID) error {
	tag, err := s.pool.Exec(ctx, s.sql(withdrawSQL), tickets)
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
	tag, err := s.pool.Exec(ctx, s.sql(forgetSQL), queue, waiting, age.Microseconds())
	if err != nil {
		return 0, unavailable("forget tickets", err)
	}
	if tag.RowsAffected() > 0 {
		s.outgoing.restart()
	}
	return int(tag.RowsAffected()), nil
}

// TicketOut says since when a ticket is out that names a task of a queue: the latest, if there are several.
func (s *Store) TicketOut(ctx context.Context, queue string, task opscore.ID) (since time.Time, out bool, err error) {
	err = s.pool.QueryRow(ctx, s.sql("SELECT at FROM opscore.ticket WHERE queue = $1 AND $2 = ANY(tasks) ORDER BY at DESC LIMIT 1"), queue, task).Scan(&since)
	if errors.Is(err, pgx.ErrNoRows) {
		return since, false, nil
	}
	return since.UTC(), err == nil, unavailable("look for a ticket", err)
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

// Endpoint implements [opscore.Located].
func (s *Store) Endpoint(ctx context.Context) (opscore.Endpoint, error) {
	e := endpoint(s.pool.Config().ConnConfig, s.schema)
	d, err := s.Deployment(ctx)
	e.Instance = d.Instance.String()
	return e, err
}

// endpoint names a schema of a database, but for its instance.
func endpoint(c *pgx.ConnConfig, schema string) opscore.Endpoint {
	return opscore.Endpoint{
		Kind: "postgres", Address: net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))), Name: c.Database + "/" + strings.Trim(schema, `"`),
	}
}

// BeginEpoch notes that the broker's state is a new one, unless somebody else has noted so since before was read, and returns
// the epoch that holds. What was out under the old one is not out any more.
func (s *Store) BeginEpoch(ctx context.Context, before, next opscore.ID) (now opscore.ID, err error) {
	err = s.transact(ctx, "begin an epoch of the broker", func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, s.sql("UPDATE opscore.deployment SET epoch = $2 WHERE coalesce(epoch, $3) = $1"), before, next, opscore.ID{})
		if err == nil && tag.RowsAffected() == 1 && before != (opscore.ID{}) {
			_, err = tx.Exec(ctx, s.sql("WITH l AS MATERIALIZED (SELECT id FROM opscore.ticket"+endTickets))
		}
		if err != nil {
			return err
		}
		return tx.QueryRow(ctx, s.sql("SELECT epoch FROM opscore.deployment")).Scan(&now)
	})
	s.outgoing.restart()
	return now, err
}
