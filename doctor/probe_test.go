package doctor_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/doctor"
	"github.com/opscore/opscore/opscoretest"
)

var greet = opscore.Actor[string, string]{Name: "greet", Queue: "mail"}

func greeters(with func(context.Context) error) opscore.Handlers {
	h := opscore.Handlers{}
	opscore.Handle(h, greet, func(ctx context.Context, name string) (string, error) { return "hello " + name, with(ctx) })
	return h
}

func politely(context.Context) error { return nil }

func names(hops []doctor.Hop) (all []string) {
	for _, h := range hops {
		all = append(all, h.Name)
	}
	return all
}

// wantGone checks that nothing of a canary is left.
func wantGone(t *testing.T, env *opscoretest.Env, id opscore.ID) {
	t.Helper()
	if task, err := env.Client.Get(t.Context(), id); !errors.Is(err, opscore.ErrTaskNotFound) {
		t.Errorf("the canary is still there: %+v, %v", task, err)
	}
	counts, err := env.Client.Count(t.Context())
	if err != nil || slices.ContainsFunc(counts, func(c opscore.Count) bool { return c.Actor == opscore.CanaryActor }) {
		t.Errorf("counts = %v, %v", counts, err)
	}
}

func TestACanaryTellsHowLongEachHopTook(t *testing.T) {
	for tier, want := range map[opscoretest.Tier]string{
		opscoretest.Embedded: "insert claim start finish",
		opscoretest.Postgres: "insert claim start finish",
		opscoretest.Cluster:  "insert relay deliver claim start finish",
	} {
		t.Run(string(tier), func(t *testing.T) {
			t.Parallel()
			env := opscoretest.Live(t, opscoretest.Options{Tier: tier, Handlers: greeters(politely)})
			var said []string
			p := doctor.Probe{Store: env.Store, Queue: "mail", OnHop: func(_ opscore.ID, h doctor.Hop) { said = append(said, h.Name) }}
			var trace doctor.Trace
			for n := 0; ; n++ { // the relay may not know yet that there are workers: then the first canaries are pulled
				said = nil
				var err error
				if trace, err = p.Run(t.Context()); err != nil || trace.Stuck != "" || trace.Left {
					t.Fatalf("trace = %+v, %v", trace, err)
				}
				wantGone(t, env, trace.Task)
				if strings.Join(names(trace.Hops), " ") == want || n == 20 {
					break
				}
				<-time.After(200 * time.Millisecond)
			}
			if got := strings.Join(names(trace.Hops), " "); got != want || got != strings.Join(said, " ") {
				t.Fatalf("hops = %s, said %v, want %s: %+v", got, said, want, trace)
			}
			var sum opscore.Duration
			last := trace.Hops[0].At
			for n, h := range trace.Hops {
				if h.At.Before(last) || h.At.IsZero() || n > 0 && h.Took != opscore.Duration(h.At.Sub(last)) || h.Err+h.Note != "" {
					t.Errorf("hop %d = %+v", n, h)
				}
				if last = h.At; n > 0 {
					sum += h.Took
				}
			}
			workers, err := env.Store.Workers(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			if w := workers[0]; sum != trace.Took || trace.By.Worker != w.ID || trace.By.PID != w.PID || trace.By.Host != w.Host ||
				!slices.Equal(w.Actors, []string{"greet"}) || !w.Canaries {
				t.Errorf("trace = %+v, by %+v", trace, w)
			}
		})
	}
}

func TestACanaryStopsAtTheHopThatDoesNotAnswer(t *testing.T) {
	opscoretest.Run(t, greeters(politely), func(t *testing.T, env *opscoretest.Env) {
		trace, err := doctor.Probe{Store: env.Store, Queue: "unheard"}.Run(t.Context())
		last := trace.Hops[len(trace.Hops)-1]
		if err != nil || trace.Stuck != doctor.HopClaim || last.Name != doctor.HopClaim || time.Duration(last.Took) < 10*time.Second || last.Err == "" || trace.Left {
			t.Errorf("a queue without workers: %+v, %v", trace, err)
		}
		wantGone(t, env, trace.Task)
		if err := env.Client.Pause(t.Context(), "mail", "me", ""); err != nil {
			t.Fatal(err)
		}
		if trace, err = (doctor.Probe{Store: env.Store, Queue: "mail", Patience: time.Second}).Run(t.Context()); err != nil || trace.Stuck != doctor.HopClaim {
			t.Errorf("a paused queue: %+v, %v", trace, err)
		}
		wantGone(t, env, trace.Task)
		if _, err := (doctor.Probe{Store: env.Store, Queue: "no queue"}).Run(t.Context()); !errors.Is(err, opscore.ErrInvalid) {
			t.Errorf("a name that no queue can have: %v", err)
		}
	})
}

func TestACanaryOvertakesWhatWaitsButNeedsASlot(t *testing.T) {
	h := opscore.Handlers{}
	opscore.Handle(h, greet, func(ctx context.Context, length string) (string, error) {
		d, err := time.ParseDuration(length)
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
		return "", err
	})
	opscoretest.Run(t, h, func(t *testing.T, env *opscoretest.Env) {
		requests := []opscore.Request{greet.Request("15s", opscore.Priority(1))}
		for range opscore.DefaultSlots + 50 {
			requests = append(requests, greet.Request("1m"))
		}
		if _, err := env.Client.Submit(t.Context(), requests...); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		trace, err := doctor.Probe{Store: env.Store, Queue: "mail"}.Run(t.Context())
		if err != nil || trace.Stuck != doctor.HopClaim {
			t.Errorf("with all slots busy: %+v, %v", trace, err)
		}
		// Four seconds later one slot is free, and 51 tasks wait for it.
		trace, err = doctor.Probe{Store: env.Store, Queue: "mail"}.Run(t.Context())
		if err != nil || trace.Stuck != "" || time.Duration(trace.Took).Round(time.Second) != 4*time.Second {
			t.Errorf("with one free slot: %+v, %v", trace, err)
		}
	})
}

func TestACanaryThatAWorkerDoesNotLetGoOfIsRemovedLater(t *testing.T) {
	opscoretest.Run(t, greeters(politely), func(t *testing.T, env *opscoretest.Env) {
		w := opscore.WorkerInfo{ID: opscore.ID{1}, Host: "elsewhere", PID: 1, Queues: []string{"far"}, Actors: []string{"act"}, Slots: 1, State: opscore.WorkerReady}
		if err := env.Store.Register(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(time.Second)
			_, _ = env.Store.Claim(t.Context(), opscore.Claim{Worker: w.ID, Queues: []string{"far"}, Actors: []string{opscore.CanaryActor}, Max: 1})
		}()
		trace, err := doctor.Probe{Store: env.Store, Queue: "far"}.Run(t.Context())
		if err != nil || strings.Join(names(trace.Hops), " ") != "insert claim finish" || trace.Stuck != doctor.HopFinish || !trace.Left ||
			!strings.Contains(trace.Hops[2].Err, w.ID.String()) || trace.Hops[1].Took < opscore.Duration(time.Second) {
			t.Errorf("trace = %+v, %v", trace, err)
		}
		time.Sleep(2 * time.Minute) // its worker is dead by then, and the canary was cancelled
		wantGone(t, env, trace.Task)
	})
}

func TestACanaryThatNobodyLooksAfterIsRemovedWhenItExpires(t *testing.T) {
	opscoretest.Run(t, greeters(politely), func(t *testing.T, env *opscoretest.Env) {
		ctx, cancel := context.WithCancel(t.Context())
		canary := opscore.NewCanary("unheard")
		subs, err := env.Client.Submit(ctx, canary)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		wantGone(t, env, subs[0].ID)
	})
}

func TestTheNamesOfOpscoresOwnActorsAreReserved(t *testing.T) {
	opscoretest.Run(t, nil, func(t *testing.T, env *opscoretest.Env) {
		h := opscore.Handlers{}
		opscore.Handle(h, opscore.Actor[struct{}, string]{Name: opscore.CanaryActor}, func(context.Context, struct{}) (string, error) { return "", nil })
		if err := (&opscore.Worker{Store: env.Store, Handlers: h}).Run(t.Context()); !errors.Is(err, opscore.ErrInvalid) || !strings.Contains(err.Error(), "opscore's own") {
			t.Errorf("the worker: %v", err)
		}
	})
}
