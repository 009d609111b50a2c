package rabbitmq_test

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

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
