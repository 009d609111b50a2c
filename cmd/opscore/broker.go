package main

import (
	"context"
	"slices"

	"github.com/spf13/pflag"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/doctor"
	"github.com/opscore/opscore/rabbitmq"
)

// addBrokerFlags adds those of the commands that look at the broker.
func addBrokerFlags(flags *pflag.FlagSet) {
	addSettingFlags(flags, "broker", "broker_queue_type", "broker_management_url")
}

// askBroker returns the source of facts about the broker, if there is one. open opens the store.
func (c *config) askBroker(open func(context.Context) (store, error)) []doctor.Source {
	if c.broker == "" || !isPostgres(c.database) {
		return nil
	}
	q := rabbitmq.Inquiry{
		URLs: c.broker, Management: c.management, Options: rabbitmq.Options{Classic: c.classic}, Queues: c.queues,
		Adopted: map[string][]rabbitmq.Declaration{},
		Deployment: func(ctx context.Context) (opscore.Deployment, error) {
			s, err := open(ctx)
			if err != nil {
				return opscore.Deployment{}, err
			}
			tickets, ok := s.(rabbitmq.Store)
			if !ok {
				return opscore.Deployment{}, nil
			}
			return tickets.Deployment(ctx)
		},
	}
	for _, queue := range c.dramatiq.queues {
		q.Adopted[queue] = c.dramatiq.declare.Declarations(queue)
	}
	source := doctor.Source{Name: rabbitmq.SourceBroker, At: rabbitmq.Redacted(c.broker), Gatherer: q}
	if c.fellBack("broker") && !c.speaksDramatiq() {
		source.Gatherer = ifUsed{q}
	}
	return []doctor.Source{source}
}

// ifUsed asks a broker that a variable of other programs names: opscore need not use it, and then it is nobody's fault.
type ifUsed struct{ doctor.Gatherer }

// Gather implements [doctor.Gatherer].
func (g ifUsed) Gather(ctx context.Context, known *opscore.Facts) (opscore.Facts, error) {
	uses := func(e opscore.Endpoint) bool { return e.Kind == "rabbitmq" }
	if slices.ContainsFunc(known.Workers, func(w opscore.WorkerInfo) bool { return w.Live && slices.ContainsFunc(w.Endpoints, uses) }) {
		return g.Gatherer.Gather(ctx, known)
	}
	return opscore.Facts{}, nil
}
