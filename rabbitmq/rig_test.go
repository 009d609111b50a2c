package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/rabbitmq"
)

type order struct {
	Number int           `json:"number"`
	Takes  time.Duration `json:"takes"`
}

var charge = opscore.Actor[order, string]{Name: "charge", Queue: "orders"}

// rig is a database of the test's own, a broker, and what works with them.
type rig struct {
	testing.TB
	url    string // of the database
	at     string // of the broker
	store  *postgres.Store
	client *opscore.Client
	log    *slog.Logger

	submitted atomic.Int64

	mu      sync.Mutex
	starts  []start
	changed chan struct{} // closed at the next start
}

func newRig(t testing.TB, at string) *rig {
	t.Helper()
	r := &rig{TB: t, at: at, changed: make(chan struct{}), log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))}
	r.url = nodes.Database(t, "opscore", func(url string) error { return postgres.Migrate(t.Context(), url, postgres.Options{}) })
	r.store = r.open()
	r.client = &opscore.Client{Store: r.store}
	if _, err := r.store.Pool().Exec(t.Context(), `
		CREATE TABLE recorded (task uuid);
		CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO recorded VALUES (NEW.id); RETURN NULL; END $$;
		CREATE TRIGGER record AFTER UPDATE ON opscore.task FOR EACH ROW
			WHEN (NEW.state = 'completed' AND OLD.state <> 'completed') EXECUTE FUNCTION record()`); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) open() *postgres.Store {
	r.Helper()
	s, err := postgres.Open(r.Context(), r.url+"&pool_max_conns=8", postgres.Options{Log: r.log})
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(s.Close)
	return s
}

func (r *rig) broker(o rabbitmq.Options) *rabbitmq.Broker {
	r.Helper()
	o.Log = r.log
	b, err := rabbitmq.Open(r.Context(), r.at, r.store, o)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(b.Close)
	return b
}

// handle takes as long as the order says and notes how long it had waited.
func (r *rig) handle(ctx context.Context, o order) (string, error) {
	started := time.Now()
	run := opscore.FromContext(ctx)
	sec, nsec := run.ID.Time().UnixTime()
	r.mu.Lock()
	r.starts = append(r.starts, start{time.Unix(sec, nsec), started})
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
	if o.Takes > 0 {
		select {
		case <-time.After(o.Takes):
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
	return "charged", nil
}

// work runs a worker until the test ends, or until it is stopped, and returns its source once it is ready.
func (r *rig) work(b *rabbitmq.Broker, w *opscore.Worker) (source *rabbitmq.Source, stop func()) {
	r.Helper()
	source = b.Source()
	ready := make(chan struct{})
	w.Store, w.Sources, w.Log, w.Drain = r.store, []opscore.Source{source}, r.log, 10*time.Second
	w.OnReady = func(opscore.WorkerInfo) { close(ready) }
	if w.Handlers == nil {
		w.Handlers = opscore.Handlers{}
		opscore.Handle(w.Handlers, charge, r.handle)
	}
	stop = r.background(w.Run)
	<-ready
	return source, stop
}

func (r *rig) keep(b *rabbitmq.Broker) (stop func()) {
	return r.background((&opscore.Keeper{Store: r.store, Publisher: b.Publisher(), Log: r.log}).Run)
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

// submit stores orders that take so long.
func (r *rig) submit(n int, takes time.Duration, opts ...opscore.Option) []opscore.ID {
	r.Helper()
	requests := make([]opscore.Request, n)
	for i := range requests {
		requests[i] = charge.Request(order{i, takes}, opts...)
	}
	subs, err := r.client.Submit(r.Context(), requests...)
	if err != nil {
		r.Errorf("submit: %v", err)
	}
	r.submitted.Add(int64(n))
	ids := make([]opscore.ID, len(subs))
	for i, s := range subs {
		ids[i] = s.ID
	}
	return ids
}

// load submits n orders, a few each 10 ms, and returns when it has.
func (r *rig) load(n, each int, takes time.Duration) {
	r.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ; n > 0; n -= each {
		<-tick.C
		r.submit(min(n, each), takes)
	}
}

// loading is load beside the test; the channel is closed when it has submitted all.
func (r *rig) loading(n, each int, takes time.Duration) <-chan struct{} {
	r.Helper()
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		r.load(n, each, takes)
	}()
	return loaded
}

// await waits until all that was submitted is completed, and checks that each was once.
func (r *rig) await() {
	r.Helper()
	want := int(r.submitted.Load())
	deadline := time.Now().Add(time.Minute)
	for r.count("SELECT count(*) FROM opscore.task WHERE state = 'completed'") < want {
		if time.Now().After(deadline) {
			r.Fatalf("%d of %d tasks are completed", r.count("SELECT count(*) FROM opscore.task WHERE state = 'completed'"), want)
		}
		<-time.After(20 * time.Millisecond)
	}
	if n := r.count("SELECT count(*) FROM recorded"); n != want {
		r.Errorf("%d completions are recorded, want %d", n, want)
	}
	if n := r.count("SELECT count(DISTINCT task) FROM recorded"); n != want {
		r.Errorf("%d tasks are recorded as completed, want %d", n, want)
	}
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

func (r *rig) count(query string, args ...any) (n int) {
	r.Helper()
	if err := r.store.Pool().QueryRow(r.Context(), query, args...).Scan(&n); err != nil {
		r.Fatalf("%s: %v", query, err)
	}
	return n
}

// start is when a task was submitted, and when it started.
type start struct{ submitted, at time.Time }

// since returns the starts since the last call, in the order of the submits.
func (r *rig) since() []start {
	r.mu.Lock()
	defer r.mu.Unlock()
	some := r.starts
	r.starts = nil
	slices.SortFunc(some, func(a, b start) int { return a.submitted.Compare(b.submitted) })
	return some
}

// delays returns how long tasks have waited for their starts since the last call, shortest first.
func (r *rig) delays() []time.Duration { return delays(r.since()) }

func delays(starts []start) (d []time.Duration) {
	for _, s := range starts {
		d = append(d, s.at.Sub(s.submitted))
	}
	slices.Sort(d)
	return d
}

// keptBack returns for how long, at the most, a task waited while others that came after it were started, or while none was started. On a
// machine that is too slow for the load tasks wait for their turn besides, which is not what a fault does to them.
func keptBack(inOrder []start) (most time.Duration) {
	first := time.Time{} // the earliest start of those that were submitted later
	for _, s := range slices.Backward(inOrder) {
		if !first.IsZero() {
			most = max(most, s.at.Sub(first))
		}
		if first.IsZero() || s.at.Before(first) {
			first = s.at
		}
	}
	byStart := slices.SortedFunc(slices.Values(inOrder), func(a, b start) int { return a.at.Compare(b.at) })
	for i := 1; i < len(byStart); i++ {
		idle := byStart[i-1].at
		if s := byStart[i].submitted; s.After(idle) {
			idle = s
		}
		most = max(most, byStart[i].at.Sub(idle))
	}
	return most
}

func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)*p-1)/100]
}

func spread(sorted []time.Duration) string {
	return fmt.Sprintf("p50 %v, p95 %v, p99 %v, most %v of %d", percentile(sorted, 50), percentile(sorted, 95), percentile(sorted, 99),
		percentile(sorted, 100), len(sorted))
}

// channel is one on a connection of the test's own to the broker.
func (r *rig) channel() *amqp.Channel {
	r.Helper()
	conn, err := amqp.Dial(r.at)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		r.Fatal(err)
	}
	return ch
}

// waiting is how many tickets wait in a queue of the broker.
func (r *rig) waiting(queue string) int {
	r.Helper()
	q, err := r.channel().QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		r.Fatal(err)
	}
	return q.Messages
}

func check(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}
