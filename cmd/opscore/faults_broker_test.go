//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
)

// brokerFaults are part B of the catalogue.
func brokerFaults() []play {
	return []play{
		{name: "F16 queue arguments differ", on: onCluster, act: queueMismatch},
		{name: "F17 queue purged", fast: true, on: onCluster, act: queuePurged},
		{name: "F19 broker state lost", on: onPostgres, act: stateLost},
		{name: "F20 worker on another vhost", on: onCluster, act: otherVhost},
		{name: "F21 wrong password", on: onCluster, act: wrongPassword},
		{name: "F22 permission revoked", on: onCluster, act: permissionRevoked},
		{name: "F27 foreign consumer steals", fast: true, on: onCluster, act: foreignConsumer},
		{name: "F28 worker on another database", on: onCluster, act: otherDatabase},
		{name: "F32 tickets hoarded", on: onCluster, act: ticketsHoarded},
		{name: "F33 priority starvation", on: onCluster, act: starvation},
	}
}

// queueMismatch: somebody has declared the queue with priorities before opscore did.
func queueMismatch(s *scene) want {
	s.set("OPSCORE_BROKER_QUEUE_TYPE", "classic")
	_, err := s.broker.channel().QueueDeclare(ticketQueue("default"), true, false, false, false, amqp.Table{
		"x-max-priority": int32(10), "x-queue-type": "classic", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "opscore-dead",
	})
	s.must(err)
	s.busy(4)
	return want{codes: []string{opscore.CauseBrokerQueueMismatch}, evidence: []string{"x-max-priority"}, remedy: byCommand}
}

func queuePurged(s *scene) want {
	s.ticketed()
	s.broker.ctl("purge_queue", "-p", s.broker.vhost, ticketQueue("default"))
	s.awaitNoTickets()
	s.until("an old ticket", func() bool { return s.ticketAge() > opscore.TicketFor+100*time.Millisecond })
	return want{codes: []string{opscore.CauseTicketLost}, evidence: []string{"0"}, remedy: optional}
}

// stateLost: the broker's disk is lost while nobody is connected. The worker pulls.
func stateLost(s *scene) want {
	node := nodes.OwnManagedRabbitMQ(s.T, "default_pass = "+canary)
	pulling := s.worker("--slots", "12")
	s.joinAs(node, "opscore", "/")
	s.occupy(12)
	relay := s.worker("--queues", "relay")
	s.submit()
	s.broker.awaitTickets("default")
	relay.stop()
	var epoch string
	s.must(s.watcher().QueryRow(s.Context(), "SELECT epoch::text FROM opscore.deployment").Scan(&epoch))
	s.must(node.Wipe(s.Context()))
	_ = pulling
	return want{codes: []string{opscore.CauseBrokerStateLost}, evidence: []string{epoch}, remedy: optional}
}

// otherVhost: the worker of the queue is connected to another virtual host than those who publish.
func otherVhost(s *scene) want {
	other := s.broker.vhost + "other"
	s.broker.makeVhost(other)
	s.worker("--queues", "relay")
	w := s.busy(4, "--broker", s.broker.urlOf(other))
	return want{
		codes: []string{opscore.CauseWorkerOtherBroker}, evidence: []string{other, s.broker.vhost, w.info.ID.String()},
		remedy: byOperator, names: []string{"process " + w.pid()},
		undo: func() {
			s.openGate()
			w.stop()
			s.worker()
		},
	}
}

// wrongPassword: the password was changed, and is what it was in everybody's configuration.
func wrongPassword(s *scene) want {
	s.ticketed()
	change := func(to string) {
		s.broker.do(`ok = rabbit_auth_backend_internal:change_password(<<"USER">>, <<"%s">>, <<"USER">>)`, to)
	}
	change("another")
	return want{
		codes: []string{opscore.CauseBrokerLoginRefused}, evidence: []string{s.broker.user},
		remedy: byOperator, names: []string{"password"},
		undo: func() { change(canary) },
	}
}

// permissionRevoked: everything works, until somebody connects anew.
func permissionRevoked(s *scene) want {
	s.ticketed()
	s.broker.permit(s.broker.vhost, "^$")
	return want{codes: []string{opscore.CauseBrokerPermission}, evidence: []string{s.broker.user, ticketQueue("default")}, remedy: byCommand}
}

// foreignConsumer: a program that is no worker takes tickets and does nothing with them.
func foreignConsumer(s *scene) want {
	s.occupied(12)
	thief := s.consumer("the-thief", 0)
	s.submit()
	s.awaitNoneWaits()
	return want{
		codes: []string{opscore.CauseForeignConsumer}, evidence: []string{"the-thief", "ack_required=false"},
		remedy: either, names: []string{"close"}, undo: thief.stop,
	}
}

// consumer starts a program that consumes tickets and is no worker, and returns when it is known.
func (s *scene) consumer(tag string, prefetch int) *hand {
	s.Helper()
	h := s.program([]string{"accomplice", "consume"}, nil, "--queue", ticketQueue("default"), "--tag", tag, "--prefetch", fmt.Sprint(prefetch))
	s.broker.awaitConsumers("default", 2) // the worker, which has got no ticket yet that it has no slot for, is one
	return h
}

// awaitNoneWaits waits until the target's ticket is out and somebody has it.
func (s *scene) awaitNoneWaits() {
	s.Helper()
	s.until("no ticket to be left", func() bool {
		n, _, err := s.broker.waiting("default")
		return err == nil && n == 0 && s.isOut(s.target)
	})
}

// otherDatabase: a worker of another deployment takes tickets from the same queue.
func otherDatabase(s *scene) want {
	s.occupied(12)
	mine := s.database
	s.set("OPSCORE_DATABASE_URL", guarded(nodes.Database(s.T, "another", migrated(s.T)))) // of its own making: a copy would be the same deployment
	w := s.worker()
	s.set("OPSCORE_DATABASE_URL", mine)
	s.broker.awaitConsumers("default", 2)
	s.submit()
	s.awaitNoneWaits()
	return want{
		codes: []string{opscore.CauseWorkerOtherDatabase}, evidence: []string{w.info.ID.String()},
		remedy: byOperator, names: []string{"process " + w.pid(), w.info.ID.String()},
		undo: w.stop,
	}
}

// ticketsHoarded: a program takes as many tickets as it can hold, and keeps them.
func ticketsHoarded(s *scene) want {
	s.occupied(12)
	hoarder := s.consumer("the-hoarder", 50)
	s.submit()
	held := ""
	s.broker.awaitManaged("default", "all tickets, held by one,", func(q managedQueue) bool {
		held = fmt.Sprint(q.Unacked)
		return q.Unacked > 0 && q.Unacked == s.out()
	})
	return want{
		codes: []string{opscore.CauseForeignConsumer, opscore.CauseTicketsHeld}, evidence: []string{"the-hoarder", "unacked " + held},
		remedy: either, names: []string{"close"}, undo: hoarder.stop,
	}
}

// starvation: tasks of a higher priority come faster than the worker can run them.
func starvation(s *scene) want {
	s.write("opscore.yaml", s.read("opscore.yaml")+"  nap: {command: [sleep, '0.3']}\n")
	s.worker("--slots", "2")
	stop := s.flood("nap", 25, opscore.Priority(9))
	s.until("many urgent tasks", func() bool { return s.counted(opscore.Pending) > 50 })
	s.submit(opscore.Priority(0))
	s.until("many more urgent tasks", func() bool { return s.counted(opscore.Pending) > 150 })
	return want{
		codes: []string{opscore.CauseStarved}, count: func(n int64) bool { return n > 100 && n <= s.counted(opscore.Pending) },
		remedy: byOperator, names: []string{"worker", "slots"},
		undo: func() {
			stop()
			s.worker("--slots", "50")
		},
	}
}

// flood submits so many tasks a second, until it is stopped.
func (s *scene) flood(actor string, rate int, options ...opscore.Option) (stop func()) {
	over, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-over:
				ended <- nil
				return
			case <-tick.C:
			}
			// The test's context ends before what stops this does.
			if _, err := s.client.Submit(context.WithoutCancel(s.Context()), opscore.NewRequest(actor, nil, options...)); err != nil {
				ended <- err
				return
			}
		}
	}()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			close(over)
			s.must(errors.Join(<-ended))
		}
	}
	return stop
}
