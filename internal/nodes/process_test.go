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

var processes = map[string]func() error{
	"running": func() error { return hold((*Postgres).Continue) },
	"paused":  func() error { return hold((*Postgres).Pause) },
	"stopped": func() error { return hold((*Postgres).Stop) },
	"killed":  func() error { return hold((*Postgres).Kill) },
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
	// starting says where its server will be before it is there.
	"starting": func() error {
		started := make(chan error)
		go func() {
			_, err := StartPostgres(context.Background())
			started <- err
		}()
		fmt.Println("-", os.TempDir())
		return <-started
	},
	// forgetful ends without closing anything.
	"forgetful": func() error {
		_, err := startAndTell()
		return err
	},
}

// hold starts a server, does something to it, says where it is and waits to be killed.
func hold(do func(*Postgres) error) error {
	p, err := startAndTell()
	if err != nil {
		return err
	}
	if err := do(p); err != nil {
		return err
	}
	fmt.Println("done")
	select {}
}

func startAndTell() (*Postgres, error) {
	p, err := StartPostgres(context.Background())
	if err == nil {
		fmt.Println(p.Addr(), p.dir.path)
	}
	return p, err
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

// remaining lists what mentions the directory: itself, and processes by their command line.
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
		if err == nil && strings.Contains(string(line), dir) {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

func TestNothingOfAServerOutlivesAProcessThatIsKilled(t *testing.T) {
	for _, role := range []string{"running", "paused", "stopped", "killed", "pooling"} {
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
			if (role == "running" || role == "pooling") && refused(addr) {
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
	for _, from := range []string{"opscore-postgres-", "postmaster.pid"} {
		t.Run(from, func(t *testing.T) {
			t.Parallel()
			dir := temp(t)
			cmd, say := spawn(t, "starting", dir)
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
	dir := temp(t)
	cmd, say := spawn(t, "forgetful", dir)
	addr, _, _ := strings.Cut(say(), " ")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the port is closed, the processes and the directory are gone", func() bool {
		return refused(addr) && len(remaining(t, dir)) == 0
	})
}
