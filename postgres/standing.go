package postgres

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
)

// Stand implements [opscore.Standings]. It takes two round trips: the lanes, and what is in them.
func (s *Store) Stand(ctx context.Context, queues []string, of *opscore.Task) (opscore.Stand, error) {
	l := lines{queues: queues, of: of, found: map[lane]*opscore.Line{}}
	var stand opscore.Stand
	err := s.steered(ctx, s.pool, func(rows pgx.Rows) error {
		var queue, actor *string
		var rank *int16
		if err := rows.Scan(&l.at, &queue, &actor, &rank); err != nil || queue == nil || !l.asked(*queue) {
			return err
		}
		l.line(lane{*queue, *actor, *rank})
		return nil
	}, laneSQL+" SELECT c.at, l.queue, l.actor, l.rank FROM (SELECT clock_timestamp() AS at) c LEFT JOIN lane l ON true")
	if err != nil {
		return stand, unavailable("look where tasks stand", err)
	}
	b := &pgx.Batch{}
	b.Queue(steer)
	b.Queue("SELECT set_config('jit', 'off', true)") // the planner, steered, guesses costs that seem to be worth compiling for
	l.queueCount(b, s)
	l.queueRates(b, s)
	s.queueLoads(b, &stand)
	if of != nil {
		s.queueTicket(b, &stand, of)
	}
	b.Queue(s.sql("SELECT min(tstamp) AT TIME ZONE current_setting('TimeZone') FROM opscore.version")).QueryRow(func(row pgx.Row) error {
		var made *time.Time
		err := row.Scan(&made)
		stand.Made = timeOf(made)
		return err
	})
	if err := s.pool.SendBatch(ctx, b).Close(); err != nil {
		return opscore.Stand{}, unavailable("look where tasks stand", err)
	}
	stand.At, stand.Lines = l.at.UTC(), opscore.SortedLines(maps.Values(l.found))
	return stand, nil
}

// lines are the lanes as they are counted.
type lines struct {
	at     time.Time
	queues []string
	of     *opscore.Task
	found  map[lane]*opscore.Line
}

func (l *lines) asked(queue string) bool {
	return len(l.queues) == 0 || slices.Contains(l.queues, queue)
}

func (l *lines) line(at lane) *opscore.Line {
	if l.found[at] == nil {
		l.found[at] = &opscore.Line{Queue: at.queue, Actor: at.actor, Priority: -int(at.rank)}
	}
	return l.found[at]
}

// countSQL counts the due tasks of lanes ($1 queues, $2 actors, $3 ranks) at $4, of which those due before $5, and then with an id smaller than
// $6, are ahead of a task; and those that are scheduled. Each up to $7: the most urgent first, so that those ahead are all that there are, or more than
// the limit.
const countSQL = `
	SELECT l.n, d.due, d.oldest, d.ahead, s.scheduled
	FROM unnest($1::text[], $2::text[], $3::smallint[], $5::timestamptz[], $6::uuid[]) WITH ORDINALITY AS l (queue, actor, rank, before, id, n)
	CROSS JOIN LATERAL (
		SELECT count(*) AS due, min(run_at) AS oldest, count(*) FILTER (WHERE (run_at, id) < (l.before, l.id)) AS ahead FROM (
			SELECT run_at, id FROM opscore.task
			WHERE state = 'pending' AND queue = l.queue AND actor = l.actor AND rank = l.rank
				AND run_at <= $4 AND (expires_at IS NULL OR expires_at > $4)
			ORDER BY run_at, id LIMIT $7) t) d
	CROSS JOIN LATERAL (
		SELECT count(*) AS scheduled FROM (
			SELECT FROM opscore.task
			WHERE state = 'pending' AND queue = l.queue AND actor = l.actor AND rank = l.rank AND run_at > $4 LIMIT $7) t) s`

func (l *lines) queueCount(b *pgx.Batch, s *Store) {
	var from starts // where the tasks end that are ahead
	var all []*opscore.Line
	for at, line := range l.found {
		var before front
		switch {
		case l.of == nil || -l.of.Priority < int(at.rank):
		case -l.of.Priority > int(at.rank):
			before.runAt = l.at.Add(time.Microsecond)
		default:
			before.runAt, before.id = l.of.RunAt, l.of.ID
		}
		from.add(at, before)
		all = append(all, line)
	}
	limit := opscore.CountsPerLine(len(all))
	b.Queue(s.sql(countSQL), from.queues, from.actors, from.ranks, l.at, from.runAts, from.ids, limit+1).Query(func(rows pgx.Rows) error {
		return scanAll(rows, func(rows pgx.Rows) error {
			var n, due, ahead, scheduled int
			var oldest *time.Time
			if err := rows.Scan(&n, &due, &oldest, &ahead, &scheduled); err != nil {
				return err
			}
			line := all[n-1]
			line.Due, line.Ahead, line.Scheduled = opscore.TallyOf(due, limit), opscore.TallyOf(ahead, limit), opscore.TallyOf(scheduled, limit)
			line.Oldest = timeOf(oldest)
			return nil
		})
	})
}

// What came and went between $1 and $2, at most the latest $3: how many of each lane, how many in all, and when the first did. Ids that opscore makes
// sort by age, so there is an index for both.
const (
	ratesSQL = ` SELECT queue, actor, rank, count(*), sum(count(*)) OVER (), min(min(at)) OVER (), min(at), max(at) FROM lately GROUP BY queue, actor, rank`

	arrivedSQL = `WITH lately AS MATERIALIZED (SELECT queue, actor, rank, created_at AS at FROM opscore.task
		WHERE id >= $4::uuid AND id < $5::uuid AND created_at BETWEEN $1 AND $2 ORDER BY id DESC LIMIT $3)` + ratesSQL
	completedSQL = `WITH lately AS MATERIALIZED (SELECT queue, actor, rank, finished_at AS at FROM opscore.task
		WHERE state = 'completed' AND finished_at BETWEEN $1 AND $2 ORDER BY finished_at DESC LIMIT $3)` + ratesSQL
)

func (l *lines) queueRates(b *pgx.Batch, s *Store) {
	since := l.at.Add(-opscore.RatesOver)
	b.Queue(s.sql(arrivedSQL), since, l.at, opscore.RatedAtMost, idAt(since), idAt(l.at.Add(opscore.RatesOver))).Query(
		l.rates(func(line *opscore.Line, perS float64, first, last time.Time) {
			line.Arriving, line.FirstCame, line.LastCame = perS, first, last
		}))
	b.Queue(s.sql(completedSQL), since, l.at, opscore.RatedAtMost).Query(
		l.rates(func(line *opscore.Line, perS float64, _, _ time.Time) { line.Completing = perS }))
}

func (l *lines) rates(set func(line *opscore.Line, perS float64, first, last time.Time)) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		return scanAll(rows, func(rows pgx.Rows) error {
			var at lane
			var n, seen int
			var since, first, last time.Time
			if err := rows.Scan(&at.queue, &at.actor, &at.rank, &n, &seen, &since, &first, &last); err != nil || !l.asked(at.queue) {
				return err
			}
			over := opscore.RatesOver
			if seen == opscore.RatedAtMost {
				over = max(l.at.Sub(since), time.Millisecond)
			}
			set(l.line(at), float64(n)/over.Seconds(), first.UTC(), last.UTC())
			return nil
		})
	}
}

// idAt is the smallest id that was made at a moment.
func idAt(at time.Time) (id opscore.ID) {
	ms := max(at.UnixMilli(), 0)
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	return id
}

const loadsSQL = `
	SELECT worker, n, total, id, queue, actor, started_at, lost, alone FROM (
		SELECT *, count(*) OVER (PARTITION BY worker) AS n, count(*) OVER () AS total,
			row_number() OVER (PARTITION BY worker ORDER BY lost >= $1 DESC, started_at, id) AS nth
		FROM (SELECT worker, id, queue, actor, started_at, lost, alone_seq = claim_seq AS alone
			FROM opscore.task WHERE state = 'running' AND worker IS NOT NULL LIMIT $2) r) w
	WHERE nth <= $3 ORDER BY worker, nth`

func (s *Store) queueLoads(b *pgx.Batch, stand *opscore.Stand) {
	b.Queue(s.sql(loadsSQL), opscore.MaxLost-1, opscore.RunsLookedAt, opscore.RunsShown).Query(func(rows pgx.Rows) error {
		return scanAll(rows, func(rows pgx.Rows) error {
			var worker opscore.ID
			var n, total int
			var r opscore.RunState
			var started *time.Time
			if err := rows.Scan(&worker, &n, &total, &r.Task, &r.Queue, &r.Actor, &started, &r.Lost, &r.Alone); err != nil {
				return err
			}
			r.StartedAt = timeOf(started)
			if k := len(stand.Loads); k == 0 || stand.Loads[k-1].Worker != worker {
				stand.Loads = append(stand.Loads, opscore.Load{Worker: worker, Running: opscore.Tally{N: n, More: total == opscore.RunsLookedAt}})
			}
			load := &stand.Loads[len(stand.Loads)-1]
			load.Runs = append(load.Runs, r)
			return nil
		})
	})
}

// ticketSQL finds the latest ticket that names the task $2 of queue $1 with its present claim number $3, and how many of the queue are out.
const ticketSQL = `
	SELECT k.id, k.at, (SELECT count(*) FROM opscore.ticket WHERE queue = $1) FROM opscore.ticket k
	WHERE k.queue = $1 AND EXISTS (SELECT FROM unnest(k.tasks, k.seqs) AS a (task, seq) WHERE a.task = $2 AND a.seq = $3)
	ORDER BY k.at DESC LIMIT 1`

func (s *Store) queueTicket(b *pgx.Batch, stand *opscore.Stand, of *opscore.Task) {
	b.Queue(s.sql(ticketSQL), of.Queue, of.ID, of.ClaimSeq).Query(func(rows pgx.Rows) error {
		return scanAll(rows, func(rows pgx.Rows) error {
			stand.Ticket = &opscore.OutTicket{}
			err := rows.Scan(&stand.Ticket.ID, &stand.Ticket.At, &stand.Ticket.In)
			stand.Ticket.At = stand.Ticket.At.UTC()
			return err
		})
	})
}
