package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opscore/opscore"
)

// said is what a process has written so far.
type said struct{ file string }

func newSaid(t *testing.T) (said, *os.File) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "said"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return said{f.Name()}, f
}

// find waits until it matches, and returns the match.
func (s said) find(t *testing.T, pattern string) (found string) {
	t.Helper()
	eventuallyTrue(t, pattern, func() bool {
		found = s.match(t, pattern)
		return found != ""
	})
	return found
}

// match returns what matches by now, or "".
func (s said) match(t *testing.T, pattern string) string {
	t.Helper()
	text, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(pattern).FindString(string(text))
}

func TestSystemdLearnsThatAWorkerIsReadyLivesAndStops(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "opscore") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	at := &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"}
	socket, err := net.ListenUnixgram("unixgram", at)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := socket.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	await := func(state string) {
		t.Helper()
		buf := make([]byte, 4096)
		for {
			n, err := socket.Read(buf)
			if err != nil {
				t.Fatalf("no %s: %v", state, err)
			}
			if strings.Contains(string(buf[:n]), state) {
				return
			}
		}
	}
	cmd := opscoreCommand(t, "dev")
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+at.Name, "WATCHDOG_USEC=300000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await("READY=1")
	await("WATCHDOG=1")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	await("STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestAPortInUseIsSaidAndNoReasonNotToWork(t *testing.T) {
	t.Parallel()
	holder, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log, stderr := newSaid(t)
	cmd := opscoreCommand(t, "dev", "--listen", holder.Addr().String(), "--ready-file", "ready")
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log.find(t, "worker ready")
	log.find(t, `no /healthz, /readyz and /metrics for now.*address already in use`)
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	log.find(t, "msg=listening")
	if got := answer(t, "http://"+holder.Addr().String()+"/readyz"); !strings.Contains(got, `"ready": true`) {
		t.Errorf("/readyz = %s", got)
	}
	if got := answer(t, "http://"+holder.Addr().String()+"/metrics"); !strings.Contains(got, "opscore_worker_ready 1\n") {
		t.Errorf("/metrics = %s", got)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func answer(t *testing.T, url string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	body, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestBehaviour105ALogThatNobodyReadsIsShownAndTheWorkGoesOn(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	cmd := opscoreCommand(t, "dev", "--verbose", "--database", "tasks.db")
	cmd.Stderr = w
	if err := errors.Join(cmd.Start(), w.Close()); err != nil {
		t.Fatal(err)
	}
	store := openDatabase(t, filepath.Join(cmd.Dir, "tasks.db"))
	client := &opscore.Client{Store: store}
	requests := make([]opscore.Request, 1000) // each is a line of more than 65 bytes
	for i := range requests {
		requests[i] = opscore.NewRequest("echo", json.RawMessage("1"))
	}
	subs, err := client.Submit(t.Context(), requests...)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range subs {
		if task, err := client.Wait(t.Context(), s.ID); err != nil || task.State != opscore.Completed {
			t.Fatalf("task is %s, %v", task.State, err)
		}
	}
	var worker opscore.WorkerInfo
	eventuallyTrue(t, "a degraded log", func() bool {
		workers, err := store.Workers(t.Context(), 0)
		if err != nil || len(workers) != 1 {
			t.Fatalf("workers = %v, %v", workers, err)
		}
		worker = workers[0]
		return worker.Report.Check(opscore.CheckLog).State == opscore.CheckDegraded
	})
	check := worker.Report.Check(opscore.CheckLog)
	if !strings.Contains(check.Text, "stderr is full") || worker.Process.Stderr != "pipe" || worker.State != opscore.WorkerReady {
		t.Errorf("stderr is a %s, the worker %s: %+v", worker.Process.Stderr, worker.State, check)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
