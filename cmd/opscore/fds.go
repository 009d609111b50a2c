package main

import (
	"os"
	"strconv"
	"syscall"
)

// sealFiles keeps files that this process inherited, such as a lock or a socket of its launcher, from being
// inherited by commands. Files of our own are sealed as they are opened.
func sealFiles() {
	const first = 3
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		for fd := first; fd < 256; fd++ {
			syscall.CloseOnExec(fd)
		}
		return
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			syscall.CloseOnExec(fd)
		}
	}
}
