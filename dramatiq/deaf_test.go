package dramatiq_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/dramatiq"
)

// reported waits until the registry has a check of the only worker in a state, with a text that holds these words.
func (r *rig) reported(name string, state opscore.CheckState, words ...string) (c opscore.Check) {
	r.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		workers, err := r.store.Workers(r.Context(), 0)
		check(r, err)
		if len(workers) == 1 {
			c = workers[0].Report.Check(name)
		}
		says := c.State == state
		for _, w := range words {
			says = says && strings.Contains(c.Text, w)
		}
		if says {
			return c
		}
		if time.Now().After(deadline) {
			r.Fatalf("the registry has %s %s %q; want %s %q", name, c.State, c.Text, state, words)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// TestADeafWorkerHealsItself lets the broker forget a consumer, or not serve its channel any more, without a word to the worker: nobody pulls messages.
func TestADeafWorkerHealsItself(t *testing.T) {
	for _, fault := range []struct{ name, queue, inject, says string }{
		{"its consumer is forgotten", "default", `ok = gen_server2:call(amqqueue:get_pid(Q), {basic_cancel, Channel, Tag, undefined, <<"t">>})`, "queue default: 5 wait in the broker"},
		{"that of delayed messages is", "default.DQ", `ok = gen_server2:call(amqqueue:get_pid(Q), {basic_cancel, Channel, Tag, undefined, <<"t">>})`, "queue default.DQ: 5 wait in the broker"},
		{"its channel is frozen", "default", `persistent_term:put(frozen, Channel), ok = sys:suspend(Channel)`, "does not answer on the connection"},
	} {
		t.Run(fault.name, func(t *testing.T) {
			n, at := node(t)
			r := newRigAt(t, at)
			r.work(adders(), &worker{Worker: opscore.Worker{Lease: 3 * time.Second}})
			r.completed(r.send("add", "default", "[1,2]", "{}", "{}"), "3")
			eval(t, n, `{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"app">>, queue, <<"`+fault.queue+`">>)),
				[_] = [begin `+fault.inject+` end || {Channel, Tag, _, _, _, _, _, _} <- rabbit_amqqueue:consumers(Q)]`)
			injected := time.Now()
			var ids []opscore.ID
			for range 5 {
				ids = append(ids, r.send("add", fault.queue, "[1,2]", "{}", `{"eta":1}`))
			}
			c := r.reported(opscore.CheckDelivery, opscore.CheckDegraded, "deaf", fault.says, "messages wait in their queue")
			t.Logf("said after %v: %+v", time.Since(injected), c)
			// As long as a channel within the broker is neither alive nor dead, the broker goes on to give it messages, and takes none back: there only the
			// broker can heal itself. The old channel has no connection any more, and whatever it got must come to the new one.
			eval(t, n, `catch sys:resume(persistent_term:get(frozen, none), 1000)`)
			for _, id := range ids {
				r.completed(id, "3")
			}
			t.Logf("healed after %v", time.Since(injected))
			r.reported(opscore.CheckDelivery, opscore.CheckOK)
			r.reported(opscore.CheckBroker, opscore.CheckOK)
		})
	}
}

// TestABusyWorkerIsNotDeaf has messages wait in the broker while all slots are busy, and a broker that has nothing for a second queue.
func TestABusyWorkerIsNotDeaf(t *testing.T) {
	r := newRig(t)
	h := adders()
	release := make(chan struct{})
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "hold"}, func(context.Context, json.RawMessage) (string, error) {
		<-release
		return "held", nil
	})
	w := &worker{Worker: opscore.Worker{Slots: 2}, source: dramatiq.Options{Queues: map[string][]string{"default": nil, "mail": nil}}}
	r.work(h, w)
	held := []opscore.ID{r.send("hold", "default", "[]", "{}", "{}"), r.send("hold", "default", "[]", "{}", "{}")}
	r.until("both slots are busy", func() bool { return w.Info().Report.Running == 2 })
	for range 5 {
		r.send("add", "default", "[1,2]", "{}", "{}")
	}
	r.until("they wait", func() bool { return r.waiting("default") == 5 })
	for until := time.Now().Add(8 * time.Second); time.Now().Before(until); <-time.After(20 * time.Millisecond) {
		info := w.Info()
		if c := info.Report.Check(opscore.CheckDelivery); c.State != opscore.CheckOK || r.logged.has("deaf") {
			t.Fatalf("%+v", c)
		}
	}
	close(release)
	for _, id := range held {
		r.completed(id, `"held"`)
	}
	r.until("the others come", func() bool { return r.waiting("default") == 0 })
}

// TestBehaviour106NothingThatKeepsMessagesAwayIsSilent has what left a worker of Dramatiq's "ready" without a message.
func TestBehaviour106NothingThatKeepsMessagesAwayIsSilent(t *testing.T) {
	t.Run("a queue with other arguments", func(t *testing.T) { // 406 to whoever declares it otherwise: it is used as it is
		r := newRig(t)
		_, err := r.ch.QueueDeclare("default", true, false, false, false, amqp.Table{"x-max-priority": int32(3)})
		check(t, err)
		r.work(adders(), &worker{Worker: opscore.Worker{Lease: 3 * time.Second}})
		r.completed(r.send("add", "default", "[1,2]", "{}", "{}"), "3")
		r.reported(opscore.CheckBroker, opscore.CheckOK)
		if !r.logged.has("a queue is used as it is, though it is not as configured") {
			t.Error("it is not said")
		}
	})
	t.Run("a name that is mistyped", func(t *testing.T) {
		r := newRig(t)
		r.declare(0, "default")
		r.work(adders(), &worker{source: dramatiq.Options{Queues: map[string][]string{"defaults": nil}}})
		if !r.logged.has("a queue of Dramatiq's did not exist and was made: is its name right?") {
			t.Error("it is not said")
		}
	})
	t.Run("a queue that somebody else has", func(t *testing.T) {
		r := newRig(t)
		r.declare(0, "default", "mail")
		_, err := r.channel().Consume("mail", "", false, true, false, false, nil)
		check(t, err)
		r.work(adders(), &worker{Worker: opscore.Worker{Lease: 3 * time.Second}, source: dramatiq.Options{Queues: map[string][]string{"default": nil, "mail": nil}}})
		r.reported(opscore.CheckBroker, opscore.CheckDegraded, "not subscribed to queues mail, mail.DQ", "somebody else consumes the queue alone")
	})
	t.Run("a dead broker", func(t *testing.T) {
		n, at := node(t)
		r := newRigAt(t, at)
		check(t, n.Stop())
		began := time.Now()
		r.work(adders(), &worker{Worker: opscore.Worker{Lease: 3 * time.Second}})
		if took := time.Since(began); took < 4*time.Second {
			t.Errorf("it was ready after %v, as if nothing was", took)
		}
		r.reported(opscore.CheckBroker, opscore.CheckDegraded, "not subscribed to queues default, default.DQ", "it cannot be reached")
		check(t, n.Start(t.Context()))
		r.reported(opscore.CheckBroker, opscore.CheckOK)
	})
}
