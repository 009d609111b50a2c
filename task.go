package opscore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// ID identifies a task or a worker: a UUID, of version 7 where opscore makes it, so that ids sort by age.
type ID = uuid.UUID

// State is where a task stands in its life. docs/states.md shows who moves a task between them.
type State string

// The five states. Scheduled, retrying and waiting are views of [Pending].
const (
	Pending   State = "pending"   // waits for its time, its queue or a worker
	Running   State = "running"   // a worker owns it
	Completed State = "completed" // its handler returned a result
	Failed    State = "failed"    // it will not run again by itself; Code says why
	Cancelled State = "cancelled" // somebody cancelled it
)

// States lists every state, in the order of a task's life.
func States() []State { return []State{Pending, Running, Completed, Failed, Cancelled} }

// Terminal reports whether a task in this state is over.
func (s State) Terminal() bool { return s == Completed || s == Failed || s == Cancelled }

// The codes a task's or an attempt's Code can hold besides those of [Error].
const (
	CodeError            Code = "error"             // the handler returned an error
	CodeAborted          Code = "aborted"           // the handler returned Abort
	CodePanic            Code = "panic"             // the handler panicked; the error holds the stack
	CodeTimeout          Code = "timeout"           // the attempt exceeded its timeout
	CodeCancelled        Code = "cancelled"         // somebody cancelled the task
	CodeExpired          Code = "expired"           // it was not started before ExpiresAt
	CodePoison           Code = "poison"            // its worker died with it too often, the last time with nothing beside it
	CodeLost             Code = "lost"              // its worker died or lost its lease
	CodeSnoozed          Code = "snoozed"           // the handler returned Snooze
	CodeShutdown         Code = "shutdown"          // its worker shut down and handed it back
	CodeArgsIncompatible Code = "args_incompatible" // the worker's In cannot hold the args
	CodeLostInWorker     Code = "lost_in_worker"    // its worker is alive but does not know of it
	CodeResultInvalid    Code = "result_invalid"    // the handler's result cannot be stored
	CodeRetried          Code = "retried"           // an operator put it back
	CodeReplayed         Code = "replayed"          // its outcome was recorded again after the database had lost it; as for orphans see there
)

// Task is one durable request to run an actor once to an outcome.
type Task struct {
	ID          ID                `json:"id"`
	Actor       string            `json:"actor"`
	Queue       string            `json:"queue"`
	State       State             `json:"state"`
	Priority    int               `json:"priority"`
	Args        json.RawMessage   `json:"args,omitempty"`
	Result      json.RawMessage   `json:"result,omitempty"`
	Code        Code              `json:"code,omitempty"`  // why it failed, or why its last attempt did not complete it
	Error       string            `json:"error,omitempty"` // the last error
	CreatedAt   time.Time         `json:"created_at"`
	RunAt       time.Time         `json:"run_at"`               // not started before this
	ExpiresAt   time.Time         `json:"expires_at,omitzero"`  // not started from this on
	StartedAt   time.Time         `json:"started_at,omitzero"`  // start of the latest attempt
	FinishedAt  time.Time         `json:"finished_at,omitzero"` // when it reached a terminal state
	Attempt     int               `json:"attempt"`              // attempts made, the running one included; lost and handed back ones do not count
	MaxAttempts int               `json:"max_attempts"`
	Lost        int               `json:"lost,omitempty"`  // how often its worker died with it, since it last came to an end alone
	Alone       bool              `json:"alone,omitempty"` // it is running and has its worker to itself
	Timeout     Duration          `json:"timeout"`         // limit of one attempt
	ClaimSeq    int64             `json:"claim_seq"`       // bumped by every claim and every revoke: the fence
	Worker      ID                `json:"worker,omitzero"`
	UniqueKey   string            `json:"unique_key,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`

	CancelRequestedAt time.Time `json:"cancel_requested_at,omitzero"`
	CancelledBy       string    `json:"cancelled_by,omitempty"`
	Progress          float64   `json:"progress,omitempty"` // 0 to 1, as its handler reported it
	ProgressText      string    `json:"progress_text,omitempty"`

	// Of a task that was adopted, see [Adoption]:
	Retry  Backoff         `json:"retry,omitzero"` // the wait before its retries; zero means its actor's
	Origin json.RawMessage `json:"origin,omitempty"`

	Arrival Arrival `json:"-"` // of a canary that was claimed by ticket
}

// Duration is a [time.Duration] that reads and writes as Go writes it: "1m30s".
type Duration time.Duration

// String formats d as Go does.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText formats d as Go does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what [time.ParseDuration] reads.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// Attempt is one row of a task's history: an attempt that ended otherwise than by completing its task,
// or the row's own current or completing attempt, which [Client.Attempts] adds.
type Attempt struct {
	Task      ID        `json:"task"`
	ClaimSeq  int64     `json:"claim_seq"`
	Worker    ID        `json:"worker,omitzero"`
	Build     string    `json:"build,omitempty"`
	StartedAt time.Time `json:"started_at,omitzero"`
	EndedAt   time.Time `json:"ended_at,omitzero"`
	Code      Code      `json:"code,omitempty"` // why it ended; "" for the running one, "completed" for the completing one
	Error     string    `json:"error,omitempty"`
	Late      bool      `json:"late,omitempty"` // reported after the claim was revoked: never the task's result
}

// LogLine is one line that a handler wrote through [Run].Log.
type LogLine struct {
	Task     ID        `json:"task"`
	ClaimSeq int64     `json:"claim_seq"`
	At       time.Time `json:"at"`
	Level    string    `json:"level"`
	Text     string    `json:"text"`
}

// Outcome is what the end of one attempt means for its task. A store records it only while the task is
// running under the same claim number and worker.
type Outcome struct {
	Task     ID
	ClaimSeq int64
	Worker   ID

	// State is the task's next state. A task whose cancellation was requested becomes Cancelled
	// wherever State is not Completed.
	State State
	// Delay is how long a task that becomes Pending waits, from the moment of recording.
	Delay time.Duration
	// Uncounted takes the attempt back: it was not the handler's failure.
	Uncounted bool
	// Unstarted says that no handler ran, so that the history gets no row.
	Unstarted bool
	Code      Code
	Error     string
	Result    []byte
	Log       []LogLine
}

// Limits of what is kept of an attempt's error.
const (
	maxErrorBytes = 16 << 10
	maxStackBytes = 64 << 10
)

// outcome decides what the end of an attempt means: pure, so that every rule is one line of a table test.
// cause is why the handler's context ended, nil if it did not; random is in [0,1).
func outcome(t *Task, result []byte, err, cause error, retry Backoff, random float64) Outcome {
	o := Outcome{Task: t.ID, ClaimSeq: t.ClaimSeq, Worker: t.Worker, State: Pending}
	var (
		abort  abortError
		snooze snoozeError
		after  retryError
		args   argsError
		panicd panicError
		stored *resultError
	)
	switch {
	case err == nil:
		o.State, o.Result = Completed, result
		return o
	case errors.As(err, &args):
		o.Code, o.Error = CodeArgsIncompatible, errorText(err)
		o.Uncounted, o.Unstarted = true, true
		o.Delay = incompatibleDelay(t.ClaimSeq)
		return o
	case errors.As(err, &snooze):
		o.Code, o.Uncounted, o.Delay = CodeSnoozed, true, snooze.delay
		return o
	case errors.Is(cause, errCancelled):
		o.State, o.Code, o.Error = Cancelled, CodeCancelled, errorText(err)
		return o
	case errors.Is(cause, errShutdown) && !errors.As(err, &abort) && !errors.As(err, &panicd):
		o.Code, o.Error, o.Uncounted = CodeShutdown, errorText(err), true
		return o
	case errors.Is(cause, ErrLeaseLost) && !errors.As(err, &abort) && !errors.As(err, &panicd):
		// Usually the claim is revoked by now, and this is kept as late. If it is not yet, it is what a rescue would record.
		o.Code, o.Error, o.Uncounted, o.Delay = CodeLost, errorText(err), true, LostDelay(t.Lost+1)
		return o
	}
	o.Code, o.Error = CodeError, errorText(err)
	if t.Retry != (Backoff{}) {
		retry = t.Retry
	}
	o.Delay = retry.Delay(t.Attempt, random)
	final := t.Attempt >= t.MaxAttempts
	switch {
	case errors.As(err, &stored):
		o.Code, final = CodeResultInvalid, true
	case errors.As(err, &abort):
		o.Code, final = CodeAborted, true
	case errors.As(err, &after):
		o.Delay = after.delay
	case errors.As(err, &panicd):
		o.Code = CodePanic
	case errors.Is(cause, errTimeout):
		o.Code = CodeTimeout
		o.Error = errorText(fmt.Errorf("timeout after %s: %w", t.Timeout, err))
	}
	if final {
		o.State, o.Delay = Failed, 0
	}
	return o
}

// Suspect reports whether the next loss of the task may show that it kills its workers: it runs with nothing beside it then, so that it
// can neither harm others nor be blamed for what another does.
func (t *Task) Suspect() bool { return t.Lost >= MaxLost-1 }

// LostOutcome is what the death of its worker, of which the register says what is known, means for a running task: pending again after
// a backoff, or poison if it was alone and has been lost too often. It is the keeper's to record, in the worker's stead.
func LostOutcome(t Task, worker WorkerInfo) Outcome {
	o := Outcome{
		Task: t.ID, ClaimSeq: t.ClaimSeq, Worker: t.Worker, State: Pending, Delay: LostDelay(t.Lost + 1), Uncounted: true, Code: CodeLost,
	}
	how := "its worker died or lost its lease"
	switch {
	case t.Alone && t.Lost+1 >= MaxLost:
		o.State, o.Code = Failed, CodePoison
		how = fmt.Sprintf("it was lost %d times with its worker, the last time while it ran alone", t.Lost+1)
	case t.Suspect():
		how += " while the task waited to run alone"
	}
	o.Error = clip(fmt.Sprintf("%s: worker %s on %s, process %d: %s",
		how, t.Worker, cmp.Or(worker.Host, "an unknown host"), worker.PID, cmp.Or(worker.Cause, "why is not known")), maxErrorBytes)
	return o
}

// Clears reports whether an attempt that ends so shows that a task does not kill its worker: its handler came to an
// end by itself, and the task goes on. If it was alone, its losses are forgotten.
func (o *Outcome) Clears() bool { return o.State == Pending && (!o.Uncounted || o.Code == CodeSnoozed) }

// LostDelay is how long a task waits after it was lost for the nth time: 1, 2, 4 … s.
func LostDelay(n int) time.Duration { return time.Second << min(max(n-1, 0), 6) }

// incompatibleDelay grows with the claims a task has had, so that builds which cannot decode it do not
// spin on it: 2, 4, 8 … 60 s.
func incompatibleDelay(claimSeq int64) time.Duration {
	return min(time.Second<<min((claimSeq+1)/2, 6), time.Minute) // a claim and its release are two
}

// errorText makes an error fit to be stored: valid UTF-8 and bounded.
func errorText(err error) string {
	limit := maxErrorBytes
	if p := (panicError{}); errors.As(err, &p) {
		limit = maxStackBytes
	}
	return clip(err.Error(), limit)
}

// clip makes s valid UTF-8 of at most limit bytes, cut at a rune.
func clip(s string, limit int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= limit {
		return s
	}
	const mark = " …"
	n := limit - len(mark)
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + mark
}

// resultError says that a handler's result cannot be stored.
type resultError struct{ msg string }

func (e *resultError) Error() string { return e.msg }

// Backoff is the wait before a retry: Base, doubled (Factor) per failed attempt up to Max, spread by Jitter.
// A zero field means its default: base 1 s, factor 2, jitter 0.2 (plus or minus 20 %), max 1 h.
type Backoff struct {
	Base   time.Duration
	Factor float64
	Jitter float64
	Max    time.Duration
}

// Delay returns the wait after the given number of attempts (1 or more); random is in [0,1).
func (b Backoff) Delay(attempts int, random float64) time.Duration {
	base, limit := float64(cmp.Or(b.Base, time.Second)), float64(cmp.Or(b.Max, time.Hour))
	factor, jitter := cmp.Or(b.Factor, 2), cmp.Or(b.Jitter, 0.2)
	d := base
	for i := 1; i < attempts && d < limit; i++ {
		d *= factor
	}
	d = min(d, limit) * (1 + jitter*(2*random-1))
	if d >= limit { // also where the limit as a float is more than a duration can hold
		return cmp.Or(b.Max, time.Hour)
	}
	return time.Duration(d)
}

// backoffJSON is how a Backoff is written: with durations that people read.
type backoffJSON struct {
	Base   Duration `json:"base,omitzero"`
	Factor float64  `json:"factor,omitempty"`
	Jitter float64  `json:"jitter,omitempty"`
	Max    Duration `json:"max,omitzero"`
}

// MarshalJSON writes the fields that are not their defaults.
func (b Backoff) MarshalJSON() ([]byte, error) {
	return json.Marshal(backoffJSON{Duration(b.Base), b.Factor, b.Jitter, Duration(b.Max)})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (b *Backoff) UnmarshalJSON(doc []byte) error {
	var v backoffJSON
	err := json.Unmarshal(doc, &v)
	*b = Backoff{time.Duration(v.Base), v.Factor, v.Jitter, time.Duration(v.Max)}
	return err
}

func (b Backoff) validate() error {
	sound := b.Base >= 0 && b.Max >= 0 && b.Jitter >= 0 && b.Jitter <= 1 && (b.Factor == 0 || b.Factor >= 1) // NaN is not
	if !sound {
		return invalid("retry: base and max must not be negative, factor at least 1, jitter between 0 and 1")
	}
	return nil
}

// contextCause returns why ctx ended in the terms that outcome knows.
func contextCause(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, context.DeadlineExceeded) {
		return errTimeout
	}
	return cause
}
