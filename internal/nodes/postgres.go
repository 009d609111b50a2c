// Package nodes starts private servers on free loopback ports, and breaks them and the way to them on demand, for our own
// tests and benches.
package nodes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Postgres is a PostgreSQL server of our own with the durability of a real one (fsync and synchronous_commit are on).
// Anybody on this machine can connect to it as its superuser. No process and no directory of it outlives ours, even if ours is killed.
// Its methods may be used concurrently.
type Postgres struct {
	bin  string
	dir  *directory
	port int

	mu     sync.Mutex
	server *process // the latest
	paused bool
}

// settings are those that differ from PostgreSQL's defaults, or that our figures rest on.
const settings = `
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
fsync = on
synchronous_commit = on
full_page_writes = on
# In files of the data directory, so that nothing is left when the server is killed.
dynamic_shared_memory_type = mmap
timezone = 'UTC'
log_timezone = 'UTC'
`

// StartPostgres creates a server, with more lines for its postgresql.conf if any are given, and returns when it accepts
// connections. ctx is for the start only: the server runs until Close.
func StartPostgres(ctx context.Context, more ...string) (*Postgres, error) {
	bin, err := findPostgres("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")
	if err != nil {
		return nil, err
	}
	dir, err := newDirectory(ctx, "postgres", serverUser)
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	p := &Postgres{bin: bin, dir: dir}
	if err := p.create(ctx, more); err != nil {
		return nil, errors.Join(fmt.Errorf("start PostgreSQL: %w", err), p.Close())
	}
	return p, nil
}

// create fills the directory and starts the server on a port that is still free when the server asks for it.
func (p *Postgres) create(ctx context.Context, more []string) error {
	if err := p.fill(ctx); err != nil {
		return err
	}
	conf, err := os.OpenFile(filepath.Join(p.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = conf.WriteString(settings + strings.Join(more, "\n") + "\n")
	if err := errors.Join(err, conf.Close()); err != nil {
		return err
	}
	for range 5 {
		if p.port, err = freePort(ctx); err != nil {
			return err
		}
		err = p.Start(ctx)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprint("another postmaster already running on port ", p.port)) {
			return err
		}
	}
	return err
}

// findPostgres returns the directory of the server's programs: the one in PATH, or the newest of those that match.
func findPostgres(patterns ...string) (string, error) {
	var found []string
	if initdb, err := exec.LookPath("initdb"); err == nil {
		if initdb, err = filepath.EvalSymlinks(initdb); err == nil {
			found = append(found, filepath.Dir(initdb))
		}
	}
	for _, pattern := range patterns {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		slices.SortFunc(dirs, func(a, b string) int { return cmp.Compare(version(b), version(a)) })
		found = append(found, dirs...)
	}
	for _, dir := range found {
		_, missing := os.Stat(filepath.Join(dir, "postgres"))
		if _, err := os.Stat(filepath.Join(dir, "initdb")); err == nil && missing == nil {
			return dir, nil
		}
	}
	return "", errors.New("find PostgreSQL's server: neither PATH nor " + strings.Join(patterns, " nor ") +
		" has initdb and postgres; install it with: sudo internal/nodes/install.sh")
}

// version is the number in the path of a version's directory.
func version(dir string) float64 {
	digits := strings.TrimFunc(filepath.Dir(dir), func(r rune) bool { return r < '0' || r > '9' })
	v, _ := strconv.ParseFloat(digits[strings.LastIndexAny(digits, "/-")+1:], 64)
	return v
}

func (p *Postgres) data() string {
	return filepath.Join(p.dir.path, "data")
}

// Port returns the server's port; it stays the same.
func (p *Postgres) Port() int {
	return p.port
}

// Addr returns the server's host and port.
func (p *Postgres) Addr() string {
	return loopback(p.port)
}

// URL returns where a database of the server is, for its superuser; the database "postgres" always exists.
func (p *Postgres) URL(database string) string {
	return "postgres://postgres@" + p.Addr() + "/" + url.PathEscape(database) + "?sslmode=disable"
}

// Log returns the end of the server's log.
func (p *Postgres) Log() string {
	return p.dir.log()
}

// Start starts the server again, with its data and on its port, and returns when it accepts connections.
func (p *Postgres) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server.runs() {
		return errors.New("start PostgreSQL: it runs")
	}
	server, err := p.dir.start(ctx, "QUIT", filepath.Join(p.bin, "postgres"), "-D", p.data(), "-p", strconv.Itoa(p.port))
	if err != nil {
		return err
	}
	p.server, p.paused = server, false
	if err := p.dir.ready(ctx, server, patience, p.ready); err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	return nil
}

// ready reports whether the server accepts connections: it says so in a file that also names its process.
func (p *Postgres) ready() bool {
	file, err := os.ReadFile(filepath.Join(p.data(), "postmaster.pid"))
	if err != nil {
		return false
	}
	lines := strings.Split(string(file), "\n")
	return len(lines) > 7 && lines[0] == strconv.Itoa(p.server.pid) && slices.Contains([]string{"ready", "standby"}, strings.TrimSpace(lines[7]))
}

// Stop stops the server as an administrator does: it ends its connections and writes its data back (pg_ctl stop -m fast).
func (p *Postgres) Stop() error {
	return p.stop(syscall.SIGINT)
}

// StopImmediately stops the server without writing anything back; the next start recovers (pg_ctl stop -m immediate).
func (p *Postgres) StopImmediately() error {
	return p.stop(syscall.SIGQUIT)
}

func (p *Postgres) stop(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.wake(); err != nil {
		return err
	}
	if err := p.server.signal(sig); err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	if err := p.server.await(); err != nil {
		return fmt.Errorf("stop PostgreSQL: %w\n%s", err, p.Log())
	}
	return nil
}

// Kill kills every process of the server at once, as a crash of its machine would, save that what it has written stays.
func (p *Postgres) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.server.signalAll(syscall.SIGSTOP, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill PostgreSQL: %w", err)
	}
	p.paused = false
	return p.server.await()
}

// Pause stops every process of the server in its tracks: connections stay open, the kernel accepts new ones, and nothing
// answers until Continue, Stop or Close.
func (p *Postgres) Pause() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.server.signalAll(syscall.SIGSTOP, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("pause PostgreSQL: %w", err)
	}
	p.paused = true
	return nil
}

// Continue ends a Pause.
func (p *Postgres) Continue() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wake()
}

func (p *Postgres) wake() error {
	if !p.paused {
		return nil
	}
	p.paused = false
	if err := p.server.signalAll(syscall.SIGCONT, syscall.SIGCONT); err != nil {
		return fmt.Errorf("continue PostgreSQL: %w", err)
	}
	return nil
}

// Backup keeps a copy of the server's data for Failover and Restore.
func (p *Postgres) Backup(ctx context.Context) error {
	return p.dir.run(ctx, p.dir.as, filepath.Join(p.bin, "pg_basebackup"), "--host=127.0.0.1", "--port="+strconv.Itoa(p.port),
		"--username=postgres", "--pgdata="+p.backup(), "--checkpoint=fast", "--no-sync")
}

func (p *Postgres) backup() string {
	return filepath.Join(p.dir.path, "backup")
}

// Failover kills the server and continues in its place, and on its port, as a standby does that had received nothing since
// Backup and was promoted: on a timeline of its own.
func (p *Postgres) Failover(ctx context.Context) error {
	return p.comeBack(ctx, func() error {
		conf, err := os.OpenFile(filepath.Join(p.backup(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = conf.WriteString("restore_command = 'false'\n") // nothing more is to be had
		return errors.Join(err, conf.Close(), p.dir.run(ctx, p.dir.as, "touch", filepath.Join(p.backup(), "recovery.signal")))
	})
}

// Demote kills the server and continues in its place, and on its port, as a standby that has received nothing since Backup and whose primary is
// gone: it can be read only.
func (p *Postgres) Demote(ctx context.Context) error {
	return p.comeBack(ctx, func() error { return p.dir.run(ctx, p.dir.as, "touch", filepath.Join(p.backup(), "standby.signal")) })
}

// Restore kills the server and continues with what it had at the time of Backup, as if nothing had happened since.
func (p *Postgres) Restore(ctx context.Context) error {
	return p.comeBack(ctx, func() error { return nil })
}

func (p *Postgres) comeBack(ctx context.Context, prepare func() error) error {
	if err := p.Kill(); err != nil {
		return err
	}
	if err := prepare(); err != nil {
		return err
	}
	if err := os.RemoveAll(p.data()); err != nil {
		return err
	}
	if err := os.Rename(p.backup(), p.data()); err != nil {
		return err
	}
	return p.Start(ctx)
}

// Close kills the server, if it runs, and removes its directory. A second Close does nothing.
func (p *Postgres) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	if p.server != nil {
		err = errors.Join(p.wake(), p.server.end())
	}
	return errors.Join(err, p.dir.close())
}

// Own returns a server of the test's own, which it may stop, kill and pause. If the test fails, the end of the server's log is
// shown.
func Own(t testing.TB, more ...string) *Postgres {
	t.Helper()
	p, err := StartPostgres(t.Context(), more...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("the end of PostgreSQL's log:\n" + p.Log())
		}
		if err := p.Close(); err != nil {
			t.Errorf("close PostgreSQL: %v", err)
		}
	})
	return p
}
