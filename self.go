package opscore

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
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
	return Process{
		Started: processStart(), Parents: parents(), Args: shownArgs(os.Args), Dir: dir, Go: runtime.Version(),
		Stdout: streamKind(os.Stdout), Stderr: streamKind(os.Stderr),
	}
}

// streamKind names what a stream leads to. The runtime has opened the null device in place of one that was closed.
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
	urlUser    = regexp.MustCompile(`://[^@/\s]*@`)
	secretName = regexp.MustCompile(`(?i)(pass|secret|token|key|credential|auth)`)
	secretPair = regexp.MustCompile(`(?i)((?:pass|secret|token|key|credential|auth)[a-z_-]*\s*[=:]\s*)('[^']*'|"[^"]*"|\S+)`)
)

// shownArgs is a command line without what may be secret: users and passwords of URLs, and values of what is called like a secret.
func shownArgs(args []string) []string {
	shown := make([]string, 0, min(len(args), maxShownArgs))
	hide := false
	for i, arg := range args {
		if i == maxShownArgs {
			return append(shown, "…")
		}
		flag := strings.HasPrefix(arg, "-")
		if hide && !flag {
			arg = "…"
		}
		hide = i > 0 && flag && !strings.Contains(arg, "=") && secretName.MatchString(arg)
		arg = secretPair.ReplaceAllString(urlUser.ReplaceAllString(arg, "://…@"), "${1}…")
		if len(arg) > maxShownArg {
			arg = arg[:maxShownArg] + "…"
		}
		shown = append(shown, strings.ToValidUTF8(arg, "\uFFFD"))
	}
	return shown
}

// processStart is when the kernel says that this process started.
func processStart() time.Time {
	const ticks = 100 // a second; what /proc counts in, whatever the kernel's own clock does
	_, _, fields := procStat("self")
	if len(fields) < 20 {
		return loaded.UTC()
	}
	since, err := strconv.ParseInt(fields[19], 10, 64)
	boot := bootTime()
	if err != nil || boot.IsZero() {
		return loaded.UTC()
	}
	return boot.Add(time.Duration(since) * time.Second / ticks)
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

// parents names the programs that started this one, the nearest first: no command lines, which may hold secrets.
func parents() (names []string) {
	for pid := os.Getppid(); pid > 0 && len(names) < maxParents; {
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
