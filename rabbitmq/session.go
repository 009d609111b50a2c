package rabbitmq

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// Session keeps connections to a RabbitMQ server, or a cluster of them, for whatever they carry. It is safe for concurrent use.
type Session struct {
	addresses addresses
	options   Options
	log       *slog.Logger
	diagnose  *inspector
	cluster   atomic.Pointer[string] // its name, once it is known
	about     amqp.Table             // what all connections say of themselves besides

	sends   atomic.Bool // something is sent
	mu      sync.Mutex
	blocked trouble // why the broker takes nothing, as far as is known

	ctx    context.Context //nolint:containedctx // the life of the connections, from Connect to Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Connect reads the URL, or several ones of a cluster separated by commas. It dials nothing yet: each connection is made when
// it is needed, and again whenever it is lost.
func Connect(ctx context.Context, urls string, o Options) (*Session, error) {
	at, err := parse(urls)
	if err != nil {
		return nil, err
	}
	o.Build = cmp.Or(o.Build, opscore.Build())
	s := &Session{addresses: at, options: o, log: cmp.Or(o.Log, slog.Default())}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.diagnose = &inspector{session: s}
	return s, nil
}

// try connects once, to any of the addresses.
func (s *Session) try(ctx context.Context) (err error) {
	for range s.addresses.all {
		if err = s.On(ctx, func(*amqp.Channel) error { return nil }); err == nil || refused(err) {
			break
		}
	}
	return err
}

// takes notes whether the broker takes messages: nil, or why it does not.
func (s *Session) takes(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blocked.note(why)
}

// taking returns why the broker takes no messages, if it is known not to.
func (s *Session) taking() trouble {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.blocked
}

// Close ends the connections and returns when nothing of the session runs any more. Workers and keepers must have stopped.
func (s *Session) Close() {
	s.cancel()
	s.wg.Wait()
	s.diagnose.close()
}

// String names the broker, without a password.
func (s *Session) String() string { return s.addresses.String() }

// Endpoint implements [opscore.Located] for sources. The name of the cluster is known once there has been a connection.
func (s *Session) Endpoint(context.Context) (opscore.Endpoint, error) {
	e := s.addresses.endpoint()
	if name := s.cluster.Load(); name != nil {
		e.Instance = *name
	}
	return e, nil
}

// On calls with a fresh channel of a connection that neither publishes nor consumes, and bounds how long it may take. The broker closes a
// channel on which it refuses something.
func (s *Session) On(ctx context.Context, with func(*amqp.Channel) error) error {
	_, err := on(ctx, s.diagnose, func(ch *amqp.Channel) (struct{}, error) { return struct{}{}, with(ch) })
	return err
}

// Inspect returns what there is in a queue of the broker, and whether it exists.
func (s *Session) Inspect(ctx context.Context, name string) (q amqp.Queue, exists bool, err error) {
	return s.diagnose.inspect(ctx, name)
}

// EnsureQueue makes a queue of the broker if it does not exist, and says whether it did. One that exists stays as it is.
func (s *Session) EnsureQueue(ctx context.Context, d Declaration) (made bool, err error) {
	return s.diagnose.ensure(ctx, d)
}

// Dial opens a connection for a purpose; the caller closes it.
func (s *Session) Dial(ctx context.Context, purpose string) (*amqp.Connection, error) {
	return s.dial(ctx, purpose, nil)
}

// Purpose says what a connection is for, in the log and among the broker's connections, and what happens while there is none.
type Purpose struct{ Name, Meanwhile string }

// pulled is what happens to tasks without tickets.
const pulled = "tasks are pulled from the database meanwhile"

// Keep keeps a connection for a purpose until ctx ends or the session is closed: it calls serve with each one, which returns when it is
// lost, or when the context that it gets ends. about is more to be seen among the broker's connections; it may be nil.
func (s *Session) Keep(ctx context.Context, purpose Purpose, about func() amqp.Table, serve func(context.Context, *amqp.Connection) error) {
	s.keep(ctx, &link{session: s, purpose: purpose, about: about}, serve)
}

func (s *Session) keep(ctx context.Context, l *link, serve func(context.Context, *amqp.Connection) error) {
	s.during(ctx, func(ctx context.Context) { l.run(ctx, serve) })
}

// during runs something beside us until ctx ends or the session is closed.
func (s *Session) during(ctx context.Context, run func(context.Context)) {
	s.wg.Go(func() {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		defer context.AfterFunc(s.ctx, stop)()
		run(ctx)
	})
}

// Await returns what do does, an exchange with the broker on conn, or an error after a few seconds, or at the end of ctx. Then the connection
// is closed, for it is of no more use.
func Await[T any](ctx context.Context, conn *amqp.Connection, do func() (T, error)) (T, error) {
	return await(ctx, func() { go hangUp(conn) }, do)
}
