package main

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// orphanMaker is a shell that starts a worker and waits. It is not exec'd: the shell is the worker's parent.
type orphanMaker struct {
	dir   string
	shell *exec.Cmd
	ready readyDoc
	ended chan struct{} // closed when nobody holds the worker's stderr any more
}

func startOrphanMaker(t *testing.T, flags string) *orphanMaker {
	t.Helper()
	m := &orphanMaker{dir: t.TempDir(), ended: make(chan struct{})}
	m.shell = exec.CommandContext(t.Context(), "sh", "-c", "opscore dev --ephemeral --ready-file ready "+flags+" & wait")
	m.shell.Dir = m.dir
	m.shell.Env = append(os.Environ(), "HOME="+m.dir, "TMPDIR="+m.dir, "GORACE=atexit_sleep_ms=0")
	stderr, err := m.shell.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.shell.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, stderr)
		close(m.ended)
	}()
	eventuallyTrue(t, "the ready file", func() bool {
		doc, err := os.ReadFile(filepath.Join(m.dir, "ready"))
		return err == nil && json.Unmarshal(doc, &m.ready) == nil
	})
	t.Cleanup(func() {
		select {
		case <-m.ended:
		default:
			_ = syscall.Kill(m.ready.PID, syscall.SIGKILL) // the test has failed already
		}
	})
	return m
}

// killParent leaves the worker an orphan.
func (m *orphanMaker) killParent(t *testing.T) {
	t.Helper()
	if err := m.shell.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.shell.Process.Wait(); err != nil { // not the command's: that would close the pipe
		t.Fatal(err)
	}
}

// leavesNothing fails the test unless the worker ends and leaves nothing behind.
func (m *orphanMaker) leavesNothing(t *testing.T) {
	t.Helper()
	eventuallyTrue(t, "the worker's end", func() bool {
		select {
		case <-m.ended:
			return true
		default:
			return false
		}
	})
	isEmpty(t, m.dir)
}

func isEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("%s holds %v (%v), want nothing", dir, left, err)
	}
}

func TestAnEphemeralWorkerDiesWithItsParentIfToldTo(t *testing.T) {
	t.Parallel()
	m := startOrphanMaker(t, "--die-with-parent")
	if _, err := os.Stat(m.ready.Database); err != nil {
		t.Errorf("the database of a worker that is ready: %v", err)
	}
	m.killParent(t)
	m.leavesNothing(t)
}

func TestAWorkerOutlivesItsParentUnlessToldOtherwise(t *testing.T) {
	t.Parallel()
	m := startOrphanMaker(t, "")
	m.killParent(t)
	// Longer than it would take to notice.
	submit := opscoreCommand(t, "submit", "--wait", "--database", m.ready.Database, "sleep", `{"seconds":0.5}`)
	if out, err := submit.CombinedOutput(); err != nil {
		t.Fatalf("a task after the parent's death: %v: %s", err, out)
	}
	if err := syscall.Kill(m.ready.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.leavesNothing(t)
}

// The directory's appearance is the earliest moment at which anything could be left behind.
func TestAnInterruptedStartLeavesNoDirectoryBehind(t *testing.T) {
	t.Parallel()
	for _, signals := range [][]os.Signal{
		{os.Interrupt},
		{syscall.SIGTERM},
		{os.Interrupt, os.Interrupt, os.Interrupt},
		{syscall.SIGHUP, syscall.SIGTERM, os.Interrupt, syscall.SIGTERM},
	} {
		dir := t.TempDir()
		cmd := opscoreCommand(t, "dev", "--ephemeral")
		cmd.Env = append(cmd.Env, "TMPDIR="+dir)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventuallyTrue(t, "the directory", func() bool {
			made, err := os.ReadDir(dir)
			return err == nil && len(made) > 0
		})
		for _, s := range signals {
			_ = cmd.Process.Signal(s) // it may have ended already
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v at the start: %v: %s", signals, err, &stderr)
		}
		isEmpty(t, dir)
	}
}
