package nodes

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Pgbouncer is a proxy that pools transactions: each may run on another of the few connections that it has to the server. No
// process and no directory of it outlives ours.
type Pgbouncer struct {
	dir    *directory
	addr   string
	server *process
}

// pooling is the configuration. Whoever connects is the server's user.
const pooling = `
[databases]
* = host=%s port=%d user=%s%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
max_client_conn = 1000
%s
`

// NewPgbouncer starts a proxy to the server at the URL, with more lines for its pgbouncer.ini if any are given, until the test
// ends. Prepared statements do not work through it, whatever its version. If the test fails, the end of its log is shown.
func NewPgbouncer(t testing.TB, server string, more ...string) *Pgbouncer {
	t.Helper()
	p, err := startPgbouncer(t.Context(), server, more...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("the end of pgbouncer's log:\n" + p.Log())
		}
		if err := p.close(); err != nil {
			t.Errorf("close pgbouncer: %v", err)
		}
	})
	return p
}

func startPgbouncer(ctx context.Context, server string, more ...string) (*Pgbouncer, error) {
	program, err := findPgbouncer("/usr/sbin/pgbouncer")
	if err != nil {
		return nil, err
	}
	dir, err := newDirectory(ctx, "pgbouncer", serverUser)
	if err != nil {
		return nil, fmt.Errorf("start pgbouncer: %w", err)
	}
	p := &Pgbouncer{dir: dir}
	if err := p.create(ctx, program, server, more); err != nil {
		return nil, errors.Join(fmt.Errorf("start pgbouncer: %w", err), p.close())
	}
	return p, nil
}

// create starts the proxy on a port that is still free when the proxy asks for it.
func (p *Pgbouncer) create(ctx context.Context, program, server string, more []string) error {
	to, err := pgx.ParseConfig(server)
	if err != nil {
		return err
	}
	password := ""
	if to.Password != "" { // an empty one would be a mistake of syntax
		password = " password='" + strings.ReplaceAll(to.Password, "'", "''") + "'"
	}
	text, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return err
	}
	var minor int
	if _, err := fmt.Sscanf(string(text), "PgBouncer 1.%d", &minor); err != nil {
		return fmt.Errorf("read the version in %q: %w", text, err)
	}
	if minor >= 21 { // older ones cannot do it and do not know the setting
		more = append(more, "max_prepared_statements = 0")
	}
	for range 5 {
		port, err := freePort(ctx)
		if err != nil {
			return err
		}
		p.addr = loopback(port)
		config := fmt.Sprintf(pooling, to.Host, to.Port, to.User, password, port, strings.Join(more, "\n"))
		if err := os.WriteFile(p.config(), []byte(config), 0o644); err != nil {
			return err
		}
		if err = p.start(ctx, program); err == nil || !strings.Contains(err.Error(), "nowhere to listen on") {
			return err
		}
	}
	return errors.New("find a free port")
}

func (p *Pgbouncer) config() string { return filepath.Join(p.dir.path, "pgbouncer.ini") }

// start returns when the proxy accepts connections, which it says in its log.
func (p *Pgbouncer) start(ctx context.Context, program string) (err error) {
	if p.server, err = p.dir.start(ctx, "KILL", program, p.config()); err != nil {
		return err
	}
	return p.dir.ready(ctx, p.server, patience, func() bool { return strings.Contains(p.dir.log(), "listening on "+p.addr) })
}

// findPgbouncer returns the program: the one in PATH, or the one that is usually not.
func findPgbouncer(usual string) (string, error) {
	if program, err := exec.LookPath("pgbouncer"); err == nil {
		return program, nil
	}
	if _, err := os.Stat(usual); err == nil {
		return usual, nil
	}
	return "", errors.New("find pgbouncer: neither PATH nor " + usual + " has it; install it with: sudo internal/nodes/install.sh")
}

// URL returns the URL of a database of the server, by way of the proxy.
func (p *Pgbouncer) URL(of string) string {
	u, err := url.Parse(of)
	if err != nil {
		return of // whoever connects says why
	}
	u.Host = p.addr
	return u.String()
}

// Log returns the end of the proxy's log.
func (p *Pgbouncer) Log() string { return p.dir.log() }

func (p *Pgbouncer) close() error {
	var err error
	if p.server != nil {
		err = p.server.end()
	}
	return errors.Join(err, p.dir.close())
}
