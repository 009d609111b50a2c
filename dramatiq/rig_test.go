package dramatiq_test

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/dramatiq"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/rabbitmq"
)

// rig is a database and a virtual host of the test's own, and what works with them.
type rig struct {
	testing.TB
	url     string // of the database
	at      string // of the broker
	store   *postgres.Store
	client  *opscore.Client
	session *rabbitmq.Session
	log     *slog.Logger
	logged  *lines
	ch      *amqp.Channel
}

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

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.all.String(), text)
}

func newRig(t testing.TB) *rig { return newRigAt(t, nodes.Vhost(t)) }

func newRigAt(t testing.TB, at string) *rig {
	t.Helper()
	r := &rig{TB: t, at: at, logged: &lines{to: t.Output()}}
	r.log = slog.New(slog.NewTextHandler(r.logged, nil))
	r.url = nodes.Database(t, "opscore", func(url string) error { return postgres.Migrate(t.Context(), url, postgres.Options{}) })
	var err error
	r.store, err = postgres.Open(t.Context(), r.url+"&pool_max_conns=8", postgres.Options{Log: r.log})
	check(t, err)
	t.Cleanup(r.store.Close)
	r.client = &opscore.Client{Store: r.store}
	r.session = r.connect(at)
	r.ch = r.channel()
	return r
}

func (r *rig) connect(at string) *rabbitmq.Session {
	r.Helper()
	s, err := rabbitmq.Connect(r.Context(), at, rabbitmq.Options{Log: r.log})
	check(r, err)
	r.Cleanup(s.Close)
	return s
}

// channel is one on a connection of the test's own to the broker.
func (r *rig) channel() *amqp.Channel {
	r.Helper()
	conn, err := amqp.Dial(r.at)
	check(r, err)
	r.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	check(r, err)
	return ch
}

// declare declares queues as a sender in Python does before it sends.
func (r *rig) declare(maxPriority int, names ...string) {
	r.Helper()
	for _, q := range names {
		args := amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": q + ".XQ"}
		if maxPriority > 0 {
			args["x-max-priority"] = int32(maxPriority)
		}
		for name, with := range map[string]amqp.Table{q: args, q + ".DQ": args, q + ".XQ": {"x-message-ttl": int32(604800000)}} {
			_, err := r.ch.QueueDeclare(name, true, false, false, false, with)
			check(r, err)
		}
	}
}

// publish puts a body into a queue as Python does: without confirms.
func (r *rig) publish(queue string, body []byte) {
	r.Helper()
	check(r, r.ch.PublishWithContext(r.Context(), "", queue, false, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: body}))
}

// message is the body of a message.
func message(actor, queue, args, kwargs, options string) (body []byte, id opscore.ID) {
	id = uuid.New()
	return fmt.Appendf(nil, `{"queue_name":%q,"actor_name":%q,"args":%s,"kwargs":%s,"options":%s,"message_id":"%s","message_timestamp":%d}`,
		queue, actor, args, kwargs, options, id, time.Now().UnixMilli()), id
}

// send publishes a message and returns the id of the task that it becomes.
func (r *rig) send(actor, queue, args, kwargs, options string) opscore.ID {
	r.Helper()
	body, id := message(actor, queue, args, kwargs, options)
	r.publish(queue, body)
	return id
}

// waiting is how many messages wait in a queue of the broker, that nobody has.
func (r *rig) waiting(queue string) int {
	r.Helper()
	q, err := r.ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	check(r, err)
	return q.Messages
}

// get takes a message out of a queue of the broker, once there is one.
func (r *rig) get(queue string) (d amqp.Delivery) {
	r.Helper()
	r.until("a message in "+queue, func() bool {
		var ok bool
		var err error
		d, ok, err = r.ch.Get(queue, true)
		check(r, err)
		return ok
	})
	return d
}

// worker says how a worker of the rig is different.
type worker struct {
	opscore.Worker
	source  dramatiq.Options
	session *rabbitmq.Session
	actors  map[string]string // queues of Python's
	adapter *dramatiq.Adapter
}

// work runs a worker until the test ends, or until it is stopped, and returns when it is ready.
func (r *rig) work(h opscore.Handlers, w *worker) (stop func()) {
	r.Helper()
	if w.session == nil {
		w.session = r.session
	}
	sender, err := dramatiq.NewSender(w.session, w.source.Declare)
	check(r, err)
	dramatiq.HandleSend(h, sender)
	w.source.Handlers, w.source.Log = h, r.log
	if w.source.Queues == nil {
		w.source.Queues = map[string][]string{"default": nil}
	}
	w.source.Alone = cmp.Or(w.source.Alone, 100*time.Millisecond)
	source, err := dramatiq.NewSource(w.session, r.store, w.source)
	check(r, err)
	if w.Queues == nil {
		w.Queues = []string{dramatiq.SendActor}
		for q := range w.source.Queues {
			w.Queues = append(w.Queues, q)
		}
	}
	ready := make(chan struct{})
	w.Store, w.Handlers, w.Log, w.Drain = r.store, h, r.log, 10*time.Second
	w.Sources = []opscore.Source{source, opscore.FromStore(r.store, 0)}
	if w.adapter == nil {
		w.adapter = &dramatiq.Adapter{Client: r.client, Actors: w.actors}
	}
	w.Adapter = w.adapter
	w.OnReady = func(opscore.WorkerInfo) { close(ready) }
	stop = r.background(w.Run)
	select {
	case <-ready:
	case <-time.After(time.Minute):
		r.Fatal("the worker is not ready")
	}
	return stop
}

func (r *rig) keep() {
	r.background((&opscore.Keeper{Store: r.store, Log: r.log}).Run)
}

func (r *rig) background(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.Error(err)
		}
	})
	r.Cleanup(stop)
	return stop
}

// until waits for something that becomes true.
func (r *rig) until(what string, is func() bool) {
	r.Helper()
	deadline := time.Now().Add(time.Minute)
	for !is() {
		if time.Now().After(deadline) {
			r.Fatalf("%s: it never came about", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// await returns a task once it is over.
func (r *rig) await(id opscore.ID) (t opscore.Task) {
	r.Helper()
	r.until("task "+id.String()+" is over", func() bool {
		var err error
		t, err = r.client.Get(r.Context(), id)
		return err == nil && t.State.Terminal()
	})
	return t
}

// completed waits for a task and checks its result.
func (r *rig) completed(id opscore.ID, result string) opscore.Task {
	r.Helper()
	t := r.await(id)
	if t.State != opscore.Completed || string(t.Result) != result {
		r.Errorf("task %s of actor %s is %s with result %s, %s %s; want %s", id, t.Actor, t.State, t.Result, t.Code, t.Error, result)
	}
	return t
}

// orphan waits for the orphan of a message.
func (r *rig) orphan(reason opscore.Code, message opscore.ID) (o opscore.Orphan) {
	r.Helper()
	r.until("an orphan "+string(reason), func() bool {
		found, err := r.store.ListOrphans(r.Context(), opscore.OrphanFilter{Reason: reason, Message: message})
		check(r, err)
		if len(found) > 0 {
			o, err = r.store.GetOrphan(r.Context(), found[0].ID)
			check(r, err)
		}
		return len(found) > 0
	})
	return o
}

func (r *rig) count(query string, args ...any) (n int) {
	r.Helper()
	check(r, r.store.Pool().QueryRow(r.Context(), query, args...).Scan(&n))
	return n
}

// logs are the lines of a task's log.
func (r *rig) logs(id opscore.ID) string {
	r.Helper()
	all, err := r.client.Logs(r.Context(), id)
	check(r, err)
	var b strings.Builder
	for _, l := range all {
		b.WriteString(l.Level + " " + l.Text + "\n")
	}
	return b.String()
}

type sum struct {
	X int `json:"x"`
	Y int `json:"y"`
}

// adders are handlers for the actors of the tests.
func adders() opscore.Handlers {
	h := opscore.Handlers{}
	opscore.Handle(h, opscore.Actor[sum, int]{Name: "add"}, func(_ context.Context, in sum) (int, error) { return in.X + in.Y, nil })
	return h
}

// node starts a broker of the test's own with a virtual host that is not "/".
func node(t *testing.T) (n *nodes.RabbitMQ, at string) {
	t.Helper()
	n = nodes.OwnRabbitMQ(t)
	u, err := url.Parse(n.URL("/"))
	check(t, err)
	eval(t, n, fmt.Sprintf(`ok = rabbit_vhost:add(<<"app">>, <<"t">>),
		ok = rabbit_auth_backend_internal:set_permissions(<<"%s">>, <<"app">>, <<".*">>, <<".*">>, <<".*">>, <<"t">>)`, u.User.Username()))
	return n, n.URL("app")
}

func eval(t *testing.T, n *nodes.RabbitMQ, text string) {
	t.Helper()
	_, err := n.Eval(t.Context(), text)
	check(t, err)
}
