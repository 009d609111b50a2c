package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

// perform runs one task of a shell script through a real store and worker, and returns it with its log.
func perform(t *testing.T, script string, args any, opts ...opscore.Option) (opscore.Task, []opscore.LogLine) {
	t.Helper()
	store, err := sqlite.Open(filepath.Join(t.TempDir(), "opscore.db"))
	if err != nil {
		t.Fatal(err)
	}
	handlers := opscore.Handlers{}
	actor := commandActor{name: "script", argv: []string{"sh", "-c", script}, dir: t.TempDir(), env: []string{"PASSED_ON"}}
	if err := actor.register(handlers, nil); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	worked := make(chan error, 1)
	worker := &opscore.Worker{Store: store, Handlers: handlers, Log: slog.New(slog.DiscardHandler)}
	go func() { worked <- worker.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-worked; err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	client := &opscore.Client{Store: store}
	doc, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	sub, err := actor.actor().Submit(ctx, client, doc, append([]opscore.Option{opscore.MaxAttempts(1)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	task, err := client.Wait(ctx, sub.ID)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := client.Logs(ctx, sub.ID)
	if err != nil {
		t.Fatal(err)
	}
	return task, lines
}

func TestStdoutOfACommandIsItsResult(t *testing.T) {
	for name, c := range map[string]struct{ script, want string }{
		"JSON stays as it is":         {`printf '{"a": 1}\n'`, `{"a": 1}`},
		"args come on stdin":          {`cat`, `{"in":"<&>"}`},
		"a number is JSON too":        {`echo 42`, `42`},
		"text becomes a string":       {`printf 'two\nlines\n'`, `"two\nlines"`},
		"only one newline is trimmed": {`printf 'a\n\n'`, `"a\n"`},
		"nothing is null":             {`true`, `null`},
		"a newline is nothing":        {`echo`, `null`},
		"binary is base64":            {`printf '\377\000'`, `{"base64":"/wA="}`},
		"no escapes for browsers":     {`echo '<b> & co'`, `"<b> & co"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			task, _ := perform(t, c.script, map[string]string{"in": "<&>"})
			want := c.want
			if name == "args come on stdin" {
				want = string(task.Args)
			}
			if task.State != opscore.Completed || string(task.Result) != want {
				t.Errorf("got %s %s (%s), want %s", task.State, task.Result, task.Error, want)
			}
		})
	}
}

func TestExitStatusDecidesTheOutcome(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		code   opscore.Code
		want   string
	}{
		"75 may be tried again":        {"exit 75", opscore.CodeError, "command sh: exit status 75 (try again)"},
		"65 never is":                  {"echo bad >&2; echo worse >&2; exit 65", opscore.CodeAborted, "command sh: exit status 65 (never try again): worse"},
		"any other may be tried again": {"echo oops >&2; echo >&2; exit 3", opscore.CodeError, "command sh: exit status 3: oops"},
		"a signal may be tried again":  {"kill -9 $$", opscore.CodeError, "command sh: killed by signal 9 (killed)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			task, _ := perform(t, c.script, nil)
			if task.State != opscore.Failed || task.Code != c.code || task.Error != c.want {
				t.Errorf("got %s (%s): %s", task.State, task.Code, task.Error)
			}
		})
	}
}

func TestTimeoutKillsTheWholeGroup(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script string
		least  time.Duration
	}{
		"by SIGTERM":                       {"sleep 300 & echo $! > $pidfile; wait", 0},
		"by SIGKILL if that is not heeded": {"trap '' TERM; sleep 300 & echo $! > $pidfile; while :; do sleep 300; done", killAfter},
		"even if it ends well then":        {"sleep 300 & echo $! > $pidfile; trap 'exit 0' TERM; wait", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pidFile := filepath.Join(t.TempDir(), "pid")
			task, _ := perform(t, "pidfile="+shellQuote(pidFile)+"; "+c.script, nil, opscore.Timeout(300*time.Millisecond))
			if task.Code != opscore.CodeTimeout {
				t.Errorf("got %s (%s): %s", task.State, task.Code, task.Error)
			}
			if took := task.FinishedAt.Sub(task.StartedAt); took < c.least {
				t.Errorf("took %s, want at least %s", took, c.least)
			}
			pid, err := os.ReadFile(pidFile)
			if err != nil {
				t.Fatal(err)
			}
			expectDead(t, string(pid))
		})
	}
}

func TestNothingOfAGroupOutlivesItsCommand(t *testing.T) {
	t.Parallel()
	task, _ := perform(t, "sleep 300 & echo $!", nil)
	expectDead(t, string(task.Result))
}

// expectDead waits until a process is gone, or a zombie that nobody fetches.
func expectDead(t *testing.T, text string) {
	t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); <-tick.C {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if syscall.Kill(pid, 0) != nil || err == nil && strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	t.Errorf("process %d is alive", pid)
}

func TestAProcessThatLeftTheGroupDoesNotHoldTheTask(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("setsid is a program of Linux")
	}
	task, _ := perform(t, "setsid sh -c 'echo $$; exec sleep 300' & sleep 0.2; echo >&2", nil)
	var pid int
	if err := json.Unmarshal(task.Result, &pid); err != nil {
		t.Fatalf("result %s of %s task: %s", task.Result, task.State, task.Error)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("it should have lived on: %v", err)
	}
	if took := task.FinishedAt.Sub(task.StartedAt); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestTooMuchOutputFailsTheTask(t *testing.T) {
	t.Parallel()
	task, _ := perform(t, "yes", nil, opscore.MaxAttempts(5))
	if task.Code != opscore.CodeAborted || task.Error != "command sh wrote more than 1048576 bytes to stdout: it was killed" {
		t.Errorf("got %s (%s): %s", task.State, task.Code, task.Error)
	}
	task, _ = perform(t, "head -c 1000000 /dev/zero | tr '\\0' x", nil)
	if task.State != opscore.Completed || len(task.Result) != 1000002 {
		t.Errorf("got %s with %d bytes: %s", task.State, len(task.Result), task.Error)
	}
}

func TestArgsNeedNotBeRead(t *testing.T) {
	t.Parallel()
	task, _ := perform(t, "true", strings.Repeat("x", 1<<19))
	if task.State != opscore.Completed {
		t.Errorf("got %s: %s", task.State, task.Error)
	}
}

func TestACommandSeesOnlyAnAllowedEnvironment(t *testing.T) {
	t.Setenv("SECRET_TOKEN", "canary")
	t.Setenv("PASSED_ON", "on request")
	task, _ := perform(t, "env", nil)
	var out string
	if err := json.Unmarshal(task.Result, &out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out, "canary") {
		t.Errorf("a secret is passed on: %s", out)
	}
	for _, want := range []string{"PASSED_ON=on request", "PATH=", envTaskID + "=" + task.ID.String(), envAttempt + "=1", envActor + "=script"} {
		if !strings.Contains("\n"+out, "\n"+want) {
			t.Errorf("%s is missing in %s", want, out)
		}
	}
}

func TestACommandInheritsNoFiles(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("looks into /proc")
	}
	leak, err := syscall.Dup(int(os.Stderr.Fd())) // unlike files that Go opens, not closed by exec
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(leak) }()
	sealFiles()
	task, _ := perform(t, "ls /proc/$$/fd", nil)
	var out string
	if err := json.Unmarshal(task.Result, &out); err != nil {
		t.Fatal(err)
	}
	for fd := range strings.FieldsSeq(out) {
		if fd != "0" && fd != "1" && fd != "2" {
			t.Errorf("file %s is inherited; all: %q", fd, out)
		}
	}
}

func TestStderrIsTheLogOfTheTask(t *testing.T) {
	t.Parallel()
	_, lines := perform(t, `echo one >&2; printf 'two\r\nbad \377\n' >&2; head -c 9000 /dev/zero | tr '\0' x >&2; echo >&2; echo last >&2`, nil)
	var texts []string
	for _, l := range lines {
		texts = append(texts, l.Text)
	}
	if len(texts) != 5 || texts[0] != "one" || texts[1] != "two" || texts[2] != "bad \uFFFD" || texts[4] != "last" {
		t.Fatalf("got %q", texts)
	}
	if long := texts[3]; len(long) > maxLine+10 || !strings.HasSuffix(long, " …") {
		t.Errorf("a long line is kept with %d bytes", len(long))
	}
}

func TestAFloodOnStderrDoesNotHoldTheTask(t *testing.T) {
	t.Parallel()
	task, lines := perform(t, "yes | head -n 500000 >&2; echo done", nil)
	if string(task.Result) != `"done"` {
		t.Errorf("got %s %s: %s", task.State, task.Result, task.Error)
	}
	if last := lines[len(lines)-1].Text; !strings.Contains(last, "exceeds 256 KiB") {
		t.Errorf("the log ends with %q", last)
	}
}

func TestNoCommandOutlivesAShortGrace(t *testing.T) {
	t.Parallel()
	for grace, status := range map[string]int{"1s": 0, "1ns": -1} { // -1: whatever it is, there was no time
		t.Run(grace, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			conf, file, pidFile := filepath.Join(dir, "opscore.yaml"), filepath.Join(dir, "opscore.db"), filepath.Join(dir, "pid")
			text := `actors: {deaf: {command: [sh, -c, "trap '' TERM; sleep 300 & echo $! > pid.new; mv pid.new pid; wait"]}}`
			if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := opscoreCommand(t, "submit", "--config", conf, "--database", file, "deaf").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			worker := opscoreCommand(t, "worker", "--config", conf, "--database", file, "--drain", "0s", "--grace", grace)
			worker.Stderr = t.Output()
			if err := worker.Start(); err != nil {
				t.Fatal(err)
			}
			eventuallyTrue(t, "the command", func() bool { _, err := os.Stat(pidFile); return err == nil })
			if err := worker.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			_ = worker.Wait()
			if got := worker.ProcessState.ExitCode(); status >= 0 && got != status {
				t.Errorf("exit status %d, want %d", got, status)
			}
			pid, err := os.ReadFile(pidFile)
			if err != nil {
				t.Fatal(err)
			}
			expectDead(t, string(pid))
		})
	}
}
