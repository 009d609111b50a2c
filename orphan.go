package opscore

import (
	"context"
	"time"
)

// Orphan is a message that belongs to no task: it is kept, never silently dropped.
type Orphan struct {
	ID        ID        `json:"id"`      // of the message, or made from its body; if another body came with that id, one made from both
	Message   ID        `json:"message"` // the message's id: two orphans have the same one if it came with different bodies
	Queue     string    `json:"queue"`
	Actor     string    `json:"actor,omitempty"` // that the message names, if it could be read so far
	Reason    Code      `json:"reason"`
	Why       string    `json:"why,omitempty"` // the reason in words, with the evidence
	FirstSeen time.Time `json:"first_seen"`
	LastSeen  time.Time `json:"last_seen"`
	Count     int       `json:"count"` // how often it came
	Headers   string    `json:"headers,omitempty"`
	Size      int       `json:"size"` // of the body as it came; Body is cut off if it is longer than MaxOrphanBytes
	Body      []byte    `json:"body,omitempty"`
}

// Why a message is an orphan, besides [CodeTaskNotFound], [CodeInvalid] and [CodeTooLarge].
const (
	CodeUndecodable     Code = "undecodable"      // it is neither a ticket nor a message that can be read
	CodeForeignDatabase Code = "foreign_database" // it names tasks of another database
	CodeActorUnknown    Code = "actor_unknown"    // no live worker has its actor, or its queue does not take it from messages
	// CodeReplayed: the task with its id is over. Somebody put the message back, or the broker brought it again.
	// CodeConflict: its id belongs to a task with another actor or other args.
)

// Limits of what is kept of orphans.
const (
	MaxOrphans      = 10_000                  // unless the store was told otherwise
	MaxOrphanBytes  = DefaultMaxArgs + 64<<10 // of one's body: what can be a task fits
	MaxOrphansBytes = 512 << 20               // of all bodies
	OrphanFor       = 30 * 24 * time.Hour     // after it was last seen, unless [Retention] says otherwise
)

// Orphans is the role of a store that keeps the messages that belong to no task. A store that does not have it never meets one.
type Orphans interface {
	// KeepOrphans stores messages. One that is there already, with the same id and body, is counted; one with the id of another and a different body
	// is an orphan of its own. It returns how many there was no room for.
	KeepOrphans(ctx context.Context, orphans []Orphan) (dropped int, err error)
	// ListOrphans returns those that match, the latest arrival first, without their bodies.
	ListOrphans(ctx context.Context, f OrphanFilter) ([]Orphan, error)
	// GetOrphan returns one, or an [ErrOrphanNotFound].
	GetOrphan(ctx context.Context, id ID) (Orphan, error)
	// DropOrphans deletes orphans and returns those that were there.
	DropOrphans(ctx context.Context, ids []ID) (dropped []ID, err error)
	// AdoptOrphan makes a pending task of an orphan, and deletes it, both or neither. It is an [ErrConflict] if there is a task with the adoption's id, an
	// [ErrOrphanNotFound] if somebody else was faster.
	AdoptOrphan(ctx context.Context, id ID, a Adoption) (Task, error)
}

// OrphanFilter selects orphans. Zero fields select everything.
type OrphanFilter struct {
	Reason    Code
	Queue     string
	Message   ID            // all that came with this id
	OlderThan time.Duration // last seen before that
	NewerThan time.Duration // last seen since then
	Before    ID            // only those that arrived before this one: the cursor, an [ErrOrphanNotFound] if it is gone
	Limit     int           // at most 1000; 0 means 50
}
