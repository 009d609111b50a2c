package dramatiq_test

import (
	"context"
	"fmt"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/dramatiq"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/rabbitmq"
)

type Photo struct {
	Name  string `json:"name"`
	Width int    `json:"width,omitempty"`
}

// A worker that takes over the messages for resize(name, width=…) from Dramatiq's queue images, and sends what follows from them.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	store, err := postgres.Open(ctx, "postgres://app@db.example.com/app", postgres.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	broker, err := rabbitmq.Open(ctx, "amqp://app@mq.example.com/app", store, rabbitmq.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer broker.Close()

	handlers := opscore.Handlers{}
	resize := opscore.Actor[Photo, string]{Name: "resize", Queue: "images", Timeout: time.Minute}
	opscore.Handle(handlers, resize, func(_ context.Context, p Photo) (string, error) { return "resized " + p.Name, nil })
	sender, err := dramatiq.NewSender(broker.Session, dramatiq.Queues{})
	if err != nil {
		fmt.Println(err)
		return
	}
	dramatiq.HandleSend(handlers, sender)
	messages, err := dramatiq.NewSource(broker.Session, store, dramatiq.Options{
		Queues: map[string][]string{"images": {"resize"}}, Handlers: handlers,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	worker := &opscore.Worker{
		Store: store, Handlers: handlers, Sources: []opscore.Source{messages, broker.Source()},
		Adapter: &dramatiq.Adapter{Client: &opscore.Client{Store: store}, Actors: map[string]string{"notify": "mail"}},
	}
	fmt.Println(worker.Run(ctx)) // beside a Keeper, somewhere
}

func ExampleRemote() {
	notify := dramatiq.Remote[Photo]{Name: "notify", Queue: "mail", Options: map[string]any{"max_retries": 3}}
	request, err := notify.Request(Photo{Name: "a.jpg"}) // or notify.Submit(ctx, client, photo, postgres.In(tx))
	fmt.Println(request.Actor, err)
	// Output: dramatiq.send <nil>
}
