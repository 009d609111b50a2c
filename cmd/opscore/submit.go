package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/opscore/opscore"
)

// flagValue is a flag whose text is checked as it is read.
type flagValue[T any] struct {
	text  string
	kind  string
	set   func(T)
	parse func(string) (T, error)
}

// String implements [pflag.Value].
func (f *flagValue[T]) String() string { return f.text }

// Type implements [pflag.Value].
func (f *flagValue[T]) Type() string { return f.kind }

// Set implements [pflag.Value].
func (f *flagValue[T]) Set(text string) error {
	v, err := f.parse(text)
	if err != nil {
		return err
	}
	f.text = text
	f.set(v)
	return nil
}

func addFlag[T any](flags *pflag.FlagSet, name, usage string, parse func(string) (T, error), set func(T)) {
	flags.Var(&flagValue[T]{parse: parse, set: set}, name, usage)
}

// submitFlags are the options of a task on the command line.
type submitFlags struct {
	options []opscore.Option
}

// add declares the flags: each becomes one option.
func (s *submitFlags) add(flags *pflag.FlagSet) {
	option := func(o opscore.Option) { s.options = append(s.options, o) }
	addFlag(flags, "after", "start no earlier than `DURATION` from now", parseDuration, func(d time.Duration) { option(opscore.After(d)) })
	addFlag(flags, "at", "start no earlier than `TIME`, such as 2030-01-31T08:00:00Z or \"2030-01-31 08:00\" (local)", parseTime,
		func(t time.Time) { option(opscore.At(t)) })
	addFlag(flags, "queue", "put the task into `QUEUE` instead of its actor's", parseQueue, func(q string) { option(opscore.Queue(q)) })
	addFlag(flags, "priority", "`N` from -100 to 100; higher ones start first (default 0)", parsePriority,
		func(p int) { option(opscore.Priority(p)) })
	addFlag(flags, "unique", "submit only if no pending, running or completed task of the actor has this `KEY`", parseUnique,
		func(k string) { option(opscore.Unique(k)) })
	addFlag(flags, "max-attempts", "fail the task after `N` failed attempts (default 10)", parseCount,
		func(n int) { option(opscore.MaxAttempts(n)) })
	addFlag(flags, "timeout", "limit each attempt to `DURATION` (default 10m)", parsePeriod,
		func(d time.Duration) { option(opscore.Timeout(d)) })
	addFlag(flags, "expires-at", "fail the task if it has not started by `TIME`", parseFuture,
		func(t time.Time) { option(opscore.ExpiresAt(t)) })
	addFlag(flags, "expires-after", "fail the task if it has not started within `DURATION`", parsePeriod,
		func(d time.Duration) { option(opscore.ExpiresAfter(d)) })
	addFlag(flags, "label", "attach a label `KEY=VALUE` (repeatable)", parseLabel,
		func(l map[string]string) { option(opscore.Labels(l)) })
	addFlag(flags, "id", "give the task this `UUID`: submitting it again is the same task", parseID,
		func(id opscore.ID) { option(opscore.WithID(id)) })
}

// exclusive refuses pairs of flags that say the same thing twice.
func (s *submitFlags) exclusive(cmd *cobra.Command) error {
	for _, pair := range [][2]string{{"after", "at"}, {"expires-after", "expires-at"}} {
		if cmd.Flags().Changed(pair[0]) && cmd.Flags().Changed(pair[1]) {
			return usagef("--%s and --%s exclude each other: give one", pair[0], pair[1])
		}
	}
	return nil
}

func parseTime(text string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02 15:04", time.DateTime} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errors.New(`a time is needed, such as 2030-01-31T08:00:00Z or, in local time, "2030-01-31 08:00"`)
}

func parseFuture(text string) (time.Time, error) {
	t, err := parseTime(text)
	if err == nil && !t.After(time.Now()) {
		err = errors.New("is in the past: the task could never start")
	}
	return t, err
}

func parseUnique(text string) (string, error) {
	if text == "" {
		return "", errors.New("the key is empty")
	}
	return text, nil
}

func parseLabel(text string) (map[string]string, error) {
	key, v, ok := strings.Cut(text, "=")
	if !ok {
		return nil, errors.New("KEY=VALUE is needed, such as team=media")
	}
	if err := validLabel(key, v); err != nil {
		return nil, err
	}
	return map[string]string{key: v}, nil
}

// readArgs returns the JSON document that the command line gives or, for -, stdin.
func (a *app) readArgs(args []string) (json.RawMessage, error) {
	if len(args) < 2 {
		return nil, nil
	}
	doc := []byte(args[1])
	if args[1] == "-" {
		var err error
		if doc, err = io.ReadAll(io.LimitReader(a.stdin, opscore.DefaultMaxArgs+1)); err != nil {
			return nil, fmt.Errorf("read args from stdin: %w", err)
		}
		if len(doc) > opscore.DefaultMaxArgs {
			return nil, usagef("args: more than %d bytes on stdin, the limit", opscore.DefaultMaxArgs)
		}
	}
	// The client checks it all; what it cannot know is how shells and people get it wrong.
	if utf8.Valid(doc) && !json.Valid(doc) && len(doc) <= opscore.DefaultMaxArgs {
		return nil, usagef("args: not valid JSON: %s", jsonHint(doc))
	}
	if len(doc) == 0 {
		return nil, usagef("args: empty; leave them out for null")
	}
	return doc, nil
}

func jsonHint(doc []byte) string {
	var v any
	err := json.Unmarshal(doc, &v)
	text := strings.TrimSpace(string(doc))
	if text == "" {
		return "they are empty; leave them out for null"
	}
	hint := fmt.Sprint(err)
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		hint += fmt.Sprintf(", at byte %d", e.Offset)
	}
	if quoted, err := json.Marshal(text); err == nil && len(text) < 60 && !strings.ContainsAny(text, `{}[]"`) {
		return hint + "; text is written with quotes: " + shellQuote(string(quoted))
	}
	if strings.Contains(text, "{") && !strings.Contains(text, `"`) {
		return hint + "; put single quotes around it, or the shell takes the double quotes away"
	}
	return hint
}

// shellQuote makes s one word of a shell.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-:@%+,=", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func (a *app) submitCommand() *cobra.Command {
	var flags submitFlags
	var wait bool
	c := &cobra.Command{
		Use:   "submit ACTOR [JSON|-]",
		Short: "Submit a task and print its id",
		Long: `Submit stores one task and prints its id: from then on the task survives every crash. A worker that knows the
actor runs it; if none does right now, submit says so, and the task waits. Args are a JSON document, - reads them
from stdin, without them they are null. Actors of opscore.yaml bring their own defaults.

With --wait it waits for the end of the task instead, prints the result, and fails if the task does not complete.
Ctrl-C ends only the wait.`,
		Example: `  opscore submit echo '{"hello":"world"}'
  opscore submit --after 1h --queue mail --label team=media send_mail - < mail.json
  opscore submit --unique order-42 --max-attempts 3 charge '{"order":42}'
  opscore submit --wait sleep '{"seconds":3}'`,
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
			if err := checkDemo(args[0], doc); err != nil {
				return err
			}
			return a.with(cmd, created, func(ctx context.Context, s *session) error {
				return s.submit(ctx, s.conf.request(args[0], doc, flags.options), wait)
			})
		},
	}
	flags.add(c.Flags())
	c.Flags().BoolVar(&wait, "wait", false, "wait for the end of the task and print its result")
	return c
}

// submit stores the task and prints its id or, after waiting, its result.
func (s *session) submit(ctx context.Context, r opscore.Request, wait bool) error {
	if wait {
		interrupted, _, release := interruptible(ctx, nil)
		defer release()
		ctx = interrupted
	}
	// Not ctx: a signal while the task is being stored must not hide that it is, nor its id.
	subs, err := s.client.Submit(context.WithoutCancel(ctx), r)
	if err != nil {
		return err
	}
	sub := subs[0]
	s.warn(sub)
	switch {
	case wait:
		s.say("task %s submitted", sub.ID)
		return s.await(ctx, sub.ID)
	case s.json:
		return s.printJSON(sub)
	}
	return s.printf("%s", sub.ID)
}

// warn says what a submission was not.
func (s *session) warn(sub opscore.Submission) {
	if sub.Duplicate {
		s.say("opscore: nothing was stored: duplicate of task %s", sub.ID)
	}
	for _, w := range sub.Warnings {
		text := w.Text
		if len(w.Remedy) > 0 {
			text += ": " + s.shown(w.Remedy[0])
		}
		s.say("opscore: warning: the task waits: %s", text)
	}
}

// completeActors offers the names of actors to the shell.
func (a *app) completeActors(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := demoActors()
	if conf, err := a.loadConfig(cmd); err == nil {
		names = append(names, conf.actorNames()...)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
