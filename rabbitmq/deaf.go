package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// How a deaf worker is told from one for which there is nothing. A look is one passive declaration on the channel that should deliver, so that its answer
// comes the same way; none is sent while something comes.
const (
	silentFor   = 5 * time.Second // without a delivery, before it is looked whether something waits
	lookEvery   = 5 * time.Second // at a queue; in a worker of many queues less often
	looksApart  = lookEvery / 4   // of one worker's looks, on average, at the least
	lookAgain   = time.Second     // when there is a reason for doubt
	waitingFor  = time.Second     // what waits for so long does not come: a broker passes it on at once
	unlistedFor = 2 * time.Second // an overloaded quorum queue says for a moment that it has neither consumers nor messages
	answerFor   = 2 * time.Second // to a look
	healMost    = time.Minute     // between new connections that do not help; at first it is silentFor
)

var errDeaf = errors.New("its session is made anew")

// ear is what is known of one queue.
type ear struct {
	patience time.Duration // a little more than silentFor, so that workers do not look all at once
	heard    time.Time     // when something came last
	next     time.Time     // when to look

	waits    time.Time // since when each look has found something that waits
	unlisted time.Time // since when each look has found no consumer
	found    amqp.Queue
	silent   time.Time // since when nothing has come; zero unless the worker is deaf to it
	excused  time.Time // since when nothing would have to come to a deaf worker

	unusable trouble // it cannot be consumed
}

func newEar() *ear { return &ear{patience: silentFor + rand.N(silentFor/20)} }

func (e *ear) deaf() bool { return !e.silent.IsZero() }

// clear forgets all suspicions.
func (e *ear) clear() {
	e.waits, e.unlisted, e.silent, e.excused = time.Time{}, time.Time{}, time.Time{}, time.Time{}
}

// heals is what has been done against deafness.
type heals struct {
	mute time.Time     // since when nothing has come on a connection that does not answer; zero once there is a new one
	last time.Time     // when the session was made anew last
	was  opscore.Check // and why
	wait time.Duration // at least, until the next time
	done int           // times without success
}

// shownFor is for how long it is shown that a worker was deaf: most of them are healed at once, and the registry would not hear of it.
const shownFor = opscore.HeartbeatEvery + time.Second

// delivery checks whether what waits arrives.
func (s *Subscription) delivery() opscore.Check {
	c := s.deafness()
	if c.State == opscore.CheckOK && time.Since(s.heals.last) < shownFor {
		return s.heals.was
	}
	return c
}

// deafness says what the worker is deaf to now.
func (s *Subscription) deafness() opscore.Check {
	c := opscore.Check{Name: opscore.CheckDelivery, State: opscore.CheckOK}
	var deaf []string
	if mute := s.heals.mute; !mute.IsZero() {
		deaf, c.Since = append(deaf, "the broker does not answer on the connection, and nothing has come on it for "+ago(mute).String()), mute.UTC()
	}
	for _, q := range slices.Sorted(maps.Keys(s.ears)) {
		e := s.ears[q]
		if !e.deaf() {
			continue
		}
		deaf = append(deaf, "queue "+q+": "+e.evidence())
		if c.Since.IsZero() || e.silent.Before(c.Since) {
			c.Since = e.silent.UTC()
		}
	}
	if len(deaf) > 0 {
		c.State, c.Text = opscore.CheckDegraded, "deaf: "+strings.Join(deaf, "; ")
		if s.heals.done > 0 {
			c.Text += fmt.Sprintf("; new sessions so far: %d", s.heals.done)
		}
		c.Text += "; " + s.Purpose.Meanwhile
	}
	return c
}

// evidence says why the worker must be deaf.
func (e *ear) evidence() string {
	var why []string
	if e.found.Messages > 0 {
		why = append(why, fmt.Sprintf("%d wait in the broker, slots are free, and nothing has come for %s", e.found.Messages, ago(e.silent)))
	}
	if e.found.Consumers == 0 {
		why = append(why, "the broker lists no consumer")
	}
	return strings.Join(why, ", and ")
}

func ago(t time.Time) time.Duration { return time.Since(t).Round(time.Second) }

// listen looks at queues from which nothing comes although it could.
func (s *Subscription) listen(ctx context.Context) {
	tick := time.NewTicker(silentFor / 20)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.excuse()
		for _, q := range s.due() {
			s.check(ctx, q)
		}
	}
}

// excuse ends a deafness that nobody can tell any more: the slots are busy, or the queue is not consumed, and have been for a while.
func (s *Subscription) excuse() {
	var deaf []string
	s.mu.Lock()
	for q, e := range s.ears {
		if e.deaf() {
			deaf = append(deaf, q)
		}
	}
	s.mu.Unlock()
	for _, q := range deaf {
		_, expects := s.Expects(q)
		s.mu.Lock()
		switch e := s.ears[q]; {
		case expects:
			e.excused = time.Time{}
		case e.excused.IsZero():
			e.excused = time.Now()
		case time.Since(e.excused) >= silentFor:
			e.clear()
		}
		s.mu.Unlock()
	}
}

// due returns the queues to look at.
func (s *Subscription) due() (queues []string) {
	now := time.Now()
	s.mu.Lock()
	for q, e := range s.ears {
		if !now.Before(e.next) && now.Sub(e.heard) >= e.patience {
			queues = append(queues, q)
		}
	}
	s.mu.Unlock()
	return slices.DeleteFunc(queues, func(q string) bool {
		since, expects := s.Expects(q)
		return !expects || now.Sub(since) < silentFor
	})
}

// check finds out what waits in a queue, and draws conclusions if something would have had to come all the time since the look before.
func (s *Subscription) check(ctx context.Context, queue string) {
	asked := time.Now()
	within, cancel := context.WithTimeout(ctx, answerFor)
	defer cancel()
	found, err := s.Look(within, queue)
	since, expects := s.Expects(queue)
	if ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, now := s.ears[queue], time.Now()
	e.next = now.Add(s.pace())
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		s.muted(later(since, e.heard), now)
	case err == nil && expects && since.Before(asked) && e.heard.Before(asked): // else there is neither a reason for doubt nor one for trust
		s.conclude(queue, found, later(since, e.heard), now)
	}
}

// muted gives up a connection on which nothing is answered: its channel cannot be used any more. If that does not help, it is given up less often.
func (s *Subscription) muted(since, now time.Time) {
	if s.heals.mute.IsZero() {
		s.heals.mute = since
		s.Session.log.Warn("deaf: the broker does not answer on a connection; "+s.Purpose.Meanwhile, "purpose", s.Purpose.Name)
	}
	s.heal(now)
	for _, e := range s.ears {
		e.next = now.Add(s.heals.wait)
	}
}

// conclude draws conclusions from what was found in a queue from which nothing has come since silence began.
func (s *Subscription) conclude(queue string, found amqp.Queue, since, now time.Time) {
	e := s.ears[queue]
	e.found = found
	e.waits = lasting(e.waits, found.Messages > 0, since, now)
	e.unlisted = lasting(e.unlisted, found.Consumers == 0, since, now)
	switch {
	case !e.waits.IsZero() && now.Sub(e.waits) >= waitingFor, !e.unlisted.IsZero() && now.Sub(e.unlisted) >= unlistedFor:
		if !e.deaf() {
			e.silent = since
			s.Session.log.Warn("deaf to a queue; "+s.Purpose.Meanwhile, "queue", queue, "purpose", s.Purpose.Name, "why", e.evidence())
		}
		if now.Sub(s.heals.last) >= s.heals.wait {
			s.heal(now)
		}
	case !e.waits.IsZero() || !e.unlisted.IsZero():
		e.next = now.Add(lookAgain)
	default:
		if e.deaf() {
			s.Session.log.Info("nothing waits any more in a queue that the worker was deaf to", "queue", queue, "purpose", s.Purpose.Name)
		}
		e.clear()
		s.healed()
	}
}

// pace is until a queue is looked at again: the more queues there are, the longer.
func (s *Subscription) pace() time.Duration {
	d := max(lookEvery, time.Duration(len(s.ears))*looksApart)
	return d - d/10 + rand.N(d/5)
}

// lasting returns since when something is so, within the present silence.
func lasting(was time.Time, is bool, silence, now time.Time) time.Time {
	switch {
	case !is:
		return time.Time{}
	case was.Before(silence):
		return now
	}
	return was
}

// heal drops the connection, so that the next one is subscribed anew: with pauses that grow while that does not help.
func (s *Subscription) heal(now time.Time) {
	s.heals.last, s.heals.wait = now, min(max(2*s.heals.wait, silentFor), healMost)
	s.heals.done++
	s.heals.was = s.deafness()
	s.drop(errDeaf)
}

// healed begins anew with the pauses once the worker is not deaf any more.
func (s *Subscription) healed() {
	if s.heals.wait == 0 {
		return
	}
	for _, e := range s.ears {
		if e.deaf() {
			return
		}
	}
	s.heals.wait, s.heals.done = 0, 0
}
