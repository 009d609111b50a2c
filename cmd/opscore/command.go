package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/opscore/opscore"
)

// What a command may do.
const (
	maxStdout   = 1 << 20                // bytes of its result
	maxResult   = 6*maxStdout + 2        // the same as a JSON string, where every byte may need six
	maxLine     = 4 << 10                // bytes of a line of stderr; the rest of the line is dropped
	killAfter   = 2 * time.Second        // at most, between SIGTERM and SIGKILL
	outputAfter = 250 * time.Millisecond // how long output is read on after the command and its group are gone

	statusTempFail = 75 // EX_TEMPFAIL: try again
	statusDataErr  = 65 // EX_DATAERR: never try again
)

// What a command learns of its task.
const (
	envTaskID  = "OPSCORE_TASK_ID"
	envAttempt = "OPSCORE_ATTEMPT"
	envActor   = "OPSCORE_ACTOR"
)

// passedOn returns the names of the variables that every command inherits. No others: the worker's environment
// holds secrets.
func passedOn() []string { return []string{"PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR"} }

// command runs the tasks of one actor with a program: args on stdin, the result from stdout, stderr to the log.
type command struct {
	actor  string
	path   string // of the program
	argv   []string
	dir    string
	env    []string     // variables passed on besides the usual ones
	mirror slog.Handler // a second reader of the log, or nil
	family *family
	grace  time.Duration // of the worker; 0 means that there is none to heed
	groups *groups       // of the worker's commands, or nil
}

// groups are the process groups of the commands that run.
type groups struct {
	mu   sync.Mutex
	live map[*process]bool
}

func (g *groups) add(p *process) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.live == nil {
		g.live = map[*process]bool{}
	}
	g.live[p] = true
}

// remove must be called before the program is reaped: then its id may belong to somebody else.
func (g *groups) remove(p *process) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.live, p)
}

// kill ends what the worker could not wait for: with this process only the programs themselves die, not what they have started.
func (g *groups) kill() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for p := range g.live {
		p.signal(syscall.SIGKILL)
	}
}

// killAfter leaves the worker half of its grace to take note of the end.
func (c *command) killAfter() time.Duration {
	if c.grace == 0 {
		return killAfter
	}
	return min(killAfter, c.grace/2)
}

// run is the handler. The program leads a process group of its own, which does not outlive it;
// only if this process is killed may what the program started live on.
func (c *command) run(ctx context.Context, args json.RawMessage) (json.RawMessage, error) {
	// The kernel kills the program with the thread that started it: keep that one until the end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, state, stopped, err := c.complete(ctx, args)
	if p == nil {
		return nil, fmt.Errorf("start command %s: %w", c.argv[0], err)
	}
	switch {
	case stopped && ctx.Err() != nil:
		return nil, p.explain(fmt.Errorf("command %s was stopped", c.argv[0]))
	case p.stdout.exceeded():
		return nil, opscore.Abort(fmt.Errorf("command %s wrote more than %d bytes to stdout: it was killed", c.argv[0], maxStdout))
	case err != nil:
		return nil, fmt.Errorf("command %s: %w", c.argv[0], err)
	case state.Success():
		return result(p.stdout.bytes()), nil
	}
	err = p.explain(fmt.Errorf("command %s: %s", c.argv[0], describe(state)))
	if state.ExitCode() == statusDataErr {
		return nil, opscore.Abort(err)
	}
	return nil, err
}

// complete starts the program, and again if it was killed before it was one: a signal to our whole process group may hit a child
// that has not left it yet. It returns how the program ended and whether we made it, and no process if it cannot be started.
func (c *command) complete(ctx context.Context, args []byte) (p *process, state *os.ProcessState, stopped bool, err error) {
	for {
		if p, err = c.start(ctx, args); err != nil {
			return nil, nil, false, err
		}
		stopped = p.supervise(ctx, c.killAfter())
		again := !stopped && stillborn(p.cmd.Process.Pid)
		state, err = p.reap()
		if !again {
			return p, state, stopped, err
		}
	}
}

// explain adds the last thing that the command said about its trouble.
func (p *process) explain(err error) error {
	if last := p.stderr.lastLine(); last != "" {
		return fmt.Errorf("%w: %s", err, last)
	}
	return err
}

func describe(state *os.ProcessState) string {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return "killed by signal " + strconv.Itoa(int(ws.Signal())) + " (" + ws.Signal().String() + ")"
	}
	switch status := state.ExitCode(); status {
	case statusTempFail:
		return "exit status 75 (try again)"
	case statusDataErr:
		return "exit status 65 (never try again)"
	default:
		return "exit status " + strconv.Itoa(status)
	}
}

// result makes a JSON document of what a command wrote.
func result(out []byte) json.RawMessage {
	trimmed := bytes.TrimSpace(out)
	switch {
	case len(trimmed) == 0:
		return json.RawMessage("null")
	case !utf8.Valid(out):
		return encodeJSON(map[string][]byte{"base64": out})
	case json.Valid(trimmed):
		return trimmed
	}
	return encodeJSON(strings.TrimSuffix(strings.TrimSuffix(string(out), "\n"), "\r"))
}

func encodeJSON(v any) json.RawMessage {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // strings and bytes always encode
	}
	return bytes.TrimSpace(b.Bytes())
}

// process is a started command.
type process struct {
	cmd    *exec.Cmd
	stdout *output
	stderr *logLines
	ours   []*os.File // our ends of its pipes
	copied sync.WaitGroup
	full   chan struct{} // closed when it wrote too much
	wait   func() error  // reaps it, once
}

// start starts the program. Pipes of our own, instead of exec's, let us stop reading when a stranger holds them open.
func (c *command) start(ctx context.Context, args []byte) (*process, error) {
	p := &process{full: make(chan struct{})}
	p.stdout = &output{full: p.full}
	p.stderr = &logLines{log: taskLog(ctx, c.mirror)}
	p.cmd = &exec.Cmd{Path: c.path, Args: c.argv, Dir: c.dir, Env: c.environ(ctx), SysProcAttr: processGroup()}
	var theirs, ours [3]*os.File
	for i := range theirs {
		r, w, err := os.Pipe()
		if err != nil {
			closeFiles(append(theirs[:i], ours[:i]...))
			return nil, err
		}
		if theirs[i], ours[i] = w, r; i == 0 {
			theirs[i], ours[i] = r, w
		}
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = theirs[0], theirs[1], theirs[2]
	err := c.family.start(p.cmd)
	closeFiles(theirs[:])
	if err != nil {
		closeFiles(ours[:])
		return nil, err
	}
	c.groups.add(p)
	p.ours, p.wait = ours[:], sync.OnceValue(func() error {
		c.groups.remove(p)
		return c.family.wait(p.cmd)
	})
	p.copied.Go(func() {
		// A command need not read its args, so a broken pipe is no error.
		_, _ = ours[0].Write(args)
		_ = ours[0].Close()
	})
	p.copied.Go(func() { _, _ = io.Copy(p.stdout, ours[1]) })
	p.copied.Go(func() { p.stderr.read(ours[2]) })
	return p, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // pipes: nothing is buffered
	}
}

func (c *command) environ(ctx context.Context) []string {
	run := opscore.FromContext(ctx)
	var env []string
	for _, name := range append(passedOn(), c.env...) {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return append(env, envTaskID+"="+run.ID.String(), envAttempt+"="+strconv.Itoa(run.Attempt), envActor+"="+c.actor)
}

// supervise returns when the program has exited, and reports whether we made it: because ctx ended or because it
// wrote too much.
func (p *process) supervise(ctx context.Context, patience time.Duration) (stopped bool) {
	exited := make(chan struct{})
	go func() {
		awaitExit(p)
		close(exited)
	}()
	select {
	case <-exited:
		return false
	case <-p.full:
		p.signal(syscall.SIGKILL)
	case <-ctx.Done():
		p.signal(syscall.SIGTERM)
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-exited:
		case <-p.full:
		case <-timer.C:
		}
		p.signal(syscall.SIGKILL)
	}
	<-exited
	return true
}

// signal sends to the whole group.
func (p *process) signal(s syscall.Signal) {
	_ = syscall.Kill(-p.cmd.Process.Pid, s) // ESRCH: nobody is left
}

// reap ends what is left of the group, gathers the output and returns how the program ended.
func (p *process) reap() (*os.ProcessState, error) {
	p.signal(syscall.SIGKILL)
	deadline := time.Now().Add(outputAfter)
	for _, f := range p.ours {
		// A process that left the group may keep the pipes open for ever; what is in them is read until then.
		_ = f.SetDeadline(deadline)
	}
	p.copied.Wait()
	closeFiles(p.ours)
	err := p.wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ProcessState, nil
	}
	return p.cmd.ProcessState, err
}

// output keeps what is written up to the limit.
type output struct {
	buf  []byte
	over bool
	full chan struct{}
}

func (o *output) Write(b []byte) (int, error) {
	if len(o.buf)+len(b) > maxStdout {
		o.over = true
		close(o.full)
		return 0, errors.New("full")
	}
	o.buf = append(o.buf, b...)
	return len(b), nil
}

func (o *output) exceeded() bool { return o.over }
func (o *output) bytes() []byte  { return o.buf }

// logLines logs what it reads, line by line.
type logLines struct {
	log  *slog.Logger
	last string
}

func (l *logLines) read(r io.Reader) {
	lines := bufio.NewReaderSize(r, maxLine)
	for {
		line, cut, err := lines.ReadLine()
		if err != nil {
			return
		}
		text := strings.ToValidUTF8(strings.TrimRight(string(line), "\r"), "\uFFFD")
		if cut {
			text += " …"
		}
		for cut && err == nil {
			_, cut, err = lines.ReadLine()
		}
		if strings.TrimSpace(text) != "" {
			l.last = text
		}
		l.log.Info(text)
	}
}

func (l *logLines) lastLine() string { return clip(strings.TrimSpace(l.last), 500) }
