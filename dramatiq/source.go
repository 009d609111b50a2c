package dramatiq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/rabbitmq"
)

// Store is what a [Source] needs of a store; [github.com/opscore/opscore/postgres.Store] is one.
type Store interface {
	opscore.Store
	opscore.Adopter
	opscore.Orphans
}

// Options say what a [Source] consumes.
type Options struct {
	// Queues are Dramatiq's, each with the actors whose messages are taken from it; none means all that the worker has.
	Queues map[string][]string
	// Strict takes a message only if a task with its id was stored before: the row is what runs. Others are orphans.
	Strict   bool
	Declare  Queues           // how queues are made that do not exist
	Handlers opscore.Handlers // the worker's
	Log      *slog.Logger     // nil means [slog.Default]
}

// Source is the [opscore.Source] of one worker that takes over Dramatiq's messages: each becomes a task, and is acknowledged when that is
// certain. The worker must listen to the queues' tasks as well, from another source: that is how they are retried. It subscribes when it is
// asked for tasks first, and unsubscribes when the context of that ends.
type Source struct {
	session *rabbitmq.Session
	store   Store
	options Options
	log     *slog.Logger
	inbox   *inbox
	strays  strays
	start   sync.Once

	mu     sync.Mutex
	want   opscore.Claim // the latest
	asked  time.Time     // when Next returned last; zero while it is under way
	slots  int           // the most that were free
	resume chan struct{} // has a token when a worker has free slots
}

// Bounds of a source.
const (
	maxBatch    = 500     // messages that are adopted at a time
	maxBytes    = 8 << 20 // of them
	idleFor     = 250 * time.Millisecond
	parkAfter   = 200 * time.Millisecond // without a free slot, what waits goes back to the queue
	leastAhead  = 10
	mostAhead   = 200
	lookEvery   = 10 * time.Second // for other consumers
	lookAgain   = time.Second      // before a message is given up
	workersFor  = time.Second      // how long the registry is believed
	lateFor     = time.Minute      // in strict mode, a task that was pulled may be over before its message comes
	graceForRow = 300 * time.Millisecond
	rowTries    = 4 // in strict mode, a row that is being committed is waited for: 1 to 2 s
)

// NewSource checks the options and returns a source.
func NewSource(session *rabbitmq.Session, store Store, o Options) (*Source, error) {
	if len(o.Queues) == 0 {
		return nil, &opscore.Error{Code: opscore.CodeInvalid, Message: "no queue of Dramatiq's is given"}
	}
	for queue, actors := range o.Queues {
		if err := ValidQueue(queue); err != nil {
			return nil, err
		}
		for _, a := range actors {
			if err := opscore.ValidName("actor", a); err != nil {
				return nil, fmt.Errorf("queue %s: %w", queue, err)
			}
		}
	}
	if err := o.Declare.validate(); err != nil {
		return nil, err
	}
	return &Source{
		session: session, store: store, options: o, log: cmp.Or(o.Log, slog.Default()), inbox: newInbox(), resume: make(chan struct{}, 1),
		strays: strays{seen: map[string]stray{}, foreign: map[string]int{}, met: map[string]time.Time{}},
	}, nil
}

// Next implements [opscore.Source].
func (s *Source) Next(ctx context.Context, want opscore.Claim) ([]opscore.Task, error) {
	for queue := range s.options.Queues {
		if !slices.Contains(want.Queues, queue) {
			return nil, &opscore.Error{Code: opscore.CodeInvalid, Message: "the worker does not listen to queue " + queue + ": what is taken over from it would not be retried"}
		}
	}
	s.enter(want)
	defer s.leave()
	s.start.Do(func() { s.session.Keep(ctx, "dramatiq consume", nil, s.serve) })
	idle := time.NewTimer(idleFor)
	defer idle.Stop()
	for {
		if batch := s.inbox.take(maxBatch, maxBytes); len(batch) > 0 {
			tasks, err := s.process(ctx, want, batch)
			if err != nil || len(tasks) > 0 {
				return tasks, err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-idle.C:
			return nil, nil
		case <-s.inbox.arrived:
		}
	}
}

func (s *Source) enter(want opscore.Claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.want, s.asked, s.slots = want, time.Time{}, max(s.slots, want.Max)
	select {
	case s.resume <- struct{}{}:
	default:
	}
}

func (s *Source) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = time.Now()
}

// busy reports whether the worker has had no free slot for a while, and what it wanted last.
func (s *Source) busy() (bool, opscore.Claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.asked.IsZero() && time.Since(s.asked) > parkAfter, s.want
}

// consumer is what consumes on one connection: main queues on one channel, which rests while the worker is busy, delayed ones on another.
type consumer struct {
	*Source
	conn    *amqp.Connection
	feed    *feed
	main    *amqp.Channel
	late    *amqp.Channel
	reading sync.WaitGroup // of main queues
	tags    []string       // on main, of what consumes now
}

// serve consumes on a connection until it is lost, a queue is gone, or ctx ends.
func (s *Source) serve(ctx context.Context, conn *amqp.Connection) error {
	queues := slices.Sorted(maps.Keys(s.options.Queues))
	for _, q := range queues {
		made, err := declare(ctx, s.session, s.options.Declare, q)
		if err != nil {
			return err
		}
		if made {
			s.log.Warn("a queue of Dramatiq's did not exist and was made: is its name right?", "queue", q)
		}
		for _, differ := range mismatches(ctx, s.session, s.options.Declare, q) {
			s.log.Warn("a queue is used as it is, though it is not as configured", "queue", q, "differs", differ)
		}
	}
	c := &consumer{Source: s, conn: conn, feed: &feed{"opscore-" + uuid.NewString()}}
	var err error
	if c.main, err = rabbitmq.Await(ctx, conn, conn.Channel); err != nil {
		return err
	}
	if c.late, err = rabbitmq.Await(ctx, conn, conn.Channel); err != nil {
		return err
	}
	gone := make(chan *amqp.Error, 2)
	cancelled := make(chan string, 2*len(queues)+2)
	for _, ch := range []*amqp.Channel{c.main, c.late} {
		closed := ch.NotifyClose(make(chan *amqp.Error, 1))
		go func() { gone <- <-closed }()
		cancels := ch.NotifyCancel(make(chan string, len(queues)+1))
		go func() {
			for tag := range cancels {
				cancelled <- tag
			}
		}()
	}
	s.inbox.open(c.feed)
	defer s.inbox.open(nil)
	for _, q := range queues {
		if err := c.consume(ctx, c.late, q, q+delayed, mostAhead); err != nil {
			return err
		}
	}
	return c.watch(ctx, queues, gone, cancelled)
}

var errQueueGone = errors.New("a queue that was consumed is gone: it is made again")

// watch consumes while there are free slots.
func (c *consumer) watch(ctx context.Context, queues []string, gone <-chan *amqp.Error, cancelled <-chan string) error {
	tick, look := time.NewTicker(parkAfter/4), time.NewTicker(lookEvery)
	defer tick.Stop()
	defer look.Stop()
	c.lookAround(ctx, 0)
	for {
		var err error
		select {
		case <-ctx.Done(): // unsubscribe first, and let others have what waits here
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			return c.rest(ctx)
		case e := <-gone:
			if e == nil {
				return errors.New("the connection was closed")
			}
			return e
		case <-cancelled:
			return errQueueGone
		case <-c.resume:
			err = c.work(ctx, queues)
		case <-look.C:
			c.lookAround(ctx, 0)
		case <-tick.C:
			if busy, want := c.busy(); busy && c.inbox.since() > parkAfter {
				err = c.park(ctx, want)
			}
		}
		if err != nil {
			return err
		}
	}
}

// work consumes the main queues, unless it does.
func (c *consumer) work(ctx context.Context, queues []string) error {
	if len(c.tags) > 0 {
		return nil
	}
	c.mu.Lock()
	ahead := min(max(2*c.slots, leastAhead), mostAhead)
	c.mu.Unlock()
	for _, q := range queues {
		if err := c.consume(ctx, c.main, q, q, ahead); err != nil {
			return err
		}
	}
	return nil
}

func (c *consumer) consume(ctx context.Context, ch *amqp.Channel, queue, name string, ahead int) error {
	tag := c.feed.name + "-" + name
	deliveries, err := rabbitmq.Await(ctx, c.conn, func() (<-chan amqp.Delivery, error) {
		if err := ch.Qos(ahead, 0, false); err != nil {
			return nil, err
		}
		return ch.Consume(name, tag, false, false, false, false, nil)
	})
	if err != nil {
		return fmt.Errorf("queue %s: %w", name, err)
	}
	read := func() {
		for d := range deliveries {
			c.inbox.put(&delivery{Delivery: &d, queue: queue, main: ch == c.main, feed: c.feed, came: time.Now()})
		}
	}
	if ch == c.main {
		c.tags = append(c.tags, tag)
		c.reading.Go(read)
	} else {
		go read()
	}
	return nil
}

// rest stops consuming main queues and gives back what waits here.
func (c *consumer) rest(ctx context.Context) error {
	tags := c.tags
	c.tags = nil
	_, err := rabbitmq.Await(ctx, c.conn, func() (struct{}, error) {
		for _, tag := range tags {
			if err := c.main.Cancel(tag, false); err != nil {
				return struct{}{}, err
			}
		}
		c.reading.Wait() // what was on its way has arrived
		return struct{}{}, nil
	})
	for _, d := range c.inbox.clear(c.feed) {
		_ = d.Nack(false, true) // an error means that the channel is gone: then it comes again as well
	}
	return err
}

// park makes room for workers that have free slots. What is delayed becomes tasks all the same: it is not to be held.
func (c *consumer) park(ctx context.Context, want opscore.Claim) error {
	if err := c.rest(ctx); err != nil {
		return err
	}
	want.Max = 0
	if batch := c.inbox.take(maxBatch, maxBytes); len(batch) > 0 {
		if _, err := c.process(ctx, want, batch); err != nil && ctx.Err() == nil {
			c.log.Error("cannot adopt delayed messages: they wait", "messages", len(batch), "error", err)
		}
	}
	return nil
}
