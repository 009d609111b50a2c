package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// pipeFull reports whether a write to a pipe, a socket or a terminal would wait for its reader now. It is false if the reader is gone.
func pipeFull(f *os.File) (full bool) {
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	_ = conn.Control(func(fd uintptr) { // Fd would make it a blocking one
		polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}} //nolint:gosec // descriptors are small
		n, err := unix.Poll(polled, 0)
		full = n == 0 && err == nil
	})
	return full
}
