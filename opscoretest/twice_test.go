package opscoretest

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

type purchase struct {
	Number int `json:"number"`
}

var mail = opscore.Actor[purchase, string]{Name: "mail"}

// forgetful does everything again.
func forgetful(_ *testing.T, tr *Trial) func(context.Context, purchase) (string, error) {
	return func(ctx context.Context, o purchase) (string, error) {
		tr.Effect("charged %d", o.Number)
		if _, err := mail.Submit(ctx, tr.Client, o); err != nil {
			return "", err
		}
		opscore.FromContext(ctx).Progress(1, "done")
		return "ordered", nil
	}
}

// mindful does the same and can be repeated.
func mindful(_ *testing.T, tr *Trial) func(context.Context, purchase) (string, error) {
	return func(ctx context.Context, o purchase) (string, error) {
		key := "order-" + strconv.Itoa(o.Number)
		tr.EffectOnce(key, "charged %d", o.Number)
		if _, err := mail.Submit(ctx, tr.Client, o, opscore.Unique(key)); err != nil {
			return "", err
		}
		opscore.FromContext(ctx).Progress(1, "done")
		return "ordered", nil
	}
}

// hasty notes that it has charged before it does.
func hasty(_ *testing.T, tr *Trial) func(context.Context, purchase) (string, error) {
	paid := map[int]bool{}
	return func(_ context.Context, o purchase) (string, error) {
		if !paid[o.Number] {
			paid[o.Number] = true
			tr.Effect("charged %d", o.Number)
		}
		return "", nil
	}
}

// careless sends a mail once its task is completed: nobody will do it again.
func careless(t *testing.T, tr *Trial) func(context.Context, purchase) (string, error) {
	return func(ctx context.Context, o purchase) (string, error) {
		tx, err := tr.Store.DB().BeginTx(ctx, nil)
		if err != nil {
			return "", err
		}
		defer func() { _ = tx.Rollback() }()
		if _, err := mail.Submit(ctx, tr.Client, o, sqlite.In(tx)); err != nil {
			return "", err
		}
		if err := errors.Join(sqlite.Complete(ctx, tx, "ordered"), tx.Commit()); err != nil {
			t.Error(err)
		}
		tr.Effect("thanked for %d", o.Number)
		return "ordered", nil
	}
}

// snoozing comes back in ten days, and fails at first.
func snoozing(_ *testing.T, tr *Trial) func(context.Context, purchase) (string, error) {
	slept := false
	return func(ctx context.Context, o purchase) (string, error) {
		opscore.FromContext(ctx).Log.Info("awake")
		switch {
		case !slept:
			slept = true
			return "", opscore.Snooze(10 * 24 * time.Hour)
		case opscore.FromContext(ctx).Attempt < 2:
			return "", errors.New("not yet")
		}
		tr.EffectOnce("key", "charged %d", o.Number)
		return "ordered", nil
	}
}

func TestAHandlerThatSnoozesCanBeTried(t *testing.T) {
	Twice(t, snoozing, purchase{Number: 7})
}

func TestAHandlerThatCanBeRepeatedPasses(t *testing.T) {
	Twice(t, mindful, purchase{Number: 7})
}

func TestEveryPlaceToCrashAtIsTried(t *testing.T) {
	var mu sync.Mutex
	runs := 0
	Twice(t, func(t *testing.T, tr *Trial) func(context.Context, purchase) (string, error) {
		h := mindful(t, tr)
		return func(ctx context.Context, o purchase) (string, error) {
			mu.Lock()
			runs++
			mu.Unlock()
			return h(ctx, o)
		}
	}, purchase{Number: 7})
	// Once without a crash; twice for each of: before and after the charge, before and after the submit, at the progress, after the end.
	if runs != 1+2*6 {
		t.Errorf("the handler ran %d times, want 13", runs)
	}
}

func TestHandlerCallsAsAWorkerWould(t *testing.T) {
	a := opscore.Actor[greeting, greeting]{Name: "greet", MaxAttempts: 3, Timeout: time.Minute, Labels: map[string]string{"shop": "7"}}
	out, err := Handler(t, a, func(ctx context.Context, g greeting) (greeting, error) {
		run := opscore.FromContext(ctx)
		if run.ID == (opscore.ID{}) || run.Actor != "greet" || run.Queue != "default" || run.Attempt != 1 || run.MaxAttempts != 3 || run.Labels["shop"] != "7" {
			t.Errorf("run %+v", run)
		}
		if end, ok := ctx.Deadline(); !ok || time.Until(end) > time.Minute {
			t.Errorf("deadline %s, %v", end, ok)
		}
		run.Log.Info("at work", "on", g.Name)
		run.Progress(0.5, "half")
		return greeting{"hello " + g.Name}, nil
	}, greeting{"ann"})
	if err != nil || out.Name != "hello ann" {
		t.Errorf("%v, %v", out, err)
	}
	broken := errors.New("broken")
	if _, err := Handler(t, a, func(context.Context, greeting) (greeting, error) { return greeting{}, opscore.Abort(broken) }, greeting{}); !errors.Is(err, broken) {
		t.Errorf("the handler's error became %v", err)
	}
}
