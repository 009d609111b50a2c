package host

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opscore/opscore"
)

// goneFor is for how long workers that are gone are looked for: a control group may tell how they ended.
const goneFor = 24 * time.Hour

// look returns what is known of the workers' processes, and then of other workers of opscore.
func look(ctx context.Context, host string, workers []opscore.WorkerInfo) (all []opscore.ProcessFacts, err error) {
	self, err := opscore.ProcessOf(os.Getpid())
	if err != nil {
		return nil, err
	}
	ours := map[int]bool{}
	for i := range workers {
		w := &workers[i]
		if w.Host != host || w.State == opscore.WorkerGone && time.Since(w.GoneAt) > goneFor || elsewhere(w, self) {
			continue
		}
		p := worker(w)
		ours[p.PID] = ours[p.PID] || p.Exists
		all = append(all, p)
	}
	pids, err := processes()
	if err != nil {
		return all, err
	}
	for _, pid := range pids {
		if !ours[pid] && ctx.Err() == nil {
			if p, is := stranger(pid); is {
				all = append(all, p)
			}
		}
	}
	findReaders(ctx, pids, all)
	return all, ctx.Err()
}

// elsewhere reports whether the ids of the worker's processes mean nothing here: in another container, or on another machine of the same name. Who
// started before this system did was on it.
func elsewhere(w *opscore.WorkerInfo, self opscore.Process) bool {
	boot := func(space string) string {
		id, _, _ := strings.Cut(space, " ")
		return id
	}
	theirs, ours := w.Process.Space, self.Space
	if theirs == "" || ours == "" || theirs == ours {
		return false
	}
	booted := self.Started.Add(-time.Duration(self.Ticks) * time.Second / 100)
	return boot(theirs) == boot(ours) || w.LastBeat.After(booted)
}

// worker looks at a registered worker.
func worker(w *opscore.WorkerInfo) opscore.ProcessFacts {
	p := opscore.ProcessFacts{PID: w.PID, Worker: w.ID}
	p.OOMKills, _ = w.Process.OOMKilled()
	if now, err := opscore.ProcessOf(w.PID); err == nil && now.Same(w.Process) {
		describe(&p, now)
	}
	return p
}

// stranger looks at a process that is not registered, and reports whether it is a worker of opscore all the same: the command, as far as its
// arguments tell. A Go program with a worker of its own cannot be told from others.
func stranger(pid int) (p opscore.ProcessFacts, is bool) {
	args, err := arguments(pid)
	if err != nil || !works(args) {
		return p, false
	}
	now, err := opscore.ProcessOf(pid)
	if err != nil {
		return p, false
	}
	p.PID = pid
	describe(&p, now)
	p.Endpoints = connected(pid, args, p.Dir)
	p.Databases = databases(pid)
	return p, p.State != "Z"
}

// works reports whether a command line is that of a worker. What follows a flag may be its value, or the command.
func works(args []string) bool {
	if len(args) == 0 || filepath.Base(args[0]) != "opscore" {
		return false
	}
	flag := false
	for i, arg := range args[1:] {
		switch {
		case strings.HasPrefix(arg, "-"):
			flag = !strings.Contains(arg, "=")
			continue
		case arg == "dev":
			return true
		case arg == "worker":
			next := slices.Concat(args[i+2:], []string{""})[0]
			return !slices.Contains([]string{"list", "show", "stop", "wait"}, next)
		case !flag:
			return false
		}
		flag = false
	}
	return false
}

// describe adds what is to be seen of a process that exists.
func describe(p *opscore.ProcessFacts, now opscore.Process) {
	state := condition(p.PID)
	if state == "" {
		return // it has ended meanwhile
	}
	p.Exists, p.State, p.Args, p.Dir = true, state, now.Args, now.Dir
	p.Frozen = frozen(p.PID)
	p.Pipes = pipes(p.PID)
}

// condition is the letter that the system has for the state of a process; "" if there is none.
func condition(pid int) string {
	text, err := os.ReadFile(proc(pid, "stat"))
	if err != nil {
		return ""
	}
	_, rest := cutLast(string(text), ") ")
	letter, _, _ := strings.Cut(rest, " ")
	return letter
}

// frozen reports whether the control group of a process does not let it run.
func frozen(pid int) bool {
	text, err := os.ReadFile(proc(pid, "cgroup"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		switch {
		case len(f) < 3:
		case f[1] == "":
			events, _ := os.ReadFile(filepath.Join("/sys/fs/cgroup", f[2], "cgroup.events")) // there is none in the topmost group
			if strings.Contains(string(events), "frozen 1\n") {
				return true
			}
		case slices.Contains(strings.Split(f[1], ","), "freezer"):
			state, _ := os.ReadFile(filepath.Join("/sys/fs/cgroup/freezer", f[2], "freezer.state"))
			if strings.HasPrefix(string(state), "FROZEN") {
				return true
			}
		}
	}
	return false
}

// processes lists the ids of all processes that can be seen.
func processes() (pids []int, err error) {
	entries, err := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

func arguments(pid int) ([]string, error) {
	line, err := os.ReadFile(proc(pid, "cmdline"))
	text := strings.TrimSuffix(string(line), "\x00")
	if text == "" {
		return nil, err
	}
	return strings.Split(text, "\x00"), err
}

func proc(pid int, file string) string { return filepath.Join("/proc", strconv.Itoa(pid), file) }

func cutLast(s, sep string) (before, after string) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):]
	}
	return s, ""
}
