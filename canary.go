package opscore

import (
	"context"
	"os"
	"slices"
	"time"
)

// CanaryActor is an actor that every worker has besides those that it was given, in each of its queues: a task of it shows whether tasks get
// through, and how fast. It is in no list of actors. Names that begin with [ReservedPrefix] are not for others.
const (
	CanaryActor    = ReservedPrefix + "canary"
	ReservedPrefix = "opscore."
)

// Canary is the result of a canary: what its worker knows of how it came.
type Canary struct {
	Worker ID     `json:"worker"`
	Host   string `json:"host"`
	PID    int    `json:"pid"`
	Build  string `json:"build"`
	// Of one that came by ticket:
	Out    time.Time `json:"ticket_out_at,omitzero"`     // when the ticket was issued, by the store's clock
	Waited Duration  `json:"ticket_waited,omitempty"`    // from the arrival of the ticket to the claim, to half of its round trip
	Start  Duration  `json:"claim_to_handler,omitempty"` // from the claim's answer to the handler, by the worker's clock
}

// Arrival is how a claimed task came to its worker, if a ticket brought it. Only that of canaries is known.
type Arrival struct {
	Out    time.Time // when the ticket was issued, by the store's clock
	Waited time.Duration
}

// canary makes the handler of canaries.
func (c *crew) canary() Handler {
	h := Handlers{}
	handle(h, Actor[struct{}, Canary]{Name: CanaryActor}, func(ctx context.Context, _ struct{}) (Canary, error) {
		run, info := FromContext(ctx), c.identity()
		return Canary{
			Worker: run.Worker, Host: info.Host, PID: os.Getpid(), Build: info.Build, Out: run.arrival.Out, Waited: Duration(run.arrival.Waited),
			Start: Duration(time.Since(run.claimed)),
		}, nil
	})
	return h[CanaryActor]
}

// handler returns the one of an actor.
func (c *crew) handler(actor string) Handler {
	if actor == CanaryActor {
		return c.canaries
	}
	return c.Handlers[actor]
}

// canaryFor bounds for how long a canary may wait: what asked for it has given up by then.
const canaryFor = time.Minute

// NewCanary asks for a canary in a queue. It is ahead of all others: it shows whether tasks get through, not how many wait.
func NewCanary(queue string) Request {
	return NewRequest(CanaryActor, []byte("{}"), Queue(queue), Priority(MaxPriority), MaxAttempts(1), Timeout(canaryFor), ExpiresAfter(canaryFor))
}

// Discarder is implemented by stores that can remove canaries once they are over, so that they are in no count and no list.
type Discarder interface {
	// Discard removes those of the tasks that are canaries and terminal, with their history, and returns how many there were.
	Discard(ctx context.Context, canaries []ID) (int, error)
}

// discard removes the canaries among tasks that have come to an end while nobody looks after them any more.
func (k *Keeper) discard(ctx context.Context, tasks []Task) ([]Task, error) {
	var ids []ID
	others := slices.DeleteFunc(slices.Clone(tasks), func(t Task) bool {
		over := t.Actor == CanaryActor && t.State.Terminal()
		if over {
			ids = append(ids, t.ID)
		}
		return over
	})
	if d, ok := k.Store.(Discarder); ok && len(ids) > 0 {
		_, err := d.Discard(ctx, ids)
		return others, err
	}
	return others, nil
}
