package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

func TestTheFileIsItsOwnersOnly(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "new", "dir", "opscore.db")
	s := openAt(t, path)
	if _, err := charge.Submit(t.Context(), &opscore.Client{Store: s}, order{1}); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]os.FileMode{path: 0o600, path + "-wal": 0o600, path + "-shm": 0o600, filepath.Dir(path): 0o700} {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", file, got, want)
		}
	}
}

func TestAPathThatCannotBeTrustedIsRefused(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link := filepath.Join(dir, "link.db")
	if err := os.Symlink(write("target.db", ""), link); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o1777); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ path, says string }{
		{link, "not a regular file"},
		{filepath.Join(open, "x.db"), "writable by everybody"},
		{write("text.db", strings.Repeat("this is not a database\n", 100)), "not a SQLite database"},
		{filepath.Join(write("file", ""), "x.db"), "not a directory"},
		{dir, "not a regular file"},
	} {
		s, err := sqlite.Open(tc.path)
		if err == nil {
			t.Errorf("%s was opened", tc.path)
			_ = s.Close()
			continue
		}
		if !errors.Is(err, opscore.ErrUnavailable) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: error = %v, want it to say %q", tc.path, err, tc.says)
		}
	}
	if _, err := os.Stat(filepath.Join(open, "x.db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file was left in a directory that was refused: %v", err)
	}
}

func TestAFileOfANewerVersionIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "opscore.db")
	s, err := sqlite.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	before, err := sqlite.Status(path)
	if err != nil || before.Current != before.Target || before.Target == 0 {
		t.Fatalf("status = %+v, %v", before, err)
	}
	exec(t, s.DB(), "INSERT INTO opscore_version (version_id, is_applied) VALUES (99, 1)")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = sqlite.Open(path)
	if !errors.Is(err, opscore.ErrUnavailable) || !strings.Contains(err.Error(), "schema version 99") || !strings.Contains(err.Error(), "newer opscore") {
		t.Errorf("error = %v", err)
	}
	if after, err := sqlite.Status(path); err != nil || after.Current != 99 {
		t.Errorf("status = %+v, %v", after, err)
	}
}

func TestThePrintedSQLMakesWhatAnOpenMakes(t *testing.T) {
	dir := t.TempDir()
	byHand := filepath.Join(dir, "by-hand.db")
	text, err := sqlite.MigrationSQL(0)
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", byHand)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), text)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	st, err := sqlite.Status(byHand)
	if err != nil || st.Current != st.Target {
		t.Errorf("status = %+v, %v", st, err)
	}
	var schemas [2]string
	for i, path := range []string{byHand, filepath.Join(dir, "opened.db")} {
		err := openAt(t, path).DB().QueryRowContext(t.Context(), `
			SELECT group_concat(line, char(10)) FROM (
				SELECT sql AS line FROM sqlite_schema WHERE sql <> ''
				UNION ALL SELECT 'version ' || version_id || ' ' || is_applied FROM opscore_version ORDER BY 1)`).Scan(&schemas[i])
		if err != nil {
			t.Fatal(err)
		}
		schemas[i] = strings.Join(strings.Fields(schemas[i]), " ")
	}
	if schemas[0] != schemas[1] || len(schemas[0]) < 1000 {
		t.Errorf("by hand:\n%s\n\nopened:\n%s", schemas[0], schemas[1])
	}
	if text, err = sqlite.MigrationSQL(st.Target); err != nil || text != "" {
		t.Errorf("of an up to date file: %q, %v", text, err)
	}
}

func TestStatusOfAMissingFileCreatesNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "opscore.db")
	st, err := sqlite.Status(path)
	if err != nil || st.Current != 0 || st.Target == 0 {
		t.Errorf("status = %+v, %v", st, err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file was created: %v", err)
	}
}

// TestAFullDiskStopsClaimsAndLosesNothing limits the file's pages, which SQLite reports exactly like a full disk.
func TestAFullDiskStopsClaimsAndLosesNothing(t *testing.T) {
	s := open(t)
	client := &opscore.Client{Store: s}
	ctx := t.Context()
	big := opscore.Actor[string, string]{Name: "big"}
	if err := s.LimitPages(200); err != nil {
		t.Fatal(err)
	}
	stored := 0
	var err error
	for range 1000 {
		if _, err = big.Submit(ctx, client, strings.Repeat("x", 10_000)); err != nil {
			break
		}
		stored++
	}
	if !errors.Is(err, opscore.ErrUnavailable) || !strings.Contains(err.Error(), "disk is full") || stored == 0 {
		t.Fatalf("after %d tasks: %v", stored, err)
	}
	if n := count(t, s.DB(), "SELECT count(*) FROM opscore_task"); n != stored {
		t.Errorf("%d tasks are stored, %d were acknowledged", n, stored)
	}
	if err := s.LimitPages(1 << 30); err != nil {
		t.Fatal(err)
	}
	h := opscore.Handlers{}
	opscore.Handle(h, big, func(_ context.Context, in string) (string, error) { return fmt.Sprint(len(in)), nil })
	work(t, s, h, stored)
	var check string
	if err := s.DB().QueryRowContext(ctx, "PRAGMA integrity_check").Scan(&check); err != nil || check != "ok" {
		t.Errorf("integrity check: %s, %v", check, err)
	}
}

func TestAReadOnlyFileStopsClaimsUntilItCanBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t)
		client := &opscore.Client{Store: s}
		sub, err := charge.Submit(t.Context(), client, order{1})
		if err != nil {
			t.Fatal(err)
		}
		var log strings.Builder
		h := opscore.Handlers{}
		ran := 0
		opscore.Handle(h, charge, func(context.Context, order) (string, error) {
			ran++
			return "", nil
		})
		if err := s.SetReadOnly(true); err != nil {
			t.Fatal(err)
		}
		if _, err := charge.Submit(t.Context(), client, order{2}); !errors.Is(err, opscore.ErrUnavailable) || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("submit: %v", err)
		}
		if err := s.SetReadOnly(false); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ready, done := make(chan struct{}), make(chan error, 1)
		w := &opscore.Worker{Store: s, Handlers: h, Log: slog.New(slog.NewTextHandler(&log, nil)), OnReady: func(opscore.WorkerInfo) {
			if err := s.SetReadOnly(true); err != nil {
				t.Error(err)
			}
			close(ready)
		}}
		if err := client.Pause(t.Context(), "default", "ann", ""); err != nil {
			t.Fatal(err)
		}
		go func() { done <- w.Run(ctx) }()
		<-ready
		time.Sleep(time.Minute)
		if ran != 0 {
			t.Error("a task ran although its claim could not be written")
		}
		if err := s.SetReadOnly(false); err != nil {
			t.Fatal(err)
		}
		if err := client.Resume(t.Context(), "default"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * opscore.HeartbeatEvery)
		task, err := client.Get(t.Context(), sub.ID)
		if err != nil || task.State != opscore.Completed || ran != 1 {
			t.Errorf("task is %s after %d runs, %v", task.State, ran, err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if !strings.Contains(log.String(), "read-only") {
			t.Errorf("the log does not say why: %s", log.String())
		}
	})
}

func TestAWorkerWhoseFileIsNoLongerItsOwnStopsClaiming(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, path string, s *sqlite.Store){
		"removed": func(t *testing.T, path string, _ *sqlite.Store) {
			if err := os.Rename(path, path+".old"); err != nil {
				t.Fatal(err)
			}
		},
		"from a newer version": func(t *testing.T, _ string, s *sqlite.Store) {
			exec(t, s.DB(), "INSERT INTO opscore_version (version_id, is_applied) VALUES (99, 1)")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "opscore.db")
				s := openAt(t, path)
				h := opscore.Handlers{}
				ran := false
				opscore.Handle(h, charge, func(context.Context, order) (string, error) {
					ran = true
					return "", nil
				})
				var log strings.Builder
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				w := &opscore.Worker{Store: s, Handlers: h, Log: slog.New(slog.NewTextHandler(&log, nil))}
				go func() { done <- w.Run(ctx) }()
				time.Sleep(time.Second)
				change(t, path, s)
				time.Sleep(opscore.LeaseFor)
				if _, err := charge.Submit(t.Context(), &opscore.Client{Store: s}, order{1}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				if ran {
					t.Error("a task was claimed")
				}
				if !strings.Contains(log.String(), "heartbeat failed") {
					t.Errorf("the log does not say why: %s", log.String())
				}
			})
		})
	}
}

func TestAWorkerThatCannotRegisterLeavesNoLockBehind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "opscore.db")
	s := openAt(t, path)
	if err := s.SetReadOnly(true); err != nil {
		t.Fatal(err)
	}
	if err := s.Register(t.Context(), opscore.WorkerInfo{ID: opscore.ID{1}}); !errors.Is(err, opscore.ErrUnavailable) {
		t.Errorf("register: %v", err)
	}
	locks, err := os.ReadDir(path + ".workers")
	if err != nil || len(locks) != 0 {
		t.Errorf("locks: %v, %v", locks, err)
	}
}

func TestADamagedFileIsReported(t *testing.T) {
	path := filepath.Join(t.TempDir(), "opscore.db")
	s, err := sqlite.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	requests := make([]opscore.Request, 500)
	for i := range requests {
		requests[i] = charge.Request(order{i})
	}
	if _, err := (&opscore.Client{Store: s}).Submit(t.Context(), requests...); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	// The schema lies in the first pages; tasks and their indexes follow.
	if _, err := f.WriteAt([]byte(strings.Repeat("damage", 20_000)), info.Size()-120_000); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = sqlite.Open(path); err == nil { // the damage may lie where opening does not look
		_, err = (&opscore.Client{Store: s}).Count(t.Context())
		_ = s.Close()
	}
	if !errors.Is(err, opscore.ErrUnavailable) || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("error = %v", err)
	}
}

// work runs a worker in real time until n tasks are completed.
func work(t *testing.T, s *sqlite.Store, h opscore.Handlers, n int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	finished := make(chan struct{}, n)
	w := &opscore.Worker{Store: s, Handlers: h, OnEvent: func(e opscore.Event) {
		if e.Kind == opscore.EventFinished && e.State == opscore.Completed {
			finished <- struct{}{}
		}
	}}
	go func() { done <- w.Run(ctx) }()
	for range n {
		select {
		case <-finished:
		case err := <-done:
			t.Fatalf("worker: %v", err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
