package nodes

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn
}

func run(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func text(t *testing.T, conn *pgx.Conn, sql string) (got string) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), sql).Scan(&got); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return got
}

func TestServerIsAsDurableAsAProductionOne(t *testing.T) {
	p := Own(t, "work_mem = '5MB'")
	conn := connect(t, p.URL("postgres"))
	for setting, want := range map[string]string{
		"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "server_encoding": "UTF8", "lc_collate": "C",
		"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "work_mem": "5MB",
	} {
		if setting == "lc_collate" { // a setting up to PostgreSQL 15
			if got := text(t, conn, "SELECT datcollate FROM pg_database WHERE datname = 'postgres'"); got != want {
				t.Errorf("the collation is %q, want %q", got, want)
			}
			continue
		}
		if got := text(t, conn, "SHOW "+setting); got != want {
			t.Errorf("%s = %q, want %q", setting, got, want)
		}
	}
}

func TestServerKeepsWhatWasCommittedHoweverItEnds(t *testing.T) {
	p := Own(t)
	run(t, connect(t, p.URL("postgres")), "CREATE TABLE kept (how text)")
	for _, end := range []struct {
		how string
		do  func() error
	}{{"stopped", p.Stop}, {"stopped immediately", p.StopImmediately}, {"killed", p.Kill}} {
		conn := connect(t, p.URL("postgres"))
		if _, err := conn.Exec(t.Context(), "INSERT INTO kept VALUES ($1)", end.how); err != nil {
			t.Fatal(err)
		}
		if err := end.do(); err != nil {
			t.Fatal(err)
		}
		if !refused(p.Addr()) {
			t.Errorf("%s: the server accepts connections", end.how)
		}
		if err := conn.Ping(t.Context()); err == nil {
			t.Errorf("%s: the connection lives", end.how)
		}
		if err := end.do(); err == nil || !strings.Contains(err.Error(), "it has ended") {
			t.Errorf("%s twice: %v", end.how, err)
		}
		if err := p.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := text(t, connect(t, p.URL("postgres")), "SELECT string_agg(how, ', ') FROM kept")
		if !strings.HasSuffix(got, end.how) {
			t.Errorf("%s: the table has %s", end.how, got)
		}
	}
	if err := p.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "it runs") {
		t.Errorf("a start of a server that runs: %v", err)
	}
}

func TestPausedServerAnswersWhenItContinues(t *testing.T) {
	p := Own(t)
	conn := connect(t, p.URL("postgres"))
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		_, err := conn.Exec(t.Context(), "SELECT 1")
		answer <- err
	}()
	if refused(p.Addr()) {
		t.Error("a connection was refused")
	}
	select {
	case err := <-answer:
		t.Errorf("an answer of a paused server: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := p.Continue(); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; err != nil {
		t.Error(err)
	}
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("stop a paused server: %v", err)
	}
}

func TestServerThatDoesNotStartSaysWhy(t *testing.T) {
	dir := temp(t)
	t.Setenv("TMPDIR", dir)
	_, err := StartPostgres(t.Context(), "no_such_setting = on")
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("an unknown setting: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := StartPostgres(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context: %v", err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := StartPostgres(t.Context()); err == nil || !strings.Contains(err.Error(), "set TMPDIR") {
			t.Errorf("a directory that the server's user cannot enter: %v", err)
		}
	}
	if left := remaining(t, dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestServersStartFromACacheThatAnyProcessMayBeFilling(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "opscore")
	t.Setenv("XDG_CACHE_HOME", filepath.Dir(cache))
	servers := make([]*Postgres, 2)
	var wg sync.WaitGroup
	for i := range servers {
		wg.Go(func() {
			var err error
			if servers[i], err = StartPostgres(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, p := range servers {
		if p != nil {
			run(t, connect(t, p.URL("postgres")), "SELECT 1")
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	one := func() string {
		return text(t, connect(t, Own(t).URL("postgres")), "SELECT system_identifier::text FROM pg_control_system()")
	}
	if a, b := one(), one(); a != b {
		t.Errorf("two starts ran initdb: %s, %s", a, b)
	}
	// What a process leaves that is killed while it fills the cache.
	kept, err := filepath.Glob(filepath.Join(cache, "postgres-*[0-9a-f]"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("the cache has %v, %v", kept, err)
	}
	if err := os.Rename(kept[0], kept[0]+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(kept[0]+".new", "global")); err != nil {
		t.Fatal(err)
	}
	if a, b := one(), one(); a == "" || a != b {
		t.Errorf("after a kill: %s, %s", a, b)
	}
}

func TestClosedServerIsGoneAndStaysClosed(t *testing.T) {
	dir := temp(t)
	t.Setenv("TMPDIR", dir)
	p := Own(t)
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if left := remaining(t, dir); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	if err := p.Start(t.Context()); err == nil {
		t.Error("a closed server started")
	}
}

func TestServersStartWithoutACache(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "")
	run(t, connect(t, Own(t).URL("postgres")), "SELECT 1")
}

func TestMissingServerIsAnErrorWithTheCommandThatInstallsIt(t *testing.T) {
	t.Setenv("PATH", "")
	_, err := findPostgres(filepath.Join(t.TempDir(), "*/bin"))
	if err == nil || !strings.HasSuffix(err.Error(), "install it with: sudo internal/nodes/install.sh") {
		t.Errorf("err = %v", err)
	}
	_, err = findPgbouncer(filepath.Join(t.TempDir(), "pgbouncer"))
	if err == nil || !strings.HasSuffix(err.Error(), "install it with: sudo internal/nodes/install.sh") {
		t.Errorf("err = %v", err)
	}
	if _, err := os.Stat("install.sh"); err != nil {
		t.Error(err)
	}
}

func TestNewestServerIsFound(t *testing.T) {
	t.Setenv("PATH", "")
	dir := t.TempDir()
	for _, v := range []string{"9.6", "16", "17"} {
		bin := filepath.Join(dir, v, "bin")
		if err := os.MkdirAll(bin, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"initdb", "postgres"} {
			if v == "17" && name == "postgres" {
				continue // only the client is installed
			}
			if err := os.WriteFile(filepath.Join(bin, name), nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := findPostgres(filepath.Join(dir, "*/bin"))
	if want := filepath.Join(dir, "16/bin"); err != nil || got != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}

func TestEachTestHasADatabaseOfItsOwnFromAMigratedTemplate(t *testing.T) {
	var migrated atomic.Int32
	migrate := func(url string) error {
		migrated.Add(1)
		ctx := t.Context()
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, "CREATE TABLE numbers AS SELECT 1 AS n")
		return errors.Join(err, conn.Close(ctx))
	}
	template := strings.Repeat("long", 20) + rand.Text() // with -count, too, it is new
	var urls sync.Map
	t.Run("parallel", func(t *testing.T) {
		for range 4 {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				url := Database(t, template, migrate)
				if _, again := urls.LoadOrStore(url, true); again {
					t.Errorf("%s was given out twice", url)
				}
				conn := connect(t, url)
				run(t, conn, "INSERT INTO numbers VALUES (2)")
				if got := text(t, conn, "SELECT count(*)::text FROM numbers"); got != "2" {
					t.Errorf("%s rows, want 2", got)
				}
			})
		}
	})
	if n := migrated.Load(); n != 1 && os.Getenv(serverEnv) == "" {
		t.Errorf("migrated %d times, want once", n)
	}
	for url := range urls.Range {
		if conn, err := pgx.Connect(t.Context(), url.(string)); err == nil {
			t.Errorf("%s was not dropped", url)
			_ = conn.Close(t.Context())
		}
	}
}

func TestAmbiguousCommitIsThereOrNotAsTheProxyDecides(t *testing.T) {
	url := Database(t, "numbers", func(url string) error { return execOn(url, "CREATE TABLE numbers (n integer)") })
	conn := connect(t, url)
	p := NewProxy(t, conn.Config().Host+":"+strconv.Itoa(int(conn.Config().Port)))
	for n, cut := range []func([]byte) <-chan struct{}{p.CutBeforeRequest, p.CutAfterRequest} {
		tx, err := connect(t, p.URL(url)).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), "INSERT INTO numbers VALUES ($1)", n); err != nil {
			t.Fatal(err)
		}
		done := cut([]byte("commit"))
		if err := tx.Commit(t.Context()); err == nil {
			t.Error("the commit reported success")
		}
		<-done
	}
	if got := text(t, conn, "SELECT string_agg(n::text, ' ') FROM numbers"); got != "1" {
		t.Errorf("committed: %s, want 1", got)
	}
}

func TestNothingRemainsOnAServerThatIsNotOurs(t *testing.T) {
	p := Own(t)
	t.Setenv(serverEnv, p.URL("postgres"))
	t.Run("uses it", func(t *testing.T) {
		url := Database(t, "template", func(url string) error {
			return execOn(url, "CREATE TABLE migrated ()")
		})
		if !strings.Contains(url, p.Addr()) {
			t.Errorf("the database is at %s, want on %s", url, p.Addr())
		}
		run(t, connect(t, url), "SELECT FROM migrated") // still connected when the database is dropped
	})
	conn := connect(t, p.URL("postgres"))
	got := text(t, conn, "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database")
	if want := "postgres template0 template1"; got != want {
		t.Errorf("databases: %s, want %s", got, want)
	}
}

func BenchmarkStartPostgres(b *testing.B) {
	for b.Loop() {
		p, err := StartPostgres(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkDatabase(b *testing.B) {
	Database(b, b.Name(), func(string) error { return nil })
	for b.Loop() {
		Database(b, b.Name(), func(string) error { return nil })
	}
}
