package opscore_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

// clinic is a store with workers, in fake time, whose tasks are explained.
type clinic struct {
	*testing.T
	*opscore.Client
}

func inClinic(t *testing.T, test func(c clinic)) {
	synctest.Test(t, func(t *testing.T) {
		s, err := sqlite.Open(filepath.Join(t.TempDir(), "opscore.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		test(clinic{t, &opscore.Client{Store: s}})
	})
}

// hire starts a worker, without a keeper.
func (c clinic) hire(slots int, fn func(context.Context, mail) (string, error)) (stop func()) {
	c.Helper()
	ctx, cancel := context.WithCancel(c.Context())
	done := make(chan error, 1)
	w := &opscore.Worker{Store: c.Store, Handlers: handlers(fn), Slots: slots, Drain: time.Nanosecond, Log: slog.New(slog.DiscardHandler)}
	go func() { done <- w.Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, opscore.ErrHandlerStuck) {
			c.Errorf("worker: %v", err)
		}
	}
}

func (c clinic) submit(opts ...opscore.Option) opscore.ID {
	c.Helper()
	sub, err := send.Submit(c.Context(), c.Client, mail{"ann"}, opts...)
	if err != nil {
		c.Fatal(err)
	}
	synctest.Wait()
	return sub.ID
}

// says checks the decisive cause, and that its text holds some words.
func (c clinic) says(id opscore.ID, code string, words ...string) opscore.Cause {
	c.Helper()
	causes, err := c.Explain(c.Context(), id)
	if err != nil {
		c.Fatal(err)
	}
	for _, w := range words {
		if !strings.Contains(causes[0].Text, w) {
			c.Errorf("%q is missing in %q", w, causes[0].Text)
		}
	}
	if causes[0].Code != code {
		c.Errorf("cause = %s, want %s: %+v", causes[0].Code, code, causes)
	}
	return causes[0]
}

// pass lets time pass; it runs in a bubble.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestExplainFollowsATaskThroughItsLife(t *testing.T) {
	inClinic(t, func(c clinic) {
		id := c.submit(opscore.After(time.Hour))
		c.says(id, opscore.CauseScheduled, "in 1h")
		pass(time.Hour)
		c.says(id, opscore.CauseNoWorker)
		attempt, heed := 0, make(chan struct{})
		stop := c.hire(1, func(ctx context.Context, _ mail) (string, error) {
			if attempt++; attempt == 1 {
				return "", errors.New("no route to ann")
			}
			<-ctx.Done()
			<-heed
			return "", ctx.Err()
		})
		defer stop()
		pass(100 * time.Millisecond)
		cause := c.says(id, opscore.CauseRetryBackoff, "attempt 1 of 3", "no route to ann")
		if got, err := c.Get(c.Context(), id); err != nil || !cause.Next.Equal(got.RunAt) {
			c.Errorf("next = %s, want %s; %v", cause.Next, got.RunAt, err)
		}
		pass(2 * time.Second)
		c.says(id, opscore.CauseRunning, "attempt 2 of 3")
		behind := c.submit()
		c.says(behind, opscore.CauseSlotsBusy, id.String())
		if _, err := c.Cancel(c.Context(), id, "bob"); err != nil {
			c.Fatal(err)
		}
		c.says(id, opscore.CauseCancelRequested, "bob")
		pass(20 * time.Second)
		c.says(id, opscore.CauseHandlerStuck, "bob cancelled it 20s ago")
		close(heed)
		pass(time.Second)
		c.says(id, opscore.CauseCancelled, "bob")
		if _, err := c.Cancel(c.Context(), behind, "bob"); err != nil {
			c.Fatal(err)
		}
	})
}

func TestExplainTellsASlowHandlerFromOneThatIsStuck(t *testing.T) {
	inClinic(t, func(c clinic) {
		release := make(chan struct{})
		stop := c.hire(1, func(context.Context, mail) (string, error) { <-release; return "", nil })
		defer stop()
		id := c.submit(opscore.Timeout(time.Minute))
		pass(55 * time.Second)
		c.says(id, opscore.CauseRunning, "for 55s")
		pass(20 * time.Second)
		c.says(id, opscore.CauseHandlerStuck, "its time of 1m0s was over 15s ago")
		close(release)
	})
}

func TestExplainNamesAWorkerThatHasGoneSilentAndThatNobodyTakesItsTasksBack(t *testing.T) {
	inClinic(t, func(c clinic) {
		w := opscore.WorkerInfo{
			ID: opscore.ID{1}, Host: "hall", PID: 4711, Build: "b", Queues: []string{"default"}, Actors: []string{"send"}, Slots: 1, State: opscore.WorkerReady,
		}
		if err := c.Store.Register(c.Context(), w); err != nil {
			c.Fatal(err)
		}
		id := c.submit()
		c.says(id, opscore.CauseReady, "hall")
		if got, err := c.Store.Claim(c.Context(), opscore.Claim{Worker: w.ID, Queues: w.Queues, Actors: w.Actors, Max: 1}); err != nil || len(got.Tasks) != 1 {
			c.Fatalf("claim = %+v, %v", got, err)
		}
		pass(10 * time.Second)
		c.says(id, opscore.CauseRunning)
		pass(10 * time.Second)
		c.says(id, opscore.CauseWorkerSilent, "hall, process 4711", "for 20s")
		pass(time.Minute)
		causes, err := c.Explain(c.Context(), id)
		if err != nil || len(causes) != 3 || causes[1].Code != opscore.CauseNoKeeper || causes[2].Code != opscore.CauseNoWorker {
			c.Errorf("causes = %+v, %v", causes, err)
		}
		if err := c.Store.Leave(c.Context(), w.ID, "its process is dead", opscore.Report{}); err != nil {
			c.Fatal(err)
		}
		c.says(id, opscore.CauseWorkerDied, "its process is dead")
		if _, err := c.Store.Rescue(c.Context()); err != nil {
			c.Fatal(err)
		}
		c.says(id, opscore.CauseWorkerDied, "1 of 3 times", "in 1s")
		pass(2 * time.Second)
		c.says(id, opscore.CauseNoWorker)
	})
}

func TestExplainSaysWhatKeepsATaskThatHasToRunAlone(t *testing.T) {
	inClinic(t, func(c clinic) {
		id := c.submit()
		for i := range opscore.MaxLost - 1 {
			w := opscore.WorkerInfo{ID: opscore.ID{byte(i + 1)}, Queues: []string{"default"}, Actors: []string{"send"}, Slots: 1, State: opscore.WorkerReady}
			if err := c.Store.Register(c.Context(), w); err != nil {
				c.Fatal(err)
			}
			if got, err := c.Store.Claim(c.Context(), opscore.Claim{Worker: w.ID, Queues: w.Queues, Actors: w.Actors, Max: 1}); err != nil || len(got.Tasks) != 1 {
				c.Fatalf("claim = %+v, %v", got, err)
			}
			if err := c.Store.Leave(c.Context(), w.ID, "killed", opscore.Report{}); err != nil {
				c.Fatal(err)
			}
			if _, err := c.Store.Rescue(c.Context()); err != nil {
				c.Fatal(err)
			}
			if i == 0 {
				pass(time.Minute)
			}
		}
		release := make(chan struct{})
		stop := c.hire(2, func(context.Context, mail) (string, error) { <-release; return "", nil })
		defer stop()
		other := c.submit()
		c.says(other, opscore.CauseRunning)
		pass(10 * time.Second) // the backoff is over
		c.says(id, opscore.CauseWaitsAlone, "lost 2 times")
		c.says(c.submit(), opscore.CauseWaitsForSuspect)
		close(release)
		pass(time.Second)
		c.says(id, opscore.CauseCompleted)
	})
}

func TestExplainKnowsWhatItsDatabaseCannotHold(t *testing.T) {
	inClinic(t, func(c clinic) {
		c.Retention = opscore.Retention{Default: opscore.Keep{Completed: time.Minute}}
		stop := c.hire(1, ok)
		defer stop()
		id := c.submit(opscore.WithID(idFrom(time.Now()))) // those that are made never go back in time, as fake time does
		pass(time.Second)
		c.says(id, opscore.CauseCompleted)
		for range 2 {
			pass(2 * time.Minute)
			if _, err := c.Store.Prune(c.Context(), c.Retention); err != nil {
				c.Fatal(err)
			}
		}
		// In fake time the file was made long after everything that happens in it.
		f, err := c.Facts(c.Context(), id)
		if err != nil || f.Task != nil {
			c.Fatalf("facts = %+v, %v", f, err)
		}
		f.Made = time.Time{}
		if got := opscore.Explain(f)[0]; got.Code != opscore.CausePruned {
			c.Errorf("cause = %+v", got)
		}
	})
}
