package dramatiq

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// Bounds of giving messages back to consumers that are not ours: Python workers that have actors which we do not.
const (
	aloneFor     = 15 * time.Second
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
	crowds  map[string]*crowd // by queue
	seen    map[string]stray  // by queue and body
}

// crowd is who else consumes a queue.
type crowd struct {
	others  time.Time // when somebody else did last, or when this worker began
	foreign int       // consumers that are certainly not ours
}

func (s *strays) crowd(queue string) *crowd {
	if s.crowds[queue] == nil {
		s.crowds[queue] = &crowd{others: time.Now()}
	}
	return s.crowds[queue]
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
	for _, a := range others {
		why := fmt.Sprintf("no live worker that listens to queue %s has actor %s", a.queue, clip(a.message.Actor))
		if !s.takes(a.queue, a.message.Actor) {
			why = fmt.Sprintf("queue %s takes no messages for actor %s: see dramatiq.queues", a.queue, clip(a.message.Actor))
		} else if takers(workers, a.queue, a.message.Actor) > 0 {
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
	all, read := s.strays.workers, s.strays.read
	s.strays.mu.Unlock()
	if time.Since(read) < workersFor {
		return all, nil
	}
	all, err := s.store.Workers(ctx, 0)
	if err != nil {
		return nil, err
	}
	s.strays.mu.Lock()
	defer s.strays.mu.Unlock()
	s.strays.workers, s.strays.read = all, time.Now()
	return all, nil
}

// giveBack puts a message back into its queue, after a while, for consumers that are not ours: as long as there certainly are some; for ten minutes
// if they may all be ours; and for a moment after the last one was seen, for it may just be started again.
func (s *Source) giveBack(a *arrival) bool {
	s.strays.mu.Lock()
	defer s.strays.mu.Unlock()
	crowd := s.strays.crowd(a.queue)
	if time.Since(crowd.others) > cmp.Or(s.options.Alone, aloneFor) {
		return false
	}
	now, digest := time.Now(), sha256.Sum256(a.Body)
	key := a.queue + " " + string(digest[:])
	was, again := s.strays.seen[key]
	if !again {
		was.since = now
		s.strays.makeRoom()
	}
	if crowd.foreign == 0 && now.Sub(was.since) > giveBackFor {
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

// makeRoom forgets a message if there are too many: its time begins anew when it comes back.
func (s *strays) makeRoom() {
	for key := range s.seen {
		if len(s.seen) < maxStrays {
			return
		}
		delete(s.seen, key)
	}
}

// lookAround counts who else consumes the queue. The broker does not say who they are, so those of ours are counted by the registry, which may have more
// of them: workers that died, that rest because they are busy, or that only send.
func (c *consumer) lookAround(ctx context.Context) {
	workers, err := c.workers(ctx)
	if err != nil {
		return // it is said where messages need it
	}
	found, err := c.consumers(ctx)
	if err != nil {
		return
	}
	others := found
	if c.tag != "" {
		others--
	}
	c.strays.mu.Lock()
	crowd := c.strays.crowd(c.queue)
	before := crowd.foreign
	crowd.foreign = max(found-takers(workers, c.queue, SendActor), 0) // every worker of ours that takes messages over has that actor
	if others > 0 {
		crowd.others = time.Now()
	}
	now := crowd.foreign
	c.strays.mu.Unlock()
	if now > 0 && now != before {
		c.log.Warn("the queue has consumers that are not ours, such as workers of Python: each message goes to one of us", "queue", c.queue,
			"foreign_consumers", now)
	}
}

// consumers counts those of the queue.
func (c *consumer) consumers(ctx context.Context) (n int, err error) {
	err = c.session.On(ctx, func(ch *amqp.Channel) error {
		state, err := ch.QueueDeclarePassive(c.queue, true, false, false, false, nil)
		n = state.Consumers
		return err
	})
	return n, err
}

// takers counts the live workers of ours that run an actor's tasks from a queue.
func takers(workers []opscore.WorkerInfo, queue, actor string) (n int) {
	for i := range workers {
		if workers[i].Live && workers[i].Takes(queue, actor) {
			n++
		}
	}
	return n
}
