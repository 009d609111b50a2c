package storetest

import (
	"testing"

	"github.com/opscore/opscore"
)

// RunDiscarder runs the suite of a store that is an [opscore.Discarder].
func RunDiscarder(t *testing.T, h Harness) {
	for _, sc := range discards {
		t.Run(sc.name, func(t *testing.T) {
			h.Around(t, func(t *testing.T) { sc.test(newEnv(t, h, t.TempDir())) })
		})
	}
}

func (e *env) discard(ids ...opscore.ID) int {
	e.Helper()
	n, err := e.store.(opscore.Discarder).Discard(e.ctx, ids)
	if err != nil {
		e.Fatalf("discard: %v", err)
	}
	return n
}

var discards = []scenario{
	{"canaries that are over are removed, with their history, and nothing else is", func(e *env) {
		canary := func() opscore.ID { return e.submit(actor(opscore.CanaryActor)) }
		w := e.worker()
		run := func(o func(opscore.Task) opscore.Outcome) opscore.ID {
			id := canary()
			c := wants(w, 1)
			c.Actors = []string{opscore.CanaryActor}
			e.finish(o(e.claim(c)[0]))
			return id
		}
		completed := run(func(t opscore.Task) opscore.Outcome { return ends(t, opscore.Completed) })
		failed := run(func(t opscore.Task) opscore.Outcome {
			o := ends(t, opscore.Failed)
			o.Log = []opscore.LogLine{{Text: "it was sick"}}
			return o
		})
		cancelled, pending, other := canary(), canary(), e.submit()
		e.cancel(cancelled)
		e.cancel(other)
		want(e, "removed", e.discard(completed, failed, cancelled, pending, other, newID()), 3)
		want(e, "removed again", e.discard(completed, failed, cancelled, pending, other), 0)
		e.wantIDs("left", e.list(opscore.Filter{}), other, pending)
		want(e, "attempts of one that was removed", len(e.attempts(failed)), 0)
		if lines, err := e.store.Logs(e.ctx, failed); err != nil || len(lines) > 0 {
			e.Errorf("log of one that was removed: %v, %v", lines, err)
		}
	}},
}
