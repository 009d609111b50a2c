package opscore

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// loaded is about when this process started, for systems that do not tell.
var loaded = time.Now()

// self describes this process.
func self() Process {
	dir, err := os.Getwd()
	if err != nil {
		dir = "" // it was removed, or we may not see it
	}
	p := Process{
		Started: loaded.UTC(), Parents: parents(os.Getppid()), Args: shownArgs(os.Args), Dir: dir, Go: runtime.Version(),
		Stdout: streamKind(os.Stdout.Stat()), Stderr: streamKind(os.Stderr.Stat()), Space: pidSpace(),
	}
	if _, _, fields := procStat("self"); fields != nil {
		p.start(fields)
	}
	p.Group = memoryGroup("self")
	p.OOMKills, _ = oomKills(p.Group)
	return p
}

// ProcessOf describes another process on this host, as a worker describes itself when it registers. It fails if there is none with that id, if it may not
// be seen, or if the system does not tell.
func ProcessOf(pid int) (Process, error) {
	name := strconv.Itoa(pid)
	_, parent, fields := procStat(name)
	if fields == nil {
		return Process{}, fmt.Errorf("look at process %d: %w", pid, fs.ErrNotExist)
	}
	at := func(file string) string { return filepath.Join("/proc", name, file) }
	line, err := os.ReadFile(at("cmdline"))
	if err != nil {
		return Process{}, err
	}
	p := Process{Parents: parents(parent), Space: pidSpace(), Group: memoryGroup(name)}
	p.start(fields)
	if text := strings.TrimSuffix(string(line), "\x00"); text != "" {
		p.Args = shownArgs(strings.Split(text, "\x00"))
	}
	if p.Dir, err = os.Readlink(at("cwd")); err == nil {
		p.Stdout, p.Stderr = streamKind(os.Stat(at("fd/1"))), streamKind(os.Stat(at("fd/2")))
	}
	p.OOMKills, _ = oomKills(p.Group)
	return p, nil
}

// Same reports whether q is the same process, given that both have the same id: ids are used again.
func (p *Process) Same(q Process) bool {
	if p.Space != "" && q.Space != "" {
		return p.Space == q.Space && p.Ticks == q.Ticks
	}
	return p.Started.Sub(q.Started).Abs() < 2*time.Second // one of them did not say
}

// OOMKilled returns how often the kernel has killed for want of memory in the process' control group since it registered; false if that cannot be known,
// as when the group is gone.
func (p *Process) OOMKilled() (n int, known bool) {
	n, known = oomKills(p.Group)
	return max(n-p.OOMKills, 0), known
}

// streamKind names what a stream leads to. The runtime has opened the null device in place of one that was closed.
func streamKind(info os.FileInfo, err error) string {
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
	case mode&os.ModeCharDevice != 0:
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

// Bounds of what is shown of a command line.
const (
	maxShownArgs = 64
	maxShownArg  = 200 // bytes
	maxParents   = 16
)

var (
	urlUser    = regexp.MustCompile(`://\S*@`) // to the last @: a password may have one, and a list of URLs shows its last host
	secretName = regexp.MustCompile(`(?i)(pass|secret|token|key|credential|auth)`)
	secretPair = regexp.MustCompile(`(?is)((?:pass|secret|token|key|credential|auth)[a-z_-]*["']?\s*[=:]\s*).+`) // nobody knows where its value ends
)

// shownArgs is a command line without what may be secret: users and passwords of URLs, and values of what is called like a secret.
func shownArgs(args []string) []string {
	shown := make([]string, 0, min(len(args), maxShownArgs))
	hide := false
	for i, arg := range args {
		if i == maxShownArgs {
			return append(shown, "…")
		}
		hidden := hide
		hide = i > 0 && strings.HasPrefix(arg, "-") && !strings.Contains(arg, "=") && secretName.MatchString(arg)
		if hidden {
			arg = "…"
		}
		arg = secretPair.ReplaceAllString(urlUser.ReplaceAllString(arg, "://…@"), "${1}…")
		if len(arg) > maxShownArg {
			arg = arg[:maxShownArg] + "…"
		}
		shown = append(shown, strings.ToValidUTF8(arg, "\uFFFD"))
	}
	return shown
}

// start notes when the kernel says that the process started, given the fields of its stat.
func (p *Process) start(fields []string) {
	const ticks = 100 // a second; what /proc counts in, whatever the kernel's own clock does
	if len(fields) < 20 {
		return
	}
	since, err := strconv.ParseInt(fields[19], 10, 64)
	boot := bootTime()
	if err == nil && !boot.IsZero() {
		p.Ticks, p.Started = since, boot.Add(time.Duration(since)*time.Second/ticks)
	}
}

// pidSpace says where this process sees ids of processes: in which namespace of which boot of the system.
func pidSpace() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	space, err2 := os.Readlink("/proc/self/ns/pid")
	if err != nil || err2 != nil {
		return ""
	}
	return strings.TrimSpace(string(boot)) + " " + space
}

// groups is where the control groups are: those of version 2, with those of version 1 below, a directory for each of their controllers.
const groups = "/sys/fs/cgroup"

// memoryGroup is the directory of the control group that counts the memory of a process; "" if there is none. In a container it may be
// the topmost one that can be seen.
func memoryGroup(pid string) string {
	text, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	if err != nil {
		return ""
	}
	root, path := "", ""
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		switch {
		case len(f) < 3:
		case slices.Contains(strings.Split(f[1], ","), "memory"):
			root, path = groups+"/memory", f[2]
		case f[1] == "" && root == "":
			root, path = groups, f[2]
		}
	}
	for _, dir := range []string{filepath.Join(root, path), root} {
		if _, counts := oomKills(dir); counts {
			return dir
		}
	}
	return ""
}

// oomKills is how often the kernel has killed in a control group for want of memory.
func oomKills(dir string) (n int, known bool) {
	if filepath.Clean(dir) != dir || !strings.HasPrefix(dir+"/", groups+"/") {
		return 0, false // it may come from another process, through the registry
	}
	for _, name := range []string{"memory.events", "memory.oom_control"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if count, ok := strings.CutPrefix(line, "oom_kill "); ok {
				n, err := strconv.Atoi(strings.TrimSpace(count))
				return n, err == nil
			}
		}
	}
	return 0, false
}

func bootTime() time.Time {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}
	}
	for line := range strings.Lines(string(text)) {
		if seconds, ok := strings.CutPrefix(line, "btime "); ok {
			if n, err := strconv.ParseInt(strings.TrimSpace(seconds), 10, 64); err == nil {
				return time.Unix(n, 0).UTC()
			}
		}
	}
	return time.Time{}
}

// parents names the program with that id and those that started it, the nearest first: no command lines, which may hold secrets.
func parents(pid int) (names []string) {
	for pid > 0 && len(names) < maxParents {
		name, parent, _ := procStat(strconv.Itoa(pid))
		if name == "" {
			break
		}
		names = append(names, strings.ToValidUTF8(name, "\uFFFD"))
		pid = parent
	}
	return names
}

// procStat reads what Linux says of a process: its name, its parent, and the fields from the third on. The name may hold anything.
func procStat(pid string) (name string, parent int, fields []string) {
	text, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return "", 0, nil
	}
	begin, end := strings.IndexByte(string(text), '('), strings.LastIndexByte(string(text), ')')
	if begin < 0 || end < begin {
		return "", 0, nil
	}
	fields = strings.Fields(string(text[end+1:]))
	if len(fields) > 1 {
		parent, _ = strconv.Atoi(fields[1]) // 0 ends the chain
	}
	return string(text[begin+1 : end]), parent, fields
}
