package rabbitmq

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// link is a connection that is dialled again, with backoff, whenever it is lost. The library's own recovery is off: it would
// redeclare and replay behind our back.
type link struct {
	session *Session
	purpose Purpose
	about   func() amqp.Table // more to be seen among the broker's connections; nil for nothing

	mu     sync.Mutex
	status trouble // why there is no connection of use
	served bool    // there has been one
}

// note says how the link is: nil once a connection is of use.
func (l *link) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.note(err)
	l.served = l.served || err == nil
}

func (l *link) last() (status trouble, served bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status, l.served
}

// Backoff of a link.
const (
	redialAfter = 50 * time.Millisecond
	redialMost  = 5 * time.Second
	goodFor     = 200 * time.Millisecond // a connection that was of use for so long was a good one
)

var errLinkLost = errors.New("the connection was closed")

// run dials until ctx ends, and calls serve with each connection. serve returns when it is lost, or when ctx ends.
func (l *link) run(ctx context.Context, serve func(context.Context, *amqp.Connection) error) {
	said, backoff := "", redialAfter
	for ctx.Err() == nil {
		var about amqp.Table
		if l.about != nil {
			about = l.about()
		}
		conn, err := l.session.dial(ctx, l.purpose.Name, about)
		if err == nil {
			began := time.Now()
			if said != "" {
				said = ""
				l.session.log.Info("connected to the broker again", "broker", l.session, "purpose", l.purpose.Name)
			}
			err = l.session.unavailable(serve(ctx, conn))
			hangUp(conn)
			if time.Since(began) > goodFor {
				backoff = redialAfter
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			l.note(err)
		}
		if err != nil && err.Error() != said && !errors.Is(err, errDeaf) { // that is said already
			said = err.Error()
			l.session.log.Warn("no connection to the broker; "+l.purpose.Meanwhile, "purpose", l.purpose.Name, "error", err)
		}
		pause(ctx, backoff+rand.N(backoff/2))
		backoff = min(2*backoff, redialMost)
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// lost turns what a library's notification says into an error.
func lost(e *amqp.Error) error {
	if e == nil {
		return errLinkLost
	}
	return e
}

// patience bounds an exchange with the broker, also one that the library would wait for without end.
const patience = 5 * time.Second

// await returns what do does, or an error after patience or at the end of ctx. A connection whose do has not returned is
// of no more use: giveUp must end it, so that do returns after all.
func await[T any](ctx context.Context, giveUp func(), do func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	done := make(chan answer, 1)
	go func() {
		v, err := do()
		done <- answer{v, err}
	}()
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
		giveUp()
		var none T
		return none, context.Cause(ctx)
	}
}

func unavailableNow(why string) error {
	return &opscore.Error{Code: opscore.CodeUnavailable, Message: why}
}
