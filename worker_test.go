package opscore_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/opscoretest"
	"github.com/opscore/opscore/sqlite"
	"github.com/opscore/opscore/storetest"
)

// open opens a new store for the rest of the test.
func open(t *testing.T) *sqlite.Store {
	t.Helper()
	store, err := sqlite.Open(filepath.Join(t.TempDir(), "opscore.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

// employ starts a worker and waits until it is ready. The returned function stops it and returns what Run returned.
func employ(t *testing.T, w *opscore.Worker) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	w.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	w.OnReady = func(opscore.WorkerInfo) { close(ready) }
	go func() { done <- w.Run(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("worker: %v", err)
	}
	var once sync.Once
	var result error
	stop = func() error {
		once.Do(func() {
			cancel()
			result = <-done
		})
		return result
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

// keep runs a keeper until the test ends.
func keep(t *testing.T, store opscore.Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- (&opscore.Keeper{Store: store, Log: slog.New(slog.DiscardHandler)}).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func add(t *testing.T, store opscore.Store, opts ...opscore.Option) opscore.ID {
	t.Helper()
	sub, err := send.Submit(t.Context(), &opscore.Client{Store: store}, mail{}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return sub.ID
}

func look(t *testing.T, store opscore.Store, id opscore.ID) opscore.Task {
	t.Helper()
	task, err := (&opscore.Client{Store: store}).Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func history(t *testing.T, store opscore.Store, id opscore.ID) []opscore.Attempt {
	t.Helper()
	attempts, err := (&opscore.Client{Store: store}).Attempts(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return attempts
}

func codes(attempts []opscore.Attempt) string {
	var all []string
	for _, a := range attempts {
		code := string(a.Code)
		if a.Late {
			code += "(late)"
		}
		all = append(all, code)
	}
	return strings.Join(all, " ")
}

func TestAHandlerEndsItsAttemptAsItSays(t *testing.T) {
	var mode string
	h := handlers(func(ctx context.Context, m mail) (string, error) {
		if opscore.FromContext(ctx).Attempt > 1 || mode == "" {
			return "sent", nil
		}
		switch mode {
		case "snooze":
			mode = ""
			return "", opscore.Snooze(time.Hour)
		case "retry after":
			return "", opscore.RetryAfter(time.Minute, errors.New("busy"))
		case "abort":
			return "", opscore.Abort(errors.New("never"))
		case "panic":
			panic("ouch")
		case "timeout":
			<-ctx.Done()
			return "", ctx.Err()
		}
		return "", errors.New(mode)
	})
	opscoretest.Run(t, h, func(t *testing.T, env *opscoretest.Env) {
		for _, tc := range []struct {
			mode    string
			state   opscore.State
			attempt int
			codes   string
			took    time.Duration
		}{
			{"", opscore.Completed, 1, "completed", 0},
			{"error", opscore.Completed, 2, "error completed", time.Second},
			{"snooze", opscore.Completed, 1, "snoozed completed", time.Hour},
			{"retry after", opscore.Completed, 2, "error completed", time.Minute},
			{"abort", opscore.Failed, 1, "aborted", 0},
			{"panic", opscore.Completed, 2, "panic completed", time.Second},
			{"timeout", opscore.Completed, 2, "timeout completed", time.Minute + time.Second},
		} {
			began := time.Now()
			mode = tc.mode
			id := submit(t, env)
			task := env.MustEnd(id)
			attempts := history(t, env.Store, id)
			if task.State != tc.state || task.Attempt != tc.attempt || codes(attempts) != tc.codes {
				t.Errorf("%s: %s after attempt %d: %s", tc.mode, task.State, task.Attempt, codes(attempts))
			}
			if took := time.Since(began); took < tc.took*8/10 || took > tc.took*12/10+2*time.Second {
				t.Errorf("%s: took %s, want about %s", tc.mode, took, tc.took)
			}
			if tc.mode == "panic" && !strings.Contains(attempts[0].Error, "worker_test.go") {
				t.Errorf("the panic's stack is missing: %s", attempts[0].Error)
			}
			for _, a := range attempts {
				if a.Build == "" || a.Worker == (opscore.ID{}) || a.StartedAt.IsZero() || a.EndedAt.Before(a.StartedAt) {
					t.Errorf("%s: attempt is incomplete: %+v", tc.mode, a)
				}
			}
		}
	})
}

func TestACancelledRunLearnsOfItAtTheNextHeartbeat(t *testing.T) {
	var stopped time.Time
	h := handlers(func(ctx context.Context, m mail) (string, error) {
		<-ctx.Done()
		stopped = time.Now()
		return "", ctx.Err()
	})
	opscoretest.Run(t, h, func(t *testing.T, env *opscoretest.Env) {
		id := submit(t, env, opscore.Timeout(time.Hour))
		env.Advance(time.Second)
		asked := time.Now()
		task, err := env.Client.Cancel(t.Context(), id, "ann")
		if err != nil || task.State != opscore.Running {
			t.Fatalf("cancel = %s, %v", task.State, err)
		}
		task = env.MustEnd(id)
		if task.State != opscore.Cancelled || task.CancelledBy != "ann" {
			t.Errorf("task is %s by %q", task.State, task.CancelledBy)
		}
		if d := stopped.Sub(asked); d > opscore.HeartbeatEvery {
			t.Errorf("the handler learned of it after %s", d)
		}
	})
}

// The handler runs in a bubble.
func TestProgressAndLogsAreVisibleWhileTheTaskRuns(t *testing.T) {
	h := handlers(func(ctx context.Context, m mail) (string, error) {
		run := opscore.FromContext(ctx)
		run.Log.With("to", m.To).WithGroup("g").Info("connecting", "port", 25)
		run.Progress(0.5, "half")
		time.Sleep(time.Minute)
		run.Log.Debug("done")
		return "", nil
	})
	opscoretest.Run(t, h, func(t *testing.T, env *opscoretest.Env) {
		id := submit(t, env, opscore.Timeout(time.Hour))
		env.Advance(2 * time.Second)
		task := look(t, env.Store, id)
		if task.Progress != 0.5 || task.ProgressText != "half" {
			t.Errorf("progress = %v %q", task.Progress, task.ProgressText)
		}
		lines, err := env.Client.Logs(t.Context(), id)
		if err != nil || len(lines) != 1 || lines[0].Text != "connecting to=ann@example.com g.port=25" || lines[0].Level != "INFO" {
			t.Errorf("log while running = %+v, %v", lines, err)
		}
		env.MustComplete(id)
		if lines, _ = env.Client.Logs(t.Context(), id); len(lines) != 2 || lines[1].Text != "done" || lines[1].Level != "DEBUG" {
			t.Errorf("log = %+v", lines)
		}
	})
}

func TestTheLogOfAnAttemptIsBounded(t *testing.T) {
	h := handlers(func(ctx context.Context, m mail) (string, error) {
		for range 1000 {
			opscore.FromContext(ctx).Log.Info(strings.Repeat("x", 1000))
		}
		return "", nil
	})
	opscoretest.Run(t, h, func(t *testing.T, env *opscoretest.Env) {
		id := submit(t, env)
		env.MustComplete(id)
		lines, err := env.Client.Logs(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		size := 0
		for _, l := range lines {
			size += len(l.Text)
		}
		if size > 256<<10 || size < 200<<10 {
			t.Errorf("the log has %d bytes", size)
		}
		if last := lines[len(lines)-1]; last.Level != "WARN" || !strings.Contains(last.Text, "256 KiB") {
			t.Errorf("last line = %+v", last)
		}
	})
}

func TestAHandlerThatEndsItsGoroutineFailsItsAttempt(t *testing.T) {
	h := handlers(func(ctx context.Context, m mail) (string, error) {
		if opscore.FromContext(ctx).Attempt == 1 {
			runtime.Goexit()
		}
		return "sent", nil
	})
	opscoretest.Run(t, h, func(t *testing.T, env *opscoretest.Env) {
		id := submit(t, env)
		env.MustComplete(id)
		attempts := history(t, env.Store, id)
		if codes(attempts) != "error completed" || !strings.Contains(attempts[0].Error, "Goexit") {
			t.Errorf("attempts = %+v", attempts)
		}
	})
}

func TestAResultThatIsNotJSONFailsTheTask(t *testing.T) {
	raw := opscore.Actor[mail, json.RawMessage]{Name: "raw"}
	for _, bad := range []string{"not json", "", "{} {}"} {
		h := opscore.Handlers{}
		opscore.Handle(h, raw, func(context.Context, mail) (json.RawMessage, error) { return json.RawMessage(bad), nil })
		opscoretest.Run(t, h, func(t *testing.T, env *opscoretest.Env) {
			sub, err := raw.Submit(t.Context(), env.Client, mail{})
			if err != nil {
				t.Fatal(err)
			}
			if task := env.MustEnd(sub.ID); task.State != opscore.Failed || task.Code != opscore.CodeResultInvalid {
				t.Errorf("result %q: task is %s, %s", bad, task.State, task.Code)
			}
		})
	}
}

func TestALargeResultFailsTheTaskAtOnce(t *testing.T) {
	h := handlers(func(context.Context, mail) (string, error) { return strings.Repeat("x", 2<<20), nil })
	opscoretest.Run(t, h, func(t *testing.T, env *opscoretest.Env) {
		task := env.MustEnd(submit(t, env))
		if task.State != opscore.Failed || task.Code != opscore.CodeResultInvalid || !strings.Contains(task.Error, "2097154 bytes, the limit is 1048576") {
			t.Errorf("task is %s, %s: %s", task.State, task.Code, task.Error)
		}
	})
}

func TestArgsThatOneBuildCannotDecodeWaitForAnother(t *testing.T) {
	type newMail struct {
		To   string `json:"to"`
		Cc   string `json:"cc"`
		Body string `json:"body"`
	}
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		newSend := opscore.Actor[newMail, string]{Name: "send"}
		stopOld := employ(t, &opscore.Worker{Store: store, Handlers: handlers(ok), Build: "old"})
		sub, err := newSend.Submit(t.Context(), &opscore.Client{Store: store}, newMail{Cc: "bob@example.com"})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		task := look(t, store, sub.ID)
		if task.State != opscore.Pending || task.Attempt != 0 || task.Code != opscore.CodeArgsIncompatible || !strings.Contains(task.Error, `"cc"`) {
			t.Errorf("task is %s, attempt %d, %s: %s", task.State, task.Attempt, task.Code, task.Error)
		}
		if task.ClaimSeq > 2*20 {
			t.Errorf("the old build tried it %d times in 10 minutes", task.ClaimSeq/2)
		}
		if got := history(t, store, sub.ID); len(got) != 0 {
			t.Errorf("history = %s", codes(got))
		}
		if err := stopOld(); err != nil {
			t.Error(err)
		}
		h := opscore.Handlers{}
		opscore.Handle(h, newSend, func(_ context.Context, m newMail) (string, error) { return m.Cc, nil })
		employ(t, &opscore.Worker{Store: store, Handlers: h, Build: "new"})
		time.Sleep(2 * time.Minute)
		if task = look(t, store, sub.ID); task.State != opscore.Completed || task.Attempt != 1 {
			t.Errorf("with the new build the task is %s, attempt %d", task.State, task.Attempt)
		}
	})
}

func TestAWorkerRefusesToStartWithoutWhatItNeeds(t *testing.T) {
	twice := handlers(ok)
	opscore.Handle(twice, send, ok)
	misnamed := opscore.Handlers{}
	opscore.Handle(misnamed, opscore.Actor[mail, string]{Name: "send mail"}, ok)
	impatient := opscore.Handlers{}
	opscore.Handle(impatient, opscore.Actor[mail, string]{Name: "a", Retry: opscore.Backoff{Factor: 0.5}}, ok)
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		for _, tc := range []struct {
			worker *opscore.Worker
			says   string
		}{
			{&opscore.Worker{Store: store}, "no actor is registered"},
			{&opscore.Worker{Handlers: handlers(ok)}, "no store"},
			{&opscore.Worker{Store: store, Handlers: twice}, "actor send has two handlers"},
			{&opscore.Worker{Store: store, Handlers: misnamed}, `actor "send mail"`},
			{&opscore.Worker{Store: store, Handlers: impatient}, "factor at least 1"},
			{&opscore.Worker{Store: store, Handlers: handlers(ok), Queues: []string{""}}, `queue ""`},
			{&opscore.Worker{Store: store, Handlers: handlers(ok), Slots: -1}, "slots -1"},
			{&opscore.Worker{Store: store, Handlers: handlers(ok), Slots: 1 << 30}, "must be between 1 and 100000"},
			{&opscore.Worker{Store: store, Handlers: handlers(ok), Drain: -1}, "must not be negative"},
		} {
			err := tc.worker.Run(t.Context())
			if !errors.Is(err, opscore.ErrInvalid) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error = %v, want it to say %q", err, tc.says)
			}
		}
		if workers, err := store.Workers(t.Context(), time.Hour); err != nil || len(workers) != 0 {
			t.Errorf("registered: %v, %v", workers, err)
		}
	})
}

func TestAWorkerNeverRunsMoreThanItsSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		var running, most atomic.Int64
		h := handlers(func(context.Context, mail) (string, error) {
			most.Store(max(most.Load(), running.Add(1)))
			time.Sleep(time.Second)
			running.Add(-1)
			return "", nil
		})
		for range 20 {
			add(t, store)
		}
		employ(t, &opscore.Worker{Store: store, Handlers: h, Slots: 3})
		time.Sleep(50 * time.Millisecond) // handlers end at full seconds: then an outcome may still be on its way
		for range 60 {
			time.Sleep(100 * time.Millisecond)
			tasks, err := store.List(t.Context(), opscore.Filter{States: []opscore.State{opscore.Running}})
			if err != nil || len(tasks) > 3 {
				t.Fatalf("%d tasks are claimed by 3 slots, %v", len(tasks), err)
			}
		}
		time.Sleep(time.Minute)
		if most.Load() != 3 {
			t.Errorf("at most %d ran at once, want 3", most.Load())
		}
	})
}

func TestADrainLetsShortTasksFinishAndHandsLongOnesBack(t *testing.T) {
	h := handlers(func(ctx context.Context, m mail) (string, error) {
		select {
		case <-time.After(time.Duration(len(m.To)) * time.Second):
			return "sent", nil
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		client := &opscore.Client{Store: store}
		stop := employ(t, &opscore.Worker{Store: store, Handlers: h, Drain: 20 * time.Second})
		short, err := send.Submit(t.Context(), client, mail{strings.Repeat("x", 10)})
		if err != nil {
			t.Fatal(err)
		}
		long, err := send.Submit(t.Context(), client, mail{strings.Repeat("x", 50)})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		began := time.Now()
		go func() {
			time.Sleep(5 * time.Second)
			workers, err := store.Workers(t.Context(), time.Hour)
			if err != nil || workers[0].State != opscore.WorkerDraining {
				t.Errorf("while draining: %+v, %v", workers, err)
			}
			add(t, store) // nothing new is taken
		}()
		if err := stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took < 20*time.Second || took > 21*time.Second {
			t.Errorf("the drain took %s", took)
		}
		if task := look(t, store, short.ID); task.State != opscore.Completed {
			t.Errorf("the short task is %s", task.State)
		}
		task := look(t, store, long.ID)
		if task.State != opscore.Pending || task.Attempt != 0 || task.Code != opscore.CodeShutdown || task.RunAt.After(time.Now()) {
			t.Errorf("the long task is %s, attempt %d, %s, due %s", task.State, task.Attempt, task.Code, task.RunAt)
		}
		workers, err := store.Workers(t.Context(), time.Hour)
		if err != nil || workers[0].State != opscore.WorkerGone {
			t.Errorf("after: %+v, %v", workers, err)
		}
		tasks, err := store.List(t.Context(), opscore.Filter{States: []opscore.State{opscore.Pending}})
		if err != nil || len(tasks) != 2 {
			t.Errorf("%d tasks are pending, want the long one and the new one; %v", len(tasks), err)
		}
	})
}

func TestHurryCutsTheDrainShort(t *testing.T) {
	h := handlers(func(ctx context.Context, m mail) (string, error) {
		<-ctx.Done()
		return "", ctx.Err()
	})
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		hurry := make(chan struct{})
		stop := employ(t, &opscore.Worker{Store: store, Handlers: h, Drain: time.Hour, Hurry: hurry})
		id := add(t, store, opscore.Timeout(2*time.Hour))
		time.Sleep(time.Second)
		began := time.Now()
		go func() {
			time.Sleep(3 * time.Second)
			close(hurry)
		}()
		if err := stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("the drain took %s", took)
		}
		if task := look(t, store, id); task.State != opscore.Pending || task.Attempt != 0 {
			t.Errorf("task is %s, attempt %d", task.State, task.Attempt)
		}
	})
}

func TestAHandlerThatIgnoresItsContextIsNamedAndItsTaskReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		release := make(chan struct{})
		h := handlers(func(context.Context, mail) (string, error) {
			<-release
			return "too late", nil
		})
		opscore.Handle(h, fetch, func(context.Context, string) (string, error) {
			<-release
			return "", nil
		})
		stop := employ(t, &opscore.Worker{Store: store, Handlers: h})
		id := add(t, store)
		other, err := fetch.Submit(t.Context(), &opscore.Client{Store: store}, "")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		err = stop()
		if !errors.Is(err, opscore.ErrHandlerStuck) || !strings.Contains(err.Error(), id.String()) || !strings.Contains(err.Error(), other.ID.String()) {
			t.Errorf("error = %v", err)
		}
		task := look(t, store, id)
		if task.State != opscore.Pending || task.Attempt != 0 {
			t.Errorf("task is %s, attempt %d", task.State, task.Attempt)
		}
		// Each is told by its own stack.
		for id, handler := range map[opscore.ID]string{id: "TaskReleased.func1.1", other.ID: "TaskReleased.func1.2"} {
			if got := history(t, store, id)[0].Error; !strings.Contains(got, handler+"(") || !strings.Contains(got, "worker_test.go:") {
				t.Errorf("%s is not in %s", handler, got)
			}
		}
		if d := registered(t, store)[0].Report.Drained; d == nil || len(d.Stuck) != 2 || d.Released != 2 {
			t.Errorf("drained = %+v", d)
		}
		close(release)
		synctest.Wait()
		if task = look(t, store, id); task.State != opscore.Pending || len(task.Result) != 0 {
			t.Errorf("the late result was recorded: %s %s", task.State, task.Result)
		}
	})
}

func TestAHandlerThatNeverEndsEndsTheWorkerNotItsTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		release := make(chan struct{})
		defer close(release)
		h := handlers(func(ctx context.Context, m mail) (string, error) {
			if m.To == "stuck" {
				<-release
			}
			select {
			case <-ctx.Done():
			case <-time.After(15 * time.Second):
			}
			return "sent", nil
		})
		w := &opscore.Worker{Store: store, Handlers: h, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
		done := make(chan error, 1)
		go func() { done <- w.Run(t.Context()) }()
		client := &opscore.Client{Store: store}
		stuck, err := send.Submit(t.Context(), client, mail{"stuck"}, opscore.Timeout(time.Minute), opscore.MaxAttempts(2))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute + 20*time.Second)
		check := registered(t, store)[0].Report.Check(opscore.CheckHandlers)
		if check.State != opscore.CheckDegraded || !strings.Contains(check.Text, "(task "+stuck.ID.String()+") in ") ||
			!strings.Contains(check.Text, "TestAHandlerThatNeverEndsEndsTheWorkerNotItsTasks") || !strings.Contains(check.Text, "(worker_test.go:") || !strings.Contains(check.Text, "chan receive") {
			t.Errorf("while it is over its time: %+v", check)
		}
		innocent := add(t, store)
		if err := <-done; !errors.Is(err, opscore.ErrHandlerStuck) {
			t.Errorf("the worker ended with %v", err)
		}
		if task := look(t, store, innocent); task.State != opscore.Completed || task.Attempt != 1 {
			t.Errorf("another task is %s, attempt %d", task.State, task.Attempt)
		}
		task := look(t, store, stuck.ID)
		if task.State != opscore.Pending || task.Attempt != 1 || task.Code != opscore.CodeTimeout {
			t.Errorf("the stuck one is %s, attempt %d, %s", task.State, task.Attempt, task.Code)
		}
		if w := registered(t, store)[0]; !strings.Contains(w.Cause, "handlers ignore their cancelled context: send") {
			t.Errorf("the worker is gone because: %s", w.Cause)
		}
	})
}

// errDown is what a store that cannot be reached answers.
var errDown = &opscore.Error{Code: opscore.CodeUnavailable, Message: "the store is down"}

func TestOutcomesSurviveAStoreThatFails(t *testing.T) {
	var ran atomic.Int64
	h := handlers(func(context.Context, mail) (string, error) {
		ran.Add(1)
		return "sent", nil
	})
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		faulty := &storetest.Faulty{Store: store, Before: func(method string, n int) error {
			if method == "Finish" && n <= 8 {
				return errDown
			}
			return nil
		}}
		for range 50 {
			add(t, store)
		}
		employ(t, &opscore.Worker{Store: faulty, Handlers: h, Slots: 5})
		time.Sleep(3 * time.Second)
		// 5 slots, and twice as many outcomes that wait to be recorded: then the worker takes no more.
		tasks, err := store.List(t.Context(), opscore.Filter{States: []opscore.State{opscore.Running}})
		if err != nil || len(tasks) != 15 {
			t.Errorf("while the store fails %d tasks are claimed, want 15; %v", len(tasks), err)
		}
		time.Sleep(time.Minute)
		counts, err := store.Count(t.Context())
		if err != nil || len(counts) != 1 || counts[0].State != opscore.Completed || counts[0].Tasks != 50 || ran.Load() != 50 {
			t.Errorf("counts = %v after %d runs, %v", counts, ran.Load(), err)
		}
	})
}

func TestAnAnswerLostAfterTheOutcomeWasRecordedChangesNothing(t *testing.T) {
	h := handlers(func(ctx context.Context, m mail) (string, error) {
		if opscore.FromContext(ctx).Attempt == 1 {
			return "", errors.New("first")
		}
		return "sent", nil
	})
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		faulty := &storetest.Faulty{Store: store, After: func(method string, n int) error {
			if method == "Finish" && n%2 == 1 {
				return errDown
			}
			return nil
		}}
		var late atomic.Int64
		employ(t, &opscore.Worker{Store: faulty, Handlers: h, OnEvent: func(e opscore.Event) {
			if e.Kind == opscore.EventLate {
				late.Add(1)
			}
		}})
		id := add(t, store)
		time.Sleep(time.Minute)
		task := look(t, store, id)
		if got := codes(history(t, store, id)); task.State != opscore.Completed || task.Attempt != 2 || got != "error completed" || late.Load() != 0 {
			t.Errorf("task is %s, attempt %d, %s, %d late", task.State, task.Attempt, got, late.Load())
		}
	})
}

func TestATaskWhoseClaimWasNeverAnsweredIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		lost := false
		faulty := &storetest.Faulty{Store: store, After: func(method string, _ int) error {
			if method != "Claim" || lost {
				return nil
			}
			tasks, err := store.List(t.Context(), opscore.Filter{States: []opscore.State{opscore.Running}})
			if err != nil || len(tasks) == 0 {
				return err
			}
			lost = true
			return errDown
		}}
		employ(t, &opscore.Worker{Store: faulty, Handlers: handlers(ok)})
		id := add(t, store)
		time.Sleep(3*opscore.HeartbeatEvery + time.Second)
		task := look(t, store, id)
		if got := codes(history(t, store, id)); task.State != opscore.Completed || task.Attempt != 1 || got != "lost_in_worker completed" {
			t.Errorf("task is %s, attempt %d: %s", task.State, task.Attempt, got)
		}
	})
}

func TestAWorkerPastItsLeaseStartsNothingNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		var down atomic.Bool
		faulty := &storetest.Faulty{Store: store, Before: func(method string, _ int) error {
			if method == "Heartbeat" && down.Load() {
				return errDown
			}
			return nil
		}}
		employ(t, &opscore.Worker{Store: faulty, Handlers: handlers(ok)})
		down.Store(true)
		time.Sleep(opscore.LeaseFor)
		id := add(t, store)
		time.Sleep(opscore.LeaseFor)
		if task := look(t, store, id); task.State != opscore.Pending {
			t.Errorf("without a lease the task is %s", task.State)
		}
		down.Store(false)
		time.Sleep(2 * opscore.HeartbeatEvery)
		if task := look(t, store, id); task.State != opscore.Completed {
			t.Errorf("with the lease back the task is %s", task.State)
		}
	})
}

func TestAWorkerThatWasCutOffLosesItsTasksAndContinuesUnderANewId(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		keep(t, store)
		var cut atomic.Bool
		faulty := &storetest.Faulty{Store: store, Before: func(string, int) error {
			if cut.Load() {
				return errDown
			}
			return nil
		}}
		var cause error
		h := handlers(func(ctx context.Context, m mail) (string, error) {
			if cut.Swap(true) {
				return "", errors.New("started although cut off")
			}
			<-ctx.Done()
			cause = context.Cause(ctx)
			return "late", nil
		})
		employ(t, &opscore.Worker{Store: faulty, Handlers: h})
		id := add(t, store, opscore.Timeout(time.Hour))
		time.Sleep(2 * opscore.LeaseFor)
		if task := look(t, store, id); task.State != opscore.Pending || task.Lost != 1 {
			t.Fatalf("after the lease the task is %s, lost %d", task.State, task.Lost)
		}
		stopOther := employ(t, &opscore.Worker{Store: store, Handlers: handlers(ok)})
		time.Sleep(time.Second)
		if err := stopOther(); err != nil {
			t.Error(err)
		}
		cut.Store(false)
		time.Sleep(3 * opscore.HeartbeatEvery)
		if !errors.Is(cause, opscore.ErrLeaseLost) {
			t.Errorf("the run of the lost lease was told: %v", cause)
		}
		task := look(t, store, id)
		if task.State != opscore.Completed || string(task.Result) != `"sent"` {
			t.Errorf("task is %s with %s", task.State, task.Result)
		}
		if got := codes(history(t, store, id)); got != "lost completed(late) completed" {
			t.Errorf("history = %s", got)
		}
		workers, err := store.Workers(t.Context(), time.Hour)
		if err != nil || len(workers) != 3 || workers[0].State != opscore.WorkerGone || !workers[2].Live || workers[2].PID != workers[0].PID {
			t.Errorf("workers = %+v, %v", workers, err)
		}
	})
}

func TestTheKeeperOfAnotherProcessRescuesWhatADeadWorkerLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		keep(t, store)
		id := add(t, store)
		if err := store.Register(t.Context(), opscore.WorkerInfo{ID: opscore.ID{1}, State: opscore.WorkerReady}); err != nil {
			t.Fatal(err)
		}
		claim := opscore.Claim{Worker: opscore.ID{1}, Queues: []string{"default"}, Actors: []string{"send"}, Max: 1}
		if got, err := store.Claim(t.Context(), claim); err != nil || len(got.Tasks) != 1 {
			t.Fatalf("claim = %v, %v", got, err)
		}
		employ(t, &opscore.Worker{Store: store, Handlers: handlers(ok)})
		time.Sleep(opscore.LeaseFor)
		if task := look(t, store, id); task.State != opscore.Running {
			t.Errorf("within the lease the task is %s", task.State)
		}
		time.Sleep(15 * time.Second)
		task := look(t, store, id)
		if got := codes(history(t, store, id)); task.State != opscore.Completed || task.Lost != 1 || task.Attempt != 1 || got != "lost completed" {
			t.Errorf("task is %s, lost %d, attempt %d: %s", task.State, task.Lost, task.Attempt, got)
		}
	})
}

func TestAKeeperRefusesANegativeRetention(t *testing.T) {
	for _, r := range []opscore.Retention{
		{Default: opscore.Keep{Failed: -1}},
		{Queues: map[string]opscore.Keep{"q": {Completed: -time.Hour}}},
	} {
		if err := (&opscore.Keeper{Retention: r}).Run(t.Context()); !errors.Is(err, opscore.ErrInvalid) {
			t.Errorf("retention %+v: %v", r, err)
		}
	}
}

func TestEventsTellATasksLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := open(t)
		var mu sync.Mutex
		var events []string
		hook := func(e opscore.Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Kind != opscore.EventWorker {
				events = append(events, fmt.Sprintf("%s %s %s", e.Kind, e.State, e.Code))
			}
		}
		h := handlers(func(ctx context.Context, m mail) (string, error) {
			if opscore.FromContext(ctx).Attempt == 1 {
				return "", errors.New("first")
			}
			return "sent", nil
		})
		employ(t, &opscore.Worker{Store: store, Handlers: h, OnEvent: hook})
		client := &opscore.Client{Store: store, OnEvent: hook}
		if _, err := send.Submit(t.Context(), client, mail{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(events) // the submit's own event may come after the start
		if got := strings.Join(events, ", "); got != "finished completed , finished pending error, started running , started running , submitted pending " {
			t.Errorf("events = %s", got)
		}
	})
}
