package rabbitmq

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// review is what a worker knows of how a new connection of its own would fare. The one that it has goes on with what it was permitted, until it is lost.
type review struct {
	denied  trouble // what would be refused
	differs trouble // queues that are not as they would be made

	closed bool // it may not declare the queues, which it does not have to while they exist
	turn   int  // of the queues: which one is tried next
}

// reviewEvery is how often a worker looks.
const reviewEvery = time.Minute

// reviews looks now and then, while there is a subscription that could be lost.
func (s *Subscription) reviews(ctx context.Context) {
	every := cmp.Or(s.Session.options.ReviewEvery, reviewEvery)
	for wait := max(every/60, time.Millisecond); ; { // the first time soon, to see what the queues are like
		pause(ctx, wait/2+rand.N(wait))
		if ctx.Err() != nil {
			return
		}
		if link, served := s.link.last(); served && link.why == nil { // else that says more
			s.anew(ctx)
			wait = every
		}
	}
}

// anew finds out on a fresh connection what a new one could do. That the broker is not there is noticed elsewhere.
func (s *Subscription) anew(ctx context.Context) {
	var about amqp.Table
	if s.About != nil {
		about = s.About()
	}
	conn, err := s.Session.dial(ctx, "review", about)
	if refused(err) {
		s.reviewed([]string{err.Error()}, nil)
	}
	if err != nil {
		return
	}
	defer hangUp(conn)
	l := &looker{conn: conn, within: answerFor}
	readable, differ := s.declarable(ctx, l)
	var no []string
	for _, name := range readable {
		if err := l.mayRead(ctx, name); denied(err) {
			no = append(no, words(err))
		}
	}
	if s.Session.sends.Load() {
		switch err := l.mayWrite(ctx); {
		case err == nil, errors.As(err, new(blockedError)):
			s.Session.takes(err)
		case denied(err):
			no = append(no, words(err))
		}
	}
	if ctx.Err() == nil {
		s.reviewed(no, differ)
	}
}

// declarable says which queues are not as they would be made, and which ones to try to read. The broker logs a line for each of these, so that is one at a time,
// unless there is reason to believe that permissions have changed.
func (s *Subscription) declarable(ctx context.Context, l *looker) (readable, differ []string) {
	s.mu.Lock()
	before, queues := s.review, slices.Sorted(maps.Keys(s.ears))
	s.mu.Unlock()
	closed := false
	for _, q := range queues {
		d := s.Declared(q, versionOf(l.conn))
		if _, exists, err := l.passive(ctx, d.Name); err != nil || !exists {
			continue // it is made again, or does not answer: that is noticed elsewhere
		}
		how, err := l.differs(ctx, d)
		if how != "" {
			differ = append(differ, "a queue is used as it is, though it would be made in another way: "+how)
		}
		closed = closed || denied(err)
		readable = append(readable, d.Name)
	}
	s.mu.Lock()
	s.review.closed, s.review.turn = closed, before.turn+1
	s.mu.Unlock()
	if len(readable) > 0 && closed == before.closed && before.denied.why == nil {
		readable = readable[before.turn%len(readable):][:1]
	}
	return readable, differ
}

// reviewed keeps the result.
func (s *Subscription) reviewed(no, differ []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.review.denied.note(joined("a new connection would be refused: ", no))
	s.review.differs.note(joined("", differ))
}

func joined(prefix string, texts []string) error {
	if len(texts) == 0 {
		return nil
	}
	return errors.New(prefix + strings.Join(texts, "; "))
}
