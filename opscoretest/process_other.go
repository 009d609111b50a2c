//go:build !linux

package opscoretest

import "syscall"

// ofItsOwn keeps a terminal's signals from a worker's process.
func ofItsOwn() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
