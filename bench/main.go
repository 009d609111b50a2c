// Command bench measures opscore in one run on this machine and prints a table. Nothing here is a test: times depend on
// the machine, and none is asserted.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// result is one line of the table.
type result struct {
	what, unit string
	value      float64
}

// measurement makes one or a few results, either with files of its own in dir or in databases of its own on the run's server.
type measurement struct {
	name     string
	make     func(ctx context.Context, dir string) ([]result, error)
	onServer func(context.Context, *server) ([]result, error)
	long     bool // only made when named
}

var measurements = []measurement{
	{name: "submit-one", make: submitOne},
	{name: "submit-batch", make: submitBatch},
	{name: "drain", make: drain},
	{name: "bare", make: bare},
	{name: "latency", make: latency},
	{name: "worker", make: worker},
	// What is compared is measured one after the other.
	{name: "pg-submit-one", onServer: pgSubmitOne},
	{name: "river-submit-one", onServer: riverSubmitOne},
	{name: "pg-submit-batch", onServer: pgSubmitBatch},
	{name: "river-submit-batch", onServer: riverSubmitBatch},
	{name: "pg-bare", onServer: pgBare},
	{name: "drain-1m", onServer: pgDrainMillion, long: true},
	{name: "pg-drain", onServer: pgDrain(0)},
	{name: "pg-drain-tuned", onServer: pgDrain(manySlots)},
	{name: "mq-drain", onServer: mqDrain(0)},
	{name: "mq-drain-tuned", onServer: mqDrain(manySlots)},
	{name: "river-drain-best", onServer: riverDrainBest},
	{name: "river-drain", onServer: riverDrain},
	{name: "pg-continuous", onServer: pgContinuous(0)},
	{name: "pg-continuous-tuned", onServer: pgContinuous(manySlots)},
	{name: "river-continuous-best", onServer: riverContinuousBest},
	{name: "river-continuous", onServer: riverContinuous},
	{name: "pg-latency", onServer: pgLatency},
	{name: "mq-latency", onServer: mqLatency},
	{name: "river-latency-best", onServer: riverLatencyBest},
	{name: "river-latency", onServer: riverLatency},
}

// ratios are of the first results of one measurement to those of another.
var ratios = []struct{ what, over, under string }{
	{"submit one by one, opscore/River", "pg-submit-one", "river-submit-one"},
	{"submit in batches, opscore/River", "pg-submit-batch", "river-submit-batch"},
	{"drain, opscore/River at its best", "pg-drain", "river-drain-best"},
	{"drain, opscore with as many slots/River at its best", "pg-drain-tuned", "river-drain-best"},
	{"drain, opscore/River at its defaults", "pg-drain", "river-drain"},
	{"drain, opscore by ticket/River at its best", "mq-drain", "river-drain-best"},
	{"drain, opscore by ticket with as many slots/River at its best", "mq-drain-tuned", "river-drain-best"},
	{"drain, opscore by ticket/by pull", "mq-drain", "pg-drain"},
	{"drain with as many slots, opscore by ticket/by pull", "mq-drain-tuned", "pg-drain-tuned"},
	{"drain, opscore/bare loop, 100 at a time", "pg-drain", "pg-bare"},
	{"drain, 1000000/100000 waiting", "drain-1m", "pg-drain"},
	{"submit and work, opscore/River at its best", "pg-continuous", "river-continuous-best"},
	{"submit and work, opscore with as many slots/River at its best", "pg-continuous-tuned", "river-continuous-best"},
	{"submit and work, opscore/River at its defaults", "pg-continuous", "river-continuous"},
	{"submit to start, opscore/River tuned (less is better)", "pg-latency", "river-latency-best"},
	{"submit to start, opscore/River at its defaults (less is better)", "pg-latency", "river-latency"},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run makes the named measurements, or all.
func run(ctx context.Context, names []string, out io.Writer) (err error) {
	for _, n := range names {
		if !slices.ContainsFunc(measurements, func(m measurement) bool { return m.name == n }) {
			return fmt.Errorf("no measurement %q; there are%s", n, known())
		}
	}
	root, err := os.MkdirTemp("", "opscore-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	var pg server
	defer func() { err = errors.Join(err, pg.close()) }()
	fmt.Fprintf(out, "%s, %s, %s/%s, files in %s, %s\n\n", processor(), runtime.Version(), runtime.GOOS, runtime.GOARCH,
		os.TempDir(), time.Now().UTC().Format(time.DateOnly))
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "what\tfigure\tunit\tcommand")
	all := map[string][]result{}
	for _, m := range measurements {
		if len(names) > 0 && !slices.Contains(names, m.name) || len(names) == 0 && m.long {
			continue
		}
		results, err := m.results(ctx, filepath.Join(root, m.name), &pg)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		all[m.name] = results
		for _, r := range results {
			fmt.Fprintf(table, "%s\t%s\t%s\tgo -C bench run . %s\n", r.what, figure(r.value), r.unit, m.name)
		}
	}
	if err := table.Flush(); err != nil || pg.postgres == nil {
		return err
	}
	about, err := pg.describe(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%s\n", about)
	return printRatios(out, all)
}

func (m measurement) results(ctx context.Context, dir string, pg *server) ([]result, error) {
	if m.onServer == nil {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		return m.make(ctx, dir)
	}
	if err := pg.start(ctx); err != nil {
		return nil, err
	}
	return m.onServer(ctx, pg)
}

// printRatios prints the ratios of what was measured in this run.
func printRatios(out io.Writer, all map[string][]result) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	head := "\nratio\tfigure\n"
	for _, r := range ratios {
		over, under := all[r.over], all[r.under]
		for i := range min(len(over), len(under)) {
			name := r.what
			if at := strings.LastIndex(over[i].what, ", p"); over[i].unit == "ms" && at >= 0 {
				name += over[i].what[at:] // which percentile
			}
			fmt.Fprintf(table, "%s%s\t%.2f\n", head, name, over[i].value/under[i].value)
			head = ""
		}
	}
	return table.Flush()
}

func known() string {
	var b strings.Builder
	for _, m := range measurements {
		b.WriteString(" " + m.name)
	}
	return b.String()
}

// figure rounds to what a measurement is good for.
func figure(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func processor() string {
	model := "unknown processor"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range bytes.Lines(info) {
			if key, value, _ := bytes.Cut(line, []byte(":")); bytes.HasPrefix(key, []byte("model name")) {
				model = string(bytes.TrimSpace(value))
				break
			}
		}
	}
	return fmt.Sprintf("%d x %s", runtime.NumCPU(), model)
}

// median of three runs: one is at the mercy of the disk.
func median(runs []float64) float64 {
	if len(runs) == 0 {
		return 0 // it failed
	}
	slices.Sort(runs)
	return runs[len(runs)/2]
}

// medianOf makes the runs.
func medianOf(once func() (float64, error)) (float64, error) {
	var all []float64
	for range runs {
		v, err := once()
		if err != nil {
			return 0, err
		}
		all = append(all, v)
	}
	return median(all), nil
}

func perSecond(n int, since time.Time) float64 { return float64(n) / time.Since(since).Seconds() }
