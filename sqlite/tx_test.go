package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/opscoretest"
	"github.com/opscore/opscore/sqlite"
)

type order struct {
	Number int `json:"number"`
}

var charge = opscore.Actor[order, string]{Name: "charge"}

func open(t *testing.T) *sqlite.Store {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "opscore.db"))
}

func openAt(t *testing.T, path string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func exec(t *testing.T, db interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}, query string, args ...any,
) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func count(t *testing.T, db *sql.DB, query string) (n int) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func TestATaskSubmittedInATransactionExistsExactlyIfItCommits(t *testing.T) {
	s := open(t)
	client := &opscore.Client{Store: s}
	exec(t, s.DB(), "CREATE TABLE orders (number INTEGER)")
	for _, commit := range []bool{false, true} {
		tx, err := s.DB().BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		exec(t, tx, "INSERT INTO orders VALUES (1)")
		sub, err := charge.Submit(t.Context(), client, order{1}, sqlite.In(tx), opscore.Unique("order-1"))
		if err != nil || sub.Duplicate {
			t.Fatalf("submit = %+v, %v", sub, err)
		}
		again, err := charge.Submit(t.Context(), client, order{1}, sqlite.In(tx), opscore.Unique("order-1"))
		if err != nil || !again.Duplicate || again.ID != sub.ID {
			t.Errorf("second submit = %+v, %v", again, err)
		}
		// A submit that is refused leaves nothing behind, and the transaction usable.
		part := charge.Request(order{3}, sqlite.In(tx))
		if _, err := client.Submit(t.Context(), part, charge.Request(order{2}, sqlite.In(tx), opscore.WithID(sub.ID))); !errors.Is(err, opscore.ErrConflict) {
			t.Errorf("another task with the id: %v", err)
		}
		if _, err := client.Get(t.Context(), sub.ID); !errors.Is(err, opscore.ErrTaskNotFound) {
			t.Errorf("before the commit: %v", err)
		}
		if !commit {
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Get(t.Context(), sub.ID); !errors.Is(err, opscore.ErrTaskNotFound) {
				t.Errorf("after the rollback: %v", err)
			}
			continue
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		if task, err := client.Get(t.Context(), sub.ID); err != nil || task.State != opscore.Pending {
			t.Errorf("after the commit: %s, %v", task.State, err)
		}
		if n := count(t, s.DB(), "SELECT count(*) FROM opscore_task"); n != 1 {
			t.Errorf("%d tasks, want 1", n)
		}
	}
}

func TestManyTransactionsThatSubmitDoNotBlockEachOther(t *testing.T) {
	s := open(t)
	client := &opscore.Client{Store: s}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			tx, err := s.DB().BeginTx(t.Context(), nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer tx.Rollback()
			if _, err := charge.Submit(t.Context(), client, order{i}, sqlite.In(tx)); err != nil {
				t.Error(err)
				return
			}
			if err := tx.Commit(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := count(t, s.DB(), "SELECT count(*) FROM opscore_task"); n != 20 {
		t.Errorf("%d tasks, want 20", n)
	}
}

func TestASubmitInsideAnotherTransactionOfTheCallersSaysWhatIsMissing(t *testing.T) {
	s := open(t)
	tx, err := s.DB().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	// However many wait, they all wait once.
	began := time.Now()
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			_, err := charge.Submit(t.Context(), &opscore.Client{Store: s}, order{i})
			if !errors.Is(err, opscore.ErrUnavailable) || !strings.Contains(err.Error(), "sqlite.In(tx)") {
				t.Errorf("error = %v", err)
			}
		})
	}
	wg.Wait()
	if waited := time.Since(began); waited > 15*time.Second { // two flushes of 5 s: one write, then the others
		t.Errorf("they waited %s", waited)
	}
}

// chargeIn is a handler that writes its effect and its completion in one transaction.
func chargeIn(db *sql.DB, before func(context.Context)) func(context.Context, order) (string, error) {
	return func(ctx context.Context, o order) (string, error) {
		tx, err := db.BeginTx(context.WithoutCancel(ctx), nil)
		if err != nil {
			return "", err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(context.WithoutCancel(ctx), "INSERT INTO charges VALUES (?)", o.Number); err != nil {
			return "", err
		}
		before(ctx)
		receipt := fmt.Sprintf("charged %d", o.Number)
		if err := sqlite.Complete(ctx, tx, receipt); err != nil {
			return "", err
		}
		return receipt, tx.Commit()
	}
}

func TestAnEffectAndItsTasksCompletionHappenTogether(t *testing.T) {
	h := opscore.Handlers{}
	var db *sql.DB
	opscore.Handle(h, charge, func(ctx context.Context, o order) (string, error) {
		opscore.FromContext(ctx).Log.Info("charging")
		out, err := chargeIn(db, func(context.Context) {})(ctx, o)
		if err == nil {
			err = errors.New("an error after the commit no longer counts")
		}
		return out, err
	})
	opscoretest.Run(t, h, func(t *testing.T, env *opscoretest.Env) {
		db = env.Store.(*sqlite.Store).DB()
		exec(t, db, "CREATE TABLE charges (number INTEGER)")
		sub, err := charge.Submit(t.Context(), env.Client, order{7})
		if err != nil {
			t.Fatal(err)
		}
		task := env.MustComplete(sub.ID)
		if string(task.Result) != `"charged 7"` || task.Attempt != 1 {
			t.Errorf("result %s after %d attempts", task.Result, task.Attempt)
		}
		env.Advance(time.Minute)
		if n := count(t, db, "SELECT count(*) FROM charges"); n != 1 {
			t.Errorf("%d charges", n)
		}
		lines, err := env.Client.Logs(t.Context(), sub.ID)
		if err != nil || len(lines) != 1 {
			t.Errorf("log = %v, %v", lines, err)
		}
	})
}

func TestAnEffectOfALostLeaseIsRolledBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t)
		exec(t, s.DB(), "CREATE TABLE charges (number INTEGER)")
		client := &opscore.Client{Store: s}
		sub, err := charge.Submit(t.Context(), client, order{7})
		if err != nil {
			t.Fatal(err)
		}
		h := opscore.Handlers{}
		var ended error
		handler := chargeIn(s.DB(), func(context.Context) {})
		opscore.Handle(h, charge, func(ctx context.Context, o order) (string, error) {
			run := opscore.FromContext(ctx)
			// Somebody declares this worker dead while the handler works.
			if err := s.Leave(ctx, run.Worker, "test", opscore.Report{}); err != nil {
				t.Error(err)
			}
			if _, err := s.Rescue(ctx); err != nil {
				t.Error(err)
			}
			out, err := handler(ctx, o)
			ended = err
			return out, err
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- (&opscore.Worker{Store: s, Handlers: h}).Run(ctx) }()
		time.Sleep(500 * time.Millisecond)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if !errors.Is(ended, opscore.ErrLeaseLost) {
			t.Errorf("the handler ended with %v", ended)
		}
		if n := count(t, s.DB(), "SELECT count(*) FROM charges"); n != 0 {
			t.Errorf("%d charges of a lost lease", n)
		}
		task, err := client.Get(t.Context(), sub.ID)
		if err != nil || task.State != opscore.Pending || task.Lost != 1 {
			t.Errorf("task is %s, lost %d, %v", task.State, task.Lost, err)
		}
	})
}

func TestCompleteOutsideAHandlerIsRefused(t *testing.T) {
	s := open(t)
	tx, err := s.DB().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if err := sqlite.Complete(t.Context(), tx, "x"); !errors.Is(err, opscore.ErrInvalid) {
		t.Errorf("error = %v", err)
	}
}
