package sqlite_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

// TestMain lets tests start this binary again as another process of the same file.
func TestMain(m *testing.M) {
	if role := os.Getenv("OPSCORE_TEST_ROLE"); role != "" {
		if err := processes[role](os.Getenv("OPSCORE_TEST_FILE")); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var processes = map[string]func(file string) error{
	// worker charges orders until it is killed: even ones in the transaction that completes them.
	"worker": func(file string) error {
		s, err := sqlite.Open(file)
		if err != nil {
			return err
		}
		h := opscore.Handlers{}
		inTx := chargeIn(s.DB(), func(context.Context) {})
		opscore.Handle(h, charge, func(ctx context.Context, o order) (string, error) {
			if o.Number%2 == 0 {
				return inTx(ctx, o)
			}
			<-time.After(2 * time.Millisecond)
			return "charged", nil
		})
		return workOn(s, h)
	},
	// victim charges orders until it comes to one that kills it.
	"victim": func(file string) error {
		s, err := sqlite.Open(file)
		if err != nil {
			return err
		}
		h := opscore.Handlers{}
		opscore.Handle(h, charge, func(_ context.Context, o order) (string, error) {
			if o.Number == killer {
				<-time.After(10 * time.Millisecond)
				return "", syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
			<-time.After(50 * time.Millisecond)
			return "charged", nil
		})
		return workOn(s, h)
	},
	// start opens the file at the same moment as another process: when its standard input ends.
	"start": func(file string) error {
		fmt.Println("ready")
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err == nil {
			return fmt.Errorf("unexpected input")
		}
		s, err := sqlite.Open(file)
		if err != nil {
			return err
		}
		_, err = charge.Submit(context.Background(), &opscore.Client{Store: s}, order{1})
		if err != nil {
			return err
		}
		return s.Close()
	},
}

// killer is the number of an order that kills a victim.
const killer = 25

// workOn runs a worker and a keeper until the process dies.
func workOn(s *sqlite.Store, h opscore.Handlers) error {
	log := slog.New(slog.DiscardHandler)
	go func() { _ = (&opscore.Keeper{Store: s, Log: log}).Run(context.Background()) }()
	w := &opscore.Worker{Store: s, Handlers: h, Log: log, OnReady: func(opscore.WorkerInfo) { fmt.Println("ready") }}
	return w.Run(context.Background())
}

// spawn starts a process and returns once it is ready.
func spawn(t *testing.T, role, file string) (cmd *osexec.Cmd, begin func()) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = osexec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), "OPSCORE_TEST_ROLE="+role, "OPSCORE_TEST_FILE="+file,
		"GORACE=atexit_sleep_ms=0") // the race detector sleeps for a second before it lets a process exit
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("%s said %q, %v", role, line, err)
	}
	return cmd, func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestTasksOfAKilledWorkerCompleteOnceEach(t *testing.T) {
	const tasks, kills = 1000, 3
	path := filepath.Join(t.TempDir(), "opscore.db")
	s := openAt(t, path)
	exec(t, s.DB(), "CREATE TABLE charges (number INTEGER)")
	exec(t, s.DB(), "CREATE TABLE recorded (task BLOB)")
	exec(t, s.DB(), `CREATE TRIGGER recording AFTER UPDATE OF state ON opscore_task
		WHEN NEW.state = 'completed' BEGIN INSERT INTO recorded VALUES (NEW.id); END`)
	requests := make([]opscore.Request, tasks)
	for i := range requests {
		requests[i] = charge.Request(order{i})
	}
	if _, err := (&opscore.Client{Store: s}).Submit(t.Context(), requests...); err != nil {
		t.Fatal(err)
	}
	completed := func() int {
		return count(t, s.DB(), "SELECT count(*) FROM opscore_task WHERE state = 'completed'")
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	lost := 0
	for kill := 1; kill <= kills; kill++ {
		worker, _ := spawn(t, "worker", path)
		for completed() < kill*tasks/(kills+2) {
			<-tick.C
		}
		if err := worker.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = worker.Wait()
		lost += count(t, s.DB(), "SELECT count(*) FROM opscore_task WHERE state = 'running'")
	}
	if lost == 0 {
		t.Error("no task was running when its worker was killed: the test tests nothing")
	}
	last, _ := spawn(t, "worker", path)
	for completed() < tasks {
		<-tick.C
	}
	if err := last.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = last.Wait()
	for what, query := range map[string]string{
		"tasks recorded more than once": "SELECT count(*) FROM (SELECT task FROM recorded GROUP BY task HAVING count(*) > 1)",
		"charges made more than once":   "SELECT count(*) FROM (SELECT number FROM charges GROUP BY number HAVING count(*) > 1)",
		"late outcomes":                 "SELECT count(*) FROM opscore_attempt WHERE late",
	} {
		if n := count(t, s.DB(), query); n != 0 {
			t.Errorf("%s: %d", what, n)
		}
	}
	if n := count(t, s.DB(), "SELECT count(*) FROM charges"); n != tasks/2 {
		t.Errorf("%d charges, want %d", n, tasks/2)
	}
	if n := count(t, s.DB(), "SELECT count(*) FROM opscore_attempt WHERE code = 'lost'"); n != lost {
		t.Errorf("%d attempts are recorded as lost, %d tasks were running when their worker was killed", n, lost)
	}
}

func TestBehaviour103ATaskThatKillsItsProcessIsFailedSoonAndHarmsNoOther(t *testing.T) {
	const tasks = 50
	path := filepath.Join(t.TempDir(), "opscore.db")
	s := openAt(t, path)
	requests := make([]opscore.Request, tasks)
	for i := range requests {
		requests[i] = charge.Request(order{i})
	}
	client := &opscore.Client{Store: s}
	subs, err := client.Submit(t.Context(), requests...)
	if err != nil {
		t.Fatal(err)
	}
	ended := func() bool {
		return count(t, s.DB(), "SELECT count(*) FROM opscore_task WHERE state IN ('pending', 'running')") == 0
	}
	deaths := superviseUntil(t, path, ended)
	if deaths != opscore.MaxLost {
		t.Errorf("the task killed %d processes, want %d", deaths, opscore.MaxLost)
	}
	together := 0
	for i, sub := range subs {
		task, err := client.Get(t.Context(), sub.ID)
		switch {
		case err != nil:
			t.Error(err)
		case i == killer:
			if task.State != opscore.Failed || task.Code != opscore.CodePoison || task.Lost != opscore.MaxLost || !strings.Contains(task.Error, "its process is dead") {
				t.Errorf("the killer is %s, %s, lost %d times: %s", task.State, task.Code, task.Lost, task.Error)
			}
		case task.State != opscore.Completed || task.Attempt != 1 || task.Lost >= opscore.MaxLost:
			t.Errorf("an innocent task is %s, %s, attempt %d, lost %d times", task.State, task.Code, task.Attempt, task.Lost)
		case task.Suspect():
			together++
		}
	}
	if together == 0 {
		t.Error("no other task was lost with the killer as often as makes it a suspect: the test tests nothing")
	}
}

// superviseUntil starts victims, a new one whenever one has died, and returns how many died until done says yes. It kills the last one.
func superviseUntil(t *testing.T, path string, done func() bool) (deaths int) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); ; deaths++ {
		victim, _ := spawn(t, "victim", path)
		died := make(chan struct{})
		go func() {
			_ = victim.Wait() // killed
			close(died)
		}()
		for alive := true; alive; {
			select {
			case <-died:
				alive = false
			case <-tick.C:
			}
			switch {
			case time.Now().After(deadline):
				t.Fatalf("tasks are left after %d deaths", deaths)
			case alive && done():
				if err := victim.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				<-died
				return deaths
			}
		}
	}
}

func TestTwoProcessesStartOnANewFileAtTheSameMoment(t *testing.T) {
	for range 50 {
		path := filepath.Join(t.TempDir(), "opscore.db")
		var wg sync.WaitGroup
		var begins []func()
		for range 2 {
			cmd, begin := spawn(t, "start", path)
			begins = append(begins, begin)
			wg.Go(func() {
				if err := cmd.Wait(); err != nil {
					t.Errorf("a process failed: %v", err)
				}
			})
		}
		for _, begin := range begins {
			begin()
		}
		wg.Wait()
		s, err := sqlite.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := count(t, s.DB(), "SELECT count(*) FROM opscore_task"); n != 2 {
			t.Errorf("%d tasks, want 2", n)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestADeadProcessIsProvenByItsLockLongBeforeItsLeaseEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "opscore.db")
	s := openAt(t, path)
	worker, _ := spawn(t, "worker", path)
	if _, err := s.Rescue(t.Context()); err != nil {
		t.Fatal(err)
	}
	workers, err := s.Workers(t.Context(), time.Hour)
	if err != nil || len(workers) != 1 || workers[0].State != opscore.WorkerReady {
		t.Fatalf("workers = %+v, %v", workers, err)
	}
	if err := worker.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = worker.Wait()
	if _, err := s.Rescue(t.Context()); err != nil {
		t.Fatal(err)
	}
	workers, err = s.Workers(t.Context(), time.Hour)
	if err != nil || workers[0].State != opscore.WorkerGone || !strings.Contains(workers[0].Cause, "dead") {
		t.Errorf("workers = %+v, %v", workers, err)
	}
}
