package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/postgres"
)

// accomplice is a program of users that does something wrong, as another process: accomplice consume takes a queue's messages, the others are
// workers with handlers of their own.
func accomplice() {
	if err := conspire(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func conspire(deed string, args []string) error {
	flags := flag.NewFlagSet(deed, flag.ContinueOnError)
	ready := flags.String("ready-file", "", "")
	queue := flags.String("queue", "", "")
	tag := flags.String("tag", "", "")
	prefetch := flags.Int("prefetch", 0, "0 acknowledges by itself")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if deed == "consume" {
		return consume(ctx, *queue, *tag, *prefetch, func() error { return os.WriteFile(*ready, []byte("{}"), 0o600) })
	}
	place, _, err := (&config{database: os.Getenv("OPSCORE_DATABASE_URL"), schema: postgres.DefaultSchema}).place()
	if err != nil {
		return err
	}
	store, err := place.open(ctx, created)
	if err != nil {
		return err
	}
	defer store.Close()
	handlers := opscore.Handlers{}
	echo := func(_ context.Context, in json.RawMessage) (json.RawMessage, error) { return in, nil }
	opscore.Handle(handlers, opscore.Actor[json.RawMessage, json.RawMessage]{Name: "hello"}, echo)
	handler := map[string]func(context.Context, json.RawMessage) (json.RawMessage, error){
		"behave": echo, "deadlock": deadlock, "hog": hog, "hold": func(ctx context.Context, _ json.RawMessage) (json.RawMessage, error) { return holdPool(ctx, store) },
	}[deed]
	opscore.Handle(handlers, opscore.Actor[json.RawMessage, json.RawMessage]{Name: "misbehave"}, handler)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	worker := opscore.Worker{
		Store: store, Handlers: handlers, Slots: 30, Drain: time.Second, Grace: time.Second, Log: log,
		OnReady: func(info opscore.WorkerInfo) {
			doc, err := json.Marshal(info)
			if err = errors.Join(err, os.WriteFile(*ready, doc, 0o600)); err != nil {
				log.Error("cannot say that it is ready", "error", err)
			}
		},
	}
	keeping, stopKeeper := context.WithCancel(context.WithoutCancel(ctx))
	kept := make(chan error, 1)
	go func() { kept <- (&opscore.Keeper{Store: store, Log: log}).Run(keeping) }()
	err = worker.Run(ctx)
	stopKeeper()
	return errors.Join(err, <-kept)
}

// consume takes messages and does nothing with them.
func consume(ctx context.Context, queue, tag string, prefetch int, ready func() error) error {
	conn, err := amqp.Dial(os.Getenv("OPSCORE_BROKER_URL"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := ch.Qos(prefetch, 0, false); err != nil {
		return err
	}
	messages, err := ch.Consume(queue, tag, prefetch == 0, false, false, false, nil)
	if err = errors.Join(err, ready()); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, more := <-messages:
			if !more {
				return errors.New("the consumer is gone")
			}
		}
	}
}

// deadlock waits for itself.
func deadlock(context.Context, json.RawMessage) (json.RawMessage, error) {
	var mu sync.Mutex
	mu.Lock()
	mu.Lock()
	return nil, nil
}

// hog takes more memory than there is.
func hog(context.Context, json.RawMessage) (json.RawMessage, error) {
	var all [][]byte
	for range 2000 {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		all = append(all, block)
	}
	return nil, fmt.Errorf("there is room for %d MiB", len(all))
}

// holdPool keeps every connection of the store's pool, until its time is over.
func holdPool(ctx context.Context, of store) (json.RawMessage, error) {
	pool := of.(postgresStore).Pool()
	for range pool.Config().MaxConns {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return nil, err
		}
		defer conn.Release()
	}
	<-ctx.Done()
	return nil, ctx.Err()
}
