package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/rabbitmq"
)

// How much the log may lag behind, and when it counts as stuck.
const (
	maxQueued  = 4 << 20 // bytes that wait to be written; more is dropped
	perLine    = 64      // bytes that a line takes besides its own
	stuckAfter = time.Second
	flushFor   = time.Second // at the end
	lookAgain  = time.Second // between two looks at what the name of the log file stands for
)

// logSettings are those of the table of settings.
func logSettings() []setting {
	return []setting{
		{
			key: "log_format", env: "OPSCORE_LOG_FORMAT", def: "text",
			usage: "log of workers as `text|json` (default text)",
			parse: func(c *config, raw []string) error {
				if c.logFormat = raw[0]; c.logFormat != "text" && c.logFormat != "json" {
					return fmt.Errorf("accepted: text, json%s", didYouMean(c.logFormat, []string{"text", "json"}))
				}
				return nil
			},
		},
		{
			key: "log_file", env: "OPSCORE_LOG_FILE",
			usage: "append the log of workers to `FILE`, and follow its name when it is rotated (default: stderr)",
			parse: func(c *config, raw []string) (err error) {
				if raw[0] == "" {
					return errors.New("it is empty; give a file path")
				}
				c.logFile, err = atHome(raw[0])
				return err
			},
		},
		{
			key: "verbose", env: "OPSCORE_VERBOSE", def: "false", toggle: true, short: "v",
			usage: "log details as well",
			parse: func(c *config, raw []string) (err error) {
				c.verbose, err = parseToggle(raw[0])
				return err
			},
		},
	}
}

// lineWriter passes lines on without ever making its writers wait: a full terminal, pipe or disk must not stop work. What it
// cannot pass on it drops, counts, and says so in the log once that flows again, in the place of what is missing.
type lineWriter struct {
	to  io.Writer
	own slog.Handler // what it says itself

	mu     sync.Mutex
	queue  []queuedLine
	queued int       // bytes, with those of the line that is being written
	after  int64     // lines dropped behind the last one of the queue
	began  time.Time // of the write under way
	total  int64     // lines dropped, ever
	why    error     // a write failed, and that the log could not tell yet

	// Of the goroutine that writes:
	missed int64 // lines dropped that the log does not tell yet
	torn   bool  // the last write left a line without its end

	more    chan struct{} // holds one if there may be something in the queue
	stop    chan struct{}
	stopped chan struct{}
}

type queuedLine struct {
	text   []byte
	before int64 // lines dropped between the last one and this one
}

func newLineWriter(to io.Writer, format string) *lineWriter {
	w := &lineWriter{to: to, more: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{})}
	w.own = newLogger(writerFunc(w.put), format, false).Handler()
	go w.pass()
	return w
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// Write takes one line, or counts it as dropped.
func (w *lineWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queued+len(line)+perLine > maxQueued {
		w.after++
		w.total++
		return len(line), nil
	}
	w.queue = append(w.queue, queuedLine{bytes.Clone(line), w.after})
	w.queued += len(line) + perLine
	w.after = 0
	select {
	case w.more <- struct{}{}:
	default:
	}
	return len(line), nil
}

// dropped returns how many lines were dropped so far.
func (w *lineWriter) dropped() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.total
}

// stalled returns for how long a write has been stuck; 0 if none is.
func (w *lineWriter) stalled() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.began.IsZero() || time.Since(w.began) <= stuckAfter {
		return 0
	}
	return time.Since(w.began)
}

// failing returns why lines cannot be written at all; nil if they can.
func (w *lineWriter) failing() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.why
}

func (w *lineWriter) fails(why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.why = why
}

// tell completes what the worker says of itself.
func (w *lineWriter) tell(r *opscore.Report) {
	r.LogDropped = w.dropped()
	check := opscore.Check{Name: opscore.CheckLog, State: opscore.CheckOK}
	if stuck := w.stalled(); stuck > 0 {
		check.State, check.Since = opscore.CheckDegraded, time.Now().Add(-stuck).UTC()
		check.Text = "nobody reads it: the line that is being written waits; work goes on, and lines are dropped once too many wait"
	}
	if why := w.failing(); why != nil {
		check.State, check.Text = opscore.CheckDegraded, "it cannot be written: "+why.Error()+"; work goes on, and lines are dropped"
	}
	r.Add(check)
	for _, f := range []*os.File{os.Stdout, os.Stderr} {
		if pipeFull(f) {
			text := filepath.Base(f.Name()) + " is full: its reader does not read"
			r.Add(opscore.Check{Name: opscore.CheckLog, State: opscore.CheckDegraded, Text: text})
		}
	}
}

func (w *lineWriter) pass() {
	defer close(w.stopped)
	for stopping := false; ; {
		lines, after := w.take()
		for _, l := range lines {
			w.write(l)
		}
		w.missed += after
		w.report()
		switch {
		case len(lines) > 0:
			continue
		case stopping:
			return
		}
		select {
		case <-w.more:
		case <-w.stop:
			stopping = true
		}
	}
}

// take empties the queue, and returns how many lines were dropped behind what was in it.
func (w *lineWriter) take() (lines []queuedLine, after int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines, after = w.queue, w.after
	w.queue, w.after = nil, 0
	return lines, after
}

func (w *lineWriter) write(l queuedLine) {
	w.missed += l.before
	w.report()
	_, err := w.put(l.text)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queued -= len(l.text) + perLine
	if err != nil {
		w.missed++
		w.total++
	}
}

// report says what is missing. It fails where the log fails, and is tried again.
func (w *lineWriter) report() {
	if w.missed == 0 {
		return
	}
	r := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines were dropped", 0)
	r.AddAttrs(slog.Int64("lines", w.missed), slog.Int64("since_the_start", w.dropped()))
	if why := w.failing(); why != nil {
		r.AddAttrs(slog.Any("error", why))
	} else {
		r.AddAttrs(slog.String("why", "they were not read fast enough"))
	}
	if w.own.Handle(context.Background(), r) == nil {
		w.missed = 0
		w.fails(nil)
	}
}

// put writes one line, on a line of its own: one that broke off before does not spoil it.
func (w *lineWriter) put(line []byte) (int, error) {
	if w.torn {
		line = append([]byte{'\n'}, line...)
	}
	w.underWay(time.Now())
	n, err := w.to.Write(line)
	w.underWay(time.Time{})
	if err != nil {
		w.fails(err)
	}
	if n > 0 {
		w.torn = line[n-1] != '\n'
	}
	return n, err
}

func (w *lineWriter) underWay(began time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.began = began
}

// close waits a moment for what is written already.
func (w *lineWriter) close() {
	close(w.stop)
	timer := time.NewTimer(flushFor)
	defer timer.Stop()
	select {
	case <-w.stopped:
	case <-timer.C:
	}
}

// logFile appends to the file of a name, whichever that is: logrotate renames it, or removes it, and tells nobody.
type logFile struct {
	path   string
	file   *os.File
	looked time.Time // when we saw what the name stands for
	lost   error     // why there is no file that others could find
}

// openLogFile fails if nothing can be written at the start. Later it goes on trying.
func openLogFile(path string) (*logFile, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	l := &logFile{path: path, looked: time.Now()}
	return l, l.open()
}

// open also has the text of a crash go there. The runtime writes that to stderr as well, and to nothing else.
func (l *logFile) open() error {
	const noWait = syscall.O_NONBLOCK // for a reader of a named pipe: there must be one
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|noWait, 0o600)
	if err != nil {
		return err
	}
	if l.file != nil {
		_ = l.file.Close() // each write has told its own error
	}
	l.file, l.lost = f, nil
	return debug.SetCrashOutput(f, debug.CrashOptions{})
}

// Write fails if the line would be in no file.
func (l *logFile) Write(line []byte) (int, error) {
	if time.Since(l.looked) >= lookAgain {
		l.looked = time.Now()
		l.follow()
	}
	if l.lost != nil {
		return 0, l.lost
	}
	return l.file.Write(line)
}

// follow opens what the name stands for now. As long as it cannot, the file that had the name is better than nothing, if it
// has another one.
func (l *logFile) follow() {
	ours, err := l.file.Stat()
	if err != nil {
		l.lost = err
		return
	}
	named, err := os.Stat(l.path)
	if err == nil && os.SameFile(ours, named) {
		l.lost = nil
		return
	}
	if err := l.open(); err != nil && nameless(ours) {
		l.lost = err
	}
}

// nameless reports whether a file was removed while it was open.
func nameless(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Nlink == 0
}

// openLog opens the log of a worker and makes it that of the process: what a library has to say must not block either.
func (a *app) openLog(conf *config) (*slog.Logger, *lineWriter, error) {
	to := a.stderr
	if conf.logFile != "" {
		f, err := openLogFile(conf.logFile)
		if err != nil {
			return nil, nil, usagef("log_file (%s): %s", conf.origin("log_file"), err)
		}
		to = f
	}
	out := newLineWriter(to, conf.logFormat)
	log := newLogger(out, conf.logFormat, conf.verbose)
	slog.SetDefault(log)
	return log, out, nil
}

// announce says what the worker works with, and what has no effect.
func (c *config) announce(log *slog.Logger) {
	if c.logFile != "" {
		for _, w := range c.warnings { // stderr has them already
			log.Warn(w)
		}
	}
	for _, r := range c.remarks {
		log.Info(r)
	}
	place, _, err := c.place()
	if err != nil {
		return // which opening it says
	}
	attrs := []any{"database", place.String(), "database_from", c.origin("database"), "broker", "none: workers look for tasks themselves"}
	if c.broker != "" {
		attrs = append(attrs[:5], rabbitmq.Redacted(c.broker), "broker_from", c.origin("broker"))
	}
	if c.file != "" {
		attrs = append(attrs, "config", c.file)
	}
	log.Info("worker starts", attrs...)
}

// logEnd leaves why the worker failed where its log is; stderr has it anyway.
func (c *config) logEnd(log *slog.Logger, err error) {
	if err != nil && c.logFile != "" {
		log.Error("worker failed", "error", redact(err.Error()))
	}
}

func newLogger(to io.Writer, format string, verbose bool) *slog.Logger {
	o := &slog.HandlerOptions{}
	if verbose {
		o.Level = slog.LevelDebug
	}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(to, o))
	}
	return slog.New(slog.NewTextHandler(to, o))
}

// mirror shows the log of a task to whoever runs it in the foreground: only the message, made safe for a terminal.
type mirror struct {
	to    io.Writer
	clear bool // what a progress bar has drawn
}

// Enabled implements [slog.Handler].
func (m mirror) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements [slog.Handler].
func (m mirror) Handle(_ context.Context, r slog.Record) error {
	line := safe(r.Message) + "\n"
	if m.clear {
		line = clearLine + line
	}
	_, err := m.to.Write([]byte(line))
	return err
}

// WithAttrs implements [slog.Handler].
func (m mirror) WithAttrs([]slog.Attr) slog.Handler { return m }

// WithGroup implements [slog.Handler].
func (m mirror) WithGroup(string) slog.Handler { return m }

// trouble passes on what a run in the foreground has to tell of its worker: that the store fails, not how the
// attempts end, which it tells itself.
type trouble struct {
	slog.Handler
	least slog.Level
}

// Enabled implements [slog.Handler].
func (t trouble) Enabled(_ context.Context, l slog.Level) bool { return l >= t.least }

// Handle implements [slog.Handler].
func (t trouble) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "attempt ended" {
		return nil
	}
	return t.Handler.Handle(ctx, r)
}
