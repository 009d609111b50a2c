package sqlite_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

func inspect(t *testing.T, path string) *opscore.DatabaseFacts {
	t.Helper()
	f, err := (sqlite.Inspector{Path: path}).Gather(t.Context(), &opscore.Facts{})
	if err != nil || f.Database.Reached != opscore.DatabaseOpen {
		t.Fatalf("facts = %+v, %v", f.Database, err)
	}
	return f.Database
}

func TestThatNobodySaysWhatIsFreeIsNotAFullDisk(t *testing.T) {
	if n := sqlite.FreeBytes(filepath.Join(t.TempDir(), "missing")); n != nil {
		t.Errorf("%d bytes are free", *n)
	}
}

func TestInspectorNamesWhoKeepsTheWriteLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "opscore.db")
	s, err := sqlite.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	want, err := s.Endpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := inspect(t, path); len(d.Locks) != 0 || d.ReadOnly || d.Free == nil || *d.Free == 0 || d.WAL == 0 || d.Endpoint != want {
		t.Errorf("at rest: %+v", d)
	}
	backup, err := os.Open(path) // that locks the file in a way that is nothing to SQLite
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = backup.Close() })
	if err := syscall.Flock(int(backup.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if d := inspect(t, path); len(d.Locks) != 0 {
		t.Errorf("beside a flock: %+v", d)
	}
	tx, err := s.DB().BeginTx(t.Context(), nil) // immediate
	if err != nil {
		t.Fatal(err)
	}
	d := inspect(t, path)
	if len(d.Locks) != 1 || d.Locks[0].Holder.PID != os.Getpid() || d.Locks[0].Holder.App != "sqlite.test" || d.Locks[0].Holder.State == "" || d.Locks[0].On != "file" {
		t.Errorf("in a transaction: %+v", d)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	// Many short transactions are none.
	client := &opscore.Client{Store: s}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if _, err := client.Submit(ctx, opscore.NewRequest("act", []byte("{}"))); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	}()
	for range 3 {
		if d := inspect(t, path); len(d.Locks) != 0 {
			t.Errorf("at work: %+v", d)
		}
	}
	cancel()
	<-done
	if tx, err = s.DB().BeginTx(t.Context(), nil); err != nil {
		t.Fatal("the locks of this process were lost: ", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Error(err)
	}
	if _, err := (sqlite.Inspector{Path: path + "x"}).Gather(t.Context(), &opscore.Facts{}); !errors.Is(err, opscore.ErrUnavailable) {
		t.Errorf("no such file: %v", err)
	}
}
