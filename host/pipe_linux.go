package host

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/opscore/opscore"
)

// pipes looks at the stdout and the stderr of a process, where they are pipes; once if both are the same.
func pipes(pid int) (found []opscore.PipeFill) {
	seen := map[string]bool{}
	for _, fd := range []int{1, 2} {
		link := proc(pid, "fd/"+strconv.Itoa(fd))
		info, err := os.Stat(link)
		name, err2 := os.Readlink(link)
		if err != nil || err2 != nil || info.Mode()&os.ModeNamedPipe == 0 || seen[name] {
			continue
		}
		seen[name] = true
		p := opscore.PipeFill{FD: fd, Name: name}
		_ = fill(&p, pid, info) // what may not be looked into has no size
		found = append(found, p)
	}
	return found
}

// fill says how full a pipe is. Nothing is read from it, and at no time are we one of its readers: its writer would not notice that the last of them
// has gone.
func fill(p *opscore.PipeFill, pid int, info os.FileInfo) error {
	f, err := writingEnd(pid, p.FD)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if now, err := f.Stat(); err != nil || !os.SameFile(now, info) {
		return errors.Join(err, os.ErrNotExist) // it has another one by now
	}
	raw := int(f.Fd())
	if p.Size, err = unix.FcntlInt(uintptr(raw), unix.F_GETPIPE_SZ, 0); err != nil {
		return err
	}
	// FIONREAD has another name in this package.
	if p.Buffered, err = unix.IoctlGetInt(raw, unix.TIOCINQ); err != nil {
		return err
	}
	room := []unix.PollFd{{Fd: int32(raw), Events: unix.POLLOUT}}
	_, err = unix.Poll(room, 0)
	p.Full = err == nil && room[0].Revents&unix.POLLOUT == 0
	p.Broken = err == nil && room[0].Revents&unix.POLLERR != 0
	return err
}

// writingEnd returns the end of the pipe that the process has. The reader notices at most that the end of its input comes a moment later, if the process
// ends just now.
func writingEnd(pid, fd int) (*os.File, error) {
	if f, err := copied(pid, fd); err == nil {
		return f, nil
	}
	return opened(pid, fd)
}

// copied takes a copy of what the process has open, as a debugger may.
func copied(pid, fd int) (*os.File, error) {
	p, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(p) }()
	n, err := unix.PidfdGetfd(p, fd, 0) // closed on exec
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), "pipe"), nil
}

// opened opens the pipe anew, for writing, as the owner of the pipe may.
func opened(pid, fd int) (*os.File, error) {
	n, err := unix.Open(proc(pid, "fd/"+strconv.Itoa(fd)), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), "pipe"), nil
}

// findReaders adds to the pipes which other processes could read them.
func findReaders(ctx context.Context, pids []int, of []opscore.ProcessFacts) {
	ends := map[string][]*opscore.PipeFill{}
	for i := range of {
		for j := range of[i].Pipes {
			p := &of[i].Pipes[j]
			ends[p.Name] = append(ends[p.Name], p)
		}
	}
	if len(ends) == 0 {
		return
	}
	hidden := false
	for _, pid := range pids {
		if ctx.Err() != nil {
			hidden = true
			break
		}
		hidden = noteReader(pid, ends) || hidden
	}
	for _, some := range ends {
		for _, p := range some {
			p.Hidden = hidden && len(p.Readers) == 0
		}
	}
}

// noteReader adds a process to the pipes that it could read, and reports whether its files may not be seen.
func noteReader(pid int, ends map[string][]*opscore.PipeFill) (hidden bool) {
	files, err := os.ReadDir(proc(pid, "fd"))
	for _, f := range files {
		name, err := os.Readlink(proc(pid, "fd/"+f.Name()))
		if pipes := ends[name]; err == nil && pipes != nil && reads(pid, f.Name()) {
			for _, p := range pipes {
				if !slices.Contains(p.Readers, pid) {
					p.Readers = append(p.Readers, pid)
				}
			}
		}
	}
	return errors.Is(err, os.ErrPermission)
}

// reads reports whether a file of a process is open for reading.
func reads(pid int, fd string) bool {
	text, err := os.ReadFile(proc(pid, "fdinfo/"+fd))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if flags, ok := strings.CutPrefix(line, "flags:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(flags), 8, 64)
			return err == nil && n&syscall.O_ACCMODE != syscall.O_WRONLY
		}
	}
	return false
}
