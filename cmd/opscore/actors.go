package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opscore/opscore"
)

// commandActor is an actor of opscore.yaml: a program that runs its tasks.
type commandActor struct {
	name         string
	where        string // file:line
	argv         []string
	dir          string // working directory; the file's own unless given
	env          []string
	queue        string
	priority     int
	after        time.Duration
	expiresAfter time.Duration
	timeout      time.Duration
	maxAttempts  int
	labels       map[string]string
	retry        opscore.Backoff
	family       *family
	grace        time.Duration
	groups       *groups
}

func (c commandActor) actor() opscore.Actor[json.RawMessage, json.RawMessage] {
	return opscore.Actor[json.RawMessage, json.RawMessage]{
		Name: c.name, Queue: c.queue, Priority: c.priority, After: c.after, ExpiresAfter: c.expiresAfter,
		MaxAttempts: c.maxAttempts, Timeout: c.timeout, Labels: c.labels, Retry: c.retry,
	}
}

// command checks that the program can be started, now rather than at the first task.
func (c commandActor) command(mirror slog.Handler) (*command, error) {
	if info, err := os.Stat(c.dir); err != nil || !info.IsDir() {
		return nil, usagef("%s: actor %s: dir %q is not a directory", c.where, c.name, c.dir)
	}
	path := c.argv[0]
	if strings.ContainsRune(path, filepath.Separator) && !filepath.IsAbs(path) {
		path = filepath.Join(c.dir, path)
	}
	path, err := exec.LookPath(path)
	if err != nil {
		cause := err
		if e, ok := errors.AsType[*exec.Error](err); ok {
			cause = e.Err
		}
		return nil, usagef("%s: actor %s: command %q cannot be run: %s", c.where, c.name, c.argv[0], cause)
	}
	return &command{actor: c.name, path: path, argv: c.argv, dir: c.dir, env: c.env, mirror: mirror, family: c.family, grace: c.grace, groups: c.groups}, nil
}

// register adds the handler of a command actor.
func (c commandActor) register(h opscore.Handlers, mirror slog.Handler) error {
	cmd, err := c.command(mirror)
	if err != nil {
		return err
	}
	opscore.Handle(h, c.actor(), cmd.run)
	return nil
}

// request makes the request for a task of the named actor, with the defaults that the file declares for it.
func (c *config) request(actor string, args json.RawMessage, opts []opscore.Option) opscore.Request {
	for _, a := range c.actors {
		if a.name == actor {
			return a.actor().Request(args, opts...)
		}
	}
	return opscore.NewRequest(actor, args, opts...)
}

func (c *config) actorNames() []string {
	names := make([]string, len(c.actors))
	for i, a := range c.actors {
		names[i] = a.name
	}
	return names
}

// demoActors are the names of the actors that run and dev bring along.
func demoActors() []string { return []string{"echo", "flaky", "sleep"} }

// checkDemo checks args for a demo actor. Of other actors only their workers know what they take.
func checkDemo(actor string, args json.RawMessage) error {
	if !slices.Contains(demoActors(), actor) {
		return nil
	}
	h := opscore.Handlers{}
	registerDemos(h, nil)
	if len(args) == 0 {
		args = json.RawMessage("null")
	}
	return h.Check(actor, args)
}

// The inputs and results of the demo actors.
type (
	sleepIn struct {
		Seconds float64 `json:"seconds"`
	}
	sleepOut struct {
		Slept float64 `json:"slept"`
	}
	flakyIn struct {
		Fail int `json:"fail"`
	}
	flakyOut struct {
		Attempts int `json:"attempts"`
	}
)

// registerDemos adds the demo actors.
func registerDemos(h opscore.Handlers, mirror slog.Handler) {
	opscore.Handle(h, opscore.Actor[json.RawMessage, json.RawMessage]{Name: "echo"}, echo)
	// Its retries come soon: it is there to be watched.
	flakyActor := opscore.Actor[flakyIn, flakyOut]{Name: "flaky", Retry: opscore.Backoff{Base: 200 * time.Millisecond}}
	opscore.Handle(h, opscore.Actor[sleepIn, sleepOut]{Name: "sleep"}, sleep)
	opscore.Handle(h, flakyActor, func(ctx context.Context, in flakyIn) (flakyOut, error) {
		return flaky(ctx, in, taskLog(ctx, mirror))
	})
}

// echo returns its args.
func echo(_ context.Context, args json.RawMessage) (json.RawMessage, error) { return args, nil }

// sleep takes its time and reports its progress.
func sleep(ctx context.Context, in sleepIn) (sleepOut, error) {
	const most = 24 * 60 * 60
	if in.Seconds < 0 || in.Seconds > most {
		return sleepOut{}, opscore.Abort(fmt.Errorf("seconds %g: must be between 0 and %d", in.Seconds, most))
	}
	const steps = 10
	tick := time.NewTicker(max(time.Duration(in.Seconds*float64(time.Second))/steps, time.Microsecond))
	defer tick.Stop()
	for i := range steps {
		select {
		case <-ctx.Done():
			return sleepOut{}, context.Cause(ctx)
		case <-tick.C:
		}
		opscore.FromContext(ctx).Progress(float64(i+1)/steps, fmt.Sprintf("slept %d of %d parts", i+1, steps))
	}
	return sleepOut{in.Seconds}, nil
}

// flaky fails its first attempts.
func flaky(ctx context.Context, in flakyIn, log *slog.Logger) (flakyOut, error) {
	attempt := opscore.FromContext(ctx).Attempt
	if attempt <= in.Fail {
		log.Warn(fmt.Sprintf("attempt %d is going to fail", attempt))
		return flakyOut{}, fmt.Errorf("the first %d attempts fail, as asked", in.Fail)
	}
	return flakyOut{attempt}, nil
}

// taskLog is the task's own log, and a mirror of it for whoever watches.
func taskLog(ctx context.Context, mirror slog.Handler) *slog.Logger {
	own := opscore.FromContext(ctx).Log
	if mirror == nil {
		return own
	}
	return slog.New(slog.NewMultiHandler(own.Handler(), mirror))
}
