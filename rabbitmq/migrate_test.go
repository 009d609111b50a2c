package rabbitmq_test

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
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
