package opscoretest

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opscore/opscore"
)

// assignmentEnv tells the test binary that it is to be a worker, and which.
const assignmentEnv = "OPSCORETEST_WORKER"

// assignment is what a worker in a process of its own is told. Orders follow on its standard input, which ends with the test; it
// answers each on file descriptor 3.
type assignment struct {
	Place  place
	Queues []string
	Slots  int
}

// report is a worker's answer.
type report struct {
	Ready  *opscore.WorkerInfo
	Stacks string
	Error  string
}

func (r report) err() error {
	if r.Error == "" {
		return nil
	}
	return errors.New(r.Error)
}

// Main is the body of a TestMain whose tests want workers in processes of their own (see [Options].Process):
//
//	func TestMain(m *testing.M) { opscoretest.Main(m, handlers) }
//
// It runs the tests, or, in such a process, a worker with the handlers, which may submit to the store that they are given. What else TestMain
// does, before or after, happens in such processes as well.
func Main(m *testing.M, handlers func(opscore.Store) opscore.Handlers) {
	doc := os.Getenv(assignmentEnv)
	if doc == "" {
		m.Run()
		return
	}
	// What handlers start must not keep our files open, nor take itself for this worker.
	syscall.CloseOnExec(3)
	_ = os.Unsetenv(assignmentEnv) // only an empty name is an error
	answers := json.NewEncoder(os.NewFile(3, "answers"))
	if err := serve(doc, handlers, answers); err != nil {
		_ = answers.Encode(report{Error: err.Error()}) // if nobody listens, nobody waits
		os.Exit(1)
	}
}

// serve runs the worker that doc describes.
func serve(doc string, handlers func(opscore.Store) opscore.Handlers, answers *json.Encoder) error {
	var a assignment
	if err := json.Unmarshal([]byte(doc), &a); err != nil {
		return fmt.Errorf("read %s: %w", assignmentEnv, err)
	}
	log := slog.NewTextHandler(os.Stderr, nil)
	var opened closers
	store, err := a.Place.open(context.Background(), log, &opened)
	if err != nil {
		return err
	}
	defer func() { _ = opened.close() }() // the process ends
	h, err := hireLocal(context.Background(), newGate(store, nil), post{
		handlers: handlers(store), queues: a.Queues, slots: a.Slots, drain: drainWithin, log: log, sources: a.Place.sources(log),
	})
	if err != nil {
		return err
	}
	w := h.(*local)
	if err := answers.Encode(report{Ready: &w.was}); err != nil {
		return err
	}
	return w.obey(json.NewDecoder(os.Stdin), answers)
}

// obey does what it is told until it is told to stop. If the test is gone, the process is as well.
func (w *local) obey(orders *json.Decoder, answers *json.Encoder) error {
	for {
		var o order
		if orders.Decode(&o) != nil {
			os.Exit(1)
		}
		var r report
		switch o.Do {
		case doStacks:
			r.Stacks = w.stacks()
		case doPause, doFail, doDrop:
			_ = w.suffer(o) // a local one always can
		case doStop:
			go func() { // the test may end, or be killed, while this worker drains
				_, _ = io.Copy(io.Discard, os.Stdin)
				os.Exit(1)
			}()
			return w.stop(o.Hurry)
		}
		if err := answers.Encode(r); err != nil {
			return err
		}
	}
}

// process is a worker in a process of its own.
type process struct {
	cmd      *exec.Cmd
	orders   io.WriteCloser
	answers  *json.Decoder
	was      opscore.WorkerInfo
	patience time.Duration
	ended    chan struct{} // closed when the process has ended
	err      error         // its exit status

	owed int // answers to orders that it had while it was paused

	mu     sync.Mutex
	hurt   time.Time // until then something is wrong with it
	killed bool
	resume *time.Timer
}

// hireProcess starts the test binary as a worker and returns when it is ready.
func hireProcess(t *testing.T, o Options, at place, patience time.Duration) (hand, error) {
	doc, err := json.Marshal(assignment{at, o.Queues, o.Slots})
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	answers, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	// Without a TestMain that calls Main it runs no test, rather than all of them, and with them this one.
	cmd := exec.Command(exe, "-test.run=^$") //nolint:noctx // it ends with this process, not with a context
	cmd.Env = append(append(os.Environ(), o.Env...), assignmentEnv+"="+string(doc))
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = ofItsOwn()
	cmd.WaitDelay = time.Second // for output of children that it leaves
	w := &process{cmd: cmd, answers: json.NewDecoder(bufio.NewReader(answers)), patience: patience, ended: make(chan struct{})}
	if w.orders, err = cmd.StdinPipe(); err != nil {
		return nil, errors.Join(err, answers.Close(), theirs.Close())
	}
	started := make(chan error)
	go w.live(started)
	err = <-started
	_ = theirs.Close()
	if err != nil {
		return nil, errors.Join(err, answers.Close())
	}
	if err := w.ready(); err != nil {
		return nil, err
	}
	return w, nil
}

// live starts the process and waits for its end, on one thread: it is killed when the thread that started it ends.
func (w *process) live(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := w.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	w.err = w.cmd.Wait()
	close(w.ended)
}

func (w *process) ready() error {
	r, err := w.hear(w.patience)
	if err == nil && r.Ready == nil {
		err = errors.New("it did not say that it is ready")
	}
	if err != nil {
		_ = w.crash()
		if errors.Is(err, io.EOF) {
			return errors.New("the test binary ended without becoming a worker: this package needs a " +
				"func TestMain(m *testing.M) { opscoretest.Main(m, handlers) }")
		}
		return err
	}
	w.was = *r.Ready
	return nil
}

// hear waits for a report.
func (w *process) hear(within time.Duration) (report, error) {
	type heard struct {
		r   report
		err error
	}
	got := make(chan heard, 1)
	go func() {
		var h heard
		h.err = w.answers.Decode(&h.r)
		got <- h
	}()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case h := <-got:
		return h.r, cmp.Or(h.err, h.r.err())
	case <-w.ended:
		select {
		case h := <-got: // its last words
			return h.r, cmp.Or(h.err, h.r.err())
		case <-time.After(100 * time.Millisecond): // a process that it has left may keep the pipe open
			return report{}, io.EOF
		}
	case <-timer.C:
		_ = w.crash() // its answers would be taken for others
		return report{}, fmt.Errorf("the worker's process did not answer within %s", within)
	}
}

// ask gives an order and waits until it is carried out; a paused worker does so later.
func (w *process) ask(o order) (report, error) {
	if err := json.NewEncoder(w.orders).Encode(o); err != nil {
		return report{}, err
	}
	w.owed++
	w.mu.Lock()
	paused := w.resume != nil
	w.mu.Unlock()
	if paused {
		return report{}, nil
	}
	return w.last()
}

// last hears all the answers that are owed and returns the last one.
func (w *process) last() (r report, err error) {
	for ; err == nil && w.owed > 0; w.owed-- {
		r, err = w.hear(w.patience)
	}
	return r, err
}

func (w *process) info() opscore.WorkerInfo { return w.was }

// sweep kills what the process has left behind in its group.
func (w *process) sweep() { _ = syscall.Kill(-w.cmd.Process.Pid, syscall.SIGKILL) } // an error means that there is nothing

func (w *process) crash() error {
	w.mu.Lock()
	w.killed = true
	w.mu.Unlock()
	err := w.cmd.Process.Kill()
	<-w.ended
	w.sweep()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	return err
}

func (w *process) suffer(o order) error {
	w.mu.Lock()
	if until := time.Now().Add(o.For); until.After(w.hurt) {
		w.hurt = until
	}
	w.mu.Unlock()
	if o.Do == doPause {
		return w.pause(o.For)
	}
	_, err := w.ask(o)
	return err
}

func (w *process) pause(d time.Duration) error {
	if err := w.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.resume != nil {
		w.resume.Stop()
	}
	w.resume = time.AfterFunc(d, w.proceed)
	return nil
}

func (w *process) proceed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.resume != nil {
		w.resume.Stop()
		w.resume = nil
		_ = w.cmd.Process.Signal(syscall.SIGCONT) // it may be gone
	}
}

func (w *process) faulty() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Until(w.hurt) > 0
}

func (w *process) gone() error {
	select {
	case <-w.ended:
		return fmt.Errorf("its process: %w", exitError(w.err))
	default:
		return nil
	}
}

func exitError(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

func (w *process) stacks() string {
	if w.gone() != nil {
		return ""
	}
	r, err := w.ask(order{Do: doStacks})
	if err != nil {
		return "(the stacks of the worker's process: " + err.Error() + ")"
	}
	return r.Stacks
}

func (w *process) stop(hurry bool) error {
	w.mu.Lock()
	killed := w.killed
	w.mu.Unlock()
	if killed {
		return nil
	}
	if err := w.gone(); err != nil {
		return err
	}
	w.proceed()
	if err := json.NewEncoder(w.orders).Encode(order{Do: doStop, Hurry: hurry}); err != nil {
		return errors.Join(err, w.crash())
	}
	_, err := w.last()
	for err == nil { // until it has nothing more to say
		_, err = w.hear(drainWithin + opscore.DefaultGrace + w.patience)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	<-w.ended
	w.sweep()
	return cmp.Or(err, w.err)
}
