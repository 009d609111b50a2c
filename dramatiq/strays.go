package dramatiq

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// Bounds of giving messages back to consumers that are not ours: Python workers that have actors which we do not.
const (
	giveBackFor  = 10 * time.Minute
	giveBackSoon = 50 * time.Millisecond
	giveBackLate = 500 * time.Millisecond
	maxStrays    = 10_000
)

// strays is what is known of messages that are not for this worker.
type strays struct {
	mu      sync.Mutex
	workers []opscore.WorkerInfo
	read    time.Time
	looked  time.Time            // for other consumers
	foreign map[string]int       // consumers of a queue that are not ours, as far as is known
	met     map[string]time.Time // when a queue had some last
	seen    map[string]stray     // by queue and id
}

// stray is a message that was given back.
type stray struct {
	since time.Time
	times int
}

// sort finds out what to do with messages that are not for this worker. It returns those that another worker of ours will run: they become
// tasks as well. The others go to a consumer that is not ours, if there is one, or else are orphans.
func (s *Source) sort(ctx context.Context, others []*arrival) (known []*arrival, err error) {
	if len(others) == 0 {
		return nil, nil
	}
	workers, err := s.workers(ctx)
	if err != nil {
		s.again(others)
		return nil, err
	}
	s.lookAround(ctx, lookAgain)
	for _, a := range others {
		why := fmt.Sprintf("no live worker that listens to queue %s has actor %s", a.queue, clip(a.message.Actor))
		if !s.takes(a.queue, a.message.Actor) {
			why = fmt.Sprintf("queue %s takes no messages for actor %s: see dramatiq.queues", a.queue, clip(a.message.Actor))
		} else if slices.ContainsFunc(workers, func(w opscore.WorkerInfo) bool {
			return w.Live && slices.Contains(w.Actors, a.message.Actor) && slices.Contains(w.Queues, a.queue)
		}) {
			known = append(known, a)
			continue
		}
		if s.giveBack(a) {
			continue
		}
		err := s.orphan(ctx, a.delivery, opscore.Orphan{ID: a.adoption.Request.ID, Actor: a.message.Actor, Reason: opscore.CodeActorUnknown, Why: why})
		if err != nil {
			s.again(others)
			return nil, err
		}
	}
	return known, nil
}

// workers returns the registry, as it was a moment ago.
func (s *Source) workers(ctx context.Context) ([]opscore.WorkerInfo, error) {
	s.strays.mu.Lock()
	defer s.strays.mu.Unlock()
	if time.Since(s.strays.read) < workersFor {
		return s.strays.workers, nil
	}
	all, err := s.store.Workers(ctx, 0)
	if err != nil {
		return nil, err
	}
	s.strays.workers, s.strays.read = all, time.Now()
	return all, nil
}

// giveBack puts a message back into its queue, after a while, for consumers that are not ours, even if they are just being started again: until one
// has taken it, or it has come here for too long.
func (s *Source) giveBack(a *arrival) bool {
	s.strays.mu.Lock()
	defer s.strays.mu.Unlock()
	if met, ever := s.strays.met[a.queue]; !ever || time.Since(met) > giveBackFor {
		return false
	}
	now, key := time.Now(), a.queue+" "+a.message.ID
	was, again := s.strays.seen[key]
	if !again {
		was.since = now
	}
	if now.Sub(was.since) > giveBackFor || len(s.strays.seen) >= maxStrays && !again && s.strays.forget(now) == 0 {
		delete(s.strays.seen, key)
		return false
	}
	wait := min(giveBackSoon<<min(was.times, 10), giveBackLate)
	was.times++
	s.strays.seen[key] = was
	a.settled = true
	d := a.delivery
	time.AfterFunc(wait, func() { _ = d.Nack(false, true) })
	return true
}

// forget drops what has not come back, and returns how many that are.
func (s *strays) forget(now time.Time) (n int) {
	for key, was := range s.seen {
		if now.Sub(was.since) > giveBackFor {
			delete(s.seen, key)
			n++
		}
	}
	return n
}

// lookAround counts the consumers that are not ours, unless somebody has just done so. Those of ours that rest while they are busy are counted as
// well, so that there may be more.
func (s *Source) lookAround(ctx context.Context, unless time.Duration) {
	s.strays.mu.Lock()
	fresh := time.Since(s.strays.looked) < unless
	s.strays.looked = time.Now()
	s.strays.mu.Unlock()
	workers, err := s.workers(ctx)
	if err != nil || fresh {
		return // that the registry cannot be read is said where messages need it
	}
	for q := range s.options.Queues {
		if found, err := s.consumers(ctx, q); err == nil {
			s.meet(q, found-ours(workers, q))
		}
	}
}

// consumers counts those of a queue.
func (s *Source) consumers(ctx context.Context, queue string) (n int, err error) {
	err = s.session.On(ctx, func(ch *amqp.Channel) error {
		state, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		n = state.Consumers
		return err
	})
	return n, err
}

// ours counts the workers of ours that take messages from a queue.
func ours(workers []opscore.WorkerInfo, queue string) (n int) {
	for _, w := range workers {
		if w.Live && slices.Contains(w.Actors, SendActor) && slices.Contains(w.Queues, queue) {
			n++
		}
	}
	return n
}

// meet notes how many consumers of a queue are not ours.
func (s *Source) meet(queue string, foreign int) {
	s.strays.mu.Lock()
	before := s.strays.foreign[queue]
	s.strays.foreign[queue] = max(foreign, 0)
	if foreign > 0 {
		s.strays.met[queue] = time.Now()
	}
	s.strays.mu.Unlock()
	if foreign > 0 && foreign != before {
		s.log.Warn("the queue has consumers that are not ours, such as workers of Python: each message goes to one of us", "queue", queue,
			"foreign_consumers", foreign)
	}
}
