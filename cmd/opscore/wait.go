package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/opscore/opscore"
)

// await waits for the end of a task, shows how far it is, and prints its result. It fails unless the task completed.
func (s *session) await(ctx context.Context, id opscore.ID) error {
	t, err := s.watch(ctx, id)
	if interrupted, ok := errors.AsType[interruptedError](err); ok {
		return interruptedError{fmt.Sprintf("%s; task %s goes on: opscore task wait%s %s", interrupted.text, id, s.again(), id)}
	}
	if err != nil {
		return s.notFound(id, err)
	}
	return s.conclude(t)
}

// conclude prints what became of a task.
func (s *session) conclude(t opscore.Task) error {
	var failed error
	if t.State != opscore.Completed {
		failed = failure(t)
	}
	switch {
	case s.json:
		return errors.Join(s.printJSON(t), failed)
	case failed != nil:
		return failed
	}
	return s.print(strings.TrimSpace(string(safeJSON(t.Result))) + "\n")
}

// failure says in one line why a task did not complete.
func failure(t opscore.Task) error {
	text := fmt.Sprintf("task %s %s", t.ID, t.State)
	switch {
	case t.State == opscore.Cancelled && t.CancelledBy != "":
		text += " by " + t.CancelledBy
	case t.State == opscore.Failed:
		text += fmt.Sprintf(" (%s) after %s", t.Code, plural(t.Attempt, "attempt"))
	}
	if line := firstLine(t.Error); line != "" && t.State == opscore.Failed {
		text += ": " + line
	}
	return errors.New(text)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// watch returns the task once it is over. Meanwhile it tells of each attempt that did not end it, and why it does not start, and draws the
// progress if there is a terminal.
func (s *session) watch(ctx context.Context, id opscore.ID) (opscore.Task, error) {
	bar := s.progressBar()
	defer bar.clear()
	retries, late := retryTeller{s, bar, -1}, s.lateTeller(bar)
	defer late.done()
	for delay := 2 * time.Millisecond; ; delay = min(delay*3/2, 100*time.Millisecond) {
		t, err := s.client.Get(ctx, id)
		if err != nil && ctx.Err() != nil { // that is why
			return t, context.Cause(ctx)
		}
		if err != nil || t.State.Terminal() {
			return t, err
		}
		retries.tell(t)
		late.tell(ctx, t)
		bar.draw(t)
		select {
		case <-ctx.Done():
			return t, context.Cause(ctx)
		case <-time.After(delay):
		}
	}
}

// retryTeller says of each attempt that did not end its task why, once.
type retryTeller struct {
	*session
	bar  progressBar
	told int64 // the claim number that was told last
}

func (r *retryTeller) tell(t opscore.Task) {
	if t.State == opscore.Pending && t.ClaimSeq > r.told && t.Code != "" {
		r.told = t.ClaimSeq
		r.bar.clear()
		r.say("%s", retryLine(t))
	}
}

// progressBar is one line at the end of a terminal that is drawn again and again.
type progressBar struct {
	to    io.Writer
	width int // 0 if there is no terminal
}

const clearLine = "\r\x1b[K"

func (a *app) progressBar() progressBar { return progressBar{a.stderr, terminalWidth(a.stderr)} }

func (b progressBar) draw(t opscore.Task) {
	if b.width > 0 {
		fmt.Fprint(b.to, clearLine+progressLine(t, b.width))
	}
}

func (b progressBar) clear() {
	if b.width > 0 {
		fmt.Fprint(b.to, clearLine)
	}
}

// terminalWidth returns the columns of the terminal that w is, or 0 if it is none.
func terminalWidth(w any) int {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" {
		return 0
	}
	if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
		return width
	}
	return 80
}

// progressLine draws where a task stands, in at most width columns.
func progressLine(t opscore.Task, width int) string {
	var line string
	switch {
	case t.State == opscore.Running:
		const cells = 20
		done := int(t.Progress * cells)
		line = fmt.Sprintf("[%s%s] %3.0f%%  %s", strings.Repeat("#", done), strings.Repeat(".", cells-done), 100*t.Progress, t.ProgressText)
		if t.Attempt > 1 {
			line += fmt.Sprintf("  (attempt %d of %s)", t.Attempt, atMost(t.MaxAttempts))
		}
	case t.Attempt > 0:
		line = fmt.Sprintf("waiting for attempt %d of %d, %s: %s", t.Attempt+1, t.MaxAttempts, age(t.RunAt), firstLine(t.Error))
	case time.Until(t.RunAt) > 0:
		line = "waiting, starts " + age(t.RunAt)
	default:
		line = "waiting in queue " + t.Queue
	}
	runes := []rune(safe(line))
	return string(runes[:min(len(runes), max(width-1, 0))])
}
