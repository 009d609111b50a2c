package rabbitmq

import (
	"context"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// Publisher is a [opscore.Publisher]: a [Sender] of tickets.
type Publisher struct {
	broker *Broker
	sender *Sender
}

// Publisher returns one that connects now and until the broker is closed.
func (b *Broker) Publisher() *Publisher {
	s := b.newSender(Purpose{"publish", pulled}, b.ensureTickets)
	s.fresh = func(ctx context.Context) {
		if err := b.checkEpoch(ctx); err != nil { // a node that is down is not a loss
			b.log.Debug("cannot tell whether the broker has kept its state", "broker", b, "error", err)
		}
	}
	s.start()
	return &Publisher{b, s}
}

// Ready implements [opscore.Publisher].
func (p *Publisher) Ready() bool { return p.sender.Ready() }

// Publish implements [opscore.Publisher]. The tickets are persistent; each is confirmed, and known to be in a queue, or refused.
func (p *Publisher) Publish(ctx context.Context, tickets []opscore.Ticket) (refused []opscore.ID, err error) {
	letters := make([]Letter, len(tickets))
	for i := range tickets {
		t := &tickets[i]
		body, err := encode(p.broker.instance, t)
		if err != nil {
			return idsOf(tickets), err
		}
		letters[i] = Letter{queuePrefix + t.Queue, amqp.Publishing{
			MessageId: t.ID.String(), ContentType: "application/json", AppId: "opscore", Body: body,
		}}
	}
	for i, sendErr := range p.sender.Send(ctx, letters) {
		if sendErr != nil {
			refused = append(refused, tickets[i].ID)
			if err == nil {
				err = sendErr
			}
		}
	}
	return refused, err
}

func idsOf(tickets []opscore.Ticket) []opscore.ID {
	ids := make([]opscore.ID, len(tickets))
	for i := range tickets {
		ids[i] = tickets[i].ID
	}
	return ids
}

// ensureTickets makes the broker's queue of the name.
func (b *Broker) ensureTickets(ctx context.Context, name string) error {
	_, err := b.ensureQueue(ctx, name[len(queuePrefix):])
	return err
}

// Waiting implements [opscore.Publisher].
func (p *Publisher) Waiting(ctx context.Context, queue string) (int, error) {
	q, _, err := p.broker.diagnose.inspect(ctx, queuePrefix+queue)
	return q.Messages, err
}
