package postgres_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver of the database/sql tests

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/storetest"
)

type order struct {
	Number int `json:"number"`
}

var charge = opscore.Actor[order, string]{Name: "charge"}

// database returns the URL of a migrated database of the test's own.
func database(t *testing.T) string {
	t.Helper()
	return nodes.Database(t, "opscore", func(url string) error {
		return postgres.Migrate(t.Context(), url, postgres.Options{})
	})
}

func open(t *testing.T, url string) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), url, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func harness(t *testing.T) storetest.Harness {
	return storetest.Harness{
		Open: func(string) (opscore.Store, func() error, error) {
			s, err := postgres.Open(t.Context(), database(t), postgres.Options{})
			if err != nil {
				return nil, nil, err
			}
			return s, func() error { s.Close(); return nil }, nil
		},
		Around: func(t *testing.T, test func(*testing.T)) { test(t) },
		Pass: func(s opscore.Store, d time.Duration) {
			if err := s.(*postgres.Store).Age(t.Context(), d); err != nil {
				t.Errorf("age: %v", err)
			}
		},
	}
}

func TestConformance(t *testing.T) { storetest.Run(t, harness(t)) }

func TestDiscarderConformance(t *testing.T) { storetest.RunDiscarder(t, harness(t)) }

func TestOutboxConformance(t *testing.T) { storetest.RunOutbox(t, harness(t)) }

func TestTheStoreBehavesLikeItsModel(t *testing.T) {
	h, url := harness(t), database(t)
	h.Open = func(string) (opscore.Store, func() error, error) { // one database for all histories: to create one takes longer than a history
		s, err := postgres.Open(t.Context(), url, postgres.Options{})
		if err != nil {
			return nil, nil, err
		}
		_, err = s.Pool().Exec(t.Context(), "TRUNCATE opscore.task, opscore.attempt, opscore.log, opscore.worker, opscore.pause")
		return s, func() error { s.Close(); return nil }, err
	}
	storetest.RunModel(t, h)
}

func count(t *testing.T, s *postgres.Store, query string, args ...any) (n int) {
	t.Helper()
	if err := s.Pool().QueryRow(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func TestATaskSubmittedInATransactionExistsExactlyIfItCommits(t *testing.T) {
	url := database(t)
	s := open(t, url)
	client := &opscore.Client{Store: s}
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	// begin returns the option for a new transaction, and what ends it.
	type transaction struct {
		in  opscore.Option
		end func(commit bool) error
	}
	for name, begin := range map[string]func() transaction{
		"pgx": func() transaction {
			tx, err := s.Pool().Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return transaction{postgres.In(tx), func(commit bool) error {
				if commit {
					return tx.Commit(t.Context())
				}
				return tx.Rollback(t.Context())
			}}
		},
		"database/sql": func() transaction {
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			return transaction{postgres.InSQL(tx), func(commit bool) error {
				if commit {
					return tx.Commit()
				}
				return tx.Rollback()
			}}
		},
	} {
		for _, commit := range []bool{false, true} {
			tx := begin()
			r := charge.Request(order{1}, tx.in, opscore.Unique(name), opscore.Labels(map[string]string{"a": "b"}))
			subs, err := client.Submit(t.Context(), r)
			if err != nil || subs[0].Duplicate {
				t.Fatalf("%s: submit = %+v, %v", name, subs, err)
			}
			again, err := charge.Submit(t.Context(), client, order{1}, tx.in, opscore.Unique(name))
			if err != nil || !again.Duplicate || again.ID != subs[0].ID {
				t.Errorf("%s: second submit = %+v, %v", name, again, err)
			}
			// A refused submit leaves the transaction usable.
			if _, err := charge.Submit(t.Context(), client, order{2}, tx.in, opscore.WithID(subs[0].ID)); !errors.Is(err, opscore.ErrConflict) {
				t.Errorf("%s: another task with the id: %v", name, err)
			}
			if _, err := client.Get(t.Context(), subs[0].ID); !errors.Is(err, opscore.ErrTaskNotFound) {
				t.Errorf("%s: before the end: %v", name, err)
			}
			if err := tx.end(commit); err != nil {
				t.Fatal(err)
			}
			task, err := client.Get(t.Context(), subs[0].ID)
			if commit && (err != nil || task.State != opscore.Pending || task.Labels["a"] != "b") || !commit && !errors.Is(err, opscore.ErrTaskNotFound) {
				t.Errorf("%s, commit %v: %+v, %v", name, commit, task, err)
			}
		}
	}
}

// employ runs a worker until the test or the returned function ends it.
func employ(t *testing.T, w *opscore.Worker) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	w.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	w.OnReady = func(opscore.WorkerInfo) { close(ready) }
	go func() { done <- w.Run(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("worker: %v", err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("worker: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// until waits for a condition.
func until(t *testing.T, what string, limit time.Duration, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(limit)
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after %s still not: %s", limit, what)
		}
	}
}

func TestAnEffectAndItsTasksCompletionHappenTogether(t *testing.T) {
	url := database(t)
	s := open(t, url)
	if _, err := s.Pool().Exec(t.Context(), "CREATE TABLE charges (number integer)"); err != nil {
		t.Fatal(err)
	}
	h := opscore.Handlers{}
	lose := map[int]bool{2: true} // orders whose first attempt loses its lease
	opscore.Handle(h, charge, func(ctx context.Context, o order) (string, error) {
		receipt := fmt.Sprintf("charged %d", o.Number)
		return receipt, pgx.BeginFunc(ctx, s.Pool(), func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "INSERT INTO charges VALUES ($1)", o.Number); err != nil {
				return err
			}
			if lose[o.Number] {
				delete(lose, o.Number)
				if _, err := s.Pool().Exec(ctx, "UPDATE opscore.task SET claim_seq = claim_seq + 1, state = 'pending' WHERE id = $1", opscore.FromContext(ctx).ID); err != nil {
					return err
				}
			}
			return s.Complete(ctx, tx, receipt)
		})
	})
	employ(t, &opscore.Worker{Store: s, Handlers: h, Slots: 1})
	client := &opscore.Client{Store: s}
	for n := 1; n <= 2; n++ {
		sub, err := charge.Submit(t.Context(), client, order{n})
		if err != nil {
			t.Fatal(err)
		}
		receipt, err := charge.Wait(t.Context(), client, sub.ID)
		if err != nil || receipt != fmt.Sprintf("charged %d", n) {
			t.Errorf("order %d: %q, %v", n, receipt, err)
		}
		if got := count(t, s, "SELECT count(*) FROM charges WHERE number = $1", n); got != 1 {
			t.Errorf("order %d was charged %d times", n, got)
		}
	}
}

func TestATaskFromAnotherProcessStartsAtOnce(t *testing.T) {
	url := database(t)
	s, other := open(t, url), open(t, url) // two stores know of each other only through the database
	started := make(chan time.Time, 1)
	h := opscore.Handlers{}
	opscore.Handle(h, charge, func(context.Context, order) (string, error) {
		started <- time.Now()
		return "", nil
	})
	employ(t, &opscore.Worker{Store: s, Handlers: h, Sources: []opscore.Source{opscore.FromStore(s, time.Hour)}})
	until(t, "the worker listens", 10*time.Second, func() bool {
		return count(t, s, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'") > 0
	})
	for n := range 5 {
		if _, err := charge.Submit(t.Context(), &opscore.Client{Store: other}, order{n}); err != nil {
			t.Fatal(err)
		}
		select { // polling once an hour, it can only have been told
		case <-started:
		case <-time.After(10 * time.Second):
			t.Fatal("nobody told the worker")
		}
	}
}

func TestAWrongSchemaIsRefusedWithTheCommandThatFixesIt(t *testing.T) {
	empty := nodes.Database(t, "empty", func(string) error { return nil })
	_, err := postgres.Open(t.Context(), empty, postgres.Options{})
	if !errors.Is(err, opscore.ErrUnavailable) || !strings.Contains(err.Error(), "opscore migrate up") {
		t.Errorf("empty database: %v", err)
	}
	url := database(t)
	s := open(t, url)
	for _, tc := range []struct{ change, says string }{
		{"ALTER TABLE opscore.task RENAME COLUMN unique_key TO key", "a column is missing: run `opscore migrate up`"},
		{"INSERT INTO opscore.version (version_id, is_applied) VALUES (99, true)", "version 99, but this binary knows only up to"},
	} {
		if _, err := s.Pool().Exec(t.Context(), tc.change); err != nil {
			t.Fatal(err)
		}
		if _, err = postgres.Open(t.Context(), url, postgres.Options{}); !errors.Is(err, opscore.ErrUnavailable) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", tc.change, err)
		}
	}
	if err := postgres.Migrate(t.Context(), url, postgres.Options{}); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("migrate a newer schema: %v", err)
	}
}

func TestSchemasOfOneDatabaseAreApart(t *testing.T) {
	url := nodes.Database(t, "empty", func(string) error { return nil })
	for _, schema := range []string{"one", "Two"} {
		o := postgres.Options{Schema: schema}
		_, err := postgres.Open(t.Context(), url, o)
		if err == nil || !strings.Contains(err.Error(), "run `opscore migrate up --schema "+schema+"`") {
			t.Errorf("without the schema %s: %v", schema, err)
		}
		if err := postgres.Migrate(t.Context(), url, o); err != nil {
			t.Fatal(err)
		}
		st, err := postgres.Status(t.Context(), url, o)
		if err != nil || st.Current != st.Target || st.Target == 0 {
			t.Errorf("status of %s = %+v, %v", schema, st, err)
		}
		s, err := postgres.Open(t.Context(), url, o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := charge.Submit(t.Context(), &opscore.Client{Store: s}, order{1}); err != nil {
			t.Error(err)
		}
		tx, err := s.Pool().Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := charge.Submit(t.Context(), &opscore.Client{Store: s}, order{2}, s.In(tx)); err != nil {
			t.Error(err)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Error(err)
		}
		if tasks, err := s.List(t.Context(), opscore.Filter{}); err != nil || len(tasks) != 2 {
			t.Errorf("%s has %d tasks, %v", schema, len(tasks), err)
		}
		s.Close()
	}
	for _, bad := range []string{"a b", `x"; DROP SCHEMA one; --`, "1a", strings.Repeat("x", 64)} {
		if _, err := postgres.Open(t.Context(), url, postgres.Options{Schema: bad}); !errors.Is(err, opscore.ErrInvalid) {
			t.Errorf("schema %q: %v", bad, err)
		}
	}
}

// catalog is all of a schema that its name leaves open: columns, defaults, storage, indexes, constraints, and the versions noted.
const catalog = `SELECT string_agg(line, E'\n' ORDER BY line) FROM (
	SELECT format('%s.%s %s %s %s %s', table_name, column_name, data_type, is_nullable, column_default, identity_generation) AS line
		FROM information_schema.columns WHERE table_schema = 'opscore'
	UNION ALL SELECT format('%s %s', relname, reloptions) FROM pg_class WHERE relnamespace = 'opscore'::regnamespace
	UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'opscore'
	UNION ALL SELECT conrelid::regclass || pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'opscore'::regnamespace
	UNION ALL SELECT format('version %s %s', version_id, is_applied) FROM opscore.version) lines`

func TestThePrintedSQLMakesWhatMigrateMakes(t *testing.T) {
	byHand := nodes.Database(t, "empty", func(string) error { return nil })
	text, err := postgres.MigrationSQL(postgres.Options{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), byHand)
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.Exec(t.Context(), text)
	if err := errors.Join(err, conn.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	st, err := postgres.Status(t.Context(), byHand, postgres.Options{})
	if err != nil || st.Current != st.Target {
		t.Errorf("status = %+v, %v", st, err)
	}
	var catalogs [2]string
	for i, url := range []string{byHand, database(t)} {
		if err := open(t, url).Pool().QueryRow(t.Context(), catalog).Scan(&catalogs[i]); err != nil {
			t.Fatal(err)
		}
	}
	if catalogs[0] != catalogs[1] || len(catalogs[0]) < 1000 {
		t.Errorf("by hand:\n%s\n\nmigrated:\n%s", catalogs[0], catalogs[1])
	}
	if err := postgres.Migrate(t.Context(), byHand, postgres.Options{}); err != nil {
		t.Errorf("migrate what was made by hand: %v", err)
	}
	if text, err = postgres.MigrationSQL(postgres.Options{}, st.Target); err != nil || text != "" {
		t.Errorf("of an up to date schema: %q, %v", text, err)
	}
	if _, err := postgres.MigrationSQL(postgres.Options{Schema: "a b"}, 0); !errors.Is(err, opscore.ErrInvalid) {
		t.Errorf("of a schema with a bad name: %v", err)
	}
}

func TestMigrationsThatStartAtOnceTakeTurns(t *testing.T) {
	url := nodes.Database(t, "empty", func(string) error { return nil })
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() { errs <- postgres.Migrate(t.Context(), url, postgres.Options{}) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	open(t, url)
}

func TestASilentFallBackToPlainTextIsRefused(t *testing.T) {
	for url, refused := range map[string]bool{
		"postgres://u:p@canary@db.example.com/x":                   true,
		"postgres://u:canary@db.example.com/x":                     true, // prefer is the default
		"postgres://u:canary@db.example.com/x?sslmode=prefer":      true,
		"postgres://u:canary@db.example.com/x?sslmode=allow":       true,
		"postgres://u:canary@db.example.com/x?sslmode=disable":     false,
		"postgres://u:canary@db.example.com/x?sslmode=require":     false,
		"postgres://u:canary@127.0.0.1:1/x?sslmode=prefer":         false,
		"postgres://u:canary@localhost:1/x":                        false,
		"postgres://u:canary@[::1]:1/x":                            false,
		"host=/var/run/postgresql user=u password=canary dbname=x": false,
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := postgres.Open(ctx, url, postgres.Options{})
		cancel()
		if err == nil {
			t.Fatalf("%s was opened", url)
		}
		if got := errors.Is(err, opscore.ErrInvalid); got != refused {
			t.Errorf("%s: refused %v, want %v: %v", url, got, refused, err)
		}
		if strings.Contains(err.Error(), "canary") {
			t.Errorf("the error holds the password: %v", err)
		}
	}
	for _, malformed := range []string{
		"postgres://u:canary@:bad:/x", `host=db password='it\'s canary tail' sslmode=bogus`, `password=a\ canary sslmode=bogus`,
	} {
		if _, err := postgres.Open(t.Context(), malformed, postgres.Options{}); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("malformed URL: %v", err)
		}
	}
}

// asRole returns the URL of a login that has one of the roles of docs/operations/postgres.md, granted as it says.
func asRole(t *testing.T, s *postgres.Store, to, role string) string {
	t.Helper()
	login := role + "_login"
	for _, text := range []string{
		"DROP ROLE IF EXISTS " + login,
		"CREATE ROLE " + login + " LOGIN IN ROLE " + role,
	} {
		if _, err := s.Pool().Exec(t.Context(), text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(login)
	return u.String()
}

func TestEachRoleCanDoItsPartAndNoMore(t *testing.T) {
	node := nodes.Own(t) // roles belong to a server
	admin := node.URL("postgres")
	if err := postgres.Migrate(t.Context(), admin, postgres.Options{}); err != nil {
		t.Fatal(err)
	}
	s := open(t, admin)
	page, err := os.ReadFile("../docs/operations/postgres.md")
	if err != nil {
		t.Fatal(err)
	}
	_, grants, _ := strings.Cut(string(page), "```sql\n")
	grants, _, ok := strings.Cut(grants, "```")
	if !ok || !strings.Contains(grants, "GRANT") {
		t.Fatal("the page has no grants")
	}
	if _, err := s.Pool().Exec(t.Context(), grants); err != nil {
		t.Fatalf("the grants of the page: %v", err)
	}
	submitter := open(t, asRole(t, s, admin, "opscore_submit"))
	worker := open(t, asRole(t, s, admin, "opscore_worker"))
	reader := open(t, asRole(t, s, admin, "opscore_read"))

	client := &opscore.Client{Store: submitter}
	h := opscore.Handlers{}
	opscore.Handle(h, charge, func(ctx context.Context, o order) (string, error) {
		opscore.FromContext(ctx).Log.Info("charging")
		if opscore.FromContext(ctx).Attempt == 1 {
			return "", opscore.RetryAfter(0, errors.New("first"))
		}
		return "charged", nil
	})
	employ(t, &opscore.Worker{Store: worker, Handlers: h})
	sub, err := charge.Submit(t.Context(), client, order{1}, opscore.Unique("k"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := charge.Submit(t.Context(), client, order{1}, opscore.Unique("k"))
	if err != nil || again.ID != sub.ID {
		t.Errorf("duplicate = %+v, %v", again, err)
	}
	if receipt, err := charge.Wait(t.Context(), client, sub.ID); err != nil || receipt != "charged" {
		t.Errorf("wait = %q, %v", receipt, err)
	}
	for name, chore := range map[string]func() error{
		"rescue": func() error { _, err := worker.Rescue(t.Context()); return err },
		"expire": func() error { _, err := worker.Expire(t.Context()); return err },
		"prune": func() error {
			_, err := worker.Prune(t.Context(), opscore.Retention{Default: opscore.Keep{Completed: time.Microsecond}})
			return err
		},
		"pause":  func() error { return worker.Pause(t.Context(), []string{"q"}, "ann", "") },
		"resume": func() error { return worker.Resume(t.Context(), []string{"q"}) },
		"read":   func() error { _, err := reader.List(t.Context(), opscore.Filter{}); return err },
		"adopt":  func() error { return second(worker.Adopt(t.Context(), opscore.Claim{}, messages('a', 2))) },
		"keep": func() error {
			return second(worker.KeepOrphans(t.Context(), []opscore.Orphan{{ID: sub.ID}, {ID: opscore.ID{9}}}))
		},
		"orphan": func() error { return second(reader.ListOrphans(t.Context(), opscore.OrphanFilter{})) },
	} {
		if err := chore(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for what, forbidden := range map[string]error{
		"a submitter cancels": second(submitter.Cancel(t.Context(), []opscore.ID{sub.ID}, "eve")),
		"a submitter claims":  second(submitter.Claim(t.Context(), opscore.Claim{IDs: []opscore.ID{sub.ID}, Actors: []string{"charge"}, Max: 1})),
		"a submitter pauses":  submitter.Pause(t.Context(), []string{"q"}, "eve", ""),
		"a reader submits":    second(charge.Submit(t.Context(), &opscore.Client{Store: reader}, order{2})),
		"a submitter keeps":   second(submitter.KeepOrphans(t.Context(), []opscore.Orphan{{ID: sub.ID}})),
		"a reader drops":      second(reader.DropOrphans(t.Context(), []opscore.ID{sub.ID})),
		"a reader pauses":     reader.Pause(t.Context(), []string{"q"}, "eve", ""),
		"a worker migrates":   second(worker.Pool().Exec(t.Context(), "ALTER TABLE opscore.task ADD COLUMN x integer")),
	} {
		var pg *pgconn.PgError
		if !errors.As(forbidden, &pg) || pg.Code != "42501" {
			t.Errorf("%s: %v", what, forbidden)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestALockedTaskHoldsNobodyUp(t *testing.T) {
	s := open(t, database(t))
	fill(t, s, 5)
	w := opscore.WorkerInfo{ID: opscore.ID{1}, Queues: []string{"default"}, Actors: []string{"charge"}, State: opscore.WorkerReady}
	if err := s.Register(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	claim := func() []opscore.Task {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		got, err := s.Claim(ctx, opscore.Claim{Worker: w.ID, Queues: w.Queues, Actors: w.Actors, Max: 10})
		if err != nil {
			t.Fatal(err)
		}
		return got.Tasks
	}
	tx, err := s.Pool().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var held opscore.ID
	if err := tx.QueryRow(t.Context(), "SELECT id FROM opscore.task ORDER BY id LIMIT 1 FOR UPDATE").Scan(&held); err != nil {
		t.Fatal(err)
	}
	if got := claim(); len(got) != 4 {
		t.Errorf("claimed %d beside a locked task, want 4", len(got))
	}
	if got := claim(); len(got) != 0 {
		t.Errorf("claimed the locked task: %v", got)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := claim(); len(got) != 1 || got[0].ID != held {
		t.Errorf("when the lock is gone the claim is %v, want %s", got, held)
	}
}

func TestTheHotPathKeepsToItsIndexesWhateverTheStatistics(t *testing.T) {
	s := open(t, database(t))
	fill(t, s, 2000)
	for _, tc := range []struct{ now, change string }{
		{"all wait", "SELECT"},
		{"all are completed", "UPDATE opscore.task SET state = 'completed', finished_at = clock_timestamp()"},
		{"there are none", "DELETE FROM opscore.task"},
	} {
		for _, text := range []string{tc.change, "VACUUM ANALYZE opscore.task"} {
			if _, err := s.Pool().Exec(t.Context(), text); err != nil {
				t.Fatal(err)
			}
		}
		for i, h := range postgres.HotPath {
			plan := planOf(t, s, h.SQL, h.Parameters)
			for _, m := range scan.FindAllStringSubmatch(plan, -1) {
				if m[1] != h.Index && m[0] != "Tid Scan on task" {
					t.Errorf("%s: statement %d has a %q, want %s:\n%s", tc.now, i, m[0], h.Index, plan)
				}
			}
			if !strings.Contains(plan, h.Index) {
				t.Errorf("%s: statement %d does not read tasks by %s:\n%s", tc.now, i, h.Index, plan)
			}
		}
	}
}

var scan = regexp.MustCompile(`[A-Z]\w+(?: \w+)* Scan(?: using (\w+))? on task\b`)

// planOf is how the server runs a statement of the hot path.
func planOf(t *testing.T, s *postgres.Store, text string, parameters int) (plan string) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), s.Pool(), func(tx pgx.Tx) error {
		nulls := strings.TrimSuffix(strings.Repeat("NULL, ", parameters), ", ")
		for _, text := range []string{postgres.Steer, "PREPARE hot AS " + text} {
			if _, err := tx.Exec(t.Context(), text, pgx.QueryExecModeSimpleProtocol); err != nil {
				return err
			}
		}
		rows, err := tx.Query(t.Context(), "EXPLAIN EXECUTE hot ("+nulls+")", pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			return err
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		plan = strings.Join(lines, "\n")
		_, free := tx.Exec(t.Context(), "DEALLOCATE hot", pgx.QueryExecModeSimpleProtocol)
		return errors.Join(err, free)
	})
	if err != nil {
		t.Fatal(err)
	}
	return plan
}
