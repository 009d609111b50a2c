package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// Declaration is a durable queue of the broker as it is to be declared.
type Declaration struct {
	Name string
	Args amqp.Table
}

func (d Declaration) declare(ch *amqp.Channel) (amqp.Queue, error) {
	return ch.QueueDeclare(d.Name, true, false, false, false, d.Args)
}

// looker looks at queues on a connection of its own: the broker remembers for a connection what it was permitted. It moves no message and leaves nothing
// behind.
type looker struct {
	conn   *amqp.Connection
	within time.Duration // it is waited for an answer: a queue without a leader never gives one
	ch     *amqp.Channel // nil after something was refused on it
}

// do calls with a channel. The broker closes one on which it refuses something.
func (l *looker) do(ctx context.Context, with func(*amqp.Channel) error) error {
	ctx, cancel := context.WithTimeout(ctx, l.within)
	defer cancel()
	used := l.ch
	l.ch = nil
	ch, err := await(ctx, func() {}, func() (ch *amqp.Channel, err error) {
		if ch = used; ch == nil {
			ch, err = l.conn.Channel()
		}
		if err == nil {
			err = with(ch)
		}
		return ch, err
	})
	if err == nil {
		l.ch = ch
	}
	return err
}

// passive asks what is in a queue, for which no permission is needed.
func (l *looker) passive(ctx context.Context, name string) (q amqp.Queue, exists bool, err error) {
	var found amqp.Queue
	err = l.do(ctx, func(ch *amqp.Channel) (err error) {
		found, err = ch.QueueDeclarePassive(name, true, false, false, false, nil)
		return err
	})
	switch {
	case missing(err):
		return q, false, nil
	case err != nil: // then found is not ours to look at: the answer may still come
		return q, false, err
	}
	return found, true, nil
}

// missing reports whether there is no such queue, as opposed to one whose node is down.
func missing(err error) bool {
	e, ok := errors.AsType[*amqp.Error](err)
	return ok && e.Code == amqp.NotFound && strings.HasPrefix(e.Reason, "NOT_FOUND - no queue")
}

// differs returns what the broker says against the declaration of a queue that exists. Only who may configure the queue is told.
func (l *looker) differs(ctx context.Context, d Declaration) (how string, err error) {
	err = l.do(ctx, func(ch *amqp.Channel) error {
		_, err := d.declare(ch)
		return err
	})
	return refusal(err)
}

// refusal tells what the broker says against a declaration from other errors of it.
func refusal(err error) (how string, other error) {
	if e, ok := errors.AsType[*amqp.Error](err); ok && e.Code == amqp.PreconditionFailed {
		return words(err), nil
	}
	return "", err
}

// mayRead asks to consume a queue in a way that cannot be meant: the broker looks at the permission first, and then at the arguments, before there is a
// consumer. It writes an error to its log.
func (l *looker) mayRead(ctx context.Context, name string) error {
	err := l.do(ctx, func(ch *amqp.Channel) error {
		tag := "opscore-may-it"
		_, err := ch.Consume(name, tag, false, false, false, false, amqp.Table{"x-priority": "none"})
		if err == nil {
			err = errors.Join(ch.Close(), errTakenSeriously)
		}
		return err
	})
	if e, ok := errors.AsType[*amqp.Error](err); ok && e.Code == amqp.PreconditionFailed {
		return nil
	}
	return err
}

var errTakenSeriously = errors.New("the broker took a priority that is no number")

// blockedError is the broker's reason for not taking messages.
type blockedError string

func (e blockedError) Error() string { return "it blocks publishers: " + string(e) }

// mayWrite publishes a message that no queue can take, to the exchange that leads to all queues: it comes back. Only on a connection that publishes the broker
// says that it blocks publishers, and it answers nothing more on that then. So this is the last to be asked.
func (l *looker) mayWrite(ctx context.Context) error {
	blocked := l.conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	asked := make(chan error, 1)
	go func() { asked <- l.do(ctx, func(ch *amqp.Channel) error { return writes(ctx, ch) }) }()
	select {
	case b, said := <-blocked:
		if said { // else the connection is gone, which is what the answer is
			return blockedError(b.Reason)
		}
		return <-asked
	case err := <-asked:
		select {
		case b, said := <-blocked:
			if said {
				return blockedError(b.Reason)
			}
		default:
		}
		return err
	}
}

// MayMove returns an error unless this user may take messages from a queue, which need not exist yet, and publish to queues, and the broker takes messages now.
func (s *Session) MayMove(ctx context.Context, name string) error {
	conn, err := s.Dial(ctx, "ask")
	if err != nil {
		return err
	}
	defer func() { go hangUp(conn) }()
	l := &looker{conn: conn, within: patience}
	if err := l.mayRead(ctx, name); err != nil && !missing(err) {
		return err
	}
	return l.mayWrite(ctx)
}

// writes publishes to nowhere, and asks for something after that: an answer says that both were read.
func writes(ctx context.Context, ch *amqp.Channel) error {
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	nowhere := "opscore-nowhere-" + uuid.NewString()
	err := ch.PublishWithContext(ctx, "", nowhere, true, false, amqp.Publishing{MessageId: nowhere})
	if err == nil {
		err = ch.Qos(1, 0, false)
	}
	if err == nil {
		return nil
	}
	select {
	case e := <-closed:
		if e != nil {
			return e // says why, which err may not
		}
		return err
	case <-ctx.Done():
		return err
	}
}

// queue looks at one queue, but not whether the user may read it.
func (l *looker) queue(ctx context.Context, of string, d Declaration) opscore.BrokerQueue {
	q := opscore.BrokerQueue{Queue: of, Name: d.Name}
	found, exists, err := l.passive(ctx, d.Name)
	if err != nil {
		q.Err, q.Reply = words(err), reply(err)
		return q
	}
	if !exists {
		return q
	}
	q.Exists, q.Messages, q.Consumers = true, found.Messages, found.Consumers
	if q.Mismatch, err = l.differs(ctx, d); err != nil {
		q.Unchecked = words(err)
	}
	return q
}

// read notes whether the user may read a queue, and returns whether it may not.
func (l *looker) read(ctx context.Context, q *opscore.BrokerQueue) (refused bool) {
	err := l.mayRead(ctx, q.Name)
	if denied(err) {
		q.Refused = append(q.Refused, "read: "+words(err))
		return true
	}
	if err != nil {
		q.Err, q.Reply = words(err), reply(err)
	}
	return false
}

// denied reports whether the user lacks a permission.
func denied(err error) bool {
	e, ok := errors.AsType[*amqp.Error](err)
	return ok && e.Code == amqp.AccessRefused && !strings.HasSuffix(e.Reason, "in exclusive use")
}

// reply is the broker's code for an error; 0 if it has none.
func reply(err error) int {
	if e, ok := errors.AsType[*amqp.Error](err); ok && e.Server {
		return e.Code
	}
	return 0
}

// words are the broker's own, which name user, queue and virtual host, and no password.
func words(err error) string {
	if e, ok := errors.AsType[*amqp.Error](err); ok {
		return fmt.Sprintf("%d %s", e.Code, e.Reason)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	return err.Error()
}
