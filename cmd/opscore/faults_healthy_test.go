//go:build linux

package main

import (
	"syscall"
	"testing"
	"time"

	"github.com/opscore/opscore"
)

// healthy are deployments without a fault, on each tier, in which explain and doctor must not see any.
func healthy() []play {
	place := func(tier string) func(*testing.T, *scene) {
		return map[string]func(*testing.T, *scene){"embedded": onEmbedded, "postgres": onPostgres, "cluster": onCluster}[tier]
	}
	var plays []play
	n := 0
	each := func(what string, act func(*scene) want, tiers ...string) {
		for _, tier := range tiers {
			n++
			plays = append(plays, play{name: controlName(n, what, tier), fast: tier == "embedded" || n == 2 || n == 3, on: place(tier), act: act})
		}
	}
	each("completed", isCompleted, "embedded", "postgres", "cluster")
	each("running", isRunning, "embedded", "postgres", "cluster")
	each("scheduled", isScheduled, "embedded", "cluster")
	each("retried later", isRetried, "embedded", "cluster")
	each("slots busy", waitsForSlot, "embedded", "cluster")
	each("other queue paused", otherPaused, "embedded", "cluster")
	each("just submitted", justSubmitted, "cluster")
	each("attempts exhausted", isFailed, "postgres")
	each("cancelled", isCancelled, "embedded")
	each("queues apart", queuesApart, "postgres")
	each("one of two workers left", oneLeft, "cluster")
	each("one of two workers drains", oneDrains, "postgres")
	return plays
}

func controlName(n int, what, tier string) string {
	return "H" + string(rune('0'+n/10)) + string(rune('0'+n%10)) + " " + what + " " + tier
}

func isCompleted(s *scene) want {
	s.worker()
	s.submit()
	s.must(s.ended())
	return want{codes: []string{opscore.CauseCompleted}}
}

func isRunning(s *scene) want {
	s.worker()
	s.submitActor("wait")
	s.await("the target to run", func(t opscore.Task) bool { return t.State == opscore.Running })
	return want{codes: []string{opscore.CauseRunning}}
}

func isScheduled(s *scene) want {
	s.worker()
	s.submit(opscore.After(time.Hour))
	return want{codes: []string{opscore.CauseScheduled}}
}

func isRetried(s *scene) want {
	s.worker()
	s.submitActor("fail")
	s.await("a failed attempt", func(t opscore.Task) bool { return t.State == opscore.Pending && t.Attempt == 1 })
	return want{codes: []string{opscore.CauseRetryBackoff}}
}

func waitsForSlot(s *scene) want {
	s.busy(4)
	return want{codes: []string{opscore.CauseSlotsBusy, opscore.CauseBehindOthers}}
}

func otherPaused(s *scene) want {
	s.worker()
	s.opscore("queue", "pause", "mail", "--comment", "no mail today")
	s.submit()
	s.must(s.ended())
	return want{codes: []string{opscore.CauseCompleted}}
}

// justSubmitted: there is much to do, and it is being done.
func justSubmitted(s *scene) want {
	s.worker("--slots", "8")
	stop := s.flood("hello", 20)
	s.Cleanup(stop)
	s.until("a worker at work", func() bool { return s.counted(opscore.Completed) > backdrop })
	s.submit()
	return want{}
}

func isFailed(s *scene) want {
	s.worker()
	s.submitActor("fail", opscore.MaxAttempts(1))
	s.must(s.ended())
	return want{codes: []string{opscore.CauseAttemptsExhausted}}
}

func isCancelled(s *scene) want {
	s.worker()
	s.submit(opscore.After(time.Hour))
	s.opscore("task", "cancel", s.target.String())
	return want{codes: []string{opscore.CauseCancelled}}
}

// queuesApart: each worker listens to a queue of its own.
func queuesApart(s *scene) want {
	s.worker("--queues", "mail")
	s.worker("--queues", "default")
	s.submit()
	s.must(s.ended())
	return want{codes: []string{opscore.CauseCompleted}}
}

// oneLeft: what a worker that was stopped did, the other one does.
func oneLeft(s *scene) want {
	first := s.worker()
	s.worker()
	first.stop()
	s.submit()
	s.must(s.ended())
	return want{codes: []string{opscore.CauseCompleted}}
}

// oneDrains: a worker is being stopped while it runs the target, and another one is there.
func oneDrains(s *scene) want {
	first := s.worker("--drain", "1m")
	s.submitActor("wait")
	s.await("the target to run", func(t opscore.Task) bool { return t.State == opscore.Running })
	s.worker()
	first.signal(syscall.SIGTERM)
	s.until("a worker that drains", func() bool {
		workers, err := s.store.Workers(s.Context(), 0)
		s.must(err)
		return workers[0].State == opscore.WorkerDraining
	})
	return want{codes: []string{opscore.CauseRunning}}
}
