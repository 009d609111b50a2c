package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/rabbitmq"
)

// dispatch is how tasks reach the worker; the zero value means that it pulls them from the store.
type dispatch struct {
	broker    *rabbitmq.Broker
	publisher opscore.Publisher
	sources   []opscore.Source
}

// dispatch connects to the broker that the configuration names.
func (s *session) dispatch(ctx context.Context, h opscore.Handlers, log *slog.Logger) (dispatch, error) {
	if s.conf.broker == "" {
		return dispatch{}, nil
	}
	tickets, ok := s.store.(rabbitmq.Store)
	if !ok {
		return dispatch{}, fmt.Errorf("broker: %s has no tickets", s.place)
	}
	b, err := rabbitmq.Open(ctx, s.conf.broker, tickets, rabbitmq.Options{Classic: s.conf.classic, Log: log})
	if err != nil && s.conf.fellBack("broker") && !s.conf.speaksDramatiq() {
		log.Warn("the broker is not used: workers look for tasks themselves", "broker_from", s.conf.origin("broker"), "error", err)
		return dispatch{}, nil // it was never asked for: what worked without it goes on to work
	}
	if err != nil {
		return dispatch{}, err
	}
	d := dispatch{b, b.Publisher(), []opscore.Source{b.Source()}}
	if s.conf.speaksDramatiq() {
		messages, err := s.takeOver(b, h, log)
		if err != nil {
			d.close()
			return dispatch{}, err
		}
		d.sources = append(d.sources, messages...)
	}
	return d, nil
}

func (d dispatch) close() {
	if d.broker != nil {
		d.broker.Close()
	}
}
