package rabbitmq_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/rabbitmq"
)

// vhost is where the faults happen: not on "/", so that it can be deleted.
const vhost = "app"

// node starts a broker of the test's own with a virtual host.
func node(t *testing.T, more ...string) (n *nodes.RabbitMQ, at string) {
	t.Helper()
	n = nodes.OwnRabbitMQ(t, more...)
	addVhost(t, n)
	return n, n.URL(vhost)
}

func addVhost(t *testing.T, n *nodes.RabbitMQ) {
	t.Helper()
	u, err := url.Parse(n.URL("/"))
	check(t, err)
	eval(t, n, fmt.Sprintf(`ok = rabbit_vhost:add(<<"%[1]s">>, <<"t">>),
		ok = rabbit_auth_backend_internal:set_permissions(<<"%[2]s">>, <<"%[1]s">>, <<".*">>, <<".*">>, <<".*">>, <<"t">>)`, vhost, u.User.Username()))
}

// settle lets the broker write down that it has a new quorum queue: one that is killed within a second of that has forgotten it
// (RabbitMQ 3.10), and the queue has no leader from then on. Tasks are pulled then, which the other tests look at.
func settle() { <-time.After(3 * time.Second) }

func eval(t *testing.T, n *nodes.RabbitMQ, text string) string {
	t.Helper()
	out, err := n.Eval(t.Context(), text)
	check(t, err)
	return out
}

// TestTasksCompleteOnceEachWhateverHappensToTheBroker injects each fault under load: 10,000 tasks, about 1500 a second, each fault after
// the first two seconds.
func TestTasksCompleteOnceEachWhateverHappensToTheBroker(t *testing.T) {
	orders := func(of string) string {
		return fmt.Sprintf(`rabbit_misc:r(<<"%s">>, queue, <<"%s">>)`, vhost, of)
	}
	for _, fault := range []struct {
		name   string
		inject func(t *testing.T, n *nodes.RabbitMQ)
	}{
		{"it is killed and started again", func(t *testing.T, n *nodes.RabbitMQ) { check(t, n.Kill(), n.Start(t.Context())) }},
		{"it is frozen for seven seconds", func(t *testing.T, n *nodes.RabbitMQ) {
			check(t, n.Pause())
			<-time.After(7 * time.Second)
			check(t, n.Continue())
		}},
		{"it has a memory alarm for three seconds", func(t *testing.T, n *nodes.RabbitMQ) {
			eval(t, n, `vm_memory_monitor:set_vm_memory_high_watermark(0.0000001)`)
			<-time.After(3 * time.Second)
			eval(t, n, `vm_memory_monitor:set_vm_memory_high_watermark(0.6)`)
		}},
		{"the queue is purged again and again", func(t *testing.T, n *nodes.RabbitMQ) {
			for range 20 {
				eval(t, n, `{ok, Q} = rabbit_amqqueue:lookup(`+orders("opscore.orders")+`), rabbit_amqqueue:purge(Q)`)
				<-time.After(50 * time.Millisecond)
			}
		}},
		{"the queue is deleted", func(t *testing.T, n *nodes.RabbitMQ) {
			eval(t, n, `{ok, Q} = rabbit_amqqueue:lookup(`+orders("opscore.orders")+`), rabbit_amqqueue:delete(Q, false, false, <<"t">>)`)
		}},
		{"the virtual host is deleted and made again", func(t *testing.T, n *nodes.RabbitMQ) {
			eval(t, n, `rabbit_vhost:delete(<<"`+vhost+`">>, <<"t">>)`)
			<-time.After(time.Second)
			addVhost(t, n)
		}},
		{"it loses all its state", func(t *testing.T, n *nodes.RabbitMQ) {
			check(t, n.Wipe(t.Context()))
			addVhost(t, n)
		}},
	} {
		t.Run(fault.name, func(t *testing.T) {
			n, at := node(t)
			r := newRig(t, at)
			b := r.broker(rabbitmq.Options{})
			source, _ := r.work(b, &opscore.Worker{Slots: 20})
			r.keep(b)
			r.submit(1, 0)
			r.await()
			settle()
			loaded := r.loading(10_000, 15, 5*time.Millisecond)
			r.until("tasks run by ticket", func() bool { return source.Stats().Claimed > 1000 })
			before := source.Stats()
			r.delays()
			fault.inject(t, n)
			healed := source.Stats()
			<-loaded
			r.await()
			r.until("tickets again", func() bool {
				r.submit(1, 0)
				return source.Stats().Claimed > healed.Claimed
			})
			r.await()
			starts := r.since()
			kept := keptBack(starts)
			t.Logf("kept back for %v; %s; before %+v; at the end %+v", kept, spread(delays(starts)), before, source.Stats())
			if kept > 10*time.Second {
				t.Errorf("a task was kept back for %v, want at most 10 s", kept)
			}
		})
	}
}

func TestWorkGoesOnByPullWhileTheBrokerIsStopped(t *testing.T) {
	n, at := node(t)
	r := newRig(t, at)
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{Slots: 20})
	r.keep(b)
	r.load(2000, 5, time.Millisecond)
	r.await()
	check(t, n.Stop())
	r.delays()
	before := source.Stats()
	r.load(10_000, 5, time.Millisecond) // for 20 s
	r.await()
	waits := r.delays()
	during := source.Stats()
	t.Logf("while it is stopped: %s; pulled %d", spread(waits), during.Pulled-before.Pulled)
	if p95 := percentile(waits, 95); p95 > 1500*time.Millisecond {
		t.Errorf("p95 %v, want at most 1.5 s", p95)
	}
	check(t, n.Start(t.Context()))
	r.until("tickets again", func() bool {
		r.submit(1, 0)
		return source.Stats().Claimed > during.Claimed
	})
	r.load(2000, 5, time.Millisecond)
	r.await()
	after := source.Stats()
	missed, all := after.Missed-during.Missed, after.Claimed-during.Claimed+after.Missed-during.Missed
	t.Logf("after its return: %d of %d tickets' tasks were not there any more", missed, all)
	if missed*20 > all {
		t.Errorf("%d of %d tickets' tasks were not there any more, want at most 5 %%", missed, all)
	}
}

func TestConnectionsThatAreClosedAllTheTimeCostNothing(t *testing.T) {
	n, at := node(t)
	r := newRig(t, at)
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{Slots: 50})
	r.keep(b)
	loaded := r.loading(15_000, 5, 3*time.Millisecond) // for 30 s
	closed := 0
	for tick := time.NewTicker(time.Second); ; {
		select {
		case <-tick.C:
			out := eval(t, n, `length([rabbit_networking:close_connection(P, "test") || P <- rabbit_networking:connections()])`)
			if strings.TrimSpace(out) != "0" {
				closed++
			}
			continue
		case <-loaded:
			tick.Stop()
		}
		break
	}
	r.await()
	s := source.Stats()
	t.Logf("closed %d times: %s; %+v", closed, spread(r.delays()), s)
	if closed < 20 {
		t.Errorf("connections were closed %d times only", closed)
	}
	if s.Missed*50 > s.Claimed {
		t.Errorf("%d of %d tasks were missed, want at most 2 %%", s.Missed, s.Claimed)
	}
}

func TestATaskLongerThanTheConsumerTimeoutCompletesOnce(t *testing.T) {
	n, at := node(t, "consumer_timeout = 3000")
	eval(t, n, "application:set_env(rabbit, channel_tick_interval, 1000)") // how often channels look whether it is over
	r := newRig(t, at)
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{Slots: 2})
	r.keep(b)
	r.submit(4, 6*time.Second) // two at a time: the others wait, in the broker or here
	r.await()
	t.Logf("%+v", source.Stats())
	if n := r.count("SELECT count(*) FROM opscore.attempt"); n != 0 {
		t.Errorf("%d attempts did not complete their tasks", n)
	}
}
