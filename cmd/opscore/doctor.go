package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/doctor"
)

func (a *app) doctorCommand() *cobra.Command {
	var o doctorOptions
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what would keep tasks from running, before one is submitted",
		Long: `Doctor asks all that know something about the deployment (the database, the registry of workers, the broker, this host) and says what would keep
tasks from running (a fault), and what hinders them or will not last (a warning), the worst first, with evidence and what to do. It changes nothing; what
it prints is never executed by itself. The status is 1 if there is a fault. What each code means is in docs/causes.md.

With --probe it also sends a canary through each queue that a worker listens to, a task that workers know by themselves, on the way that every task goes,
and prints how long each hop of it takes: insert, relay and deliver where there is a broker, claim, start, finish. It stops at a hop that does not answer
within 10s. The canary is removed at the end.`,
		Example: `  opscore doctor
  opscore doctor --probe
  opscore doctor --queue mail --json`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.queue != "" {
				if err := opscore.ValidName("queue", o.queue); err != nil {
					return usagef("%v", err)
				}
			}
			return a.examining(cmd, func(ctx context.Context, e *examination) error { return e.examine(ctx, o) })
		},
	}
	addBrokerFlags(c.Flags())
	c.Flags().StringVar(&o.queue, "queue", "", "look at `QUEUE` only, also if it has no tasks yet, and ask the broker about it first")
	c.Flags().BoolVar(&o.probe, "probe", false, "send a canary through the queues, and print the time of each hop")
	return c
}

type doctorOptions struct {
	queue string // "" for all
	probe bool
}

// examined is what doctor prints with --json.
type examined struct {
	At      time.Time       `json:"at"`
	Causes  []opscore.Cause `json:"causes"`
	Sources []opscore.Asked `json:"sources"`
	Probes  []doctor.Trace  `json:"probes,omitempty"`
}

// examine says what is wrong with the deployment, or with all that concerns one queue.
func (e *examination) examine(ctx context.Context, o doctorOptions) error {
	ctx, _, release := interruptible(ctx, nil)
	defer release()
	f, err := e.ask(ctx, opscore.ID{}, o.queue)
	if err != nil {
		return err
	}
	if o.queue != "" {
		f.Queues = standingOf(f.Queues, o.queue)
		f.Workers = concerned(f.Workers, o.queue)
	}
	found := examined{At: f.At, Causes: opscore.Examine(f), Sources: f.Sources}
	faults := 0
	for _, c := range found.Causes {
		if c.Severity == opscore.Fault {
			faults++
		}
	}
	if !e.json {
		err = e.print(e.findings(f, found.Causes))
	}
	if o.probe && err == nil {
		found.Probes, err = e.probe(ctx, probed(f, o.queue))
	}
	if e.json {
		found.Causes = e.here(found.Causes)
		err = errors.Join(err, e.printJSON(found))
	}
	if faults > 0 {
		err = errors.Join(err, fmt.Errorf("%s would keep tasks from running", plural(faults, "fault")))
	}
	return err
}

// standingOf returns those of one queue. All are left as they are: a source that did not answer in time may still read them.
func standingOf(all []opscore.Standing, queue string) []opscore.Standing {
	some := slices.DeleteFunc(slices.Clone(all), func(s opscore.Standing) bool { return s.Queue != queue })
	if len(some) == 0 {
		return []opscore.Standing{{Queue: queue}}
	}
	return some
}

// concerned returns the workers that listen to a queue; if no live one does, all, for that is what is wrong.
func concerned(all []opscore.WorkerInfo, queue string) []opscore.WorkerInfo {
	elsewhere := func(w opscore.WorkerInfo) bool { return !slices.Contains(w.Queues, queue) }
	some := slices.DeleteFunc(slices.Clone(all), elsewhere)
	if !slices.ContainsFunc(some, func(w opscore.WorkerInfo) bool { return w.Live }) {
		return all
	}
	return some
}

// probed returns the queues to send canaries through: the one that was asked for, or those that live workers listen to.
func probed(f opscore.Facts, asked string) (queues []string) {
	if asked != "" {
		return []string{asked}
	}
	for _, w := range f.Workers {
		if w.Live {
			queues = append(queues, w.Queues...)
		}
	}
	slices.Sort(queues)
	return slices.Compact(queues)
}

// probe sends a canary through each queue, and tells of each hop when it is over.
func (e *examination) probe(ctx context.Context, queues []string) (traces []doctor.Trace, err error) {
	if len(queues) == 0 {
		return nil, errors.New("there is no queue to probe: no live worker is registered")
	}
	store, err := e.place.open(ctx, existing)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	var stuck []error
	for _, q := range queues {
		var unsaid error
		tell := func(text string) {
			if !e.json && unsaid == nil {
				unsaid = e.printf("%s", text)
			}
		}
		if unsaid == nil && !e.json {
			unsaid = e.print("\n")
		}
		tell("probe of queue " + q)
		t, err := doctor.Probe{Store: store, Queue: q, OnHop: func(_ opscore.ID, h doctor.Hop) { tell("  " + hopLine(h)) }}.Run(ctx)
		traces = append(traces, t)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err = errors.Join(err, unsaid); err != nil {
			return traces, err
		}
		if t.Stuck != "" {
			stuck = append(stuck, fmt.Errorf("a canary in queue %s did not get past %s", q, t.Stuck))
			continue
		}
		tell(fmt.Sprintf("  in all      %s, by worker %s (%s, process %d)", t.Took, t.By.Worker, t.By.Host, t.By.PID))
	}
	return traces, errors.Join(stuck...)
}

func hopLine(h doctor.Hop) string {
	line := fmt.Sprintf("%-10s  %s", h.Name, h.Took)
	switch {
	case h.Err != "":
		line += ", and it does not answer: " + h.Err
	case h.Note != "":
		line += ", " + h.Note
	}
	return line
}

// findings is what was found, for people.
func (e *examination) findings(f opscore.Facts, causes []opscore.Cause) string {
	var b strings.Builder
	for _, s := range f.Sources {
		state := "answered in " + s.Took.String()
		if s.Err != "" {
			state = "did not answer, or not everything"
		}
		fmt.Fprintln(&b, safe(strings.TrimSpace(s.Source+" "+s.At)+": "+state))
	}
	for _, c := range causes {
		fmt.Fprintf(&b, "\n%s: %s\n", c.Severity, safe(c.Text))
		for _, line := range evidence(c) {
			fmt.Fprintln(&b, "  "+safe(line))
		}
		if len(c.Remedy) > 0 {
			fmt.Fprintln(&b, "  "+e.advice(c.Remedy[0]))
		}
	}
	if len(causes) == 0 {
		ready := 0
		for _, w := range f.Workers {
			if w.Live && w.Ready() {
				ready++
			}
		}
		fmt.Fprintf(&b, "\nnothing is amiss; %s ready\n", plural(ready, "worker"))
	}
	return b.String()
}
