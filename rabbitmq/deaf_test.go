package rabbitmq_test

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/rabbitmq"
)

// lines are what was logged.
type lines struct {
	mu  sync.Mutex
	all strings.Builder
	to  interface{ Write([]byte) (int, error) }
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all.Write(b)
	return l.to.Write(b)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.all.String(), text)
}

// hear keeps what is logged from here on.
func (r *rig) hear() *lines {
	l := &lines{to: r.Output()}
	r.log = slog.New(slog.NewTextHandler(l, nil))
	return l
}

// reported waits until the registry has a check of the only worker in a state, with a text that holds these words.
func (r *rig) reported(name string, state opscore.CheckState, words ...string) opscore.Check {
	r.Helper()
	var c opscore.Check
	deadline := time.Now().Add(time.Minute)
	for {
		workers, err := r.store.Workers(r.Context(), 0)
		check(r, err)
		if len(workers) == 1 {
			c = workers[0].Report.Check(name)
		}
		says := true
		for _, w := range words {
			says = says && strings.Contains(c.Text, w)
		}
		if c.State == state && says {
			return c
		}
		if time.Now().After(deadline) {
			r.Fatalf("the registry has %s %s %q; want %s %q", name, c.State, c.Text, state, words)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// byTicket waits until tasks reach the worker by ticket.
func (r *rig) byTicket(s *rabbitmq.Source) {
	r.Helper()
	before := s.Stats()
	r.until("tickets come", func() bool {
		r.submit(1, 0)
		return s.Stats().Tickets > before.Tickets && s.Stats().Claimed > before.Claimed
	})
	r.await()
}

// consumers evaluates, for each consumer of the worker's queue, an expression of Channel and Tag.
func consumers(t *testing.T, n *nodes.RabbitMQ, expression string) string {
	t.Helper()
	return eval(t, n, fmt.Sprintf(`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"%s">>, queue, <<"opscore.orders">>)),
		[begin %s end || {Channel, Tag, _, _, _, _, _, _} <- rabbit_amqqueue:consumers(Q)]`, vhost, expression))
}

// TestADeafWorkerSaysSoAndHealsItself lets the broker forget its consumer, or not serve it any more, without a word to the worker.
func TestADeafWorkerSaysSoAndHealsItself(t *testing.T) {
	for _, fault := range []struct {
		name    string
		classic bool
		inject  string
		says    string
	}{
		{"a quorum queue forgets it", false, `{ok, _, _} = ra:process_command(amqqueue:get_pid(Q), rabbit_fifo:make_checkout({Tag, Channel}, cancel, #{}))`, "the broker lists no consumer"},
		{"a classic queue forgets it", true, `ok = gen_server2:call(amqqueue:get_pid(Q), {basic_cancel, Channel, Tag, undefined, <<"t">>})`, "the broker lists no consumer"},
		{"its channel is frozen", false, `ok = sys:suspend(Channel)`, "does not answer on the connection"},
	} {
		t.Run(fault.name, func(t *testing.T) {
			n, at := node(t)
			r := newRig(t, at)
			b := r.broker(rabbitmq.Options{Classic: fault.classic})
			w := &opscore.Worker{Slots: 20, Lease: 3 * time.Second}
			source, _ := r.work(b, w)
			r.keep(b)
			r.byTicket(source)
			consumers(t, n, fault.inject)
			injected, before := time.Now(), source.Stats()
			r.submit(10, 0)
			c := r.reported(opscore.CheckDelivery, opscore.CheckDegraded, "deaf", fault.says, "tasks are pulled from the database meanwhile")
			t.Logf("said after %v: %+v", time.Since(injected), c)
			if silence := injected.Sub(c.Since); silence < -time.Second || silence > 10*time.Second {
				t.Errorf("it was silent since %v, which is %v before it was", c.Since, silence)
			}
			r.await()
			t.Logf("healed after %v", time.Since(injected))
			if s := source.Stats(); s.Pulled == before.Pulled {
				t.Errorf("before %+v, then %+v: nothing was pulled", before, s)
			}
			r.byTicket(source)
			r.reported(opscore.CheckDelivery, opscore.CheckOK)
			r.reported(opscore.CheckBroker, opscore.CheckOK)
		})
	}
}

// TestADeafWorkerThatCannotBeHealedDoesNotThrash has somebody else be the only one whom a queue serves.
func TestADeafWorkerThatCannotBeHealedDoesNotThrash(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	served := r.reserve(3) // one of them is served, and never settled
	log := r.hear()
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{Lease: 3 * time.Second})
	r.keep(b)
	began := time.Now()
	c := r.reported(opscore.CheckDelivery, opscore.CheckDegraded, "deaf", "2 wait in the broker")
	r.reported(opscore.CheckDelivery, opscore.CheckDegraded, "new sessions so far: 3")
	t.Logf("after %v: %+v", time.Since(began), c)
	if took := time.Since(began); took < 15*time.Second {
		t.Errorf("three new sessions within %v: they should be 5 and then 10 s apart", took)
	}
	r.submit(10, 0)
	r.await()
	if s := source.Stats(); s.Tickets != 0 || s.Pulled < 10 {
		t.Errorf("%+v", s)
	}
	check(t, served.Close())
	r.until("what waited comes", func() bool { return source.Stats().Tickets >= 3 })
	r.byTicket(source)
	r.reported(opscore.CheckDelivery, opscore.CheckOK)
	if n := log.count("no longer deaf to a queue"); n != 1 {
		t.Errorf("the end of deafness is logged %d times", n)
	}
}

// TestAWorkerForWhichThereIsNothingIsNotDeaf looks at idle workers, ones that get nothing because others do, and busy ones.
func TestAWorkerForWhichThereIsNothingIsNotDeaf(t *testing.T) {
	n, at := node(t)
	r := newRig(t, at)
	log := r.hear()
	b := r.broker(rabbitmq.Options{})
	idle, busy := &opscore.Worker{Queues: []string{"orders", "mail"}}, &opscore.Worker{Slots: 1}
	r.work(b, idle)
	other := opscore.Actor[order, string]{Name: "ship", Queue: "parcels"}
	busy.Handlers = opscore.Handlers{}
	opscore.Handle(busy.Handlers, other, r.handle)
	r.work(b, busy)
	r.keep(b)
	_, err := r.client.Submit(t.Context(), other.Request(order{1, 14 * time.Second}))
	check(t, err)
	r.until("it is busy", func() bool { return busy.Info().Report.Running == 1 })
	for i := range 5 {
		_, err := r.client.Submit(t.Context(), other.Request(order{i, 0}))
		check(t, err)
	}
	ch := r.channel()
	connections := func() string { return eval(t, n, `lists:sort(rabbit_networking:connections())`) }
	settle()
	before, waited := connections(), 0
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); <-time.After(20 * time.Millisecond) {
		for _, w := range []*opscore.Worker{idle, busy} {
			for _, name := range []string{opscore.CheckBroker, opscore.CheckDelivery} {
				info := w.Info()
				if c := info.Report.Check(name); c.State != opscore.CheckOK {
					t.Fatalf("worker of %v: %+v", info.Queues, c)
				}
			}
		}
		if running := busy.Info().Report.Running; running == 1 {
			q, err := ch.QueueDeclarePassive("opscore.parcels", true, false, false, false, nil)
			check(t, err)
			waited = max(waited, q.Messages)
		}
	}
	if waited == 0 {
		t.Error("no ticket waited for the busy worker")
	}
	if after := connections(); after != before {
		t.Errorf("there were the connections %s, and now there are %s", before, after)
	}
	if log.count("deaf") != 0 {
		t.Error("somebody was deaf")
	}
}

// TestAWorkerIsDeafToOneQueueBesideABusyOne has tickets of another queue come all the time.
func TestAWorkerIsDeafToOneQueueBesideABusyOne(t *testing.T) {
	n, at := node(t)
	r := newRig(t, at)
	b := r.broker(rabbitmq.Options{})
	w := &opscore.Worker{Lease: 3 * time.Second, Queues: []string{"orders", "mail"}}
	source, _ := r.work(b, w)
	r.keep(b)
	r.byTicket(source)
	consumers(t, n, `{ok, _, _} = ra:process_command(amqqueue:get_pid(Q), rabbit_fifo:make_checkout({Tag, Channel}, cancel, #{}))`)
	r.submit(3, 0)
	var c opscore.Check
	r.until("it is deaf to one of them", func() bool {
		r.submit(1, 0, opscore.Queue("mail"))
		info := w.Info()
		c = info.Report.Check(opscore.CheckDelivery)
		return c.State != opscore.CheckOK
	})
	if !strings.Contains(c.Text, "deaf: queue orders: ") || strings.Contains(c.Text, "mail") {
		t.Errorf("%+v", c)
	}
	r.byTicket(source)
	r.await()
}

// TestADeafWorkerThatGetsBusyIsExcused has no slot to get anything for: nobody looks any more.
func TestADeafWorkerThatGetsBusyIsExcused(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	r.reserve(2)
	b := r.broker(rabbitmq.Options{})
	w := &opscore.Worker{Slots: 1}
	r.work(b, w)
	delivery := func(state opscore.CheckState) bool {
		info := w.Info()
		return info.Report.Check(opscore.CheckDelivery).State == state
	}
	r.until("it is deaf", func() bool { return delivery(opscore.CheckDegraded) })
	r.submit(1, 20*time.Second)
	r.until("it is busy and not deaf", func() bool { return w.Info().Report.Running == 1 && delivery(opscore.CheckOK) })
	r.await()
	r.until("it is deaf again", func() bool { return delivery(opscore.CheckDegraded) })
}

// reserve makes the queue of orders one that serves only somebody else, who settles nothing, and puts messages there.
func (r *rig) reserve(messages int) (served *amqp.Channel) {
	r.Helper()
	_, err := r.channel().QueueDeclare("opscore.orders", true, false, false, false, amqp.Table{"x-single-active-consumer": true})
	check(r, err)
	served = r.channel()
	check(r, served.Qos(1, 0, false))
	_, err = served.Consume("opscore.orders", "", false, false, false, false, nil)
	check(r, err)
	for range messages {
		check(r, served.PublishWithContext(r.Context(), "", "opscore.orders", false, false, amqp.Publishing{Body: []byte("no ticket")}))
	}
	return served
}
