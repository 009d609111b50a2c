// Package rabbitmq carries tickets: with RabbitMQ between a store and its workers, tasks reach a free worker without a look at the store,
// and without RabbitMQ they reach it all the same.
package rabbitmq

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// Store is what tickets need of a store; [github.com/opscore/opscore/postgres.Store] is one.
type Store interface {
	opscore.Store
	opscore.Outbox
	// Deployment says who the database is.
	Deployment(ctx context.Context) (opscore.Deployment, error)
	// BeginEpoch notes that the broker's state is a new one, unless somebody has since before was read, and returns the epoch that holds.
	BeginEpoch(ctx context.Context, before, next opscore.ID) (now opscore.ID, err error)
	// KeepOrphans stores messages that belong to no task and returns how many there was no room for.
	KeepOrphans(ctx context.Context, orphans []opscore.Orphan) (dropped int, err error)
}

// Options change how a broker is used; the zero value is the default.
type Options struct {
	Classic bool         // queues that are made are classic ones; the default is quorum queues, which survive a node of a cluster
	Build   string       // of this process, to be seen among the broker's connections; empty means what the binary knows of its version
	Log     *slog.Logger // nil means [slog.Default]
	// ReviewEvery is how often a source looks whether it might connect anew, about; 0 means a minute.
	ReviewEvery time.Duration
}

// Broker is a RabbitMQ server, or a cluster of them, that carries tickets. It is safe for concurrent use.
type Broker struct {
	*Session
	store    Store
	instance opscore.ID // of the store
}

// Open reads the URL, or several ones of a cluster separated by commas, and connects once to find out what there is to find
// out: a broker that refuses us (password, virtual host, certificate) is an error, for that does not get better by itself. One
// that cannot be reached is not: it is dialled again until it can be, and workers pull meanwhile. Errors never hold a password.
func Open(ctx context.Context, urls string, store Store, o Options) (*Broker, error) {
	if err := ValidURL(urls); err != nil {
		return nil, err
	}
	d, err := store.Deployment(ctx)
	if err != nil {
		return nil, err
	}
	s, err := Connect(ctx, urls, o)
	if err != nil {
		return nil, err
	}
	b := &Broker{Session: s, store: store, instance: d.Instance}
	s.about = amqp.Table{"instance": d.Instance.String()}
	if err := s.try(ctx); refused(err) {
		b.Close()
		return nil, err
	} else if err != nil {
		b.log.Warn("degraded: the broker cannot be reached; tasks are pulled from the database until it can be", "broker", b, "error", err)
	} else {
		b.log.Info("connected to the broker", "broker", b)
	}
	return b, nil
}

// heartbeat is the interval of AMQP's own heartbeats, unless the URL says otherwise.
const heartbeat = 10 * time.Second

// dial opens a connection for a purpose to one of the addresses: the next one at each try.
func (s *Session) dial(ctx context.Context, purpose string, about amqp.Table) (*amqp.Connection, error) {
	at := s.addresses.next()
	config, err := at.config()
	if err != nil {
		return nil, s.unavailable(err)
	}
	config.Properties = properties(purpose, s.options.Build, s.about, about)
	ctx, cancel := context.WithTimeout(ctx, at.patience)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", at.host())
	if err != nil {
		return nil, s.unavailable(err)
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() }) // whatever the handshake is at
	w := &wire{Conn: impatient{raw}}
	if config.TLSClientConfig != nil {
		w.Conn = tls.Client(w.Conn, config.TLSClientConfig)
	}
	conn, err := amqp.Open(w, config)
	if !stop() && err == nil {
		hangUp(conn)
		err = context.Cause(ctx)
	}
	if err != nil {
		raw.Close()
		return nil, s.unavailable(cmp.Or(context.Cause(ctx), w.failed(), err))
	}
	if name, ok := conn.Properties["cluster_name"].(string); ok {
		s.cluster.Store(&name)
	}
	return conn, nil
}

// impatient is a connection whose writes fail when the other end reads nothing: an ack must not hold up a worker.
type impatient struct{ net.Conn }

func (c impatient) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// wire remembers why it could not be read: of that the library says only that the connection is not open.
type wire struct {
	net.Conn
	mu  sync.Mutex
	err error
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.err = cmp.Or(w.err, err)
	}
	return n, err
}

// failed returns what is known better than the library knows it: that one end does not trust the other.
func (w *wire) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil && certificate(w.err) {
		return w.err
	}
	return nil
}

// hangUp closes a connection without much patience: the other end may be frozen.
func hangUp(conn *amqp.Connection) { _ = conn.CloseDeadline(time.Now().Add(time.Second)) }

// refused reports whether the broker, or we, decided against the connection, as opposed to not being there.
func refused(err error) bool {
	if err == nil {
		return false
	}
	e, said := errors.AsType[*amqp.Error](err)
	return said && (e.Code == amqp.AccessRefused || e.Code == amqp.NotAllowed) || certificate(err) || opscore.CodeOf(err) == opscore.CodeInvalid
}

// unavailable says in words what an error means for whoever runs the tasks.
func (s *Session) unavailable(err error) error {
	if err == nil || opscore.CodeOf(err) != "" || errors.Is(err, context.Canceled) {
		return err
	}
	return &opscore.Error{Code: opscore.CodeUnavailable, Message: fmt.Sprintf("RabbitMQ at %s: %s", s, meaning(err)), Err: err}
}

func meaning(err error) string {
	var timeout net.Error
	e, isAMQP := errors.AsType[*amqp.Error](err)
	switch {
	case certificate(err):
		return "its certificate, or ours, is not accepted"
	case isAMQP && e.Code == amqp.AccessRefused && errors.Is(err, amqp.ErrCredentials):
		return "the user or the password is wrong"
	case isAMQP && e.Code == amqp.AccessRefused && strings.HasSuffix(e.Reason, "in exclusive use"):
		return "somebody else consumes the queue alone"
	case isAMQP && e.Code == amqp.AccessRefused:
		return "the user lacks a permission: see docs/operations/rabbitmq.md"
	case isAMQP && e.Code == amqp.NotAllowed:
		return "the virtual host does not exist, or the user may not use it"
	case isAMQP && e.Code == amqp.NotFound:
		return "the queue does not exist, or its node is down"
	case isAMQP && e.Code == amqp.ConnectionForced:
		return "it is shutting down, or an operator closed the connection"
	case isAMQP && e.Code == amqp.PreconditionFailed:
		return "it closed the channel"
	case errors.Is(err, errBlocked):
		return "short of memory or disk"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "it accepts connections or packets, but does not answer: frozen, overloaded or behind a firewall"
	}
	return "it cannot be reached"
}
