package main

import (
	"os"
	"regexp"
	"syscall"
	"testing"
)

// TestADemoThatIsInterruptedLeavesNothing interrupts it while one of its workers is stopped.
func TestADemoThatIsInterruptedLeavesNothing(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	said, stdout := newSaid(t)
	demo := opscoreCommand(t, "demo", "stale-worker")
	demo.Env = append(demo.Env, "TMPDIR="+tmp)
	demo.Stdout = stdout
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := regexp.MustCompile(`\d+$`).FindString(said.find(t, `kill -STOP \d+`))
	if err := demo.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := demo.Wait(); demo.ProcessState.ExitCode() != 130 {
		t.Errorf("it ended with %v, want status 130", err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
	if _, err := os.Stat("/proc/" + stopped); err == nil {
		t.Errorf("it left process %s", stopped)
	}
}
