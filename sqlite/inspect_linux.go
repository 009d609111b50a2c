package sqlite

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/opscore/opscore"
)

// Where SQLite locks: the byte of the shared-memory file that is the write lock in WAL mode, and those of the database file that only writers lock
// in other modes.
const (
	walWriteLock = 120
	pendingByte  = 0x40000000
)

// writer returns the process that has the write lock, as the kernel lists it; nil if nobody has.
func writer(path string) *opscore.Backend {
	text, err := os.ReadFile("/proc/locks")
	if err != nil {
		return nil
	}
	shared, file := lockName(path+"-shm"), lockName(path)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)                              // number, POSIX, ADVISORY, WRITE, process, file, first byte, last byte
		if len(f) != 8 || f[1] != "POSIX" || f[3] != "WRITE" { // flock and leases do not stand in SQLite's way
			continue
		}
		first, err := strconv.ParseUint(f[6], 10, 64)
		last, err2 := strconv.ParseUint(f[7], 10, 64)
		pid, err3 := strconv.Atoi(f[4])
		if err != nil || err2 != nil && f[7] != "EOF" || err3 != nil {
			continue
		}
		if f[5] == shared && first <= walWriteLock && (walWriteLock <= last || f[7] == "EOF") || f[5] == file && (last >= pendingByte || f[7] == "EOF") {
			return process(pid)
		}
	}
	return nil
}

// lockName is how the kernel's list of locks names a file.
func lockName(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	major := st.Dev>>8&0xfff | st.Dev>>32&^uint64(0xfff)
	minor := st.Dev&0xff | st.Dev>>12&^uint64(0xff)
	return fmt.Sprintf("%02x:%02x:%d", major, minor, st.Ino)
}

func process(pid int) *opscore.Backend {
	b := &opscore.Backend{PID: pid}
	if text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat")); err == nil {
		name, rest, _ := strings.Cut(string(text), ") ")
		_, name, _ = strings.Cut(name, "(")
		b.App, b.State = strings.ToValidUTF8(name, "\uFFFD"), rest[:min(1, len(rest))]
	}
	return b
}

// readOnly says why a file cannot be written to; "" if it can.
func readOnly(path string) string {
	const writable, readOnlyFS = 2, 1
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err == nil && st.Flags&readOnlyFS != 0 {
		return "the file system is mounted read-only"
	}
	for what, at := range map[string]string{"the file": path, "its directory": filepath.Dir(path)} {
		if err := syscall.Access(at, writable); err != nil {
			return what + " may not be written to by this user: " + err.Error()
		}
	}
	return ""
}

// freeBytes is how much may be written in a directory; nil if the system does not say.
func freeBytes(dir string) *int64 {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return nil
	}
	return new(int64(min(st.Bavail, 1<<40)) * st.Bsize)
}
