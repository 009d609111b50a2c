package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/rabbitmq"
)

// startBroker starts the run's private RabbitMQ node when the first measurement needs it.
func (s *server) startBroker(ctx context.Context) (err error) {
	if s.rabbitmq == nil {
		s.rabbitmq, err = nodes.StartRabbitMQ(ctx)
	}
	return err
}

// withBroker connects a store in a fresh database to a virtual host that is empty.
func withBroker(ctx context.Context, s *server, do func(*postgres.Store, *rabbitmq.Broker) error) error {
	if err := s.startBroker(ctx); err != nil {
		return err
	}
	s.vhosts++
	name := fmt.Sprintf("bench_%d", s.vhosts)
	if _, err := s.rabbitmq.Ctl(ctx, "add_vhost", name); err != nil {
		return err
	}
	if _, err := s.rabbitmq.Ctl(ctx, "set_permissions", "-p", name, "opscore", ".*", ".*", ".*"); err != nil {
		return err
	}
	err := withPostgres(ctx, s, func(store *postgres.Store, _ string) error {
		b, err := rabbitmq.Open(ctx, s.rabbitmq.URL(name), store, rabbitmq.Options{Log: quiet()})
		if err != nil {
			return err
		}
		defer b.Close()
		return do(store, b)
	})
	_, dropErr := s.rabbitmq.Ctl(context.WithoutCancel(ctx), "delete_vhost", name)
	return errors.Join(err, dropErr)
}

// mqDrain is pgDrain with tickets: from waiting rows by way of relay, quorum queue and claim to recorded outcomes. It fails if more than one task
// in a hundred came without a ticket.
func mqDrain(slots int) func(context.Context, *server) ([]result, error) {
	return func(ctx context.Context, s *server) ([]result, error) {
		rate, err := medianOf(func() (rate float64, err error) {
			err = withBroker(ctx, s, func(store *postgres.Store, b *rabbitmq.Broker) (err error) {
				if err = fill(ctx, store, tasks); err == nil {
					rate, err = mqDrainOnce(ctx, store, b, slots)
				}
				return err
			})
			return rate, err
		})
		return []result{{fmt.Sprintf("opscore/rabbitmq: drain %d no-op tasks by ticket, %s", tasks, pgSettings(slots)), "tasks/s", rate}}, err
	}
}

func mqDrainOnce(ctx context.Context, store *postgres.Store, b *rabbitmq.Broker, slots int) (float64, error) {
	source, publisher := b.Source(), b.Publisher()
	for !publisher.Ready() { // the broker is there before the work is
		time.Sleep(time.Millisecond)
	}
	rate, err := measured(ctx, noLimit, func(ctx context.Context, finished func()) error {
		return beside(ctx, (&opscore.Keeper{Store: store, Publisher: publisher, Log: quiet()}).Run, func(ctx context.Context) error {
			return workFrom(ctx, store, slots, finished, source)
		})
	})
	if s := source.Stats(); err == nil && s.Claimed < tasks*99/100 {
		err = fmt.Errorf("only %d of %d tasks came by ticket", s.Claimed, tasks)
	}
	return rate, err
}

// mqLatency is pgLatency with tickets; the relay is in the worker's process.
func mqLatency(ctx context.Context, s *server) (results []result, err error) {
	err = withBroker(ctx, s, func(store *postgres.Store, b *rabbitmq.Broker) error {
		source := b.Source()
		return beside(ctx, (&opscore.Keeper{Store: store, Publisher: b.Publisher(), Log: quiet()}).Run, func(ctx context.Context) error {
			results, err = latencies(ctx, store, "opscore/rabbitmq", source)
			if s := source.Stats(); err == nil && s.Claimed < s.Pulled*20 {
				err = fmt.Errorf("%d tasks came by ticket and %d without", s.Claimed, s.Pulled)
			}
			return err
		})
	})
	return results, err
}
