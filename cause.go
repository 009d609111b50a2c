package opscore

import (
	"fmt"
	"slices"
	"strings"
)

// Cause is one machine-readable reason why a task is not moving, or will not, with what can be done about it.
type Cause struct {
	Code   string `json:"code"`
	Text   string `json:"text"`             // one sentence with the evidence
	Remedy string `json:"remedy,omitempty"` // a command or an action
}

// The codes of causes that a submit warns of.
const (
	CauseNoWorker         = "no_worker"
	CauseQueueNotListened = "queue_not_listened"
	CauseActorUnknown     = "actor_unknown"
	CauseQueuePaused      = "queue_paused"
)

// submitWarnings says why a task on queue for actor would not start, given the registry and the paused queues.
func submitWarnings(queue, actor string, workers []WorkerInfo, paused []Pause) []Cause {
	var warnings []Cause
	for _, p := range paused {
		if p.Queue == queue {
			warnings = append(warnings, Cause{
				Code: CauseQueuePaused, Text: fmt.Sprintf("queue %s is paused by %s", queue, p.By),
				Remedy: "opscore queue resume " + queue,
			})
		}
	}
	var queues, actors, hosts []string
	both := false
	for _, w := range workers {
		if !w.Live {
			continue
		}
		listens, knows := slices.Contains(w.Queues, queue), slices.Contains(w.Actors, actor)
		both = both || listens && knows
		queues, actors = append(queues, w.Queues...), append(actors, w.Actors...)
		if knows && !listens {
			hosts = append(hosts, w.Queues...)
		}
	}
	if both {
		return warnings
	}
	slices.Sort(queues)
	slices.Sort(hosts)
	list := func(names []string) string { return strings.Join(slices.Compact(names), ", ") }
	start := "start a worker that listens to queue " + queue + " and has actor " + actor
	switch {
	case len(queues) == 0:
		return append(warnings, Cause{CauseNoWorker, "no live worker is registered", start})
	case !slices.Contains(actors, actor):
		return append(warnings, Cause{CauseActorUnknown, fmt.Sprintf("no live worker knows actor %s", actor), start})
	case !slices.Contains(queues, queue):
		return append(warnings, Cause{
			CauseQueueNotListened,
			fmt.Sprintf("no live worker listens to queue %s; those that know actor %s listen to %s", queue, actor, list(hosts)),
			start,
		})
	default:
		return append(warnings, Cause{
			CauseQueueNotListened,
			fmt.Sprintf("no live worker that listens to queue %s knows actor %s; those that know it listen to %s", queue, actor, list(hosts)),
			start,
		})
	}
}
