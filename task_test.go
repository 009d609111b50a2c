package opscore

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestTheEndOfAnAttemptMeans(t *testing.T) {
	boom := errors.New("boom")
	panicked := panicError{"ouch", []byte("stack")}
	for _, tc := range []struct {
		when      string
		result    string
		err       error
		cause     error
		attempt   int // of 3; 0 means 1
		state     State
		code      Code
		delay     time.Duration
		uncounted bool
		text      string
	}{
		{when: "a result completes", result: `"x"`, state: Completed},
		{when: "a result after the timeout still completes", result: `"x"`, cause: errTimeout, state: Completed},
		{when: "a result after a cancellation still completes", result: `"x"`, cause: errCancelled, state: Completed},
		{when: "an error retries after the backoff", err: boom, state: Pending, code: CodeError, delay: time.Second, text: "boom"},
		{when: "a second error waits longer", err: boom, attempt: 2, state: Pending, code: CodeError, delay: 2 * time.Second, text: "boom"},
		{when: "the last error fails", err: boom, attempt: 3, state: Failed, code: CodeError, text: "boom"},
		{when: "an attempt over the limit fails too", err: boom, attempt: 4, state: Failed, code: CodeError, text: "boom"},
		{when: "abort fails at once", err: fmt.Errorf("wrapped: %w", Abort(boom)), state: Failed, code: CodeAborted, text: "wrapped: boom"},
		{when: "abort without an error fails too", err: Abort(nil), state: Failed, code: CodeAborted, text: "aborted"},
		{when: "abort wins over a shutdown", err: Abort(boom), cause: errShutdown, state: Failed, code: CodeAborted, text: "boom"},
		{when: "snooze waits and costs nothing", err: Snooze(time.Minute), attempt: 3, state: Pending, code: CodeSnoozed, delay: time.Minute, uncounted: true},
		{when: "a negative snooze is no wait", err: Snooze(-time.Minute), state: Pending, code: CodeSnoozed, uncounted: true},
		{when: "snooze at shutdown keeps its wait", err: Snooze(time.Minute), cause: errShutdown, state: Pending, code: CodeSnoozed, delay: time.Minute, uncounted: true},
		{when: "retry after waits as asked", err: RetryAfter(time.Hour, boom), state: Pending, code: CodeError, delay: time.Hour, text: "boom"},
		{when: "retry after on the last attempt fails", err: RetryAfter(time.Hour, boom), attempt: 3, state: Failed, code: CodeError, text: "boom"},
		{when: "a panic is a failed attempt", err: panicked, state: Pending, code: CodePanic, delay: time.Second, text: "panic: ouch\n\nstack"},
		{when: "a panic at shutdown counts", err: panicked, cause: errShutdown, state: Pending, code: CodePanic, delay: time.Second, text: "panic: ouch\n\nstack"},
		{when: "a timeout is a failed attempt", err: boom, cause: errTimeout, state: Pending, code: CodeTimeout, delay: time.Second, text: "timeout after 1m0s: boom"},
		{when: "the last timeout fails", err: boom, cause: errTimeout, attempt: 3, state: Failed, code: CodeTimeout, text: "timeout after 1m0s: boom"},
		{when: "a cancelled handler is cancelled", err: boom, cause: errCancelled, state: Cancelled, code: CodeCancelled, text: "boom"},
		{when: "a handler stopped by a shutdown is handed back", err: boom, cause: errShutdown, attempt: 3, state: Pending, code: CodeShutdown, uncounted: true, text: "boom"},
		{when: "a handler stopped by the loss of its lease is lost", err: boom, cause: ErrLeaseLost, attempt: 3, state: Pending, code: CodeLost, delay: time.Second, uncounted: true, text: "boom"},
		{when: "abort wins over the loss of a lease", err: Abort(boom), cause: ErrLeaseLost, state: Failed, code: CodeAborted, text: "boom"},
		{when: "args that do not fit are another worker's", err: argsError{boom}, attempt: 3, state: Pending, code: CodeArgsIncompatible, delay: 2 * time.Second, uncounted: true, text: "boom"},
		{when: "a result that cannot be stored fails", err: &resultError{"too big"}, state: Failed, code: CodeResultInvalid, text: "too big"},
	} {
		t.Run(tc.when, func(t *testing.T) {
			task := Task{ClaimSeq: 1, Attempt: max(tc.attempt, 1), MaxAttempts: 3, Timeout: Duration(time.Minute)}
			o := outcome(&task, []byte(tc.result), tc.err, tc.cause, Backoff{}, 0.5)
			if o.State != tc.state || o.Code != tc.code || o.Delay != tc.delay || o.Uncounted != tc.uncounted || o.Error != tc.text ||
				string(o.Result) != tc.result {
				t.Errorf("outcome = %+v", o)
			}
			if o.ClaimSeq != task.ClaimSeq || o.Task != task.ID {
				t.Errorf("the fence is missing: %+v", o)
			}
		})
	}
}

func TestBackoffDoublesUpToItsLimitWithinItsJitter(t *testing.T) {
	var b Backoff
	for attempts, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 12: 2048 * time.Second, 13: time.Hour, 10_000: time.Hour} {
		if got := b.Delay(attempts, 0.5); got != want {
			t.Errorf("delay after %d attempts = %s, want %s", attempts, got, want)
		}
	}
	if low, high := b.Delay(1, 0), b.Delay(1, 0.999999); low != 800*time.Millisecond || high < 1199*time.Millisecond || high > 1200*time.Millisecond {
		t.Errorf("jitter reaches from %s to %s, want 0.8 s to 1.2 s", low, high)
	}
	if got := b.Delay(100, 0.999999); got > time.Hour {
		t.Errorf("jitter exceeds the limit: %s", got)
	}
	if got := (Backoff{Base: time.Hour, Max: Forever}).Delay(100, 0.9); got != Forever {
		t.Errorf("delay without a limit = %s", got)
	}
	if (Backoff{Factor: math.NaN()}).validate() == nil || (Backoff{Jitter: math.NaN()}).validate() == nil {
		t.Error("a backoff that is not a number is accepted")
	}
	own := Backoff{Base: time.Minute, Factor: 3, Max: 5 * time.Minute}
	if got := own.Delay(2, 0.5); got != 3*time.Minute {
		t.Errorf("own backoff = %s", got)
	}
}

func TestStoredErrorsAreValidAndBounded(t *testing.T) {
	if got := errorText(errors.New("a\xffb")); got != "a\uFFFDb" {
		t.Errorf("error text = %q", got)
	}
	long := errorText(errors.New(strings.Repeat("é", maxErrorBytes)))
	if len(long) > maxErrorBytes || !utf8.ValidString(long) {
		t.Errorf("long error: %d bytes, valid %v", len(long), utf8.ValidString(long))
	}
	if stack := errorText(panicError{"x", make([]byte, 2*maxStackBytes)}); len(stack) > maxStackBytes || len(stack) < maxErrorBytes {
		t.Errorf("stack: %d bytes", len(stack))
	}
}

func TestRetentionFallsBackFromQueueToDefaultToBuiltIn(t *testing.T) {
	r := Retention{Default: Keep{Failed: time.Hour}, Queues: map[string]Keep{"q": {Completed: time.Minute}}}
	for _, tc := range []struct {
		queue string
		state State
		want  time.Duration
	}{
		{"q", Completed, time.Minute},
		{"q", Failed, time.Hour},
		{"q", Cancelled, Forever},
		{"", Completed, 7 * 24 * time.Hour},
		{"", Failed, time.Hour},
	} {
		if got := r.For(tc.queue, tc.state); got != tc.want {
			t.Errorf("For(%q, %s) = %s, want %s", tc.queue, tc.state, got, tc.want)
		}
	}
}

func TestWarningsSayWhyATaskWouldNotStart(t *testing.T) {
	live := func(queues, actors []string) WorkerInfo {
		return WorkerInfo{Live: true, Queues: queues, Actors: actors}
	}
	for _, tc := range []struct {
		name    string
		workers []WorkerInfo
		paused  []Pause
		codes   []string
		says    string
	}{
		{name: "nobody", codes: []string{CauseNoWorker}, says: "no live worker"},
		{name: "only a dead one", workers: []WorkerInfo{{Queues: []string{"q"}, Actors: []string{"a"}}}, codes: []string{CauseNoWorker}},
		{name: "one that fits", workers: []WorkerInfo{live([]string{"x", "q"}, []string{"b", "a"})}},
		{name: "wrong queue", workers: []WorkerInfo{live([]string{"x"}, []string{"a"})}, codes: []string{CauseQueueNotListened}, says: "listen to x"},
		{name: "wrong actor", workers: []WorkerInfo{live([]string{"q"}, []string{"b"})}, codes: []string{CauseActorUnknown}, says: "knows actor a"},
		{
			name:    "queue and actor in different workers",
			workers: []WorkerInfo{live([]string{"q"}, []string{"b"}), live([]string{"x"}, []string{"a"})}, codes: []string{CauseQueueNotListened}, says: "those that know it listen to x",
		},
		{name: "paused", workers: []WorkerInfo{live([]string{"q"}, []string{"a"})}, paused: []Pause{{Queue: "q", By: "ann"}}, codes: []string{CauseQueuePaused}, says: "by ann"},
		{name: "paused and nobody", paused: []Pause{{Queue: "q"}}, codes: []string{CauseQueuePaused, CauseNoWorker}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := submitWarnings("q", "a", tc.workers, tc.paused)
			var codes []string
			var text string
			for _, c := range got {
				codes = append(codes, c.Code)
				text += c.Text
				if len(c.Remedy) == 0 {
					t.Errorf("no remedy: %+v", c)
				}
			}
			if fmt.Sprint(codes) != fmt.Sprint(tc.codes) || !strings.Contains(text, tc.says) {
				t.Errorf("warnings = %+v", got)
			}
		})
	}
}

func TestADeadlinePassesByEitherClock(t *testing.T) {
	now := time.Now()
	soon, past := now.Add(time.Hour), now.Add(-time.Second)
	for _, tc := range []struct {
		name   string
		d      deadline
		passed bool
	}{
		{"neither", deadlineAt(soon), false},
		{"both", deadlineAt(past), true},
		{"the machine was suspended", deadline{soon, past.Round(0)}, true},
		{"the wall clock was set back", deadline{past, soon.Round(0)}, true},
	} {
		if got := tc.d.passed(now); got != tc.passed {
			t.Errorf("%s: passed = %v", tc.name, got)
		}
	}
}
