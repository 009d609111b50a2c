package opscore

import (
	"fmt"
	"slices"
	"strings"
)

// process is what this host says of a worker's process; nil if it says nothing.
func (v *view) process(w *WorkerInfo) *ProcessFacts {
	if v.Host == nil {
		return nil
	}
	i := slices.IndexFunc(v.Host.Processes, func(p ProcessFacts) bool { return p.Worker == w.ID && w.ID != ID{} })
	if i < 0 {
		return nil
	}
	return &v.Host.Processes[i]
}

// processCondition says what this host knows that keeps a worker from working.
func (v *view) processCondition(w *WorkerInfo) (why Cause, sick bool) {
	p := v.process(w)
	switch {
	case p == nil || w.State == WorkerGone:
		return why, false
	case !p.Exists:
		if killed := v.oom(w); killed != nil {
			return *killed, true
		}
		return because(CauseWorkerDied, "%s has died: there is no such process any more; its tasks are taken back from %s on", w.name(), moment(w.leaseEnds())).
			since(w.LastBeat).next(w.leaseEnds()).with("host", fmt.Sprintf("process %d", p.PID), "does not exist"), true
	case p.State == "T" || p.State == "t":
		return because(CauseWorkerStopped, "%s is stopped (state %s) since about %s", w.name(), p.State, moment(w.LastBeat)).
			since(w.LastBeat).next(w.leaseEnds()).with("host", fmt.Sprintf("process %d state", p.PID), p.State).
			fix(safe(command("kill -CONT %s", p.PID))), true
	case p.Frozen:
		return because(CauseWorkerStopped, "%s is frozen since about %s: its control group does not let it run", w.name(), moment(w.LastBeat)).
			since(w.LastBeat).next(w.leaseEnds()).with("host", fmt.Sprintf("process %d", p.PID), "its control group is frozen").
			fix(safe(act("thaw the control group of process %d on host %s: docker unpause, systemctl thaw, or 0 into cgroup.freeze", p.PID, w.Host))), true
	case p.State == "Z":
		return because(CauseWorkerDied, "%s has died: its process is a zombie that its parent has not looked at; its tasks are taken back from %s on",
			w.name(), moment(w.leaseEnds())).since(w.LastBeat).next(w.leaseEnds()).with("host", fmt.Sprintf("process %d state", p.PID), p.State), true
	}
	return why, false
}

// oom says that a worker that is gone was killed for want of memory, if that is to be seen.
func (v *view) oom(w *WorkerInfo) *Cause {
	p := v.process(w)
	if p == nil || p.Exists || p.OOMKills == 0 {
		return nil
	}
	c := because(CauseWorkerOOMKilled, "%s is gone, and the kernel has killed in its control group for want of memory (oom_kill %d)", w.name(), p.OOMKills).
		since(w.LastBeat).with("host", fmt.Sprintf("process %d", p.PID), "does not exist").with("host", "oom_kill", p.OOMKills).
		fix(act("give process %d's service on host %s more memory, or fewer slots: opscore worker --slots", p.PID, w.Host))
	return &c
}

// output says that nobody reads what a worker writes.
func (v *view) output(w *WorkerInfo) []Cause {
	check := w.Report.Check(CheckLog)
	p := v.process(w)
	var full *PipeFill
	if p != nil && p.Exists {
		if i := slices.IndexFunc(p.Pipes, func(f PipeFill) bool { return f.Full }); i >= 0 {
			full = &p.Pipes[i]
		}
	}
	if full == nil && (check.State == CheckOK || check.State == "") {
		return nil
	}
	text := fmt.Sprintf("%s cannot write its log: %s", w.name(), check.Text)
	if full != nil {
		text = fmt.Sprintf("%s cannot write: its file %d is a full pipe (%d of %d bytes)", w.name(), full.FD, full.Buffered, full.Size)
		if len(full.Readers) > 0 {
			text += fmt.Sprintf(", which process %s does not read", pids(full.Readers))
		}
	}
	c := because(CauseOutputBlocked, "%s", text).since(check.Since).with(SourceStore, "worker", w.ID).with(SourceStore, "log_lines_dropped", w.Report.LogDropped)
	if check.Text != "" {
		c = c.with(SourceStore, "check log", check.Text)
	}
	if full == nil {
		return []Cause{c.fix(act("read the output of process %d on host %s, or start it with its output in a file: --log-file", w.PID, w.Host))}
	}
	return []Cause{c.with("host", fmt.Sprintf("pipe at fd %d of process %d", full.FD, p.PID), fmt.Sprintf("%d of %d bytes", full.Buffered, full.Size)).
		with("host", "readers", pids(full.Readers)).
		fix(act("let process %s read the pipe, or start process %d again with its output in a file: --log-file", pids(full.Readers), p.PID))}
}

func pids(of []int) string {
	if len(of) == 0 {
		return "none"
	}
	var all []string
	for _, pid := range of {
		all = append(all, fmt.Sprint(pid))
	}
	return strings.Join(all, ", ")
}

// host says what is amiss with workers that take from the queues, and with others on this host.
func (v *view) host(queues []string) (causes []Cause) {
	for i := range v.Workers {
		w := &v.Workers[i]
		concerned := v.Task == nil || v.Task.State == Pending && slices.ContainsFunc(queues, func(q string) bool { return w.Takes(q, v.Task.Actor) })
		if w.Live && concerned {
			causes = append(causes, v.degraded(w)...)
		}
	}
	manned := slices.ContainsFunc(v.Workers, v.fit)
	if t := v.Task; t != nil {
		manned = t.State != Pending || len(v.unstaffed(t.Queue, t.Actor)) == 0
	}
	if v.Host == nil || manned || !v.storeAnswered() { // then others on this host are none of ours
		return causes
	}
	for _, p := range v.Host.Processes {
		if p.Worker == (ID{}) && p.Exists {
			c := because(CauseWorkerUnregistered, "process %d on this host is a worker of opscore that is not registered in this database", p.PID)
			for _, e := range p.Endpoints {
				c = c.with("host", "it was told to use "+e.Kind, e.String())
			}
			for _, file := range p.Databases {
				c = c.with("host", "it has open", file)
			}
			c = c.with("host", fmt.Sprintf("process %d", p.PID), strings.Join(p.Args, " ")).with("host", "directory", p.Dir)
			if i := slices.IndexFunc(p.Databases, func(file string) bool { return strings.HasSuffix(file, " (deleted)") }); i >= 0 {
				c = c.fix(act("start process %d again: the file that it works for is not there any more: %s", p.PID, p.Databases[i]))
			} else {
				c = c.fix(act("compare the database of process %d with this one: opscore config show in %s", p.PID, p.Dir))
			}
			causes = append(causes, c)
		}
	}
	return causes
}
