package main

import (
	"log/slog"
	"os"
	"strconv"
	"syscall"
)

// usualPath is where programs are looked for if nobody says so, as shells do it.
const usualPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// settle makes up for what this process inherited and cannot work with.
func settle() {
	unblockSignals()
	// Files that their owner cannot open are of no use to the next process.
	const owner = 0o700
	syscall.Umask(syscall.Umask(0o077) &^ owner)
	if _, set := os.LookupEnv("PATH"); !set {
		_ = os.Setenv("PATH", usualPath) // fails for bad names only
	}
}

// affordable returns how many of the slots the limit of open files leaves room for: without a file, a command cannot start, and
// that would count as a failed attempt.
func affordable(slots int, log *slog.Logger) int {
	const reserved, each = 40, 4 // for the store, the broker and what is being started; a command's pipes and its process
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur >= uint64(reserved+each*slots) {
		return slots
	}
	room := max(1, (int(limit.Cur)-reserved)/each)
	log.Warn("fewer slots than configured: the limit of open files leaves room for no more", "slots", room, "configured", slots,
		"open_files", limit.Cur, "hint", "raise the limit: ulimit -n")
	return room
}

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
