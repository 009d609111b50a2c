package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/opscore/opscore"
)

func (a *app) queueCommand() *cobra.Command {
	return a.group("queue", "List, pause and resume queues",
		`Queue shows how much waits where and who listens, stops and restarts single queues, and puts what they have in RabbitMQ in order.`,
		a.queueListCommand(), a.queuePauseCommand(), a.queueResumeCommand(), a.queueEnsureCommand(), a.queueMigrateCommand())
}

// queueRow is one queue as it is listed.
type queueRow struct {
	Queue     string         `json:"queue"`
	Pending   int64          `json:"pending"`
	Running   int64          `json:"running"`
	Completed int64          `json:"completed"`
	Failed    int64          `json:"failed"`
	Cancelled int64          `json:"cancelled"`
	Workers   int            `json:"live_workers"`
	Paused    *opscore.Pause `json:"paused,omitempty"`
}

func (a *app) queueListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List queues with their tasks, workers and pauses",
		Long: `List shows every queue that holds tasks, is paused, or has a live worker: how many tasks it has in each state,
how many live workers listen to it, and who paused it.`,
		Example: `  opscore queue list`,
		Args:    arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, existing, func(ctx context.Context, s *session) error { return s.listQueues(ctx) })
		},
	}
}

func (s *session) listQueues(ctx context.Context) error {
	queues, err := s.queues(ctx)
	if err != nil {
		return err
	}
	if s.json {
		return s.printJSON(queues)
	}
	if len(queues) == 0 {
		s.say("no queue holds a task or has a worker")
		return nil
	}
	rows := make([][]string, len(queues))
	for i, q := range queues {
		paused := ""
		if p := q.Paused; p != nil {
			paused = "by " + p.By + " at " + when(p.At)
			if p.Comment != "" {
				paused += ": " + p.Comment
			}
		}
		rows[i] = []string{q.Queue}
		for _, n := range []int64{q.Pending, q.Running, q.Completed, q.Failed, q.Cancelled, int64(q.Workers)} {
			rows[i] = append(rows[i], fmt.Sprint(n))
		}
		rows[i] = append(rows[i], paused)
	}
	return s.table([]string{"QUEUE", "PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "WORKERS", "PAUSED"}, rows)
}

// queues gathers what is known of each queue, by name.
func (s *session) queues(ctx context.Context) ([]queueRow, error) {
	known := map[string]*queueRow{}
	row := func(name string) *queueRow {
		if known[name] == nil {
			known[name] = &queueRow{Queue: name}
		}
		return known[name]
	}
	counts, err := s.client.Count(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range counts {
		q := row(c.Queue)
		*map[opscore.State]*int64{
			opscore.Pending: &q.Pending, opscore.Running: &q.Running, opscore.Completed: &q.Completed,
			opscore.Failed: &q.Failed, opscore.Cancelled: &q.Cancelled,
		}[c.State] += c.Tasks
	}
	workers, err := s.store.Workers(ctx, 0)
	if err != nil {
		return nil, err
	}
	for _, w := range workers {
		if w.Live {
			for _, name := range w.Queues {
				row(name).Workers++
			}
		}
	}
	paused, err := s.store.Paused(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range paused {
		row(p.Queue).Paused = &p
	}
	rows := []queueRow{}
	for _, name := range slices.Sorted(maps.Keys(known)) {
		rows = append(rows, *known[name])
	}
	return rows, nil
}

func (a *app) queuePauseCommand() *cobra.Command {
	var comment string
	c := &cobra.Command{
		Use:   "pause NAME",
		Short: "Stop the start of tasks from a queue",
		Long: `Pause keeps workers from starting tasks of the queue, until resume. Running tasks go on, new ones can be
submitted. Who paused it and why is kept.`,
		Example: `  opscore queue pause images --comment "waiting for the new disk"`,
		Args:    arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := opscore.ValidName("queue", args[0]); err != nil {
				return err
			}
			return a.with(cmd, existing, func(ctx context.Context, s *session) error { return s.pauseQueue(ctx, args[0], comment) })
		},
	}
	c.Flags().StringVar(&comment, "comment", "", "why, for others to read: `TEXT`")
	return c
}

func (s *session) pauseQueue(ctx context.Context, queue, comment string) error {
	before, err := s.paused(ctx, queue)
	if err != nil {
		return err
	}
	if before != nil {
		s.say("queue %s was paused already by %s at %s", queue, before.By, when(before.At))
	} else if err := s.hintUnknown(ctx, queue); err != nil {
		return err
	}
	if err := s.client.Pause(ctx, queue, caller(), comment); err != nil {
		return err
	}
	if !s.json {
		return s.printf("queue %s is paused", queue)
	}
	p, err := s.paused(ctx, queue)
	if err != nil {
		return err
	}
	return s.printJSON(p)
}

func (s *session) paused(ctx context.Context, queue string) (*opscore.Pause, error) {
	paused, err := s.store.Paused(ctx)
	if i := slices.IndexFunc(paused, func(p opscore.Pause) bool { return p.Queue == queue }); i >= 0 {
		return &paused[i], err
	}
	return nil, err
}

// hintUnknown warns of a queue that nobody uses: the name may be mistyped.
func (s *session) hintUnknown(ctx context.Context, queue string) error {
	tasks, err := s.client.List(ctx, opscore.Filter{Queue: queue, Limit: 1})
	if err != nil || len(tasks) > 0 {
		return err
	}
	workers, err := s.store.Workers(ctx, 0)
	if err != nil {
		return err
	}
	var names []string
	for _, w := range workers {
		names = append(names, w.Queues...)
	}
	if !slices.Contains(names, queue) {
		s.say("opscore: warning: no task and no worker uses queue %s%s", queue, didYouMean(queue, names))
	}
	return nil
}

func (a *app) queueResumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "resume NAME",
		Short:   "End the pause of a queue",
		Long:    `Resume lets workers start tasks of a paused queue again. Resuming a queue that is not paused changes nothing.`,
		Example: `  opscore queue resume images`,
		Args:    arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := opscore.ValidName("queue", args[0]); err != nil {
				return err
			}
			return a.with(cmd, existing, func(ctx context.Context, s *session) error { return s.resumeQueue(ctx, args[0]) })
		},
	}
}

func (s *session) resumeQueue(ctx context.Context, queue string) error {
	all, err := s.store.Paused(ctx)
	if err != nil {
		return err
	}
	names := make([]string, len(all))
	for i, p := range all {
		names[i] = p.Queue
	}
	if err := s.client.Resume(ctx, queue); err != nil {
		return err
	}
	if !slices.Contains(names, queue) {
		s.say("queue %s was not paused; paused: %s%s", queue, cmp.Or(strings.Join(names, ", "), "none"), didYouMean(queue, names))
	}
	if s.json {
		return s.printJSON(map[string]any{"queue": queue, "paused": false})
	}
	return s.printf("queue %s is not paused", queue)
}
