//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/sqlite"
)

// How a worker was launched must not matter. Each way here starts the real binary, waits until it is ready, has it complete a
// task that another process submits, stops it, and expects a report of the drain, exit status 0 and no process left behind.

func TestLaunchEmbedded(t *testing.T) {
	t.Parallel()
	matrix(t, embedded, ways(), func(way) bool { return true })
}

func TestLaunchCluster(t *testing.T) {
	t.Parallel()
	matrix(t, cluster, ways(), func(w way) bool { return w.nasty })
}

// way is one way to launch a worker.
type way struct {
	name  string
	nasty bool // enough to be tried on the cluster tier as well

	argv  []string        // a program and the arguments that come before the worker's command line; empty: the worker itself
	flags []string        // of the worker
	setup func(l *launch) // changes what is started
	start func(l *launch) // nil: by the test
	then  func(l *launch) // happens to the worker once it has completed a task
	stop  func(l *launch) // nil: a SIGTERM to each worker
	ends  bool            // what is started ends before the worker does, in any way
	mute  bool            // the worker's log does not get into the log file
	also  func(l *launch) // is checked at the end
}

// matrix runs the ways that are wanted, each as a subtest.
func matrix(t *testing.T, on tier, all []way, wanted func(way) bool) {
	t.Helper()
	bin := buildCommand(t)
	for _, w := range all {
		if wanted(w) {
			t.Run(w.name, func(t *testing.T) {
				t.Parallel()
				newLaunch(t, bin, on(t)).run(w)
			})
		}
	}
}

// buildCommand builds what users run: not the test's binary, which depends on the name it is called by.
func buildCommand(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "opscore")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("build opscore: %v\n%s", err, out)
	}
	return path
}

// tier gives a launch a database, and a broker if it has one.
type tier func(*testing.T) place

// place is where the tasks of a launch are.
type place struct {
	flags  []string // that name the database
	broker []string // flags that name the broker
	open   func() (store, error)
}

func embedded(t *testing.T) place {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tasks.db")
	return place{[]string{"--database", file}, nil, func() (store, error) { return sqlite.Open(file) }}
}

func cluster(t *testing.T) place {
	t.Helper()
	url := nodes.Database(t, "opscore", func(url string) error {
		return postgres.Migrate(t.Context(), url, postgres.Options{})
	})
	return place{[]string{"--database", url}, []string{"--broker", nodes.Vhost(t)}, func() (store, error) {
		s, err := postgres.Open(t.Context(), url, postgres.Options{})
		return postgresStore{s}, err
	}}
}

// launch is a worker, or several, started one way.
type launch struct {
	*testing.T
	bin   string
	dir   string // with the configuration, the ready file and the log; the command lines of all that is started name it
	place place
	cmd   *exec.Cmd
	store store // open once a worker is ready

	workers int           // that are ready
	ended   chan struct{} // closed when what was started has ended
	err     error         // how; to be read after that
}

const launchConfig = `
actors:
  hello: {command: [cat]}
  nap: {command: [sh, -c, ": >'DIR/napping'; sleep 1.5; cat"]}
  short: {command: [sh, -c, "sleep 0.1"], max_attempts: 1}
  complain: {command: [cat, NAME], max_attempts: 1}
  hears: {command: [grep, "SigBlk:.*0000000000000000", /proc/self/status], max_attempts: 1}
  orphans: {command: [sh, -c, "for i in 1 2 3; do setsid sh -c \"sleep 0.1; mkdir orphan.$i\" <&- >&- 2>&- & done; sleep 0.05"]}
`

func newLaunch(t *testing.T, bin string, at place) *launch {
	l := &launch{T: t, bin: bin, dir: t.TempDir(), place: at, ended: make(chan struct{})}
	config := strings.NewReplacer("NAME", strings.Repeat("x", 500), "DIR", l.dir).Replace(launchConfig)
	if err := os.WriteFile(l.path("opscore.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.killAll()
		if t.Failed() {
			t.Logf("the log:\n%s", l.log())
		}
	})
	return l
}

func (l *launch) path(name string) string { return filepath.Join(l.dir, name) }

// run takes a worker through its life.
func (l *launch) run(w way) {
	l.cmd = l.command(slices.Concat(w.argv, l.worker(w.flags...))...)
	l.cmd.Stdout, l.cmd.Stderr = l.create("log"), l.create("log")
	if w.setup != nil {
		w.setup(l)
	}
	if w.start == nil {
		l.start()
	} else {
		w.start(l)
	}
	l.awaitReady("ready")
	l.completes("hello")
	if w.then != nil {
		w.then(l)
	}
	if w.stop == nil {
		l.signalWorkers(syscall.SIGTERM)
	} else {
		w.stop(l)
	}
	eventuallyTrue(l.T, "the end of "+l.cmd.String(), func() bool { return closed(l.ended) })
	if l.err != nil && !w.ends {
		l.Errorf("%s: %v", l.cmd, l.err)
	}
	eventuallyTrue(l.T, "the end of every process", func() bool { return len(l.processes()) == 0 })
	l.stoppedWell(w.mute)
	if w.also != nil {
		w.also(l)
	}
}

// worker is the command line of a worker.
func (l *launch) worker(flags ...string) []string {
	return slices.Concat([]string{l.bin, "worker", "--config", l.path("opscore.yaml"), "--ready-file", l.path("ready")}, l.place.broker, l.place.flags, flags)
}

func (l *launch) command(argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // killAll ends it, with all that it has started
	cmd.Dir = l.dir
	cmd.Env = l.env()
	return cmd
}

func (l *launch) env() []string { return append(os.Environ(), "HOME="+l.dir, "XDG_STATE_HOME="+l.dir) }

func (l *launch) start() {
	l.Helper()
	l.must(l.cmd.Start())
	go func() {
		l.err = l.cmd.Wait()
		close(l.ended)
	}()
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (l *launch) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// create opens a file of the launch's directory for appending.
func (l *launch) create(name string) *os.File {
	l.Helper()
	f, err := os.OpenFile(l.path(name), os.O_APPEND|os.O_CREATE|os.O_RDWR, 0o600)
	l.must(err)
	l.Cleanup(func() { _ = f.Close() })
	return f
}

func (l *launch) log() string {
	log, err := os.ReadFile(l.path("log"))
	if err != nil {
		return err.Error()
	}
	return string(log)
}

// awaitReady waits for a ready file, and fails the test at once if what was started has failed.
func (l *launch) awaitReady(name string) {
	l.Helper()
	eventuallyTrue(l.T, name+" of "+l.cmd.String(), func() bool {
		_, err := os.Stat(l.path(name))
		if err != nil && closed(l.ended) && l.err != nil {
			l.Fatalf("%s ended (%v) before it was ready:\n%s", l.cmd, l.err, l.log())
		}
		return err == nil
	})
	l.workers++
	if l.store != nil {
		return
	}
	store, err := l.place.open()
	l.must(err)
	l.store = store
	l.Cleanup(func() { l.must(store.Close()) })
}

// completes has the worker complete a task that another process submits.
func (l *launch) completes(actor string) {
	l.Helper()
	const args = `{"n":7}`
	ctx, cancel := context.WithTimeout(l.Context(), time.Minute)
	defer cancel()
	flags := slices.Concat([]string{"submit", "--wait", "--config", l.path("opscore.yaml")}, l.place.flags, []string{actor, args})
	cmd := exec.CommandContext(ctx, l.bin, flags...)
	cmd.Env = l.env()
	out, err := cmd.Output()
	if err != nil {
		var said []byte
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			said = exit.Stderr
		}
		l.Fatalf("a task of a worker that was started by %s: %v: %s\nthe log:\n%s", l.cmd, errors.Join(err, ctx.Err()), said, l.log())
	}
	if got := strings.TrimSpace(string(out)); got != args {
		l.Errorf("the result is %s, want %s", got, args)
	}
}

// submits stores tasks and returns their ids.
func (l *launch) submits(actor string, n int) []opscore.ID {
	l.Helper()
	requests := make([]opscore.Request, n)
	for i := range requests {
		requests[i] = opscore.NewRequest(actor, json.RawMessage(`{"n":7}`), opscore.MaxAttempts(1))
	}
	subs, err := (&opscore.Client{Store: l.store}).Submit(l.Context(), requests...)
	l.must(err)
	ids := make([]opscore.ID, n)
	for i, s := range subs {
		ids[i] = s.ID
	}
	return ids
}

// end waits until all the tasks are in that state.
func (l *launch) end(ids []opscore.ID, state opscore.State) {
	l.Helper()
	eventuallyTrue(l.T, fmt.Sprintf("%d tasks to be %s", len(ids), state), func() bool {
		tasks, err := l.store.Get(l.Context(), ids)
		l.must(err)
		n := 0
		for _, t := range tasks {
			if t.State.Terminal() && t.State != state {
				l.Fatalf("a task is %s, want %s: %s", t.State, state, t.Error)
			}
			if t.State == state {
				n++
			}
		}
		return n == len(ids)
	})
}

// processes returns those that belong to this launch: their command lines name its directory. Zombies have no command line.
func (l *launch) processes() (pids []int) {
	l.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	l.must(err)
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(line), l.dir+"/") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			l.must(err)
			pids = append(pids, pid)
		}
	}
	return pids
}

// workerPIDs returns the processes of the workers. Not what the ready file says: in a namespace they have other ids than here.
func (l *launch) workerPIDs() (pids []int) {
	l.Helper()
	for _, pid := range l.processes() {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && strings.TrimSuffix(filepath.Base(exe), " (deleted)") == "opscore" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// signalWorkers reaches the workers whatever is between them and us.
func (l *launch) signalWorkers(s syscall.Signal) {
	l.Helper()
	pids := l.workerPIDs()
	if len(pids) != l.workers {
		l.Fatalf("%d processes are workers, want %d; the log:\n%s", len(pids), l.workers, l.log())
	}
	for _, pid := range pids {
		l.must(syscall.Kill(pid, s))
	}
}

// workerStop stops the workers without a signal.
func (l *launch) workerStop() {
	l.Helper()
	flags := slices.Concat([]string{"worker", "stop", "--all", "--wait"}, l.place.flags)
	if out, err := l.command(slices.Concat([]string{l.bin}, flags)...).CombinedOutput(); err != nil {
		l.Fatalf("worker stop: %v: %s", err, out)
	}
}

// signal reaches only what was started.
func (l *launch) signal(s syscall.Signal) {
	l.Helper()
	l.must(l.cmd.Process.Signal(s))
}

// killAll ends what a failed test leaves.
func (l *launch) killAll() {
	for _, pid := range l.processes() {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
}

// stoppedWell checks what the workers leave behind: a report, a farewell and no ready file.
func (l *launch) stoppedWell(mute bool) {
	l.Helper()
	workers, err := l.store.Workers(l.Context(), time.Hour)
	l.must(err)
	if len(workers) != l.workers {
		l.Errorf("%d workers are registered, want %d", len(workers), l.workers)
	}
	for _, w := range workers {
		if w.State != opscore.WorkerGone || !strings.HasPrefix(w.Cause, "stopped: ") {
			l.Errorf("worker %d is %s: %q, want it gone: stopped", w.PID, w.State, w.Cause)
		}
	}
	if n := strings.Count(l.log(), "worker drained"); n != l.workers && !mute {
		l.Errorf("%d workers report that they are drained, want %d; the log:\n%s", n, l.workers, l.log())
	}
	if _, err := os.Stat(l.path("ready")); !errors.Is(err, fs.ErrNotExist) {
		l.Errorf("the ready file remains (%v)", err)
	}
}
