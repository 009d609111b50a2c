package opscore

import (
	"context"
	"maps"
	"slices"
	"time"
)

// Store is the truth about tasks. Its roles are implemented by sqlite and, method by method the same, by
// every other store; package storetest holds what each must do. All methods take and return batches, are safe
// for concurrent use, and place things in time by the store's own clock, so the contract speaks of delays.
// An unusable store (full disk, lost file, wrong schema) is an [ErrUnavailable].
type Store interface {
	Tasks
	History
	Queues
	Runs
	Registry
	Chores
	Standings
}

// Inserter stores new tasks: a store, or a store's view of the caller's transaction.
type Inserter interface {
	// Insert stores the requests, which are complete and valid, all or none, and says for each which task stands
	// for it. A request whose ID exists already is that task if actor and args are equal, else an
	// [ErrConflict]. One whose unique key is held by another task stores nothing.
	Insert(ctx context.Context, requests []Request) ([]Inserted, error)
}

// Inserted is the answer to one request.
type Inserted struct {
	ID        ID   // the new task, or the one that was there
	Duplicate bool // nothing was stored: ID names the holder of the unique key, or the same request's earlier task
}

// Tasks is what clients do with tasks.
type Tasks interface {
	Inserter
	// Get returns the tasks that exist, in the order of ids.
	Get(ctx context.Context, ids []ID) ([]Task, error)
	// List returns the tasks that match, newest first, without their args and results.
	List(ctx context.Context, f Filter) ([]Task, error)
	// Count counts all tasks by queue, actor and state, in that order.
	Count(ctx context.Context) ([]Count, error)
	// Cancel ends pending tasks at once and asks the workers of running ones to. It returns the tasks as
	// they are then; those already terminal are unchanged, those that do not exist left out.
	Cancel(ctx context.Context, ids []ID, by string) ([]Task, error)
	// Retry puts failed and cancelled tasks back: pending, due now, with all attempts and without an expiry.
	// It changes all or none: another state or a unique key taken meanwhile is an [ErrConflict], an unknown id an
	// [ErrTaskNotFound].
	Retry(ctx context.Context, ids []ID, by string) ([]Task, error)
}

// Filter selects tasks. Zero fields select everything.
type Filter struct {
	States []State
	Queue  string
	Actor  string
	Labels map[string]string // all must be equal
	Before ID                // only tasks older than this one: the cursor
	Limit  int               // at most 1000; 0 means 50
}

// Count is how many tasks of one kind there are.
type Count struct {
	Queue string `json:"queue"`
	Actor string `json:"actor"`
	State State  `json:"state"`
	Tasks int64  `json:"tasks"`
}

// History is what is kept of a task's attempts.
type History interface {
	// Attempts returns the task's attempts that did not complete it, oldest first, at most the last 200 claims.
	Attempts(ctx context.Context, task ID) ([]Attempt, error)
	// Logs returns the lines that the task's attempts logged, oldest first.
	Logs(ctx context.Context, task ID) ([]LogLine, error)
}

// Queues is what is known of queues besides their tasks.
type Queues interface {
	// Pause stops claims from the queues until Resume; running tasks go on.
	Pause(ctx context.Context, queues []string, by, comment string) error
	// Resume ends a pause; a queue that is not paused stays so.
	Resume(ctx context.Context, queues []string) error
	// Paused returns the paused queues by name.
	Paused(ctx context.Context) ([]Pause, error)
}

// Pause says who paused a queue, when and why.
type Pause struct {
	Queue   string    `json:"queue"`
	At      time.Time `json:"at"`
	By      string    `json:"by"`
	Comment string    `json:"comment,omitempty"`
}

// Runs is what workers do with tasks. Every write about a run carries the fence (id, claim number, worker).
type Runs interface {
	// Claim makes the most urgent due tasks running and owned by the worker: in order of priority, due time
	// and id, never from a paused queue, never expired ones. It is an [ErrLeaseLost] if the worker is gone. With an error
	// there are no tasks: whether they were claimed is not known, and a heartbeat tells.
	Claim(ctx context.Context, want Claim) (Claimed, error)
	// Finish records outcomes and says for each what became of it. Outcomes do not hinder each other.
	Finish(ctx context.Context, outcomes []Outcome) ([]Recorded, error)
	// Note stores progress, where the fence holds, and log lines, also those that come late of a claim that was made.
	Note(ctx context.Context, notes []Note) error
	// Isolate notes that a running task has its worker to itself from now on, and starts its attempt anew, until this claim of it ends. Only if it is
	// lost then it may be poison. It is an [ErrLeaseLost] if the fence does not hold or the worker is gone; to note it twice is the same as once.
	Isolate(ctx context.Context, task ID, claimSeq int64, worker ID) error
}

// Claim is what a worker wants.
type Claim struct {
	Worker ID
	Queues []string
	Actors []string
	IDs    []ID // only these tasks, if any are given
	Max    int  // at most this many
	// Tickets named the IDs: those of them whose tasks are all claimed now are not out any more.
	Tickets []ID
	// NotOut leaves out tasks that are out with a ticket younger than TicketFor: somebody is about to get it.
	NotOut bool
}

// Claimed is what it got.
type Claimed struct {
	Tasks []Task        // most urgent first
	Next  time.Duration // if Tasks is empty: when the next one that matches is due; 0 if none is known
}

// Recorded is what became of an outcome.
type Recorded struct {
	State State // the task's state after it
	// Late says that the claim had been revoked: the outcome is kept in the history only. Recording the
	// same outcome twice is not late.
	Late bool
}

// Note is news of a running task.
type Note struct {
	Task     ID
	ClaimSeq int64
	Worker   ID
	Progress float64 // 0 to 1; negative means no news
	Text     string  // of the progress
	Log      []LogLine
}

// Chores is the upkeep of a store. Every chore is idempotent and safe under any number of concurrent runners;
// each call does a bounded amount and is repeated until it returns nothing.
type Chores interface {
	// Rescue takes the tasks of dead workers back. A worker is dead when it has left, when the store has proof
	// of its death, or when its lease has run out in two observations at least HeartbeatEvery apart by this
	// Store value with no heartbeat between them. A rescued task counts one loss and is pending again after a
	// backoff, however often; one lost MaxLost times that was alone the last time is failed as poison, and one with a
	// requested cancellation is cancelled: see LostOutcome.
	Rescue(ctx context.Context) ([]Task, error)
	// Expire fails pending tasks that can no longer start in time.
	Expire(ctx context.Context) ([]Task, error)
	// Prune removes terminal tasks that are older than their queue's retention, workers that have long been gone, and
	// orphans that have not been seen for long, and returns how many tasks it removed.
	Prune(ctx context.Context, r Retention) (int, error)
}

// MaxLost is how often a task may be lost with its worker before it is failed as poison, if it had the worker to itself the last
// time. It gets one to itself once it was lost one time less: see [Task.Suspect].
const MaxLost = 3

// Retention says how long terminal tasks are kept after they finished, and orphans after they were last seen.
type Retention struct {
	Default Keep
	Queues  map[string]Keep // a queue's own; a zero field in it means Default's
	Orphans time.Duration   // 0 means OrphanFor
}

// Keep holds one period per terminal state. Forever keeps until a person removes the tasks.
type Keep struct {
	Completed time.Duration // 0 means 7 days
	Failed    time.Duration // 0 means Forever
	Cancelled time.Duration // 0 means Forever
}

func (r Retention) validate() error {
	for _, k := range append(slices.Collect(maps.Values(r.Queues)), r.Default) {
		if k.Completed < 0 || k.Failed < 0 || k.Cancelled < 0 {
			return invalid("retention: periods must not be negative")
		}
	}
	if r.Orphans < 0 {
		return invalid("retention: periods must not be negative")
	}
	return nil
}

// Forever is the longest period.
const Forever = time.Duration(1<<63 - 1)

// For returns the period that holds for a queue and a terminal state; queue "" means queues without their own.
func (r Retention) For(queue string, s State) time.Duration {
	for _, k := range []Keep{r.Queues[queue], r.Default, {7 * 24 * time.Hour, Forever, Forever}} {
		if d := map[State]time.Duration{Completed: k.Completed, Failed: k.Failed, Cancelled: k.Cancelled}[s]; d != 0 {
			return d
		}
	}
	return Forever
}

// Waker is implemented by stores that can tell at once, within this process, that a task may have become due.
type Waker interface {
	// Wake returns a channel that is closed at the next such moment.
	Wake() <-chan struct{}
}
