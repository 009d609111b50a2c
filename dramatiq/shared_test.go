package dramatiq_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/dramatiq"
)

// python consumes a queue as a worker of Python's does that has every actor, until the test ends, and counts what it took.
func (r *rig) python(queue string) *atomic.Int64 {
	r.Helper()
	ch := r.channel()
	check(r, ch.Qos(1, 0, false))
	deliveries, err := ch.Consume(queue, "", false, false, false, false, nil)
	check(r, err)
	var n atomic.Int64
	go func() {
		for d := range deliveries {
			n.Add(1)
			_ = d.Ack(false) // the connection may be closed: the test is over
		}
	}()
	return &n
}

// allToPython waits until Python has taken so many messages, and checks that no other has got lost to it.
func (r *rig) allToPython(messages int64, took ...*atomic.Int64) {
	r.Helper()
	r.until("Python has taken all", func() bool {
		n := int64(0)
		for _, t := range took {
			n += t.Load()
		}
		return n == messages
	})
	if n := r.waiting("default.XQ") + r.count("SELECT count(*) FROM opscore.orphan"); n != 0 {
		r.Errorf("%d dead letters and orphans", n)
	}
}

func TestPythonsMessagesReachItBesideAWorkerThatOnlySends(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	took := r.python("default")
	h := adders()
	sender, err := dramatiq.NewSender(r.session, dramatiq.Queues{})
	check(t, err)
	dramatiq.HandleSend(h, sender)
	ready := make(chan struct{})
	r.background((&opscore.Worker{
		Store: r.store, Handlers: h, Queues: []string{"default", dramatiq.SendActor}, Log: r.log, OnReady: func(opscore.WorkerInfo) { close(ready) },
	}).Run)
	<-ready
	r.work(adders(), &worker{source: dramatiq.Options{Alone: time.Minute}})
	for range 20 {
		r.send("python_only", "default", "[]", "{}", "{}")
	}
	r.allToPython(20, took)
}

func TestPythonsMessagesReachItFromTheStartOfAWorker(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	took, late := r.python("default"), r.python("default.DQ")
	for range 30 { // half of them, or so, are there when the worker begins
		r.send("python_only", "default.DQ", "[]", "{}", `{"eta":1}`)
	}
	r.work(adders(), &worker{source: dramatiq.Options{Alone: time.Minute}})
	for range 20 {
		r.send("python_only", "default", "[]", "{}", "{}")
	}
	r.allToPython(50, took, late)
}

// TestAQueueThatCannotBeUsedLeavesTheOthersAlone has somebody consume one of two queues exclusively.
func TestAQueueThatCannotBeUsedLeavesTheOthersAlone(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default", "mail")
	_, err := r.channel().Consume("mail", "", false, true, false, false, nil)
	check(t, err)
	r.work(adders(), &worker{source: dramatiq.Options{Queues: map[string][]string{"default": nil, "mail": nil}}})
	r.until("it is said", func() bool {
		return r.logged.has(`purpose="dramatiq consume mail"`) && r.logged.has("messages wait in their queue")
	})
	r.completed(r.send("add", "default", "[1,2]", "{}", "{}"), "3")
	r.completed(r.send("add", "default.DQ", "[1,2]", "{}", `{"eta":1}`), "3")
}

// TestABusyWorkerGivesBackWhatWaitsInAllItsQueues leaves messages to whoever has a free slot, also to workers of Python's: as tasks they were ours.
func TestABusyWorkerGivesBackWhatWaitsInAllItsQueues(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default", "mail")
	h, started := adders(), make(chan struct{})
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "hold"}, func(ctx context.Context, _ json.RawMessage) (string, error) {
		close(started)
		<-ctx.Done()
		return "", context.Cause(ctx)
	})
	hurry := make(chan struct{})
	close(hurry)
	r.work(h, &worker{
		Worker: opscore.Worker{Slots: 1, Hurry: hurry},
		source: dramatiq.Options{Queues: map[string][]string{"default": nil, "mail": nil}},
	})
	r.send("hold", "default", "[]", "{}", "{}")
	<-started
	for range 5 {
		r.send("add", "default", "[1,2]", "{}", "{}")
		r.send("add", "mail", "[1,2]", "{}", "{}")
	}
	r.until("both queues have theirs back", func() bool { return r.waiting("default") == 5 && r.waiting("mail") == 5 })
	if n := r.count("SELECT count(*) FROM opscore.task"); n != 1 {
		t.Errorf("%d tasks, want the one that runs", n)
	}
}

func TestACallbackWhoseActorHasMovedRuns(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	h, ran := adders(), make(chan json.RawMessage, 1)
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "notify"}, func(_ context.Context, in json.RawMessage) (string, error) {
		ran <- in
		return "ok", nil
	})
	r.work(h, &worker{})
	r.send("add", "default", "[1,2]", "{}", `{"on_success":"notify"}`)
	select {
	case <-ran:
	case <-time.After(time.Minute):
		t.Error("it did not run")
	}
}

func TestARunWhoseClaimWasLostSendsNoFailure(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default", "python")
	h := opscore.Handlers{}
	started := make(chan struct{}, 2)
	var runs atomic.Int64
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "hold"}, func(ctx context.Context, _ json.RawMessage) (string, error) {
		started <- struct{}{}
		if runs.Add(1) == 1 {
			<-ctx.Done()
			return "", context.Cause(ctx)
		}
		return "ok", nil
	})
	r.work(h, &worker{actors: map[string]string{"bad": "python", "spent": "python", "good": "python"}})
	r.keep()
	id := r.send("hold", "default", "[]", "{}", `{"max_retries":0,"on_failure":"bad","on_retry_exhausted":"spent","on_success":"good"}`)
	<-started
	workers, err := r.store.Workers(t.Context(), 0)
	check(t, err)
	check(t, r.store.Leave(t.Context(), workers[0].ID, "declared dead", opscore.Report{}))
	r.completed(id, `"ok"`)
	if m := r.sent("python"); m.Actor != "good" {
		t.Errorf("%s was called back", m.Actor)
	}
	r.until("all is sent", func() bool {
		return r.count("SELECT count(*) FROM opscore.task WHERE queue = $1 AND state <> 'completed'", dramatiq.SendActor) == 0
	})
	if n := r.waiting("python"); n != 0 {
		t.Errorf("%d more callbacks", n)
	}
}

func TestFailuresAfterAnOperatorsRetryAreToldAgain(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default", "python")
	h := opscore.Handlers{}
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "boom"}, func(context.Context, json.RawMessage) (string, error) {
		return "", errors.New("boom")
	})
	r.work(h, &worker{actors: map[string]string{"bad": "python", "spent": "python"}})
	id := r.send("boom", "default", "[]", "{}", `{"max_retries":0,"on_failure":"bad","on_retry_exhausted":"spent"}`)
	for range 2 {
		told := []string{r.sent("python").Actor, r.sent("python").Actor}
		slices.Sort(told)
		if !slices.Equal(told, []string{"bad", "spent"}) {
			t.Errorf("told %v", told)
		}
		r.await(id)
		_, err := r.store.Retry(t.Context(), []opscore.ID{id}, "ann")
		check(t, err)
	}
}

// TestAMessageWaitsWhileItCannotBeKeptAsAnOrphan locks the table that a replayed message is to be kept in.
func TestAMessageWaitsWhileItCannotBeKeptAsAnOrphan(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	r.work(adders(), &worker{})
	body, id := message("add", "default", "[1,2]", "{}", "{}")
	r.publish("default", body)
	r.completed(id, "3")
	tx, err := r.store.Pool().Begin(t.Context())
	check(t, err)
	_, err = tx.Exec(t.Context(), "LOCK TABLE opscore.orphan IN ACCESS EXCLUSIVE MODE")
	check(t, err)
	r.publish("default", body)
	r.until("it cannot be kept", func() bool { return r.logged.has("cannot be kept as an orphan; it waits") })
	check(t, tx.Rollback(t.Context()))
	r.orphan(opscore.CodeReplayed, id)
	if n := r.waiting("default.XQ"); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}
