package main

import (
	"context"
	"fmt"
	"log"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

type Mail struct{ To string }

var SendMail = opscore.Actor[Mail, string]{Name: "send_mail", MaxAttempts: 5}

func main() {
	ctx, stop := context.WithCancel(context.Background())
	store, err := sqlite.Open("tasks.db")
	if err != nil {
		log.Fatal(err)
	}
	handlers := opscore.Handlers{}
	opscore.Handle(handlers, SendMail, func(ctx context.Context, m Mail) (string, error) {
		return "sent to " + m.To, nil // an error would be retried, with backoff
	})
	stopped := make(chan error)
	go func() { stopped <- (&opscore.Worker{Store: store, Handlers: handlers}).Run(ctx) }()
	go func() { stopped <- (&opscore.Keeper{Store: store}).Run(ctx) }() // rescues tasks of dead workers, prunes old ones

	client := &opscore.Client{Store: store}
	sub, err := SendMail.Submit(ctx, client, Mail{To: "ann@example.com"})
	if err != nil {
		log.Fatal(err)
	}
	receipt, err := SendMail.Wait(ctx, client, sub.ID)
	fmt.Println(receipt, err)
	stop() // drains: running tasks may finish
	fmt.Println(<-stopped, <-stopped)
}
