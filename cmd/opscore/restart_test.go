package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
)

// How much the tests of restarts and pauses do; make restarts does it all.
var (
	restarts = flag.Int("restarts", 8, "rolling restarts under load")
	zombies  = flag.Int("zombies", 6, "workers that are stopped for longer than their lease, and go on")
)

// fleet is a deployment of real processes that run one command actor. Each run of a task writes a line into the journal: the task, and the
// worker that ran it.
type fleet struct {
	*testing.T
	dir, journal string
	file         string // of the database; "" if it is PostgreSQL's
	env          []string
	store        store
	client       *opscore.Client
	stopping     sync.RWMutex // held while a worker is being stopped, and for reading while one starts
}

// The actor notes its run when it starts; the result names the worker's process.
const fleetConfig = `actors:
  work:
    command: [sh, -c, 'read s; echo "$OPSCORE_TASK_ID $PPID" >>journal; sleep "$s"; echo $PPID']
`

func newFleet(t *testing.T, tier string) *fleet {
	t.Helper()
	dir := t.TempDir()
	f := &fleet{T: t, dir: dir, journal: filepath.Join(dir, "journal")}
	if err := os.WriteFile(filepath.Join(dir, "opscore.yaml"), []byte(fleetConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	f.file = filepath.Join(dir, "opscore.db")
	at := "OPSCORE_DATABASE_URL=" + f.file
	if tier == "cluster" {
		f.file = ""
		at = "OPSCORE_DATABASE_URL=" + nodes.Database(t, "opscore", func(url string) error {
			return postgres.Migrate(t.Context(), url, postgres.Options{})
		})
		f.env = append(f.env, "OPSCORE_BROKER_URL="+nodes.Vhost(t))
	}
	f.env = append(f.env, at)
	f.store = openDatabase(t, strings.TrimPrefix(at, "OPSCORE_DATABASE_URL="))
	f.client = &opscore.Client{Store: f.store}
	return f
}

func openDatabase(t *testing.T, url string) store {
	t.Helper()
	place, _, err := (&config{database: url, schema: postgres.DefaultSchema}).place()
	if err != nil {
		t.Fatal(err)
	}
	s, err := place.open(t.Context(), created)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// member is a worker of the fleet.
type member struct {
	*fleet
	cmd  *exec.Cmd
	said said
	info opscore.WorkerInfo

	ready string // the ready file
}

// hire starts a worker and returns when it is ready.
func (f *fleet) hire(args ...string) *member {
	f.Helper()
	f.stopping.RLock()
	defer f.stopping.RUnlock()
	log, stderr := newSaid(f.T)
	ready := filepath.Join(f.TempDir(), "ready")
	m := &member{fleet: f, said: log, ready: ready, cmd: opscoreCommand(f.T, append([]string{"worker", "--ready-file", ready}, args...)...)}
	m.cmd.Dir, m.cmd.Stderr = f.dir, stderr
	m.cmd.Env = append(m.cmd.Env, f.env...)
	if err := m.cmd.Start(); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { // what is left after a failure
		if m.cmd.Process.Kill() == nil {
			f.Logf("worker %s with process %d said: %s", m.info.ID, m.cmd.Process.Pid, log.match(f.T, `(?s).*`))
		}
	})
	eventuallyTrue(f.T, "a ready worker", func() bool {
		if doc, err := os.ReadFile(ready); err == nil && json.Unmarshal(doc, &m.info) == nil {
			return true
		}
		if why := m.said.match(f.T, "(?m)^opscore: .*"); why != "" {
			f.Fatalf("a worker did not start: %s", why)
		}
		return false
	})
	return m
}

func (m *member) signal(s syscall.Signal) {
	m.Helper()
	if err := m.cmd.Process.Signal(s); err != nil {
		m.Fatal(err)
	}
}

// retire stops a worker, which must end well.
func (m *member) retire() {
	m.Helper()
	m.signal(syscall.SIGTERM)
	if err := m.cmd.Wait(); err != nil {
		m.Errorf("worker: %v", err)
	}
	m.said.find(m.T, `worker drained`)
}

// awaitWork waits until the worker is in the middle of a task: to stop an idle one shows nothing.
func (m *member) awaitWork() {
	m.Helper()
	eventuallyTrue(m.T, "a worker at work", func() bool {
		running, err := m.store.List(m.Context(), opscore.Filter{States: []opscore.State{opscore.Running}, Limit: 1000})
		if err != nil {
			m.Fatal(err)
		}
		return slices.ContainsFunc(running, func(t opscore.Task) bool { return t.Worker == m.info.ID })
	})
}

// flood submits tasks, some of which take a moment, until it is stopped, and returns their ids.
func (f *fleet) flood() (stop func() []opscore.ID) {
	ctx, cancel := context.WithCancel(f.Context())
	var ids []opscore.ID
	var flooding sync.WaitGroup
	flooding.Go(func() {
		tick := time.NewTicker(40 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			subs, err := f.client.Submit(f.Context(), opscore.NewRequest("work", json.RawMessage(fmt.Sprintf("0.%d", i%7))))
			if err != nil {
				f.Errorf("submit: %v", err)
				return
			}
			ids = append(ids, subs[0].ID)
		}
	})
	return func() []opscore.ID {
		cancel()
		flooding.Wait()
		return ids
	}
}

// completed waits until the tasks are completed and returns them.
func (f *fleet) completed(ids []opscore.ID) []opscore.Task {
	f.Helper()
	var tasks []opscore.Task
	eventuallyTrue(f.T, "the end of all tasks", func() bool {
		var err error
		if tasks, err = f.store.Get(f.Context(), ids); err != nil {
			f.Fatal(err)
		}
		for _, t := range tasks {
			if !t.State.Terminal() {
				return false
			}
		}
		return len(tasks) == len(ids)
	})
	for _, t := range tasks {
		if t.State != opscore.Completed {
			f.Errorf("task %s is %s: %s", t.ID, t.State, t.Error)
		}
	}
	return tasks
}

// runs counts the starts of each task.
func (f *fleet) runs() map[string]int {
	f.Helper()
	doc, err := os.ReadFile(f.journal)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.Fatal(err)
	}
	n := map[string]int{}
	for line := range strings.Lines(string(doc)) {
		id, _, _ := strings.Cut(line, " ")
		n[id]++
	}
	return n
}

func tiers(t *testing.T, test func(t *testing.T, tier string)) {
	for _, tier := range []string{"embedded", "cluster"} {
		t.Run(tier, func(t *testing.T) {
			t.Parallel()
			test(t, tier)
		})
	}
}

func TestRollingRestartsUnderLoadLoseNothingAndRepeatNothing(t *testing.T) {
	t.Parallel()
	tiers(t, func(t *testing.T, tier string) {
		f := newFleet(t, tier)
		serving := []*member{f.hire(), f.hire()}
		stop := f.flood()
		for range *restarts {
			serving = append(serving, f.hire())
			serving[0].awaitWork()
			serving[0].retire()
			serving = serving[1:]
		}
		tasks := f.completed(stop())
		for _, m := range serving {
			m.retire()
		}
		runs := f.runs()
		for _, task := range tasks {
			if n := runs[task.ID.String()]; n != 1 || task.Attempt != 1 || task.Lost != 0 {
				t.Errorf("task %s started %d times, attempt %d, lost %d", task.ID, n, task.Attempt, task.Lost)
			}
		}
		t.Logf("%d restarts, %d tasks", *restarts, len(tasks))
		if len(tasks) < *restarts {
			t.Errorf("only %d tasks: there was no load", len(tasks))
		}
	})
}

func TestAWorkerThatWasStoppedForLongerThanItsLeaseChangesNoOutcome(t *testing.T) {
	t.Parallel()
	tiers(t, func(t *testing.T, tier string) {
		f := newFleet(t, tier)
		keeper := f.hire("--queues", "none")                        // somebody has to take back what zombies had
		atOnce := map[string]int{"embedded": 4, "cluster": 8}[tier] // one that is stopped in the middle of a write holds up all that share its file
		var living sync.WaitGroup
		late, turns := make(chan bool, *zombies), make(chan struct{}, atOnce)
		for i := range *zombies {
			turns <- struct{}{}
			living.Go(func() {
				defer func() { <-turns }()
				late <- f.revive(fmt.Sprintf("z%d", i))
			})
		}
		living.Wait()
		keeper.retire()
		close(late)
		told := 0
		for l := range late {
			if l {
				told++
			}
		}
		t.Logf("%d zombies, of which %d told of an outcome when it was too late", *zombies, told)
		if told < *zombies/2 {
			t.Error("they were no zombies")
		}
	})
}

func TestTheReadyFileOfAWorkerThatLostItsLeaseHasItsNewID(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "embedded")
	other := f.hire()
	zombie := f.hire("--lease", "1s")
	zombie.stop()
	registered := func() map[opscore.ID]opscore.WorkerState {
		workers, err := f.store.Workers(t.Context(), opscore.Forever)
		if err != nil {
			t.Fatal(err)
		}
		states := map[opscore.ID]opscore.WorkerState{}
		for _, w := range workers {
			states[w.ID] = w.State
		}
		return states
	}
	eventuallyTrue(t, "the end of the lease", func() bool { return registered()[zombie.info.ID] == opscore.WorkerGone })
	zombie.signal(syscall.SIGCONT)
	var after readyDoc
	eventuallyTrue(t, "another id in the ready file", func() bool {
		text, err := os.ReadFile(zombie.ready)
		return err == nil && json.Unmarshal(text, &after) == nil && after.ID != zombie.info.ID
	})
	if registered()[after.ID] != opscore.WorkerReady || after.PID != zombie.info.PID {
		t.Errorf("the ready file has %+v", after)
	}
	zombie.retire()
	if _, err := os.Stat(zombie.ready); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the ready file after the end: %v", err)
	}
	other.retire()
}

// muteDatabase is the URL of one that accepts connections and does not answer, and a channel that has a value for each of them.
func muteDatabase(t *testing.T) (url string, met <-chan struct{}) {
	t.Helper()
	var held []net.Conn
	t.Cleanup(func() {
		for _, c := range held {
			_ = c.Close()
		}
	})
	return fakeDatabase(t, func(c net.Conn) { held = append(held, c) })
}

// fakeDatabase does something with each connection.
func fakeDatabase(t *testing.T, serve func(net.Conn)) (url string, met <-chan struct{}) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan struct{}, 100)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			accepted <- struct{}{}
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	return "postgres://app@" + l.Addr().String() + "/app?sslmode=disable", accepted
}

func TestAWorkerStopsThoughItsDatabaseDoesNotAnswer(t *testing.T) {
	t.Parallel()
	url, met := muteDatabase(t)
	cmd := opscoreCommand(t, "dev", "--database", url)
	log, stderr := newSaid(t)
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-met
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, log.match(t, "(?s).*"))
	}
}

func TestADatabaseThatDoesNotAnswerIsNotWaitedForForEver(t *testing.T) {
	t.Parallel()
	url, _ := muteDatabase(t)
	out, err := opscoreCommand(t, "dev", "--database", url+"&connect_timeout=1").CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != exitFailed || !strings.Contains(string(out), "opscore: connect to 127.0.0.1:") {
		t.Errorf("it ended with %v: %s", err, out)
	}
}

func TestWhoWaitsForAWorkerWaitsForTheDatabaseUntilTheTimeout(t *testing.T) {
	t.Parallel()
	mute, _ := muteDatabase(t)
	closing, met := fakeDatabase(t, func(c net.Conn) { _ = c.Close() })
	for url, want := range map[string]string{
		mute:    `^opscore: after 1s postgres://app@127.0.0.1:\d+/app has not answered\n$`,
		closing: `^opscore: after 1s: connect to 127.0.0.1:\d+, database app: .*\n$`,
	} {
		began := time.Now()
		out, err := opscoreCommand(t, "worker", "wait", "--timeout", "1s", "--database", url).CombinedOutput()
		took := time.Since(began)
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || exit.ExitCode() != exitFailed || !regexp.MustCompile(want).Match(out) || took < time.Second || took > connectSoon {
			t.Errorf("after %s it ended with %v: %s", took, err, out)
		}
	}
	if len(met) < 2 {
		t.Errorf("it tried %d times", len(met))
	}
}

// connectSoon is well below the time after which a connection is given up anyhow.
const connectSoon = 10 * time.Second

// revive stops a worker in the middle of a task, lets another one run the task, and lets the first go on at some moment. It reports whether
// the first told of an outcome then.
func (f *fleet) revive(queue string) (late bool) {
	zombie := f.hire("--queues", queue, "--lease", "1s")
	subs, err := f.client.Submit(f.Context(), opscore.NewRequest("work", json.RawMessage("1.5"), opscore.Queue(queue), opscore.Timeout(time.Minute)))
	if err != nil {
		f.Error(err)
		return false
	}
	id := subs[0].ID
	f.await(id, func(t opscore.Task) bool { return t.State == opscore.Running })
	zombie.freeze(id)
	other := f.hire("--queues", queue)
	moments := []opscore.State{opscore.Pending, opscore.Running, opscore.Completed}
	moment := moments[int(id[15])%len(moments)]
	f.await(id, func(t opscore.Task) bool { return t.State == moment || t.State.Terminal() })
	zombie.signal(syscall.SIGCONT)
	task := f.await(id, func(t opscore.Task) bool { return t.State.Terminal() })
	zombie.retire() // then it has told all that it had to tell
	other.retire()
	if by := f.process(task.Worker); task.State != opscore.Completed || string(task.Result) != by || task.Worker == zombie.info.ID || task.Lost != 1 {
		f.Errorf("task %s is %s with result %s, lost %d; it was recorded by worker %s, process %s; the zombie was %s, process %d",
			id, task.State, task.Result, task.Lost, task.Worker, by, zombie.info.ID, zombie.info.PID)
	}
	attempts, err := f.store.Attempts(f.Context(), id)
	if err != nil {
		f.Error(err)
	}
	for _, a := range attempts {
		late = late || a.Late
	}
	return late
}

// process returns the id of a worker's process. One that has lost its lease goes on as another worker.
func (f *fleet) process(worker opscore.ID) string {
	f.Helper()
	workers, err := f.store.Workers(f.Context(), opscore.Forever)
	if err != nil {
		f.Error(err)
	}
	for _, w := range workers {
		if w.ID == worker {
			return fmt.Sprint(w.PID)
		}
	}
	return "none"
}

// freeze stops the worker until it has lost the task. One that is stopped in the middle of a write to a SQLite file keeps everybody from
// writing, and that is not what is tested: it goes on for a moment, and is stopped anew.
func (m *member) freeze(id opscore.ID) {
	m.Helper()
	m.stop()
	m.await(id, func(t opscore.Task) bool { return t.Lost > 0 })
}

func (m *member) stop() {
	m.Helper()
	m.stopping.Lock() // who starts meanwhile would give up if it could not write for seconds
	defer m.stopping.Unlock()
	m.signal(syscall.SIGSTOP)
	for moment := 50 * time.Millisecond; !m.writable(); moment *= 2 {
		m.signal(syscall.SIGCONT)
		<-time.After(moment)
		m.signal(syscall.SIGSTOP)
	}
}

// writable reports whether others can write, without waiting for as long as a store does.
func (f *fleet) writable() bool {
	f.Helper()
	if f.file == "" {
		return true // PostgreSQL goes on without a client that is stopped
	}
	db, err := sql.Open("sqlite", "file:"+f.file+"?_txlock=immediate&_pragma=busy_timeout(300)")
	if err != nil {
		f.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	tx, err := db.BeginTx(f.Context(), nil)
	return err == nil && tx.Rollback() == nil
}

// await waits until a task is as it should be, and returns it.
func (f *fleet) await(id opscore.ID, done func(opscore.Task) bool) (task opscore.Task) {
	f.Helper()
	arrived := false
	defer func() {
		if !arrived {
			f.Logf("the task is %+v", task)
		}
	}()
	eventuallyTrue(f.T, "task "+id.String(), func() bool {
		tasks, err := f.store.Get(f.Context(), []opscore.ID{id})
		if err != nil || len(tasks) != 1 {
			f.Fatal(err)
		}
		task = tasks[0]
		arrived = done(task)
		return arrived
	})
	return task
}
