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
)

func (a *app) doctorCommand() *cobra.Command {
	var queue string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what would keep tasks from running, before one is submitted",
		Long: `Doctor asks all that know something about the deployment (the database, the registry of workers, the broker, this host) and says what would keep
tasks from running (a fault), and what hinders them or will not last (a warning), the worst first, with evidence and what to do. It changes nothing; what
it prints is never executed by itself. The status is 1 if there is a fault. What each code means is in docs/causes.md.`,
		Example: `  opscore doctor
  opscore doctor --queue mail --json`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if queue != "" {
				if err := opscore.ValidName("queue", queue); err != nil {
					return usagef("%v", err)
				}
			}
			return a.examining(cmd, func(ctx context.Context, e *examination) error { return e.examine(ctx, queue) })
		},
	}
	c.Flags().StringVar(&queue, "queue", "", "look at `QUEUE` only, also if it has no tasks yet")
	return c
}

// examined is what doctor prints with --json.
type examined struct {
	At      time.Time       `json:"at"`
	Causes  []opscore.Cause `json:"causes"`
	Sources []opscore.Asked `json:"sources"`
}

// examine says what is wrong with the deployment, or with all that concerns one queue.
func (e *examination) examine(ctx context.Context, queue string) error {
	f, err := e.ask(ctx, opscore.ID{})
	if err != nil {
		return err
	}
	if queue != "" {
		f.Queues = slices.DeleteFunc(f.Queues, func(s opscore.Standing) bool { return s.Queue != queue })
		if len(f.Queues) == 0 {
			f.Queues = []opscore.Standing{{Queue: queue}}
		}
	}
	causes := opscore.Examine(f)
	faults := 0
	for _, c := range causes {
		if c.Severity == opscore.Fault {
			faults++
		}
	}
	if e.json {
		err = e.printJSON(examined{f.At, e.here(causes), f.Sources})
	} else {
		err = e.print(e.findings(f, causes))
	}
	if faults > 0 {
		err = errors.Join(err, fmt.Errorf("%s would keep tasks from running", plural(faults, "fault")))
	}
	return err
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
