// Command shop is a small web shop: an order is charged, confirmed by mail and shown with a thumbnail, each as a task.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

// Order is what a customer sends.
type Order struct {
	Number   int    `json:"number"`
	Customer string `json:"customer"`
	Cents    int    `json:"cents"`
	Picture  []byte `json:"picture,omitempty"` // to be printed on a mug
}

// Mail is a letter to a customer.
type Mail struct {
	To   string `json:"to"`
	Text string `json:"text"`
}

// Picture is an image to be made small.
type Picture struct {
	Image []byte `json:"image"`
}

// Binary is how a command's output that is no text becomes a result.
type Binary struct {
	Base64 []byte `json:"base64"`
}

// The shop's actors. Thumbnail is a command, declared in opscore.yaml and run by opscore worker.
var (
	Charge    = opscore.Actor[Order, string]{Name: "charge", Queue: "orders", MaxAttempts: 5}
	SendMail  = opscore.Actor[Mail, string]{Name: "send_mail", Queue: "mail"}
	Thumbnail = opscore.Actor[Picture, Binary]{Name: "thumbnail", Queue: "images"}
)

// Bank takes money. A second charge with the same key is the first one.
type Bank interface {
	Charge(ctx context.Context, key string, cents int) error
}

// ErrDeclined is the bank's last word on a charge.
var ErrDeclined = errors.New("card declined")

// Post delivers mail.
type Post interface {
	Deliver(ctx context.Context, m Mail) error
}

// Shop takes orders. Its own tables are in the file where the tasks are, so that both change in one transaction.
type Shop struct {
	DB     *sql.DB
	Client *opscore.Client
	Bank   Bank
	Post   Post
}

// Prepare creates the shop's table.
func (s *Shop) Prepare(ctx context.Context) error {
	_, err := s.DB.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY, customer TEXT, paid INTEGER DEFAULT 0)")
	return err
}

// PlaceOrder keeps the order and the task that charges it, or neither.
func (s *Shop) PlaceOrder(ctx context.Context, o Order) (opscore.ID, error) {
	tx, err := s.DB.BeginTx(ctx, nil)
	if err != nil {
		return opscore.ID{}, err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, "INSERT INTO orders (number, customer) VALUES (?, ?)", o.Number, o.Customer); err != nil {
		return opscore.ID{}, fmt.Errorf("keep order %d: %w", o.Number, err)
	}
	sub, err := Charge.Submit(ctx, s.Client, o, sqlite.In(tx))
	if err != nil {
		return opscore.ID{}, err
	}
	return sub.ID, tx.Commit()
}

// Handlers are those of the shop's Go worker.
func (s *Shop) Handlers() opscore.Handlers {
	h := opscore.Handlers{}
	opscore.Handle(h, Charge, s.charge)
	opscore.Handle(h, SendMail, s.sendMail)
	return h
}

// charge may run twice. The bank knows the order's key, and all else happens in the transaction that completes the task.
func (s *Shop) charge(ctx context.Context, o Order) (string, error) {
	key := "order-" + strconv.Itoa(o.Number)
	err := s.Bank.Charge(ctx, key, o.Cents)
	if errors.Is(err, ErrDeclined) {
		return "", opscore.Abort(err) // trying again would not help
	}
	if err != nil {
		return "", err
	}
	opscore.FromContext(ctx).Log.Info("charged", "order", o.Number, "cents", o.Cents)
	tx, err := s.DB.BeginTx(ctx, nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, "UPDATE orders SET paid = 1 WHERE number = ?", o.Number); err != nil {
		return "", err
	}
	if _, err := s.Client.Submit(ctx, s.next(o, sqlite.In(tx))...); err != nil {
		return "", err
	}
	if err := sqlite.Complete(ctx, tx, key); err != nil {
		return "", err
	}
	return key, tx.Commit()
}

// next is what follows a charge: a confirmation, a question two weeks later, and the thumbnail.
func (s *Shop) next(o Order, in opscore.Option) []opscore.Request {
	requests := []opscore.Request{
		SendMail.Request(Mail{o.Customer, fmt.Sprintf("We have charged %d.%02d for order %d.", o.Cents/100, o.Cents%100, o.Number)}, in),
		SendMail.Request(Mail{o.Customer, fmt.Sprintf("How do you like order %d?", o.Number)}, in, opscore.After(14*24*time.Hour)),
	}
	if len(o.Picture) > 0 {
		requests = append(requests, Thumbnail.Request(Picture{o.Picture}, in))
	}
	return requests
}

func (s *Shop) sendMail(ctx context.Context, m Mail) (string, error) {
	if m.To == "" {
		return "", opscore.Abort(errors.New("a mail needs somebody to go to"))
	}
	if err := s.Post.Deliver(ctx, m); err != nil {
		return "", err
	}
	return "delivered to " + m.To, nil
}
