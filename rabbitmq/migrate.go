package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// Changed is what became of a queue of the broker that should be as it is declared.
type Changed struct {
	Name    string `json:"name"`                     // in the broker
	Made    bool   `json:"made"`                     // it was not there
	Differs string `json:"differs,omitempty"`        // what the broker says against the declaration; it is left as it is
	Was     string `json:"was,omitempty"`            // what the broker said against it, before it was made anew
	Aside   int    `json:"messages_aside,omitempty"` // that a migration which was interrupted left in another queue
	Moved   int    `json:"messages_moved"`           // from the queue that was there to the new one
	Dropped int    `json:"tickets_dropped"`          // their tasks get new ones
	Kept    int    `json:"orphans_kept,omitempty"`   // what was there and belongs to no task of this database
}

// Ensure sees to it that the broker's queue for a queue of tasks exists.
func (b *Broker) Ensure(ctx context.Context, queue string) (c Changed, err error) {
	if c.Made, err = b.ensureQueue(ctx, queue); err != nil {
		return c, fmt.Errorf("queue %s: %w", queue, err)
	}
	d := ticketQueue(queue, b.options.Classic, b.diagnose.major())
	c.Name = d.Name
	c.Differs, err = b.Differs(ctx, d)
	return c, err
}

// Differs returns what the broker says against the declaration of a queue that exists; "" if it is like that.
func (s *Session) Differs(ctx context.Context, d Declaration) (string, error) {
	_, err := on(ctx, s.diagnose, d.declare)
	return refusal(err)
}

// Migrate makes the broker's queue for a queue of tasks anew if it is not as it would be made. No task is lost: the tickets in it are only hints, and tasks whose
// tickets are gone get new ones. Workers subscribe anew by themselves. What there is besides tickets of this database is kept as orphans.
func (b *Broker) Migrate(ctx context.Context, queue string) (Changed, error) {
	c, err := b.Ensure(ctx, queue)
	if err != nil || c.Differs == "" {
		return c, err
	}
	for until, gone := time.Now().Add(emptyFor), false; !gone; {
		if err := b.empty(ctx, queue, until, &c); err != nil {
			return c, fmt.Errorf("empty queue %s: %w", c.Name, err)
		}
		if gone, err = b.deleteEmpty(ctx, &c); err != nil {
			return c, fmt.Errorf("delete queue %s: %w", c.Name, err)
		}
	}
	gone := time.Now()
	again, err := b.Ensure(ctx, queue) // a worker may have been faster
	if err != nil {
		return c, err
	}
	if _, err := b.store.Forget(ctx, queue, 0, time.Since(gone)); err != nil {
		return c, err
	}
	c.Was, c.Differs = c.Differs, again.Differs
	if c.Differs != "" {
		return c, &opscore.Error{Code: opscore.CodeConflict, Message: fmt.Sprintf(
			"queue %s was made again by a worker that makes queues in another way: give all workers the same type of queues, and migrate it then (%s)", c.Name, c.Differs)}
	}
	return c, nil
}

// deleteEmpty deletes a queue unless something has come into it meanwhile. A quorum queue knows no such condition: it is looked at right before.
func (b *Broker) deleteEmpty(ctx context.Context, c *Changed) (gone bool, err error) {
	for _, ifEmpty := range []bool{true, false} {
		if !ifEmpty {
			if q, _, err := b.Inspect(ctx, c.Name); err != nil || q.Messages > 0 {
				return false, err
			}
		}
		left, err := on(ctx, b.diagnose, func(ch *amqp.Channel) (int, error) { return ch.QueueDelete(c.Name, false, ifEmpty, false) })
		e, said := errors.AsType[*amqp.Error](err)
		switch {
		case err == nil:
			c.Dropped += left
			return true, nil
		case ifEmpty && said && e.Code == amqp.PreconditionFailed:
			return false, nil
		case !ifEmpty || !said || e.Code != amqp.NotImplemented:
			return false, err
		}
	}
	return false, nil
}

// emptyFor bounds how long a queue is emptied that fills all the time.
const emptyFor = 30 * time.Second

// empty takes out of a queue what waits there, and keeps what is no ticket of this database.
func (b *Broker) empty(ctx context.Context, queue string, until time.Time, c *Changed) error {
	conn, err := b.Dial(ctx, "migrate")
	if err != nil {
		return err
	}
	defer hangUp(conn)
	ch, err := await(ctx, func() { go hangUp(conn) }, conn.Channel)
	for err == nil {
		if time.Now().After(until) {
			return unavailableNow("it fills faster than it can be emptied: pause it with opscore queue pause " + queue)
		}
		var d *amqp.Delivery
		d, err = await(ctx, func() { go hangUp(conn) }, func() (*amqp.Delivery, error) {
			d, some, err := ch.Get(c.Name, false)
			if !some {
				return nil, err
			}
			return &d, err
		})
		if err != nil || d == nil {
			break
		}
		err = b.settle(queue, d, c)
	}
	return b.unavailable(err)
}

// settle drops a ticket, or keeps what is none.
func (b *Broker) settle(queue string, d *amqp.Delivery, c *Changed) error {
	_, reason, err := b.ticket(queue, d)
	if err == nil {
		c.Dropped++
		return d.Ack(false)
	}
	dropped, err := b.keep(queue, reason, d, err)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", errNotKept, err)
	case dropped:
		return fmt.Errorf("%w: there is no room for more orphans; adopt or drop some (opscore orphan list), or allow more (orphans.max)", errNotKept)
	}
	c.Kept++
	if reason == opscore.CodeForeignDatabase {
		return d.Nack(false, false) // whoever it belongs to finds it among the dead letters
	}
	return d.Ack(false)
}

var errNotKept = errors.New("a message that is no ticket could not be kept as an orphan")
