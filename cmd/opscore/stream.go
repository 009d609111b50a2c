package main

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// streamKind says what a stream leads to: tty, file, pipe, socket, null, closed or other. One that was closed when the
// process started is null: Go's runtime opens the null device in its place.
func streamKind(f *os.File) string {
	info, err := f.Stat()
	if err != nil {
		return "closed"
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return "file"
	case mode&os.ModeNamedPipe != 0:
		return "pipe"
	case mode&os.ModeSocket != 0:
		return "socket"
	case isNull(info):
		return "null"
	case isTerminal(f):
		return "tty"
	}
	return "other"
}

// isNull compares the device, not the file: a container has a null device of its own.
func isNull(info os.FileInfo) bool {
	null, err := os.Stat(os.DevNull)
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	is, ok := info.Sys().(*syscall.Stat_t)
	want, known := null.Sys().(*syscall.Stat_t)
	return ok && known && is.Rdev == want.Rdev
}

func isTerminal(f *os.File) (is bool) {
	withDescriptor(f, func(fd uintptr) { is = term.IsTerminal(int(fd)) })
	return is
}

// pipeFull reports whether a write to a pipe or socket would wait for its reader now. It is false if the reader is gone.
func pipeFull(f *os.File) bool {
	if kind := streamKind(f); kind != "pipe" && kind != "socket" {
		return false
	}
	full := false
	withDescriptor(f, func(fd uintptr) {
		polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}} //nolint:gosec // descriptors are small
		n, err := unix.Poll(polled, 0)
		full = n == 0 && err == nil
	})
	return full
}

// withDescriptor leaves the descriptor as it is, where Fd would make it a blocking one.
func withDescriptor(f *os.File, do func(fd uintptr)) {
	if conn, err := f.SyscallConn(); err == nil {
		_ = conn.Control(do) // closed meanwhile
	}
}
