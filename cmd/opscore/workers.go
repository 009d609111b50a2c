package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opscore/opscore"
)

// goneFor is how long workers that are gone are listed.
const goneFor = 24 * time.Hour

func (a *app) workerListCommand() *cobra.Command {
	var live bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the workers of the database",
		Long: `List shows the workers that are registered, and those that went away within the last day, with why: where they run, what they
listen to and when they were last heard. A worker that was killed is not gone before its lease has run out (--lease), unless its
process is known to be dead; until then it is silent.`,
		Example: `  opscore worker list
  opscore worker list --live --json`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, existing, func(ctx context.Context, s *session) error { return s.listWorkers(ctx, live) })
		},
	}
	c.Flags().BoolVar(&live, "live", false, "without those that are gone")
	return c
}

func (s *session) listWorkers(ctx context.Context, live bool) error {
	since := goneFor
	if live {
		since = 0
	}
	registered, err := s.store.Workers(ctx, since)
	if err != nil {
		return err
	}
	workers := append([]opscore.WorkerInfo{}, registered...) // in JSON an empty list, not null
	if s.json {
		return s.printJSON(workers)
	}
	present := func(w opscore.WorkerInfo) bool { return w.State != opscore.WorkerGone }
	if !slices.ContainsFunc(workers, present) {
		s.say("no worker is registered; start one: opscore worker, or opscore dev to try things out")
	}
	if len(workers) == 0 {
		return nil
	}
	slices.SortStableFunc(workers, func(a, b opscore.WorkerInfo) int { return a.GoneAt.Compare(b.GoneAt) }) // the present ones first
	rows := make([][]string, len(workers))
	for i, w := range workers {
		rows[i] = []string{
			w.ID.String(), w.Host, fmt.Sprint(w.PID), workerState(w), fmt.Sprint(w.Slots), strings.Join(w.Queues, ","),
			strings.Join(w.Actors, ","), w.Build, age(w.LastBeat),
		}
	}
	return s.table([]string{"ID", "HOST", "PID", "STATE", "SLOTS", "QUEUES", "ACTORS", "BUILD", "HEARD"}, rows)
}

// workerState is the state with what is the matter.
func workerState(w opscore.WorkerInfo) string {
	if w.State == opscore.WorkerGone {
		return "gone " + age(w.GoneAt) + ": " + cmp.Or(w.Cause, "no cause recorded")
	}
	words := []string{string(w.State)}
	add := func(word string) {
		if !slices.Contains(words, word) {
			words = append(words, word)
		}
	}
	if !w.Live {
		add("silent")
	}
	for _, c := range w.Report.Checks {
		switch {
		case c.State == opscore.CheckOK:
		case c.Name == opscore.CheckDelivery:
			add("deaf")
		case c.State == opscore.CheckFailed && w.State != opscore.WorkerBooting:
			add("not ready")
		case c.State == opscore.CheckDegraded:
			add("degraded")
		}
	}
	if w.Stop != "" && w.State != opscore.WorkerDraining {
		add("asked to stop")
	}
	return strings.Join(words, ", ")
}

func (a *app) workerShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show all that is known of a worker",
		Long: `Show prints what a worker says of itself: what started it, how, and where; what it is connected to; what hinders it; and how it ended.
It keeps no secrets: of the command line, users and passwords of URLs and what is called like a secret are left out.`,
		Example: "  opscore worker show 01890a5d-ac96-774b-bcce-b302099a8057",
		Args:    arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseWorkerID(args[0])
			if err != nil {
				return err
			}
			return a.with(cmd, existing, func(ctx context.Context, s *session) error {
				found, err := s.findWorkers(ctx, []opscore.ID{id})
				if err != nil {
					return err
				}
				return s.showWorker(found[0])
			})
		},
	}
}

func parseWorkerID(text string) (opscore.ID, error) {
	id, err := parseID(text)
	if err != nil {
		return id, usagef("%q is not the id of a worker: ids look like 01890a5d-ac96-774b-bcce-b302099a8057; see opscore worker list", text)
	}
	return id, nil
}

// findWorkers returns the workers of these ids, also if they are gone; each must exist.
func (s *session) findWorkers(ctx context.Context, ids []opscore.ID) ([]opscore.WorkerInfo, error) {
	all, err := s.store.Workers(ctx, opscore.Forever)
	if err != nil {
		return nil, err
	}
	found := make([]opscore.WorkerInfo, len(ids))
	for i, id := range ids {
		at := slices.IndexFunc(all, func(w opscore.WorkerInfo) bool { return w.ID == id })
		if at < 0 {
			return nil, fmt.Errorf("worker %s not found in %s; see opscore worker list%s", id, s.place, s.again())
		}
		found[i] = all[at]
	}
	return found, nil
}

func (s *session) showWorker(w opscore.WorkerInfo) error {
	if s.json {
		return s.printJSON(w)
	}
	var b sheet
	p := w.Process
	b.field("worker", w.ID.String())
	b.field("state", workerState(w))
	b.field("asked to", strings.TrimSuffix("stop, by "+w.Stop, "stop, by "))
	b.field("host", w.Host)
	b.field("process", strings.TrimSuffix(fmt.Sprintf("%d, started %s", w.PID, when(p.Started)), ", started -"))
	b.field("started by", strings.Join(p.Parents, " < "))
	b.field("command", strings.Join(p.Args, " "))
	b.field("directory", p.Dir)
	b.field("stdout", p.Stdout)
	b.field("stderr", p.Stderr)
	b.field("build", strings.TrimSuffix(w.Build+", "+p.Go, ", "))
	b.field("queues", strings.Join(w.Queues, ", "))
	b.field("actors", strings.Join(w.Actors, ", "))
	b.field("slots", fmt.Sprintf("%d, %d in use", w.Slots, w.Report.Running))
	b.field("registered", when(w.StartedAt))
	b.field("heard", when(w.LastBeat))
	b.field("lease", goDuration(time.Duration(w.Lease)))
	for _, e := range w.Endpoints {
		b.field(e.Kind, strings.TrimSuffix(strings.TrimSuffix(e.String()+" ("+e.Instance+")", " ()")+", from "+e.Origin, ", from "))
	}
	b.field("memory", p.Group)
	b.report(w.Report)
	return s.print(b.String())
}

// report adds what the worker said of itself last.
func (s *sheet) report(r opscore.Report) {
	for _, c := range r.Checks {
		text := strings.TrimSuffix(string(c.State)+": "+c.Text, ": ")
		if !c.Since.IsZero() {
			text += ", since " + when(c.Since)
		}
		s.field(c.Name, text)
	}
	if r.Skew != 0 {
		s.field("clock", "differs from the store's by "+r.Skew.String())
	}
	if r.LogDropped > 0 {
		s.field("log lines", fmt.Sprintf("%d were dropped: they could not be written, or nobody read them fast enough", r.LogDropped))
	}
	if d := r.Drained; d != nil {
		s.field("drained", fmt.Sprintf("%d finished, %d handed back, %d released, in %s", d.Finished, d.HandedBack, d.Released, short(time.Duration(d.Took))))
		s.field("stuck", strings.Join(d.Stuck, ", "))
	}
}

func (a *app) workerStopCommand() *cobra.Command {
	var o stopOptions
	c := &cobra.Command{
		Use:   "stop [ID...]",
		Short: "Ask workers to stop, wherever they run",
		Long: `Stop asks workers to stop, through the database: they need not run on this machine. It is the same as SIGTERM to their processes. They learn of
it within a sixth of their lease (5s), take no more tasks, let the running ones finish (--drain) and exit with status 0.
A supervisor may start them again. With --wait it returns when they are gone; interrupted, or after --timeout (exit status 1), it has asked them all the same. The
exit status is 1 as well if one has died, its lease has run out, and no other worker declares it gone.`,
		Example: `  opscore worker stop 01890a5d-ac96-774b-bcce-b302099a8057
  opscore worker stop --all --older-than 1h --wait`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case o.all && len(args) > 0:
				return usagef("--all leaves no worker to be named: what does %q mean?", args[0])
			case !o.all && len(args) == 0:
				return usagef("which worker? Give its id, as opscore worker list shows it, or --all")
			case !o.all && cmd.Flags().Changed("older-than"):
				return usagef("--older-than goes with --all")
			case !o.wait && o.timeout > 0:
				return usagef("--timeout goes with --wait")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := parseIDs(args, parseWorkerID)
			if err != nil {
				return err
			}
			return a.with(cmd, existing, func(ctx context.Context, s *session) error { return s.stopWorkers(ctx, ids, o) })
		},
	}
	c.Flags().BoolVar(&o.all, "all", false, "all that are registered")
	addFlag(c.Flags(), "older-than", "of those, the ones registered for longer than `DURATION`", parseDuration, func(d time.Duration) { o.olderThan = d })
	c.Flags().BoolVar(&o.wait, "wait", false, "return when they are gone")
	addFlag(c.Flags(), "timeout", "with --wait: give up waiting after `DURATION`", parsePeriod, func(d time.Duration) { o.timeout = d })
	return c
}

type stopOptions struct {
	all       bool
	olderThan time.Duration
	wait      bool
	timeout   time.Duration // 0: wait for as long as it takes
}

func (s *session) stopWorkers(ctx context.Context, ids []opscore.ID, o stopOptions) error {
	targets, err := s.findWorkers(ctx, ids)
	if err != nil {
		return err
	}
	if o.all {
		if targets, err = s.store.Workers(ctx, 0); err != nil {
			return err
		}
		targets = slices.DeleteFunc(targets, func(w opscore.WorkerInfo) bool { return time.Since(w.StartedAt) < o.olderThan })
	}
	ids = nil
	for _, w := range targets {
		ids = append(ids, w.ID)
	}
	asked, err := s.store.StopWorkers(ctx, ids, caller())
	if err != nil {
		return err
	}
	if s.json {
		if err := s.printJSON(map[string][]opscore.ID{"asked": append([]opscore.ID{}, asked...)}); err != nil {
			return err
		}
	} else {
		s.sayAsked(targets, asked)
	}
	if o.wait {
		return s.awaitGone(ctx, asked, o.timeout)
	}
	return nil
}

func (s *session) sayAsked(targets []opscore.WorkerInfo, asked []opscore.ID) {
	if len(targets) == 0 {
		s.say("no worker to stop")
	}
	for _, w := range targets {
		switch {
		case !slices.Contains(asked, w.ID):
			s.say("worker %s is gone already, %s: %s", w.ID, age(w.GoneAt), cmp.Or(w.Cause, "no cause recorded"))
		case !w.Live:
			s.say("worker %s (%s, process %d) is asked to stop, but it has been silent since %s: it learns of it only if it goes on", w.ID, w.Host, w.PID, clock(w.LastBeat))
		default:
			s.say("worker %s (%s, process %d) is asked to stop", w.ID, w.Host, w.PID)
		}
	}
}

// buriedWithin is longer than keepers take to declare a worker gone whose lease has run out.
const buriedWithin = 3 * opscore.HeartbeatEvery

// awaitGone returns when the workers have left the registry, or when nobody is going to take the rest of them out of it.
func (s *session) awaitGone(ctx context.Context, ids []opscore.ID, timeout time.Duration) error {
	if timeout > 0 {
		limited, cancel := context.WithTimeoutCause(ctx, timeout, errWaited)
		defer cancel()
		ctx = limited
	}
	live := func(w opscore.WorkerInfo) bool { return w.Live }
	left := "the database has not answered"
	lastSign := time.Now() // of life, of any that is left
	err := s.watchWorkers(ctx, func(present []opscore.WorkerInfo) (bool, error) {
		targets := slices.DeleteFunc(slices.Clone(present), func(w opscore.WorkerInfo) bool { return !slices.Contains(ids, w.ID) })
		if len(targets) == 0 {
			return true, nil
		}
		left = remaining(targets)
		if slices.ContainsFunc(targets, live) {
			lastSign = time.Now()
			return false, nil
		}
		if !slices.ContainsFunc(present, live) || time.Since(lastSign) > buriedWithin {
			return false, fmt.Errorf("%s: the lease has run out, and nobody declares it gone; the next worker will", left)
		}
		return false, nil
	})
	if errors.Is(err, errWaited) {
		return fmt.Errorf("after %s %s; what was asked to stop stops all the same", timeout, left)
	}
	return err
}

// remaining names workers that are not gone.
func remaining(workers []opscore.WorkerInfo) string {
	texts := make([]string, len(workers))
	for i, w := range workers {
		texts[i] = fmt.Sprintf("worker %s (%s, process %d) is %s, heard %s", w.ID, w.Host, w.PID, workerState(w), age(w.LastBeat))
	}
	return strings.Join(texts, "; ")
}

// watchWorkers looks at the workers that are not gone again and again, until done says yes or fails, or a signal ends it.
func (s *session) watchWorkers(ctx context.Context, done func([]opscore.WorkerInfo) (bool, error)) error {
	ctx, _, release := interruptible(ctx, nil)
	defer release()
	for {
		workers, err := s.store.Workers(ctx, 0)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if is, err := done(workers); is || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (a *app) workerWaitCommand() *cobra.Command {
	o := waitOptions{timeout: 30 * time.Second}
	c := &cobra.Command{
		Use:   "wait",
		Short: "Wait until a worker is ready",
		Long: `Wait returns when a worker takes tasks: it is registered, its store answers, and it is subscribed or pulls. With --queue and --actor it must be
one that takes such tasks. Then it prints the ids of those workers. After --timeout it says what is missing and exits with status 1. A database
that cannot be reached or does not answer is tried again until then.`,
		Example: `  opscore worker wait
  opscore worker wait --actor thumbnail --count 2 --timeout 2m`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.count < 1 {
				return usagef("--count %d: must be at least 1", o.count)
			}
			return a.awaitReady(cmd, o)
		},
	}
	c.Flags().StringVar(&o.queue, "queue", "", "one that listens to `QUEUE`")
	c.Flags().StringVar(&o.actor, "actor", "", "one that has `ACTOR`")
	c.Flags().IntVar(&o.count, "count", 1, "wait for so many workers")
	addFlag(c.Flags(), "timeout", "give up after `DURATION` (default 30s)", parsePeriod, func(d time.Duration) { o.timeout = d })
	return c
}

type waitOptions struct {
	queue, actor string
	count        int
	timeout      time.Duration
}

// wants reports whether the worker is one of those to wait for.
func (o waitOptions) wants(w *opscore.WorkerInfo) bool {
	return (o.queue == "" || slices.Contains(w.Queues, o.queue)) && (o.actor == "" || slices.Contains(w.Actors, o.actor))
}

// leastLook is how long a look at the database may take, however short the wait is to be.
const leastLook = time.Second

// awaitReady waits for the database as well: who starts both need not start it first.
func (a *app) awaitReady(cmd *cobra.Command, o waitOptions) error {
	began := time.Now()
	conf, place, err := a.placed(cmd)
	if err != nil {
		return err
	}
	ctx, _, release := interruptible(cmd.Context(), nil)
	defer release()
	ctx, cancel := context.WithTimeoutCause(ctx, max(o.timeout, leastLook), errWaited)
	defer cancel()
	missing := fmt.Errorf("after %s %s has not answered", o.timeout, place)
	for {
		err := a.lookForReady(ctx, cmd, conf, began, o, &missing)
		switch {
		case err == nil:
			return nil
		case errors.Is(context.Cause(ctx), errWaited):
			return missing
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case opscore.CodeOf(err) != opscore.CodeUnavailable:
			return err
		}
		missing = fmt.Errorf("after %s: %w", o.timeout, err)
		if time.Since(began) >= o.timeout {
			return missing
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// lookForReady looks for as long as the database answers. What it misses is in missing.
func (a *app) lookForReady(ctx context.Context, cmd *cobra.Command, conf *config, began time.Time, o waitOptions, missing *error) (err error) {
	s, err := a.open(ctx, cmd, conf, created)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.store.Close()) }()
	return s.watchWorkers(ctx, func(workers []opscore.WorkerInfo) (bool, error) {
		ready := slices.DeleteFunc(slices.Clone(workers), func(w opscore.WorkerInfo) bool { return !w.Live || !w.Ready() || !o.wants(&w) })
		if len(ready) >= o.count {
			return true, s.sayReady(ready)
		}
		*missing = o.missing(len(ready), workers)
		if time.Since(began) >= o.timeout {
			return false, *missing
		}
		return false, nil
	})
}

func (s *session) sayReady(workers []opscore.WorkerInfo) error {
	if s.json {
		return s.printJSON(workers)
	}
	for _, w := range workers {
		if _, err := fmt.Fprintln(s.stdout, w.ID); err != nil {
			return err
		}
	}
	return nil
}

// missing says why there are not enough workers.
func (o waitOptions) missing(ready int, workers []opscore.WorkerInfo) error {
	text := fmt.Sprintf("after %s there are %d of %d ready workers", o.timeout, ready, o.count)
	if o.queue != "" {
		text += " of queue " + o.queue
	}
	if o.actor != "" {
		text += " with actor " + o.actor
	}
	if len(workers) == 0 {
		return errors.New(text + ": no worker is registered")
	}
	for _, w := range workers {
		text += fmt.Sprintf("; worker %s (%s, process %d) is %s", w.ID, w.Host, w.PID, o.unfit(&w))
	}
	return errors.New(text)
}

// unfit says why a worker is not one of those that are waited for.
func (o waitOptions) unfit(w *opscore.WorkerInfo) string {
	var why strings.Builder
	why.WriteString(workerState(*w))
	for _, c := range w.Report.Failed() {
		fmt.Fprintf(&why, " (%s: %s)", c.Name, c.Text)
	}
	if !o.wants(w) {
		fmt.Fprintf(&why, " and has queues %s, actors %s", strings.Join(w.Queues, ","), strings.Join(w.Actors, ","))
	}
	return why.String()
}
