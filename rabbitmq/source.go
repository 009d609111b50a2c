package rabbitmq

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/batch"
)

// Source is the [opscore.Source] of one worker: it claims what tickets name, and pulls from the store what no ticket has come for. It
// subscribes when it is asked for tasks first, and unsubscribes when the context of that ends.
type Source struct {
	broker *Broker
	store  Store
	inbox  *inbox
	misses *batch.Batch[piece]
	start  sync.Once
	sub    *Subscription

	mu       sync.Mutex
	want     opscore.Claim // the latest
	slots    int           // the most that were free
	size     float64       // tasks of a ticket, on average
	asking   bool          // Next is under way
	asked    time.Time     // when Next returned last
	free     time.Time     // since when there are free slots
	claims   claims
	heard    map[lane]time.Time // when a task came by ticket last
	pulls    pulls
	parking  parking
	consumer *consumer
	barred   map[string]barred // by queue
	resume   chan struct{}     // has a token when a parked consumer is wanted again

	stats struct{ tickets, claimed, missed, pulled, parked, orphans atomic.Int64 }
}

// claims is what is known of the last claim by tickets.
type claims struct {
	ended time.Time
	took  time.Duration
}

// lane is a queue and an actor: a queue may have tickets for one of its actors and none for another.
type lane struct{ queue, actor string }

// pulls is what is known of pulls.
type pulls struct {
	last time.Time          // when the last one was
	full map[lane]bool      // of what it brought as much as there were slots for: there is more
	hits map[lane]time.Time // when one brought something last
}

// untold reports whether it seems that nobody announces a lane's tasks: a pull has brought some, and no ticket has come since.
func (s *Source) untold(at lane, now time.Time) bool {
	hit, ok := s.pulls.hits[at]
	return ok && now.Sub(hit) < untoldFor && !s.heard[at].After(hit)
}

// Stats counts what a Source has done.
type Stats struct {
	Tickets int64 `json:"tickets"` // that arrived
	Claimed int64 `json:"claimed"` // tasks, by ticket
	Missed  int64 `json:"missed"`  // tasks that a ticket named and that were not there to be claimed
	Pulled  int64 `json:"pulled"`  // tasks, without a ticket
	Parked  int64 `json:"parked"`  // times that tickets were given back because all slots were busy
	Orphans int64 `json:"orphans"` // messages that belong to no task
}

// pullAfter is for how long a worker with free slots waits for tickets before it looks for itself.
const pullAfter = time.Second

// pullEvery is how often a worker looks that cannot get tickets; it is woken besides.
const pullEvery = 250 * time.Millisecond

// Lanes whose tasks nobody announces, as when not all workers of a queue know the actor, are pulled from when something was submitted. The pause
// is for tickets that come after all.
const (
	untoldFor   = 10 * time.Second
	untoldPause = 20 * time.Millisecond
)

// Source returns the source of one worker.
func (b *Broker) Source() *Source {
	s := &Source{broker: b, store: b.store, inbox: newInbox(), size: 1, heard: map[lane]time.Time{}, pulls: pulls{hits: map[lane]time.Time{}}, barred: map[string]barred{}, resume: make(chan struct{}, 1)}
	s.misses = batch.New(opscore.DefaultSlots, s.classify)
	s.sub = &Subscription{
		Session: b.Session, Purpose: Purpose{"consume", pulled}, About: s.about, Serve: s.serve, Expects: s.expects,
		Look: s.look, Declared: func(queue string, version int) Declaration { return ticketQueue(queue, b.options.Classic, version) },
	}
	return s
}

// Stats returns the counts so far.
func (s *Source) Stats() Stats {
	return Stats{
		s.stats.tickets.Load(), s.stats.claimed.Load(), s.stats.missed.Load(), s.stats.pulled.Load(), s.stats.parked.Load(),
		s.stats.orphans.Load(),
	}
}

// Next implements [opscore.Source].
func (s *Source) Next(ctx context.Context, want opscore.Claim) ([]opscore.Task, error) {
	s.enter(want)
	defer s.leave()
	s.start.Do(func() { s.sub.Start(ctx, want.Queues) })
	for until := time.Now().Add(pullAfter); ; {
		wake := s.wake(want) // taken before the look, so that nothing that comes after it is missed
		s.gather(ctx, want.Max)
		if pieces := s.inbox.take(want.Max); len(pieces) > 0 {
			tasks, err := s.claim(ctx, want, pieces)
			if err != nil || len(tasks) > 0 {
				return tasks, err
			}
			continue
		}
		tasks, wait, err := s.pull(ctx, want)
		if err != nil || len(tasks) > 0 {
			return tasks, err
		}
		if left := time.Until(until); left <= 0 {
			return nil, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, nil
		case <-s.inbox.arrived:
		case <-wake:
			if s.inbox.unfed() < pullAfter {
				pause(ctx, untoldPause)
			}
		case <-timer.C:
		}
		timer.Stop()
	}
}

// maxGather bounds how long tickets wait for others to be claimed together with.
const maxGather = 5 * time.Millisecond

// gather waits, while tickets come one after the other, until there are as many tasks as fit or for as long as the last claim took: a
// claim of many takes hardly longer than one of few.
func (s *Source) gather(ctx context.Context, limit int) {
	s.mu.Lock()
	last := s.claims
	s.mu.Unlock()
	wait := min(last.took, maxGather)
	if time.Since(last.ended) > maxGather {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for s.inbox.tasks() < limit {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			s.inbox.signal() // what was taken from the channel meanwhile
			return
		case <-s.inbox.arrived:
		}
	}
}

// enter notes that the worker has free slots.
func (s *Source) enter(want opscore.Claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.asked) > parkAfter/2 {
		s.free = now // it had none for a while
	}
	s.asking, s.want, s.slots = true, want, max(s.slots, want.Max)
	select {
	case s.resume <- struct{}{}:
	default:
	}
}

func (s *Source) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking, s.asked = false, time.Now()
}

// wake is when there may be something to pull that no ticket comes for; for the rest tickets are waited for.
func (s *Source) wake(want opscore.Claim) <-chan struct{} {
	waker, ok := s.store.(opscore.Waker)
	if !ok {
		return nil
	}
	if s.inbox.unfed() >= pullAfter {
		return waker.Wake()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := range s.pulls.hits {
		if s.untold(at, time.Now()) && slices.Contains(want.Queues, at.queue) {
			return waker.Wake()
		}
	}
	return nil
}

// claim claims the tasks of pieces. Tickets are settled once the claim has committed.
func (s *Source) claim(ctx context.Context, want opscore.Claim, pieces []piece) ([]opscore.Task, error) {
	want.IDs, want.Tickets = make([]opscore.ID, 0, len(pieces)), nil
	named := make(map[opscore.ID]bool, len(pieces))
	tickets := make(map[opscore.ID]bool, len(pieces))
	for _, p := range pieces {
		if !named[p.id] {
			named[p.id] = true
			want.IDs = append(want.IDs, p.id)
		}
		if !tickets[p.ID] {
			tickets[p.ID] = true
			want.Tickets = append(want.Tickets, p.ID)
		}
	}
	sent := time.Now()
	got, err := s.store.Claim(ctx, want)
	if err != nil {
		s.inbox.retry(pieces...)
		return nil, err
	}
	s.mu.Lock()
	now := time.Now()
	s.claims = claims{ended: now, took: now.Sub(sent)}
	for i := range got.Tasks {
		s.heard[lane{got.Tasks[i].Queue, got.Tasks[i].Actor}] = now
	}
	s.mu.Unlock()
	clear(named)
	for i := range got.Tasks {
		named[got.Tasks[i].ID] = true
		arrived(&got.Tasks[i], pieces, sent.Add(now.Sub(sent)/2))
	}
	var claimed, missed []piece
	for _, p := range pieces {
		if named[p.id] {
			named[p.id] = false // a second piece of the same task misses
			claimed = append(claimed, p)
		} else {
			missed = append(missed, p)
		}
	}
	s.stats.claimed.Add(int64(len(claimed)))
	if len(got.Tasks) == want.Max {
		s.full(ctx)
	}
	s.settle(claimed)
	s.misses.Add(missed...)
	return got.Tasks, nil
}

// arrived notes how long the ticket of a canary has waited for its claim.
func arrived(t *opscore.Task, pieces []piece, claimed time.Time) {
	if t.Actor != opscore.CanaryActor {
		return
	}
	for _, p := range pieces {
		if p.id == t.ID {
			t.Arrival.Waited = max(claimed.Sub(p.came), 0)
		}
	}
}

// full stops the flow of tickets before the ones that filled the last slots are settled, if the source has been holding too many of
// them lately.
func (s *Source) full(ctx context.Context) {
	s.mu.Lock()
	c, careful := s.consumer, time.Now().Before(s.parking.until)
	s.mu.Unlock()
	if c != nil && careful {
		ctx, cancel := context.WithTimeout(ctx, time.Second) // the tasks are claimed: they must not wait for a frozen broker
		defer cancel()
		_ = c.end(ctx) // an error means that the channel is gone: it is noticed elsewhere
	}
}

// settle acknowledges the tickets that have no more open pieces.
func (s *Source) settle(pieces []piece) {
	tags := map[*feed][]uint64{}
	var ended []opscore.ID
	for _, d := range s.inbox.done(pieces) {
		tags[d.feed] = append(tags[d.feed], d.tag)
		if d.late && !d.stay {
			ended = append(ended, d.ID)
		}
	}
	if len(ended) > 0 {
		ctx, cancel := context.WithTimeout(s.broker.ctx, patience)
		defer cancel()
		if err := s.store.Withdraw(ctx, ended); err != nil {
			s.broker.log.Warn("cannot end tickets: their tasks come back when the tickets are old", "tickets", len(ended), "error", err)
		}
	}
	for f, some := range tags {
		f.ack(some)
	}
}

// pull claims due tasks of lanes that no ticket has come for in a while, and says when to try again.
func (s *Source) pull(ctx context.Context, want opscore.Claim) (tasks []opscore.Task, wait time.Duration, err error) {
	all := s.inbox.unfed() >= pullAfter
	queues, actors, wait := s.silent(want.Queues, want.Actors, all)
	if len(queues) == 0 {
		return nil, wait, nil
	}
	want.Queues, want.Actors, want.NotOut = queues, actors, !all
	got, err := s.store.Claim(ctx, want)
	s.mu.Lock()
	s.pulls.last, s.pulls.full = time.Now(), map[lane]bool{}
	for i := range got.Tasks {
		at := lane{got.Tasks[i].Queue, got.Tasks[i].Actor}
		s.pulls.hits[at] = s.pulls.last
		s.pulls.full[at] = len(got.Tasks) == want.Max
	}
	s.mu.Unlock()
	s.stats.pulled.Add(int64(len(got.Tasks)))
	if got.Next > 0 {
		wait = min(wait, got.Next)
	}
	return got.Tasks, wait, err
}

// silent returns what to pull from now, and when to look again: lanes for which nothing came in pullAfter although there were free slots,
// and lanes of which a pull has brought as much as it could and no ticket has come since.
func (s *Source) silent(queues, actors []string, all bool) (fromQueues, forActors []string, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, every := time.Now(), pullAfter
	if all {
		every = pullEvery
	}
	since := now.Sub(s.pulls.last)
	due := since >= every
	wait = max(every-since, time.Millisecond)
	if due {
		wait = every
	}
	for _, q := range queues {
		for _, a := range actors {
			at := lane{q, a}
			heard := s.heard[at]
			quiet := now.Sub(later(heard, s.free))
			untold := s.untold(at, now)
			if untold {
				wait = min(wait, pullEvery)
			}
			switch {
			case s.pulls.full[at] && !heard.After(s.pulls.last), untold && since >= untoldPause, due && (all || quiet >= pullAfter):
				if !slices.Contains(forActors, a) {
					forActors = append(forActors, a)
				}
				if !slices.Contains(fromQueues, q) {
					fromQueues = append(fromQueues, q)
				}
			case due && !all:
				wait = min(wait, max(pullAfter-quiet, time.Millisecond))
			}
		}
	}
	return fromQueues, forActors, wait
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// about says among the broker's connections whose one it is.
func (s *Source) about() amqp.Table {
	s.mu.Lock()
	defer s.mu.Unlock()
	return amqp.Table{"worker": s.want.Worker.String()}
}

// expects reports whether tickets that wait in a queue would have to come, and since when.
func (s *Source) expects(queue string) (since time.Time, expects bool) {
	s.mu.Lock()
	c, free, isFree := s.consumer, s.free, s.asking || time.Since(s.asked) < parkAfter/2
	s.mu.Unlock()
	if c == nil || !isFree {
		return time.Time{}, false
	}
	begun, room := c.room(queue)
	return later(begun, free), room
}

var errNotConsumed = errors.New("it is not consumed now")

// look declares a queue passively on the channel that its tickets come on.
func (s *Source) look(ctx context.Context, queue string) (amqp.Queue, error) {
	s.mu.Lock()
	c := s.consumer
	s.mu.Unlock()
	if c == nil {
		return amqp.Queue{}, errNotConsumed
	}
	return c.look(ctx, queue)
}

// Checks implements [opscore.Checked].
func (s *Source) Checks() []opscore.Check { return s.sub.Checks() }

// Endpoint implements [opscore.Located].
func (s *Source) Endpoint(ctx context.Context) (opscore.Endpoint, error) {
	return s.broker.Endpoint(ctx)
}
