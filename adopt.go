package opscore

import (
	"context"
	"encoding/json"
	"math"
	"time"
)

// Adopter is the role of a store that can take over messages of another system as tasks: each message that comes from a broker becomes a
// row and is claimed in one statement, so that the message can be acked as soon as Adopt returns. PostgreSQL has it; SQLite has not, for there is no
// broker there.
type Adopter interface {
	// Adopt makes tasks of messages and answers for each, in their order; they do not hinder each other. A new id is inserted: claimed for
	// want.Worker if it is due, its actor is one of want.Actors, its queue is not paused and want.Max allows, the most urgent ones first; else it
	// is pending. An id that exists already changes nothing. Whatever cannot become a task, although it should, is kept as an orphan before Adopt
	// returns. It is an [ErrLeaseLost] if the worker is gone; then, as with every error, nothing is known: whether tasks were made and claimed a heartbeat
	// tells, and to adopt again is safe. Of want only Worker, Actors and Max count; without a worker nothing is claimed.
	Adopt(ctx context.Context, want Claim, adoptions []Adoption) ([]Adopted, error)
}

// Adoption is a message of another system that is to become a task.
type Adoption struct {
	// Request is the task, with the message's id as its ID. A zero field means its default. Args must be a JSON document, and the same one
	// whenever the message comes again: they tell a duplicate from another task with its id. It has no unique key. One that expires
	// before it is due is no mistake: it fails as expired.
	Request Request
	// Retry is the wait before retries of this task, instead of its actor's; zero means the actor's. It is a field of the task and a column of its row,
	// since the worker that meets the failure, perhaps another one days later, has nothing else to compute the wait from. The wait of a timeout, a panic and a
	// failed attempt are alike, so a handler's RetryAfter would not do.
	Retry Backoff
	// Attempts is how many the message has had elsewhere: they count towards MaxAttempts, and for the wait.
	Attempts int
	// Made is when the message was first sent; zero, or in the future, means now. It is the task's CreatedAt.
	Made time.Time
	// Origin is what else the message held, a JSON document for whoever runs the task: see [Run]. Stores do not look into it. Empty means none.
	Origin json.RawMessage
	// Message is what is kept as an orphan if this does not become a task: Queue, Headers and Body, and what else it is known by. Adopt sets
	// its ID if it is zero, its Reason and its Why.
	Message Orphan
}

// Adopted is what became of a message.
type Adopted struct {
	// Task is the task if it was claimed; else it holds ID and State alone, or nothing if there is no such task.
	Task    Task
	Claimed bool // it is running for the worker, which must run it
	// Duplicate says that the task exists and is not over: the message came again.
	Duplicate bool
	// Orphan is why the message did not become a task: CodeReplayed, CodeConflict, or CodeInvalid, CodeTooLarge. Err says it in words.
	Orphan Code
	Err    error
	// Dropped says that there was no room for the orphan: the broker's message is the only one left. It is too if Err is an [ErrUnavailable]: then the
	// orphan could not be stored for now, and to adopt the message again is right.
	Dropped bool
}

// ForeverAttempts is more attempts than a task can have: it is retried until it succeeds.
const ForeverAttempts = math.MaxInt32

// Complete fills in the defaults and refuses what cannot be a task, as an [ErrInvalid] that names field and value.
func (a *Adoption) Complete() error {
	a.Request.complete()
	r := a.Request
	switch {
	case r.ID == ID{}:
		return invalid("the message has no id")
	case r.UniqueKey != "":
		return invalid("unique key %q: a message has none", clip(r.UniqueKey, 80))
	case a.Attempts < 0 || a.Attempts >= ForeverAttempts:
		return invalid("attempts %d: must be between 0 and %d", a.Attempts, ForeverAttempts-1)
	case r.MaxAttempts > ForeverAttempts:
		return invalid("max attempts %d: must be at most %d", r.MaxAttempts, ForeverAttempts)
	case !representable(a.Made):
		return invalid("made at %s: must lie between 1970 and the year 10000", a.Made)
	case !representable(r.ExpiresAt):
		return invalid("expires at %s: must lie between 1970 and the year 10000", r.ExpiresAt)
	}
	if len(a.Origin) > 0 {
		if err := validDocument("origin", a.Origin, DefaultMaxArgs); err != nil {
			return err
		}
	}
	if err := a.Retry.validate(); err != nil {
		return err
	}
	if r.ExpiresAfter >= 0 {
		r.ExpiresAt, r.ExpiresAfter = time.Time{}, 0 // may lie before the due time
	}
	return r.validate(DefaultMaxArgs)
}
