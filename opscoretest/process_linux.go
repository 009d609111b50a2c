package opscoretest

import "syscall"

// ofItsOwn keeps a terminal's signals from a worker's process, and kills it with the test, even while it is stopped.
func ofItsOwn() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
