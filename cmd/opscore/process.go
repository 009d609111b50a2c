package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// interruptible returns a context that the first signal to stop ends, with an interruptedError as its cause, and a
// channel that the second one closes. That orphaned is closed counts as a signal; nil never is.
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
		select {
		case <-signals:
			close(second)
		case <-released:
		}
	}()
	return ctx, second, func() {
		signal.Stop(signals)
		signal.Stop(broken)
		close(released)
		cancel(nil)
	}
}

// watchParent returns a channel that is closed once the process that started this one is gone. Whoever adopts an orphan has
// another id. It looks again and again: only some systems tell, and Linux means the thread that started us, not the process.
func watchParent(ctx context.Context) (gone <-chan struct{}) {
	const period = 200 * time.Millisecond
	parent, closed := os.Getppid(), make(chan struct{})
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
	return closed
}

func signalName(s os.Signal) string {
	if n, ok := s.(syscall.Signal); ok {
		if name, ok := map[syscall.Signal]string{syscall.SIGINT: "SIGINT", syscall.SIGTERM: "SIGTERM", syscall.SIGHUP: "SIGHUP"}[n]; ok {
			return name
		}
	}
	return s.String()
}
