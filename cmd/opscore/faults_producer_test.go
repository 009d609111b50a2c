//go:build linux

package main

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/postgres"
)

// producerFaults are part A of the catalogue.
func producerFaults() []play {
	return []play{
		{name: "F01 broker queue missing", on: onCluster, act: queueMissing},
		{name: "F02 broker down", on: onOwnCluster, act: brokerDown},
		{name: "F03 broker frozen", on: onOwnCluster, act: brokerFrozen},
		{name: "F04 memory alarm", on: onOwnCluster, act: memoryAlarm},
		{name: "F05 disk alarm", on: onOwnCluster, act: diskAlarm},
		{name: "F06 max-length drops", on: onCluster, act: maxLength},
		{name: "F08 ticket expires", on: onCluster, act: ticketExpires},
		{name: "F11 unstorable payload", fast: true, on: onEmbedded, act: unstorable},
		{name: "F12 unique conflict", fast: true, on: onEmbedded, act: uniqueConflict},
		{name: "F14 transaction open", fast: true, on: onPostgres, act: transactionOpen},
	}
}

// ticketed has a worker with all slots taken that has given its tickets back, among them that of the target: they wait in the broker.
func (s *scene) ticketed() *hand {
	s.Helper()
	w := s.busy(12)
	s.broker.awaitTickets("default", backdrop+1)
	return w
}

func queueMissing(s *scene) want {
	s.ticketed()
	s.broker.ctl("delete_queue", "-p", s.broker.vhost, ticketQueue("default"))
	return want{codes: []string{opscore.CauseBrokerQueueMissing}, evidence: []string{ticketQueue("default")}, remedy: byCommand}
}

func brokerDown(s *scene) want {
	s.ticketed()
	s.must(s.broker.Kill())
	return want{
		codes: []string{opscore.CauseBrokerUnreachable}, evidence: []string{s.broker.Addr()},
		remedy: byOperator, names: []string{"start RabbitMQ at " + s.broker.Addr()},
		undo: func() { s.must(s.broker.Start(s.Context())) },
	}
}

func brokerFrozen(s *scene) want {
	s.ticketed()
	s.must(s.broker.Pause())
	return want{
		codes: []string{opscore.CauseBrokerFrozen}, evidence: []string{s.broker.Addr()},
		remedy: byOperator, names: []string{"continue or restart RabbitMQ at " + s.broker.Addr()},
		undo: func() { s.must(s.broker.Continue()) },
	}
}

func memoryAlarm(s *scene) want {
	s.worker("--slots", "12")
	s.occupy(12)
	s.broker.do("vm_memory_monitor:set_vm_memory_high_watermark(0.0000001)")
	s.awaitAlarm("memory")
	return want{
		codes: []string{opscore.CauseBrokerAlarm}, evidence: []string{"memory"},
		remedy: byOperator, names: []string{"memory"},
		undo: func() { s.broker.do("vm_memory_monitor:set_vm_memory_high_watermark(0.9)") },
	}
}

func diskAlarm(s *scene) want {
	s.worker("--slots", "12")
	s.occupy(12)
	s.broker.do(`rabbit_disk_monitor:set_disk_free_limit("500000GB")`)
	s.awaitAlarm("disk")
	return want{
		codes: []string{opscore.CauseBrokerAlarm}, evidence: []string{"disk"},
		remedy: byOperator, names: []string{"disk"},
		undo: func() { s.broker.do(`rabbit_disk_monitor:set_disk_free_limit("1MB")`) },
	}
}

// awaitAlarm waits until the broker has the alarm, and submits the target.
func (s *scene) awaitAlarm(kind string) {
	s.Helper()
	s.until("an alarm", func() bool { return strings.Contains(s.broker.do("rabbit_alarm:get_alarms()"), kind) })
	s.submit()
}

// maxLength: a policy drops the tickets that wait for longest, the target's among them.
func maxLength(s *scene) want {
	s.broker.policy("keep-it-small", `{"max-length":3}`)
	s.occupied(12)
	s.broker.awaitPolicy("default", "keep-it-small")
	s.submit()
	s.broker.awaitTickets("default", 3)
	return want{codes: []string{opscore.CauseBrokerPolicyLimits, opscore.CauseTicketLost}, evidence: []string{"keep-it-small", "3"}, remedy: byCommand}
}

// ticketExpires: a policy drops tickets that nobody has taken for half a second.
func ticketExpires(s *scene) want {
	s.broker.policy("keep-it-fresh", `{"message-ttl":500}`)
	s.occupied(12)
	s.broker.awaitPolicy("default", "keep-it-fresh")
	s.submit()
	s.broker.awaitTickets("default", 0)
	s.awaitNoTickets()
	return want{codes: []string{opscore.CauseBrokerPolicyLimits, opscore.CauseTicketLost}, evidence: []string{"keep-it-fresh", "500"}, remedy: byCommand}
}

// awaitNoTickets waits until tickets are out and none waits in the broker.
func (s *scene) awaitNoTickets() {
	s.Helper()
	s.until("no ticket to wait in the broker", func() bool {
		n, consumers, err := s.broker.waiting("default")
		return err == nil && n == 0 && consumers == 0 && s.isOut(s.target)
	})
}

// unstorable: what is no JSON text is refused at submit, and nothing is stored.
func unstorable(s *scene) want {
	s.worker()
	s.submit()
	id, err := uuid.NewV7()
	s.must(err)
	a := s.opscore("submit", "--id", id.String(), "hello", "\"ab\xff\"")
	s.target = id
	if a.status == 0 || len(s.tasks(id)) != 0 {
		s.Fatalf("the payload was stored, exit status %d", a.status)
	}
	return want{
		codes: []string{"refused"}, evidence: []string{"byte 3"}, remedy: notNeeded, lasts: true,
		said: []opscore.Cause{{Code: "refused", Text: a.errors, Evidence: []opscore.Evidence{{Source: "submit", Value: a.errors}}}},
	}
}

// uniqueConflict: the key is held by another task, whose id submit tells.
func uniqueConflict(s *scene) want {
	s.worker()
	s.submit()
	holder := s.submitAll(opscore.NewRequest("wait", nil, opscore.Unique("order-42")))[0]
	id, err := uuid.NewV7()
	s.must(err)
	a := s.opscore("submit", "--json", "--unique", "order-42", "--id", id.String(), "wait")
	s.target = id
	var sub opscore.Submission
	s.must(json.Unmarshal([]byte(a.raw), &sub))
	w := want{codes: []string{"duplicate"}, evidence: []string{holder.String()}, remedy: notNeeded, lasts: true, said: sub.Warnings}
	if sub.Duplicate {
		told := opscore.Cause{Code: "duplicate", Text: a.errors, Evidence: []opscore.Evidence{{Source: "submit", Value: sub.ID.String()}}}
		w.said = slices.Insert(w.said, 0, told)
	}
	return w
}

// transactionOpen: the target was submitted in a transaction that is still open.
func transactionOpen(s *scene) want {
	s.worker()
	s.submit()
	id, err := uuid.NewV7()
	s.must(err)
	pid, tx := s.transaction("shop", "SELECT 1")
	_, err = s.client.Submit(s.Context(), opscore.NewRequest("hello", nil, opscore.WithID(id), postgres.In(tx)))
	s.must(err)
	s.target = id
	s.settle("shop")
	return want{
		codes: []string{opscore.CauseTransactionOpen}, evidence: []string{pid, "shop"},
		remedy: byOperator, names: []string{pid},
		undo: func() { s.must(tx.Commit(s.Context())) },
	}
}
