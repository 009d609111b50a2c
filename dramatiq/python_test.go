package dramatiq_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/dramatiq"
)

// pythonEnv names a Python that has Dramatiq with RabbitMQ.
const pythonEnv = "OPSCORE_TEST_DRAMATIQ"

// pythonApp are actors that write down what they get, and what they send to Go's.
const pythonApp = `
import json, os, sys
import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

dramatiq.set_broker(RabbitmqBroker(url=os.environ["BROKER"]))

def note(*what):
    with open(os.environ["NOTES"], "a") as f:
        f.write(json.dumps(what) + "\n")

@dramatiq.actor(queue_name="python")
def mul(x, y):
    note("mul", x, y)
    return x * y

@dramatiq.actor(queue_name="python", max_retries=1, min_backoff=10, max_backoff=10)
def flaky(name):
    note("flaky", name)
    raise ValueError("no")

@dramatiq.actor(queue_name="python")
def ok(message, result):
    note("ok", message["message_id"], result)

@dramatiq.actor(queue_name="python")
def bad(message, failure):
    note("bad", message["options"]["retries"], failure["type"])

@dramatiq.actor(queue_name="python")
def spent(message, retries):
    note("spent", retries["retries"])

# Go has these; Python only sends to them.
@dramatiq.actor(queue_name="golang")
def add(x, y): raise AssertionError("not here")

@dramatiq.actor(queue_name="golang")
def boom(): raise AssertionError("not here")

if __name__ == "__main__":
    ids = [
        add.send(1, 2), add.send(x=2, y=3), add.send_with_options(args=(3, 4), delay=500),
        add.send_with_options(args=(20, 22), on_success=ok),
        boom.send_with_options(max_retries=1, min_backoff=0, max_backoff=0, on_failure=bad, on_retry_exhausted=spent),
    ]
    pipe = add.message(1, 2) | mul.message(10) | add.message(5)
    ids.append(pipe.run().messages[-1])
    print(json.dumps([m.message_id for m in ids]))
`

// TestBothLanguagesRunEachOthersMessages needs a Python with Dramatiq.
func TestBothLanguagesRunEachOthersMessages(t *testing.T) {
	python := os.Getenv(pythonEnv)
	if python == "" {
		t.Skip(pythonEnv + " names no Python with Dramatiq")
	}
	r := newRig(t)
	dir := t.TempDir()
	notes := filepath.Join(dir, "notes")
	check(t, os.WriteFile(filepath.Join(dir, "app.py"), []byte(pythonApp), 0o600))
	run := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), python, args...)
		cmd.Dir, cmd.Env, cmd.Stderr = dir, append(os.Environ(), "BROKER="+r.at, "NOTES="+notes), t.Output()
		return cmd
	}
	noted := func(line string) {
		t.Helper()
		r.until("Python notes "+line, func() bool {
			text, err := os.ReadFile(notes)
			return err == nil && strings.Contains(string(text), line+"\n")
		})
	}
	workers := run("-m", "dramatiq", "app", "-Q", "python", "-p", "1", "-t", "2")
	check(t, workers.Start())
	t.Cleanup(func() { _ = workers.Process.Kill(); _ = workers.Wait() })
	h := adders()
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "boom"}, func(context.Context, json.RawMessage) (string, error) {
		return "", errors.New("ValueError: no")
	})
	r.work(h, &worker{
		source: dramatiq.Options{Queues: map[string][]string{"golang": nil}},
		actors: map[string]string{"ok": "python", "bad": "python", "spent": "python"},
	})

	out, err := run("app.py").Output()
	check(t, err)
	var ids []opscore.ID
	check(t, json.Unmarshal(out, &ids))
	for i, want := range []string{"3", "5", "7", "42"} {
		r.completed(ids[i], want)
	}
	noted(`["ok", "` + ids[3].String() + `", 42]`)
	noted(`["bad", 2, "ValueError"]`)
	noted(`["spent", 1]`)
	r.completed(ids[5], "35") // ((1+2)*10)+5, in Go, Python and Go

	s := r.sender(dramatiq.Queues{})
	check(t, s.Send(t.Context(), newMessage(t, "mul", "python", "[6,7]")))
	noted(`["mul", 6, 7]`)
	m := newMessage(t, "flaky", "python", `["go"]`)
	check(t, s.Send(t.Context(), m.Delayed(0)))
	noted(`["flaky", "go"]`)
	r.until("Python gives it up", func() bool { return r.waiting("python.XQ") == 1 })
}
