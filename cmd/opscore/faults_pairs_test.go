//go:build linux

package main

import (
	"time"

	"github.com/opscore/opscore"
)

// pairs are two faults at once: both have to be named.
func pairs() []play {
	return []play{
		{name: "P01 paused, no worker", fast: true, on: onEmbedded, act: func(s *scene) want {
			s.opscore("queue", "pause", "default")
			s.submit()
			return both(opscore.CauseQueuePaused, opscore.CauseNoWorker)
		}},
		{name: "P02 scheduled, queue not listened", fast: true, on: onEmbedded, act: func(s *scene) want {
			s.worker("--queues", "mail")
			s.submit(opscore.After(time.Hour))
			return both(opscore.CauseScheduled, opscore.CauseQueueNotListened)
		}},
		{name: "P03 paused, actor unknown", fast: true, on: onEmbedded, act: func(s *scene) want {
			s.write("old.yaml", "actors: {farewell: {command: [cat]}}\n")
			s.worker("--config", "old.yaml")
			s.opscore("queue", "pause", "default")
			s.submit()
			return both(opscore.CauseQueuePaused, opscore.CauseActorUnknown)
		}},
		{name: "P04 retried later, no worker", fast: true, on: onEmbedded, act: func(s *scene) want {
			w := s.worker()
			s.submitActor("fail")
			s.await("a failed attempt", func(t opscore.Task) bool { return t.State == opscore.Pending && t.Attempt == 1 })
			w.stop()
			return both(opscore.CauseRetryBackoff, opscore.CauseNoWorker)
		}},
		{name: "P05 worker stopped, broker down", on: onOwnCluster, act: func(s *scene) want {
			w := s.worker()
			s.submitActor("wait")
			s.await("the target to run", func(t opscore.Task) bool { return t.State == opscore.Running })
			w.freeze()
			s.must(s.broker.Kill())
			return both(opscore.CauseWorkerStopped, opscore.CauseBrokerUnreachable)
		}},
		{name: "P06 row locked, broker frozen", on: onOwnCluster, act: func(s *scene) want {
			s.submit()
			s.transaction("report", "SELECT FROM opscore.task WHERE id = $1 FOR UPDATE", s.target)
			s.worker()
			s.until("the end of the other tasks", func() bool { return s.counted(opscore.Completed) == backdrop })
			s.settle("report")
			s.must(s.broker.Pause())
			return both(opscore.CauseRowLocked, opscore.CauseBrokerFrozen)
		}},
		{name: "P07 policy, foreign consumer", on: onCluster, act: func(s *scene) want {
			s.broker.policy("keep-it-small", `{"max-length":3}`)
			s.occupied(12)
			s.broker.awaitPolicy("default", "keep-it-small")
			s.consumer("the-thief", 0)
			s.submit()
			s.awaitNoneWaits()
			return both(opscore.CauseBrokerPolicyLimits+"|"+opscore.CauseTicketLost, opscore.CauseForeignConsumer)
		}},
		{name: "P08 queue missing, memory alarm", on: onOwnCluster, act: func(s *scene) want {
			s.ticketed()
			s.broker.do("vm_memory_monitor:set_vm_memory_high_watermark(0.0000001)")
			s.broker.ctl("delete_queue", "-p", s.broker.vhost, ticketQueue("default"))
			return both(opscore.CauseBrokerAlarm, opscore.CauseBrokerQueueMissing)
		}},
		{name: "P09 permission revoked, other vhost", on: onCluster, act: func(s *scene) want {
			other := s.broker.vhost + "other"
			s.broker.makeVhost(other)
			s.worker("--queues", "relay")
			s.busy(4, "--broker", s.broker.urlOf(other))
			s.broker.permit(s.broker.vhost, "^$")
			return both(opscore.CauseBrokerPermission, opscore.CauseWorkerOtherBroker)
		}},
		{name: "P10 database down, broker down", on: onOwnCluster, act: func(s *scene) want {
			s.ownDatabase()
			s.ticketed()
			s.must(s.server.StopImmediately())
			s.must(s.broker.Kill())
			return both(opscore.CauseDatabaseUnreachable, opscore.CauseBrokerUnreachable)
		}},
	}
}

// both has the codes of two causes; each may be one of several, separated by |.
func both(one, other string) want {
	return want{codes: []string{one, other}, lasts: true}
}
