package opscore

import "time"

// Event is something that happened to a task or a worker. Metrics, traces, webhooks and audit logs are
// adapters of one hook: func(Event), called in the goroutine where it happened; it must not block.
type Event struct {
	Kind     EventKind
	Task     ID
	Actor    string
	Queue    string
	State    State // the task's state after the event; empty where it is not known, as of a duplicate
	Attempt  int
	Code     Code
	Worker   ID
	Duration time.Duration // finished: of the attempt; started: how long the task was due before
	Count    int           // pruned: how many tasks
	Err      error
}

// EventKind names what happened.
type EventKind string

// The kinds of events.
const (
	EventSubmitted EventKind = "submitted" // a client stored a task, or found its duplicate
	EventStarted   EventKind = "started"   // a worker started an attempt
	EventFinished  EventKind = "finished"  // an attempt's outcome is recorded
	EventLate      EventKind = "late"      // an attempt's outcome came after its claim was revoked
	EventCancelled EventKind = "cancelled" // a client cancelled a task, or asked its worker to
	EventRetried   EventKind = "retried"   // a client put a terminal task back
	EventRescued   EventKind = "rescued"   // the keeper took a task back from a dead worker
	EventExpired   EventKind = "expired"   // the keeper failed a task that could not start in time
	EventPruned    EventKind = "pruned"    // the keeper removed old tasks
	EventWorker    EventKind = "worker"    // a worker changed its state, or goes on under a new id: Code holds the state
)

// emit calls the hook if there is one.
func emit(hook func(Event), e Event) {
	if hook != nil {
		hook(e)
	}
}

func taskEvent(kind EventKind, t *Task) Event {
	return Event{
		Kind: kind, Task: t.ID, Actor: t.Actor, Queue: t.Queue, State: t.State, Attempt: t.Attempt,
		Code: t.Code, Worker: t.Worker,
	}
}
