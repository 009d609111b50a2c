package nodes

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestMain lets tests start this binary again as a process that they can kill.
func TestMain(m *testing.M) {
	if role := os.Getenv("OPSCORE_TEST_ROLE"); role != "" {
		if err := processes[role](); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// server is what any of ours can do.
type server interface {
	Addr() string
	Continue() error
	Pause() error
	Stop() error
	Kill() error
}

var processes = map[string]func() error{
	"running": func() error { return hold(postgresAndTell, server.Continue) },
	"paused":  func() error { return hold(postgresAndTell, server.Pause) },
	"stopped": func() error { return hold(postgresAndTell, server.Stop) },
	"killed":  func() error { return hold(postgresAndTell, server.Kill) },

	"running broker": func() error { return hold(rabbitAndTell, server.Continue) },
	"paused broker":  func() error { return hold(rabbitAndTell, server.Pause) },
	"stopped broker": func() error { return hold(rabbitAndTell, server.Stop) },
	"killed broker":  func() error { return hold(rabbitAndTell, server.Kill) },
	// clustered has a cluster, and says where its first node is.
	"clustered": func() error {
		return hold(func() (server, error) {
			c, err := StartRabbitCluster(context.Background(), 2)
			if err != nil {
				return nil, err
			}
			fmt.Println(c.Nodes[0].Addr(), c.Nodes[0].dir.path)
			return c.Nodes[1], nil
		}, server.Pause)
	},
	// pooling has a proxy to no server.
	"pooling": func() error {
		p, err := startPgbouncer(context.Background(), "postgres://postgres@127.0.0.1:1/postgres")
		if err != nil {
			return err
		}
		fmt.Println(p.addr, p.dir.path)
		fmt.Println("done")
		select {}
	},
	// starting and the like say where their server will be before it is there.
	"starting": func() error {
		return tellAndStart(func() error { _, err := StartPostgres(context.Background()); return err })
	},
	"starting broker": func() error {
		return tellAndStart(func() error { _, err := StartRabbitMQ(context.Background()); return err })
	},
	// forgetful and the like end without closing anything.
	"forgetful": func() error {
		_, err := postgresAndTell()
		return err
	},
	"forgetful broker": func() error {
		_, err := rabbitAndTell()
		return err
	},
}

// hold starts a server, does something to it, says where it is and waits to be killed.
func hold(start func() (server, error), do func(server) error) error {
	s, err := start()
	if err != nil {
		return err
	}
	if err := do(s); err != nil {
		return err
	}
	fmt.Println("done")
	select {}
}

func postgresAndTell() (server, error) {
	p, err := StartPostgres(context.Background())
	if err == nil {
		fmt.Println(p.Addr(), p.dir.path)
	}
	return p, err
}

func rabbitAndTell() (server, error) {
	r, err := StartRabbitMQ(context.Background())
	if err == nil {
		fmt.Println(r.Addr(), r.dir.path)
	}
	return r, err
}

func tellAndStart(start func() error) error {
	started := make(chan error)
	go func() { started <- start() }()
	fmt.Println("-", os.TempDir())
	return <-started
}

// spawn starts a process whose server is in a temporary directory of the test's, and returns what it says.
func spawn(t *testing.T, role, temp string) (cmd *exec.Cmd, say func() string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), "OPSCORE_TEST_ROLE="+role, "TMPDIR="+temp,
		"GORACE=atexit_sleep_ms=0") // the race detector sleeps for a second before it lets a process exit
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	return cmd, func() string {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("%s said nothing more: %v", role, lines.Err())
		}
		return lines.Text()
	}
}

// temp makes a directory that every user may pass through, unlike t.TempDir.
func temp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "opscore-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !is(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not after %v: %s", patience, what)
		}
	}
}

func refused(addr string) bool {
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", addr)
	if err == nil {
		conn.Close()
	}
	return err != nil
}

// remaining lists what mentions the directory: itself, and processes by their command line or their environment.
func remaining(t *testing.T, dir string) (found []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		found = append(found, e.Name())
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		line, err := os.ReadFile("/proc/" + p.Name() + "/cmdline")
		environ, _ := os.ReadFile("/proc/" + p.Name() + "/environ") // that of other users' processes is not to be had
		if err == nil && (strings.Contains(string(line), dir) || strings.Contains(string(environ), "HOME="+dir)) {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

func TestNothingOfAServerOutlivesAProcessThatIsKilled(t *testing.T) {
	for _, role := range []string{
		"running", "paused", "stopped", "killed", "pooling", "running broker", "paused broker", "stopped broker", "killed broker",
		"clustered",
	} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			dir := temp(t)
			cmd, say := spawn(t, role, dir)
			addr, at, _ := strings.Cut(say(), " ")
			if done := say(); done != "done" {
				t.Fatalf("the process said %q", done)
			}
			if !strings.HasPrefix(at, dir) || len(remaining(t, dir)) == 0 {
				t.Fatalf("the server is in %s, want in %s", at, dir)
			}
			if (strings.HasPrefix(role, "running") || role == "pooling" || role == "clustered") && refused(addr) {
				t.Fatal("the server does not accept connections")
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			eventually(t, "the port is closed, the processes and the directory are gone", func() bool {
				return refused(addr) && len(remaining(t, dir)) == 0
			})
		})
	}
}

func TestNothingOfAServerOutlivesAProcessThatIsKilledWhileItStarts(t *testing.T) {
	for from, role := range map[string]string{
		"opscore-postgres-": "starting",
		"postmaster.pid":    "starting",
		"opscore-epmd-":     "starting broker",
		"enabled_plugins":   "starting broker",
		"LATEST.LOG":        "starting broker", // of its database
		"msg_stores":        "starting broker",
	} {
		t.Run(from, func(t *testing.T) {
			t.Parallel()
			dir := temp(t)
			cmd, say := spawn(t, role, dir)
			say()
			eventually(t, from+" exists", func() bool {
				tree, _ := exec.CommandContext(t.Context(), "find", dir, "-name", from+"*").Output()
				return len(tree) > 0
			})
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			eventually(t, "the processes and the directory are gone", func() bool { return len(remaining(t, dir)) == 0 })
		})
	}
}

func TestNothingOfAServerOutlivesAProcessThatForgetsToCloseIt(t *testing.T) {
	for _, role := range []string{"forgetful", "forgetful broker"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			dir := temp(t)
			cmd, say := spawn(t, role, dir)
			addr, _, _ := strings.Cut(say(), " ")
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the port is closed, the processes and the directory are gone", func() bool {
				return refused(addr) && len(remaining(t, dir)) == 0
			})
		})
	}
}
