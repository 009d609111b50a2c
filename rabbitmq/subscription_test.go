package rabbitmq_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/rabbitmq"
)

func TestAWorkerIsReadyOnlyOnceItsQueuesAreSubscribedTo(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	ch := r.channel()
	for i := range 10 {
		w := &opscore.Worker{Queues: []string{"orders", "mail", "parcels"}}
		_, stop := r.work(b, w) // returns when it is ready
		for _, q := range w.Queues {
			found, err := ch.QueueDeclarePassive("opscore."+q, true, false, false, false, nil)
			check(t, err)
			if found.Consumers != 1 {
				t.Errorf("worker %d was ready when queue %s had %d consumers", i, q, found.Consumers)
			}
		}
		stop()
	}
}

func TestASourceSaysWhatItIsConnectedTo(t *testing.T) {
	n, at := node(t)
	r := newRig(t, at)
	u, err := url.Parse(at)
	check(t, err)
	r.at = at + "," + strings.Replace(at, u.Host, "127.0.0.1:1", 1)
	b := r.broker(rabbitmq.Options{})
	w := &opscore.Worker{}
	r.work(b, w)
	workers, err := r.store.Workers(t.Context(), 0)
	check(t, err)
	want := opscore.Endpoint{Kind: "rabbitmq", Address: u.Host + ",127.0.0.1:1", Name: vhost, Instance: strings.Trim(eval(t, n, `binary_to_list(rabbit_nodes:cluster_name())`), `"`)}
	if got := workers[0].Endpoints; len(got) != 2 || got[1] != want {
		t.Errorf("the registry has %+v, want %+v as the second", got, want)
	}
}

// TestARevokedPermissionIsSeen takes the right to consume away, and then that to be there at all.
func TestARevokedPermissionIsSeen(t *testing.T) {
	n, at := node(t)
	r := newRig(t, at)
	u, err := url.Parse(at)
	check(t, err)
	user := u.User.Username()
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{Lease: 3 * time.Second, Queues: []string{"orders", "mail"}})
	r.keep(b)
	r.byTicket(source)
	hangUp := func() {
		eval(t, n, `[rabbit_networking:close_connection(P, "test") || P <- rabbit_networking:connections()]`)
	}
	permit := func(read string) {
		eval(t, n, `rabbit_auth_backend_internal:set_permissions(<<"`+user+`">>, <<"`+vhost+`">>, <<".*">>, <<".*">>, <<"`+read+`">>, <<"t">>)`)
	}
	permit("^opscore.orders$")
	hangUp()
	r.reported(opscore.CheckBroker, opscore.CheckDegraded, "queue mail cannot be used", "lacks a permission", "tasks are pulled")
	r.byTicket(source)
	_, err = n.Ctl(t.Context(), "clear_permissions", "-p", vhost, user)
	check(t, err)
	hangUp()
	c := r.reported(opscore.CheckBroker, opscore.CheckDegraded, "not subscribed to queues mail, orders", "the user may not use it")
	if time.Since(c.Since) > 10*time.Second || time.Since(c.Since) < 0 {
		t.Errorf("it has been so since %v, it is %v", c.Since, time.Now())
	}
	r.submit(10, 0)
	r.await()
	permit(".*")
	r.reported(opscore.CheckBroker, opscore.CheckOK)
	r.byTicket(source)
}

// TestAQueueThatCannotBeConsumedLeavesTheOthersAlone has somebody consume one of two queues exclusively.
func TestAQueueThatCannotBeConsumedLeavesTheOthersAlone(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	ch := r.channel()
	_, err := ch.QueueDeclare("opscore.mail", true, false, false, false, nil)
	check(t, err)
	_, err = ch.Consume("opscore.mail", "", false, true, false, false, nil)
	check(t, err)
	log := r.hear()
	b := r.broker(rabbitmq.Options{})
	w := &opscore.Worker{Lease: 3 * time.Second, Queues: []string{"mail", "orders"}}
	source, _ := r.work(b, w)
	r.keep(b)
	r.reported(opscore.CheckBroker, opscore.CheckDegraded, "queue mail cannot be used", "somebody else consumes the queue alone")
	r.byTicket(source)
	lost := log.count("no connection to the broker")
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); {
		r.byTicket(source)
	}
	if n := log.count("no connection to the broker"); n != lost {
		t.Errorf("the connection was lost %d times while a queue could not be consumed, want %d", n, lost)
	}
}

// TestBehaviour106ABrokerThatIsNotThereIsNoSilentReady starts workers against nothing and against a frozen broker, and then brings it back.
func TestBehaviour106ABrokerThatIsNotThereIsNoSilentReady(t *testing.T) {
	for _, fault := range []struct {
		name   string
		inject func(*nodes.RabbitMQ) error
		end    func(*testing.T, *nodes.RabbitMQ) error
		says   string
	}{
		{"dead", (*nodes.RabbitMQ).Stop, func(t *testing.T, n *nodes.RabbitMQ) error { return n.Start(t.Context()) }, "it cannot be reached"},
		{"frozen", (*nodes.RabbitMQ).Pause, func(_ *testing.T, n *nodes.RabbitMQ) error { return n.Continue() }, "does not answer"},
	} {
		t.Run(fault.name, func(t *testing.T) {
			n, at := node(t)
			r := newRig(t, at)
			check(t, fault.inject(n))
			b := r.broker(rabbitmq.Options{})
			w := &opscore.Worker{Lease: 3 * time.Second}
			began := time.Now()
			source, _ := r.work(b, w)
			took := time.Since(began)
			r.keep(b)
			info := w.Info()
			c := info.Report.Check(opscore.CheckBroker)
			t.Logf("ready after %v: %+v", took, c)
			if c.State != opscore.CheckDegraded || took < 4*time.Second {
				t.Errorf("it was ready after %v with %+v", took, c)
			}
			r.reported(opscore.CheckBroker, opscore.CheckDegraded, "not subscribed to queue orders yet", fault.says, "tasks are pulled from the database meanwhile")
			r.submit(10, 0)
			r.await()
			check(t, fault.end(t, n))
			r.reported(opscore.CheckBroker, opscore.CheckOK)
			r.byTicket(source)
		})
	}
}

// TestBehaviour106AQueueWithOtherArgumentsIsConsumed is what made a worker of Dramatiq's silent: here the queue is used as it is.
func TestBehaviour106AQueueWithOtherArgumentsIsConsumed(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	_, err := r.channel().QueueDeclare("opscore.orders", true, false, false, false, amqp.Table{"x-message-ttl": int64(60_000), "x-max-priority": int64(3)})
	check(t, err)
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{Lease: 3 * time.Second})
	r.keep(b)
	r.byTicket(source)
	r.reported(opscore.CheckBroker, opscore.CheckOK)
}

// TestAFrozenBrokerIsSeenBeforeItsHeartbeatsAreMissed has a worker whose connection is open and of no use.
func TestAFrozenBrokerIsSeenBeforeItsHeartbeatsAreMissed(t *testing.T) {
	n, at := node(t)
	r := newRig(t, at)
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{Lease: 3 * time.Second})
	r.keep(b)
	r.byTicket(source)
	settle()
	check(t, n.Pause())
	frozen := time.Now()
	r.reported(opscore.CheckDelivery, opscore.CheckDegraded, "deaf", "does not answer on the connection")
	r.reported(opscore.CheckBroker, opscore.CheckDegraded, "not subscribed to queue orders", "does not answer")
	t.Logf("seen after %v", time.Since(frozen))
	r.submit(10, 0)
	r.await()
	check(t, n.Continue())
	r.reported(opscore.CheckBroker, opscore.CheckOK)
	r.byTicket(source)
	r.reported(opscore.CheckDelivery, opscore.CheckOK)
}
