package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opscore/opscore"
)

const childEnv = "OPSCORE_TEST_CHILD"

// TestMain lets tests start this binary again: as a process that waits for the end of its input, or one that writes for ever.
func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "waits":
		_, _ = os.Stdin.Read(make([]byte, 1))
	case "writes":
		for err := error(nil); err == nil; {
			_, err = os.Stdout.WriteString(strings.Repeat("x", 2500) + "\n")
		}
	default:
		m.Run()
	}
}

// child starts this binary again.
func child(t *testing.T, does string, change func(*exec.Cmd)) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childEnv+"="+does)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	change(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// registered is the worker that a process would have registered.
func registered(t *testing.T, pid int) opscore.WorkerInfo {
	t.Helper()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	p, err := opscore.ProcessOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	return opscore.WorkerInfo{ID: opscore.ID{1}, Host: host, PID: pid, About: opscore.About{Process: p}, LastBeat: time.Now()}
}

// gather returns what is said of the workers.
func gather(t *testing.T, workers ...opscore.WorkerInfo) []opscore.ProcessFacts {
	t.Helper()
	f, err := (Inspector{}).Gather(t.Context(), &opscore.Facts{Workers: workers})
	if err != nil {
		t.Fatal(err)
	}
	return f.Host.Processes
}

// await looks at a worker until it is as it should be.
func await(t *testing.T, w opscore.WorkerInfo, what string, is func(opscore.ProcessFacts) bool) opscore.ProcessFacts {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		all := gather(t, w)
		if len(all) == 0 || all[0].Worker != w.ID || all[0].PID != w.PID {
			t.Fatalf("%s: %+v", what, all)
		}
		if is(all[0]) {
			return all[0]
		}
		select {
		case <-deadline:
			t.Fatalf("still not: %s: %+v", what, all[0])
		case <-tick.C:
		}
	}
}

func TestAStoppedWorkerIsToldFromADeadOne(t *testing.T) {
	cmd := child(t, "waits", func(c *exec.Cmd) { c.Args = append(c.Args, "--password", "canary"); c.Dir = t.TempDir() })
	w := registered(t, cmd.Process.Pid)
	p := await(t, w, "it sleeps", func(p opscore.ProcessFacts) bool { return p.Exists && p.State == "S" })
	if p.Dir != cmd.Dir || slices.Contains(p.Args, "canary") || !slices.Contains(p.Args, "--password") || p.Frozen || p.OOMKills != 0 {
		t.Errorf("facts = %+v", p)
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	await(t, w, "it is stopped", func(p opscore.ProcessFacts) bool { return p.Exists && p.State == "T" })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, w, "a zombie", func(p opscore.ProcessFacts) bool { return p.State == "Z" })
	if err := cmd.Wait(); err == nil {
		t.Fatal("it was not killed")
	}
	await(t, w, "it is gone", func(p opscore.ProcessFacts) bool { return !p.Exists && p.State == "" })
}

func TestAProcessWithTheIDOfADeadOneIsAnother(t *testing.T) {
	cmd := child(t, "waits", func(*exec.Cmd) {})
	w := registered(t, cmd.Process.Pid)
	w.Process.Ticks--
	if all := gather(t, w); len(all) == 0 || all[0].Exists {
		t.Errorf("an older process: %+v", all)
	}
	w.Process.Space, w.Process.Started = "", w.Process.Started.Add(-time.Hour) // as by a build that did not tell
	if all := gather(t, w); len(all) == 0 || all[0].Exists {
		t.Errorf("one that started earlier: %+v", all)
	}
	w = registered(t, cmd.Process.Pid)
	boot, space, _ := strings.Cut(w.Process.Space, " ")
	for _, elsewhere := range []string{boot + " pid:[1]", "another " + space} {
		if w.Process.Space = elsewhere; len(gather(t, w)) > 0 && gather(t, w)[0].Worker == w.ID {
			t.Errorf("a worker elsewhere, %s, is looked for here", elsewhere)
		}
	}
	w.LastBeat = time.Unix(0, 0) // before this system started
	if all := gather(t, w); len(all) == 0 || all[0].Exists {
		t.Errorf("a worker of before the system started: %+v", all)
	}
	w = registered(t, cmd.Process.Pid)
	if w.Host += "x"; len(gather(t, w)) > 0 && gather(t, w)[0].Worker == w.ID {
		t.Error("a worker of another host is looked for here")
	}
}

func TestAFullPipeAndWhoDoesNotReadIt(t *testing.T) {
	var r *os.File
	cmd := child(t, "writes", func(c *exec.Cmd) {
		var w *os.File
		var err error
		if r, w, err = os.Pipe(); err != nil {
			t.Fatal(err)
		}
		c.Stdout, c.Stderr = w, w
		t.Cleanup(func() { _ = w.Close(); _ = r.Close() })
	})
	_ = cmd.Stdout.(*os.File).Close()
	p := await(t, registered(t, cmd.Process.Pid), "its stdout is full", func(p opscore.ProcessFacts) bool {
		return len(p.Pipes) > 0 && p.Pipes[0].Full
	})
	pipe := p.Pipes[0]
	size, err := unix.FcntlInt(r.Fd(), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		t.Fatal(err)
	}
	// A line of 2501 bytes takes a page of 4096: the pipe is full long before all its bytes are used.
	buffered, err := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Pipes) != 1 || pipe.FD != 1 || pipe.Size != size || pipe.Buffered != buffered || pipe.Buffered >= pipe.Size-4096 || pipe.Broken || pipe.Hidden ||
		!slices.Equal(pipe.Readers, []int{os.Getpid()}) {
		t.Errorf("pipes = %+v, want one of %d bytes, %d in it, that %d could read", p.Pipes, size, buffered, os.Getpid())
	}
}

// Whoever has a reading end, be it for a moment, keeps the writer from noticing that its reader is gone.
func TestALookAtAPipeDoesNotReplaceItsReader(t *testing.T) {
	for name, end := range map[string]func(pid, fd int) (*os.File, error){"copied": copied, "opened": opened} {
		t.Run(name, func(t *testing.T) {
			var r *os.File
			cmd := child(t, "writes", func(c *exec.Cmd) {
				var w *os.File
				var err error
				if r, w, err = os.Pipe(); err != nil {
					t.Fatal(err)
				}
				c.Stdout = w
				t.Cleanup(func() { _ = w.Close() })
			})
			w := registered(t, cmd.Process.Pid)
			await(t, w, "its stdout is full", func(p opscore.ProcessFacts) bool { return len(p.Pipes) == 1 && p.Pipes[0].Full })
			_ = cmd.Stdout.(*os.File).Close()
			f, err := end(cmd.Process.Pid, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			err = cmd.Wait()
			exit, ok := errors.AsType[*exec.ExitError](err)
			if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGPIPE {
				t.Errorf("the writer ended with %v, want SIGPIPE", err)
			}
		})
	}
}

func TestAWorkerThatIsNotRegisteredIsFound(t *testing.T) {
	dir := t.TempDir()
	cmd := child(t, "waits", func(c *exec.Cmd) {
		c.Dir = dir
		c.Args = []string{"/opt/opscore", "--database", "postgres://app:canary@db.example.com/app?password=canary", "worker", "--slots=3"}
		c.Env = append(c.Env, "OPSCORE_SCHEMA=other", "OPSCORE_BROKER_URL=amqp://app:canary@mq.example.com/shop,amqp://app:canary@mq2:1234/shop", "SECRET=canary")
	})
	find := func() *opscore.ProcessFacts {
		all := gather(t)
		i := slices.IndexFunc(all, func(p opscore.ProcessFacts) bool { return p.PID == cmd.Process.Pid })
		if i < 0 {
			return nil
		}
		return &all[i]
	}
	p := find()
	if p == nil {
		t.Fatal("it was not found")
	}
	want := []opscore.Endpoint{
		{Kind: "postgres", Address: "db.example.com:5432", Name: "app/other", Origin: "flag --database"},
		{Kind: "rabbitmq", Address: "mq.example.com:5672,mq2:1234", Name: "shop", Origin: "env OPSCORE_BROKER_URL"},
	}
	if !p.Exists || p.Worker != (opscore.ID{}) || p.Dir != dir || !slices.Equal(p.Endpoints, want) || strings.Contains(fmt.Sprint(*p), "canary") {
		t.Errorf("facts = %+v, want endpoints %+v", *p, want)
	}
	w := registered(t, cmd.Process.Pid)
	if all := gather(t, w); slices.ContainsFunc(all, func(p opscore.ProcessFacts) bool { return p.PID == w.PID && p.Worker != w.ID }) {
		t.Errorf("one that is registered is found again: %+v", all)
	}
}

func TestCommandLinesOfWorkers(t *testing.T) {
	for line, want := range map[string]bool{
		"opscore worker":                            true,
		"/usr/bin/opscore worker --slots 3":         true,
		"opscore --database x worker":               true,
		"opscore --verbose worker":                  true,
		"opscore dev --ephemeral":                   true,
		"opscore worker list":                       false,
		"opscore --json worker wait --count 2":      false,
		"opscore submit worker {}":                  false,
		"opscore --database=x submit --wait dev {}": false,
		"opscore --database x submit dev {}":        false,
		"opscore":                                   false,
		"sh -c opscore worker":                      false,
		"worker":                                    false,
	} {
		if got := works(strings.Fields(line)); got != want {
			t.Errorf("%s: %v, want %v", line, got, want)
		}
	}
}

func TestASearchThatTakesTooLongSaysSo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Inspector{}).Gather(ctx, &opscore.Facts{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
}
