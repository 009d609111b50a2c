package rabbitmq_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/rabbitmq"
)

// stubborn is a worker that does not wait for long tasks at its end.
func stubborn(slots int) *opscore.Worker {
	return &opscore.Worker{Slots: slots, Grace: 5 * time.Second}
}

// cancelAll lets workers end that have long tasks.
func (r *rig) cancelAll() {
	if _, err := r.store.Cancel(context.WithoutCancel(r.Context()), r.running(), "the test"); err != nil {
		r.Error(err)
	}
}

// TestLongTasksLeaveTheWindowAsItIs looks for longer than it takes until tickets are taken for lost.
func TestLongTasksLeaveTheWindowAsItIs(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	r.work(b, stubborn(5))
	r.keep(b)
	defer r.cancelAll()
	r.submit(1000, time.Minute)
	r.until("it is busy", func() bool { return len(r.running()) == 5 })
	most := 0
	for end := time.Now().Add(11 * time.Second); time.Now().Before(end); <-time.After(100 * time.Millisecond) {
		most = max(most, r.count("SELECT coalesce(sum(cardinality(tasks)), 0) FROM opscore.ticket"))
	}
	if most > 2*5 {
		t.Errorf("%d tasks were out for 5 slots, want at most two per slot", most)
	}
}

func TestABacklogThatNobodyAnnouncesIsPulledWithoutAPause(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	r.work(b, &opscore.Worker{Slots: 1})
	began := time.Now()
	r.submit(20, 150*time.Millisecond)
	r.await()
	if took := time.Since(began); took > 10*time.Second { // with a pause of a second each it would be 20 s
		t.Errorf("20 tasks of 150 ms took %v", took)
	}
}

func TestWorkersWithOtherActorsOnAQueueHoldNothingUp(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	mine, _ := r.work(b, &opscore.Worker{Slots: 20})
	handlers := opscore.Handlers{}
	refund := opscore.Actor[order, string]{Name: "refund", Queue: "orders"}
	opscore.Handle(handlers, refund, r.handle)
	other, _ := r.work(b, &opscore.Worker{Slots: 20, Handlers: handlers})
	r.keep(b)
	r.load(3000, 10, time.Millisecond)
	r.await()
	waits := r.delays()
	t.Logf("%s; %+v; %+v", spread(waits), mine.Stats(), other.Stats())
	if most := percentile(waits, 100); most > 5*time.Second {
		t.Errorf("a task waited for %v", most)
	}
}

func TestAShortTaskDoesNotWaitBehindANearlyBusyWorker(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	busy, _ := r.work(b, stubborn(50))
	r.keep(b)
	defer r.cancelAll()
	r.submit(49, time.Minute)
	r.until("it is nearly busy", func() bool { return len(r.running()) == 49 })
	idle, _ := r.work(b, &opscore.Worker{Slots: 50})
	r.until("the relay knows of the other one", func() bool {
		r.submit(1, 0)
		return idle.Stats().Claimed+idle.Stats().Pulled > 0
	})
	r.delays()
	for range 90 {
		r.submit(1, 180*time.Millisecond)
		<-time.After(10 * time.Millisecond)
	}
	r.until("all are completed", func() bool {
		return r.count("SELECT count(*) FROM opscore.task WHERE state = 'completed'") == int(r.submitted.Load())-49
	})
	waits := r.delays()
	t.Logf("%s; busy %+v; idle %+v", spread(waits), busy.Stats(), idle.Stats())
	if most := percentile(waits, 100); most > time.Second {
		t.Errorf("a task waited for %v, want at most 1 s", most)
	}
}

// TestTicketsAreTakenBackWithoutDeadlocks has everybody at the same tickets who can delete them.
func TestTicketsAreTakenBackWithoutDeadlocks(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	ctx := t.Context()
	worker := opscore.WorkerInfo{ID: r.instance(), Queues: []string{"orders"}, Actors: []string{"charge"}, Slots: 100, State: opscore.WorkerReady}
	check(t, r.store.Register(ctx, worker))
	for range 30 {
		r.submit(300, 0)
		_, err := r.store.Due(ctx)
		check(t, err)
		issued, err := r.store.Issue(ctx, opscore.Issue{Queue: "orders", Actors: []string{"charge"}, Window: 300, Size: 4})
		check(t, err)
		var ids, backwards, tasks []opscore.ID
		for _, k := range issued.Tickets {
			ids, backwards, tasks = append(ids, k.ID), append([]opscore.ID{k.ID}, backwards...), append(tasks, k.Tasks...)
		}
		done := make(chan error, 4)
		go func() { done <- r.store.Withdraw(ctx, ids) }()
		go func() { done <- r.store.Withdraw(ctx, backwards) }()
		go func() {
			_, err := r.store.Forget(ctx, "orders", 0, 0)
			done <- err
		}()
		go func() {
			_, err := r.store.Claim(ctx, opscore.Claim{
				Worker: worker.ID, Queues: worker.Queues, Actors: worker.Actors, Max: len(tasks), IDs: tasks, Tickets: backwards,
			})
			done <- err
		}()
		check(t, errors.Join(<-done, <-done, <-done, <-done))
		if n := r.count("SELECT count(*) FROM opscore.ticket"); n != 0 {
			t.Fatalf("%d tickets are left", n)
		}
	}
}

// blind is a publisher that cannot say what waits.
type blind struct{ opscore.Publisher }

func (blind) Waiting(context.Context, string) (int, error) { return 0, errors.New("cannot ask") }

func TestARelayThatCannotAskGoesOnPublishing(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{Slots: 20})
	publisher := blind{b.Publisher()}
	r.until("the publisher is ready", publisher.Ready)
	r.background((&opscore.Keeper{Store: r.store, Publisher: publisher, Log: r.log}).Run)
	_, err := r.store.Pool().Exec(t.Context(), // one that was lost long ago
		"INSERT INTO opscore.ticket VALUES (gen_random_uuid(), 'orders', now() - interval '20 s', ARRAY[gen_random_uuid()], ARRAY[0])")
	check(t, err)
	r.load(500, 2, 0)
	r.await()
	waits := r.delays()
	t.Logf("%s; %+v", spread(waits), source.Stats())
	if most := percentile(waits, 100); most > 3*time.Second {
		t.Errorf("a task waited for %v", most)
	}
}

// TestANewQueueLosesNothing has a backlog before anything of it is in the broker.
func TestANewQueueLosesNothing(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	r.submit(500, time.Millisecond)
	b := r.broker(rabbitmq.Options{})
	r.keep(b)
	source, _ := r.work(b, &opscore.Worker{Slots: 20})
	r.await()
	if s := source.Stats(); s.Missed > 0 {
		t.Errorf("%+v: tasks were announced twice", s)
	}
}

func TestStoppingDoesNotWaitForAFrozenBroker(t *testing.T) {
	n, at := node(t)
	r := newRig(t, at)
	b, err := rabbitmq.Open(t.Context(), at, r.store, rabbitmq.Options{Log: r.log})
	check(t, err)
	_, stop := r.work(b, &opscore.Worker{})
	stopKeeper := r.keep(b)
	r.submit(10, 0)
	r.await()
	check(t, n.Pause())
	began := time.Now()
	stop()
	stopKeeper()
	b.Close()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	check(t, n.Continue())
}

func TestAnUnescapedPasswordIsNotTakenForSomethingElse(t *testing.T) {
	for _, url := range []string{
		"amqp://user:?canary@host/", "amqp://user:/canary@host", "amqp://user:12/canary@host", "amqp://user:1?canary@host/", "amqp://user:#canary@host/",
		"amqp://host:/canary", "amqp://host:99999/", "amqp://host/?canary=1", "amqp://host/?CANARY2=1",
	} {
		err := rabbitmq.ValidURL(url)
		if !errors.Is(err, opscore.ErrInvalid) {
			t.Errorf("%s: %v", url, err)
		} else if text := err.Error(); url != "amqp://host/?canary=1" && (strings.Contains(text, "canary") || strings.Contains(text, "CANARY")) {
			t.Errorf("%s: the error holds it: %s", url, text)
		}
		if shown := rabbitmq.Redacted(url); strings.Contains(shown, "canary") {
			t.Errorf("%s is shown as %s", url, shown)
		}
	}
	if got, want := rabbitmq.Redacted("amqps://me:canary@mq.example.com/a%2Fb?cacertfile=/ca.pem"), "amqps://me@mq.example.com:5671/a%2Fb"; got != want {
		t.Errorf("shown as %s, want %s", got, want)
	}
}
