package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// asOne is how long the signals that follow the first one count as the same: who signals a process group reaches the worker, and
// wrappers in front of it, such as timeout, that pass on what they get.
const asOne = time.Second

// interruptible returns a context that the first signal to stop ends, with an interruptedError as its cause, and a
// channel that the next one closes that is not the same. That orphaned is closed counts as a signal; nil never is.
func interruptible(ctx context.Context, orphaned <-chan struct{}) (stopping context.Context, again <-chan struct{}, release func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 2)
	stop := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // nohup wants it ignored
		stop = append(stop, syscall.SIGHUP)
	}
	signal.Notify(signals, stop...)
	// A reader of our output that has gone is no reason to die in the middle of a task. Not ignored but received:
	// commands would inherit that.
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	second, released := make(chan struct{}), make(chan struct{})
	go func() {
		select {
		case s := <-signals:
			cancel(interruptedError{"interrupted (" + signalName(s) + ")"})
		case <-orphaned:
			cancel(interruptedError{"the process that started this one is gone"})
		case <-released:
			return
		}
		for first := time.Now(); ; {
			select {
			case <-signals:
				if time.Since(first) > asOne {
					close(second)
					return
				}
			case <-released:
				return
			}
		}
	}()
	return ctx, second, func() {
		signal.Stop(signals)
		signal.Stop(broken)
		close(released)
		cancel(nil)
	}
}

// lifeline is the process that the worker is to die with. The zero value is none.
type lifeline struct {
	held bool
	pid  int // 0: whoever is the parent
}

func (l *lifeline) add(flags *pflag.FlagSet) {
	const name = "die-with-parent"
	addFlag(flags, name, "stop when the process that started this one is gone; with its id also if that was before this one could look: `PID`",
		parseLifeline, func(given lifeline) { *l = given })
	flags.Lookup(name).NoOptDefVal = "true"
}

func parseLifeline(text string) (lifeline, error) {
	if held, err := strconv.ParseBool(text); err == nil && text != "1" && text != "0" {
		return lifeline{held: held}, nil
	}
	pid, err := strconv.Atoi(text)
	if err != nil || pid < 1 {
		return lifeline{}, errors.New("the id of the process that starts this one is needed, or nothing")
	}
	return lifeline{true, pid}, nil
}

// watch returns a channel that is closed once the parent is gone, nil if that does not matter. Whoever adopts an orphan has
// another id. It looks again and again: only some systems tell, and Linux means the thread that started us, not the process.
//
// A parent that was gone before we could look cannot be told from another one, not even if it is process 1, which
// may well start workers. So those who want to be sure say who they are.
func (l lifeline) watch(ctx context.Context) (gone <-chan struct{}, err error) {
	parent := os.Getppid()
	switch {
	case !l.held:
		return nil, nil
	case parent == 0:
		return nil, usagef("--die-with-parent: this is the first process of a container, and its parent, outside, cannot be watched")
	case l.pid != 0 && l.pid != parent:
		return nil, usagef("--die-with-parent=%d: process %d is not the parent of this one: it is gone, or it started a wrapper around this one", l.pid, l.pid)
	}
	const period = 200 * time.Millisecond
	closed := make(chan struct{})
	go func() {
		tick := time.NewTicker(period)
		defer tick.Stop()
		for os.Getppid() == parent {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
		close(closed)
	}()
	return closed, nil
}

func signalName(s os.Signal) string {
	if n, ok := s.(syscall.Signal); ok {
		if name, ok := map[syscall.Signal]string{syscall.SIGINT: "SIGINT", syscall.SIGTERM: "SIGTERM", syscall.SIGHUP: "SIGHUP"}[n]; ok {
			return name
		}
	}
	return s.String()
}

// lineWriter passes lines on without ever making its writers wait: a full terminal or pipe must not stop work.
type lineWriter struct {
	to      io.Writer
	lines   chan []byte
	dropped atomic.Int64
	stop    chan struct{}
	stopped chan struct{}
}

func newLineWriter(to io.Writer) *lineWriter {
	w := &lineWriter{to: to, lines: make(chan []byte, 4096), stop: make(chan struct{}), stopped: make(chan struct{})}
	go w.pass()
	return w
}

// Write takes one line, or counts it as dropped.
func (w *lineWriter) Write(line []byte) (int, error) {
	select {
	case w.lines <- bytes.Clone(line):
	default:
		w.dropped.Add(1)
	}
	return len(line), nil
}

func (w *lineWriter) pass() {
	defer close(w.stopped)
	for {
		select {
		case line := <-w.lines:
			w.write(line)
			continue
		default:
		}
		select {
		case line := <-w.lines:
			w.write(line)
		case <-w.stop:
			return
		}
	}
}

// write ignores errors: there is nobody left to tell.
func (w *lineWriter) write(line []byte) {
	if n := w.dropped.Swap(0); n > 0 {
		_, _ = fmt.Fprintf(w.to, "opscore: %d log lines were dropped: they were not read fast enough\n", n)
	}
	_, _ = w.to.Write(line)
}

// close waits a moment for what is written already.
func (w *lineWriter) close() {
	close(w.stop)
	select {
	case <-w.stopped:
	case <-time.After(time.Second):
	}
}

// mirror shows the log of a task to whoever runs it in the foreground: only the message, made safe for a terminal.
type mirror struct {
	to    io.Writer
	clear bool // what a progress bar has drawn
}

// Enabled implements [slog.Handler].
func (m mirror) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements [slog.Handler].
func (m mirror) Handle(_ context.Context, r slog.Record) error {
	line := safe(r.Message) + "\n"
	if m.clear {
		line = clearLine + line
	}
	_, err := m.to.Write([]byte(line))
	return err
}

// WithAttrs implements [slog.Handler].
func (m mirror) WithAttrs([]slog.Attr) slog.Handler { return m }

// WithGroup implements [slog.Handler].
func (m mirror) WithGroup(string) slog.Handler { return m }

// trouble passes on what a run in the foreground has to tell of its worker: that the store fails, not how the
// attempts end, which it tells itself.
type trouble struct {
	slog.Handler
	least slog.Level
}

// Enabled implements [slog.Handler].
func (t trouble) Enabled(_ context.Context, l slog.Level) bool { return l >= t.least }

// Handle implements [slog.Handler].
func (t trouble) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "attempt ended" {
		return nil
	}
	return t.Handler.Handle(ctx, r)
}
