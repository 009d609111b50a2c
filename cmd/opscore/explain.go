package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/doctor"
	"github.com/opscore/opscore/host"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/sqlite"
)

// sources are those that know of facts besides the store, of the queue that is asked about first. This is where they are wired.
func (c *config) sources(place database, queue string, open func(context.Context) (store, error)) []doctor.Source {
	sources := []doctor.Source{{Name: "host", Gatherer: host.Inspector{}}}
	switch p := place.(type) {
	case postgresPlace:
		sources = append(sources, doctor.Source{Name: "postgres", At: p.String(), Gatherer: postgres.Inspector{URL: p.url, Options: p.options()}})
	case sqliteFile:
		sources = append(sources, doctor.Source{Name: "sqlite", At: p.String(), Gatherer: sqlite.Inspector{Path: string(p)}})
	}
	return append(sources, c.askBroker(queue, open)...)
}

func (a *app) explainCommand() *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use:   "explain ID",
		Short: "Say why a task is where it is, with evidence and the remedy",
		Long: `Explain asks all that know something about a task, the store first, and says why the task is where it is: the decisive cause in one sentence, what
shows it, and what to do; then what else is the matter. It knows of tasks that wait as they should, that failed, and of ids that no task has. It changes
nothing; what it prints is never executed by itself. A source that does not answer within a second is not waited for, and is named. What each code means
is in docs/causes.md.`,
		Example: `  opscore explain 01890a5d-ac96-774b-bcce-b302099a8057
  opscore explain --watch 01890a5d-ac96-774b-bcce-b302099a8057`,
		Args:              arguments(1, 1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseID(args[0])
			if err != nil {
				return err
			}
			return a.examining(cmd, func(ctx context.Context, e *examination) error {
				if watch {
					return e.watch(ctx, id)
				}
				_, _, err := e.explain(ctx, id, "")
				return err
			})
		},
	}
	addBrokerFlags(c.Flags())
	c.Flags().BoolVar(&watch, "watch", false, "say it again when it has changed, until the task is over")
	return c
}

// examination is a command that asks, whether or not the database answers.
type examination struct {
	*app
	conf  *config
	place database
}

// examining begins an examination. Only a database that is not there at all is an error: that it does not answer is something to say.
func (a *app) examining(cmd *cobra.Command, do func(context.Context, *examination) error) error {
	conf, place, err := a.placed(cmd)
	if err != nil {
		return err
	}
	return do(cmd.Context(), &examination{app: a, conf: conf, place: place})
}

// ask reads the facts about a task, or about the deployment, of one queue first if it is not ""; each time from a store that it opens for that: what is
// only looked at is not followed.
func (e *examination) ask(ctx context.Context, id opscore.ID, queue string) (f opscore.Facts, err error) {
	late := &lateStore{place: e.place, conf: e.conf}
	defer func() { err = errors.Join(err, late.Close()) }()
	store := doctor.Source{Name: opscore.SourceStore, At: e.place.String(), Gatherer: late}
	f = doctor.Ask(ctx, id, store, e.conf.sources(e.place, queue, late.get)...)
	return f, late.refused()
}

// lateStore is the store of a database that need not answer yet.
type lateStore struct {
	place database
	conf  *config

	mu   sync.Mutex
	open store
	err  error // why it will never be opened
}

// Gather implements [doctor.Gatherer].
func (l *lateStore) Gather(ctx context.Context, known *opscore.Facts) (opscore.Facts, error) {
	s, err := l.get(ctx)
	if err != nil {
		return opscore.Facts{}, err
	}
	return (&opscore.Client{Store: s, Retention: l.conf.retention}).Facts(ctx, known.ID)
}

func (l *lateStore) get(ctx context.Context) (store, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open != nil {
		return l.open, nil
	}
	s, err := l.place.look(ctx)
	if err == nil {
		l.open = s
	} else if ctx.Err() == nil && opscore.CodeOf(err) != opscore.CodeUnavailable {
		l.err = err
	}
	return s, err
}

// refused says why the database cannot be looked at, if that is a mistake of the caller.
func (l *lateStore) refused() error {
	if !l.mu.TryLock() {
		return nil // it is still being opened
	}
	defer l.mu.Unlock()
	return l.err
}

// Close closes what was opened. What is still being opened goes with the process.
func (l *lateStore) Close() error {
	if !l.mu.TryLock() {
		return nil
	}
	defer l.mu.Unlock()
	if l.open == nil {
		return nil
	}
	return l.open.Close()
}

// explanation is what explain prints with --json.
type explanation struct {
	Task    opscore.ID      `json:"task"`
	At      time.Time       `json:"at"`
	State   opscore.State   `json:"state,omitempty"` // empty if there is no such task, or it could not be read
	Causes  []opscore.Cause `json:"causes"`
	Sources []opscore.Asked `json:"sources"`
}

// explain says why a task is where it is, unless its causes are those that were told before.
func (e *examination) explain(ctx context.Context, id opscore.ID, told string) (says string, state opscore.State, err error) {
	f, err := e.ask(ctx, id, "")
	if err != nil {
		return "", "", err
	}
	causes := opscore.Explain(f)
	if f.Task != nil {
		state = f.Task.State
	}
	for _, c := range causes {
		says += c.Code + " "
	}
	if says == told {
		return says, state, nil
	}
	if e.json {
		return says, state, e.printJSON(explanation{id, f.At, state, e.here(causes), f.Sources})
	}
	return says, state, e.print(e.report(f, causes))
}

// here makes commands for the database that this one works on.
func (a *app) here(causes []opscore.Cause) []opscore.Cause {
	causes = slices.Clone(causes)
	for i := range causes {
		remedies := slices.Clone(causes[i].Remedy)
		for k := range remedies {
			if remedies[k].Command != "" {
				remedies[k].Command = a.shown(remedies[k])
			}
		}
		causes[i].Remedy = remedies
	}
	return causes
}

// report is the causes for people: the decisive one with its evidence, then the others.
func (e *examination) report(f opscore.Facts, causes []opscore.Cause) string {
	var b strings.Builder
	if first := f.Sources[0]; first.Err != "" && causes[0].Code != opscore.CauseDatabaseUnreachable {
		fmt.Fprintf(&b, "the store did not answer (%s); this is what the others say\n", safe(first.Err))
	}
	for i, c := range causes {
		if i == 0 {
			fmt.Fprintln(&b, safe(c.Text))
			for _, line := range evidence(c) {
				fmt.Fprintln(&b, "  "+safe(line))
			}
		} else {
			fmt.Fprintln(&b, "also: "+safe(c.Text))
		}
		if !c.Next.IsZero() {
			fmt.Fprintf(&b, "  next: %s (%s)\n", c.Next.UTC().Format(time.RFC3339), age(c.Next)) // in UTC, as in the sentences
		}
		if len(c.Remedy) > 0 {
			fmt.Fprintln(&b, "  "+e.advice(c.Remedy[0]))
		}
	}
	return b.String()
}

// evidence returns the three facts that tell most: rules put what they rest on first.
func evidence(c opscore.Cause) (lines []string) {
	const shown = 3
	for _, e := range c.Evidence {
		if e.Value != "" && len(lines) < shown {
			lines = append(lines, fmt.Sprintf("%s: %s: %s", e.Source, e.Fact, clip(firstLine(e.Value), 300)))
		}
	}
	return lines
}

func (a *app) advice(r opscore.Remedy) string {
	if r.Command == "" {
		return "to do: " + safe(r.Action)
	}
	return "run: " + safe(a.shown(r))
}

// watch explains again and again, until the task is over.
func (e *examination) watch(ctx context.Context, id opscore.ID) error {
	ctx, _, release := interruptible(ctx, nil)
	defer release()
	told := ""
	for {
		says, state, err := e.explain(ctx, id, told)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil || state.Terminal() {
			return err
		}
		told = says
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}

// startsWithin is how long a task that somebody waits for may not start before it is said why. It is asked again after twice as long each time, since whoever
// is asked has work with it, up to asksWithin.
const (
	startsWithin = 2 * time.Second
	asksWithin   = time.Minute
)

// lateTeller says by itself why a task that somebody waits for has not started. Whoever waits is not held up.
type lateTeller struct {
	*session
	bar    progressBar
	since  time.Time
	pause  time.Duration // before the next question
	told   string
	answer chan []opscore.Cause // of the question that is under way; nil if none is
	cancel context.CancelFunc
}

func (s *session) lateTeller(bar progressBar) *lateTeller {
	return &lateTeller{session: s, bar: bar, since: time.Now(), pause: startsWithin, cancel: func() {}}
}

// tell asks why, if it is time, and says what was answered. What was told by other means, as why an attempt failed, is not told again.
func (l *lateTeller) tell(ctx context.Context, t opscore.Task) {
	if t.State != opscore.Pending || t.Attempt > 0 {
		l.since, l.pause = time.Now(), startsWithin
		return
	}
	if l.answer == nil && time.Since(l.since) > l.pause {
		l.ask(ctx, t.ID)
	}
	select {
	case causes := <-l.answer:
		l.answer, l.since, l.pause = nil, time.Now(), min(2*l.pause, asksWithin)
		l.say(causes)
	default:
	}
}

func (l *lateTeller) ask(ctx context.Context, id opscore.ID) {
	ctx, l.cancel = context.WithCancel(ctx)
	answer := make(chan []opscore.Cause, 1)
	l.answer = answer
	go func() {
		answer <- opscore.Explain(doctor.Ask(ctx, id, doctor.Store(l.client), l.conf.sources(l.place, "", func(context.Context) (store, error) { return l.store, nil })...))
	}()
}

// done ends a question that is under way: the store is about to be closed.
func (l *lateTeller) done() {
	l.cancel()
	if l.answer != nil {
		<-l.answer
	}
}

// say tells of causes that were not told before. One that is about to start needs no word.
func (l *lateTeller) say(causes []opscore.Cause) {
	top := causes[0]
	if top.Code == l.told || top.Code == opscore.CauseReady || top.Code == opscore.CauseRunning {
		return
	}
	l.told = top.Code
	l.bar.clear()
	for i, c := range causes {
		text := "the task has not started: " + c.Text
		if i > 0 {
			text = "also: " + c.Text
		}
		l.session.say("opscore: %s", text)
		if len(c.Remedy) > 0 {
			l.session.say("opscore:   %s", l.advice(c.Remedy[0]))
		}
	}
}
