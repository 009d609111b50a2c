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
	"sync/atomic"
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
	Strict bool
	// Alone is for how long nobody else must have consumed a queue before a message for an actor that nobody here has is an orphan, rather
	// than one for a worker of Python's that is just being started again; 0 means 15 s.
	Alone    time.Duration
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

	processing sync.RWMutex // held for reading while deliveries are looked at: their acks need the connection

	lines map[string]*line // by queue

	mu    sync.Mutex
	want  opscore.Claim // the latest
	asked time.Time     // when Next returned last; zero while it is under way
	free  time.Time     // since when there are free slots
	slots int           // the most that were free
}

// line is what a queue comes on.
type line struct {
	sub      *rabbitmq.Subscription
	resume   chan struct{}            // has a token when the worker has free slots
	consumer atomic.Pointer[consumer] // nil while there is no connection
}

// Bounds of a source.
const (
	processFor  = 2 * opscore.HeartbeatEvery
	maxBatch    = 500     // messages that are adopted at a time
	maxBytes    = 8 << 20 // of them
	idleFor     = 250 * time.Millisecond
	parkAfter   = 200 * time.Millisecond // without a free slot, what waits goes back to the queue
	leastAhead  = 10
	mostAhead   = 200
	lookEvery   = 5 * time.Second // for other consumers
	workersFor  = time.Second     // how long the registry is believed
	lateFor     = time.Minute     // in strict mode, a task that was pulled may be over before its message comes
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
	s := &Source{
		session: session, store: store, options: o, log: cmp.Or(o.Log, slog.Default()), inbox: newInbox(),
		strays: strays{crowds: map[string]*crowd{}, seen: map[string]stray{}}, lines: map[string]*line{},
	}
	for queue := range o.Queues {
		s.lines[queue] = s.newLine(queue)
	}
	return s, nil
}

// newLine returns the line of a queue, on a connection of its own, so that one which cannot be used does not stop the others.
func (s *Source) newLine(queue string) *line {
	l := &line{resume: make(chan struct{}, 1)}
	l.resume <- struct{}{}
	l.sub = &rabbitmq.Subscription{
		Session: s.session, Purpose: rabbitmq.Purpose{Name: "dramatiq consume " + queue, Meanwhile: "messages wait in their queue"},
		About:   s.about,
		Serve:   func(ctx context.Context, conn *amqp.Connection) error { return s.serve(ctx, conn, queue, l) },
		Expects: func(name string) (time.Time, bool) { return s.expects(l, name) },
		Look: func(ctx context.Context, name string) (amqp.Queue, error) {
			if c := l.consumer.Load(); c != nil {
				return c.look(ctx, name)
			}
			return amqp.Queue{}, errNotConsumed
		},
		Declared: func(name string, _ int) rabbitmq.Declaration { return s.declared(queue, name) },
	}
	return l
}

// declared returns how a queue or its companion is made.
func (s *Source) declared(queue, name string) rabbitmq.Declaration {
	all := s.options.Declare.Declarations(queue)
	return all[slices.IndexFunc(all, func(d rabbitmq.Declaration) bool { return d.Name == name })]
}

// Checks implements [opscore.Checked].
func (s *Source) Checks() (all []opscore.Check) {
	for _, queue := range slices.Sorted(maps.Keys(s.lines)) {
		all = append(all, s.lines[queue].sub.Checks()...)
	}
	return all
}

// Endpoint implements [opscore.Located].
func (s *Source) Endpoint(ctx context.Context) (opscore.Endpoint, error) {
	return s.session.Endpoint(ctx)
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
	s.start.Do(func() { s.subscribe(ctx) })
	idle := time.NewTimer(idleFor)
	defer idle.Stop()
	for {
		if batch := s.inbox.take(nil); len(batch) > 0 {
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

func (s *Source) subscribe(ctx context.Context) {
	for queue, l := range s.lines {
		l.sub.Start(ctx, []string{queue, queue + delayed})
	}
}

func (s *Source) enter(want opscore.Claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); !s.asked.IsZero() && now.Sub(s.asked) > parkAfter/2 {
		s.free = now // it had none for a while
	}
	s.want, s.asked, s.slots = want, time.Time{}, max(s.slots, want.Max)
	for _, l := range s.lines {
		select {
		case l.resume <- struct{}{}:
		default:
		}
	}
}

// about says among the broker's connections whose one it is.
func (s *Source) about() amqp.Table {
	s.mu.Lock()
	defer s.mu.Unlock()
	return amqp.Table{"worker": s.want.Worker.String()}
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

// expects reports whether messages that wait in a queue of the broker would have to come, and since when.
func (s *Source) expects(l *line, name string) (since time.Time, expects bool) {
	s.mu.Lock()
	free, isFree := s.free, s.asked.IsZero() || time.Since(s.asked) < parkAfter/2
	s.mu.Unlock()
	c := l.consumer.Load()
	if c == nil || !isFree || s.inbox.has(c.feed) || !s.processing.TryLock() {
		return time.Time{}, false // what it has may be all that it can get
	}
	s.processing.Unlock()
	begun := c.since(name)
	if begun.Before(free) {
		return free, !begun.IsZero()
	}
	return begun, !begun.IsZero()
}

// consumer is what consumes a queue on one connection: the main queue on one channel, which rests while the worker is busy, the delayed one on another.
type consumer struct {
	*Source
	conn    *amqp.Connection
	queue   string
	line    *line
	feed    *feed
	main    *amqp.Channel
	late    *amqp.Channel
	reading sync.WaitGroup // of the main queue
	later   time.Time      // until then delayed messages wait: they could not be adopted

	switching sync.Mutex // one exchange at a time on the channels; only watch writes what follows
	tag       string     // on main, while it consumes
	begun     time.Time  // since when
	lateBegun time.Time  // since when the other queue is consumed
}

var errNotConsumed = errors.New("it is not consumed now")

// since returns since when a queue is consumed, zero if it is not.
func (c *consumer) since(name string) time.Time {
	if !c.switching.TryLock() {
		return time.Time{}
	}
	defer c.switching.Unlock()
	switch {
	case name != c.queue:
		return c.lateBegun
	case c.tag == "":
		return time.Time{}
	}
	return c.begun
}

// look says what is in a queue; see [rabbitmq.Subscription].
func (c *consumer) look(ctx context.Context, name string) (amqp.Queue, error) {
	if !c.switching.TryLock() {
		return amqp.Queue{}, errNotConsumed
	}
	defer c.switching.Unlock()
	ch := c.main
	if name != c.queue {
		ch = c.late
	}
	return rabbitmq.Await(ctx, c.conn, func() (amqp.Queue, error) { return ch.QueueDeclarePassive(name, true, false, false, false, nil) })
}

// serve consumes a queue on a connection until that is lost, the queue is gone, or ctx ends.
func (s *Source) serve(ctx context.Context, conn *amqp.Connection, queue string, l *line) error {
	made, err := declare(ctx, s.session, s.options.Declare, queue)
	if err != nil {
		return err
	}
	if made {
		s.log.Warn("a queue of Dramatiq's did not exist and was made: is its name right?", "queue", queue)
	}
	for _, differ := range mismatches(ctx, s.session, s.options.Declare, queue) {
		s.log.Warn("a queue is used as it is, though it is not as configured", "queue", queue, "differs", differ)
	}
	c := &consumer{Source: s, conn: conn, queue: queue, line: l, feed: &feed{"opscore-" + uuid.NewString()}}
	if c.main, err = rabbitmq.Await(ctx, conn, conn.Channel); err != nil {
		return err
	}
	if c.late, err = rabbitmq.Await(ctx, conn, conn.Channel); err != nil {
		return err
	}
	gone := make(chan *amqp.Error, 2)
	cancelled := make(chan string, 4)
	for _, ch := range []*amqp.Channel{c.main, c.late} {
		closed := ch.NotifyClose(make(chan *amqp.Error, 1))
		go func() { gone <- <-closed }()
		cancels := ch.NotifyCancel(make(chan string, 2))
		go func() {
			for tag := range cancels {
				cancelled <- tag
			}
		}()
	}
	defer s.inbox.open(c.feed)()
	if err := c.consume(ctx, c.late, queue+delayed, mostAhead); err != nil {
		return err
	}
	l.consumer.Store(c)
	defer l.consumer.Store(nil)
	c.lookAround(ctx)
	if busy, _ := c.busy(); !busy {
		if err := c.work(ctx); err != nil {
			return err
		}
	}
	l.sub.Subscribed(nil)
	return c.watch(ctx, gone, cancelled)
}

var errQueueGone = errors.New("a queue that was consumed is gone: it is made again")

// watch consumes while there are free slots.
func (c *consumer) watch(ctx context.Context, gone <-chan *amqp.Error, cancelled <-chan string) error {
	tick, look := time.NewTicker(parkAfter/4), time.NewTicker(lookEvery)
	defer tick.Stop()
	defer look.Stop()
	for {
		var err error
		select {
		case <-ctx.Done(): // unsubscribe first, and let others have what waits here
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			err := c.rest(ctx)
			c.processing.Lock() // what is looked at now is acked
			c.processing.Unlock()
			return err
		case e := <-gone:
			if e == nil {
				return errors.New("the connection was closed")
			}
			return e
		case <-cancelled:
			return errQueueGone
		case <-c.line.resume:
			err = c.work(ctx)
		case <-look.C:
			c.lookAround(ctx)
		case <-tick.C:
			if busy, want := c.busy(); busy && c.inbox.since(c.feed) > parkAfter {
				err = c.park(ctx, want)
			}
		}
		if err != nil {
			return err
		}
	}
}

// work consumes the main queue, unless it does.
func (c *consumer) work(ctx context.Context) error {
	if c.tag != "" {
		return nil
	}
	c.mu.Lock()
	ahead := min(max(2*c.slots, leastAhead), mostAhead)
	c.mu.Unlock()
	return c.consume(ctx, c.main, c.queue, ahead)
}

func (c *consumer) consume(ctx context.Context, ch *amqp.Channel, name string, ahead int) error {
	c.switching.Lock()
	defer c.switching.Unlock()
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
			c.line.sub.Heard(name)
			c.inbox.put(&delivery{Delivery: &d, queue: c.queue, main: ch == c.main, feed: c.feed, came: time.Now()})
		}
	}
	if ch == c.main {
		c.tag, c.begun = tag, time.Now()
		c.reading.Go(read)
	} else {
		c.lateBegun = time.Now()
		go read()
	}
	return nil
}

// rest stops consuming the main queue and gives back what waits here.
func (c *consumer) rest(ctx context.Context) error {
	c.switching.Lock()
	defer c.switching.Unlock()
	tag := c.tag
	c.tag = ""
	_, err := rabbitmq.Await(ctx, c.conn, func() (struct{}, error) {
		if tag != "" {
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
	want.Max, want.Worker = 0, opscore.ID{} // whose lease may be over
	if time.Now().Before(c.later) {
		return nil
	}
	if batch := c.inbox.take(c.feed); len(batch) > 0 {
		if _, err := c.process(ctx, want, batch); err != nil && ctx.Err() == nil {
			c.log.Error("cannot adopt delayed messages: they wait", "messages", len(batch), "error", err)
			c.later = time.Now().Add(opscore.HeartbeatEvery)
		}
	}
	return nil
}
