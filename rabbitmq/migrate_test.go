package rabbitmq_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/rabbitmq"
)

// misshape makes the queue of the tickets as others would.
func (r *rig) misshape() {
	r.Helper()
	ch := r.channel()
	if _, err := ch.QueueDelete("opscore.orders", false, false, false); err != nil {
		r.Fatal(err)
	}
	if _, err := ch.QueueDeclare("opscore.orders", true, false, false, false, amqp.Table{"x-max-priority": int32(10)}); err != nil && !strings.Contains(err.Error(), "406") {
		r.Fatal(err) // a worker may have been faster
	}
}

// TestAQueueIsMigratedUnderLoad migrates it again and again, and is stopped in the middle of that again and again.
func TestAQueueIsMigratedUnderLoad(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	source, _ := r.work(b, &opscore.Worker{Slots: 20})
	r.keep(b)
	r.byTicket(source)
	by := r.broker(rabbitmq.Options{})
	loaded := r.loading(5_000, 5, 2*time.Millisecond)
	migrated, stopped := 0, 0
	for again := true; again; {
		select {
		case <-loaded:
			again = false
		default:
		}
		r.misshape()
		ctx, cancel := context.WithTimeout(t.Context(), rand.N(60*time.Millisecond))
		c, err := by.Migrate(ctx, "orders")
		cancel()
		if err != nil {
			stopped++
			c, err = by.Migrate(t.Context(), "orders")
		}
		if err != nil || c.Differs != "" || c.Kept > 0 {
			t.Fatalf("%+v, %v", c, err)
		}
		if c.Was != "" {
			migrated++
		}
	}
	r.await()
	c, err := by.Ensure(t.Context(), "orders")
	if err != nil || c.Made || c.Differs != "" || c.Name != "opscore.orders" {
		t.Errorf("%+v, %v; want the queue as it should be", c, err)
	}
	r.byTicket(source)
	r.await()
	t.Logf("migrated %d times, stopped %d times; %s; %+v", migrated, stopped, spread(r.delays()), source.Stats())
	if migrated < 5 || stopped < 5 {
		t.Errorf("migrated %d times, stopped %d times: want both at least 5 times", migrated, stopped)
	}
}

// TestWhatIsNoTicketSurvivesAMigration has tickets of two databases and something else in a queue.
func TestWhatIsNoTicketSurvivesAMigration(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	ch := r.channel()
	_, err := ch.QueueDeclare("opscore.orders", true, false, false, false, amqp.Table{"x-max-length": int64(1000)})
	check(t, err)
	b := r.broker(rabbitmq.Options{})
	theirs := foreign(t, r.at)
	for _, of := range []*rig{r, theirs} {
		id, err := uuid.NewV7()
		check(t, err)
		p := of.broker(rabbitmq.Options{}).Publisher()
		of.until("it is ready", p.Ready)
		_, err = p.Publish(t.Context(), []opscore.Ticket{{ID: id, Queue: "orders", Tasks: []opscore.ID{id}, ClaimSeqs: []int64{0}}})
		check(t, err)
	}
	check(t, ch.PublishWithContext(t.Context(), "", "opscore.orders", true, false, amqp.Publishing{Body: []byte("hello")}))
	r.until("it has come", func() bool { return r.waiting("opscore.orders") == 3 })
	c, err := b.Migrate(t.Context(), "orders")
	if err != nil || !strings.Contains(c.Was, "406 PRECONDITION_FAILED - inequivalent arg") || c.Dropped != 1 || c.Kept != 2 {
		t.Errorf("%+v, %v; want one ticket dropped and two orphans", c, err)
	}
	for _, reason := range []opscore.Code{opscore.CodeForeignDatabase, opscore.CodeUndecodable} {
		if n := r.count("SELECT count(*) FROM opscore.orphan WHERE queue = 'orders' AND reason = $1", reason); n != 1 {
			t.Errorf("%d orphans are %s, want 1", n, reason)
		}
	}
	if n := r.waiting("opscore.orders"); n != 0 {
		t.Errorf("%d messages are in the new queue", n)
	}
}

// foreign is a rig with a database of another deployment: those of tests are copies of one.
func foreign(t testing.TB, at string) *rig {
	t.Helper()
	r := newRig(t, at)
	if _, err := r.store.Pool().Exec(t.Context(), "UPDATE opscore.deployment SET instance = gen_random_uuid()"); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestAMigrationThatAWorkerUndoesSaysSo has a worker that makes other queues than who migrates.
func TestAMigrationThatAWorkerUndoesSaysSo(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	source, _ := r.work(r.broker(rabbitmq.Options{Classic: true}), &opscore.Worker{})
	by := r.broker(rabbitmq.Options{})
	r.keep(by)
	r.byTicket(source)
	for range 10 { // either may be faster
		c, err := by.Migrate(t.Context(), "orders")
		if err == nil && c.Differs != "" || err != nil && (opscore.CodeOf(err) != opscore.CodeConflict || !strings.Contains(err.Error(), "made again by a worker") || c.Differs == "") {
			t.Errorf("%+v, %v", c, err)
		}
		r.byTicket(source)
	}
	r.await()
}

// TestWhatCannotBeKeptStaysInTheQueue has room for fewer orphans than there are.
func TestWhatCannotBeKeptStaysInTheQueue(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	var err error
	r.store, err = postgres.Open(t.Context(), r.url, postgres.Options{Log: r.log, MaxOrphans: 5})
	check(t, err)
	t.Cleanup(r.store.Close)
	ch := r.channel()
	_, err = ch.QueueDeclare("opscore.orders", true, false, false, false, amqp.Table{"x-max-length": int64(1000)})
	check(t, err)
	for i := range 50 {
		check(t, ch.PublishWithContext(t.Context(), "", "opscore.orders", true, false, amqp.Publishing{Body: fmt.Append(nil, "hello ", i)}))
	}
	r.until("they have come", func() bool { return r.waiting("opscore.orders") == 50 })
	c, err := r.broker(rabbitmq.Options{}).Migrate(t.Context(), "orders")
	if err == nil || !strings.Contains(err.Error(), "could not be kept") || c.Kept != 5 {
		t.Errorf("%+v, %v; want 5 orphans and an error", c, err)
	}
	r.until("the others are back", func() bool { return r.waiting("opscore.orders") == 45 })
}

// TestWhatComesInTheLastMomentIsKept has a message come right before the queue is deleted.
func TestWhatComesInTheLastMomentIsKept(t *testing.T) {
	for _, kind := range []string{"classic", "quorum"} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, nodes.Vhost(t))
			ch := r.channel()
			_, err := ch.QueueDeclare("opscore.orders", true, false, false, false, amqp.Table{"x-max-length": int64(1000), "x-queue-type": kind})
			check(t, err, ch.Confirm(false))
			r.at = before(t, r.at, "\x00\x32\x00\x28", func() { // queue.delete
				c, err := ch.PublishWithDeferredConfirmWithContext(t.Context(), "", "opscore.orders", true, false, amqp.Publishing{Body: []byte("hello")})
				if err != nil || !c.Wait() {
					t.Errorf("publish: %v", err)
				}
			})
			c, err := r.broker(rabbitmq.Options{}).Migrate(t.Context(), "orders")
			if err != nil || c.Was == "" || c.Kept != 1 || c.Dropped != 0 {
				t.Errorf("%+v, %v; want an orphan", c, err)
			}
		})
	}
}

// before is the URL of a broker behind a proxy that does something before it lets a request with these bytes pass for the first time.
func before(t *testing.T, at, request string, do func()) string {
	t.Helper()
	u, err := url.Parse(at)
	check(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it ends with the test
	check(t, err)
	t.Cleanup(func() { _ = l.Close() })
	broker := u.Host
	u.Host = l.Addr().String()
	var once sync.Once
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", broker) //nolint:noctx // as above
			if err != nil {
				_ = client.Close()
				continue
			}
			go func() { _, _ = io.Copy(client, server); _ = client.Close() }()
			go func() {
				defer func() { _ = server.Close() }()
				buffer := make([]byte, 1<<16)
				for {
					n, err := client.Read(buffer)
					if strings.Contains(string(buffer[:n]), request) {
						once.Do(do)
					}
					if _, failed := server.Write(buffer[:n]); err != nil || failed != nil {
						return
					}
				}
			}()
		}
	}()
	return u.String()
}
