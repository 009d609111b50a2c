package opscoretest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/opscore/opscore"
)

// Tests here are inside the package: a scenario that must fail runs with a shorter patience than users have.

func TestMain(m *testing.M) {
	name := os.Getenv(scenarioEnv)
	switch {
	case name != "" && os.Getenv(assignmentEnv) == "":
		playScenario(name)
	case name == noMain:
		m.Run()
	default:
		Main(m, handlers)
	}
}

type greeting struct {
	Name string `json:"name"`
}

// greet greets, or refuses to greet nobody.
var greet = opscore.Actor[greeting, string]{Name: "greet", MaxAttempts: 3, Retry: opscore.Backoff{Base: 10 * time.Millisecond}}

// nap sleeps as long as it is told.
var nap = opscore.Actor[time.Duration, string]{Name: "nap"}

// whoami tells which process runs it.
var whoami = opscore.Actor[struct{}, int]{Name: "whoami"}

// leave leaves a process behind and tells which.
var leave = opscore.Actor[struct{}, int]{Name: "leave"}

// block never returns, whatever its context says.
var block = opscore.Actor[struct{}, string]{Name: "block", Timeout: time.Second}

// handlers are those of the tests' workers, also of those in processes of their own.
func handlers(opscore.Store) opscore.Handlers {
	h := opscore.Handlers{}
	opscore.Handle(h, greet, func(ctx context.Context, g greeting) (string, error) {
		opscore.FromContext(ctx).Log.Info("asked to greet", "name", g.Name)
		if g.Name == "" {
			return "", opscore.Abort(errors.New("nobody to greet"))
		}
		return "hello " + g.Name, nil
	})
	opscore.Handle(h, nap, func(ctx context.Context, d time.Duration) (string, error) {
		select {
		case <-time.After(d):
			return "rested", nil
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	})
	opscore.Handle(h, whoami, func(context.Context, struct{}) (int, error) { return os.Getpid(), nil })
	opscore.Handle(h, leave, func(ctx context.Context, _ struct{}) (int, error) {
		cmd := exec.CommandContext(context.WithoutCancel(ctx), "sleep", "3600")
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		return cmd.Process.Pid, nil
	})
	opscore.Handle(h, block, func(context.Context, struct{}) (string, error) { select {} })
	return h
}

func submit[In, Out any](t *testing.T, e *Env, a opscore.Actor[In, Out], in In, opts ...opscore.Option) opscore.ID {
	t.Helper()
	sub, err := a.Submit(t.Context(), e.Client, in, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return sub.ID
}
