package main

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// processGroup gives a command a group of its own, and its death together with the worker, however that dies.
func processGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// awaitExit returns when the program has exited, but leaves it a zombie: as long as it is one, its process id, and so
// the id of its group, belongs to nobody else.
func awaitExit(p *process) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
