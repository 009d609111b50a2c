package dramatiq

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/rabbitmq"
)

// NewMessage makes a message for a Python actor and its queue, with positional arguments, an array, and keyword arguments, an object; nil means none.
func NewMessage(actor, queue string, args, kwargs []byte) (Message, error) {
	id, err := uuid.NewRandom()
	if err != nil {
		return Message{}, fmt.Errorf("make an id: %w", err)
	}
	return Message{Queue: queue, Actor: actor, Args: args, Kwargs: kwargs, ID: id.String(), Timestamp: time.Now()}, nil
}

// WithOption returns the message with an option set to a JSON value. Options of Dramatiq's own are refused if Python could not use their value.
func (m Message) WithOption(name string, value []byte) (Message, error) {
	if err := valid(value); err != nil {
		return m, &opscore.Error{Code: opscore.CodeInvalid, Message: "option " + clip(name), Err: err}
	}
	o := readOptions(with(emptyObject, name, value))
	switch {
	case name == "throws":
		o.notes = nil
		o.note("throws: a message cannot carry it: Python's worker would lose the message")
	case name == "eta":
		o.note("eta: it belongs to delayed messages alone")
	case name == "broker_priority" && o.priority > 255:
		o.note("broker_priority %d: must be between 0 and 255", o.priority)
	case strings.HasPrefix(name, "group_completion_"), name == "store_results", name == "result_ttl", name == "notify_shutdown":
		o.notes = nil // Python's business
	}
	if len(o.notes) > 0 {
		return m, &opscore.Error{Code: opscore.CodeInvalid, Message: "option " + o.notes[0]}
	}
	m.Options = with(or(m.Options, emptyObject), name, value)
	return m, nil
}

// Delayed returns the message to be run no earlier than d from now.
func (m Message) Delayed(d time.Duration) Message {
	m.Options = with(or(m.Options, emptyObject), "eta", integer(time.Now().Add(max(d, 0)).UnixMilli()))
	m.Queue = strings.TrimSuffix(m.Queue, delayed) + delayed
	return m
}

// Sender sends messages to Dramatiq's queues: persistent, mandatory and confirmed, on a connection of its own. It is safe for concurrent use.
type Sender struct {
	session *rabbitmq.Session
	queues  Queues
	sender  *rabbitmq.Sender
}

// NewSender returns a sender that connects now and until the session is closed. Queues that do not exist are made as q says, as Dramatiq makes
// them before it sends; those that exist are used as they are.
func NewSender(session *rabbitmq.Session, q Queues) (*Sender, error) {
	if err := q.validate(); err != nil {
		return nil, err
	}
	s := &Sender{session: session, queues: q}
	purpose := rabbitmq.Purpose{Name: "dramatiq send", Meanwhile: "what tasks send is tried again"}
	s.sender = session.Sender(purpose, func(ctx context.Context, name string) error {
		_, err := declare(ctx, session, q, strings.TrimSuffix(name, delayed))
		return err
	})
	return s, nil
}

// sendFor bounds a send, all tries included.
const sendFor = 5 * time.Second

// Send returns once the message is certainly in its queue, or an error after 5 s at the latest. After an error it may be there all the same: send it again
// with the same id.
func (s *Sender) Send(ctx context.Context, m Message) error {
	body, err := m.Encode()
	if err != nil {
		return &opscore.Error{Code: opscore.CodeInvalid, Message: "send to actor " + clip(m.Actor), Err: err}
	}
	letter := rabbitmq.Letter{Queue: m.Queue, Publishing: amqp.Publishing{MessageId: uuid.NewString(), Body: body}}
	if p := readOptions(or(m.Options, emptyObject)).priority; p > 0 {
		letter.Priority = uint8(min(p, 255))
	}
	ctx, cancel := context.WithTimeout(ctx, sendFor)
	defer cancel()
	for try := 0; ; try++ {
		if err = s.sender.Await(ctx); err == nil {
			err = s.sender.Send(ctx, []rabbitmq.Letter{letter})[0]
		}
		if err == nil || try == 1 || ctx.Err() != nil {
			break // the second try is for a queue that was deleted: the first one has found out
		}
	}
	if err != nil {
		return fmt.Errorf("send to actor %s: %w", clip(m.Actor), err)
	}
	return nil
}

// Send sends one message through a RabbitMQ at a URL, or several ones of a cluster. A [Sender] is the way to send more.
func Send(ctx context.Context, urls string, q Queues, m Message) error {
	session, err := rabbitmq.Connect(ctx, urls, rabbitmq.Options{})
	if err != nil {
		return err
	}
	defer session.Close()
	if err := session.On(ctx, func(*amqp.Channel) error { return nil }); err != nil {
		return err // says why, where a sender would try again
	}
	s, err := NewSender(session, q)
	if err != nil {
		return err
	}
	return s.Send(ctx, m)
}

// declare sees to it that a queue exists with what belongs to it, and says whether it had to make it. What exists is used as it is.
func declare(ctx context.Context, session *rabbitmq.Session, q Queues, queue string) (made bool, err error) {
	for _, d := range q.Declarations(queue) {
		is, err := session.EnsureQueue(ctx, d)
		if err != nil {
			return made, fmt.Errorf("queue %s: %w", d.Name, err)
		}
		made = made || is && d.Name == queue
	}
	return made, nil
}

// mismatches says in which ways queues are not as q says: a Python worker that is configured like q would fail to declare them.
func mismatches(ctx context.Context, session *rabbitmq.Session, q Queues, queue string) (differ []string) {
	for _, d := range q.Declarations(queue) {
		if how, err := session.Differs(ctx, d); err == nil && how != "" {
			differ = append(differ, strings.TrimPrefix(how, "406 PRECONDITION_FAILED - "))
		}
	}
	return slices.Compact(differ)
}

// code is that of an error of AMQP, 0 of another.
func code(err error) int {
	if e, ok := errors.AsType[*amqp.Error](err); ok {
		return e.Code
	}
	return 0
}
