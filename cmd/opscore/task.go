package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opscore/opscore"
)

func (a *app) taskCommand() *cobra.Command {
	return a.group("task", "List, show, await, cancel and retry tasks",
		`Task looks after tasks that were submitted: where they stand, what they were given, what became of every
attempt, what they logged.`,
		a.taskListCommand(), a.taskShowCommand(), a.taskLogsCommand(), a.taskWaitCommand(), a.taskCancelCommand(),
		a.taskRetryCommand())
}

// taskAction is a command about one task.
func (a *app) taskAction(c *cobra.Command, do func(context.Context, *session, opscore.ID) error) *cobra.Command {
	c.Args = arguments(1, 1)
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := parseID(args[0])
		if err != nil {
			return err
		}
		return a.with(cmd, existing, func(ctx context.Context, s *session) error {
			return s.notFound(id, do(ctx, s, id))
		})
	}
	return c
}

// taskFilter is a filter as flags give it.
type taskFilter struct {
	states, labels []string
	queue, actor   string
	before         opscore.ID
	limit          int
}

func (a *app) taskListCommand() *cobra.Command {
	var f taskFilter
	c := &cobra.Command{
		Use:   "list",
		Short: "List tasks, newest first",
		Long: `List shows tasks, newest first, 50 of them unless --limit says otherwise. All conditions must hold;
several --state mean any of them. To page on, give the last id to --before.`,
		Example: `  opscore task list
  opscore task list --state failed,cancelled --queue images
  opscore task list --actor thumbnail --label team=media --json`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := f.filter()
			if err != nil {
				return err
			}
			return a.with(cmd, existing, func(ctx context.Context, s *session) error { return s.listTasks(ctx, filter) })
		},
	}
	c.Flags().StringSliceVar(&f.states, "state", nil, "only in this `STATE`: pending, running, completed, failed, cancelled")
	c.Flags().StringVar(&f.queue, "queue", "", "only of this `QUEUE`")
	c.Flags().StringVar(&f.actor, "actor", "", "only of this `ACTOR`")
	c.Flags().StringArrayVar(&f.labels, "label", nil, "only with this label `KEY=VALUE` (repeatable)")
	addFlag(c.Flags(), "limit", "at most `N` tasks, up to 1000 (default 50)", parseCount, func(n int) { f.limit = n })
	addFlag(c.Flags(), "before", "only tasks older than the one with this `ID`", parseID, func(id opscore.ID) { f.before = id })
	return c
}

func (f *taskFilter) filter() (opscore.Filter, error) {
	filter := opscore.Filter{Queue: f.queue, Actor: f.actor, Before: f.before, Limit: f.limit, Labels: map[string]string{}}
	var names []string
	for _, s := range opscore.States() {
		names = append(names, string(s))
	}
	for _, s := range f.states {
		if !slices.Contains(names, s) {
			return filter, usagef("--state %q: accepted: %s%s", s, strings.Join(names, ", "), didYouMean(s, names))
		}
		filter.States = append(filter.States, opscore.State(s))
	}
	for _, l := range f.labels {
		label, err := parseLabel(l)
		if err != nil {
			return filter, usagef("--label %q: %s", l, err)
		}
		maps.Copy(filter.Labels, label)
	}
	for kind, name := range map[string]string{"queue": f.queue, "actor": f.actor} {
		if name != "" {
			if err := opscore.ValidName(kind, name); err != nil {
				return filter, err
			}
		}
	}
	return filter, nil
}

func (s *session) listTasks(ctx context.Context, f opscore.Filter) error {
	tasks, err := s.client.List(ctx, f)
	if err != nil {
		return err
	}
	if s.json {
		return s.printJSON(append([]opscore.Task{}, tasks...))
	}
	if len(tasks) == 0 {
		s.say("no task matches")
		return nil
	}
	rows := make([][]string, len(tasks))
	for i, t := range tasks {
		rows[i] = []string{
			t.ID.String(), string(t.State), t.Actor, t.Queue, fmt.Sprintf("%d/%s", t.Attempt, atMost(t.MaxAttempts)), age(t.CreatedAt),
			clip(standing(t), 70),
		}
	}
	if err := s.table([]string{"ID", "STATE", "ACTOR", "QUEUE", "ATTEMPT", "SUBMITTED", "NOTE"}, rows); err != nil {
		return err
	}
	if len(tasks) == cmp.Or(f.Limit, 50) {
		s.say("there may be more: opscore task list … --before %s", tasks[len(tasks)-1].ID)
	}
	return nil
}

// standing is what is worth knowing of a task besides its state.
func standing(t opscore.Task) string {
	switch {
	case t.State == opscore.Running && !t.CancelRequestedAt.IsZero():
		return "cancellation requested " + age(t.CancelRequestedAt)
	case t.State == opscore.Running && (t.Progress > 0 || t.ProgressText != ""):
		return fmt.Sprintf("%.0f%% %s", 100*t.Progress, t.ProgressText)
	case t.State == opscore.Running:
		return "started " + age(t.StartedAt)
	case t.State == opscore.Completed:
		return "took " + short(t.FinishedAt.Sub(t.StartedAt))
	case t.State == opscore.Cancelled:
		return "by " + t.CancelledBy
	case t.State == opscore.Failed:
		return string(t.Code) + ": " + firstLine(t.Error)
	case t.Code != "" && time.Until(t.RunAt) > 0:
		return "next " + age(t.RunAt) + "; " + string(t.Code) + ": " + firstLine(t.Error)
	case t.Code != "":
		return "due again; " + string(t.Code) + ": " + firstLine(t.Error)
	case time.Until(t.RunAt) > 0:
		return "starts " + age(t.RunAt)
	}
	return ""
}

// shownTask is a task with its history, as --json prints it.
type shownTask struct {
	opscore.Task
	Attempts []opscore.Attempt `json:"attempts"`
}

func (a *app) taskShowCommand() *cobra.Command {
	return a.taskAction(&cobra.Command{
		Use:   "show ID",
		Short: "Show a task: its fields, args, result and attempts",
		Long: `Show prints all that is kept of a task: where it stands, its args and result, and each attempt with its worker
and how it ended.`,
		Example: `  opscore task show 01890a5d-ac96-774b-bcce-b302099a8057`,
	}, func(ctx context.Context, s *session, id opscore.ID) error {
		t, err := s.client.Get(ctx, id)
		if err != nil {
			return err
		}
		attempts, err := s.client.Attempts(ctx, id)
		if err != nil {
			return err
		}
		if s.json {
			return s.printJSON(shownTask{t, append([]opscore.Attempt{}, attempts...)})
		}
		return s.showTask(t, attempts)
	})
}

func (s *session) showTask(t opscore.Task, attempts []opscore.Attempt) error {
	var b sheet
	field := b.field
	field("task", t.ID.String())
	field("actor", t.Actor)
	field("queue", t.Queue)
	field("state", string(t.State))
	field("note", standing(t))
	if t.Priority != 0 {
		field("priority", fmt.Sprint(t.Priority))
	}
	field("attempt", fmt.Sprintf("%d of %s, at most %s each", t.Attempt, atMost(t.MaxAttempts), goDuration(time.Duration(t.Timeout))))
	if t.Lost > 0 {
		field("lost", fmt.Sprintf("%d of %d times with its worker", t.Lost, opscore.MaxLost))
	}
	field("submitted", when(t.CreatedAt))
	if t.State == opscore.Pending {
		field("starts", when(t.RunAt))
	}
	field("started", when(t.StartedAt))
	field("finished", when(t.FinishedAt))
	field("expires", when(t.ExpiresAt))
	field("cancelled", when(t.CancelRequestedAt))
	field("unique key", t.UniqueKey)
	for _, k := range slices.Sorted(maps.Keys(t.Labels)) {
		field("label", k+"="+t.Labels[k])
	}
	if t.Retry != (opscore.Backoff{}) {
		field("retry", fmt.Sprintf("after %s at first, then longer, its own wait", short(t.Retry.Delay(1, 0.5))))
	}
	field("args", document(t.Args))
	field("origin", document(t.Origin))
	field("result", document(t.Result))
	if lines := strings.TrimSpace(t.Error); lines != "" && t.State != opscore.Completed {
		fmt.Fprintf(&b, "error        %s\n", indented(lines))
	}
	if len(attempts) > 0 {
		b.WriteString("\n")
	}
	if err := s.print(b.String()); err != nil || len(attempts) == 0 {
		return err
	}
	return s.attemptTable(attempts)
}

// document shows JSON up to a length that a person reads.
func document(doc json.RawMessage) string {
	const most = 4 << 10
	text := string(safeJSON(doc))
	if len(text) > most {
		return fmt.Sprintf("%s (%d bytes; --json shows all)", clip(text, most), len(doc))
	}
	return text
}

// indented keeps the lines of an error apart and under their heading.
func indented(text string) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = safe(strings.ReplaceAll(l, "\t", "    "))
	}
	return strings.Join(lines, "\n             ")
}

func (s *session) attemptTable(attempts []opscore.Attempt) error {
	rows := make([][]string, len(attempts))
	for i, at := range attempts {
		ended, took := cmp.Or(string(at.Code), "running"), "-"
		if at.Late {
			ended += ", late"
		}
		if !at.EndedAt.IsZero() && !at.StartedAt.IsZero() {
			took = short(at.EndedAt.Sub(at.StartedAt))
		}
		worker := "-"
		if at.Worker != (opscore.ID{}) {
			worker = at.Worker.String()
		}
		rows[i] = []string{fmt.Sprint(at.ClaimSeq), clock(at.StartedAt), took, ended, worker, cmp.Or(at.Build, "-"), clip(firstLine(at.Error), 70)}
	}
	return s.table([]string{"CLAIM", "STARTED", "TOOK", "ENDED", "WORKER", "BUILD", "ERROR"}, rows)
}

func (a *app) taskLogsCommand() *cobra.Command {
	return a.taskAction(&cobra.Command{
		Use:   "logs ID",
		Short: "Show what a task logged",
		Long: `Logs prints the lines that the attempts of a task logged, oldest first. For a command of opscore.yaml these are
the lines of its stderr.`,
		Example: `  opscore task logs 01890a5d-ac96-774b-bcce-b302099a8057`,
	}, func(ctx context.Context, s *session, id opscore.ID) error {
		lines, err := s.client.Logs(ctx, id)
		if err != nil {
			return err
		}
		if s.json {
			return s.printJSON(append([]opscore.LogLine{}, lines...))
		}
		if len(lines) == 0 {
			s.say("task %s has logged nothing", id)
		}
		for _, l := range lines {
			if err := s.printf("%s %-5s %s", clock(l.At), l.Level, l.Text); err != nil {
				return err
			}
		}
		return nil
	})
}

func (a *app) taskWaitCommand() *cobra.Command {
	var timeout time.Duration
	c := a.taskAction(&cobra.Command{
		Use:   "wait ID",
		Short: "Wait for the end of a task and print its result",
		Long: `Wait returns when the task is over: it prints the result, or fails with the task's error. Ctrl-C and --timeout
end only the wait; the task goes on.`,
		Example: `  opscore task wait --timeout 1m 01890a5d-ac96-774b-bcce-b302099a8057`,
	}, func(ctx context.Context, s *session, id opscore.ID) error {
		ctx, _, release := interruptible(ctx, nil)
		defer release()
		if timeout > 0 {
			limited, cancel := context.WithTimeoutCause(ctx, timeout, errWaited)
			defer cancel()
			ctx = limited
		}
		err := s.await(ctx, id)
		if errors.Is(err, errWaited) {
			t, err := s.client.Get(context.WithoutCancel(ctx), id)
			if err != nil {
				return err
			}
			return fmt.Errorf("task %s is still %s after %s of waiting; it goes on", id, t.State, timeout)
		}
		return err
	})
	addFlag(c.Flags(), "timeout", "give up waiting after `DURATION`", parsePeriod, func(d time.Duration) { timeout = d })
	return c
}

var errWaited = errors.New("waited long enough")

func (a *app) taskCancelCommand() *cobra.Command {
	return a.taskAction(&cobra.Command{
		Use:   "cancel ID",
		Short: "Cancel a task",
		Long: `Cancel ends a pending task at once. A running one is interrupted by its worker, within 5 seconds as a rule. A task
that is over stays as it is, which is an error unless it is cancelled already.`,
		Example: `  opscore task cancel 01890a5d-ac96-774b-bcce-b302099a8057`,
	}, func(ctx context.Context, s *session, id opscore.ID) error {
		t, err := s.client.Cancel(ctx, id, caller())
		if err != nil {
			return err
		}
		var late error
		if t.State == opscore.Completed || t.State == opscore.Failed {
			late = fmt.Errorf("task %s is %s already: nothing is left to cancel", id, t.State)
		}
		switch {
		case s.json:
			return errors.Join(s.printJSON(t), late)
		case late != nil:
			return late
		case t.State == opscore.Running:
			return s.printf("task %s is running: its worker was asked to cancel it", id)
		}
		return s.printf("task %s is cancelled", id)
	})
}

func (a *app) taskRetryCommand() *cobra.Command {
	return a.taskAction(&cobra.Command{
		Use:   "retry ID",
		Short: "Put a failed or cancelled task back",
		Long: `Retry makes a failed or cancelled task pending again: due now, with all its attempts, without its expiry. Its
history is kept.`,
		Example: `  opscore task retry 01890a5d-ac96-774b-bcce-b302099a8057`,
	}, func(ctx context.Context, s *session, id opscore.ID) error {
		t, err := s.client.Retry(ctx, id, caller())
		if err != nil {
			return err
		}
		if s.json {
			return s.printJSON(t)
		}
		return s.printf("task %s is pending again", id)
	})
}
