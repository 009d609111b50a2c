package storetest

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/opscore/opscore"
)

func (e *env) keeper() opscore.Orphans { return e.store.(opscore.Orphans) }

func (e *env) orphans(f opscore.OrphanFilter) []opscore.Orphan {
	e.Helper()
	orphans, err := e.keeper().ListOrphans(e.ctx, f)
	if err != nil {
		e.Fatalf("list orphans: %v", err)
	}
	return orphans
}

func (e *env) getOrphan(id opscore.ID) opscore.Orphan {
	e.Helper()
	o, err := e.keeper().GetOrphan(e.ctx, id)
	if err != nil {
		e.Fatalf("get orphan: %v", err)
	}
	return o
}

// keep keeps orphans and returns how many there was no room for.
func (e *env) keep(orphans ...opscore.Orphan) int {
	e.Helper()
	dropped, err := e.keeper().KeepOrphans(e.ctx, orphans)
	if err != nil {
		e.Fatalf("keep orphans: %v", err)
	}
	return dropped
}

func orphan(id opscore.ID, body string) opscore.Orphan {
	return opscore.Orphan{ID: id, Queue: "q", Actor: "act", Reason: opscore.CodeUndecodable, Why: "why", Headers: `{"a":1}`, Body: []byte(body)}
}

func orphanIDs(orphans []opscore.Orphan) (ids []opscore.ID) {
	for _, o := range orphans {
		ids = append(ids, o.ID)
	}
	return ids
}

var orphans = []scenario{
	{"an orphan is kept as it came, and counted when it comes again", func(e *env) {
		id := newID()
		want(e, "dropped", e.keep(orphan(id, "body")), 0)
		before := e.getOrphan(id)
		want(e, "message", before.Message, id)
		want(e, "text", before.Queue+before.Actor+before.Why+before.Headers, "qactwhy"+`{"a":1}`)
		want(e, "size", before.Size, 4)
		e.wantAbout("first seen", before.FirstSeen, time.Now())
		again := orphan(id, "body")
		again.Reason, again.Why = opscore.CodeActorUnknown, "why then"
		want(e, "dropped", e.keep(again, again), 0)
		after := e.getOrphan(id)
		want(e, "count", after.Count, 3)
		want(e, "reason", after.Reason, opscore.CodeActorUnknown)
		want(e, "first seen", after.FirstSeen.Equal(before.FirstSeen), true)
		want(e, "last seen", after.LastSeen.After(before.LastSeen), true)
		want(e, "orphans", len(e.orphans(opscore.OrphanFilter{})), 1)
		e.wantBytes("body", after.Body, "body")
	}},
	{"messages with one id and different bodies do not hide each other", func(e *env) {
		id := newID()
		e.keep(orphan(id, "one"), orphan(id, "two"), orphan(id, "one"))
		e.keep(orphan(id, "three"), orphan(id, "two"))
		got := map[string]int{}
		for _, o := range e.orphans(opscore.OrphanFilter{Message: id}) {
			got[string(e.getOrphan(o.ID).Body)] = o.Count
		}
		if fmt.Sprint(got) != "map[one:2 three:1 two:2]" {
			e.Errorf("kept = %v", got)
		}
		e.wantBytes("under the message's id", e.getOrphan(id).Body, "one")
	}},
	{"a message without an id gets one made of its body", func(e *env) {
		e.keep(orphan(opscore.ID{}, "body"), orphan(opscore.ID{}, "other"))
		e.keep(orphan(opscore.ID{}, "body"))
		want(e, "orphans", len(e.orphans(opscore.OrphanFilter{})), 2)
	}},
	{"whatever bytes come are kept; what is too long is cut off, and says so", func(e *env) {
		id := newID()
		o := orphan(id, "")
		o.Queue, o.Why, o.Headers = "\xff\x00", "\x00", string(bytes.Repeat([]byte("é"), 20_000))
		o.Body = bytes.Repeat([]byte{0, 0xff}, opscore.MaxOrphanBytes)
		longer := o
		longer.Body = append(slices.Clone(o.Body), 1)
		want(e, "dropped", e.keep(o, longer), 0)
		got := e.getOrphan(id)
		want(e, "kept", len(got.Body), opscore.MaxOrphanBytes)
		want(e, "size", got.Size, 2*opscore.MaxOrphanBytes)
		want(e, "orphans", len(e.orphans(opscore.OrphanFilter{Message: id})), 2)
	}},
	{"orphans are listed by reason, queue and age, page by page, without their bodies", func(e *env) {
		var all []opscore.ID
		for n := range 5 {
			o := orphan(newID(), "x")
			if n%2 == 1 {
				o.Queue, o.Reason = "other", opscore.CodeReplayed
			}
			e.keep(o)
			all = append([]opscore.ID{o.ID}, all...)
		}
		e.wantIDs("all", orphanIDs(e.orphans(opscore.OrphanFilter{})), all...)
		e.wantIDs("a page", orphanIDs(e.orphans(opscore.OrphanFilter{Limit: 2})), all[:2]...)
		e.wantIDs("the next", orphanIDs(e.orphans(opscore.OrphanFilter{Limit: 2, Before: all[1]})), all[2:4]...)
		e.wantIDs("by reason", orphanIDs(e.orphans(opscore.OrphanFilter{Reason: opscore.CodeReplayed})), all[1], all[3])
		e.wantIDs("by queue", orphanIDs(e.orphans(opscore.OrphanFilter{Queue: "q"})), all[0], all[2], all[4])
		e.wantIDs("old ones", orphanIDs(e.orphans(opscore.OrphanFilter{OlderThan: time.Hour})))
		e.pass(2 * time.Hour)
		e.keep(orphan(all[4], "x"))
		e.wantIDs("old ones then", orphanIDs(e.orphans(opscore.OrphanFilter{OlderThan: time.Hour})), all[:4]...)
		e.wantIDs("young ones then", orphanIDs(e.orphans(opscore.OrphanFilter{NewerThan: time.Hour})), all[4])
		want(e, "body", len(e.orphans(opscore.OrphanFilter{})[0].Body), 0)
		_, err := e.keeper().ListOrphans(e.ctx, opscore.OrphanFilter{Before: newID()})
		e.wantCode(err, opscore.CodeOrphanNotFound)
	}},
	{"orphans are dropped once", func(e *env) {
		a, b := newID(), newID()
		e.keep(orphan(a, "x"), orphan(b, "x"))
		for _, there := range [][]opscore.ID{{a}, {}} {
			dropped, err := e.keeper().DropOrphans(e.ctx, []opscore.ID{a, newID()})
			if err != nil || !slices.Equal(dropped, there) {
				e.Errorf("dropped %v, %v; want %v", dropped, err, there)
			}
		}
		_, err := e.keeper().GetOrphan(e.ctx, a)
		e.wantCode(err, opscore.CodeOrphanNotFound)
		e.getOrphan(b)
	}},
	{"an orphan becomes a pending task, once, and is gone", func(e *env) {
		w := e.worker()
		e.claim(wants(w, 1))
		m := message()
		m.Retry, m.Attempts = opscore.Backoff{Base: time.Minute}, 1
		e.keep(orphan(m.Request.ID, "x"))
		t, err := e.keeper().AdoptOrphan(e.ctx, m.Request.ID, m)
		if err != nil {
			e.Fatalf("adopt: %v", err)
		}
		want(e, "id", t.ID, m.Request.ID)
		want(e, "state", t.State, opscore.Pending)
		want(e, "attempt", t.Attempt, 1)
		want(e, "retry", t.Retry, m.Retry)
		want(e, "orphans", len(e.orphans(opscore.OrphanFilter{})), 0)
		_, err = e.keeper().AdoptOrphan(e.ctx, m.Request.ID, m)
		e.wantCode(err, opscore.CodeOrphanNotFound)
		e.wantIDs("claimed", ids(e.claim(wants(w, 1))), m.Request.ID)
	}},
	{"an orphan that cannot become a task stays", func(e *env) {
		id, other := newID(), message()
		e.adopt(opscore.Claim{}, other)
		e.keep(orphan(id, "x"))
		_, err := e.keeper().AdoptOrphan(e.ctx, id, other)
		e.wantCode(err, opscore.CodeConflict)
		_, err = e.keeper().AdoptOrphan(e.ctx, id, message(actor("no name")))
		e.wantCode(err, opscore.CodeInvalid)
		_, err = e.keeper().AdoptOrphan(e.ctx, id, message(opscore.Labels(map[string]string{"a": "\x00"})))
		e.wantCode(err, opscore.CodeInvalid)
		want(e, "orphans", len(e.orphans(opscore.OrphanFilter{})), 1)
		want(e, "tasks", len(e.list(opscore.Filter{})), 1)
	}},
	{"orphans are forgotten when they have not been seen for long", func(e *env) {
		old, seen := newID(), newID()
		e.keep(orphan(old, "x"), orphan(seen, "x"))
		e.pass(2 * time.Hour)
		e.keep(orphan(seen, "x"))
		for keep, left := range map[time.Duration][]opscore.ID{0: {seen, old}, opscore.Forever: {seen, old}} {
			if _, err := e.store.Prune(e.ctx, opscore.Retention{Orphans: keep}); err != nil {
				e.Fatalf("prune: %v", err)
			}
			want(e, "left", len(e.orphans(opscore.OrphanFilter{})), len(left))
		}
		if _, err := e.store.Prune(e.ctx, opscore.Retention{Orphans: time.Hour}); err != nil {
			e.Fatalf("prune: %v", err)
		}
		e.wantIDs("left", orphanIDs(e.orphans(opscore.OrphanFilter{})), seen)
		e.pass(opscore.OrphanFor)
		if _, err := e.store.Prune(e.ctx, opscore.Retention{}); err != nil {
			e.Fatalf("prune: %v", err)
		}
		want(e, "left after the standard period", len(e.orphans(opscore.OrphanFilter{})), 0)
	}},
}
