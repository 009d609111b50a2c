package storetest

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/google/uuid"

	"github.com/opscore/opscore"
)

func (e *env) stand(of opscore.ID, queues ...string) opscore.Stand {
	e.Helper()
	var t *opscore.Task
	if of != (opscore.ID{}) {
		got := e.get(of)
		t = &got
	}
	stand, err := e.store.Stand(e.ctx, queues, t)
	if err != nil {
		e.Fatalf("stand: %v", err)
	}
	return stand
}

// line returns a line of queue q and actor act.
func (e *env) line(s opscore.Stand, priority int) opscore.Line {
	e.Helper()
	for _, l := range s.Lines {
		if l.Queue == "q" && l.Actor == "act" && l.Priority == priority {
			return l
		}
	}
	e.Fatalf("no line of priority %d in %+v", priority, s.Lines)
	return opscore.Line{}
}

var standings = []scenario{
	{"a task's place is behind all that is claimed before it", func(e *env) {
		for range 3 {
			e.submit(opscore.Priority(5))
		}
		first := e.submit()
		e.submit(opscore.Priority(-5))
		e.submit(opscore.Queue("other"))
		e.submit(actor("another"))
		e.pass(time.Second)
		id := e.submit()
		e.submit()
		s := e.stand(id, "q")
		want(e, "ahead of higher priority", e.line(s, 5).Ahead, opscore.Tally{N: 3})
		want(e, "ahead of the same", e.line(s, 0).Ahead, opscore.Tally{N: 1})
		want(e, "due of the same", e.line(s, 0).Due, opscore.Tally{N: 3})
		want(e, "ahead of lower priority", e.line(s, -5).Ahead, opscore.Tally{})
		e.wantAbout("oldest", e.line(s, 0).Oldest, e.get(first).RunAt)
		want(e, "lines of q", len(s.Lines), 4)
		want(e, "lines of all", len(e.stand(opscore.ID{}).Lines), 5)
		claimed := e.claim(wants(e.worker(), 5))
		e.wantIDs("the one after those ahead", ids(claimed)[4:], id)
	}},
	{"what is scheduled, expired, running or over is not due", func(e *env) {
		w := e.worker()
		e.claimOne(w)
		over := e.claimOne(w)
		e.finish(ends(over, opscore.Completed))
		e.submit(opscore.After(time.Hour))
		e.submit(opscore.ExpiresAfter(time.Second))
		e.pass(2 * time.Second)
		id := e.submit()
		l := e.line(e.stand(id, "q"), 0)
		want(e, "due", l.Due, opscore.Tally{N: 1})
		want(e, "ahead", l.Ahead, opscore.Tally{})
		want(e, "scheduled", l.Scheduled, opscore.Tally{N: 1})
	}},
	{"a count ends at its limit and says so", func(e *env) {
		requests := make([]opscore.Request, opscore.CountedAtMost+1)
		for i := range requests {
			requests[i] = request()
		}
		e.insert(requests...)
		e.pass(time.Second)
		id := e.submit()
		l := e.line(e.stand(id, "q"), 0)
		want(e, "due", l.Due, opscore.Tally{N: opscore.CountedAtMost, More: true})
		want(e, "ahead", l.Ahead, opscore.Tally{N: opscore.CountedAtMost, More: true})
		want(e, "in words", l.Ahead.String(), "more than 10,000")
	}},
	{"what came and went in the last minute is a rate", func(e *env) {
		w := e.worker()
		for i := range 6 {
			if t := e.claimOne(w, opscore.WithID(madeNow())); i < 3 {
				e.finish(ends(t, opscore.Completed))
			}
			if i == 2 {
				e.pass(2 * time.Second)
			}
		}
		stand := e.stand(opscore.ID{}, "q")
		l := e.line(stand, 0)
		if came := l.LastCame.Sub(l.FirstCame); came < 2*time.Second || stand.At.Sub(l.LastCame) < 0 || stand.At.Sub(l.FirstCame) > opscore.RatesOver {
			e.Errorf("they came from %s to %s, it is %s", l.FirstCame, l.LastCame, stand.At)
		}
		want(e, "arriving per minute", math.Round(60*l.Arriving), 6)
		want(e, "completing per minute", math.Round(60*l.Completing), 3)
		e.pass(2 * time.Minute)
		for _, l := range e.stand(opscore.ID{}, "q").Lines {
			want(e, "arriving after a while", l.Arriving, 0)
			want(e, "completing after a while", l.Completing, 0)
		}
	}},
	{"what workers run is counted, and told of those that run alone and those that run longest", func(e *env) {
		one, two := e.worker(), e.worker()
		var first opscore.Task
		for i := range 5 {
			t := e.claimOne(one)
			if i == 0 {
				first = t
			}
			e.pass(10 * time.Millisecond)
		}
		e.claimOne(two)
		loads := e.stand(opscore.ID{}, "q").Loads
		want(e, "workers that run something", len(loads), 2)
		for _, l := range loads {
			if l.Worker == one {
				want(e, "running", l.Running, opscore.Tally{N: 5})
				want(e, "told of", len(l.Runs), opscore.RunsShown)
				want(e, "the longest", l.Runs[0].Task, first.ID)
				e.wantAbout("its start", l.Runs[0].StartedAt, first.StartedAt)
			}
		}
	}},
	{"a suspect among many is told of first", func(e *env) {
		w := e.worker()
		id := e.submit()
		for range opscore.MaxLost - 1 {
			dying := e.worker()
			e.claim(wants(dying, 1))
			if err := e.store.Leave(e.ctx, dying, "died", opscore.Report{}); err != nil {
				e.Fatalf("leave: %v", err)
			}
			e.rescue()
			e.pass(time.Minute)
			e.heartbeat(w)
		}
		for range 4 {
			e.claimOne(w)
		}
		got := e.claim(wants(w, 1))
		e.wantIDs("claim", ids(got), id)
		loads := e.stand(opscore.ID{}, "q").Loads
		want(e, "first", loads[0].Runs[0].Task, id)
		want(e, "lost", loads[0].Runs[0].Lost, opscore.MaxLost-1)
		want(e, "alone", loads[0].Runs[0].Alone, false)
		if err := e.store.Isolate(e.ctx, id, got[0].ClaimSeq, w); err != nil {
			e.Fatalf("isolate: %v", err)
		}
		want(e, "alone", e.stand(opscore.ID{}, "q").Loads[0].Runs[0].Alone, true)
	}},
	{"the moment of the answer is by the store's clock, and after the database was made", func(e *env) {
		id := e.submit()
		s := e.stand(id, "q")
		e.wantAbout("at", s.At, e.get(id).CreatedAt)
		if s.Made.IsZero() {
			e.Errorf("it does not know when it was made")
		}
	}},
}

// madeNow is an id that says so. What makes ids otherwise lets none be older than one before, also where time is fake and begins in the past.
func madeNow() opscore.ID {
	id := uuid.New()
	now := binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixMilli())) //nolint:gosec // not before 1970
	copy(id[:6], now[2:])
	id[6] = 0x70 | id[6]&0x0f
	return id
}
