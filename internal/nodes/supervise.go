package nodes

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// patience is how long anything here may take before it is an error.
const patience = 30 * time.Second

// guardScript makes a server's directory, says where it is, and removes it. Its standard input is a pipe whose other end is
// held by us, by runnerScript and by every process of the server: it ends when the last of them does, however that came
// about. What else has this directory as its home is killed: Erlang's helpers, which close every file that they inherit, may take
// a moment longer than their server. A PostgreSQL server that was killed leaves a file behind and, in the kernel, a segment of
// shared memory that the file names.
const guardScript = `
trap '' HUP INT QUIT TERM PIPE
dir=$(mktemp -d "$1") || exit
echo "$dir"
read -r _
# Its status is no answer: it is 2, too, if a process has ended meanwhile.
while files=$(grep -lsxzF "HOME=$dir" /proc/[0-9]*/environ); [ -n "$files" ]; do
	for file in $files; do
		pid=${file#/proc/}
		kill -KILL "${pid%/environ}"
	done
	sleep 0.01
done
if [ -f "$dir/data/postmaster.pid" ]; then
	ipcrm -m "$(sed -n '7s/.* //p' "$dir/data/postmaster.pid")"
fi
rm -rf "$dir"
`

// runnerScript runs a server and ends it by the signal that it is given first when we are gone: its standard input is a pipe
// whose other end only we hold. It repeats the signal because the server may not listen to it yet, and lets a server go on that is paused. It ends
// when the server does, with its exit status.
const runnerScript = `
trap '' HUP INT QUIT TERM PIPE
exec 4<&0
signal=$1
shift
"$@" </dev/null 4<&- &
server=$!
echo "$server"
{
	read -r _
	while kill -"$signal" "$server" && kill -CONT "$server"; do sleep 0.1; done
} <&4 >/dev/null 2>&1 3>&- &
reader=$!
wait "$server"
status=$?
kill -KILL "$reader"
exit "$status"
`

// directory is a server's own, with its log and its data. It is gone when it is closed and the server has ended, and
// likewise when our process has ended in any way.
type directory struct {
	path  string
	as    *syscall.Credential // of the server's processes; nil is ours
	env   []string            // of its processes, besides environment
	hold  *os.File            // the guard's pipe: whoever has it keeps the directory alive
	guard *exec.Cmd
}

// serverUser is who root's servers run as that refuse to run as root. PostgreSQL's package makes it.
const serverUser = "postgres"

// newDirectory makes one for the named server, which runs as root's user if we are root and that is given, and else as we do.
func newDirectory(ctx context.Context, name, rootsUser string) (*directory, error) {
	d := &directory{}
	if os.Geteuid() == 0 && rootsUser != "" {
		var err error
		if d.as, err = credential(rootsUser); err != nil {
			return nil, err
		}
	}
	alive, hold, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = alive.Close() }()
	template := filepath.Join(os.TempDir(), "opscore-"+name+"-XXXXXXXX")
	guard := exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", "-c", guardScript, "guard", template)
	guard.Dir = "/"
	guard.Env = environment("/")
	guard.Stdin = alive
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what a terminal sends to us must not reach it
	stdout, err := guard.StdoutPipe()
	if err == nil {
		err = guard.Start()
	}
	if err != nil {
		return nil, errors.Join(err, hold.Close())
	}
	d.hold, d.guard = hold, guard
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("make a directory %s: %w", template, d.close())
	}
	d.path = strings.TrimSuffix(line, "\n")
	if err := d.give(ctx); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// give makes the directory that of the user that the server runs as, if that is not us.
func (d *directory) give(ctx context.Context) error {
	if d.as == nil {
		return nil
	}
	if err := os.Chown(d.path, int(d.as.Uid), int(d.as.Gid)); err != nil {
		return err
	}
	if err := d.run(ctx, d.as, "/bin/sh", "-c", ":"); errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("user %s cannot enter %s: set TMPDIR to a directory that it can enter: %w", serverUser, d.path, err)
	} else if err != nil {
		return err
	}
	return nil
}

func credential(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("find a user to run the server as, for it refuses root: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// close returns once the directory is gone; the server must have ended.
func (d *directory) close() error {
	if err := d.hold.Close(); err != nil {
		if errors.Is(err, os.ErrClosed) {
			return nil // closed before
		}
		return err
	}
	return d.guard.Wait()
}

// command prepares a process that belongs to the directory: it holds the guard's pipe as its file descriptor 3, writes to
// the log and sees nothing of our environment.
func (d *directory) command(ctx context.Context, as *syscall.Credential, log *os.File, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = d.path
	cmd.Env = append(environment(d.path), d.env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{d.hold}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: as}
	return cmd
}

// environment is all that our processes see of ours.
func environment(home string) []string {
	return []string{"PATH=" + os.Getenv("PATH") + ":/usr/bin:/bin", "LC_ALL=C", "HOME=" + home}
}

// openLog opens the log for processes to inherit.
func (d *directory) openLog() (*os.File, error) {
	return os.OpenFile(filepath.Join(d.path, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
}

// log returns the end of what the server has written.
func (d *directory) log() string {
	log, err := os.ReadFile(filepath.Join(d.path, "log"))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(log[max(0, len(log)-8<<10):]))
}

// run runs a program to its end, as the given user.
func (d *directory) run(ctx context.Context, as *syscall.Credential, argv ...string) error {
	log, err := d.openLog()
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	if err := d.command(ctx, as, log, argv...).Run(); err != nil {
		return fmt.Errorf("run %s: %w\n%s", argv[0], err, d.log())
	}
	return nil
}

// output runs a program to its end, as the given user, and returns what it says.
func (d *directory) output(ctx context.Context, as *syscall.Credential, stdin string, argv ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := d.command(ctx, as, nil, argv...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s: %w\n%s%s", filepath.Base(argv[0]), errors.Join(err, ctx.Err()), stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// process is a running server.
type process struct {
	pid  int
	life io.Closer     // closed, it is killed
	gone chan struct{} // closed when it and every process that it started are gone
	err  error         // how it ended; to be read when gone is closed
}

// start starts a server that this signal ends at once, with all that it has started.
func (d *directory) start(ctx context.Context, signal string, argv ...string) (*process, error) {
	log, err := d.openLog()
	if err != nil {
		return nil, err
	}
	p, err := d.supervise(context.WithoutCancel(ctx), log, signal, argv)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return p, nil
}

// supervise does what start does. What the server says goes to the log, which is closed when it ends.
func (d *directory) supervise(ctx context.Context, log *os.File, signal string, argv []string) (*process, error) {
	cmd := d.command(ctx, d.as, log, slices.Concat([]string{"/bin/sh", "-c", runnerScript, "runner", signal}, argv)...)
	life, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = nil
	stdout, err := cmd.StdoutPipe() // inherited by every process of the server: it ends with the last of them
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{life: life, gone: make(chan struct{})}
	out := bufio.NewReader(stdout)
	line, err := out.ReadString('\n')
	if err == nil {
		p.pid, err = strconv.Atoi(strings.TrimSpace(line))
	}
	if err != nil {
		life.Close()
		return nil, errors.Join(fmt.Errorf("start %s: read its process id: %w", argv[0], err), cmd.Wait())
	}
	go func() {
		_, _ = io.Copy(log, out)
		_, _ = io.Copy(io.Discard, out) // if the disk is full
		p.err = cmd.Wait()
		_ = log.Close()
		close(p.gone)
	}()
	return p, nil
}

// ready returns once the server is ready, which is asked again and again. One that is not within the limit is killed.
func (d *directory) ready(ctx context.Context, p *process, limit time.Duration, is func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-p.gone:
			return fmt.Errorf("it has ended: %w\n%s", how(p.err), d.log())
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("not ready: %w\n%s", ctx.Err(), d.log()), p.end())
		}
	}
	return nil
}

// runs reports whether a server was started and is not gone.
func (p *process) runs() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

// end kills the server and returns once it is gone.
func (p *process) end() error {
	p.life.Close()
	return p.await()
}

// await returns once the server is gone.
func (p *process) await() error {
	select {
	case <-p.gone:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("process %d has not ended after %v", p.pid, patience)
	}
}

func (p *process) signal(sig syscall.Signal) error {
	if !p.runs() {
		return fmt.Errorf("signal the server: it has ended: %w", how(p.err))
	}
	return syscall.Kill(p.pid, sig)
}

// signalAll sends first to the server, so that it starts no more processes, and then the signal to it and to each of its
// children.
func (p *process) signalAll(first, sig syscall.Signal) error {
	if err := p.signal(first); err != nil {
		return err
	}
	children, err := children(p.pid)
	if err != nil {
		return err
	}
	for _, pid := range append(children, p.pid) {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signal process %d: %w", pid, err)
		}
	}
	return nil
}

// how says how a process ended.
func how(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// children lists the processes that pid started, by way of /proc.
func children(pid int) (found []int, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		return nil, errors.Join(errors.New("list processes: there is no /proc"), err)
	}
	for _, name := range stats {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended since
		}
		_, after, _ := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(" "))
		fields := strings.Fields(string(after)) // state, parent …
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			child, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if err != nil {
				return nil, err
			}
			found = append(found, child)
		}
	}
	return found, nil
}

// freePort picks a loopback port below those that the kernel hands out, so that no connection takes it while its server
// is stopped.
func freePort(ctx context.Context) (port int, err error) {
	for range 100 {
		port = 20000 + rand.IntN(10000)
		if err = isFree(ctx, port); err == nil {
			return port, nil
		}
	}
	return 0, fmt.Errorf("find a free port: %w", err)
}

// isFree returns nil if a server could listen on the loopback port.
func isFree(ctx context.Context, port int) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", loopback(port))
	if err != nil {
		return err
	}
	return l.Close()
}

func loopback(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}
