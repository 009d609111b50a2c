//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opscore/opscore"
)

// workerFaults are part C of the catalogue.
func workerFaults() []play {
	return []play{
		{name: "F36 no worker", fast: true, on: onEmbedded, act: noWorker},
		{name: "F37 queue not listened", fast: true, on: onEmbedded, act: queueNotListened},
		{name: "F38 actor not registered", fast: true, on: onEmbedded, act: actorNotRegistered},
		{name: "F39 queue paused", fast: true, on: onEmbedded, act: queuePaused},
		{name: "F40 all slots busy", fast: true, on: onEmbedded, act: allSlotsBusy},
		{name: "F41 worker stopped", fast: true, on: onPostgres, act: workerStopped},
		{name: "F42 worker killed", on: onPostgres, act: workerKilled},
		{name: "F43 out of memory", on: onPostgres, act: outOfMemory},
		{name: "F44 poison", on: onEmbedded, act: poison},
		{name: "F45 output pipe full", on: onEmbedded, act: outputPipeFull},
		{name: "F46 handler deadlock", on: onEmbedded, act: handlerDeadlock},
		{name: "F53 default database", on: onPostgres, act: defaultDatabaseUsed},
	}
}

// noWorker: there was one, and it was stopped.
func noWorker(s *scene) want {
	last := s.worker()
	last.stop()
	s.submit()
	return want{codes: []string{opscore.CauseNoWorker}, evidence: []string{last.info.ID.String()}, remedy: byCommand, undo: func() { s.worker() }}
}

func queueNotListened(s *scene) want {
	s.worker("--queues", "mail")
	s.submit()
	return want{codes: []string{opscore.CauseQueueNotListened}, evidence: []string{"mail"}, remedy: byCommand, undo: func() { s.worker() }}
}

// actorNotRegistered: a worker of another release is there, without the actor.
func actorNotRegistered(s *scene) want {
	before := s.worker()
	before.stop()
	s.write("old.yaml", "actors: {farewell: {command: [cat]}}\n")
	s.worker("--config", "old.yaml")
	s.submit()
	return want{
		codes: []string{opscore.CauseActorUnknown}, evidence: []string{"farewell"}, remedy: byOperator, names: []string{"actor hello"},
		undo: func() { s.worker() },
	}
}

func queuePaused(s *scene) want {
	s.worker()
	s.opscore("queue", "pause", "default", "--comment", "until the printer is repaired")
	s.submit()
	return want{
		codes: []string{opscore.CauseQueuePaused}, evidence: []string{"until the printer is repaired"}, remedy: byCommand,
		undo: func() { s.opscore("queue", "resume", "default") },
	}
}

func allSlotsBusy(s *scene) want {
	s.worker("--slots", "1")
	busy := s.occupy(1)
	s.submit()
	return want{codes: []string{opscore.CauseSlotsBusy}, evidence: []string{busy[0].String()}, remedy: optional}
}

// workerStopped: the process that runs the target is stopped.
func workerStopped(s *scene) want {
	w := s.worker()
	s.submitActor("wait")
	s.await("the target to run", func(t opscore.Task) bool { return t.State == opscore.Running })
	w.freeze()
	return want{codes: []string{opscore.CauseWorkerStopped}, evidence: []string{w.pid(), "T"}, remedy: byCommand, undo: func() { w.signal(syscall.SIGCONT) }}
}

// freeze stops the process until somebody lets it go on.
func (h *hand) freeze() {
	h.Helper()
	h.signal(syscall.SIGSTOP)
	h.until("a stopped process", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%s/stat", h.pid()))
		h.must(err)
		return strings.Contains(string(stat), ") T ")
	})
}

// workerKilled: the process that ran the target is gone, another worker waits for its lease to end.
func workerKilled(s *scene) want {
	w := s.worker("--lease", "6s")
	s.submitActor("wait")
	s.await("the target to run", func(t opscore.Task) bool { return t.State == opscore.Running })
	s.worker()
	w.kill()
	return want{codes: []string{opscore.CauseWorkerDied}, evidence: []string{w.pid()}, remedy: notNeeded}
}

// outOfMemory: the kernel kills the worker in its control group or, where we may not make one, the worker hits its limit of memory.
func outOfMemory(s *scene) want {
	group, limited := s.memoryGroup(60 << 20)
	argv := []string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, group, "accomplice", "hog"}
	codes := []string{opscore.CauseWorkerOOMKilled}
	evidence := []string{"oom_kill"}
	if !limited {
		argv = []string{"sh", "-c", `ulimit -v 1500000 && exec "$@"`, "sh", "accomplice", "hog"}
		codes, evidence = []string{opscore.CauseWorkerDied}, nil
	}
	w := s.program(argv, nil)
	s.submitActor("misbehave")
	s.until("the end of the worker", func() bool { return closed(w.ended) })
	return want{
		codes: codes, evidence: append(evidence, w.pid()), remedy: byOperator, names: []string{"more memory"},
		undo: func() { s.program([]string{"accomplice", "behave"}, nil) },
	}
}

// memoryGroup makes a control group with a limit, if we may.
func (s *scene) memoryGroup(limit int) (dir string, made bool) {
	s.Helper()
	for _, way := range []struct{ root, file string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"},
	} {
		dir = filepath.Join(way.root, filepath.Base(filepath.Dir(s.dir)))
		if os.Mkdir(dir, 0o700) != nil {
			continue
		}
		s.Cleanup(func() { _ = os.Remove(dir) }) // what was in it may not be quite gone
		if os.WriteFile(filepath.Join(dir, way.file), fmt.Append(nil, limit), 0) == nil {
			return dir, true
		}
	}
	return "", false
}

// poison: the target's program kills the worker, which a supervisor starts again.
func poison(s *scene) want {
	s.write("opscore.yaml", s.read("opscore.yaml")+"  kill: {command: [sh, -c, 'kill -9 $PPID']}\n")
	w := s.worker()
	s.submitActor("kill")
	s.until("poison", func() bool {
		if closed(w.ended) {
			w = s.begin([]string{s.path("bin", "opscore"), "worker"}, nil)
		}
		return s.isOver()
	})
	return want{codes: []string{opscore.CausePoison}, evidence: []string{"3"}, remedy: optional, lasts: true}
}

// outputPipeFull: somebody has the other end of the pipe that a worker writes its log to, and does not read.
func outputPipeFull(s *scene) want {
	r, out, err := os.Pipe()
	s.must(err)
	_, err = unix.FcntlInt(out.Fd(), unix.F_SETPIPE_SZ, 4096)
	s.must(err)
	reader := exec.Command("sleep", "3600") //nolint:noctx // it is killed
	reader.Stdin = r
	s.must(reader.Start())
	s.Cleanup(func() {
		_ = reader.Process.Kill()
		_ = reader.Wait() // killed
	})
	w := s.program([]string{s.path("bin", "opscore"), "worker"}, func(c *exec.Cmd) { c.Stdout, c.Stderr = out, out }, "--verbose", "--slots", "4")
	s.must(r.Close())
	s.must(out.Close())
	requests := make([]opscore.Request, 100)
	for i := range requests {
		requests[i] = opscore.NewRequest("hello", nil)
	}
	s.submitAll(requests...)
	s.until("a log that nobody reads", func() bool {
		workers, err := s.store.Workers(s.Context(), 0)
		s.must(err)
		return slices.ContainsFunc(workers, func(w opscore.WorkerInfo) bool {
			return w.Report.Check(opscore.CheckLog).State == opscore.CheckDegraded
		})
	})
	s.occupy(4)
	s.submit()
	return want{
		codes: []string{opscore.CauseOutputBlocked}, evidence: []string{"4096", fmt.Sprint(reader.Process.Pid)},
		remedy: byOperator, names: []string{fmt.Sprintf("process %d", reader.Process.Pid), "process " + w.pid()},
		undo: func() { s.must(reader.Process.Kill()) },
	}
}

// handlerDeadlock: the target's handler goes on after its time.
func handlerDeadlock(s *scene) want {
	w := s.program([]string{"accomplice", "deadlock"}, nil)
	s.submitActor("misbehave", opscore.Timeout(time.Second))
	s.until("a handler that does not end", func() bool {
		workers, err := s.store.Workers(s.Context(), 0)
		s.must(err)
		return slices.ContainsFunc(workers, func(w opscore.WorkerInfo) bool {
			return w.Report.Check(opscore.CheckHandlers).State == opscore.CheckDegraded
		})
	})
	s.program([]string{"accomplice", "behave"}, nil)
	return want{
		codes: []string{opscore.CauseHandlerStuck}, evidence: []string{w.pid(), "1s", s.target.String()}, remedy: byCommand,
		undo: w.kill,
	}
}

// defaultDatabaseUsed: the worker was started without the variable that names the database, and works for the default file.
func defaultDatabaseUsed(s *scene) want {
	w := s.program([]string{s.path("bin", "opscore"), "worker"}, func(c *exec.Cmd) {
		c.Env = slices.DeleteFunc(c.Env, func(v string) bool { return strings.HasPrefix(v, "OPSCORE_DATABASE_URL=") })
	})
	s.submit()
	return want{
		codes: []string{opscore.CauseWorkerUnregistered, opscore.CauseNoWorker}, evidence: []string{w.pid()},
		remedy: byOperator, names: []string{"process " + w.pid(), "OPSCORE_DATABASE_URL"},
		undo: func() {
			w.stop()
			s.worker()
		},
	}
}

// Part D: what looks like a fault and is none.
func legitimate() []play {
	return []play{
		{name: "F56 scheduled", fast: true, on: onEmbedded, act: func(s *scene) want {
			s.worker()
			s.submit(opscore.After(time.Hour))
			due := s.tasks(s.target)[0].RunAt.UTC().Format(time.RFC3339)
			return want{codes: []string{opscore.CauseScheduled}, evidence: []string{due}, remedy: notNeeded, lasts: true}
		}},
		{name: "F57 retry backoff", fast: true, on: onEmbedded, act: func(s *scene) want {
			s.worker()
			s.submitActor("fail")
			s.await("a failed attempt", func(t opscore.Task) bool { return t.State == opscore.Pending && t.Attempt == 1 })
			return want{
				codes: []string{opscore.CauseRetryBackoff}, evidence: []string{"the printer is on fire", "1 of 10"},
				remedy: notNeeded, lasts: true,
			}
		}},
		{name: "F58 attempts exhausted", fast: true, on: onEmbedded, act: func(s *scene) want {
			s.worker()
			s.submitActor("fail", opscore.MaxAttempts(1))
			s.must(s.ended())
			return want{codes: []string{opscore.CauseAttemptsExhausted}, evidence: []string{"the printer is on fire", "1"}, remedy: byCommand}
		}},
	}
}
