package rabbitmq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// Prefetch and parking: how many tickets a worker may hold that it cannot claim, and for how long.
const (
	maxPrefetch = 100
	parkAfter   = 200 * time.Millisecond
	carefulFor  = 2 * time.Second  // after a park, tickets are asked for only while there are free slots
	carefulMost = 30 * time.Second // it is twice as long each time it turns out to be needed again
	unusableFor = 30 * time.Second // then a queue that cannot be consumed is tried again
)

// prefetch is how many tickets may be on their way to the worker: enough for twice its slots, or, while it is careful, for its free ones. They are
// counted in tickets, and what those name depends on how fast tasks are taken: too few of them would keep that slow.
func (s *Source) prefetch() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	tasks := 2 * s.slots
	if time.Now().Before(s.parking.until) {
		tasks = s.want.Max
	}
	return min(max(int(float64(tasks)/s.size), 1), maxPrefetch)
}

// parking is how careful a source is not to hold what it cannot claim.
type parking struct {
	until time.Time // while it is careful it consumes only while there are free slots
	last  time.Duration
}

// consumer consumes all queues on one channel.
type consumer struct {
	*feed
	source  *Source
	conn    *amqp.Connection
	queues  []string
	running sync.WaitGroup // goroutines that read deliveries

	switching sync.Mutex
	tags      []string // of what consumes now
	prefetch  int
	begun     time.Time

	trying atomic.Pointer[string] // the queue that is just subscribed to
}

// serve consumes on a connection until it is lost, a queue is gone, or ctx ends.
func (s *Source) serve(ctx context.Context, conn *amqp.Connection) error {
	s.mu.Lock()
	queues := s.want.Queues
	s.mu.Unlock()
	usable, unusable := s.usable(ctx, queues)
	if len(usable) == 0 {
		return fmt.Errorf("queue %s: %w", queues[0], unusable[queues[0]])
	}
	if len(unusable) > 0 { // the others must not wait for it: it is tried again on the next connection
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, unusableFor)
		defer cancel()
	}
	ch, err := await(ctx, func() { go hangUp(conn) }, conn.Channel)
	if err != nil {
		return err
	}
	c := &consumer{feed: newFeed(ch), source: s, conn: conn, queues: usable}
	cancels := ch.NotifyCancel(make(chan string, len(usable)+1))
	gone := ch.NotifyClose(make(chan *amqp.Error, 1))
	s.attach(c)
	defer s.attach(nil)
	if err := c.begin(ctx); err != nil {
		return err
	}
	s.sub.Subscribed(unusable)
	return c.watch(ctx, gone, cancels)
}

// usable sees to it that the queues exist, and returns those that can be consumed, as far as is known, and what is wrong with the others.
func (s *Source) usable(ctx context.Context, queues []string) (usable []string, unusable map[string]error) {
	unusable = map[string]error{}
	for _, q := range queues {
		s.mu.Lock()
		bar := s.barred[q]
		s.mu.Unlock()
		err := bar.why
		if time.Now().After(bar.until) {
			_, err = s.broker.ensureQueue(ctx, q)
		}
		if err == nil {
			usable = append(usable, q)
			continue
		}
		unusable[q] = err
		s.broker.log.Warn("no tickets can come from a queue; its tasks are pulled from the database meanwhile", "queue", q, "error", err)
	}
	return usable, unusable
}

// barred is a queue that could not be consumed: the others must not wait for it.
type barred struct {
	why   error
	until time.Time
}

// bar keeps a queue from the next connections for a while, if it is the queue that is to blame.
func (s *Source) bar(queue string, err error) {
	refused, said := errors.AsType[*amqp.Error](err)
	if !errors.Is(err, context.DeadlineExceeded) && (!said || !slices.Contains(queueFaults, refused.Code)) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.barred[queue] = barred{s.broker.unavailable(err), time.Now().Add(unusableFor)}
}

// queueFaults are the codes with which the broker refuses to let one queue be consumed.
var queueFaults = []int{amqp.AccessRefused, amqp.NotFound, amqp.ResourceLocked, amqp.PreconditionFailed, amqp.InternalError}

func (s *Source) attach(c *consumer) {
	s.mu.Lock()
	s.consumer = c
	s.mu.Unlock()
	if c == nil {
		s.inbox.open(nil)
	} else {
		s.inbox.open(c.feed)
	}
}

// watch parks and resumes as slots are busy or free.
func (c *consumer) watch(ctx context.Context, gone <-chan *amqp.Error, cancels <-chan string) error {
	tick := time.NewTicker(parkAfter / 4)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-ctx.Done(): // unsubscribe first, and let others have what waits here
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			return c.end(ctx)
		case e := <-gone:
			return lost(e)
		case <-cancels:
			// The queue was deleted, or its node is down. Deliveries of it can no longer be settled on this channel.
			return errQueueGone
		case <-c.source.resume:
			err = c.adjust(ctx)
		case <-tick.C:
			if c.source.holding() {
				c.source.beCareful()
				err = c.end(ctx)
			}
		}
		if err != nil {
			return err
		}
	}
}

// adjust consumes if there are free slots, with room for as many tickets as there are slots to claim for.
func (c *consumer) adjust(ctx context.Context) error {
	c.source.mu.Lock()
	asking := c.source.asking
	c.source.mu.Unlock()
	if !asking {
		return nil
	}
	need := c.source.prefetch()
	c.switching.Lock()
	small := len(c.tags) > 0 && c.prefetch < (need+1)/2 && time.Since(c.begun) > carefulFor/4
	c.switching.Unlock()
	if small {
		if err := c.end(ctx); err != nil {
			return err
		}
	}
	return c.begin(ctx)
}

// begin consumes, unless it does.
func (c *consumer) begin(ctx context.Context) error {
	c.switching.Lock()
	defer c.switching.Unlock()
	if len(c.tags) > 0 {
		return nil
	}
	prefetch := c.source.prefetch()
	tags, err := await(ctx, func() { go hangUp(c.conn) }, func() ([]string, error) { return c.consume(prefetch) })
	c.tags, c.prefetch, c.begun = tags, prefetch, time.Now()
	if q := c.trying.Load(); err != nil && q != nil {
		if len(c.queues) > 1 {
			c.source.bar(*q, err)
		}
		return fmt.Errorf("queue %s: %w", *q, err)
	}
	return err
}

// room reports whether more of a queue may come, and since when it is consumed.
func (c *consumer) room(queue string) (begun time.Time, room bool) {
	if !c.switching.TryLock() {
		return time.Time{}, false
	}
	defer c.switching.Unlock()
	return c.begun, len(c.tags) > 0 && slices.Contains(c.queues, queue) && c.held(queue) < c.prefetch
}

func (c *consumer) consume(prefetch int) (tags []string, err error) {
	if err := c.ch.Qos(prefetch, 0, false); err != nil { // holds for consumers that start from here on
		return nil, err
	}
	for _, q := range c.queues {
		c.trying.Store(&q)
		tag := "opscore-" + uuid.NewString()
		deliveries, err := c.ch.Consume(queuePrefix+q, tag, false, false, false, false, nil)
		if err != nil {
			return tags, err
		}
		tags = append(tags, tag)
		c.running.Go(func() {
			for d := range deliveries {
				c.source.arrived(c.feed, q, &d)
			}
		})
	}
	c.trying.Store(nil)
	return tags, nil
}

// end stops consuming and gives back what is not claimed.
func (c *consumer) end(ctx context.Context) error {
	c.switching.Lock()
	defer c.switching.Unlock()
	if len(c.tags) == 0 {
		return nil
	}
	tags := c.tags
	c.tags = nil
	_, err := await(ctx, func() { go hangUp(c.conn) }, func() (struct{}, error) {
		for _, tag := range tags {
			if err := c.ch.Cancel(tag, false); err != nil {
				return struct{}{}, err
			}
		}
		c.running.Wait() // what was on its way has arrived
		return struct{}{}, nil
	})
	if err != nil {
		return err
	}
	if back := c.source.inbox.clear(c.feed); len(back) > 0 {
		c.nack(back, true)
		c.source.stats.parked.Add(1)
	}
	return nil
}

// look says what is in a queue; see [Subscription].
func (c *consumer) look(ctx context.Context, queue string) (amqp.Queue, error) {
	if !c.switching.TryLock() {
		return amqp.Queue{}, errNotConsumed
	}
	defer c.switching.Unlock()
	return await(ctx, func() { go hangUp(c.conn) }, func() (amqp.Queue, error) {
		return c.ch.QueueDeclarePassive(queuePrefix+queue, true, false, false, false, nil)
	})
}

var errQueueGone = errors.New("a queue that was consumed is gone: it is made again")

// holding reports whether tickets have been held for too long without a slot to claim for.
func (s *Source) holding() bool {
	return s.inbox.oldest() > parkAfter
}

func (s *Source) beCareful() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.parking.until) > 5*carefulFor {
		s.parking.last = 0
	}
	s.parking.last = min(max(2*s.parking.last, carefulFor), carefulMost)
	s.parking.until = time.Now().Add(s.parking.last)
}

// arrived decodes a delivery and puts it into the inbox. What is no ticket of ours is kept as an orphan.
func (s *Source) arrived(f *feed, queue string, d *amqp.Delivery) {
	s.stats.tickets.Add(1)
	f.came(d.DeliveryTag, queue)
	s.sub.Heard(queue)
	t, reason, err := s.broker.ticket(queue, d)
	if err == nil {
		s.mu.Lock()
		s.size += (float64(len(t.Tasks)) - s.size) / 20
		s.mu.Unlock()
		s.inbox.put(&delivery{Ticket: t, feed: f, tag: d.DeliveryTag, came: time.Now(), open: len(t.Tasks)})
		return
	}
	s.stats.orphans.Add(1)
	for {
		if _, failed := s.broker.keep(queue, reason, d, err); failed == nil {
			break
		}
		if pause(s.broker.ctx, pullAfter); s.broker.ctx.Err() != nil || !s.inbox.live(f) {
			return // it will be delivered again
		}
	}
	if reason == opscore.CodeForeignDatabase {
		f.nack([]uint64{d.DeliveryTag}, false) // whoever it belongs to finds it among the dead letters
	} else {
		f.ack([]uint64{d.DeliveryTag})
	}
}

// ticket reads a message as a ticket of a queue. If it is none, reason says as what orphan it is kept.
func (b *Broker) ticket(queue string, d *amqp.Delivery) (t opscore.Ticket, reason opscore.Code, err error) {
	t, err = decode(b.instance, d.Body)
	if err == nil && t.Queue != queue {
		err = fmt.Errorf("it is a ticket of queue %s", t.Queue)
	}
	switch {
	case errors.Is(err, errForeign):
		reason = opscore.CodeForeignDatabase
	case err != nil:
		reason = opscore.CodeUndecodable
	}
	return t, reason, err
}

// messageID is the message's own id, or one made of its body, so that the same message is the same orphan.
func messageID(d *amqp.Delivery) opscore.ID {
	if id, err := uuid.Parse(d.MessageId); err == nil {
		return id
	}
	return uuid.NewSHA1(uuid.NameSpaceOID, d.Body)
}

// keep keeps a message as an orphan, unless the store has no room for it: then it is dropped.
func (b *Broker) keep(queue string, reason opscore.Code, d *amqp.Delivery, why error) (dropped bool, err error) {
	headers, err := json.Marshal(d.Headers)
	if err != nil || len(headers) > maxMessageBytes {
		headers = []byte(`"too many to be kept"`)
	}
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	id := messageID(d)
	lost, err := b.store.KeepOrphans(ctx, []opscore.Orphan{{ID: id, Queue: queue, Reason: reason, Headers: string(headers), Body: d.Body}})
	if err != nil {
		b.log.Error("cannot keep an orphan", "queue", queue, "reason", reason, "bytes", len(d.Body), "error", err)
		return false, err
	}
	b.log.Warn("a message belongs to no task", "queue", queue, "orphan", id, "reason", reason, "bytes", len(d.Body), "why", why, "dropped", lost > 0)
	return lost > 0, nil
}
