package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/rabbitmq"
)

func TestTasksRunByTicketAndNoneIsPublishedTwice(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{})
	other := r.broker(rabbitmq.Options{})
	r.keep(b)
	r.keep(other) // of two relays one serves a queue
	r.submit(1, 0)
	r.await() // it is found by whoever is first
	r.load(2000, 20, 0)
	r.await()
	s := source.Stats()
	t.Logf("%s; %+v", spread(r.delays()), s)
	if s.Missed > 0 || s.Claimed < 1990 {
		t.Errorf("%+v: want all tasks by ticket, and none twice", s)
	}
	if n := r.count("SELECT count(*) FROM opscore.ticket"); n != 0 {
		t.Errorf("%d tickets are still out", n)
	}
	if n := r.waiting("opscore.orders"); n != 0 {
		t.Errorf("%d tickets wait in the broker", n)
	}
}

func TestAShortTaskDoesNotWaitBehindABusyWorker(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	busy, _ := r.work(b, &opscore.Worker{Slots: 2})
	r.keep(b)
	r.submit(2, 30*time.Second)
	r.until("the worker is busy", func() bool { return r.count("SELECT count(*) FROM opscore.task WHERE state = 'running'") == 2 })
	r.delays()
	idle, stop := r.work(b, &opscore.Worker{Slots: 2})
	for range 30 {
		r.submit(1, 0)
		r.until("it is completed", func() bool {
			return r.count("SELECT count(*) FROM opscore.task WHERE state = 'completed'") == int(r.submitted.Load())-2
		})
	}
	waits := r.delays()
	t.Logf("%s; busy %+v, idle %+v", spread(waits), busy.Stats(), idle.Stats())
	if most := percentile(waits, 100); most > time.Second {
		t.Errorf("a task waited for %v, want at most 1 s", most)
	}
	stop()
	for _, task := range r.running() {
		if _, err := r.client.Cancel(t.Context(), task, "the test"); err != nil {
			t.Error(err)
		}
	}
}

func (r *rig) running() (ids []opscore.ID) {
	tasks, err := r.store.List(r.Context(), opscore.Filter{States: []opscore.State{opscore.Running}})
	if err != nil {
		r.Error(err)
	}
	for i := range tasks {
		ids = append(ids, tasks[i].ID)
	}
	return ids
}

// TestHigherPrioritiesComeFirstButForTheWindow holds the relay to its bound: what is out when a more urgent task comes goes before it, and
// nothing else does.
func TestHigherPrioritiesComeFirstButForTheWindow(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	var first []int
	handlers := opscore.Handlers{}
	started := make(chan int, 1000)
	opscore.Handle(handlers, charge, func(ctx context.Context, o order) (string, error) {
		started <- o.Number
		<-time.After(10 * time.Millisecond)
		return "", nil
	})
	r.submit(300, 0, opscore.Priority(-1)) // numbers from 0
	r.work(b, &opscore.Worker{Slots: 1, Handlers: handlers})
	r.keep(b)
	for range 20 {
		first = append(first, <-started)
	}
	out := r.count("SELECT coalesce(sum(cardinality(tasks)), 0) FROM opscore.ticket")
	requests := make([]opscore.Request, 10)
	for i := range requests {
		requests[i] = charge.Request(order{Number: 1000 + i}, opscore.Priority(1))
	}
	if _, err := r.client.Submit(t.Context(), requests...); err != nil {
		t.Fatal(err)
	}
	before := 0
	for urgent := 0; urgent < len(requests); {
		if n := <-started; n >= 1000 {
			urgent++
		} else {
			before++
		}
	}
	// One task a hundredth of a second: the window is half a second of that, or two per slot, and two more start on the way.
	t.Logf("%d of the less urgent tasks went before, %d were out", before, out)
	if most := 50 + 20; before > most {
		t.Errorf("%d less urgent tasks went before, want at most the window, %d", before, most)
	}
	if len(first) == 0 {
		t.Error("nothing has started")
	}
}

func TestPausedQueuesGetNoTickets(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{})
	r.keep(b)
	r.load(100, 10, 0)
	r.await()
	check(t, r.client.Pause(t.Context(), "orders", "ann", ""))
	before := source.Stats().Tickets
	r.submit(10, 0)
	for range 2 { // two polls of the relay
		<-time.After(300 * time.Millisecond)
	}
	if n := r.count("SELECT count(*) FROM opscore.ticket"); n != 0 || source.Stats().Tickets != before {
		t.Errorf("%d tickets are out, %d came", n, source.Stats().Tickets-before)
	}
	check(t, r.client.Resume(t.Context(), "orders"))
	r.await()
}

// TestWhatATicketNamesWithoutSuccessIsSettled has a ticket for each reason why a task cannot be claimed.
func TestWhatATicketNamesWithoutSuccessIsSettled(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	publisher := b.Publisher()
	r.until("the publisher is ready", publisher.Ready)
	r.work(b, &opscore.Worker{Slots: 5})
	r.submit(1, 0)
	r.await() // there is no relay: it was pulled
	done := r.recordedTask()

	// publish names a task, whatever it is.
	publish := func(task opscore.ID, seq int64) opscore.ID {
		id := uuid.Must(uuid.NewV7())
		_, err := r.store.Pool().Exec(t.Context(), "INSERT INTO opscore.ticket VALUES ($1, 'orders', clock_timestamp(), $2, $3)",
			id, []opscore.ID{task}, []int64{seq})
		check(t, err)
		refused, err := publisher.Publish(t.Context(), []opscore.Ticket{{ID: id, Queue: "orders", Tasks: []opscore.ID{task}, ClaimSeqs: []int64{seq}}})
		if err != nil || len(refused) > 0 {
			t.Fatalf("publish: %v, %v", refused, err)
		}
		return id
	}
	out := func(id opscore.ID) bool { return r.count("SELECT count(*) FROM opscore.ticket WHERE id = $1", id) > 0 }
	gone := func(what string, id opscore.ID) {
		t.Helper()
		r.until(what, func() bool { return !out(id) })
	}

	gone("the ticket of a completed task", publish(done, 0))

	long := r.submit(1, 20*time.Second)[0]
	r.until("it runs", func() bool { return len(r.running()) == 1 })
	gone("the ticket of a running task", publish(long, 0))
	_, err := r.client.Cancel(t.Context(), long, "the test")
	check(t, err)

	later := r.submit(1, 0, opscore.After(time.Hour))[0]
	gone("the ticket of a task that was put back", publish(later, 7))

	unknown := opscore.NewRequest("another_actor", []byte("{}"), opscore.Queue("orders"))
	subs, err := r.client.Submit(t.Context(), unknown)
	check(t, err)
	gone("the ticket of a task whose actor is not known here", publish(subs[0].ID, 0))

	missing := uuid.Must(uuid.NewV7())
	gone("the ticket of a task that does not exist", publish(missing, 0))
	orphans, err := r.store.ListOrphans(t.Context(), opscore.OrphanFilter{})
	if err != nil || len(orphans) != 1 || orphans[0].ID != missing || orphans[0].Reason != opscore.CodeTaskNotFound {
		t.Errorf("orphans = %+v, %v", orphans, err)
	}
	check(t, r.client.Pause(t.Context(), "orders", "ann", ""))
	paused := r.submit(1, 0)[0]
	gone("the ticket of a task of a paused queue", publish(paused, 0))
	if n := r.waiting("opscore.orders"); n != 0 {
		t.Errorf("%d tickets wait", n)
	}
}

func (r *rig) recordedTask() (id opscore.ID) {
	if err := r.store.Pool().QueryRow(r.Context(), "SELECT task FROM recorded LIMIT 1").Scan(&id); err != nil {
		r.Fatal(err)
	}
	return id
}

func TestALockedTaskIsClaimedWhenItIsFree(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	r.work(b, &opscore.Worker{Slots: 5})
	id := r.submit(1, 0, opscore.After(time.Second))[0]
	tx, err := r.store.Pool().Begin(t.Context())
	check(t, err)
	_, err = tx.Exec(t.Context(), "SELECT FROM opscore.task WHERE id = $1 FOR UPDATE", id)
	check(t, err)
	r.keep(b)
	r.until("its ticket is out", func() bool { return r.count("SELECT count(*) FROM opscore.ticket") == 1 })
	r.until("its ticket was looked at", func() bool { return r.waiting("opscore.orders") == 0 })
	check(t, tx.Rollback(t.Context()))
	r.await()
}

// TestMessagesThatAreNoTicketsAreKept sends what anybody may send who can publish.
func TestMessagesThatAreNoTicketsAreKept(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{Slots: 5})
	ch := r.channel()
	r.until("it is subscribed", func() bool {
		q, err := ch.QueueDeclarePassive("opscore.orders", true, false, false, false, nil)
		if err != nil {
			ch = r.channel()
		}
		return err == nil && q.Consumers == 1
	})
	instance := r.instance()
	foreign := `{"v":1,"instance":"01890a5d-ac96-774b-bcce-b302099a8057","ticket":"01890a5d-ac96-774b-bcce-b302099a8057","queue":"orders","tasks":"01890a5d-ac96-774b-bcce-b302099a8057:0"}`
	bodies := []string{
		"", "null", "[]", "{", "\x00\xff", strings.Repeat("[", 100_000), strings.Repeat("x", 1<<20), `{"v":1}`,
		fmt.Sprintf(`{"v":2,"instance":%q}`, instance), fmt.Sprintf(`{"v":1,"instance":%q,"queue":"orders","tasks":""}`, instance),
		fmt.Sprintf(`{"v":1,"instance":%q,"queue":"a b","tasks":"01890a5d-ac96-774b-bcce-b302099a8057:0"}`, instance),
		fmt.Sprintf(`{"v":1,"instance":%q,"queue":"orders","tasks":"01890a5d-ac96-774b-bcce-b302099a8057"}`, instance),
		fmt.Sprintf(`{"v":1,"instance":%q,"queue":"orders","tasks":%q}`, instance, strings.Repeat("01890a5d-ac96-774b-bcce-b302099a8057:0 ", 17)),
		fmt.Sprintf(`{"v":1,"instance":%q,"args":{}}`, instance), foreign,
	}
	for _, body := range slices.Concat(bodies, bodies) { // each comes twice
		check(t, ch.PublishWithContext(t.Context(), "", "opscore.orders", true, false, amqp.Publishing{Body: []byte(body), Headers: amqp.Table{"x": "y"}}))
	}
	r.until("all are orphans", func() bool { return r.count("SELECT coalesce(sum(count), 0) FROM opscore.orphan") == 2*len(bodies) })
	if n := r.count("SELECT count(*) FROM opscore.orphan"); n != len(bodies) {
		t.Errorf("%d orphans, want %d", n, len(bodies))
	}
	if n := r.count("SELECT count(*) FROM opscore.orphan WHERE reason = 'foreign_database'"); n != 1 {
		t.Errorf("%d orphans of another database, want 1", n)
	}
	if n := r.count("SELECT max(length(body)) FROM opscore.orphan"); n > opscore.MaxOrphanBytes {
		t.Errorf("%d bytes of a body are kept", n)
	}
	r.until("whose it is can find it", func() bool { return r.waiting("opscore-dead") == 2 })
	r.submit(10, 0)
	r.await()
	if got := source.Stats().Orphans; got != int64(2*len(bodies)) {
		t.Errorf("%d orphans are counted", got)
	}
}

func (r *rig) instance() opscore.ID {
	d, err := r.store.Deployment(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	return d.Instance
}

// race is a publisher that answers late: it says that it does not know what became of the tickets when the task has run, failed and
// was put back.
type race struct {
	opscore.Publisher
	meanwhile func([]opscore.Ticket)
	times     atomic.Int64
}

func (p *race) Publish(ctx context.Context, tickets []opscore.Ticket) ([]opscore.ID, error) {
	refused, err := p.Publisher.Publish(ctx, tickets)
	if err != nil || p.times.Add(1) > 1 {
		return refused, err
	}
	p.meanwhile(tickets)
	for _, t := range tickets {
		refused = append(refused, t.ID)
	}
	return refused, errors.New("the answer came too late")
}

// TestALateAnswerOfTheBrokerDoesNotTakeBackWhatCameSince is the race between publish and mark: the worker is faster than the
// broker's answer, its task fails and has a new ticket by then.
func TestALateAnswerOfTheBrokerDoesNotTakeBackWhatCameSince(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	var attempts atomic.Int64
	handlers := opscore.Handlers{}
	opscore.Handle(handlers, charge, func(context.Context, order) (string, error) {
		if attempts.Add(1) == 1 {
			return "", opscore.RetryAfter(0, errors.New("not yet"))
		}
		return "charged", nil
	})
	source, _ := r.work(b, &opscore.Worker{Handlers: handlers})
	var second atomic.Pointer[opscore.Ticket]
	late := &race{Publisher: b.Publisher(), meanwhile: func([]opscore.Ticket) {
		r.until("it has failed and is put back", func() bool {
			return r.count("SELECT count(*) FROM opscore.task WHERE state = 'pending' AND claim_seq > 0") == 1
		})
		// Another relay gives it its second ticket, whose message takes its time.
		r.until("it is out again", func() bool {
			if _, err := r.store.Due(r.Context()); err != nil {
				r.Error(err)
			}
			issued, err := r.store.Issue(r.Context(), opscore.Issue{Queue: "orders", Actors: []string{"charge"}, Window: 10, Size: 1})
			if err != nil {
				r.Error(err)
			}
			if len(issued.Tickets) > 0 {
				second.Store(&issued.Tickets[0])
			}
			return len(issued.Tickets) == 1
		})
	}}
	r.until("the publisher is ready", late.Ready)
	r.background((&opscore.Keeper{Store: r.store, Publisher: late, Log: r.log}).Run)
	r.submit(1, 0)
	r.until("the late answer was heard", func() bool { return late.times.Load() >= 1 && second.Load() != nil })
	// The second ticket must stay out until it is old: nothing else may be published for the task meanwhile. Its message comes now.
	published := late.times.Load()
	refused, err := late.Publisher.Publish(t.Context(), []opscore.Ticket{*second.Load()})
	if err != nil || len(refused) > 0 {
		t.Fatalf("publish: %v, %v", refused, err)
	}
	r.await()
	if late.times.Load() != published {
		t.Errorf("the task got %d more tickets", late.times.Load()-published)
	}
	if s := source.Stats(); s.Claimed != 2 || s.Missed != 0 {
		t.Errorf("%+v: want two claims by ticket, no miss", s)
	}
}

// losing is a publisher whose tickets of one queue are confirmed and lost.
type losing struct {
	opscore.Publisher
	queue string
	lost  atomic.Int64
}

func (p *losing) Publish(ctx context.Context, tickets []opscore.Ticket) ([]opscore.ID, error) {
	if tickets[0].Queue == p.queue {
		p.lost.Add(int64(len(tickets)))
		return nil, nil
	}
	return p.Publisher.Publish(ctx, tickets)
}

func TestAQueueWhoseTicketsAreLostIsServedBesideABusyOne(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{Slots: 20, Queues: []string{"orders", "quiet"}})
	publisher := &losing{Publisher: b.Publisher(), queue: "quiet"}
	r.until("the publisher is ready", publisher.Ready)
	r.background((&opscore.Keeper{Store: r.store, Publisher: publisher, Log: r.log}).Run)
	loaded := r.loading(6000, 5, time.Millisecond) // for 12 s
	r.until("the other queue is busy", func() bool { return source.Stats().Claimed > 100 })
	for range 10 {
		r.submit(1, 0, opscore.Queue("quiet"))
	}
	quiet := func() int {
		return r.count("SELECT count(*) FROM opscore.task WHERE queue = 'quiet' AND state = 'completed'")
	}
	r.until("its tasks are completed", func() bool { return quiet() == 10 })
	<-loaded
	r.await()
	waits := r.delays()
	t.Logf("%s; lost %d; %+v", spread(waits), publisher.lost.Load(), source.Stats())
	if most := percentile(waits, 100); publisher.lost.Load() > 0 && most > 10*time.Second {
		t.Errorf("a task waited for %v, want at most 10 s", most)
	}
}

func TestABrokerThatRefusesUsIsAnErrorAtTheStart(t *testing.T) {
	n := nodes.Broker(t)
	r := newRig(t, n.URL("/"))
	base, err := url.Parse(n.URL("/"))
	check(t, err)
	with := func(change func(*url.URL)) string {
		u := *base
		change(&u)
		return u.String()
	}
	for _, tc := range []struct{ name, at, says string }{
		{"password", with(func(u *url.URL) { u.User = url.UserPassword("opscore", "canary") }), "the user or the password is wrong"},
		{"user", with(func(u *url.URL) { u.User = url.UserPassword("eve", "canary") }), "the user or the password is wrong"},
		{"virtual host", with(func(u *url.URL) { u.Path = "/nowhere" }), "the virtual host does not exist, or the user may not use it"},
		{"no certificate", with(func(u *url.URL) { u.Scheme = "amqps" }), "its certificate, or ours, is not accepted"},
		{"no URL", "amqp://me:canary@host:port:x/", "not a URL"},
		{"scheme", "http://me:canary@example.com", "accepted: amqp://"},
		{"parameter", "amqp://me:canary@example.com/?hartbeat=1", `parameter "hartbeat" is not known`},
		{"half a pair", "amqps://me:canary@example.com/?certfile=/c.pem", "certfile and keyfile go together"},
		{"plain text", "amqp://me:canary@example.com/?cacertfile=/c.pem", "certificates need amqps"},
		{"no host", "amqp://", "names no host"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := rabbitmq.Open(t.Context(), tc.at, r.store, rabbitmq.Options{Log: r.log})
			if err == nil {
				b.Close()
				t.Fatal("it is none")
			}
			if !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error = %v, want %q", err, tc.says)
			}
			if strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), base.User.String()) {
				t.Errorf("the error holds a password: %v", err)
			}
		})
	}
}

func TestABrokerThatIsNotThereOnlyCostsTime(t *testing.T) {
	r := newRig(t, "amqp://opscore:canary@127.0.0.1:1/")
	var log strings.Builder
	r.log = slog.New(slog.NewTextHandler(&log, nil))
	b := r.broker(rabbitmq.Options{})
	_, stop := r.work(b, &opscore.Worker{})
	stopKeeper := r.keep(b)
	r.submit(100, 0)
	r.await()
	stop()
	stopKeeper()
	b.Close()
	if text := log.String(); !strings.Contains(text, "degraded: the broker cannot be reached") || strings.Contains(text, "canary") {
		t.Errorf("the log says:\n%s", text)
	}
}

func TestWhatIsSeenInTheBroker(t *testing.T) {
	n := nodes.Broker(t)
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{Build: "v1.2.3"})
	r.work(b, &opscore.Worker{})
	r.keep(b)
	r.submit(10, 0)
	r.await()
	workers, err := r.store.Workers(t.Context(), 0)
	check(t, err)
	at, err := url.Parse(r.at)
	check(t, err)
	r.until("three connections", func() bool {
		out, err := n.Ctl(t.Context(), "--silent", "list_connections", "vhost", "client_properties")
		check(t, err)
		found := 0
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, strings.TrimPrefix(at.Path, "/")) && strings.Contains(line, "v1.2.3") && strings.Contains(line, `"product","opscore"`) {
				for _, purpose := range []string{"publish", "consume", "diagnose"} {
					if strings.Contains(line, `"connection_name","opscore `+purpose) && (purpose != "consume" || strings.Contains(line, workers[0].ID.String())) {
						found++
					}
				}
			}
		}
		return found == 3
	})
	out, err := n.Ctl(t.Context(), "--silent", "list_queues", "-p", strings.TrimPrefix(at.Path, "/"), "name", "type", "durable", "arguments")
	check(t, err)
	for _, want := range []string{"opscore.orders\tquorum\ttrue", "opscore-dead\tquorum\ttrue", `{"x-dead-letter-routing-key","opscore-dead"}`, "opscore-epoch-"} {
		if !strings.Contains(out, want) {
			t.Errorf("the broker's queues are\n%s\nwant %s", out, want)
		}
	}
}

func TestAnExistingQueueIsUsedAsItIs(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	_, err := r.channel().QueueDeclare("opscore.orders", true, false, false, false, amqp.Table{"x-max-priority": int64(10)})
	check(t, err)
	b := r.broker(rabbitmq.Options{Classic: true})
	source, _ := r.work(b, &opscore.Worker{})
	r.keep(b)
	r.load(100, 1, 0)
	r.await()
	if s := source.Stats(); s.Claimed == 0 {
		t.Errorf("%+v: no task came by ticket", s)
	}
}
