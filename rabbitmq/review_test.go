package rabbitmq_test

import (
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/rabbitmq"
)

// TestAWorkerKnowsThatItWouldNotSurviveAReconnect takes rights away that connections which exist go on to have.
func TestAWorkerKnowsThatItWouldNotSurviveAReconnect(t *testing.T) {
	s := newSuspect(t, nodes.OwnRabbitMQ(t))
	b := s.broker(rabbitmq.Options{ReviewEvery: 200 * time.Millisecond})
	source, _ := s.work(b, &opscore.Worker{Lease: 3 * time.Second})
	s.keep(b)
	s.byTicket(source)
	password := func(to string) {
		s.eval(`ok = rabbit_auth_backend_internal:change_password(<<"app">>, <<"%s">>, <<"t">>)`, to)
	}
	for _, c := range []struct {
		fault, end func()
		says       []string
	}{
		{
			func() { s.permit("^$", "^$", "^$") }, func() { s.permit(".*", ".*", ".*") },
			[]string{"a new connection would be refused: ", "access to queue 'opscore.orders' in vhost 'app' refused for user 'app'", "access to exchange 'amq.default'"},
		},
		{
			func() { s.permit(".*", ".*", "^$") }, func() { s.permit(".*", ".*", ".*") },
			[]string{"a new connection would be refused: 403 ACCESS_REFUSED - access to queue 'opscore.orders' in vhost 'app' refused for user 'app'"},
		},
		{
			func() { s.eval(`rabbit_auth_backend_internal:clear_permissions(<<"app">>, <<"app">>, <<"t">>)`) }, func() { s.permit(".*", ".*", ".*") },
			[]string{"a new connection would be refused: ", "the virtual host does not exist, or the user may not use it"},
		},
		{
			func() { password("another") }, func() { password(canary) },
			[]string{"a new connection would be refused: ", "the user or the password is wrong"},
		},
		{
			func() { s.eval(`vm_memory_monitor:set_vm_memory_high_watermark(0.0000001)`) },
			func() { s.eval(`vm_memory_monitor:set_vm_memory_high_watermark(0.6)`) },
			[]string{"it blocks publishers: low on memory"},
		},
	} {
		c.fault()
		check := s.reported(opscore.CheckBroker, opscore.CheckDegraded, c.says...)
		t.Log(check.Text)
		if time.Since(check.Since) > 20*time.Second || time.Since(check.Since) < 0 {
			t.Errorf("it has been so since %v, it is %v", check.Since, time.Now())
		}
		c.end()
		s.reported(opscore.CheckBroker, opscore.CheckOK)
	}
	s.byTicket(source)
}

// TestAWorkerSaysThatAQueueIsNotAsItWouldBeMade has a queue that somebody made before, and a user that may not configure anything.
func TestAWorkerSaysThatAQueueIsNotAsItWouldBeMade(t *testing.T) {
	s := newSuspect(t, nodes.OwnRabbitMQ(t))
	args := amqp.Table{"x-max-priority": int32(10), "x-queue-type": "classic", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "opscore-dead"}
	_, err := s.channel().QueueDeclare("opscore.orders", true, false, false, false, args)
	check(t, err)
	b := s.broker(rabbitmq.Options{Classic: true, ReviewEvery: 200 * time.Millisecond})
	source, _ := s.work(b, &opscore.Worker{Lease: 3 * time.Second})
	s.keep(b)
	s.reported(opscore.CheckBroker, opscore.CheckDegraded,
		"a queue is used as it is, though it would be made in another way: 406 PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'opscore.orders'")
	s.byTicket(source)
	s.permit("^$", ".*", ".*") // nobody has to, while it exists: so it cannot be told any more
	s.reported(opscore.CheckBroker, opscore.CheckOK)
	s.byTicket(source)
}
