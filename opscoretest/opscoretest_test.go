package opscoretest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/opscoretest"
)

type greeting struct {
	Name string `json:"name"`
}

var greet = opscore.Actor[greeting, string]{Name: "greet"}

func TestAnHourOfBackoffTakesNoTime(t *testing.T) {
	h := opscore.Handlers{}
	opscore.Handle(h, greet, func(ctx context.Context, g greeting) (string, error) {
		if opscore.FromContext(ctx).Attempt < 10 {
			return "", errors.New("not yet")
		}
		return "hello " + g.Name, nil
	})
	opscoretest.Run(t, h, func(t *testing.T, env *opscoretest.Env) {
		began := time.Now()
		sub, err := greet.Submit(t.Context(), env.Client, greeting{"ann"}, opscore.After(50*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if len(sub.Warnings) > 0 {
			t.Errorf("warnings although a worker is live: %v", sub.Warnings)
		}
		env.Drain()
		if passed := time.Since(began); passed > time.Minute {
			t.Errorf("Drain waited %s for a task that is not due", passed)
		}
		task := env.MustComplete(sub.ID)
		if string(task.Result) != `"hello ann"` || task.Attempt != 10 {
			t.Errorf("result %s after %d attempts", task.Result, task.Attempt)
		}
		// 1+2+4+…+256 s of backoff, each within 20 %.
		if passed := time.Since(began) - 50*time.Minute; passed < 511*time.Second*8/10 || passed > 511*time.Second*12/10+5*time.Second {
			t.Errorf("backoff took %s, want about 511 s", passed)
		}
		out, err := greet.Wait(t.Context(), env.Client, sub.ID)
		if err != nil || out != "hello ann" {
			t.Errorf("wait = %q, %v", out, err)
		}
	})
}

func TestDrainWaitsForWhatIsDueOrRunning(t *testing.T) {
	h := opscore.Handlers{}
	done := 0
	opscore.Handle(h, greet, func(ctx context.Context, g greeting) (string, error) {
		time.Sleep(time.Hour)
		done++
		return "", nil
	})
	opscoretest.Run(t, h, func(t *testing.T, env *opscoretest.Env) {
		if _, err := greet.Submit(t.Context(), env.Client, greeting{}, opscore.Timeout(2*time.Hour)); err != nil {
			t.Fatal(err)
		}
		env.Drain()
		if done != 1 {
			t.Errorf("Drain returned before the task was done")
		}
	})
}
