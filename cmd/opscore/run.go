package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opscore/opscore"
)

func (a *app) runCommand() *cobra.Command {
	var flags submitFlags
	c := &cobra.Command{
		Use:   "run ACTOR [JSON|-]",
		Short: "Run one task here and now and print its result",
		Long: `Run submits one task, works on it in this process and prints its result. The task takes the same way as any
other: it is stored first, its attempts and log are kept, failed attempts are repeated. It knows the demo actors
echo (returns its args), sleep ({"seconds":1.5}) and flaky ({"fail":2}: fails that often first), and the actors of
opscore.yaml. Ctrl-C hands the task back: it stays pending, for the next worker.`,
		Example: `  opscore run echo '{"hello":"world"}'
  opscore run flaky '{"fail":2}'
  echo '{"seconds":2}' | opscore run sleep -`,
		Args:              arguments(1, 2),
		ValidArgsFunction: a.completeActors,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := flags.exclusive(cmd); err != nil {
				return err
			}
			doc, err := a.readArgs(args)
			if err != nil {
				return err
			}
			return a.runTask(cmd, args[0], doc, flags.options)
		},
	}
	flags.add(c.Flags())
	addSettingFlags(c.Flags(), "verbose")
	return c
}

// runTask checks everything that can be wrong before the task is stored, stores it, and works on it.
func (a *app) runTask(cmd *cobra.Command, actor string, args json.RawMessage, options []opscore.Option) (err error) {
	ctx, again, release := interruptible(cmd.Context(), nil)
	defer release()
	conf, err := a.loadConfig(cmd)
	if err != nil {
		return err
	}
	out := newLineWriter(a.stderr, conf.logFormat)
	defer out.close()
	handlers, err := conf.only(actor, mirror{out, terminalWidth(a.stderr) > 0})
	if err != nil {
		return err
	}
	if args == nil {
		args = json.RawMessage("null")
	}
	if err := handlers.Check(actor, args); err != nil {
		return err
	}
	sealFiles()
	a.sayFallback(conf)
	s, err := a.open(cmd.Context(), cmd, conf, created)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.store.Close()) }()
	s.sayDatabase()
	subs, err := s.client.Submit(context.WithoutCancel(ctx), conf.request(actor, args, options))
	if err != nil {
		return err
	}
	return s.perform(ctx, again, subs[0], handlers, out)
}

// only returns the handler of one actor, with the demo actors among those to choose from.
func (c *config) only(actor string, log mirror) (opscore.Handlers, error) {
	all := opscore.Handlers{}
	registerDemos(all, log)
	if _, demo := all[actor]; demo {
		return opscore.Handlers{actor: all[actor]}, nil
	}
	for _, a := range c.actors {
		if a.name == actor {
			h := opscore.Handlers{}
			return h, a.register(h, log)
		}
	}
	names := slices.Sorted(slices.Values(append(c.actorNames(), demoActors()...)))
	return nil, usagef("unknown actor %q; known: %s%s", actor, strings.Join(names, ", "), didYouMean(actor, names))
}

// perform works on exactly one task until it is over.
func (s *session) perform(ctx context.Context, again <-chan struct{}, sub opscore.Submission, h opscore.Handlers, out *lineWriter) (err error) {
	t, err := s.client.Get(context.WithoutCancel(ctx), sub.ID)
	if err != nil {
		return err
	}
	sub.Warnings = slices.DeleteFunc(sub.Warnings, func(c opscore.Cause) bool { return c.Code != opscore.CauseQueuePaused })
	s.warn(sub) // of the others, this process is the remedy
	if time.Until(t.RunAt) > 0 {
		s.say("task %s starts %s, at %s", t.ID, age(t.RunAt), clock(t.RunAt))
	}
	working, finish := context.WithCancel(ctx)
	hurry := make(chan struct{})
	close(hurry)
	log, least := newLogger(out, s.conf.logFormat, s.conf.verbose).Handler(), slog.LevelWarn
	if s.conf.verbose {
		least = slog.LevelDebug
	}
	worker := &opscore.Worker{
		Store: s.store, Handlers: h, Queues: []string{t.Queue}, Slots: 1, Hurry: hurry, Grace: s.conf.grace, MaxResult: maxResult,
		Sources: []opscore.Source{opscore.Only(opscore.FromStore(s.store, 0), t.ID)},
		Log:     slog.New(trouble{log, least}),
	}
	// Without a retention of its own: what a directory's file says must not prune a database it has nothing to do with.
	forever := opscore.Retention{Default: opscore.Keep{Completed: opscore.Forever}}
	keeper := &opscore.Keeper{Store: s.store, Retention: forever, Log: slog.New(trouble{log, slog.LevelError})}
	worked, kept := make(chan error, 1), make(chan error, 1)
	go func() { worked <- worker.Run(working) }()
	go func() { kept <- keeper.Run(working) }()
	defer func() {
		finish()
		err = errors.Join(err, <-kept)
	}()

	t, err = s.follow(working, t, worked)
	finish()
	if ctx.Err() != nil && !t.State.Terminal() {
		return s.handedBack(t, worked, again)
	}
	if left := <-worked; err == nil && !errors.Is(left, context.Canceled) {
		err = left
	}
	if err != nil {
		return err
	}
	return s.conclude(t)
}

// follow tells what happens to the task until it is over, or the worker fails.
func (s *session) follow(ctx context.Context, t opscore.Task, worked chan error) (opscore.Task, error) {
	id, began, placed := t.ID, time.Now(), false
	bar := s.progressBar()
	defer bar.clear()
	retries, late := retryTeller{s, bar, t.ClaimSeq}, s.lateTeller(bar)
	defer late.done()
	for delay := 2 * time.Millisecond; ; delay = min(delay*3/2, 100*time.Millisecond) {
		t, err := s.client.Get(context.WithoutCancel(ctx), id)
		if err != nil || t.State.Terminal() {
			return t, err
		}
		retries.tell(t)
		late.tell(ctx, t)
		if !placed && t.State == opscore.Running && time.Since(began) > startsWithin {
			placed = true
			if where := s.elsewhere(ctx, t); where != "" {
				bar.clear()
				s.say("%s", where)
			}
		}
		bar.draw(t)
		select {
		case <-ctx.Done():
			return t, context.Cause(ctx)
		case err := <-worked:
			worked <- err
			if err == nil {
				err = errors.New("the worker ended before the task did")
			}
			return t, err
		case <-time.After(delay):
		}
	}
}

// retryLine says why an attempt did not end the task, and when the next one starts.
func retryLine(t opscore.Task) string {
	next := "next in " + short(max(time.Until(t.RunAt), 0))
	switch t.Code {
	case opscore.CodeSnoozed:
		return fmt.Sprintf("snoozed; %s", next)
	case opscore.CodeLost, opscore.CodeShutdown, opscore.CodeArgsIncompatible, opscore.CodeLostInWorker:
		return fmt.Sprintf("handed back (%s): %s; %s", t.Code, firstLine(t.Error), next)
	}
	return fmt.Sprintf("attempt %d of %s failed: %s; %s", t.Attempt, atMost(t.MaxAttempts), firstLine(t.Error), next)
}

// elsewhere says that a task runs in another process, or "".
func (s *session) elsewhere(ctx context.Context, t opscore.Task) string {
	workers, err := s.store.Workers(ctx, 0)
	if err != nil {
		return ""
	}
	for _, w := range workers {
		if w.ID == t.Worker && w.PID != os.Getpid() {
			return fmt.Sprintf("task %s is running in another worker (%s, process %d); waiting for it", t.ID, w.Host, w.PID)
		}
	}
	return ""
}

// handedBack waits for the interrupted worker to return the task, and says what becomes of it.
func (s *session) handedBack(t opscore.Task, worked <-chan error, again <-chan struct{}) error {
	select {
	case err := <-worked:
		if errors.Is(err, opscore.ErrHandlerStuck) {
			return err
		}
	case <-again:
	}
	now, err := s.client.Get(context.Background(), t.ID)
	if err != nil {
		return err
	}
	if now.State.Terminal() {
		return s.conclude(now)
	}
	return interruptedError{fmt.Sprintf("interrupted; task %s stays %s for the next worker; to drop it: opscore task cancel%s %s",
		t.ID, opscore.Pending, s.again(), t.ID)}
}
