package dramatiq

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/rabbitmq"
)

// moving is what the names of queues begin with that hold the messages of others while those are made anew.
const moving = "opscore-moving-"

// Ensure sees to it that a queue exists with its companions, and says how they are.
func Ensure(ctx context.Context, session *rabbitmq.Session, q Queues, queue string) (all []rabbitmq.Changed, err error) {
	for _, d := range q.Declarations(queue) {
		c := rabbitmq.Changed{Name: d.Name}
		if c.Made, err = session.EnsureQueue(ctx, d); err == nil {
			c.Differs, err = session.Differs(ctx, d)
		}
		if err != nil {
			return all, fmt.Errorf("queue %s: %w", d.Name, err)
		}
		all = append(all, c)
	}
	return all, nil
}

// ErrInUse says that a queue of Dramatiq's cannot be made anew while somebody uses it.
var ErrInUse = &opscore.Error{Code: opscore.CodeConflict, Message: "what is sent to a queue of Dramatiq while it is made anew would be lost, and so would what others have taken and not acknowledged: " +
	"stop all of its senders and workers, Python's and opscore's"}

// Migrate makes a queue and its companions anew where they are not as q says. The messages in them are moved, each confirmed in a queue of its own before it
// leaves the one that it was in, and back. It can be stopped at any moment and done again, which may double up to [MovedAtOnce] messages and loses none. idle says that nobody sends to the
// queue or takes from it, which cannot be found out; without it a queue that has to be made anew is an [ErrInUse].
func Migrate(ctx context.Context, session *rabbitmq.Session, q Queues, queue string, idle bool) (all []rabbitmq.Changed, err error) {
	for _, d := range q.Declarations(queue) {
		m := &mover{session: session, to: d, aside: rabbitmq.Declaration{Name: moving + d.Name, Args: amqp.Table{}}}
		m.changed.Name = d.Name
		if err := m.run(ctx, idle); err != nil {
			m.changed.Was, m.changed.Differs = "", m.changed.Was
			return append(all, m.changed), fmt.Errorf("queue %s: %w", d.Name, err)
		}
		all = append(all, m.changed)
	}
	return all, nil
}

// mover makes one queue anew.
type mover struct {
	session   *rabbitmq.Session
	to, aside rabbitmq.Declaration
	changed   rabbitmq.Changed
}

// run goes on from wherever it, or another one before it, was stopped: where messages are aside, or the queue is missing, is how far that was.
func (m *mover) run(ctx context.Context, idle bool) error {
	_, kept, err := m.session.Inspect(ctx, m.aside.Name)
	if err != nil {
		return err
	}
	found, exists, err := m.session.Inspect(ctx, m.to.Name)
	if err != nil {
		return err
	}
	if exists {
		if m.changed.Was, err = m.session.Differs(ctx, m.to); err != nil {
			return err
		}
	}
	if m.changed.Was != "" {
		if !idle {
			return fmt.Errorf("%w (%s)", ErrInUse, m.changed.Was)
		}
		if found.Consumers > 0 {
			return &opscore.Error{Code: opscore.CodeConflict, Message: fmt.Sprintf("it still has %d consumers: stop them", found.Consumers)}
		}
		if err := m.clear(ctx); err != nil {
			return err
		}
		kept = true
	}
	if m.changed.Made, err = m.session.EnsureQueue(ctx, m.to); err != nil {
		return err
	}
	m.changed.Made = m.changed.Made && m.changed.Was == ""
	if !kept {
		return nil
	}
	if m.changed.Moved, err = m.move(ctx, m.aside.Name, m.to.Name, unstash); err != nil {
		return err
	}
	return m.remove(ctx, m.aside.Name)
}

// clear moves aside what is in the queue, and deletes it.
func (m *mover) clear(ctx context.Context) error {
	if _, err := m.session.EnsureQueue(ctx, m.aside); err != nil {
		return err
	}
	if _, err := m.move(ctx, m.to.Name, m.aside.Name, stash); err != nil {
		return err
	}
	return m.remove(ctx, m.to.Name)
}

// remove deletes a queue that is empty and that nobody uses. A quorum queue knows no such conditions; what it holds was counted just before.
func (m *mover) remove(ctx context.Context, name string) error {
	err := m.delete(ctx, name, true)
	if code(err) != amqp.NotImplemented {
		return err
	}
	q, _, err := m.session.Inspect(ctx, name)
	if err == nil && q.Messages+q.Consumers > 0 {
		err = &opscore.Error{Code: opscore.CodeConflict, Message: fmt.Sprintf("%d messages and %d consumers have come meanwhile", q.Messages, q.Consumers)}
	}
	if err != nil {
		return err
	}
	return m.delete(ctx, name, false)
}

func (m *mover) delete(ctx context.Context, name string, unused bool) error {
	return m.session.On(ctx, func(ch *amqp.Channel) error {
		_, err := ch.QueueDelete(name, unused, unused, false)
		return err
	})
}

// How messages are moved.
const (
	MovedAtOnce = 20 // messages that are in both queues while they are moved
	quietFor    = 200 * time.Millisecond
)

// move takes all messages of a queue, alone, to another one, and returns how many there were.
func (m *mover) move(ctx context.Context, from, to string, change func(*amqp.Publishing) error) (moved int, err error) {
	conn, err := m.session.Dial(ctx, "migrate")
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.CloseDeadline(time.Now().Add(time.Second)) }()
	c, err := rabbitmq.Await(ctx, conn, func() (*carrier, error) { return newCarrier(conn, from, to) })
	if err != nil {
		return 0, err
	}
	for {
		batch := c.next(ctx)
		if len(batch) == 0 {
			q, _, err := m.session.Inspect(ctx, from)
			if err != nil || q.Messages == 0 {
				return moved, errors.Join(err, ctx.Err(), c.over())
			}
			continue
		}
		if err := c.carry(ctx, batch, change); err != nil {
			return moved, err
		}
		moved += len(batch)
	}
}

// carrier consumes one queue and publishes to another.
type carrier struct {
	ch      *amqp.Channel
	to      string
	from    <-chan amqp.Delivery
	returns <-chan amqp.Return
	closed  <-chan *amqp.Error
}

func newCarrier(conn *amqp.Connection, from, to string) (*carrier, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	c := &carrier{ch: ch, to: to, returns: ch.NotifyReturn(make(chan amqp.Return, MovedAtOnce)), closed: ch.NotifyClose(make(chan *amqp.Error, 1))}
	if err = ch.Confirm(false); err == nil {
		err = ch.Qos(MovedAtOnce, 0, false)
	}
	if err == nil {
		c.from, err = ch.Consume(from, "opscore-migrate", false, true, false, false, nil)
	}
	return c, err
}

// next returns what has come, or nothing if nothing comes for a moment.
func (c *carrier) next(ctx context.Context) (batch []amqp.Delivery) {
	quiet := time.NewTimer(quietFor)
	defer quiet.Stop()
	select {
	case d, ok := <-c.from:
		if ok {
			batch = append(batch, d)
		}
	case <-quiet.C:
	case <-ctx.Done():
	}
	for len(batch) > 0 && len(batch) < MovedAtOnce {
		select {
		case d, ok := <-c.from:
			if ok {
				batch = append(batch, d)
				continue
			}
		default:
		}
		break
	}
	return batch
}

// carry publishes messages and acknowledges them once all are certainly in the other queue.
func (c *carrier) carry(ctx context.Context, batch []amqp.Delivery, change func(*amqp.Publishing) error) error {
	ctx, cancel := context.WithTimeout(ctx, sendFor)
	defer cancel()
	confirms := make([]*amqp.DeferredConfirmation, len(batch))
	for i := range batch {
		p := publishing(&batch[i])
		if err := change(&p); err != nil {
			return err
		}
		var err error
		if confirms[i], err = c.ch.PublishWithDeferredConfirmWithContext(ctx, "", c.to, true, false, p); err != nil {
			return errors.Join(err, c.over())
		}
	}
	for _, confirm := range confirms {
		if taken, err := confirm.WaitContext(ctx); err != nil || !taken {
			return errors.Join(fmt.Errorf("the broker did not confirm that a message is in queue %s: nothing is lost, and it can be done again", c.to), err, c.over())
		}
	}
	select {
	case r := <-c.returns:
		return fmt.Errorf("queue %s is gone: %s; nothing is lost, and it can be done again", c.to, r.ReplyText)
	default:
		return batch[len(batch)-1].Ack(true)
	}
}

// over returns why the channel was closed, if it was.
func (c *carrier) over() error {
	select {
	case err := <-c.closed:
		if err == nil {
			return amqp.ErrClosed
		}
		return err
	default:
		return nil
	}
}

// publishing is a message as it was published.
func publishing(d *amqp.Delivery) amqp.Publishing {
	return amqp.Publishing{
		Headers: maps.Clone(d.Headers), ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, DeliveryMode: amqp.Persistent, Priority: d.Priority,
		CorrelationId: d.CorrelationId, ReplyTo: d.ReplyTo, Expiration: d.Expiration, MessageId: d.MessageId, Timestamp: d.Timestamp, Type: d.Type,
		UserId: d.UserId, AppId: d.AppId, Body: d.Body,
	}
}

// expiration is a header that keeps when a message expires, while it must not.
const expiration = "opscore-expiration"

// stash keeps a message from expiring. One with headers that send it to more queues would arrive there again.
func stash(p *amqp.Publishing) error {
	for _, h := range []string{"CC", "BCC"} {
		if _, ok := p.Headers[h]; ok {
			return &opscore.Error{Code: opscore.CodeConflict, Message: "a message in it has the header " + h + ", which would send it to other queues again: it cannot be moved"}
		}
	}
	if p.Expiration != "" {
		if p.Headers == nil {
			p.Headers = amqp.Table{}
		}
		p.Headers[expiration], p.Expiration = p.Expiration, ""
	}
	return nil
}

// unstash makes it what it was; its time begins anew.
func unstash(p *amqp.Publishing) error {
	if text, ok := p.Headers[expiration].(string); ok {
		p.Expiration = text
		delete(p.Headers, expiration)
	}
	return nil
}
