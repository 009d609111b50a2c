package rabbitmq

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// The queues in the broker. That of a queue of tasks begins with queuePrefix, and no other does: whatever a queue is called, it
// cannot be one of ours.
const (
	queuePrefix = "opscore."
	deadQueue   = "opscore-dead" // tickets that nobody here can use
	epochPrefix = "opscore-epoch-"
	maxDead     = 10_000 // tickets in deadQueue; beyond that the oldest are dropped
)

// inspector is the connection for everything but tickets. A channel on a connection that publishes can hang while the broker blocks
// publishers; this one publishes nothing. It is dialled when it is needed.
type inspector struct {
	session *Session

	mu   sync.Mutex
	conn *amqp.Connection
}

// on calls with a fresh channel: one on which something is refused is closed by the broker.
func on[T any](ctx context.Context, i *inspector, with func(*amqp.Channel) (T, error)) (got T, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.conn == nil || i.conn.IsClosed() {
		conn, err := i.session.dial(ctx, "diagnose", nil)
		if err != nil {
			return got, err
		}
		i.conn = conn
	}
	conn := i.conn
	got, err = await(ctx, func() {
		i.conn = nil
		go hangUp(conn)
	}, func() (T, error) {
		ch, err := conn.Channel()
		if err != nil {
			var none T
			return none, err
		}
		defer func() { _ = ch.Close() }()
		return with(ch)
	})
	return got, i.session.unavailable(err)
}

func (i *inspector) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.conn != nil {
		hangUp(i.conn)
	}
}

// inspect returns what there is in a queue of the broker, and whether it exists.
func (i *inspector) inspect(ctx context.Context, name string) (q amqp.Queue, exists bool, err error) {
	q, err = on(ctx, i, func(ch *amqp.Channel) (amqp.Queue, error) {
		return ch.QueueDeclarePassive(name, true, false, false, false, nil)
	})
	if missing(err) {
		return q, false, nil
	}
	return q, err == nil, err
}

// ensure sees to it that the queue exists, and says whether it had to be made. One that exists is used as it is, whatever its arguments: to
// declare it with others would close the channel.
func (i *inspector) ensure(ctx context.Context, d Declaration) (made bool, err error) {
	_, exists, err := i.inspect(ctx, d.Name)
	if err != nil || exists {
		return false, err
	}
	_, err = on(ctx, i, d.declare)
	if e, ok := errors.AsType[*amqp.Error](err); ok && e.Code == amqp.PreconditionFailed {
		return false, nil // somebody else has just made it, with other arguments
	}
	return err == nil, err
}

// ticketQueue is the broker's queue for a queue of tasks, as it is made.
func ticketQueue(queue string, classic bool, major int) Declaration {
	args := amqp.Table{"x-queue-type": kind(classic), "x-dead-letter-exchange": "", "x-dead-letter-routing-key": deadQueue}
	if !classic && major >= 4 {
		args["x-delivery-limit"] = int64(-1) // from 4.0 on the default is 20; a parked ticket has done nothing wrong
	}
	return Declaration{queuePrefix + queue, args}
}

// ensureQueue makes the broker's queue for a queue of tasks, and the one for dead tickets. If it had to be made, the tickets that were out are
// gone with the one before it.
func (b *Broker) ensureQueue(ctx context.Context, queue string) (made bool, err error) {
	dead := amqp.Table{"x-queue-type": kind(b.options.Classic), "x-max-length": int64(maxDead)}
	if _, err := b.diagnose.ensure(ctx, Declaration{deadQueue, dead}); err != nil {
		return false, err
	}
	made, err = b.diagnose.ensure(ctx, ticketQueue(queue, b.options.Classic, b.diagnose.major()))
	if err != nil || !made {
		return false, err
	}
	lost, err := b.store.Forget(ctx, queue, 0, time.Second) // not those that are about to be published
	if lost > 0 {
		b.log.Warn("the broker has lost a queue: its tasks get new tickets", "broker", b, "queue", queue, "tickets", lost)
	}
	return true, err
}

// kind is the type of the queues that are made.
func kind(classic bool) string {
	if classic {
		return "classic"
	}
	return "quorum"
}

// major is the broker's version, 0 if it is not known.
func (i *inspector) major() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.conn == nil {
		return 0
	}
	return versionOf(i.conn)
}

// versionOf is the major version of the broker, 0 if it does not say.
func versionOf(conn *amqp.Connection) int {
	text, _ := conn.Properties["version"].(string)
	number, _, _ := strings.Cut(text, ".")
	major, err := strconv.Atoi(number)
	if err != nil {
		return 0
	}
	return major
}

// checkEpoch finds out whether the broker still has the state that it had when we last talked to it: an empty queue that nobody
// uses exists exactly as long. If not, everything that was out is gone.
func (b *Broker) checkEpoch(ctx context.Context) error {
	d, err := b.store.Deployment(ctx)
	if err != nil {
		return err
	}
	if d.Epoch != (opscore.ID{}) {
		_, exists, err := b.diagnose.inspect(ctx, epochPrefix+d.Epoch.String())
		if err != nil || exists {
			return err
		}
	}
	next, err := uuid.NewV7()
	if err != nil {
		return err
	}
	// Made before it is noted: whoever reads it finds it.
	if _, err := b.diagnose.ensure(ctx, Declaration{epochPrefix + next.String(), amqp.Table{"x-queue-type": kind(b.options.Classic)}}); err != nil {
		return err
	}
	now, err := b.store.BeginEpoch(ctx, d.Epoch, next)
	if err == nil && now == next && d.Epoch != (opscore.ID{}) {
		b.log.Warn("the broker has lost its state, or it is another one: tasks that were out get new tickets", "broker", b,
			"epoch_before", d.Epoch, "epoch", next)
	}
	if err == nil && now != next {
		_, err = on(ctx, b.diagnose, func(ch *amqp.Channel) (int, error) {
			return ch.QueueDelete(epochPrefix+next.String(), false, false, false) // a quorum queue knows no conditions
		})
	}
	return err
}

// Purge removes the tickets of a queue that wait in the broker, and returns how many there were. Their tasks are not touched: workers find them without
// tickets. A queue that does not exist has none.
func (b *Broker) Purge(ctx context.Context, queue string) (int, error) {
	return on(ctx, b.diagnose, func(ch *amqp.Channel) (int, error) {
		n, err := ch.QueuePurge(queuePrefix+queue, false)
		if missing := (*amqp.Error)(nil); errors.As(err, &missing) && missing.Code == amqp.NotFound {
			err = nil
		}
		return n, err
	})
}
