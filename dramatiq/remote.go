package dramatiq

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/opscore/opscore"
)

// SendActor names the actor whose tasks send messages, and their queue: the outbox. A worker with [HandleSend] runs them.
const SendActor = "dramatiq.send"

// Remote is an actor of Python. To submit it stores a task that sends the message: once the submit is durable, or its transaction commits, the
// message is sent, however long the broker is away; sent twice, it has the same id. See docs/decisions/0015-dramatiq.md.
type Remote[In any] struct {
	Name       string
	Queue      string // of Dramatiq; "" means default
	Positional bool   // the fields of In go as positional arguments, in their order, instead of by name
	Options    map[string]any
	Delay      time.Duration // of Dramatiq's; [opscore.After] delays the sending instead
}

// outgoing is the args of a task that sends a message. Its fields are as in a message; raw ones that are not JSON are strings.
type outgoing struct {
	Queue     string          `json:"queue_name"`
	Actor     string          `json:"actor_name"`
	Args      json.RawMessage `json:"args"`
	Kwargs    json.RawMessage `json:"kwargs"`
	Options   json.RawMessage `json:"options"`
	ID        string          `json:"message_id,omitempty"` // made of the task's if it is empty
	Timestamp int64           `json:"message_timestamp"`
	DelayMS   *int64          `json:"delay_ms,omitempty"`
}

// sent is the result of such a task.
type sent struct {
	ID    string `json:"message_id"`
	Queue string `json:"queue_name"`
}

// Request makes a request to send the message, to be given to [opscore.Client.Submit] with others.
func (r Remote[In]) Request(in In, opts ...opscore.Option) (opscore.Request, error) {
	o := outgoing{Queue: cmp.Or(r.Queue, opscore.DefaultQueue), Actor: r.Name, Timestamp: time.Now().UnixMilli()}
	if r.Delay > 0 {
		ms := r.Delay.Milliseconds()
		o.DelayMS = &ms
	}
	doc, err := json.Marshal(in)
	if err != nil {
		return opscore.Request{}, fmt.Errorf("args of actor %s: %w", r.Name, err)
	}
	m := Message{Queue: o.Queue, Actor: r.Name, Kwargs: doc, ID: "-", Timestamp: time.Now()}
	if r.Positional && doc[0] == '{' {
		m.Args, m.Kwargs = positional(doc), nil
	}
	for name, v := range r.Options {
		value, err := json.Marshal(v)
		if err == nil {
			m, err = m.WithOption(name, value)
		}
		if err != nil {
			return opscore.Request{}, fmt.Errorf("actor %s: %w", r.Name, err)
		}
	}
	if _, err := m.Encode(); err != nil {
		return opscore.Request{}, &opscore.Error{Code: opscore.CodeInvalid, Message: "actor " + clip(r.Name), Err: err}
	}
	o.Args, o.Kwargs, o.Options = text(or(m.Args, emptyArray)), text(or(m.Kwargs, emptyObject)), text(or(m.Options, emptyObject))
	return sendRequest(o, opts...)
}

// Submit stores one task that sends the message. With a store's In option it is sent exactly if the transaction commits.
func (r Remote[In]) Submit(ctx context.Context, c *opscore.Client, in In, opts ...opscore.Option) (opscore.Submission, error) {
	request, err := r.Request(in, opts...)
	if err != nil {
		return opscore.Submission{}, err
	}
	subs, err := c.Submit(ctx, request)
	if err != nil {
		return opscore.Submission{}, err
	}
	return subs[0], nil
}

// positional makes an array of an object's values.
func positional(object []byte) []byte {
	list := []byte{'['}
	each(object, func(_, value []byte) bool {
		if len(list) > 1 {
			list = append(list, ',')
		}
		list = append(list, value...)
		return true
	})
	return append(list, ']')
}

func sendRequest(o outgoing, opts ...opscore.Option) (opscore.Request, error) {
	doc, err := document(o)
	if err != nil {
		return opscore.Request{}, err
	}
	always := []opscore.Option{opscore.Queue(SendActor), opscore.MaxAttempts(opscore.ForeverAttempts), opscore.Timeout(4 * sendFor)}
	return opscore.NewRequest(SendActor, doc, append(always, opts...)...), nil
}

// HandleSend registers the handler that sends the messages of [Remote] actors, and those that follow from tasks.
func HandleSend(h opscore.Handlers, s *Sender) {
	a := opscore.Actor[outgoing, sent]{
		Name: SendActor, Queue: SendActor, MaxAttempts: opscore.ForeverAttempts, Retry: opscore.Backoff{Max: time.Minute},
	}
	opscore.Handle(h, a, func(ctx context.Context, o outgoing) (sent, error) {
		m := Message{
			Queue: strings.TrimSuffix(o.Queue, delayed), Actor: o.Actor, Args: untext(o.Args), Kwargs: untext(o.Kwargs), Options: untext(o.Options),
			ID: o.ID, Timestamp: time.UnixMilli(o.Timestamp),
		}
		if m.ID == "" { // not the task's: the message may become a task of its own here, when its actor has moved
			m.ID = derive("send", opscore.FromContext(ctx).ID.String()).String()
		}
		if _, err := m.Encode(); err != nil {
			return sent{}, opscore.Abort(err)
		}
		if o.DelayMS != nil {
			m = m.Delayed(time.Duration(*o.DelayMS) * time.Millisecond)
		}
		if err := s.Send(ctx, m); err != nil {
			return sent{}, err
		}
		return sent{m.ID, m.Queue}, nil
	})
}

// document encodes what holds values of messages, and leaves their characters as they are.
func document(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	return bytes.TrimSpace(b.Bytes()), nil
}

// text is a value as a JSON document can hold it: as it is, or, if it is not quite JSON, as a string.
func text(value []byte) json.RawMessage {
	if nonFinite(value) == "" {
		return value
	}
	return quote(nil, string(value))
}

// untext returns what text was made of: values are arrays and objects, never strings.
func untext(doc json.RawMessage) []byte {
	if len(doc) == 0 || doc[0] != '"' {
		return doc
	}
	value := unquote(doc)
	return []byte(value)
}
