package opscore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// Bounds of what a run reports while it runs.
const (
	maxLogBytes = 256 << 10 // of log lines per attempt
	noteEvery   = 500 * time.Millisecond
)

// Run is the attempt that a handler is in. Its fields do not change; its methods and Log are safe for
// concurrent use.
type Run struct {
	ID          ID // of the task: the idempotency key for effects outside the store
	Actor       string
	Queue       string
	Attempt     int // 1 for the first
	MaxAttempts int
	ClaimSeq    int64 // with ID and Worker the fence: see docs/life-of-a-task.md
	Worker      ID
	Labels      map[string]string
	Origin      json.RawMessage // of an adopted task: what else its message held, see [Adoption]; nil if it was submitted

	// Log keeps what it is given with the task: up to 256 KiB per attempt, from level Debug up.
	Log *slog.Logger

	maxResult int
	notes     *notes
	claimed   time.Time // when the answer to the claim was there
	arrival   Arrival
}

// Encode encodes a result as the worker would, for stores that complete a task in the handler's transaction.
func (r *Run) Encode(out any) ([]byte, error) {
	result, err := encode(out)
	if err == nil {
		err = checkResult(result, r.maxResult)
	}
	if err != nil {
		return nil, &resultError{fmt.Sprintf("result of actor %s: %s", r.Actor, err)}
	}
	return result, nil
}

func checkResult(result []byte, limit int) error {
	if limit = cmp.Or(limit, DefaultMaxResult); len(result) > limit {
		return fmt.Errorf("%d bytes, the limit is %d", len(result), limit)
	}
	return nil
}

// Progress reports how far the attempt is, from 0 to 1, and what it is doing.
// Values outside are clamped; the latest report wins.
func (r *Run) Progress(fraction float64, text string) {
	if r.notes != nil {
		r.notes.progress(min(max(fraction, 0), 1), clip(text, 200))
	}
}

type runKey struct{}

// FromContext returns the attempt that ctx belongs to. Outside a handler, as in a test that calls one directly, it
// returns a Run without a task, whose Log is the default logger.
func FromContext(ctx context.Context) *Run {
	if r, ok := ctx.Value(runKey{}).(*Run); ok {
		return r
	}
	return &Run{Attempt: 1, MaxAttempts: 1, Log: slog.Default()}
}

// NewContext returns a context as a worker gives it to the handler of t, for those who call a handler themselves, as tests
// do. note gets each log line and each progress at once, before Log or Progress returns.
func NewContext(ctx context.Context, t Task, note func(Note)) context.Context {
	return context.WithValue(ctx, runKey{}, newRun(t, 0, 0, note))
}

func newRun(t Task, maxResult int, every time.Duration, store func(Note)) *Run {
	n := &notes{fence: Note{Task: t.ID, ClaimSeq: t.ClaimSeq, Worker: t.Worker, Progress: -1}, every: every, store: store}
	return &Run{
		ID: t.ID, Actor: t.Actor, Queue: t.Queue, Attempt: t.Attempt, MaxAttempts: t.MaxAttempts,
		ClaimSeq: t.ClaimSeq, Worker: t.Worker, Labels: t.Labels, Origin: t.Origin,
		Log: slog.New(&logHandler{notes: n}), maxResult: maxResult, notes: n, claimed: time.Now(), arrival: t.Arrival,
	}
}

// notes gathers the news of one run and stores it now and then, never in the way of the handler.
type notes struct {
	fence Note
	every time.Duration // news is stored this long after the first of it; 0 is at once
	store func(Note)

	mu     sync.Mutex
	news   *Note
	timer  *time.Timer
	logged int
	ended  bool
}

func (n *notes) progress(fraction float64, text string) {
	n.add(func(news *Note) { news.Progress, news.Text = fraction, text })
}

func (n *notes) line(l LogLine) {
	n.add(func(news *Note) {
		if n.logged > maxLogBytes {
			return
		}
		if n.logged += len(l.Text) + 64; n.logged > maxLogBytes {
			l.Level, l.Text = slog.LevelWarn.String(), "the log of this attempt exceeds 256 KiB: the rest is dropped"
		}
		news.Log = append(news.Log, l)
	})
}

func (n *notes) add(change func(*Note)) {
	n.mu.Lock()
	fresh := n.fence
	switch {
	case n.ended:
	case n.every == 0:
		change(&fresh)
		n.mu.Unlock()
		n.store(fresh)
		return
	case n.news == nil:
		n.news = &fresh
		n.timer = time.AfterFunc(n.every, n.flush)
		fallthrough
	default:
		change(n.news)
	}
	n.mu.Unlock()
}

func (n *notes) flush() {
	n.mu.Lock()
	news := n.news
	n.news = nil
	n.mu.Unlock()
	if news != nil {
		n.store(*news)
	}
}

// end returns the lines that are not stored yet, to be stored with the outcome, and drops later news.
func (n *notes) end() []LogLine {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ended = true
	if n.news == nil {
		return nil
	}
	n.timer.Stop()
	return n.news.Log
}

// logHandler is the [slog.Handler] of a run: message and attributes as one line of text.
type logHandler struct {
	notes *notes
	with  []func(slog.Handler) slog.Handler
}

func (h *logHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h *logHandler) Handle(ctx context.Context, rec slog.Record) error {
	var b bytes.Buffer
	var attrs slog.Handler = slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug - 100, ReplaceAttr: dropBuiltin})
	for _, w := range h.with {
		attrs = w(attrs)
	}
	if err := attrs.Handle(ctx, rec); err != nil {
		return err
	}
	text := clip(strings.TrimSpace(rec.Message+" "+b.String()), maxErrorBytes)
	h.notes.line(LogLine{Task: h.notes.fence.Task, ClaimSeq: h.notes.fence.ClaimSeq, At: rec.Time, Level: rec.Level.String(), Text: text})
	return nil
}

// dropBuiltin leaves only the caller's attributes: time, level and message are fields of the line.
func dropBuiltin(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
		return slog.Attr{}
	}
	return a
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.and(func(to slog.Handler) slog.Handler { return to.WithAttrs(attrs) })
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	return h.and(func(to slog.Handler) slog.Handler { return to.WithGroup(name) })
}

func (h *logHandler) and(w func(slog.Handler) slog.Handler) slog.Handler {
	return &logHandler{notes: h.notes, with: append(slices.Clone(h.with), w)}
}
