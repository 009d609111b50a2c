package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// Subscription is what a source consumes on one connection. It says whether it does, and whether what waits in the queues arrives: if not, the
// worker is deaf, and the connection is made anew. Its exported fields must not change after Start.
type Subscription struct {
	Session *Session
	Purpose Purpose
	About   func() amqp.Table // more to be seen among the broker's connections; nil for nothing
	// Serve consumes on a connection until that is lost or ctx ends. It calls Subscribed once it does.
	Serve func(ctx context.Context, conn *amqp.Connection) error
	// Expects reports whether something would have to come from a queue if it waited there, and since when: the queue is consumed, the worker has free
	// slots, and not too much of the queue is held.
	Expects func(queue string) (since time.Time, expects bool)
	// Look declares a queue passively on the channel that it is consumed on. An error but that of ctx means nothing: that a connection or a channel is
	// gone is noticed elsewhere.
	Look func(ctx context.Context, queue string) (amqp.Queue, error)
	// Declared says how a queue is made, in a broker of this major version.
	Declared func(queue string, version int) Declaration

	mu    sync.Mutex
	began time.Time // when it was started, or asked how it is
	link  link
	drop  context.CancelCauseFunc
	ears  map[string]*ear // by queue
	heals heals

	review review
}

// startFor is for how long a worker is not ready because it is not subscribed yet: without a broker it works all the same.
const startFor = 5 * time.Second

// Start consumes the queues until ctx ends or the session is closed.
func (s *Subscription) Start(ctx context.Context, queues []string) {
	s.mu.Lock()
	s.begin()
	s.link.session, s.link.purpose, s.link.about = s.Session, s.Purpose, s.About
	s.ears = make(map[string]*ear, len(queues))
	for _, q := range queues {
		s.ears[q] = newEar()
	}
	s.mu.Unlock()
	s.Session.keep(ctx, &s.link, s.serve)
	s.Session.during(ctx, s.listen)
	s.Session.during(ctx, s.reviews)
}

func (s *Subscription) begin() {
	if s.began.IsZero() {
		s.began = time.Now()
	}
}

// serve makes it possible to drop the connection.
func (s *Subscription) serve(ctx context.Context, conn *amqp.Connection) error {
	ctx, drop := context.WithCancelCause(ctx)
	defer drop(nil)
	s.mu.Lock()
	s.drop = drop
	s.mu.Unlock()
	err := s.Serve(ctx, conn)
	if cause := context.Cause(ctx); errors.Is(cause, errDeaf) {
		return &opscore.Error{Code: opscore.CodeUnavailable, Message: "the worker was deaf", Err: cause}
	}
	return err
}

// Subscribed says that all queues are consumed on the present connection but those that cannot be, and why.
func (s *Subscription) Subscribed(unusable map[string]error) {
	s.link.note(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heals.mute = time.Time{} // it has just answered
	s.review.denied.note(nil)
	for q, e := range s.ears {
		e.unusable.note(unusable[q])
	}
}

// Heard says that something has come from a queue.
func (s *Subscription) Heard(queue string) {
	s.mu.Lock()
	e, known := s.ears[queue]
	wasDeaf := known && e.deaf()
	if known {
		e.heard = time.Now()
		e.clear()
		s.healed()
	}
	s.mu.Unlock()
	if wasDeaf {
		s.Session.log.Info("no longer deaf to a queue", "queue", queue, "purpose", s.Purpose.Name)
	}
}

// Checks implements [opscore.Checked]. It never waits for the broker.
func (s *Subscription) Checks() []opscore.Check {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begin()
	return []opscore.Check{s.broker(), s.delivery()}
}

// broker checks the connection and what is subscribed to on it.
func (s *Subscription) broker() opscore.Check {
	link, served := s.link.last()
	queues := slices.Sorted(maps.Keys(s.ears))
	c := opscore.Check{Name: opscore.CheckBroker, State: opscore.CheckDegraded, Since: link.since.UTC()}
	switch {
	case !served:
		c.Text, c.Since = "not subscribed to "+naming(queues)+" yet", s.began.UTC()
		if time.Since(s.began) < startFor {
			c.State = opscore.CheckFailed
		}
	case link.why != nil:
		c.Text = "not subscribed to " + naming(queues)
	default:
		troubles, since := s.troubles(queues)
		if len(troubles) == 0 {
			return s.expected()
		}
		c.Text, c.Since = strings.Join(troubles, "; "), since.UTC()
	}
	if link.why != nil {
		c.Text += ": " + link.why.Error()
	}
	if c.State == opscore.CheckDegraded {
		c.Text += "; " + s.Purpose.Meanwhile
	}
	return c
}

// expected says what is wrong although what is subscribed to comes.
func (s *Subscription) expected() opscore.Check {
	c := opscore.Check{Name: opscore.CheckBroker, State: opscore.CheckOK}
	var texts []string
	for _, t := range []trouble{s.Session.taking(), s.review.denied, s.review.differs} {
		if t.why == nil {
			continue
		}
		texts = append(texts, t.why.Error())
		if c.Since.IsZero() || t.since.Before(c.Since) {
			c.Since = t.since.UTC()
		}
	}
	if len(texts) > 0 {
		c.State, c.Text = opscore.CheckDegraded, strings.Join(texts, "; ")
	}
	return c
}

func naming(queues []string) string {
	switch len(queues) {
	case 0:
		return "its queues"
	case 1:
		return "queue " + queues[0]
	}
	return "queues " + strings.Join(queues, ", ")
}

// troubles says what is wrong with single queues, and since when.
func (s *Subscription) troubles(queues []string) (all []string, since time.Time) {
	for _, q := range queues {
		t := s.ears[q].unusable
		if t.why == nil {
			continue
		}
		all = append(all, fmt.Sprintf("queue %s cannot be used: %v", q, t.why))
		if since.IsZero() || t.since.Before(since) {
			since = t.since
		}
	}
	return all, since
}

// trouble is an error that lasts.
type trouble struct {
	why   error // the latest
	since time.Time
}

// note keeps an error, nil for the end of the trouble.
func (t *trouble) note(err error) {
	if err == nil || t.why == nil {
		t.since = time.Now()
	}
	t.why = err
}
