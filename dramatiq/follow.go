package dramatiq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/opscore/opscore"
)

// Adapter is an [opscore.Adapter]: it runs the tasks that messages became, and sends the messages that follow from them.
type Adapter struct {
	Client *opscore.Client
	// Actors names the queues of Python's actors, for callbacks. Those that it does not name are taken to be in the queue of the message.
	Actors map[string]string
}

// Open implements [opscore.Adapter].
func (a *Adapter) Open(ctx context.Context, in reflect.Type, args json.RawMessage) (json.RawMessage, error) {
	run := opscore.FromContext(ctx)
	from, err := readOrigin(run.Origin)
	if err != nil {
		return nil, err
	}
	if run.Attempt == from.Retries+1 {
		for _, note := range from.Notes {
			run.Log.Warn("of the message: " + note)
		}
	}
	given, err := readArguments(args)
	if err != nil {
		return nil, err
	}
	return Bind(run.Actor, in, given.Args, given.Kwargs)
}

func readOrigin(doc json.RawMessage) (from origin, err error) {
	if err := json.Unmarshal(doc, &from); err != nil {
		return from, fmt.Errorf("decode origin: %w", err)
	}
	from.Options = untext(from.Options)
	if from.Version != originVersion || valid(from.Options) != nil || from.Options[0] != '{' {
		return from, errors.New("decode origin: it was not made of a message of Dramatiq's, or by a newer version")
	}
	return from, nil
}

func readArguments(doc json.RawMessage) (given arguments, err error) {
	if err := json.Unmarshal(doc, &given); err != nil {
		return given, fmt.Errorf("decode args: %w", err)
	}
	given.Args, given.Kwargs = untext(given.Args), untext(given.Kwargs)
	if valid(given.Args) != nil || valid(given.Kwargs) != nil || given.Args[0] != '[' || given.Kwargs[0] != '{' {
		return given, errors.New("decode args: they were not made of a message of Dramatiq's")
	}
	return given, nil
}

// ending is an attempt at a task that was a message.
type ending struct {
	task    *opscore.Task
	outcome *opscore.Outcome
	from    origin
	given   arguments
	options options
}

// Ended implements [opscore.Adapter]: it stores the sending of what follows, each under an id that is always the same, so that nothing follows twice. What
// cannot be sent at all is said in the task's log.
func (a *Adapter) Ended(ctx context.Context, t *opscore.Task, o *opscore.Outcome) error {
	if o.Uncounted || o.State == opscore.Cancelled {
		return nil // handed back or snoozed
	}
	e := ending{task: t, outcome: o}
	var err error
	if e.from, err = readOrigin(t.Origin); err == nil {
		e.given, err = readArguments(t.Args)
	}
	if err != nil {
		return nil //nolint:nilerr // the attempt has failed with it
	}
	e.options = readOptions(e.from.Options)
	if o.State == opscore.Completed {
		return errors.Join(a.next(ctx, &e), a.callback(ctx, &e, "on_success", e.options.onSuccess, o.Result))
	}
	attempt := strconv.FormatInt(t.ClaimSeq, 10) // an operator's retry counts attempts from the beginning
	class, message := exception(o)
	failure, err := document(map[string]string{"type": class, "message": message})
	if err == nil {
		err = a.callback(ctx, &e, "on_failure "+attempt, e.options.onFailure, failure)
	}
	if o.State == opscore.Failed && t.Attempt >= t.MaxAttempts && o.Code != opscore.CodeAborted {
		spent := fmt.Appendf(nil, `{"retries":%d,"max_retries":%d}`, t.Attempt-1, t.MaxAttempts-1)
		err = errors.Join(err, a.callback(ctx, &e, "on_retry_exhausted "+attempt, e.options.onExhausted, spent))
	}
	return err
}

// next sends the next step of a pipeline, with the result as its last argument.
func (a *Adapter) next(ctx context.Context, e *ending) error {
	if e.options.pipeTarget == nil {
		return nil
	}
	m, err := Decode(e.options.pipeTarget)
	if err != nil {
		return nil //nolint:nilerr // the task's notes say so
	}
	o := readOptions(m.Options)
	if args := m.Args; !o.pipeIgnore {
		m.Args = append(append([]byte{}, args[:len(args)-1]...), ',')
		if each(args, nil) == 0 {
			m.Args = []byte{'['}
		}
		m.Args = append(append(m.Args, e.outcome.Result...), ']')
	}
	out := outgoing{
		Queue: m.Queue, Actor: m.Actor, Args: text(m.Args), Kwargs: text(m.Kwargs), Options: text(m.Options), ID: m.ID, Timestamp: m.Timestamp.UnixMilli(),
	}
	if m.Timestamp.IsZero() {
		out.Timestamp = time.Now().UnixMilli()
	}
	if o.delay >= 0 {
		ms := o.delay.Milliseconds()
		out.DelayMS = &ms
	}
	return a.store(ctx, e, "pipe_target", out)
}

// callback sends a message to an actor, with the message that it is about and what there is to tell.
func (a *Adapter) callback(ctx context.Context, e *ending, kind, actor string, tell []byte) error {
	if actor == "" {
		return nil
	}
	queue, known := a.Actors[actor]
	if !known {
		queue = e.from.Queue
	}
	about := Message{
		Queue: e.from.Queue, Actor: e.task.Actor, Args: e.given.Args, Kwargs: e.given.Kwargs, Options: e.from.Options, ID: e.from.ID,
		Timestamp: time.UnixMilli(e.from.Timestamp),
	}
	failures := e.task.Attempt - 1
	if e.outcome.State != opscore.Completed {
		failures++
		about.Options = with(about.Options, "traceback", quote(nil, e.outcome.Error))
		about.Options = with(about.Options, "requeue_timestamp", integer(time.Now().UnixMilli()))
	}
	if failures > 0 {
		about.Options = with(about.Options, "retries", integer(int64(failures)))
	}
	dict, err := about.Encode()
	if err != nil {
		opscore.FromContext(ctx).Log.Error(kind + " is not sent: " + err.Error())
		return nil //nolint:nilerr // it will not do better the next time
	}
	args := append(append(append(append([]byte{'['}, dict...), ','), tell...), ']')
	return a.store(ctx, e, kind, outgoing{
		Queue: queue, Actor: actor, Args: text(args), Kwargs: emptyObject, Options: emptyObject, Timestamp: time.Now().UnixMilli(),
	})
}

// store stores the task that sends a message.
func (a *Adapter) store(ctx context.Context, e *ending, kind string, out outgoing) error {
	id := uuid.NewSHA1(e.task.ID, []byte(kind))
	r, err := sendRequest(out, opscore.WithID(id), opscore.Labels(map[string]string{MessageLabel: e.task.Labels[MessageLabel]}))
	if err == nil {
		_, err = a.Client.Submit(ctx, r)
	}
	log := opscore.FromContext(ctx).Log
	switch code := opscore.CodeOf(err); {
	case err == nil:
		log.Info(kind+": a message is on its way", "actor", out.Actor, "queue", out.Queue, "task", id)
		return nil
	case code == opscore.CodeConflict: // another run of this attempt got so far before; what it told stands
		log.Info(kind+": a message is on its way already", "actor", out.Actor, "task", id)
		return nil
	case code == opscore.CodeInvalid, code == opscore.CodeTooLarge:
		log.Error(kind + " is not sent: " + err.Error())
		return nil
	}
	return err
}

var className = regexp.MustCompile(`^([A-Z]\w*): (.*)$`)

// exception names an error as Python would.
func exception(o *opscore.Outcome) (class, message string) {
	if o.Code == opscore.CodeTimeout {
		return "TimeLimitExceeded", o.Error
	}
	if m := className.FindStringSubmatch(o.Error); m != nil {
		return m[1], m[2]
	}
	return "Exception", o.Error
}
