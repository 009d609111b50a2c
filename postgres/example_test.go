package postgres_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // for database/sql

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
)

type Order struct{ ID int }

type Receipt struct{ Order int }

var (
	Confirm = opscore.Actor[Order, string]{Name: "confirm"}
	Charge  = opscore.Actor[Order, Receipt]{Name: "charge_order", Retry: opscore.Backoff{Base: time.Millisecond}}
)

// exampleDatabase returns the URL of a migrated database that an application has made its tables in, and what drops it.
func exampleDatabase(tables string) (url string, drop func()) {
	ctx := context.Background()
	migrate := func(url string) error { return postgres.Migrate(ctx, url, postgres.Options{}) }
	url, dropDatabase, err := nodes.NewDatabase("opscore", migrate)
	if err != nil {
		panic(err)
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		panic(err)
	}
	_, err = conn.Exec(ctx, tables)
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		panic(err)
	}
	return url, func() {
		if err := dropDatabase(); err != nil {
			panic(err)
		}
	}
}

// A task that is submitted in a transaction exists exactly if that commits.
func ExampleIn() {
	url, drop := exampleDatabase("CREATE TABLE orders (id integer PRIMARY KEY)")
	defer drop()
	ctx, stop := context.WithCancel(context.Background())
	store, err := postgres.Open(ctx, url, postgres.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	handlers := opscore.Handlers{}
	opscore.Handle(handlers, Confirm, func(_ context.Context, o Order) (string, error) {
		return fmt.Sprintf("order %d is confirmed", o.ID), nil
	})
	stopped := make(chan error)
	go func() { stopped <- (&opscore.Worker{Store: store, Handlers: handlers}).Run(ctx) }()

	client := &opscore.Client{Store: store}
	place := func(o Order) (sub opscore.Submission, err error) {
		err = pgx.BeginFunc(ctx, store.Pool(), func(tx pgx.Tx) error {
			if sub, err = Confirm.Submit(ctx, client, o, postgres.In(tx)); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "INSERT INTO orders (id) VALUES ($1)", o.ID)
			return err
		})
		return sub, err
	}
	committed, err := place(Order{ID: 7})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(Confirm.Wait(ctx, client, committed.ID))
	rolledBack, err := place(Order{ID: 7}) // the order exists already
	fmt.Println("placed twice:", err == nil)
	_, err = client.Get(ctx, rolledBack.ID)
	fmt.Println("confirmed twice:", !errors.Is(err, opscore.ErrTaskNotFound))

	stop()
	fmt.Println(<-stopped)
	// Output:
	// order 7 is confirmed <nil>
	// placed twice: false
	// confirmed twice: false
	// <nil>
}

// Any driver of database/sql will do.
func ExampleInSQL() {
	url, drop := exampleDatabase("CREATE TABLE orders (id integer PRIMARY KEY)")
	defer drop()
	ctx := context.Background()
	store, err := postgres.Open(ctx, url, postgres.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	db, err := sql.Open("pgx", url)
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	client := &opscore.Client{Store: store}

	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, "INSERT INTO orders (id) VALUES ($1)", 7); err != nil {
		log.Fatal(err)
	}
	sub, err := Confirm.Submit(ctx, client, Order{ID: 7}, postgres.InSQL(tx))
	if err != nil {
		log.Fatal(err)
	}
	_, err = client.Get(ctx, sub.ID)
	fmt.Println("before the commit:", errors.Is(err, opscore.ErrTaskNotFound))
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}
	task, err := client.Get(ctx, sub.ID)
	fmt.Println("after it:", task.State, err)
	// Output:
	// before the commit: true
	// after it: pending <nil>
}

// oneCommitFails makes the first commit of a charge fail at its very end, as if the connection had broken.
const oneCommitFails = `
	CREATE TABLE charges (order_id integer);
	CREATE SEQUENCE commits;
	CREATE FUNCTION fail_first() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF nextval('commits') = 1 THEN RAISE 'the first commit fails'; END IF;
		RETURN NULL;
	END $$;
	CREATE CONSTRAINT TRIGGER fail_first AFTER INSERT ON charges DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION fail_first();`

// A handler's effects and the completion of its task happen together, exactly once: here the first attempt's commit fails, and
// takes both back.
func ExampleStore_Complete() {
	url, drop := exampleDatabase(oneCommitFails)
	defer drop()
	ctx, stop := context.WithCancel(context.Background())
	store, err := postgres.Open(ctx, url, postgres.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	handlers := opscore.Handlers{}
	opscore.Handle(handlers, Charge, func(ctx context.Context, o Order) (Receipt, error) {
		receipt := Receipt{Order: o.ID}
		err := pgx.BeginFunc(ctx, store.Pool(), func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "INSERT INTO charges (order_id) VALUES ($1)", o.ID); err != nil {
				return err
			}
			return store.Complete(ctx, tx, receipt)
		})
		return receipt, err
	})
	stopped := make(chan error)
	go func() { stopped <- (&opscore.Worker{Store: store, Handlers: handlers}).Run(ctx) }()

	client := &opscore.Client{Store: store}
	sub, err := Charge.Submit(ctx, client, Order{ID: 7})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(Charge.Wait(ctx, client, sub.ID))
	task, err := client.Get(ctx, sub.ID)
	if err != nil {
		log.Fatal(err)
	}
	var charges int
	if err := store.Pool().QueryRow(ctx, "SELECT count(*) FROM charges").Scan(&charges); err != nil {
		log.Fatal(err)
	}
	fmt.Println("attempts:", task.Attempt, "charges:", charges)

	stop()
	fmt.Println(<-stopped)
	// Output:
	// {7} <nil>
	// attempts: 2 charges: 1
	// <nil>
}

func TestThePageShowsCodeOfTheExamples(t *testing.T) {
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../docs/operations/postgres.md")
	if err != nil {
		t.Fatal(err)
	}
	body := strings.ReplaceAll(string(source), "\n\t", "\n") // as in a function
	blocks := strings.Split(string(page), "```go\n")[1:]
	for _, block := range blocks {
		code, _, _ := strings.Cut(block, "```")
		if !strings.Contains(body, "\n"+code) {
			t.Errorf("example_test.go does not have this code of the page:\n%s", code)
		}
	}
	if len(blocks) == 0 {
		t.Error("the page shows no code")
	}
}
