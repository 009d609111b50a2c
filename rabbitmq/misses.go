package rabbitmq

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/opscore/opscore"
)

// When a task is looked at again that is locked, or that is not there. Its ticket is not settled meanwhile.
var (
	lockedAgain  = []time.Duration{5 * time.Millisecond, 20 * time.Millisecond, 80 * time.Millisecond}
	missingAgain = []time.Duration{100 * time.Millisecond, 400 * time.Millisecond, 1500 * time.Millisecond}
)

var errNoTask = errors.New("TaskNotFoundError: there is no such task")

// classify finds out why tasks could not be claimed that tickets named. What has to come back comes back through its row, never
// through the broker: the relay issues a new ticket when the old one is taken back, or is old.
func (s *Source) classify(misses []piece) {
	ctx, cancel := context.WithTimeout(s.broker.ctx, patience)
	defer cancel()
	ids := make([]opscore.ID, len(misses))
	for i, p := range misses {
		ids[i] = p.id
	}
	tasks, err := s.store.Get(ctx, ids)
	var paused []opscore.Pause
	if err == nil {
		paused, err = s.store.Paused(ctx)
	}
	if err != nil {
		s.later(misses, parkAfter) // the claim says what is wrong
		return
	}
	rows := make(map[opscore.ID]*opscore.Task, len(tasks))
	for i := range tasks {
		rows[tasks[i].ID] = &tasks[i]
	}
	s.mu.Lock()
	want := s.want
	s.mu.Unlock()
	var over, stay []piece
	for _, p := range misses {
		t := rows[p.id]
		switch {
		case t == nil && p.tries < len(missingAgain):
			p.tries++
			s.recheck(p, missingAgain[p.tries-1])
		case t == nil:
			over = append(over, p)
			s.missing(p)
		case t.State != opscore.Pending || t.ClaimSeq != p.seq, // done, under way, or of a ticket that is not the latest
			slices.ContainsFunc(paused, func(q opscore.Pause) bool { return q.Queue == t.Queue }),
			!t.ExpiresAt.IsZero() && !t.ExpiresAt.After(time.Now()):
			over = append(over, p)
		case !slices.Contains(want.Actors, t.Actor):
			// The relay has not seen yet that this worker listens as well; what not every worker knows is pulled.
			s.broker.log.Debug("a ticket came to a worker that does not know the actor", "task", t.ID, "actor", t.Actor)
			over = append(over, p)
		case p.tries < len(lockedAgain):
			p.tries++
			s.later([]piece{p}, lockedAgain[p.tries-1])
		default:
			s.broker.log.Debug("a task is locked", "task", t.ID, "actor", t.Actor)
			stay = append(stay, p)
		}
	}
	s.stats.missed.Add(int64(len(over) + len(stay)))
	s.inbox.mark(over, func(d *delivery) { d.late = true })
	s.inbox.mark(stay, func(d *delivery) { d.late, d.stay = true, true })
	s.settle(append(over, stay...))
}

// later gives pieces another try.
func (s *Source) later(pieces []piece, after time.Duration) {
	time.AfterFunc(after, func() { s.inbox.retry(pieces...) })
}

// recheck looks again at a task that is not there: it may be on its way to a standby, or the ticket may be a forged one.
func (s *Source) recheck(p piece, after time.Duration) {
	time.AfterFunc(after, func() {
		if s.broker.ctx.Err() == nil {
			s.misses.Add(p)
		}
	})
}

// missing keeps a ticket of a task that does not exist: it was pruned, it was lost with the database, or it never was.
func (s *Source) missing(p piece) {
	s.stats.orphans.Add(1)
	ctx, cancel := context.WithTimeout(s.broker.ctx, patience)
	defer cancel()
	body, err := encode(s.broker.instance, &p.Ticket)
	if err == nil {
		_, err = s.store.KeepOrphans(ctx, []opscore.Orphan{{ID: p.id, Queue: p.Queue, Reason: opscore.CodeTaskNotFound, Headers: "{}", Body: body}})
	}
	s.broker.log.Warn("a ticket names a task that does not exist", "task", p.id, "queue", p.Queue, "ticket", p.ID, "why", errNoTask, "kept", err == nil)
}
