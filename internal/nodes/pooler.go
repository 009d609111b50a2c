package nodes

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Pooler starts a transaction-pooling proxy (pgbouncer) before the server of a database until the test ends, and returns a
// function that makes the URL of a database on it one by way of the proxy. Each transaction may find itself on another of a
// few connections, so no state of a session can be relied on.
func Pooler(t testing.TB, database string) func(url string) string {
	t.Helper()
	program, err := findPooler()
	if err != nil {
		t.Fatal(err)
	}
	server, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := newDirectory(t.Context(), "postgres") // it refuses root as well
	if err != nil {
		t.Fatal(err)
	}
	port, err := freePort(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir.path, "pgbouncer.ini")
	if err := os.WriteFile(config, fmt.Appendf(nil, poolerConfig, server.Hostname(), server.Port(), server.User.Username(), port), 0o644); err != nil { //nolint:gosec // another user reads it, and it holds no secret
		t.Fatal(err)
	}
	proxy, err := dir.start(t.Context(), "KILL", program, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("the end of pgbouncer's log:\n" + dir.log())
		}
		if err := proxy.end(); err != nil {
			t.Error(err)
		}
		if err := dir.close(); err != nil {
			t.Error(err)
		}
	})
	awaitPort(t, port, proxy, dir)
	return func(database string) string {
		u, err := url.Parse(database)
		if err != nil {
			t.Fatal(err)
		}
		u.Host = loopback(port)
		return u.String()
	}
}

const poolerConfig = `
[databases]
* = host=%s port=%s user=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
max_client_conn = 500
`

func findPooler() (string, error) {
	for _, program := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} {
		if program, err := exec.LookPath(program); err == nil {
			return program, nil
		}
	}
	return "", fmt.Errorf("find pgbouncer: neither PATH nor /usr/sbin has it; install it with: sudo internal/nodes/install.sh")
}

// awaitPort returns when a process listens on its port.
func awaitPort(t testing.TB, port int, p *process, dir *directory) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", loopback(port))
		if err == nil {
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			return
		}
		select {
		case <-tick.C:
		case <-p.gone:
			t.Fatalf("start pgbouncer: it has ended: %v\n%s", how(p.err), strings.TrimSpace(dir.log()))
		case <-deadline.C:
			t.Fatalf("start pgbouncer: not ready after %s\n%s", patience, dir.log())
		}
	}
}
