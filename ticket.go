package opscore

import (
	"context"
	"time"
)

// Ticket is the small message that names a few due tasks of one queue to whichever worker gets it: a hint, never the truth.
type Ticket struct {
	ID    ID
	Queue string
	Tasks []ID
	// ClaimSeqs are the claim numbers that the tasks had. A task that was claimed since has another: the ticket says
	// nothing about it any more.
	ClaimSeqs []int64
}

// Bounds of tickets.
const (
	MaxTicket = 16              // tasks of one
	MaxIssue  = 1000            // of one size are issued at a time
	TicketFor = 5 * time.Second // how long a ticket may be out before it may be lost
)

// Outbox is the role of a store whose due tasks can be announced with tickets. It remembers the tickets that are out: from the
// moment they are issued until the tasks that they name are claimed, or until somebody takes them back. A task is out while
// a ticket names it with its present claim number. All of this is a hint: a crash of the store may forget it.
type Outbox interface {
	// Due returns the queues that have due tasks, which may be out already, and are not paused.
	Due(ctx context.Context) ([]string, error)
	// Issue makes tickets for the most urgent due tasks of a queue that are not out, and remembers them as out: at most MaxIssue of full size.
	Issue(ctx context.Context, want Issue) (Issued, error)
	// Withdraw takes tickets back: their tasks are not out any more, unless other tickets name them. It does not matter what became of
	// the tasks meanwhile, nor whether the tickets exist.
	Withdraw(ctx context.Context, tickets []ID) error
	// Forget takes back the tickets of a queue that have been out for longer than age, but for the newest: as many as wait
	// in the broker. What waits there is newer than what left it, so the rest is lost, or held by nobody who can use it.
	Forget(ctx context.Context, queue string, waiting int, age time.Duration) (forgotten int, err error)
}

// Issue is what a relay wants.
type Issue struct {
	Queue  string
	Actors []string // tasks of these
	Window int      // tasks of the queue that may be out at a time
	Size   int      // tasks in one ticket, at most MaxTicket
	Spread int      // into at least so many tickets, if there are as many tasks
}

// Issued is what it got.
type Issued struct {
	Tickets []Ticket // most urgent first
	Out     int      // tasks that were out before
	Oldest  time.Duration
	Busy    bool // another relay is at this queue: nothing was issued
}

// Publisher puts tickets into a broker.
type Publisher interface {
	// Ready reports whether the broker takes tickets now, as far as is known.
	Ready() bool
	// Publish returns the tickets that the broker has not certainly taken, and the reason.
	Publish(ctx context.Context, tickets []Ticket) (refused []ID, err error)
	// Waiting returns how many tickets of a queue wait in the broker for a worker.
	Waiting(ctx context.Context, queue string) (int, error)
}

// Deployment identifies a database, and the broker that works for it.
type Deployment struct {
	Instance ID // of the database: made with its schema
	Epoch    ID // of the broker's state; zero if there has been none
}
