package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// processGroup gives a command a group of its own, and its death together with the worker, however that dies.
func processGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// awaitExit returns when the program has exited, but leaves it a zombie: as long as it is one, its process id, and so
// the id of its group, belongs to nobody else.
func awaitExit(p *process) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// stillborn reports whether a child that has ended, but is not reaped, never became another program than we are.
func stillborn(pid int) bool {
	const (
		flagsAt    = 6    // fields after the name, which may hold anything
		forkNoExec = 0x40 // the kernel's PF_FORKNOEXEC
	)
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) <= flagsAt {
		return false
	}
	flags, err := strconv.Atoi(fields[flagsAt])
	return err == nil && flags&forkNoExec != 0
}

// unblockSignals starts this program anew if signals are blocked that whoever started it left so: Go unblocks for itself those that it wants to
// receive, but commands would inherit the rest, and never hear the SIGTERM that asks them to end.
func unblockSignals() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var none, blocked unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &none, &blocked); err == nil && blocked != none {
		_ = syscall.Exec("/proc/self/exe", os.Args, os.Environ()) // without /proc, we go on as we are
	}
}

// family knows which of our children are commands of ours. As process 1 of a container we get others too: the orphans that commands
// leave behind, which stay zombies until we reap them. Nil means that somebody else does.
type family struct {
	changed chan os.Signal // a child has ended, or a command was reaped

	mu   sync.Mutex // held from the fork until we know the child
	ours map[int]bool
}

// reapOrphans makes the actors' commands known, before they are registered, and reaps all others as long as we live, if we are process 1.
func (c *config) reapOrphans() {
	if os.Getpid() != 1 {
		return
	}
	f := &family{changed: make(chan os.Signal, 1), ours: map[int]bool{}}
	for i := range c.actors {
		c.actors[i].family = f
	}
	signal.Notify(f.changed, syscall.SIGCHLD)
	go func() {
		for range f.changed {
			f.reap()
		}
	}()
}

func (f *family) start(cmd *exec.Cmd) error {
	if f == nil {
		return cmd.Start()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	err := cmd.Start()
	if err == nil {
		f.ours[cmd.Process.Pid] = true
	}
	return err
}

func (f *family) wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	if f != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.ours, cmd.Process.Pid)
		select {
		case f.changed <- syscall.SIGCHLD: // it may have hidden orphans
		default:
		}
	}
	return err
}

// reap reaps orphans as far as the first zombie that is a command of ours: the kernel shows no further, and whoever supervises
// it reaps it soon.
func (f *family) reap() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		pid := zombie()
		if pid == 0 || f.ours[pid] {
			return
		}
		if _, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil); err != nil && !errors.Is(err, syscall.EINTR) {
			return
		}
	}
}

// zombie returns a child that has ended, and leaves it as it is; 0 if there is none.
func zombie() (pid int) {
	// What package unix leaves out of the structure: the id follows three numbers, where a pointer could be.
	const offset = (3*4 + unsafe.Sizeof(uintptr(0)) - 1) &^ (unsafe.Sizeof(uintptr(0)) - 1)
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		return 0
	}
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), offset)))
}
