package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

// opscoreCommand is the command as another process; testscript.Main has put it into PATH.
func opscoreCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "opscore", args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "HOME="+cmd.Dir, "GORACE=atexit_sleep_ms=0")
	return cmd
}

// eventuallyTrue looks again and again until done says yes.
func eventuallyTrue(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestAKilledWorkerLosesNoTask(t *testing.T) {
	t.Parallel()
	const tasks = 1000
	file := filepath.Join(t.TempDir(), "opscore.db")
	store, err := sqlite.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	client := &opscore.Client{Store: store}
	requests := make([]opscore.Request, tasks)
	for i := range requests {
		requests[i] = opscore.NewRequest("sleep", json.RawMessage(`{"seconds":0.02}`))
	}
	subs, err := client.Submit(t.Context(), requests...)
	if err != nil {
		t.Fatal(err)
	}
	completed := func() (n int64) {
		counts, err := client.Count(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range counts {
			if c.State == opscore.Completed {
				n = c.Tasks
			}
		}
		return n
	}

	first := opscoreCommand(t, "dev", "--database", file, "--slots", "20")
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	eventuallyTrue(t, "the first tasks", func() bool { return completed() >= tasks/5 })
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait() // killed
	done := byID(t, client, subs)
	if n := completed(); n == tasks {
		t.Fatal("the worker was too fast to be killed in the middle")
	}

	second := opscoreCommand(t, "dev", "--database", file, "--slots", "20")
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	eventuallyTrue(t, "all tasks", func() bool { return completed() == tasks })
	if err := second.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("the second worker: %v", err)
	}
	lost := 0
	for id, after := range byID(t, client, subs) {
		before := done[id]
		if before.State == opscore.Completed && !before.FinishedAt.Equal(after.FinishedAt) {
			t.Errorf("task %s was recorded twice: at %s and %s", id, before.FinishedAt, after.FinishedAt)
		}
		if after.Attempt != 1 {
			t.Errorf("task %s counts %d attempts: being lost costs none", id, after.Attempt)
		}
		lost += after.Lost
	}
	if lost == 0 {
		t.Error("no task was lost with the killed worker: the test tested nothing")
	}
}

func byID(t *testing.T, client *opscore.Client, subs []opscore.Submission) map[opscore.ID]opscore.Task {
	t.Helper()
	ids := make([]opscore.ID, len(subs))
	for i, s := range subs {
		ids[i] = s.ID
	}
	tasks, err := client.Store.Get(t.Context(), ids)
	if err != nil || len(tasks) != len(ids) {
		t.Fatalf("got %d of %d tasks: %v", len(tasks), len(ids), err)
	}
	found := map[opscore.ID]opscore.Task{}
	for _, task := range tasks {
		found[task.ID] = task
	}
	return found
}
