package postgres_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
)

type Order struct{ ID int }

type Receipt struct{ Order int }

var Charge = opscore.Actor[Order, Receipt]{Name: "charge"}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// A task that is submitted in a transaction exists exactly if the transaction commits.
func ExampleIn() {
	ctx := context.Background()
	url, stop := exampleDatabase(ctx)
	defer stop()
	store, err := postgres.Open(ctx, url, postgres.Options{})
	check(err)
	defer store.Close()
	pool, err := pgxpool.New(ctx, url)
	check(err)
	defer pool.Close()
	client := &opscore.Client{Store: store}

	placeOrder := func(id int, paid bool) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "INSERT INTO orders (id) VALUES ($1)", id); err != nil {
				return err
			}
			if _, err := Charge.Submit(ctx, client, Order{id}, postgres.In(tx)); err != nil {
				return err
			}
			if !paid {
				return errors.New("no way to pay") // rolls back
			}
			return nil
		})
	}
	fmt.Println(placeOrder(1, true))
	fmt.Println(placeOrder(2, false))
	tasks, err := client.List(ctx, opscore.Filter{Actor: "charge"})
	check(err)
	for _, t := range tasks {
		t, err = client.Get(ctx, t.ID)
		check(err)
		fmt.Println(t.State, string(t.Args))
	}
	// Output:
	// <nil>
	// no way to pay
	// pending {"ID":1}
}

// InSQL does for database/sql, and any driver of it, what In does for pgx.
func ExampleInSQL() {
	ctx := context.Background()
	url, stop := exampleDatabase(ctx)
	defer stop()
	store, err := postgres.Open(ctx, url, postgres.Options{})
	check(err)
	defer store.Close()
	db, err := sql.Open("pgx", url)
	check(err)
	defer func() { check(db.Close()) }()
	client := &opscore.Client{Store: store}

	for id, end := range []func(*sql.Tx) error{(*sql.Tx).Commit, (*sql.Tx).Rollback} {
		tx, err := db.BeginTx(ctx, nil)
		check(err)
		_, err = tx.ExecContext(ctx, "INSERT INTO orders (id) VALUES ($1)", id)
		check(err)
		_, err = Charge.Submit(ctx, client, Order{id}, postgres.InSQL(tx))
		check(err)
		check(end(tx))
	}
	counts, err := client.Count(ctx)
	check(err)
	fmt.Println(counts)
	// Output: [{default charge pending 1}]
}

// A handler that writes its effects in the transaction that completes its task does so exactly once: if the worker is
// cut off in the middle, or another has taken the task over, nothing of it remains.
func ExampleStore_Complete() {
	ctx, cancel := context.WithCancel(context.Background())
	url, stop := exampleDatabase(ctx)
	defer stop()
	store, err := postgres.Open(ctx, url, postgres.Options{})
	check(err)
	defer store.Close()

	handlers := opscore.Handlers{}
	opscore.Handle(handlers, Charge, func(ctx context.Context, o Order) (Receipt, error) {
		receipt := Receipt{Order: o.ID}
		err := pgx.BeginFunc(ctx, store.Pool(), func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "INSERT INTO orders (id) VALUES ($1)", o.ID); err != nil {
				return err
			}
			return store.Complete(ctx, tx, receipt) // ErrLeaseLost rolls back
		})
		return receipt, err
	})
	stopped := make(chan error)
	go func() { stopped <- (&opscore.Worker{Store: store, Handlers: handlers}).Run(ctx) }()

	client := &opscore.Client{Store: store}
	sub, err := Charge.Submit(ctx, client, Order{7})
	check(err)
	receipt, err := Charge.Wait(ctx, client, sub.ID)
	check(err)
	var orders int
	check(store.Pool().QueryRow(ctx, "SELECT count(*) FROM orders").Scan(&orders))
	fmt.Println(receipt.Order, orders)
	cancel()
	check(<-stopped)
	// Output: 7 1
}

// exampleDatabase starts a server for one example, with its tables.
func exampleDatabase(ctx context.Context) (url string, stop func()) {
	server, err := nodes.StartPostgres(ctx)
	check(err)
	url = server.URL("postgres")
	check(postgres.Migrate(ctx, url, postgres.Options{}))
	conn, err := pgx.Connect(ctx, url)
	check(err)
	_, err = conn.Exec(ctx, "CREATE TABLE orders (id integer PRIMARY KEY)")
	check(errors.Join(err, conn.Close(ctx)))
	return url, func() { check(server.Close()) }
}
