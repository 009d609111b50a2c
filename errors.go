package opscore

import (
	"errors"
	"fmt"
	"time"
)

// Code is the machine-readable kind of an [Error]: what a program branches on.
type Code string

// The codes an [Error] carries. Causes recorded on tasks use them as well, so they never change their meaning.
const (
	CodeInvalid        Code = "invalid"   // the input is wrong; nothing was stored
	CodeTooLarge       Code = "too_large" // args or a result exceed their limit; nothing was stored
	CodeTaskNotFound   Code = "task_not_found"
	CodeOrphanNotFound Code = "orphan_not_found"
	CodeConflict       Code = "conflict"      // the state of the task does not allow it
	CodeLeaseLost      Code = "lease_lost"    // another claim owns the task now
	CodeHandlerStuck   Code = "handler_stuck" // a handler ignored its cancelled context
	CodeUnavailable    Code = "unavailable"   // the store cannot be used right now, or not by this binary
)

// Error is an error with a [Code]. Two Errors match under [errors.Is] when their codes are equal.
type Error struct {
	Code    Code
	Message string
	Err     error // the cause, or nil
}

// Error returns the message, followed by the cause if there is one.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is an Error of the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// The sentinel errors, to be used with [errors.Is].
var (
	ErrInvalid        = &Error{Code: CodeInvalid, Message: "invalid input"}
	ErrTaskNotFound   = &Error{Code: CodeTaskNotFound, Message: "task not found"}
	ErrOrphanNotFound = &Error{Code: CodeOrphanNotFound, Message: "orphan not found"}
	ErrConflict       = &Error{Code: CodeConflict, Message: "the task's state does not allow this"}
	ErrLeaseLost      = &Error{Code: CodeLeaseLost, Message: "the lease was lost: another claim owns the task now"}
	ErrHandlerStuck   = &Error{Code: CodeHandlerStuck, Message: "a handler ignored its cancelled context"}
	ErrUnavailable    = &Error{Code: CodeUnavailable, Message: "the store is unavailable"}
)

// CodeOf returns the code of the first [Error] in err's chain, or "" if there is none.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

func invalid(format string, args ...any) error {
	return &Error{Code: CodeInvalid, Message: fmt.Sprintf(format, args...)}
}

// A handler ends its attempt in one of these ways besides a result and a plain error.
type (
	abortError  struct{ err error }
	snoozeError struct{ delay time.Duration }
	retryError  struct {
		delay time.Duration
		err   error
	}
)

func (e abortError) Error() string  { return e.err.Error() }
func (e abortError) Unwrap() error  { return e.err }
func (e snoozeError) Error() string { return "snoozed for " + e.delay.String() }
func (e retryError) Error() string  { return e.err.Error() }
func (e retryError) Unwrap() error  { return e.err }

// Abort makes the handler's error final: the task fails now, whatever attempts remain.
func Abort(err error) error {
	if err == nil {
		err = errors.New("aborted")
	}
	return abortError{err}
}

// Snooze puts the task back for at least d and costs no attempt. A negative d counts as zero.
func Snooze(d time.Duration) error { return snoozeError{max(d, 0)} }

// RetryAfter fails the attempt like err does, but the next one starts d from now instead of
// after the actor's backoff. A negative d counts as zero.
func RetryAfter(d time.Duration, err error) error {
	if err == nil {
		err = errors.New("retry requested")
	}
	return retryError{max(d, 0), err}
}

// Why a handler's context ended, besides the errors above.
var (
	errTimeout   = errors.New("timeout")
	errCancelled = errors.New("cancelled")
	errShutdown  = errors.New("the worker is shutting down")
)

// errGoexit is the error of an attempt whose handler never returned.
var errGoexit = errors.New("the handler ended its goroutine: runtime.Goexit, or a test's Fatal in a handler")

// panicError is a recovered panic of a handler.
type panicError struct {
	value any
	stack []byte
}

func (e panicError) Error() string { return fmt.Sprintf("panic: %v\n\n%s", e.value, e.stack) }

// argsError says that this worker's In cannot hold the task's args.
type argsError struct{ err error }

func (e argsError) Error() string { return e.err.Error() }
func (e argsError) Unwrap() error { return e.err }
