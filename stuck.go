package opscore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// stuckAfter is how long a handler may go on after its context has ended. Nothing can stop a goroutine but the end of its process: then the
// worker lets the others finish and ends, for its supervisor to start it again, before all slots are taken by such handlers.
const stuckAfter = 30 * time.Second

var errIgnored = errors.New("the handler ignored its cancelled context")

// interrupt ends the context of a run, and remembers when and why. The crew's lock must be held.
func (r *running) interrupt(cause error) {
	if r.why == nil {
		r.why, r.told = cause, time.Now()
	}
	r.cancel(cause)
}

// ignores says since when and why the run should have ended, if it should have. The crew's lock must be held.
func (r *running) ignores(now time.Time) (since time.Time, why error) {
	begun := r.begun.Load()
	if r.done || r.owes || begun == 0 {
		return since, nil
	}
	since, why = r.told, r.why
	if end := time.Unix(0, begun).Add(time.Duration(r.task.Timeout)); now.After(end) && (why == nil || end.Before(since)) {
		since, why = end, errTimeout
	}
	return since, why
}

// below are the packages in which a handler waits for something without being at fault there.
var below = []string{"runtime.", "runtime/", "internal/", "sync.", "sync/", "time.", "syscall.", "os.", "io.", "bufio.", "net.", "net/", "context.", "database/sql."}

// place says where the goroutine of a stack is: the innermost function of the handler's own, and what it waits for. "" if that cannot be told.
func place(stack string) string {
	lines := strings.Split(stack, "\n")
	_, waits, _ := strings.Cut(lines[0], "[")
	waits, _, _ = strings.Cut(strings.TrimSuffix(waits, "]:"), ",")
	for i := 1; i+1 < len(lines); i += 2 {
		name := lines[i][:max(strings.LastIndexByte(lines[i], '('), 0)]
		if name == "" || slices.ContainsFunc(below, func(pkg string) bool { return strings.HasPrefix(name, pkg) }) {
			continue
		}
		file := filepath.Base(strings.Fields(lines[i+1] + " ?")[0])
		return fmt.Sprintf("in %s (%s), %s", name, file, waits)
	}
	return ""
}

func (r *running) String() string { return fmt.Sprintf("%s (task %s)", r.task.Actor, r.task.ID) }

// ignoring returns the handlers that have gone on for longer than that after they should have ended, by name and with where they are, and since when
// the first has.
func (c *crew) ignoring(longer time.Duration) (names []string, first time.Time) {
	now := time.Now()
	var stacks []string
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.runs {
		since, why := r.ignores(now)
		if why == nil || now.Sub(since) <= longer {
			continue
		}
		if stacks == nil {
			stacks = allStacks() // stops the process for a moment, but there is something wrong with it
		}
		names = append(names, strings.TrimSuffix(r.String()+" "+place(r.stack(stacks)), " "))
		if first.IsZero() || since.Before(first) {
			first = since
		}
	}
	slices.Sort(names)
	return names, first
}

// checkHandlers tells of handlers that ignore the end of their context.
func (c *crew) checkHandlers() Check {
	names, first := c.ignoring(DefaultGrace)
	if len(names) == 0 {
		return Check{Name: CheckHandlers, State: CheckOK}
	}
	return Check{
		Name: CheckHandlers, State: CheckDegraded, Since: first.UTC(),
		Text: "their context has ended, but they go on: " + strings.Join(names, ", "),
	}
}

// endIfStuck ends the worker if a handler does not end.
func (c *crew) endIfStuck() {
	names, _ := c.ignoring(stuckAfter)
	if len(names) == 0 || c.identity().State == WorkerDraining {
		return
	}
	why := errors.New("handlers ignore their cancelled context: " + strings.Join(names, ", "))
	c.log.Error("stopping: only the end of the process ends a handler that ignores its context", "why", why)
	c.dismiss(why)
}

// releaseStuck ends the runs whose handlers did not return, and names them; and gives back those whose outcomes cannot be recorded. A handler
// that was over its time or whose task was cancelled has had its attempt: it would be stuck the next time as well. The others cost none.
func (c *crew) releaseStuck() (names []string, released int) {
	now := time.Now()
	var outcomes []Outcome
	var stacks []string
	c.mu.Lock()
	for _, r := range c.runs {
		if r.done {
			continue
		}
		_, why := r.ignores(now)
		o := Outcome{
			Task: r.task.ID, ClaimSeq: r.task.ClaimSeq, Worker: r.task.Worker, State: Pending, Uncounted: true, Code: CodeShutdown,
			Error: "what follows from it could not be stored",
		}
		if !r.owes {
			if stacks == nil {
				stacks = allStacks()
			}
			stack := r.stack(stacks)
			names = append(names, r.String())
			c.log.Error(errIgnored.Error(), "task", r.task.ID, "actor", r.task.Actor, "stack", stack)
			ignored := fmt.Errorf("%w\n\n%s", errIgnored, stack)
			o.Error = errorText(ignored)
			if errors.Is(why, errTimeout) || errors.Is(why, errCancelled) {
				o = outcome(&r.task, nil, ignored, why, c.handler(r.task.Actor).retry, rand.Float64())
			}
		}
		o.Log = r.run.notes.end()
		outcomes = append(outcomes, o)
	}
	c.mu.Unlock()
	c.release(outcomes)
	slices.Sort(names)
	return names, len(outcomes)
}

// allStacks returns the stacks of all goroutines.
func allStacks() []string {
	const most = 64 << 20
	for size := 1 << 20; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size || size >= most {
			return strings.Split(string(buf[:n]), "\n\n")
		}
	}
}

// stack returns the one of the goroutine that runs the handler, known by the task that call was given; "" if it is not to be found.
func (r *running) stack(all []string) string {
	task := fmt.Sprintf("%p", &r.task)
	for _, stack := range all {
		for line := range strings.Lines(stack) {
			if strings.Contains(line, ".(*crew).call(") && strings.Contains(line, task) {
				return strings.TrimSpace(stack)
			}
		}
	}
	return ""
}
