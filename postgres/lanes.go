package postgres

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
)

// lane is the pending tasks of one queue, actor and priority, ordered by due time and id.
type lane struct {
	queue, actor string
	rank         int16
}

// front is where the pending tasks of a lane begin, or before; the zero front is before all.
type front struct {
	runAt  time.Time
	id     opscore.ID
	due    time.Time // runAt by the monotonic clock
	paused bool
}

func (f front) before(runAt time.Time, id opscore.ID) bool {
	if c := f.runAt.Compare(runAt); c != 0 {
		return c < 0
	}
	return bytes.Compare(f.id[:], id[:]) < 0
}

// lanes remembers the fronts of all lanes, so that a claim does not step over the index entries of every task that was
// claimed since the last vacuum. It is only speed: what it does not know of, because another process stored it or a
// transaction committed late, is found when the lanes are read again, which every claim does that gets nothing.
type lanes struct {
	mu     sync.Mutex
	fronts map[lane]front
	until  time.Time // when they must be read again; zero at once
}

// lanesFor bounds how long a busy worker may not see a more urgent task of another process; it is longer where reading the
// lanes takes so long that it would cost more than a twentieth of the time.
const lanesFor = 50 * time.Millisecond

// starts are the lanes that a claim takes from, as the columns that claimDue wants.
type starts struct {
	queues, actors []string
	ranks          []int16
	runAts         []time.Time
	ids            [][16]byte
}

func (s *starts) add(at lane, f front) {
	s.queues, s.actors, s.ranks = append(s.queues, at.queue), append(s.actors, at.actor), append(s.ranks, at.rank)
	s.runAts, s.ids = append(s.runAts, f.runAt), append(s.ids, f.id)
}

// of returns the lanes that may have something due for want, and whether they are fresh.
func (l *lanes) of(want *opscore.Claim) (from starts, fresh bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for at, f := range l.fronts {
		if !f.paused && !f.due.After(now) && slices.Contains(want.Queues, at.queue) && slices.Contains(want.Actors, at.actor) {
			from.add(at, f)
		}
	}
	return from, now.Before(l.until)
}

// next returns when the first task for want is due, 0 if that is past or unknown.
func (l *lanes) next(want *opscore.Claim) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var first time.Time
	for at, f := range l.fronts {
		if !f.paused && slices.Contains(want.Queues, at.queue) && slices.Contains(want.Actors, at.actor) &&
			(first.IsZero() || f.due.Before(first)) {
			first = f.due
		}
	}
	return max(time.Until(first), 0)
}

// taken moves the fronts to tasks that were claimed, which come in order.
func (l *lanes) taken(tasks []opscore.Task) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range tasks {
		t := &tasks[i]
		at := lane{t.Queue, t.Actor, int16(-t.Priority)}
		if f, known := l.fronts[at]; known && f.before(t.RunAt, t.ID) {
			f.runAt, f.id = t.RunAt, t.ID
			l.fronts[at] = f
		}
	}
}

// inserted takes note of new tasks, and begins anew in a lane that does not show them. That they stay behind others that were
// claimed while they were inserted is noticed when the lanes are read again.
func (l *lanes) inserted(requests []opscore.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for i := range requests {
		r := &requests[i]
		at := lane{r.Queue, r.Actor, int16(-r.Priority)}
		if f, known := l.fronts[at]; !known || f.due.After(now) || !r.At.IsZero() && r.At.Before(f.runAt) {
			l.fronts[at] = front{paused: f.paused}
		}
	}
}

// changed makes the next claim read the lanes.
func (l *lanes) changed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = time.Time{}
}

// read replaces the fronts; they were asked for at sent.
func (l *lanes) read(fronts map[lane]front, sent time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.fronts, l.until = fronts, now.Add(max(lanesFor, 20*now.Sub(sent)))
}

// laneSQL steps through the index from lane to lane, so its cost does not grow with the pending tasks in them.
const laneSQL = `
	WITH RECURSIVE lane (queue, actor, rank, run_at, id) AS (
		(SELECT queue, actor, rank, run_at, id FROM opscore.task
			WHERE state = 'pending' ORDER BY queue, actor, rank, run_at, id LIMIT 1)
		UNION ALL
		SELECT n.* FROM lane l CROSS JOIN LATERAL (
			SELECT t.queue, t.actor, t.rank, t.run_at, t.id FROM opscore.task t
			WHERE t.state = 'pending' AND (t.queue, t.actor, t.rank) > (l.queue, l.actor, l.rank)
			ORDER BY t.queue, t.actor, t.rank, t.run_at, t.id LIMIT 1) n)`

// readLanesSQL finds where the lanes begin. $1 is the worker.
const readLanesSQL = laneSQL + `
	SELECT w.alive, l.queue, l.actor, l.rank, l.run_at, l.id, (extract(epoch FROM l.run_at - clock_timestamp()) * 1e6)::bigint,
		l.queue IN (SELECT queue FROM opscore.pause)
	FROM (SELECT EXISTS (SELECT FROM opscore.worker WHERE id = $1 AND state <> 'gone') AS alive) w LEFT JOIN lane l ON true`

// readLanes finds the fronts of all lanes. It is an [opscore.ErrLeaseLost] if the worker is gone.
func (s *Store) readLanes(ctx context.Context, worker opscore.ID) error {
	ctx, cancel := within(ctx, opscore.HeartbeatEvery)
	defer cancel()
	sent := time.Now()
	fronts, alive, err := s.readFronts(ctx, worker, sent)
	if err != nil {
		return err
	}
	s.lanes.read(fronts, sent)
	if !alive {
		return opscore.ErrLeaseLost
	}
	return nil
}

func (s *Store) readFronts(ctx context.Context, worker opscore.ID, sent time.Time) (fronts map[lane]front, alive bool, err error) {
	fronts = map[lane]front{}
	err = s.steered(ctx, s.pool, func(rows pgx.Rows) error {
		var queue, actor *string
		var rank *int16
		var runAt *time.Time
		var id *[16]byte
		var wait *int64
		var paused *bool
		if err := rows.Scan(&alive, &queue, &actor, &rank, &runAt, &id, &wait, &paused); err != nil || queue == nil {
			return err
		}
		fronts[lane{*queue, *actor, *rank}] = front{*runAt, *id, sent.Add(time.Duration(*wait) * time.Microsecond), *paused}
		return nil
	}, readLanesSQL, worker)
	return fronts, alive, unavailable("look for due tasks", err)
}
