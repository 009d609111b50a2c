package opscoretest

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

func TestAnHourOfBackoffTakesNoTime(t *testing.T) {
	h := opscore.Handlers{}
	slow := opscore.Actor[greeting, string]{Name: "greet"}
	opscore.Handle(h, slow, func(ctx context.Context, g greeting) (string, error) {
		if opscore.FromContext(ctx).Attempt < 10 {
			return "", errors.New("not yet")
		}
		return "hello " + g.Name, nil
	})
	Run(t, h, func(t *testing.T, env *Env) {
		began := time.Now()
		sub, err := slow.Submit(t.Context(), env.Client, greeting{"ann"}, opscore.After(50*time.Minute))
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
		if attempts := env.Attempts(sub.ID, 10); len(attempts) != 10 || attempts[0].Error != "not yet" {
			t.Errorf("attempts %+v", attempts)
		}
		// 1+2+4+…+256 s of backoff, each within 20 %.
		if passed := time.Since(began) - 50*time.Minute; passed < 511*time.Second*8/10 || passed > 511*time.Second*12/10+5*time.Second {
			t.Errorf("backoff took %s, want about 511 s", passed)
		}
		out, err := slow.Wait(t.Context(), env.Client, sub.ID)
		if err != nil || out != "hello ann" {
			t.Errorf("wait = %q, %v", out, err)
		}
	})
}

func TestDrainWaitsForWhatIsDueOrRunning(t *testing.T) {
	Run(t, handlers(nil), func(t *testing.T, env *Env) {
		id := submit(t, env, nap, 5*time.Minute)
		env.Drain()
		if task := env.MustEnd(id); task.State != opscore.Completed || task.FinishedAt.Sub(task.StartedAt) != 5*time.Minute {
			t.Errorf("after Drain the task is %s, after %s", task.State, task.FinishedAt.Sub(task.StartedAt))
		}
	})
}

func TestYearsWithoutWorkTakeNoTime(t *testing.T) {
	Run(t, handlers(nil), func(t *testing.T, env *Env) {
		id := submit(t, env, greet, greeting{"ann"}, opscore.After(300*24*time.Hour))
		expires := submit(t, env, greet, greeting{"bob"}, opscore.After(400*24*time.Hour), opscore.ExpiresAfter(600*24*time.Hour), opscore.Queue("nobody"))
		if late := env.MustComplete(id); late.StartedAt.Sub(late.RunAt) > time.Second {
			t.Errorf("it started %s late", late.StartedAt.Sub(late.RunAt))
		}
		env.Advance(400 * 24 * time.Hour)
		env.Failed(expires, "expired")
		if id := submit(t, env, greet, greeting{"eve"}); env.MustComplete(id).Attempt != 1 {
			t.Error("the worker did not go on")
		}
	})
}

// A bubble's goroutine submits while the test only advances the time: the worker must be there for it.
func TestSomebodySubmitsWhileTheTestAdvances(t *testing.T) {
	Run(t, handlers(nil), func(t *testing.T, env *Env) {
		ids := make(chan opscore.ID, 1)
		time.AfterFunc(50*time.Hour, func() {
			sub, err := greet.Submit(t.Context(), env.Client, greeting{"ann"})
			if err != nil || len(sub.Warnings) > 0 {
				t.Errorf("warnings %v, %v", sub.Warnings, err)
			}
			ids <- sub.ID
		})
		env.Advance(50*time.Hour + time.Minute)
		if task := env.MustComplete(<-ids); task.StartedAt.Sub(task.CreatedAt) > 2*time.Second {
			t.Errorf("it started after %s", task.StartedAt.Sub(task.CreatedAt))
		}
	})
}

func TestACrashLosesAnAttemptAndNoTask(t *testing.T) {
	var started, finished atomic.Int64
	h := opscore.Handlers{}
	opscore.Handle(h, nap, func(ctx context.Context, d time.Duration) (string, error) {
		started.Add(1)
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
		finished.Add(1)
		return "rested", nil
	})
	Run(t, h, func(t *testing.T, env *Env) {
		id := submit(t, env, nap, time.Minute)
		env.Advance(time.Second)
		env.CrashWorker()
		task := env.MustComplete(id)
		if task.Lost != 1 || task.Attempt != 1 || started.Load() != 2 || finished.Load() != 1 {
			t.Errorf("lost %d times, attempt %d, started %d times, finished %d times", task.Lost, task.Attempt, started.Load(), finished.Load())
		}
		if a := env.Attempts(id, 1); len(a) != 2 || a[0].Code != opscore.CodeLost {
			t.Errorf("attempts %+v", a)
		}
	})
}

func TestATaskThatWaitsToRunAloneIsNotTakenForAStuckOne(t *testing.T) {
	Run(t, handlers(nil), func(t *testing.T, env *Env) {
		id := submit(t, env, nap, 5*time.Second, opscore.Timeout(10*time.Second))
		for n := 1; n < opscore.MaxLost; n++ {
			env.Advance(time.Second)
			env.CrashWorker()
			if n < opscore.MaxLost-1 {
				env.Advance(opscore.LostDelay(n))
			}
		}
		long := submit(t, env, nap, 5*time.Minute, opscore.Timeout(time.Hour))
		env.Advance(time.Minute)
		task, err := env.Client.Get(t.Context(), id)
		if err != nil || task.State != opscore.Running || task.Alone || !task.Suspect() {
			t.Fatalf("beside the long task it is %s, lost %d, alone: %v, %v", task.State, task.Lost, task.Alone, err)
		}
		if task := env.MustComplete(id); task.Attempt != 1 {
			t.Errorf("attempt %d", task.Attempt)
		}
		env.MustComplete(long)
	})
}

// The handler of a crashed worker cannot be killed. What it does must not count. The handler here runs in a bubble.
func TestNothingCountsThatACrashedWorkerStillDoes(t *testing.T) {
	var store *sqlite.Store
	completed := make(chan error, 1)
	h := opscore.Handlers{}
	var runs atomic.Int64
	opscore.Handle(h, nap, func(ctx context.Context, d time.Duration) (string, error) {
		first := runs.Add(1) == 1
		time.Sleep(d) // it does not heed its context
		if !first {
			return "second", nil
		}
		tx, err := store.DB().BeginTx(context.WithoutCancel(ctx), nil)
		if err != nil {
			return "", err
		}
		defer func() { _ = tx.Rollback() }()
		err = sqlite.Complete(ctx, tx, "first")
		completed <- err
		return "first", err
	})
	Run(t, h, func(t *testing.T, env *Env) {
		store = env.Store.(*sqlite.Store)
		id := submit(t, env, nap, time.Minute)
		env.Advance(time.Second)
		env.CrashWorker()
		if task := env.MustComplete(id); string(task.Result) != `"second"` {
			t.Errorf("result %s", task.Result)
		}
		if err := <-completed; !errors.Is(err, opscore.ErrLeaseLost) {
			t.Errorf("the crashed worker's Complete: %v, want %v", err, opscore.ErrLeaseLost)
		}
	})
}

func TestAPausedWorkerLosesItsLeaseAndItsTaskRunsAgain(t *testing.T) {
	Run(t, handlers(nil), func(t *testing.T, env *Env) {
		id := submit(t, env, nap, 10*time.Second)
		env.Advance(time.Second)
		env.PauseWorker(2 * time.Minute)
		env.Advance(time.Minute)
		if task, err := env.Client.Get(t.Context(), id); err != nil || task.Lost != 1 {
			t.Errorf("after a minute it was lost %d times, %v", task.Lost, err)
		}
		if task := env.MustComplete(id); task.Attempt != 1 {
			t.Errorf("attempt %d", task.Attempt)
		}
	})
}

func TestAStoreThatFailsDelaysAndLosesNothing(t *testing.T) {
	for n := range 12 {
		Run(t, handlers(nil), func(t *testing.T, env *Env) {
			env.FailStore(n)
			id := submit(t, env, greet, greeting{"ann"})
			if task := env.MustComplete(id); task.Attempt != 1 {
				t.Errorf("with %d calls that fail: attempt %d", n, task.Attempt)
			}
		})
	}
}

func TestADroppedStoreIsFoundAgain(t *testing.T) {
	Run(t, handlers(nil), func(t *testing.T, env *Env) {
		env.DropStore(10 * time.Second)
		id := submit(t, env, greet, greeting{"ann"})
		task := env.MustComplete(id)
		// It may have been claimed already.
		if waited := task.FinishedAt.Sub(task.CreatedAt); waited < 10*time.Second || waited > 20*time.Second {
			t.Errorf("it was over after %s", waited)
		}
	})
}

func TestAFaultMayLastForDays(t *testing.T) {
	Run(t, handlers(nil), func(t *testing.T, env *Env) {
		env.PauseWorker(2 * time.Hour)
		env.MustComplete(submit(t, env, greet, greeting{"ann"}))
		env.DropStore(26 * time.Hour)
		id := submit(t, env, greet, greeting{"ann"})
		env.Drain()
		env.MustComplete(id)
	})
}

func TestASkippedTestIsSkipped(t *testing.T) {
	skipped := true
	t.Run("inner", func(t *testing.T) {
		defer func() { skipped = t.Skipped() }()
		Run(t, nil, func(t *testing.T, _ *Env) { t.SkipNow() })
	})
	if !skipped {
		t.Error("it was not")
	}
}

func TestSubmittedFindsATaskByItsInput(t *testing.T) {
	Run(t, nil, func(t *testing.T, env *Env) { // nobody runs them
		id := submit(t, env, greet, greeting{"ann"})
		submit(t, env, greet, greeting{"bob"})
		submit(t, env, nap, time.Hour, opscore.After(time.Hour))
		if task := Submitted(env, greet, func(g greeting) bool { return g.Name == "ann" }); task.ID != id {
			t.Errorf("found %s, want %s", task.ID, id)
		}
		if task := Submitted(env, nap, nil); string(task.Args) != "3600000000000" {
			t.Errorf("found args %s", task.Args)
		}
		NotSubmitted(env, greet, func(g greeting) bool { return g.Name == "eve" })
		NotSubmitted(env, whoami, nil)
	})
}

func TestDrainLeavesWhatNobodyHereRuns(t *testing.T) {
	Run(t, handlers(nil), func(t *testing.T, env *Env) {
		other := opscore.Actor[greeting, string]{Name: "other"}
		left := submit(t, env, other, greeting{"ann"})
		done := submit(t, env, greet, greeting{"ann"})
		env.Drain()
		if task := env.MustEnd(done); task.State != opscore.Completed {
			t.Errorf("it is %s", task.State)
		}
		if task, err := env.Client.Get(t.Context(), left); err != nil || task.State != opscore.Pending {
			t.Errorf("the other is %s, %v", task.State, err)
		}
	})
}
