package storetest

import (
	"slices"
	"testing"
	"time"

	"github.com/opscore/opscore"
)

// RunOutbox runs the suite of a store that is an [opscore.Outbox].
func RunOutbox(t *testing.T, h Harness) {
	for _, sc := range outboxes {
		t.Run(sc.name, func(t *testing.T) {
			h.Around(t, func(t *testing.T) { sc.test(newEnv(t, h, t.TempDir())) })
		})
	}
}

func (e *env) outbox() opscore.Outbox { return e.store.(opscore.Outbox) }

// issues is what a relay of queue q and actor act wants.
func issues(window, size int) opscore.Issue {
	return opscore.Issue{Queue: "q", Actors: []string{"act"}, Window: window, Size: size}
}

// issue looks for due tasks and issues tickets for them.
func (e *env) issue(want opscore.Issue) opscore.Issued {
	e.Helper()
	e.due()
	issued, err := e.outbox().Issue(e.ctx, want)
	if err != nil || issued.Busy {
		e.Fatalf("issue = %+v, %v", issued, err)
	}
	return issued
}

func (e *env) due() []string {
	e.Helper()
	queues, err := e.outbox().Due(e.ctx)
	if err != nil {
		e.Fatalf("due: %v", err)
	}
	return queues
}

func (e *env) withdraw(tickets ...opscore.Ticket) {
	e.Helper()
	if err := e.outbox().Withdraw(e.ctx, ticketIDs(tickets)); err != nil {
		e.Fatalf("withdraw: %v", err)
	}
}

func (e *env) forget(waiting int) int {
	e.Helper()
	n, err := e.outbox().Forget(e.ctx, "q", waiting, opscore.TicketFor)
	if err != nil {
		e.Fatalf("forget: %v", err)
	}
	return n
}

func ticketIDs(tickets []opscore.Ticket) []opscore.ID {
	var ids []opscore.ID
	for _, t := range tickets {
		ids = append(ids, t.ID)
	}
	return ids
}

// named returns the tasks that tickets name.
func named(tickets []opscore.Ticket) []opscore.ID {
	var ids []opscore.ID
	for _, t := range tickets {
		ids = append(ids, t.Tasks...)
	}
	return ids
}

// claimNamed claims what tickets name, as a worker does that gets them.
func (e *env) claimNamed(w opscore.ID, limit int, tickets ...opscore.Ticket) []opscore.Task {
	e.Helper()
	c := wants(w, limit)
	c.IDs, c.Tickets = named(tickets), ticketIDs(tickets)
	return e.claim(c)
}

var outboxes = []scenario{
	{"a task that is out says since when, until it is claimed", func(e *env) {
		id := e.submit()
		want(e, "ticket", e.stand(id, "q").Ticket == nil, true)
		tickets := e.issue(issues(10, 1)).Tickets
		s := e.stand(id, "q")
		if s.Ticket == nil || s.Ticket.ID != tickets[0].ID || s.Ticket.In != 1 {
			e.Fatalf("ticket = %+v, want %s", s.Ticket, tickets[0].ID)
		}
		e.wantAbout("since", s.Ticket.At, s.At)
		task := e.claim(wants(e.worker(), 1))[0]
		e.finish(ends(task, opscore.Pending))
		want(e, "ticket of an earlier claim", e.stand(id, "q").Ticket == nil, true)
	}},
	{"a due task gets one ticket, with its claim number, until it is withdrawn", func(e *env) {
		id := e.submit()
		issued := e.issue(issues(10, 4))
		e.wantIDs("named", named(issued.Tickets), id)
		want(e, "queue", issued.Tickets[0].Queue, "q")
		want(e, "claim number", issued.Tickets[0].ClaimSeqs[0], 0)
		want(e, "out before", issued.Out, 0)
		again := e.issue(issues(10, 4))
		e.wantIDs("named again", named(again.Tickets))
		want(e, "out then", again.Out, 1)
		e.withdraw(issued.Tickets...)
		e.withdraw(issued.Tickets...)
		e.wantIDs("named after it was withdrawn", named(e.issue(issues(10, 4)).Tickets), id)
	}},
	{"tickets name the most urgent tasks, in order, as many as the window has room for", func(e *env) {
		past := time.Now().Add(-time.Hour)
		late := e.submit(opscore.At(past.Add(2 * time.Minute)))
		early := e.submit(opscore.At(past))
		middle := e.submit(opscore.At(past.Add(time.Minute)))
		high := e.submit(opscore.Priority(1))
		low := e.submit(opscore.Priority(-1), opscore.At(past))
		e.submit(opscore.After(time.Hour))
		e.submit(opscore.Queue("other"))
		e.submit(actor("other"))
		first := e.issue(issues(3, 2))
		e.wantIDs("first", named(first.Tickets), high, early, middle)
		want(e, "tickets", len(first.Tickets), 2)
		want(e, "tasks of the first", len(first.Tickets[0].Tasks), 2)
		e.wantIDs("while the window is full", named(e.issue(issues(3, 2)).Tickets))
		e.wantIDs("the rest", named(e.issue(issues(10, 2)).Tickets), late, low)
	}},
	{"tickets are small enough for as many workers as there are", func(e *env) {
		for range 10 {
			e.submit()
		}
		c := issues(100, 16)
		c.Spread = 4
		tickets := e.issue(c).Tickets
		want(e, "tickets", len(tickets), 5)
		e.withdraw(tickets[1])
		e.wantIDs("named after one was withdrawn", named(e.issue(c).Tickets), tickets[1].Tasks...)
	}},
	{"a claim of all that a ticket names ends the ticket", func(e *env) {
		w := e.worker()
		e.submit(opscore.After(time.Hour)) // something is left to look for
		for range 3 {
			e.submit()
		}
		issued := e.issue(issues(10, 3))
		want(e, "claimed in part", len(e.claimNamed(w, 2, issued.Tickets...)), 2)
		want(e, "out after a part", e.issue(issues(10, 3)).Out, 3)
		e.withdraw(issued.Tickets...)
		issued = e.issue(issues(10, 3))
		want(e, "named then", len(named(issued.Tickets)), 1)
		want(e, "claimed then", len(e.claimNamed(w, 2, issued.Tickets...)), 1)
		want(e, "out after all", e.issue(issues(10, 3)).Out, 0)
	}},
	{"a task that is put back gets a new ticket although the old one is still out", func(e *env) {
		w := e.worker()
		id := e.submit()
		old := e.issue(issues(10, 1)).Tickets
		c := wants(w, 1)
		t := e.claim(c)[0] // a pull knows nothing of tickets
		e.finish(ends(t, opscore.Pending))
		fresh := e.issue(issues(10, 1))
		e.wantIDs("named", named(fresh.Tickets), id)
		want(e, "claim number", fresh.Tickets[0].ClaimSeqs[0] > old[0].ClaimSeqs[0], true)
		// The relay learns late that the first ticket was refused: the second one stands.
		e.withdraw(old...)
		e.wantIDs("named after the old one was withdrawn", named(e.issue(issues(10, 1)).Tickets))
	}},
	{"tasks of paused queues, of the future and of the past get no tickets", func(e *env) {
		e.submit(opscore.ExpiresAfter(time.Minute))
		future := e.submit(opscore.After(time.Hour))
		e.pass(2 * time.Minute)
		e.wantIDs("expired", named(e.issue(issues(10, 1)).Tickets))
		id := e.submit()
		e.due()
		if err := e.store.Pause(e.ctx, []string{"q"}, "ann", ""); err != nil {
			e.Fatalf("pause: %v", err)
		}
		issued, err := e.outbox().Issue(e.ctx, issues(10, 1))
		if err != nil || len(issued.Tickets) > 0 {
			e.Errorf("issued although it was paused since the look: %+v, %v", issued, err)
		}
		want(e, "due queues while paused", len(e.due()), 0)
		e.wantIDs("paused", named(e.issue(issues(10, 1)).Tickets))
		if err := e.store.Resume(e.ctx, []string{"q"}); err != nil {
			e.Fatalf("resume: %v", err)
		}
		e.wantIDs("resumed", named(e.issue(issues(10, 1)).Tickets), id)
		e.pass(time.Hour)
		want(e, "due queues", slices.Contains(e.due(), "q"), true)
		e.wantIDs("at its time", named(e.issue(issues(10, 1)).Tickets), future)
	}},
	{"a task that comes to stand before others that are out is seen", func(e *env) {
		e.submit()
		e.issue(issues(10, 1))
		behind := e.submit(opscore.At(time.Now().Add(-time.Hour)))
		deadline := time.Now().Add(10 * time.Second)
		for {
			if got := named(e.issue(issues(10, 1)).Tickets); len(got) > 0 {
				e.wantIDs("named", got, behind)
				return
			}
			if time.Now().After(deadline) {
				e.Fatalf("it was not seen")
			}
		}
	}},
	{"a pull leaves out what young tickets name", func(e *env) {
		w := e.worker()
		out := e.submit()
		e.issue(issues(10, 1))
		free := e.submit()
		c := wants(w, 10)
		c.NotOut = true
		e.wantIDs("claimed", ids(e.claim(c)), free)
		e.pass(opscore.TicketFor + time.Second)
		e.heartbeat(w)
		e.wantIDs("claimed when the ticket is old", ids(e.claim(c)), out)
	}},
	{"old tickets are forgotten, but for the newest: as many as wait in the broker", func(e *env) {
		var tasks []opscore.ID
		for range 5 {
			tasks = append(tasks, e.submit())
			e.issue(issues(10, 1))
		}
		want(e, "forgotten while they are young", e.forget(0), 0)
		e.pass(opscore.TicketFor + time.Second)
		oldest := e.issue(issues(10, 1)).Oldest
		if oldest < opscore.TicketFor || oldest > opscore.TicketFor+time.Minute {
			e.Errorf("oldest = %v", oldest)
		}
		want(e, "forgotten", e.forget(3), 2)
		e.wantIDs("named again", named(e.issue(issues(10, 1)).Tickets), tasks[0], tasks[1])
		want(e, "forgotten of the rest", e.forget(2), 3)
	}},
	{"a withdrawal of tickets that never were changes nothing", func(e *env) {
		e.withdraw(opscore.Ticket{ID: newID()})
		e.withdraw()
	}},
}
