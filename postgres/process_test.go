package postgres_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
)

// TestMain lets tests start this binary again as a worker of another process.
func TestMain(m *testing.M) {
	if url := os.Getenv("OPSCORE_TEST_WORKER"); url != "" {
		if err := runWorker(url); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runWorker charges orders until it is killed.
func runWorker(url string) error {
	ctx := context.Background()
	s, err := postgres.Open(ctx, url, postgres.Options{})
	if err != nil {
		return err
	}
	h := opscore.Handlers{}
	opscore.Handle(h, charge, func(ctx context.Context, o order) (string, error) {
		pause := 2 * time.Millisecond
		if o.Number%20 == 0 {
			pause *= 20 // so that some are running at any moment
		}
		<-time.After(pause)
		return fmt.Sprintf("charged by %d", os.Getpid()), nil
	})
	w := &opscore.Worker{Store: s, Handlers: h, Log: slog.New(slog.DiscardHandler), OnReady: func(w opscore.WorkerInfo) { fmt.Println(w.ID) }}
	return w.Run(ctx)
}

// spawn starts a worker in a process of its own and returns its id when it is ready.
func spawn(t *testing.T, url string) (*exec.Cmd, opscore.ID) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), "OPSCORE_TEST_WORKER="+url, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var id opscore.ID
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := id.UnmarshalText([]byte(line[:len(line)-1])); err != nil {
		t.Fatalf("the worker said %q", line)
	}
	return cmd, id
}

func keep(t *testing.T, s *postgres.Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- (&opscore.Keeper{Store: s, Log: slog.New(slog.DiscardHandler)}).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// fill submits n orders.
func fill(t *testing.T, s *postgres.Store, n int) {
	t.Helper()
	requests := make([]opscore.Request, n)
	for i := range requests {
		requests[i] = charge.Request(order{i})
	}
	if _, err := (&opscore.Client{Store: s}).Submit(t.Context(), requests...); err != nil {
		t.Fatal(err)
	}
}

func completed(t *testing.T, s *postgres.Store) func() int {
	return func() int { return count(t, s, "SELECT count(*) FROM opscore.task WHERE state = 'completed'") }
}

// expire makes the lease of one worker run out, without the wait.
func expire(t *testing.T, s *postgres.Store, worker opscore.ID) {
	t.Helper()
	if _, err := s.Pool().Exec(t.Context(), "UPDATE opscore.worker SET lease_until = clock_timestamp() - interval '1 second' WHERE id = $1", worker); err != nil {
		t.Fatal(err)
	}
}

// record makes the database itself note every completion.
func record(t *testing.T, s *postgres.Store) {
	t.Helper()
	if _, err := s.Pool().Exec(t.Context(), `
		CREATE TABLE recorded (task uuid);
		CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO recorded VALUES (NEW.id); RETURN NULL; END $$;
		CREATE TRIGGER record AFTER UPDATE ON opscore.task FOR EACH ROW
			WHEN (NEW.state = 'completed' AND OLD.state <> 'completed') EXECUTE FUNCTION record()`); err != nil {
		t.Fatal(err)
	}
}

func wantEachOnce(t *testing.T, s *postgres.Store, tasks int) {
	t.Helper()
	if n := count(t, s, "SELECT count(*) FROM recorded"); n != tasks {
		t.Errorf("%d completions were recorded, want %d", n, tasks)
	}
	if n := count(t, s, "SELECT count(DISTINCT task) FROM recorded"); n != tasks {
		t.Errorf("%d tasks were completed, want %d", n, tasks)
	}
}

func TestTasksOfAKilledWorkerCompleteOnceEach(t *testing.T) {
	const tasks = 1000
	url := database(t)
	s := open(t, url)
	record(t, s)
	fill(t, s, tasks)
	done := completed(t, s)
	worker, id := spawn(t, url+"&application_name=killed")
	until(t, "200 are completed", 30*time.Second, func() bool { return done() >= 200 })
	if err := worker.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = worker.Wait()
	until(t, "the server has ended what the worker had begun", 30*time.Second, func() bool {
		return count(t, s, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'killed'") == 0
	})
	lost := count(t, s, "SELECT count(*) FROM opscore.task WHERE state = 'running'")
	if lost == 0 {
		t.Fatal("no task was running when the worker was killed: the test tests nothing")
	}
	expire(t, s, id)
	keep(t, s)
	spawn(t, url)
	until(t, "all are completed", 60*time.Second, func() bool { return done() == tasks })
	wantEachOnce(t, s, tasks)
	if n := count(t, s, "SELECT count(*) FROM opscore.attempt WHERE code = 'lost'"); n != lost {
		t.Errorf("%d attempts were lost, %d tasks were running", n, lost)
	}
}

func TestAWorkerThatWasStoppedBeyondItsLeaseCannotOverwriteWhatHappenedSince(t *testing.T) {
	url := database(t)
	s := open(t, url)
	record(t, s)
	worker, id := spawn(t, url)
	const tasks = 2000
	fill(t, s, tasks)
	done := completed(t, s)
	until(t, "100 are completed", 30*time.Second, func() bool { return done() >= 100 })
	if err := worker.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	held := count(t, s, "SELECT count(*) FROM opscore.task WHERE state = 'running'")
	if held == 0 {
		t.Fatal("no task was running when the worker was stopped: the test tests nothing")
	}
	expire(t, s, id)
	keep(t, s)
	spawn(t, url)
	until(t, "all are completed", 60*time.Second, func() bool { return done() == tasks })
	if err := worker.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// Not of all that it lost: a claim that it was stopped in is over, and its tasks do not start.
	until(t, "late outcomes are in the history", 30*time.Second, func() bool {
		return count(t, s, "SELECT count(*) FROM opscore.attempt WHERE late") > 0
	})
	if n := count(t, s, `SELECT count(*) FROM opscore.attempt a WHERE late AND NOT EXISTS (
		SELECT FROM opscore.attempt l WHERE l.task = a.task AND l.claim_seq = a.claim_seq AND l.code = 'lost')`); n != 0 {
		t.Errorf("%d late outcomes are of claims that were not lost", n)
	}
	wantEachOnce(t, s, tasks)
	if n := count(t, s, "SELECT count(*) FROM opscore.task t JOIN opscore.attempt a ON a.task = t.id WHERE a.late AND t.worker = a.worker"); n != 0 {
		t.Errorf("%d results are those of a revoked claim", n)
	}
	until(t, "the worker goes on under a new id", 30*time.Second, func() bool {
		return count(t, s, "SELECT count(*) FROM opscore.worker WHERE pid = $1 AND state = 'ready'", worker.Process.Pid) == 1
	})
}

func TestADatabaseThatCrashesLosesNothingAndKillsNobody(t *testing.T) {
	node := nodes.Own(t)
	url := node.URL("postgres")
	if err := postgres.Migrate(t.Context(), url, postgres.Options{}); err != nil {
		t.Fatal(err)
	}
	s := open(t, url)
	record(t, s)
	keep(t, s)
	var ran atomic.Int64
	h := opscore.Handlers{}
	opscore.Handle(h, charge, func(context.Context, order) (string, error) {
		<-time.After(5 * time.Millisecond)
		ran.Add(1)
		return "", nil
	})
	w := open(t, url)
	employ(t, &opscore.Worker{Store: w, Handlers: h, Slots: 20})
	const tasks = 3000
	fill(t, s, tasks)
	until(t, "some have run", 30*time.Second, func() bool { return ran.Load() > 300 })
	if err := node.StopImmediately(); err != nil {
		t.Fatal(err)
	}
	if _, err := charge.Submit(t.Context(), &opscore.Client{Store: s}, order{1}); !errors.Is(err, opscore.ErrUnavailable) {
		t.Errorf("a submit while the database is down: %v", err)
	}
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := ran.Load()
	until(t, "tasks run again", 5*time.Second, func() bool { return ran.Load() > before+20 })
	until(t, "all are completed", 60*time.Second, func() bool {
		var n int
		err := s.Pool().QueryRow(t.Context(), "SELECT count(*) FROM opscore.task WHERE state = 'completed'").Scan(&n)
		return err == nil && n == tasks
	})
	wantEachOnce(t, s, tasks)
	if n := count(t, s, "SELECT coalesce(sum(lost), 0) FROM opscore.task"); n != 0 {
		t.Errorf("%d tasks were rescued from a worker that lived", n)
	}
	if n := count(t, s, "SELECT count(*) FROM opscore.worker WHERE state = 'gone'"); n != 0 {
		t.Error("the worker was declared dead")
	}
}

func TestOutcomesThatTheDatabaseHasLostAreRecordedAgain(t *testing.T) {
	for _, tc := range []struct {
		name     string
		comeBack func(*nodes.Postgres, context.Context) error
		beats    int // that are lost
	}{
		{"failover to a standby that lagged behind", (*nodes.Postgres).Failover, 0}, // its timeline tells
		{"restored backup", (*nodes.Postgres).Restore, 2},                           // its heartbeats tell
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := nodes.Own(t)
			url := node.URL("postgres")
			if err := postgres.Migrate(t.Context(), url, postgres.Options{}); err != nil {
				t.Fatal(err)
			}
			s := open(t, url)
			var ran atomic.Int64
			h := opscore.Handlers{}
			const tasks = 100 // and one whose effect is in its completing transaction
			if _, err := s.Pool().Exec(t.Context(), "CREATE TABLE paid (number integer PRIMARY KEY)"); err != nil {
				t.Fatal(err)
			}
			opscore.Handle(h, charge, func(ctx context.Context, o order) (string, error) {
				defer ran.Add(1)
				if o.Number == tasks {
					return "paid", pgx.BeginFunc(ctx, s.Pool(), func(tx pgx.Tx) error {
						if _, err := tx.Exec(ctx, "INSERT INTO paid VALUES ($1)", o.Number); err != nil {
							return err
						}
						return s.Complete(ctx, tx, "paid")
					})
				}
				if o.Number%2 == 1 {
					return "", opscore.Abort(errors.New("refused"))
				}
				return fmt.Sprint("charged ", o.Number), nil
			})
			fill(t, s, tasks+1)
			worker := opscore.WorkerInfo{ID: opscore.ID{1}, Queues: []string{"default"}, Actors: []string{"charge"}}
			beat := func() error {
				_, err := s.Heartbeat(t.Context(), worker.ID, opscore.WorkerReady, opscore.Report{})
				return err
			}
			if err := errors.Join(s.Register(t.Context(), worker), beat(), node.Backup(t.Context())); err != nil {
				t.Fatal(err)
			}
			for range tc.beats {
				if err := beat(); err != nil {
					t.Fatal(err)
				}
			}
			stop := employ(t, &opscore.Worker{Store: s, Handlers: h})
			until(t, "all have run", 30*time.Second, func() bool {
				return count(t, s, "SELECT count(*) FROM opscore.task WHERE state IN ('completed', 'failed')") == tasks+1
			})
			stop()
			if err := tc.comeBack(node, t.Context()); err != nil {
				t.Fatal(err)
			}
			s.Pool().Reset() // of connections to the server that was
			until(t, "the store is back", 10*time.Second, func() bool {
				if tc.beats > 0 {
					return beat() == nil
				}
				_, err := s.Count(t.Context())
				return err == nil
			})
			for state, want := range map[opscore.State]int{opscore.Completed: tasks / 2, opscore.Failed: tasks / 2, opscore.Pending: 1} {
				if n := count(t, s, "SELECT count(*) FROM opscore.task WHERE state = $1 AND (result IS NOT NULL) = ($1 = 'completed')", state); n != want {
					t.Errorf("%d tasks are %s, want %d", n, state, want)
				}
			}
			if n := count(t, s, "SELECT count(*) FROM opscore.attempt WHERE code = 'replayed'"); n != tasks {
				t.Errorf("the history has %d lost outcomes, want %d", n, tasks)
			}
			until(t, "a heartbeat goes through", 10*time.Second, func() bool { return beat() == nil })
			employ(t, &opscore.Worker{Store: s, Handlers: h})
			if _, err := charge.Submit(t.Context(), &opscore.Client{Store: s}, order{tasks + 2}); err != nil {
				t.Fatal(err)
			}
			until(t, "work goes on, and the task whose effect was lost has run again", 10*time.Second, func() bool {
				return ran.Load() == tasks+3 && count(t, s, "SELECT count(*) FROM paid") == 1
			})
		})
	}
}

func TestAWorkerGoesOnWhenItsConnectionsPassNothingOnAnyMore(t *testing.T) {
	url := database(t)
	direct := open(t, url)
	proxy := nodes.NewProxy(t, direct.Address())
	s := open(t, proxy.URL(url))
	h := opscore.Handlers{}
	began, goOn := make(chan struct{}, 21), make(chan struct{})
	opscore.Handle(h, charge, func(context.Context, order) (string, error) {
		began <- struct{}{}
		<-goOn
		return "", nil
	})
	employ(t, &opscore.Worker{Store: s, Handlers: h, Slots: 2})
	fill(t, direct, 1)
	<-began
	proxy.Strand()
	close(goOn)
	fill(t, direct, 20)
	until(t, "the outcome is recorded and new tasks run", 40*time.Second, func() bool {
		return count(t, direct, "SELECT count(*) FROM opscore.task WHERE state = 'completed'") == 21
	})
	if n := count(t, direct, "SELECT count(*) FROM opscore.worker"); n != 1 {
		t.Errorf("the worker had %d identities: it lost its lease", n)
	}
}

func TestAStoreClosesThoughItsConnectionsPassNothingOn(t *testing.T) {
	url := database(t)
	direct := open(t, url)
	proxy := nodes.NewProxy(t, direct.Address())
	s := open(t, proxy.URL(url))
	s.Wake()
	proxy.Blackhole()
	failed := make(chan error, 1)
	go func() {
		_, err := s.Expire(t.Context())
		failed <- err
	}()
	until(t, "a chore is under way", 5*time.Second, func() bool { return s.Pool().Stat().AcquiredConns() > 0 })
	began := time.Now()
	s.Close()
	if err := <-failed; err == nil {
		t.Error("the chore went well")
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestTasksOfAClaimThatWasCutOffDoNotStart(t *testing.T) {
	url := database(t)
	direct := open(t, url)
	fill(t, direct, 200)
	proxy := nodes.NewProxy(t, direct.Address())
	s := open(t, proxy.URL(url))
	w := opscore.WorkerInfo{ID: opscore.ID{1}, Queues: []string{"default"}, Actors: []string{"charge"}}
	if err := s.Register(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	want := opscore.Claim{Worker: w.ID, Queues: w.Queues, Actors: w.Actors, Max: 100}
	if got, err := s.Claim(t.Context(), want); err != nil || len(got.Tasks) != 100 { // the statements are known
		t.Fatalf("claim: %d tasks, %v", len(got.Tasks), err)
	}
	proxy.Truncate(5000) // some rows of the answer
	got, err := s.Claim(t.Context(), want)
	if !errors.Is(err, opscore.ErrUnavailable) || len(got.Tasks) != 0 {
		t.Errorf("a claim whose answer was cut off: %d tasks, %v", len(got.Tasks), err)
	}
}

func TestAWorkerThatStopsInTheMiddleOfItsClaimsLeavesNothingRunning(t *testing.T) {
	s := open(t, database(t))
	h := opscore.Handlers{}
	var ran atomic.Int64
	opscore.Handle(h, charge, func(context.Context, order) (string, error) {
		ran.Add(1)
		return "", nil
	})
	fill(t, s, 5000)
	for range 15 {
		before := ran.Load()
		stop := employ(t, &opscore.Worker{Store: s, Handlers: h})
		until(t, "tasks run", 10*time.Second, func() bool { return ran.Load() > before })
		stop()
		if n := count(t, s, "SELECT count(*) FROM opscore.task WHERE state = 'running'"); n != 0 {
			t.Fatalf("%d tasks are running under a worker that has stopped", n)
		}
	}
}

func TestTerminatedBackendsCostNothingButTime(t *testing.T) {
	url := database(t)
	s := open(t, url)
	record(t, s)
	h := opscore.Handlers{}
	opscore.Handle(h, charge, func(context.Context, order) (string, error) {
		<-time.After(time.Millisecond)
		return "", nil
	})
	const tasks = 3000
	fill(t, s, tasks)
	w := open(t, url)
	employ(t, &opscore.Worker{Store: w, Handlers: h})
	done := 0
	for done < tasks {
		err := s.Pool().QueryRow(t.Context(), "SELECT count(*) FROM opscore.task WHERE state = 'completed'").Scan(&done)
		if err != nil {
			continue // it terminated itself
		}
		_, _ = s.Pool().Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.3`)
		<-time.After(50 * time.Millisecond)
	}
	wantEachOnce(t, s, tasks)
}

func TestASubmitWhoseAnswerWasLostCanBeRepeated(t *testing.T) {
	url := database(t)
	direct := open(t, url)
	const bytes = "sixteen of an id"
	one, several := []opscore.ID{opscore.ID([]byte(bytes))}, []opscore.ID{{3}, {4}}
	for _, tc := range []struct {
		ids    []opscore.ID
		cut    func(*nodes.Proxy, []byte) <-chan struct{}
		at     string
		stored bool
	}{
		{one, (*nodes.Proxy).CutBeforeRequest, bytes, false},
		{one, (*nodes.Proxy).CutAfterRequest, bytes, true},
		{several, (*nodes.Proxy).CutBeforeRequest, "commit", false},
		{several, (*nodes.Proxy).CutAfterRequest, "commit", true},
	} {
		proxy := nodes.NewProxy(t, direct.Address())
		s := open(t, proxy.URL(url))
		client := &opscore.Client{Store: s}
		if _, err := client.Submit(t.Context(), charge.Request(order{1})); err != nil { // the connection is warm
			t.Fatal(err)
		}
		if _, err := direct.Pool().Exec(t.Context(), "DELETE FROM opscore.task"); err != nil {
			t.Fatal(err)
		}
		var requests []opscore.Request
		for _, id := range tc.ids {
			requests = append(requests, charge.Request(order{2}, opscore.WithID(id)))
		}
		cut := tc.cut(proxy, []byte(tc.at))
		if _, err := client.Submit(t.Context(), requests...); !errors.Is(err, opscore.ErrUnavailable) {
			t.Fatalf("the submit that was cut at %s: %v", tc.at, err)
		}
		<-cut
		proxy.Heal()
		subs, err := client.Submit(t.Context(), requests...)
		if err != nil || len(subs) != len(tc.ids) {
			t.Fatalf("cut at %s, stored %v: the repeated submit = %+v, %v", tc.at, tc.stored, subs, err)
		}
		for i, id := range tc.ids {
			if subs[i].ID != id || subs[i].Duplicate != tc.stored {
				t.Errorf("cut at %s, stored %v: the repeated submit = %+v", tc.at, tc.stored, subs[i])
			}
		}
		if n := count(t, direct, "SELECT count(*) FROM opscore.task"); n != len(tc.ids) {
			t.Errorf("%d tasks", n)
		}
	}
}
