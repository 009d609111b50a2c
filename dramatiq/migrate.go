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

// Aside is the name of the queue that holds the messages of another one while that is made anew, and after that was interrupted.
func Aside(name string) string { return moving + name }

// aside is the queue that holds the messages of another one meanwhile. A limit that a policy gives it makes it refuse messages: by default it would confirm them
// and drop the oldest. Of a policy and an argument that say something about that, the argument counts.
func aside(name string) rabbitmq.Declaration {
	return rabbitmq.Declaration{Name: Aside(name), Args: amqp.Table{"x-overflow": "reject-publish"}}
}

// Ensure sees to it that a queue exists with its companions, and says how they are.
func Ensure(ctx context.Context, session *rabbitmq.Session, q Queues, queue string) (all []rabbitmq.Changed, err error) {
	for _, d := range q.Declarations(queue) {
		c := rabbitmq.Changed{Name: d.Name}
		if c.Made, err = session.EnsureQueue(ctx, d); err == nil {
			c.Differs, err = session.Differs(ctx, d)
		}
		if err == nil {
			var kept amqp.Queue
			kept, _, err = session.Inspect(ctx, Aside(d.Name))
			c.Aside = kept.Messages
		}
		if err != nil {
			return all, fmt.Errorf("queue %s: %w", d.Name, err)
		}
		all = append(all, c)
	}
	return all, nil
}

// ErrInUse says that a queue of Dramatiq's cannot be made anew while somebody uses it. It wraps the conflict that it is, or every conflict would match it.
var ErrInUse = fmt.Errorf("%w", &opscore.Error{Code: opscore.CodeConflict, Message: "what is sent to a queue of Dramatiq while it is made anew would be lost, " +
	"and so would what others have taken and not acknowledged: stop all of its senders and workers, Python's and opscore's"})

// Migrate makes a queue and its companions anew where they are not as q says. The messages in them are moved, each confirmed in a queue of its own before it
// leaves the one that it was in, and back. It can be stopped at any moment and done again, which may double up to [MovedAtOnce] messages and loses none. idle says that nobody sends to the
// queue or takes from it, which cannot be found out; without it a queue that has to be made anew is an [ErrInUse].
func Migrate(ctx context.Context, session *rabbitmq.Session, q Queues, queue string, idle bool) (all []rabbitmq.Changed, err error) {
	for _, d := range q.Declarations(queue) {
		m := &mover{session: session, to: d, aside: aside(d.Name)}
		m.changed.Name = d.Name
		if err := m.run(ctx, idle); err != nil {
			m.changed.Was, m.changed.Differs = "", m.changed.Was
			return append(all, m.changed), fmt.Errorf("queue %s: %w", d.Name, m.left(ctx, err))
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

// left adds to an error where messages are because of it.
func (m *mover) left(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendFor)
	defer cancel()
	if q, _, unknown := m.session.Inspect(ctx, m.aside.Name); unknown == nil && q.Messages > 0 {
		return fmt.Errorf("%w; %d messages of it are in queue %s, where nobody takes them: once the reason is gone, do it again, which moves them to queue %s",
			err, q.Messages, m.aside.Name, m.to.Name)
	}
	return err
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
	if m.changed.Moved, err = m.move(ctx, m.aside, m.to, unstash); err != nil {
		return err
	}
	return m.remove(ctx, m.aside.Name)
}

// clear moves aside what is in the queue, and deletes it. What could stop that half-way is looked for before.
func (m *mover) clear(ctx context.Context) error {
	if err := m.session.MayMove(ctx, m.aside.Name); err != nil {
		return fmt.Errorf("nothing was moved, since that would need queue %s: %w", m.aside.Name, err)
	}
	if err := m.look(ctx); err != nil {
		return err
	}
	// It is made by that as well, and one that exists with other arguments is used. Who may not declare it may not delete it.
	if _, err := m.session.Differs(ctx, m.aside); err != nil {
		return err
	}
	if _, err := m.move(ctx, m.to, m.aside, stash); err != nil {
		return err
	}
	return m.remove(ctx, m.to.Name)
}

// look looks through the queue for messages that cannot be moved. They go back to where they were in it, which on a quorum queue counts as one delivery.
func (m *mover) look(ctx context.Context) error {
	conn, err := m.session.Dial(ctx, "migrate")
	if err != nil {
		return err
	}
	defer func() { _ = conn.CloseDeadline(time.Now().Add(time.Second)) }()
	c, err := rabbitmq.Await(ctx, conn, func() (*carrier, error) { return newCarrier(conn, m.to.Name, m.aside, 0) })
	if err != nil {
		return err
	}
	seen := 0
	for {
		batch := c.next(ctx)
		for i := range batch {
			if err := stash(new(publishing(&batch[i]))); err != nil {
				return err
			}
		}
		seen += len(batch)
		q, _, err := m.session.Inspect(ctx, m.to.Name)
		if err := errors.Join(err, ctx.Err(), c.over()); err != nil {
			return err
		}
		if len(batch) == 0 && q.Messages == 0 {
			break
		}
	}
	_, err = rabbitmq.Await(ctx, conn, func() (struct{}, error) { return struct{}{}, c.ch.Close() })
	return errors.Join(err, m.returned(ctx, seen))
}

// returned waits until messages that were looked at are in the queue again.
func (m *mover) returned(ctx context.Context, seen int) error {
	ctx, cancel := context.WithTimeout(ctx, sendFor)
	defer cancel()
	for {
		q, _, err := m.session.Inspect(ctx, m.to.Name)
		if err != nil || q.Messages >= seen {
			return err
		}
		select {
		case <-time.After(quietFor):
		case <-ctx.Done():
			return &opscore.Error{Code: opscore.CodeConflict, Message: fmt.Sprintf("it had %d messages and has %d now: somebody else takes them, or they expire; nothing was moved", seen, q.Messages)}
		}
	}
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

// move takes all messages of a queue, alone, to another one, and returns how many there were. It stops as soon as some are not there any more.
func (m *mover) move(ctx context.Context, from, to rabbitmq.Declaration, change func(*amqp.Publishing) error) (moved int, err error) {
	before, _, err := m.session.Inspect(ctx, to.Name)
	if err != nil {
		return 0, err
	}
	conn, err := m.session.Dial(ctx, "migrate")
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.CloseDeadline(time.Now().Add(time.Second)) }()
	c, err := rabbitmq.Await(ctx, conn, func() (*carrier, error) { return newCarrier(conn, from.Name, to, MovedAtOnce) })
	if err != nil {
		return 0, err
	}
	for {
		batch := c.next(ctx)
		if err := c.carry(ctx, batch, change); err != nil {
			return moved, err
		}
		moved += len(batch)
		left, _, err := m.session.Inspect(ctx, from.Name)
		if err == nil {
			err = m.arrived(ctx, c, left, before.Messages)
		}
		if err != nil || len(batch) == 0 && left.Messages == 0 {
			return moved, errors.Join(err, ctx.Err(), c.over())
		}
	}
}

// arrived counts what is in the queue that messages are moved to: a policy may drop what the broker has confirmed. Of a queue that somebody consumes again the count
// says nothing.
func (m *mover) arrived(ctx context.Context, c *carrier, left amqp.Queue, before int) error {
	there, _, err := m.session.Inspect(ctx, c.to.Name)
	if err != nil || there.Consumers > 0 || there.Messages >= before+c.lasting() {
		return err
	}
	return &opscore.Error{Code: opscore.CodeConflict, Message: fmt.Sprintf(
		"%d messages were moved from queue %s, which has %d left, to queue %s, which had %d before, and it has only %d now: a policy drops them (rabbitmqctl list_policies). "+
			"Nothing is deleted. Lift it for both queues, and do it again",
		c.carried, left.Name, left.Messages, c.to.Name, before, there.Messages)}
}

// carrier consumes one queue and publishes to another.
type carrier struct {
	ch      *amqp.Channel
	to      rabbitmq.Declaration
	began   time.Time
	carried int // messages
	mortal  int // those of them that expire in the other queue, as they should
	from    <-chan amqp.Delivery
	returns <-chan amqp.Return
	closed  <-chan *amqp.Error
}

// newCarrier takes up to so many messages at once, or any number with 0.
func newCarrier(conn *amqp.Connection, from string, to rabbitmq.Declaration, atOnce int) (*carrier, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	c := &carrier{ch: ch, to: to, began: time.Now(), returns: ch.NotifyReturn(make(chan amqp.Return, MovedAtOnce)), closed: ch.NotifyClose(make(chan *amqp.Error, 1))}
	if err = ch.Confirm(false); err == nil {
		err = ch.Qos(atOnce, 0, false)
	}
	if err == nil {
		c.from, err = ch.Consume(from, "opscore-migrate", false, true, false, false, nil)
	}
	return c, err
}

// lasting is how many messages must be in the other queue still.
func (c *carrier) lasting() int {
	if ttl, ok := c.to.Args["x-message-ttl"].(int64); ok && time.Since(c.began).Milliseconds() >= ttl {
		return 0
	}
	return c.carried - c.mortal
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
	if len(batch) == 0 {
		return nil
	}
	mortal, err := c.publish(ctx, batch, change)
	if err != nil {
		return err
	}
	select {
	case r := <-c.returns:
		return fmt.Errorf("queue %s is gone: %s; nothing is lost, and it can be done again", c.to.Name, r.ReplyText)
	default:
	}
	c.carried, c.mortal = c.carried+len(batch), c.mortal+mortal
	return batch[len(batch)-1].Ack(true)
}

// publish returns once all messages are confirmed, with how many of them may expire. None is published if one cannot be moved.
func (c *carrier) publish(ctx context.Context, batch []amqp.Delivery, change func(*amqp.Publishing) error) (mortal int, err error) {
	ctx, cancel := context.WithTimeout(ctx, sendFor)
	defer cancel()
	all := make([]amqp.Publishing, len(batch))
	for i := range batch {
		all[i] = publishing(&batch[i])
		if err := change(&all[i]); err != nil {
			return 0, err
		}
		if all[i].Expiration != "" {
			mortal++
		}
	}
	confirms := make([]*amqp.DeferredConfirmation, len(batch))
	for i := range all {
		if confirms[i], err = c.ch.PublishWithDeferredConfirmWithContext(ctx, "", c.to.Name, true, false, all[i]); err != nil {
			return 0, errors.Join(err, c.over())
		}
	}
	for _, confirm := range confirms {
		taken, err := confirm.WaitContext(ctx)
		if err != nil || !taken {
			return 0, errors.Join(fmt.Errorf("the broker did not confirm that a message is in queue %s: nothing is lost, and it can be done again; "+
				"perhaps a policy limits that queue (rabbitmqctl list_policies)", c.to.Name), err, c.over())
		}
	}
	return mortal, nil
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
			return &opscore.Error{Code: opscore.CodeConflict, Message: "a message in it has the header " + h + ", which would send it to other queues again: it cannot be moved; take it out of the queue, and do it again"}
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
