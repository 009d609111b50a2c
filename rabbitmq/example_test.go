package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/rabbitmq"
)

type Mail struct{ To string }

var SendMail = opscore.Actor[Mail, string]{Name: "send_mail", Queue: "mail"}

// A worker whose tasks RabbitMQ brings, and the keeper that tells RabbitMQ of them.
func ExampleOpen() {
	ctx, stop := context.WithCancel(context.Background())
	databaseURL, dropDatabase, err := nodes.NewDatabase("opscore", func(url string) error {
		return postgres.Migrate(ctx, url, postgres.Options{}) // what `opscore migrate up` does
	})
	if err != nil {
		panic(err)
	}
	brokerURL, dropVhost, err := nodes.NewVhost()
	if err != nil {
		panic(err)
	}

	store, err := postgres.Open(ctx, databaseURL, postgres.Options{})
	if err != nil {
		panic(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	broker, err := rabbitmq.Open(ctx, brokerURL, store, rabbitmq.Options{Log: quiet})
	if err != nil {
		panic(err)
	}
	handlers := opscore.Handlers{}
	opscore.Handle(handlers, SendMail, func(_ context.Context, m Mail) (string, error) { return "sent to " + m.To, nil })
	worker := &opscore.Worker{Store: store, Handlers: handlers, Sources: []opscore.Source{broker.Source()}, Log: quiet}
	keeper := &opscore.Keeper{Store: store, Publisher: broker.Publisher(), Log: quiet}
	stopped := make(chan error)
	go func() { stopped <- worker.Run(ctx) }()
	go func() { stopped <- keeper.Run(ctx) }()

	// Submitting needs no broker.
	client := &opscore.Client{Store: store}
	sub, err := SendMail.Submit(ctx, client, Mail{To: "ann@example.com"})
	if err != nil {
		panic(err)
	}
	fmt.Println(SendMail.Wait(ctx, client, sub.ID))

	stop()
	err = errors.Join(<-stopped, <-stopped)
	broker.Close() // after its worker and keeper
	store.Close()
	if err := errors.Join(err, dropVhost(), dropDatabase()); err != nil {
		panic(err)
	}
	// Output: sent to ann@example.com <nil>
}
