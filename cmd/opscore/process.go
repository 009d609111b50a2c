package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
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
	addFlag(flags, lifelineFlag, "stop when the process that started this one is gone; with its id also if that was before this one could look",
		parseLifeline, func(given lifeline) { *l = given })
	flags.Lookup(lifelineFlag).NoOptDefVal = unnamedParent
}

const (
	lifelineFlag  = "die-with-parent"
	unnamedParent = "PID" // what the flag has without a value; help shows it as [=PID]
)

// strayParent refuses the id of a parent that is an argument, because the flag takes one only after an =.
func strayParent(cmd *cobra.Command, args []string) error {
	if len(args) == 0 || !cmd.Flags().Changed(lifelineFlag) {
		return nil
	}
	if given, err := parseLifeline(args[0]); err != nil || given.pid == 0 {
		return nil
	}
	return usagef("unexpected argument %q: write --%s=%s", args[0], lifelineFlag, args[0])
}

func parseLifeline(text string) (lifeline, error) {
	if text == unnamedParent {
		return lifeline{held: true}, nil
	}
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
