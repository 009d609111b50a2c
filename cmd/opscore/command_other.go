//go:build !linux

package main

import (
	"os/exec"
	"syscall"
)

// processGroup gives a command a group of its own.
func processGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// awaitExit returns when the program has exited.
func awaitExit(p *process) {
	_ = p.wait() // reap sees the error
}

// stillborn cannot be seen here: awaitExit has reaped the child.
func stillborn(int) bool { return false }

// unblockSignals is of use where a thread can start the program anew with a mask of its own.
func unblockSignals() {}

// family is of use where a worker may be process 1 of a container.
type family struct{}

func (c *config) reapOrphans() {}

func (*family) start(cmd *exec.Cmd) error { return cmd.Start() }
func (*family) wait(cmd *exec.Cmd) error  { return cmd.Wait() }
