package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// Publisher is a [opscore.Publisher] on a connection of its own, which is made again whenever it is lost.
type Publisher struct {
	broker *Broker

	mu     sync.Mutex
	outlet *outlet // nil while there is none
	why    string  // there is none, or it is blocked
}

// Bounds of a publisher.
const (
	maxInFlight = 4096 // messages without an answer
	confirmFor  = 5 * time.Second
)

// Publisher returns one that connects now and until the broker is closed.
func (b *Broker) Publisher() *Publisher {
	p := &Publisher{broker: b, why: "not connected yet"}
	l := &link{broker: b, purpose: "publish"}
	b.wg.Go(func() { l.run(b.ctx, p.serve) })
	return p
}

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
func (p *Publisher) serve(ctx context.Context, conn *amqp.Connection) error {
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 16))
	if err := p.broker.checkEpoch(ctx); err != nil { // a node that is down is not a loss
		p.broker.log.Debug("cannot tell whether the broker has kept its state", "broker", p.broker, "error", err)
	}
	o, err := await(ctx, func() { go hangUp(conn) }, func() (*outlet, error) { return newOutlet(conn) })
	if err != nil {
		return err
	}
	gone := o.ch.NotifyClose(make(chan *amqp.Error, 1))
	p.set(o, "")
	defer p.set(nil, "not connected")
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
		p.set(nil, "it blocks publishers: "+b.Reason)
		close(o.blocked)
		p.broker.log.Warn("the broker blocks publishers; tasks are pulled from the database meanwhile", "broker", p.broker, "reason", b.Reason)
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

func (p *Publisher) set(o *outlet, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outlet, p.why = o, why
}

func (p *Publisher) current() (*outlet, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.outlet == nil {
		return nil, unavailableNow(fmt.Sprintf("RabbitMQ at %s: %s", p.broker, p.why))
	}
	return p.outlet, nil
}

// Ready implements [opscore.Publisher].
func (p *Publisher) Ready() bool {
	_, err := p.current()
	return err == nil
}

// Publish implements [opscore.Publisher]. The tickets are persistent; each is confirmed, and known to be in a queue, or refused.
func (p *Publisher) Publish(ctx context.Context, tickets []opscore.Ticket) (refused []opscore.ID, err error) {
	ctx, cancel := context.WithTimeout(ctx, confirmFor)
	defer cancel()
	o, err := p.current()
	if err == nil {
		err = p.ensure(ctx, o, tickets)
	}
	if err != nil {
		return idsOf(tickets), err
	}
	confirms := make([]*amqp.DeferredConfirmation, 0, len(tickets))
	for i := range tickets {
		c, sendErr := p.send(ctx, o, &tickets[i])
		if sendErr != nil {
			err = p.broker.unavailable(sendErr)
			break
		}
		confirms = append(confirms, c)
	}
	refused = idsOf(tickets[len(confirms):])
	for i, c := range confirms {
		taken, waitErr := o.answer(ctx, c)
		if waitErr != nil && err == nil {
			err = p.broker.unavailable(waitErr)
		} else if !taken && err == nil {
			err = unavailableNow(fmt.Sprintf("RabbitMQ at %s refused tickets", p.broker))
		}
		if nowhere := o.wentNowhere(&tickets[i]); !taken || nowhere {
			refused = append(refused, tickets[i].ID)
		}
	}
	if err == nil && len(refused) > 0 {
		err = unavailableNow(fmt.Sprintf("RabbitMQ at %s has lost a queue: it is made again", p.broker))
	}
	return refused, err
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

func idsOf(tickets []opscore.Ticket) []opscore.ID {
	ids := make([]opscore.ID, len(tickets))
	for i := range tickets {
		ids[i] = tickets[i].ID
	}
	return ids
}

// ensure makes the queues of the tickets that are not known to exist.
func (p *Publisher) ensure(ctx context.Context, o *outlet, tickets []opscore.Ticket) error {
	for i := range tickets {
		queue := tickets[i].Queue
		o.mu.Lock()
		known := o.queues[queue]
		o.mu.Unlock()
		if known {
			continue
		}
		if err := p.broker.diagnose.ensureQueue(ctx, queue); err != nil {
			return err
		}
		o.mu.Lock()
		o.queues[queue] = true
		o.mu.Unlock()
	}
	return nil
}

// send publishes one ticket; its place is free again when it is answered.
func (p *Publisher) send(ctx context.Context, o *outlet, t *opscore.Ticket) (*amqp.DeferredConfirmation, error) {
	body, err := encode(p.broker.instance, t)
	if err != nil {
		return nil, err
	}
	select {
	case o.room <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	c, err := o.ch.PublishWithDeferredConfirm("", queuePrefix+t.Queue, true, false, amqp.Publishing{
		MessageId: t.ID.String(), DeliveryMode: amqp.Persistent, ContentType: "application/json", AppId: "opscore", Body: body,
	})
	if err != nil {
		<-o.room
		return nil, err
	}
	return c, nil
}

// wentNowhere reports whether the broker returned a message that it has confirmed: no queue took it.
func (o *outlet) wentNowhere(t *opscore.Ticket) bool {
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
	if !o.returned[t.ID.String()] {
		return false
	}
	delete(o.returned, t.ID.String())
	delete(o.queues, t.Queue)
	return true
}

// Waiting implements [opscore.Publisher].
func (p *Publisher) Waiting(ctx context.Context, queue string) (int, error) {
	q, _, err := p.broker.diagnose.inspect(ctx, queuePrefix+queue)
	return q.Messages, err
}
