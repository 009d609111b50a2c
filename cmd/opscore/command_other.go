//go:build !linux

package main

import "syscall"

// processGroup gives a command a group of its own.
func processGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// awaitExit returns when the program has exited.
func awaitExit(p *process) {
	_ = p.wait() // reap sees the error
}
