package sqlite

import (
	"context"
	"database/sql"
	"maps"
	"slices"
	"time"

	"github.com/opscore/opscore"
)

// Stand implements [opscore.Standings].
func (s *Store) Stand(ctx context.Context, queues []string, of *opscore.Task) (stand opscore.Stand, err error) {
	err = s.read(ctx, "look where tasks stand", func(c *conn) error {
		at := now()
		stand = opscore.Stand{At: timeOf(at)}
		l := lines{at: at, of: of, found: map[lane]*opscore.Line{}}
		if err := l.count(c, queues); err != nil {
			return err
		}
		if err := l.rates(c, queues); err != nil {
			return err
		}
		stand.Lines = opscore.SortedLines(maps.Values(l.found))
		if stand.Loads, err = loads(c); err != nil {
			return err
		}
		stand.Made, err = made(c)
		return err
	})
	return stand, err
}

// lines are the lanes as they are counted.
type lines struct {
	at    int64
	of    *opscore.Task
	found map[lane]*opscore.Line // by queue, actor and rank
}

func (l *lines) line(queue, actor string, rank int) *opscore.Line {
	k := lane{queue: queue, actor: actor, rank: rank}
	if l.found[k] == nil {
		l.found[k] = &opscore.Line{Queue: queue, Actor: actor, Priority: -rank}
	}
	return l.found[k]
}

// count finds the lanes and counts each up to a limit.
func (l *lines) count(c *conn, queues []string) error {
	var found []lane
	err := c.query(func(rows *sql.Rows) error {
		var k lane
		err := rows.Scan(&k.queue, &k.actor, &k.rank, &k.next)
		if len(queues) == 0 || slices.Contains(queues, k.queue) {
			found = append(found, k)
		}
		return err
	}, laneSQL+" SELECT queue, actor, rank, run_at FROM lane")
	if err != nil {
		return err
	}
	limit := opscore.CountsPerLine(len(found))
	for _, k := range found {
		if err := l.countLane(c, k, limit); err != nil {
			return err
		}
	}
	return nil
}

const (
	scheduledSQL = `SELECT count(*) FROM (SELECT 1 FROM opscore_task
		WHERE state = 'pending' AND queue = ? AND actor = ? AND rank = ? AND run_at > ? LIMIT ?)`
	dueSQL = `SELECT count(*), coalesce(min(run_at), 0), coalesce(sum(run_at < ?1 OR run_at = ?1 AND id < ?2), 0) FROM (
		SELECT run_at, id FROM opscore_task
		WHERE state = 'pending' AND queue = ?3 AND actor = ?4 AND rank = ?5 AND run_at <= ?6 AND (expires_at = 0 OR expires_at > ?6)
		ORDER BY run_at, id LIMIT ?7)`
)

// countLane counts the most urgent first, so that those ahead of a task are all that there are, or more than the limit.
func (l *lines) countLane(c *conn, k lane, limit int) error {
	line := l.line(k.queue, k.actor, k.rank)
	var before int64 // those due before this moment, and then with a smaller id, are ahead
	var id opscore.ID
	switch {
	case l.of == nil || -l.of.Priority < k.rank:
	case -l.of.Priority > k.rank:
		before = l.at + 1
	default:
		before, id = micros(l.of.RunAt), l.of.ID
	}
	err := c.query(func(rows *sql.Rows) error {
		var due, ahead int
		var oldest int64
		err := rows.Scan(&due, &oldest, &ahead)
		line.Due, line.Ahead, line.Oldest = opscore.TallyOf(due, limit), opscore.TallyOf(ahead, limit), timeOf(oldest)
		return err
	}, dueSQL, before, id[:], k.queue, k.actor, k.rank, l.at, limit+1)
	if err != nil {
		return err
	}
	return c.query(func(rows *sql.Rows) error {
		var scheduled int
		err := rows.Scan(&scheduled)
		line.Scheduled = opscore.TallyOf(scheduled, limit)
		return err
	}, scheduledSQL, k.queue, k.actor, k.rank, l.at, limit+1)
}

// What came and went lately, the latest first. Ids that opscore makes sort by age, so there is an index for both.
const (
	arrivedSQL = `SELECT queue, actor, rank, created_at FROM opscore_task
		WHERE id >= ? AND id < ? AND created_at >= ? ORDER BY id DESC LIMIT ?`
	completedSQL = `SELECT queue, actor, rank, finished_at FROM opscore_task
		WHERE state = 'completed' AND finished_at >= ? ORDER BY finished_at DESC LIMIT ?`
)

// rates counts what came and went.
func (l *lines) rates(c *conn, queues []string) error {
	since := l.at - opscore.RatesOver.Microseconds()
	from, to := idAt(since), idAt(l.at+opscore.RatesOver.Microseconds())
	if err := l.rate(c, queues, func(line *opscore.Line, perS float64, first, last int64) {
		line.Arriving, line.FirstCame, line.LastCame = perS, timeOf(first), timeOf(last)
	}, arrivedSQL, from[:], to[:], since, opscore.RatedAtMost); err != nil {
		return err
	}
	return l.rate(c, queues, func(line *opscore.Line, perS float64, _, _ int64) { line.Completing = perS },
		completedSQL, since, opscore.RatedAtMost)
}

// flow is what came, or went, in a lane.
type flow struct {
	n           int
	first, last int64
}

func (l *lines) rate(c *conn, queues []string, set func(line *opscore.Line, perS float64, first, last int64), query string, args ...any) error {
	flows, seen, first := map[lane]flow{}, 0, l.at
	err := c.query(func(rows *sql.Rows) error {
		var k lane
		var at int64
		err := rows.Scan(&k.queue, &k.actor, &k.rank, &at)
		f, known := flows[k]
		if !known {
			f.first, f.last = at, at
		}
		flows[k] = flow{f.n + 1, min(f.first, at), max(f.last, at)}
		seen, first = seen+1, min(first, at)
		return err
	}, query, args...)
	if err != nil {
		return err
	}
	over := opscore.RatesOver
	if seen == opscore.RatedAtMost {
		over = max(time.Duration(l.at-first)*time.Microsecond, time.Millisecond)
	}
	for k, f := range flows {
		if len(queues) == 0 || slices.Contains(queues, k.queue) {
			set(l.line(k.queue, k.actor, k.rank), float64(f.n)/over.Seconds(), f.first, f.last)
		}
	}
	return nil
}

// idAt is the smallest id that was made at a moment.
func idAt(micros int64) (id opscore.ID) {
	ms := max(micros/1000, 0)
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	return id
}

// loads returns what the workers run.
func loads(c *conn) (all []opscore.Load, err error) {
	total := 0
	err = c.query(func(rows *sql.Rows) error {
		var worker opscore.ID
		var task sql.RawBytes
		var r opscore.RunState
		var n int
		var started int64
		if err := scanID(rows, &worker, &n, &task, &r.Queue, &r.Actor, &started, &r.Lost, &r.Alone, &total); err != nil {
			return err
		}
		copy(r.Task[:], task)
		r.StartedAt = timeOf(started)
		if len(all) == 0 || all[len(all)-1].Worker != worker {
			all = append(all, opscore.Load{Worker: worker, Running: opscore.Tally{N: n}})
		}
		all[len(all)-1].Runs = append(all[len(all)-1].Runs, r)
		return nil
	}, `SELECT worker, n, id, queue, actor, started_at, lost, alone, total FROM (
			SELECT *, count(*) OVER (PARTITION BY worker) AS n, count(*) OVER () AS total,
				row_number() OVER (PARTITION BY worker ORDER BY lost >= ? DESC, started_at, id) AS nth
			FROM (SELECT worker, id, queue, actor, started_at, lost, alone_seq = claim_seq AS alone
				FROM opscore_task WHERE state = 'running' AND worker IS NOT NULL LIMIT ?))
		WHERE nth <= ? ORDER BY worker, nth`, opscore.MaxLost-1, opscore.RunsLookedAt, opscore.RunsShown)
	for i := range all {
		all[i].Running.More = total == opscore.RunsLookedAt
	}
	return all, err
}

// made is when the file was made, by the clock of the machine that did.
func made(c *conn) (at time.Time, err error) {
	err = c.query(func(rows *sql.Rows) error {
		var micros int64
		err := rows.Scan(&micros)
		at = timeOf(micros)
		return err
	}, "SELECT coalesce(unixepoch(min(tstamp)), 0) * 1000000 FROM "+versionTable)
	return at, err
}
