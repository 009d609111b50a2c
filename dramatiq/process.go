package dramatiq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/opscore/opscore"
)

// arrival is a delivery that was decoded.
type arrival struct {
	*delivery
	message  Message
	adoption opscore.Adoption
}

// process makes tasks of deliveries, and orphans of those that cannot become one, and returns the tasks that the worker has now. With an error
// the deliveries are there to be taken again.
func (s *Source) process(ctx context.Context, want opscore.Claim, batch []*delivery) ([]opscore.Task, error) {
	// To stop in the middle would leave messages unacked whose tasks are there. A store that hangs must not hold up what else could be done.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), processFor)
	defer cancel()
	s.processing.RLock()
	defer s.processing.RUnlock()
	var ours, others []*arrival
	for _, d := range batch {
		a, err := s.read(d)
		if err != nil {
			err = s.orphan(ctx, d, opscore.Orphan{Reason: opscore.CodeUndecodable, Why: err.Error()})
		} else if s.takes(d.queue, a.message.Actor) && slices.Contains(want.Actors, a.message.Actor) {
			ours = append(ours, a)
		} else {
			others = append(others, a)
		}
		if err != nil {
			s.inbox.put(batch...)
			return nil, err
		}
	}
	known, err := s.sort(ctx, others)
	if err != nil {
		s.again(ours)
		return nil, err
	}
	ours = append(ours, known...)
	if len(ours) == 0 {
		return nil, nil
	}
	take := s.adopt
	if s.options.Strict {
		take = s.match
	}
	tasks, err := take(ctx, want, ours)
	if err != nil {
		s.again(ours)
	}
	return tasks, err
}

func (s *Source) again(all []*arrival) {
	for _, a := range all {
		s.inbox.put(a.delivery)
	}
}

// read decodes a delivery. Whatever is wrong with a body, it is this one's trouble alone.
func (s *Source) read(d *delivery) (a *arrival, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("decode message: panic: %v", v)
		}
	}()
	if d.read != nil {
		return d.read, nil
	}
	m, err := Decode(d.Body)
	if err != nil {
		return nil, err
	}
	adoption, err := m.adoption(d.queue, s.options.Handlers)
	if err != nil {
		return nil, err
	}
	adoption.Message = s.kept(d, opscore.Orphan{ID: adoption.Request.ID, Actor: m.Actor})
	d.read = &arrival{d, m, adoption}
	return d.read, nil
}

// takes reports whether messages of the actor are taken from the queue.
func (s *Source) takes(queue, actor string) bool {
	allowed := s.options.Queues[queue]
	return len(allowed) == 0 && actor != SendActor || slices.Contains(allowed, actor)
}

// kept fills in what is kept of a delivery as an orphan.
func (s *Source) kept(d *delivery, o opscore.Orphan) opscore.Orphan {
	headers, err := json.Marshal(d.Headers)
	if len(d.Headers) == 0 {
		headers = nil
	}
	if err != nil || len(headers) > maxHeaders {
		headers = []byte(`"too many to be kept"`)
	}
	if o.ID == (opscore.ID{}) {
		o.ID = uuid.NewSHA1(uuid.NameSpaceOID, d.Body)
	}
	o.Actor = clip(o.Actor)
	o.Queue, o.Headers, o.Body, o.Size = d.queue, string(headers), d.Body, len(d.Body)
	o.Message = o.ID
	return o
}

const maxHeaders = 4 << 10

// orphan keeps a delivery that becomes no task, and lets the broker put it where Dramatiq would: among the dead letters.
func (s *Source) orphan(ctx context.Context, d *delivery, o opscore.Orphan) error {
	o = s.kept(d, o)
	dropped, err := s.store.KeepOrphans(ctx, []opscore.Orphan{o})
	if err != nil {
		return fmt.Errorf("keep a message of queue %s as an orphan: %w", d.queue, err)
	}
	s.log.Warn("a message does not become a task", "queue", d.queue, "orphan", o.ID, "actor", o.Actor, "reason", o.Reason, "why", o.Why,
		"bytes", o.Size, "dead_letter", d.queue+dead, "dropped", dropped > 0)
	s.bury(d)
	return nil
}

// bury makes a dead letter of a delivery.
func (s *Source) bury(d *delivery) {
	d.settled = true
	_ = d.Nack(false, false) // an error means that the channel is gone: then it comes again
}

func (s *Source) done(d *delivery) {
	d.settled = true
	_ = d.Ack(false) // as above
}

// adopt makes tasks of messages. Those that the worker has no room for stay pending, for whoever has.
func (s *Source) adopt(ctx context.Context, want opscore.Claim, all []*arrival) (tasks []opscore.Task, err error) {
	adoptions := make([]opscore.Adoption, len(all))
	for i, a := range all {
		adoptions[i] = a.adoption
	}
	answers, err := s.store.Adopt(ctx, want, adoptions)
	if err != nil {
		return nil, err
	}
	for i, got := range answers {
		a := all[i]
		switch {
		case got.Orphan != "" && errors.Is(got.Err, opscore.ErrUnavailable):
			s.log.Error("a message cannot be kept as an orphan; it waits", "queue", a.queue, "message", a.message.ID, "error", got.Err)
			s.inbox.hold(a.delivery, time.Second)
			continue
		case got.Orphan != "":
			s.log.Warn("a message does not become a task", "queue", a.queue, "message", a.message.ID, "actor", a.message.Actor, "reason", got.Orphan,
				"why", got.Err, "kept", !got.Dropped)
			if got.Dropped || got.Orphan != opscore.CodeReplayed {
				s.bury(a.delivery)
				continue
			}
		case got.Claimed:
			tasks = append(tasks, got.Task)
			s.note(a)
		case got.Duplicate:
			s.log.Info("a message came again: it is a task already", "queue", a.queue, "task", a.adoption.Request.ID, "redelivered", a.Redelivered)
		default:
			s.note(a)
		}
		s.done(a.delivery)
	}
	return tasks, nil
}

// note logs what is not honoured of a message; its task's log says so as well.
func (s *Source) note(a *arrival) {
	var from origin
	if json.Unmarshal(a.adoption.Origin, &from) == nil && len(from.Notes) > 0 {
		s.log.Info("of a message", "queue", a.queue, "task", a.adoption.Request.ID, "actor", a.message.Actor, "notes", from.Notes)
	}
}

// errNoTask is what a message meets in strict mode.
var errNoTask = errors.New("TaskNotFoundError")

// match finds the tasks that messages belong to, and claims them.
func (s *Source) match(ctx context.Context, want opscore.Claim, all []*arrival) ([]opscore.Task, error) {
	ids := make([]opscore.ID, len(all))
	for i, a := range all {
		ids[i] = a.adoption.Request.ID
	}
	rows, err := s.store.Get(ctx, ids)
	if err != nil {
		return nil, err
	}
	known := make(map[opscore.ID]*opscore.Task, len(rows))
	for i := range rows {
		known[rows[i].ID] = &rows[i]
	}
	var matched []*arrival
	for _, a := range all {
		if a.tries == 0 {
			s.log.Info("message received", "actor", a.message.Actor, "message", a.message.ID, "queue", a.queue)
		}
		t := known[a.adoption.Request.ID]
		switch {
		case t == nil && a.tries < rowTries: // its transaction may be on its way
			s.inbox.hold(a.delivery, graceForRow<<min(a.tries, 1))
			continue
		case t != nil && t.Actor == a.message.Actor && !t.State.Terminal():
			matched = append(matched, a)
			continue
		case t != nil && t.Actor == a.message.Actor && time.Since(t.FinishedAt) < lateFor:
			s.log.Info("a message came after its task was over", "message", a.message.ID, "actor", t.Actor, "state", t.State)
			s.done(a.delivery)
			continue
		}
		if err := s.mismatched(ctx, a, t); err != nil {
			return nil, err
		}
	}
	return s.claim(ctx, want, matched)
}

// mismatched keeps a message whose task is not there, or is over, or is another one.
func (s *Source) mismatched(ctx context.Context, a *arrival, t *opscore.Task) error {
	o := opscore.Orphan{ID: a.adoption.Request.ID, Actor: a.message.Actor}
	switch {
	case t == nil:
		o.Reason, o.Why = opscore.CodeTaskNotFound, "TaskNotFoundError: there is no task record for the message, and the worker is strict"
		s.log.Error("TaskNotFoundError: there is no task record", "message", a.message.ID, "actor", a.message.Actor, "queue", a.queue,
			"args_bytes", len(a.message.Args)+len(a.message.Kwargs), "error", errNoTask)
	case t.Actor != a.message.Actor:
		o.Reason, o.Why = opscore.CodeConflict, fmt.Sprintf("the task with its id is of actor %s", t.Actor)
	default:
		o.Reason, o.Why = opscore.CodeReplayed, fmt.Sprintf("the task with its id is %s", t.State)
	}
	return s.orphan(ctx, a.delivery, o)
}

// claim claims the tasks that messages belong to; those that cannot be claimed now are pulled when they can.
func (s *Source) claim(ctx context.Context, want opscore.Claim, matched []*arrival) ([]opscore.Task, error) {
	if len(matched) == 0 {
		return nil, nil
	}
	want.IDs = make([]opscore.ID, len(matched))
	for i, a := range matched {
		want.IDs[i] = a.adoption.Request.ID
	}
	got, err := s.store.Claim(ctx, want)
	if err != nil {
		return nil, err
	}
	for _, a := range matched {
		s.done(a.delivery)
	}
	return got.Tasks, nil
}
