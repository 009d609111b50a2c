package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Sender sends messages to queues, on a connection of its own, which is made again whenever it is lost.
type Sender struct {
	session *Session
	purpose Purpose
	prepare func(ctx context.Context, queue string) error
	fresh   func(context.Context) // called with each new connection; nil for nothing

	mu      sync.Mutex
	outlet  *outlet       // nil while there is none
	why     string        // there is none, or it is blocked
	changed chan struct{} // closed at the next change
}

// Letter is a message for a queue. Its MessageId must be one that no other letter on its way has.
type Letter struct {
	Queue string
	amqp.Publishing
}

// Bounds of a sender.
const (
	maxInFlight = 4096 // messages without an answer
	confirmFor  = 5 * time.Second
)

// Sender returns one that connects now and until the session is closed. prepare sees to it that a queue exists: it is called before the first letter to
// it, and again when the queue is gone.
func (s *Session) Sender(purpose Purpose, prepare func(ctx context.Context, queue string) error) *Sender {
	sender := s.newSender(purpose, prepare)
	sender.start()
	return sender
}

func (s *Session) newSender(purpose Purpose, prepare func(context.Context, string) error) *Sender {
	s.sends.Store(true)
	return &Sender{session: s, purpose: purpose, prepare: prepare, why: "not connected yet", changed: make(chan struct{})}
}

func (s *Sender) start() { s.session.Keep(s.session.ctx, s.purpose, nil, s.serve) }

// outlet is one channel to publish on.
type outlet struct {
	ch      *amqp.Channel
	room    chan struct{}      // a token per message without an answer: as many returns as can come fit into returns
	returns <-chan amqp.Return // come ahead of the confirms of their messages
	giveUp  chan struct{}      // closed when the broker does not answer
	blocked chan struct{}      // closed when the broker takes nothing any more: what has no answer by then may come much later

	answered atomic.Int64 // when an answer came last

	mu       sync.Mutex
	queues   map[string]bool // that exist, as far as is known
	returned map[string]bool // ids of messages that went nowhere
	once     sync.Once
}

// serve keeps an outlet on the connection.
func (s *Sender) serve(ctx context.Context, conn *amqp.Connection) error {
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 16))
	if s.fresh != nil {
		s.fresh(ctx)
	}
	o, err := await(ctx, func() { go hangUp(conn) }, func() (*outlet, error) { return newOutlet(conn) })
	if err != nil {
		return err
	}
	gone := o.ch.NotifyClose(make(chan *amqp.Error, 1))
	s.set(o, "")
	defer s.set(nil, "not connected")
	select {
	case <-ctx.Done():
		return nil
	case e := <-gone:
		return lost(e)
	case <-o.giveUp:
		return context.DeadlineExceeded
	case b, open := <-blocked:
		if !open {
			return lost(<-gone)
		}
		s.set(nil, blockedError(b.Reason).Error())
		s.session.takes(blockedError(b.Reason))
		defer s.session.takes(nil)
		close(o.blocked)
		s.session.log.Warn("the broker blocks publishers; "+s.purpose.Meanwhile, "broker", s.session, "purpose", s.purpose.Name,
			"reason", b.Reason)
	}
	// Short of memory or disk: what was sent is taken when that is over, and then we begin anew.
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-gone:
			return lost(e)
		case b, open := <-blocked:
			if !open {
				return lost(<-gone)
			}
			if !b.Active {
				return nil
			}
		}
	}
}

func newOutlet(conn *amqp.Connection) (*outlet, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	o := &outlet{
		ch: ch, room: make(chan struct{}, maxInFlight), returns: ch.NotifyReturn(make(chan amqp.Return, maxInFlight)),
		giveUp: make(chan struct{}), blocked: make(chan struct{}), queues: map[string]bool{}, returned: map[string]bool{},
	}
	return o, ch.Confirm(false)
}

func (s *Sender) set(o *outlet, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outlet, s.why = o, why
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Sender) current() (*outlet, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.outlet == nil {
		return nil, s.changed, unavailableNow(fmt.Sprintf("RabbitMQ at %s: %s", s.session, s.why))
	}
	return s.outlet, s.changed, nil
}

// Ready reports whether the broker takes messages now, as far as is known.
func (s *Sender) Ready() bool {
	_, _, err := s.current()
	return err == nil
}

// Await waits until the sender is ready, at most until ctx ends, and says why it is not.
func (s *Sender) Await(ctx context.Context) error {
	for {
		_, changed, err := s.current()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-changed:
		}
	}
}

// Send sends letters, persistent and mandatory, and waits for the broker's answers: 5 s at most. It returns an error for each letter,
// nil if that is certainly in its queue. One with an error may be there all the same, or come much later.
func (s *Sender) Send(ctx context.Context, letters []Letter) []error {
	ctx, cancel := context.WithTimeout(ctx, confirmFor)
	defer cancel()
	errs := make([]error, len(letters))
	o, _, err := s.current()
	if err == nil {
		err = s.ensure(ctx, o, letters)
	}
	confirms := make([]*amqp.DeferredConfirmation, 0, len(letters))
	for i := 0; i < len(letters) && err == nil; i++ {
		var c *amqp.DeferredConfirmation
		if c, err = o.send(ctx, &letters[i]); err == nil {
			confirms = append(confirms, c)
		}
	}
	for i := len(confirms); i < len(letters); i++ {
		errs[i] = s.session.unavailable(err)
	}
	for i, c := range confirms {
		taken, err := o.answer(ctx, c)
		nowhere := o.wentNowhere(&letters[i])
		switch {
		case err != nil:
			errs[i] = s.session.unavailable(err)
		case !taken:
			errs[i] = unavailableNow(fmt.Sprintf("RabbitMQ at %s refused a message for queue %s: the queue is full", s.session, letters[i].Queue))
		case nowhere:
			errs[i] = unavailableNow(fmt.Sprintf("RabbitMQ at %s has lost queue %s: it is made again", s.session, letters[i].Queue))
		}
	}
	return errs
}

var errBlocked = errors.New("it blocks publishers")

// answer waits for the broker's answer to one message.
func (o *outlet) answer(ctx context.Context, c *amqp.DeferredConfirmation) (taken bool, err error) {
	select {
	case <-c.Done():
		o.answered.Store(time.Now().UnixNano())
		return c.Acked(), nil
	case <-o.blocked:
		return false, errBlocked
	case <-ctx.Done():
		// The answers that are missing may never come. If others do, it is a queue that does not answer, not the broker.
		if errors.Is(ctx.Err(), context.DeadlineExceeded) && time.Since(time.Unix(0, o.answered.Load())) > confirmFor {
			o.once.Do(func() { close(o.giveUp) })
		}
		return false, context.Cause(ctx)
	}
}

// ensure prepares the queues of letters that are not known to exist.
func (s *Sender) ensure(ctx context.Context, o *outlet, letters []Letter) error {
	for i := range letters {
		queue := letters[i].Queue
		o.mu.Lock()
		known := o.queues[queue]
		o.mu.Unlock()
		if known {
			continue
		}
		if err := s.prepare(ctx, queue); err != nil {
			return err
		}
		o.mu.Lock()
		o.queues[queue] = true
		o.mu.Unlock()
	}
	return nil
}

// send publishes one letter; its place is free again when it is answered.
func (o *outlet) send(ctx context.Context, l *Letter) (*amqp.DeferredConfirmation, error) {
	select {
	case o.room <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	l.DeliveryMode = amqp.Persistent
	c, err := o.ch.PublishWithDeferredConfirm("", l.Queue, true, false, l.Publishing)
	if err != nil {
		<-o.room
		return nil, err
	}
	return c, nil
}

// wentNowhere reports whether the broker returned a message that it has confirmed: no queue took it.
func (o *outlet) wentNowhere(l *Letter) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	<-o.room
	for more := true; more; {
		select {
		case r, ok := <-o.returns:
			if more = ok; ok {
				o.returned[r.MessageId] = true
			}
		default:
			more = false
		}
	}
	if !o.returned[l.MessageId] {
		return false
	}
	delete(o.returned, l.MessageId)
	delete(o.queues, l.Queue)
	return true
}
