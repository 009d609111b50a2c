//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

// ways is the launch matrix.
func ways() []way {
	return slices.Concat(directWays(), shellWays(), wrapperWays(), stdioWays(), terminalWays(), signalWays(), parentWays(), limitWays(), environmentWays())
}

// sh runs a script in which "$@" is the command line of the worker.
func sh(script string) []string { return []string{"sh", "-c", script, "sh"} }

// directWays differ in the path and the names that the worker is started by.
func directWays() []way {
	return []way{
		{name: "direct"},
		{name: "a relative path", setup: func(l *launch) { l.cmd.Path, l.cmd.Dir = "./opscore", filepath.Dir(l.bin) }},
		{name: "found in PATH", argv: sh(`shift; PATH=$0:$PATH; exec opscore "$@"`), setup: func(l *launch) { l.cmd.Args[3] = filepath.Dir(l.bin) }},
		{name: "another directory", setup: func(l *launch) { l.cmd.Dir = "/" }},
		{name: "a directory that nobody can write to", setup: func(l *launch) { l.cmd.Dir = "/proc" }},
		{name: "a directory that was removed", nasty: true, argv: sh(`mkdir gone; cd gone; rmdir ../gone; exec "$@"`)},
		{name: "a symbolic link", setup: func(l *launch) {
			l.must(os.Symlink(l.bin, l.path("link")))
			l.cmd.Path, l.cmd.Args[0] = l.path("link"), l.path("link")
		}},
		{name: "a name that is not ours", setup: func(l *launch) { l.cmd.Args[0] = "-\xff /sbin/init" }},
		{name: "an empty name", setup: func(l *launch) { l.cmd.Args[0] = "" }},
		{
			name: "a binary that is replaced", setup: func(l *launch) {
				l.must(os.Link(l.bin, l.path("opscore")))
				l.cmd.Path = l.path("opscore")
			},
			then: func(l *launch) {
				l.must(os.Remove(l.path("opscore")))
				l.completes("hello")
			},
		},
		{name: "the leader of a process group", setup: func(l *launch) { l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }},
		{name: "the leader of a session", setup: func(l *launch) { l.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }},
		{name: "twice", argv: sh(`"$@" & first=$!; "$@" --ready-file second & wait $first && wait $!`), then: func(l *launch) {
			l.awaitReady("second")
			l.completes("hello")
		}},
		{
			name: "process 1, which adopts orphans", nasty: true,
			setup: func(l *launch) { l.cmd.SysProcAttr = namespaces(syscall.CLONE_NEWPID) },
			then:  func(l *launch) { l.reapsOrphans() },
		},
		{name: "in a PID namespace, below a shell", argv: sh(`"$@"; exit $?`), setup: func(l *launch) {
			l.cmd.SysProcAttr = namespaces(syscall.CLONE_NEWPID)
		}},
		{name: "without a network", setup: func(l *launch) { l.cmd.SysProcAttr = namespaces(syscall.CLONE_NEWNET) }},
		{name: "as a user without a name", setup: func(l *launch) {
			l.cmd.SysProcAttr = namespaces(syscall.CLONE_NEWUSER)
			l.cmd.SysProcAttr.UidMappings[0].ContainerID = 4242
		}},
	}
}

// namespaces starts a process in new ones. Who is not root needs a new one for users as well.
func namespaces(flags uintptr) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: flags}
	if os.Geteuid() != 0 || flags&syscall.CLONE_NEWUSER != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

// reapsOrphans leaves the worker, as process 1, processes to reap that no command of its own is.
func (l *launch) reapsOrphans() {
	l.Helper()
	commands := l.submits("short", 100) // none of which may be taken for an orphan
	l.end(l.submits("orphans", 5), opscore.Completed)
	l.end(commands, opscore.Completed)
	eventuallyTrue(l.T, "the end of the orphans", func() bool {
		made, err := filepath.Glob(l.path("orphan.*"))
		l.must(err)
		return len(made) == 3
	})
	eventuallyTrue(l.T, "no zombie", func() bool { return len(l.zombies()) == 0 })
	l.completes("hello")
}

// zombies are the children of what was started that wait to be reaped.
func (l *launch) zombies() (found []string) {
	l.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	l.must(err)
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err == nil && bytes.Contains(stat, fmt.Appendf(nil, ") Z %d ", l.cmd.Process.Pid)) {
			found = append(found, string(stat))
		}
	}
	return found
}

// standsStill reports whether what was started is stopped.
func (l *launch) standsStill() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", l.cmd.Process.Pid))
	return err == nil && bytes.Contains(stat, []byte(") T "))
}

// shellWays differ in what a shell does with the worker.
func shellWays() []way {
	return []way{
		{name: "sh -c", argv: sh(`"$@"`)},
		{name: "sh -c, which execs", argv: sh(`exec "$@"`)},
		{name: "sh -c, in the background", argv: sh(`"$@" & wait $!`)},
		{name: "sh -c, in the background, and the shell is gone", nasty: true, argv: sh(`"$@" &`), ends: true},
		{name: "forked twice", nasty: true, argv: sh(`(setsid "$@" </dev/null &) &`), ends: true},
		{name: "a subshell", argv: sh(`( "$@" )`)},
		{name: "a shell function with an exit trap", argv: sh(`f() { "$@"; }; trap 'exit 0' EXIT; f "$@"`)},
		{name: "a shell that reads its script from stdin", argv: []string{"sh", "-s"}, setup: func(l *launch) {
			script := l.create("script")
			_, err := script.WriteString(`"$@"` + "\nexit $?\n")
			l.must(err)
			_, err = script.Seek(0, io.SeekStart)
			l.must(err)
			l.cmd.Stdin = script
		}},
		{name: "a shell script", setup: func(l *launch) {
			l.must(os.WriteFile(l.path("script"), []byte("#!/bin/sh -eu\n\"$@\"\n"), 0o700))
			l.cmd.Path, l.cmd.Args = l.path("script"), append([]string{l.path("script")}, l.cmd.Args...)
		}},
		{name: "a pipeline", argv: sh(`"$@" 2>&1 | cat >>log`)},
		{name: "a pipeline whose end is gone", nasty: true, argv: sh(`"$@" 2>&1 | true`), mute: true},
		{name: "the end of a pipeline that never ends", argv: sh(`yes | "$@"`)},
		{name: "bash, disowned", argv: []string{"bash", "-c", `"$@" & disown`, "bash"}, ends: true},
		{name: "bash, with job control", argv: []string{"bash", "-mc", `"$@" & wait $!`, "bash"}},
		{name: "bash, as a coprocess", argv: []string{"bash", "-c", `coproc "$@"; wait $!`, "bash"}},
		{name: "bash, into a process substitution", argv: []string{"bash", "-c", `"$@" 2> >(cat >>log); wait $!`, "bash"}},
	}
}

// wrapperWays differ in the program that starts the worker.
func wrapperWays() []way {
	python := `import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))`
	return []way{
		{name: "nohup", argv: []string{"nohup"}},
		{name: "setsid", argv: []string{"setsid", "--wait"}},
		{name: "setsid --fork", nasty: true, argv: []string{"setsid", "--fork"}, ends: true},
		{name: "nice", argv: []string{"nice", "-n", "19"}},
		{name: "ionice", argv: []string{"ionice", "-c", "3"}},
		{name: "stdbuf", argv: []string{"stdbuf", "-oL", "-eL"}},
		{name: "taskset to one processor", argv: []string{"taskset", "-c", "0"}},
		{name: "flock", argv: []string{"flock", "lock"}},
		{name: "setpriv without new privileges", argv: []string{"setpriv", "--no-new-privs"}},
		{name: "script", argv: sh(`script -qec "$*" /dev/null </dev/null`), also: func(l *launch) {
			if !strings.Contains(l.log(), "worker ready") {
				l.Error("the terminal of script shows no log")
			}
		}},
		{name: "timeout", argv: []string{"timeout", "300"}, stop: func(l *launch) { l.signal(syscall.SIGTERM) }},
		{
			name: "behaviour 104: timeout, whose group gets the signal as well", nasty: true, argv: []string{"timeout", "300"},
			stop: func(l *launch) {
				l.stopsInTheMiddle(func() { l.must(syscall.Kill(-l.cmd.Process.Pid, syscall.SIGTERM)) })
			},
		},
		{name: "nested wrappers", argv: []string{"env", "nice", "sh", "-c", `exec timeout 300 sh -c '"$@"; exit $?' sh "$@"`, "nohup", "setsid", "--wait"}},
		{name: "xargs", argv: sh(`echo --slots 3 | xargs "$@"`)},
		{name: "make", argv: sh(`printf 'all:\n\t%s\n' "$*" | make -f -`)},
		{name: "find -exec", argv: sh(`find . -maxdepth 0 -exec "$@" \;`)},
		{name: "perl's system", argv: []string{"perl", "-e", `exit(system(@ARGV) >> 8)`}},
		{name: "python's subprocess", argv: []string{"python3", "-c", python}},
		{name: "python's daemon", nasty: true, ends: true, mute: true, argv: []string{"python3", "-c", `import os, sys
if os.fork() == 0:
	os.setsid()
	if os.fork() == 0:
		os.chdir("/")
		os.umask(0o27)
		os.closerange(0, 1024)
		os.execv(sys.argv[1], sys.argv[1:])
`}},
		{
			name: "a wrapper that does not pass signals on", argv: sh(`trap '' TERM; "$@"; exit $?`),
			then: func(l *launch) {
				l.signal(syscall.SIGTERM)
				l.completes("hello")
			},
			stop: (*launch).workerStop,
		},
		{
			name: "a wrapper that passes signals on, with its group", nasty: true, argv: sh(`trap 'kill -TERM $!' TERM; "$@" & wait $!; wait $!`),
			setup: func(l *launch) { l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} },
			stop: func(l *launch) {
				l.stopsInTheMiddle(func() { l.must(syscall.Kill(-l.cmd.Process.Pid, syscall.SIGTERM)) })
			},
		},
	}
}

// stopsInTheMiddle stops the worker while it runs a task, which it lets finish. A task that is running in the store need not have begun: its worker
// would hand it back.
func (l *launch) stopsInTheMiddle(stop func()) {
	l.Helper()
	ids := l.submits("nap", 1)
	eventuallyTrue(l.T, "the task to begin", func() bool {
		_, err := os.Stat(l.path("napping"))
		return err == nil
	})
	stop()
	l.end(ids, opscore.Completed)
}

// stdioWays differ in the files that the worker inherits.
func stdioWays() []way {
	return []way{
		{name: "stdin closed", argv: sh(`exec "$@" <&-`)},
		{name: "stdout closed", argv: sh(`exec "$@" >&-`)},
		{name: "stderr closed", argv: sh(`exec "$@" 2>&-`), mute: true},
		{name: "stdin, stdout and stderr closed", nasty: true, argv: sh(`exec "$@" <&- >&- 2>&-`), mute: true},
		{name: "stdin a directory", setup: func(l *launch) { l.cmd.Stdin = l.open(l.dir, os.O_RDONLY) }},
		{name: "stdin open for writing only", setup: func(l *launch) { l.cmd.Stdin = l.create("written") }},
		{name: "stdin a pipe that is never written to", setup: func(l *launch) { l.cmd.Stdin, _ = l.pipe() }},
		{name: "all a socket", setup: func(l *launch) {
			theirs, ours := l.sockets()
			l.cmd.Stdin, l.cmd.Stdout, l.cmd.Stderr = theirs, theirs, theirs
			l.keep(ours)
		}},
		{name: "all a socket, which is not read and does not block", nasty: true, mute: true, setup: func(l *launch) {
			theirs, _ := l.sockets()
			l.must(unix.SetNonblock(int(theirs.Fd()), true))
			l.cmd.Stdin, l.cmd.Stdout, l.cmd.Stderr = theirs, theirs, theirs
		}, then: func(l *launch) { l.complains() }},
		{name: "stdout and stderr read-only", mute: true, setup: func(l *launch) {
			l.cmd.Stdout = l.open("/dev/null", os.O_RDONLY)
			l.cmd.Stderr = l.cmd.Stdout
		}},
		{name: "stdout and stderr a FIFO", setup: func(l *launch) {
			l.must(unix.Mkfifo(l.path("fifo"), 0o600))
			fifo := l.open(l.path("fifo"), os.O_RDWR)
			l.cmd.Stdout, l.cmd.Stderr = fifo, fifo
			l.keep(l.open(l.path("fifo"), os.O_RDONLY))
		}},
		{name: "stdout and stderr on a full disk", nasty: true, mute: true, setup: func(l *launch) {
			l.cmd.Stdout = l.open("/dev/full", os.O_WRONLY)
			l.cmd.Stderr = l.cmd.Stdout
		}},
		{name: "stdout and stderr pipes that nobody reads", nasty: true, mute: true, setup: func(l *launch) {
			_, l.cmd.Stdout = l.pipe()
			_, l.cmd.Stderr = l.pipe()
		}, then: func(l *launch) { l.complains() }},
		{name: "stderr a pipe that is full already", nasty: true, mute: true, setup: func(l *launch) {
			_, w := l.pipe()
			l.fill(w)
			l.cmd.Stdout, l.cmd.Stderr = w, w
		}},
		{name: "stderr a full pipe, to which the default database is told", mute: true, setup: func(l *launch) {
			_, w := l.pipe()
			l.fill(w)
			l.cmd.Stdout, l.cmd.Stderr = w, w
			l.inDefaultDatabase()
		}},
		brokenPipe(),
		{name: "many odd files", setup: func(l *launch) {
			theirs, _ := l.sockets()
			r, w := l.pipe()
			for range 30 {
				l.cmd.ExtraFiles = append(l.cmd.ExtraFiles, theirs, r, nil, w, l.open(l.dir, os.O_RDONLY), l.open("/dev/full", os.O_RDWR))
			}
		}},
	}
}

// complains has the worker write more than a MiB to its log.
func (l *launch) complains() {
	l.Helper()
	l.end(l.submits("complain", 1600), opscore.Failed)
	l.completes("hello")
}

func (l *launch) open(path string, flags int) *os.File {
	l.Helper()
	f, err := os.OpenFile(path, flags, 0)
	l.must(err)
	l.Cleanup(func() { _ = f.Close() })
	return f
}

func (l *launch) pipe() (r, w *os.File) {
	l.Helper()
	r, w, err := os.Pipe()
	l.must(err)
	l.Cleanup(func() { closeFiles([]*os.File{r, w}) })
	return r, w
}

// fill writes to a pipe what fits.
func (l *launch) fill(w *os.File) {
	l.Helper()
	fd := int(w.Fd())
	l.must(unix.SetNonblock(fd, true))
	for err := error(nil); err == nil; {
		_, err = unix.Write(fd, make([]byte, 1))
	}
	l.must(unix.SetNonblock(fd, false))
}

// keep reads what the worker writes into the log file.
func (l *launch) keep(r io.Reader) {
	log := l.create("log")
	go func() { _, _ = io.Copy(log, r) }()
}

func (l *launch) sockets() (theirs *os.File, ours net.Conn) {
	l.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	l.must(err)
	theirs = os.NewFile(uintptr(fds[0]), "theirs")
	file := os.NewFile(uintptr(fds[1]), "ours")
	ours, err = net.FileConn(file)
	l.must(err)
	l.must(file.Close())
	l.Cleanup(func() { closeFiles([]*os.File{theirs}); ours.Close() })
	return theirs, ours
}

// inDefaultDatabase starts the worker without a word about a database.
func (l *launch) inDefaultDatabase() {
	l.cmd.Args = slices.Delete(l.cmd.Args, len(l.cmd.Args)-len(l.place.flags), len(l.cmd.Args))
	l.place = place{nil, nil, func() (store, error) { return sqlite.Open(l.path("opscore/opscore.db")) }}
}

func brokenPipe() way {
	var r *os.File
	return way{
		name: "stdout and stderr a pipe whose reader dies", nasty: true, mute: true,
		setup: func(l *launch) {
			var w *os.File
			r, w = l.pipe()
			l.cmd.Stdout, l.cmd.Stderr = w, w
		},
		then: func(l *launch) {
			l.must(r.Close())
			l.complains()
		},
	}
}

func TestAnErrorThatNobodyReadsEndsTheCommand(t *testing.T) {
	t.Parallel()
	bin := buildCommand(t)
	for name, spoil := range map[string]func(l *launch, r, w *os.File){
		"a full pipe":            func(l *launch, _, w *os.File) { l.fill(w) },
		"a pipe without readers": func(l *launch, r, _ *os.File) { l.must(r.Close()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLaunch(t, bin, embedded(t))
			r, w := l.pipe()
			spoil(l, r, w)
			l.cmd = l.command(l.bin, "worker", "--config", l.path("missing.yaml"))
			l.cmd.Stderr = w
			l.start()
			eventuallyTrue(t, "its end", func() bool { return closed(l.ended) })
			if status := l.cmd.ProcessState.ExitCode(); status != exitUsage {
				t.Errorf("exit status %d (%v), want %d", status, l.err, exitUsage)
			}
		})
	}
}

// terminalWays differ in the terminal that the worker is started from, and in how that ends.
func terminalWays() []way {
	return []way{
		onTerminal("a terminal", func(l *launch, _ *os.File) { l.signalWorkers(syscall.SIGTERM) }),
		onTerminal("a terminal and Ctrl-C", typed("\x03")),
		onTerminal("a terminal that is hung up", hangUp).as(way{nasty: true, mute: true}),
		onTerminal("a terminal that is hung up below a shell", hangUp).as(way{argv: sh(`"$@"; exit $?`), ends: true, mute: true}),
		onTerminal("a terminal and Ctrl-C below a shell", typed("\x03")).as(way{argv: sh(`"$@"; exit $?`), ends: true}),
		onTerminal("a terminal that is hung up, with nohup", hangUpThenTerm).as(way{argv: []string{"nohup"}, nasty: true, mute: true}),
		onTerminal("a terminal that is hung up, with SIGHUP ignored", hangUpThenTerm).as(way{argv: sh(`trap '' HUP; exec "$@"`), nasty: true, mute: true}),
		onTerminal("a terminal that stops whoever writes in the background", func(l *launch, _ *os.File) { l.signalWorkers(syscall.SIGTERM) }).
			as(way{argv: []string{"bash", "-mc", `stty tostop; "$@" & wait $!`, "bash"}, nasty: true}),
	}
}

// as adds what other has.
func (w way) as(other way) way {
	w.argv, w.nasty, w.ends, w.mute = other.argv, other.nasty, other.ends, other.mute
	return w
}

func onTerminal(name string, stop func(l *launch, master *os.File)) way {
	var master *os.File
	return way{
		name: name,
		setup: func(l *launch) {
			var slave *os.File
			master, slave = l.terminal()
			l.cmd.Stdin, l.cmd.Stdout, l.cmd.Stderr = slave, slave, slave
			l.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			l.keep(master)
		},
		stop: func(l *launch) { stop(l, master) },
	}
}

func typed(keys string) func(*launch, *os.File) {
	return func(l *launch, master *os.File) {
		_, err := master.WriteString(keys)
		l.must(err)
	}
}

// hangUp makes the kernel send a SIGHUP, and fail what is written afterwards.
func hangUp(l *launch, master *os.File) { l.must(master.Close()) }

func hangUpThenTerm(l *launch, master *os.File) {
	hangUp(l, master)
	l.completes("hello")
	l.signalWorkers(syscall.SIGTERM)
}

func (l *launch) terminal() (master, slave *os.File) {
	l.Helper()
	master = l.open("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY)
	raw, err := master.SyscallConn()
	l.must(err)
	var number int
	l.must(raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}))
	l.must(err)
	return master, l.open(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY)
}

// signalWays differ in the signals that the worker gets, and in what it inherits about them.
func signalWays() (all []way) {
	for _, name := range []string{"HUP", "INT", "QUIT", "PIPE", "TERM", "CHLD", "TTOU"} {
		all = append(all, way{name: "SIG" + name + " ignored", nasty: name == "TERM" || name == "CHLD", argv: []string{"env", "--ignore-signal=" + name}})
	}
	all = append(all,
		way{name: "SIGHUP ignored and sent", argv: []string{"env", "--ignore-signal=HUP"}, then: func(l *launch) {
			l.signal(syscall.SIGHUP)
			l.completes("hello")
		}},
		way{name: "SIGTERM blocked", nasty: true, argv: []string{"env", "--block-signal=TERM"}},
		way{name: "every signal blocked", nasty: true, argv: []string{"env", "--block-signal"}, then: func(l *launch) {
			l.end(l.submits("hears", 1), opscore.Completed)
		}},
		way{name: "every signal ignored", nasty: true, argv: []string{"env", "--ignore-signal"}},
		way{name: "signals that mean nothing to it", then: func(l *launch) {
			for _, s := range []syscall.Signal{syscall.SIGPIPE, syscall.SIGWINCH, syscall.SIGURG, syscall.SIGCHLD, syscall.SIGCONT, syscall.SIGTTOU} {
				l.signal(s)
			}
			l.completes("hello")
		}},
		way{
			name: "signals to its group while it starts commands", nasty: true,
			setup: func(l *launch) { l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} },
			then:  func(l *launch) { l.bombarded() },
		},
		way{name: "stopped for longer than its lease", nasty: true, flags: []string{"--lease", "1s"}, then: func(l *launch) {
			ids := l.submits("nap", 1)
			l.end(ids, opscore.Running)
			l.signal(syscall.SIGSTOP)
			<-time.After(2 * time.Second)
			l.signal(syscall.SIGCONT)
			l.end(ids, opscore.Completed)
			l.completes("hello")
		}},
		way{name: "stopped and continued", then: func(l *launch) {
			l.signal(syscall.SIGSTOP)
			eventuallyTrue(l.T, "it to stand still", l.standsStill)
			l.signal(syscall.SIGCONT)
			l.completes("hello")
		}},
	)
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGHUP} {
		all = append(all, way{name: "stopped by " + signalName(s), stop: func(l *launch) { l.signal(s) }})
	}
	return append(all, way{name: "stopped by two signals at once", nasty: true, stop: func(l *launch) {
		l.stopsInTheMiddle(func() {
			l.signal(syscall.SIGTERM)
			l.signal(syscall.SIGINT)
		})
	}})
}

// bombarded sends a signal to the group of the worker, who does not mind it, while it starts commands. They have a group of their own, but not at once.
func (l *launch) bombarded() {
	l.Helper()
	ids := l.submits("short", 300)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for tick := time.NewTicker(100 * time.Microsecond); !closed(stop); <-tick.C {
			_ = syscall.Kill(-l.cmd.Process.Pid, syscall.SIGPIPE)
		}
	}()
	l.end(ids, opscore.Completed)
	close(stop)
	<-stopped
}

// parentWays differ in what becomes of the process that started the worker.
func parentWays() []way {
	kill := func(l *launch) {
		l.signal(syscall.SIGKILL)
		eventuallyTrue(l.T, "the parent's end", func() bool { return closed(l.ended) })
	}
	return []way{
		{name: "a parent that is killed", nasty: true, argv: sh(`"$@"; exit $?`), ends: true, then: func(l *launch) {
			kill(l)
			l.completes("hello")
		}},
		{
			name: "a parent that is killed, and the worker is to die with it", nasty: true, ends: true,
			argv: sh(`"$@"; exit $?`), flags: []string{"--die-with-parent"}, stop: kill,
		},
		{name: "a parent that is killed, whose id the worker was given", ends: true, argv: sh(`"$@" --die-with-parent=$$; exit $?`), stop: kill},
		{name: "a parent whose thread ends, and the worker is to die with it", flags: []string{"--die-with-parent"}, start: func(l *launch) {
			started := make(chan struct{})
			go func() {
				runtime.LockOSThread() // and never unlock it: the thread ends with the goroutine
				l.start()
				close(started)
			}()
			<-started
		}, then: func(l *launch) { l.completes("nap") }},
	}
}

// limitWays differ in what the worker may do.
func limitWays() []way {
	return []way{
		{name: "umask 077", argv: sh(`umask 077; exec "$@"`)},
		{name: "umask 777", nasty: true, argv: sh(`umask 777; exec "$@"`), then: func(l *launch) {
			info, err := os.Stat(l.path("ready"))
			l.must(err)
			if info.Mode().Perm()&0o600 != 0o600 {
				l.Errorf("the ready file has mode %s: it cannot be read", info.Mode())
			}
		}},
		{name: "at most 64 open files", nasty: true, argv: sh(`ulimit -n 64; exec "$@"`), then: func(l *launch) {
			l.end(l.submits("short", 100), opscore.Completed)
		}},
		{name: "no core files and a small stack", argv: sh(`ulimit -c 0; ulimit -s 128; exec "$@"`)},
	}
}

// environmentWays differ in the environment.
func environmentWays() []way {
	all := []way{
		{name: "env -i", nasty: true, argv: []string{"env", "-i"}},
		{name: "the environment of cron", argv: []string{"env", "-i", "HOME=/", "LOGNAME=nobody", "SHELL=/bin/sh", "PATH=/usr/bin:/bin"}},
		{name: "HOME unset", argv: []string{"env", "-u", "HOME"}},
		{name: "PATH unset", argv: sh(`unset PATH; exec "$@"`)},
	}
	odd := []string{"=", "=x", "A=", "a b=c", "NEWLINE=a\nb", "UTF8=\xff\xfe", "NO_EQUALS_SIGN", "OPSCORE_SERVICE_HOST=10.0.0.1", "OPSCORE_PORT=tcp://10.0.0.1:80"}
	for i := range 500 {
		odd = append(odd, fmt.Sprintf("ODD_%d=%s", i, strings.Repeat("%s\\\x1b[31m$(false)", 20)))
	}
	for name, env := range map[string][]string{
		"hundreds of odd variables": odd,
		"an odd TZ":                 {"TZ=Nowhere/../../Odd"},
		"LANG=C":                    {"LANG=C", "LC_ALL=C"},
		"an odd LANG":               {"LANG=xx_YY.nonsense", "LC_ALL=\xff"},
		"GOMAXPROCS=1":              {"GOMAXPROCS=1"},
		"GOGC and GODEBUG":          {"GOGC=1", "GODEBUG=madvdontneed=1,nonsense=2", "GOTRACEBACK=none"},
		"rubbish for Go and Python": {"GOFLAGS=-nonsense", "GOROOT=/nowhere", "PYTHONPATH=/nowhere", "PYTHONHOME=/nowhere"},
		"test switches of others":   {"DRAMATIQ_TESTING=1", "DJANGO_TESTING=1", "PYTEST_CURRENT_TEST=x", "UNIT_TESTS=1"},
		"a directory for temporaries that is missing": {"TMPDIR=/nowhere"},
		"a foreign NOTIFY_SOCKET":                     {"NOTIFY_SOCKET=/nowhere/notify", "LISTEN_FDS=3", "LISTEN_PID=1"},
	} {
		all = append(all, way{name: name, setup: func(l *launch) { l.cmd.Env = append(l.cmd.Env, env...) }})
	}
	return all
}
