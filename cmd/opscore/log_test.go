package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opscore/opscore"
)

// valve is a destination that takes nothing until it is opened.
type valve struct {
	opened chan struct{}
	bytes.Buffer
}

func (v *valve) Write(b []byte) (int, error) {
	<-v.opened
	return v.Buffer.Write(b)
}

// say writes lines with these numbers, of a KiB each.
func say(w io.Writer, from, to int) {
	for i := from; i < to; i++ {
		_, _ = fmt.Fprintf(w, "line %06d %s\n", i, strings.Repeat("x", 1024))
	}
}

// numbers returns the numbers of the lines that say wrote, with -1 for each report of lines that are missing.
func numbers(t *testing.T, log string) (found []int) {
	t.Helper()
	for line := range strings.Lines(log) {
		var n int
		switch _, err := fmt.Sscanf(line, "line %06d", &n); {
		case err == nil:
			found = append(found, n)
		case strings.Contains(line, `level=WARN msg="log lines were dropped" lines=`):
			found = append(found, -1)
		default:
			t.Fatalf("a line of neither kind: %.200s", line)
		}
	}
	return found
}

func TestALogThatIsNotReadCostsLinesAndNoTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &valve{opened: make(chan struct{})}
		w := newLineWriter(v, "text")
		began := time.Now()
		say(w, 0, 6000)
		if waited := time.Since(began); waited != 0 {
			t.Errorf("the writer of 6000 lines waited for %s", waited)
		}
		lost := int(w.dropped())
		if w.stalled() != 0 || lost < 1000 || lost > 3000 || w.queued > maxQueued {
			t.Errorf("at once: stalled for %s, dropped %d lines, %d bytes are queued", w.stalled(), lost, w.queued)
		}
		time.Sleep(3 * time.Second)
		if w.stalled() != 3*time.Second {
			t.Errorf("stalled for %s, want 3s", w.stalled())
		}
		close(v.opened)
		synctest.Wait()
		say(w, 6000, 6010)
		w.close()
		got := numbers(t, v.String())
		kept := 6000 - lost
		if len(got) != kept+1+10 || got[kept-1] != kept-1 || got[kept] != -1 || got[kept+1] != 6000 {
			t.Errorf("the log has %d lines, want the first %d, a report, and 10 more", len(got), kept)
		}
		if want := fmt.Sprintf("lines=%d since_the_start=%d why=\"they were not read fast enough\"\n", lost, lost); !strings.Contains(v.String(), want) {
			t.Errorf("the log does not say %q", want)
		}
		if w.stalled() != 0 || int(w.dropped()) != lost {
			t.Errorf("afterwards: stalled for %s, %d dropped, want %d", w.stalled(), w.dropped(), lost)
		}
	})
}

// A report stands where the lines are missing, also when others follow before the log flows again.
func TestMissingLinesAreReportedInTheirPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &valve{opened: make(chan struct{})}
		w := newLineWriter(v, "text")
		w.queued = maxQueued - 3*(1024+13+perLine)
		say(w, 0, 5)
		w.mu.Lock()
		w.queued = 0
		w.mu.Unlock()
		say(w, 5, 6)
		close(v.opened)
		w.close()
		if got := fmt.Sprint(numbers(t, v.String())); got != "[0 1 2 -1 5]" {
			t.Errorf("the log has %s, want a report in place of lines 3 and 4", got)
		}
	})
}

func TestAPipeThatIsReadAgainHasAllLinesOrTheirNumber(t *testing.T) {
	t.Parallel()
	r, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	const lines = 8000
	w := newLineWriter(to, "text")
	say(w, 0, lines)
	eventuallyTrue(t, "the stalled write", func() bool { return w.stalled() > 0 && pipeFull(to) })
	read := make(chan string)
	go func() {
		b, _ := io.ReadAll(r)
		read <- string(b)
	}()
	eventuallyTrue(t, "the end of it", func() bool { return w.stalled() == 0 })
	w.close()
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	got := numbers(t, <-read)
	if w.dropped() == 0 || got[len(got)-1] != -1 || len(got)-1+int(w.dropped()) != lines {
		t.Errorf("read %d lines and %d were dropped of %d; the last one is %d, want a report", len(got), w.dropped(), lines, got[len(got)-1])
	}
}

func TestAReaderThatIsGoneCostsLines(t *testing.T) {
	t.Parallel()
	r, to, err := os.Pipe()
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	w := newLineWriter(to, "text")
	say(w, 0, 100)
	w.close()
	if w.dropped() != 100 || !errors.Is(w.why, syscall.EPIPE) {
		t.Errorf("dropped %d lines because of %v, want 100 because of EPIPE", w.dropped(), w.why)
	}
}

func TestClosingTheLogWritesWhatIsLeft(t *testing.T) {
	t.Parallel()
	for range 100 {
		var log bytes.Buffer
		w := newLineWriter(&log, "text")
		say(w, 0, 20)
		w.close()
		if got := numbers(t, log.String()); len(got) != 20 {
			t.Fatalf("after the end the log has %v, want 20 lines", got)
		}
	}
}

func TestTheEndDoesNotWaitForAReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &valve{opened: make(chan struct{})}
		w := newLineWriter(v, "text")
		say(w, 0, 1)
		began := time.Now()
		w.close()
		if waited := time.Since(began); waited != flushFor {
			t.Errorf("waited for %s, want %s", waited, flushFor)
		}
		close(v.opened)
	})
}

// disk is full after so many bytes, and breaks lines off.
type disk struct {
	room int
	bytes.Buffer
}

func (d *disk) Write(b []byte) (int, error) {
	n := min(len(b), d.room)
	d.room -= n
	d.Buffer.Write(b[:n])
	if n < len(b) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

func TestLinesOfJSONStayWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{room: 1000}
		w := newLineWriter(d, "json")
		log := newLogger(w, "json", false)
		for i := range 20 {
			log.Info("a line", "number", i)
		}
		synctest.Wait()
		d.room = 1 << 20
		log.Info("the last line")
		w.close()
		var whole, broken int
		var report struct {
			Msg, Error   string
			Lines, Since int `json:",omitempty"`
		}
		for line := range strings.Lines(d.String()) {
			if !json.Valid([]byte(line)) {
				broken++
				continue
			}
			whole++
			if strings.Contains(line, "were dropped") {
				if err := json.Unmarshal([]byte(line), &report); err != nil {
					t.Fatal(err)
				}
			}
		}
		if broken > 1 || whole+int(w.dropped()) != 22 || report.Lines != int(w.dropped()) || report.Error != syscall.ENOSPC.Error() {
			t.Errorf("%d whole lines and %d broken ones, %d dropped, reported as %+v:\n%s", whole, broken, w.dropped(), report, d)
		}
	})
}

// linesIn returns the numbers of the lines in a file.
func linesIn(t *testing.T, path string) []int {
	t.Helper()
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return numbers(t, string(doc))
}

func TestRotationLosesNoLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "log")
		f, err := openLogFile(path)
		if err != nil {
			t.Fatal(err)
		}
		w := newLineWriter(f, "text")
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for n := i; n < 400; n += 4 {
					say(w, n, n+1)
					time.Sleep(50 * time.Millisecond)
				}
			})
		}
		for i := range 3 {
			time.Sleep(1200 * time.Millisecond)
			if err := os.Rename(path, path+fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		wg.Wait()
		w.close()
		seen := map[int]bool{}
		for _, name := range []string{"", "0", "1", "2"} {
			got := linesIn(t, path+name)
			for _, n := range got {
				seen[n] = true
			}
			if len(got) == 0 {
				t.Errorf("%s is empty", path+name)
			}
		}
		if info, err := os.Stat(path); err != nil || len(seen) != 400 || w.dropped() != 0 || info.Mode().Perm() != 0o600 {
			t.Errorf("%d different lines of 400, %d dropped; the new file: %v %v", len(seen), w.dropped(), info, err)
		}
	})
}

func TestALogFileThatIsTruncatedGoesOnAtItsBeginning(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	f, err := openLogFile(path)
	if err != nil {
		t.Fatal(err)
	}
	say(f, 0, 3)
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	say(f, 3, 4)
	if got := fmt.Sprint(linesIn(t, path)); got != "[3]" {
		t.Errorf("the file has %s, want [3]", got)
	}
}

// What is written to a file that was removed is lost, which must not go unnoticed.
func TestALogFileThatCannotBeMadeAgainCostsLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "logs")
		path := filepath.Join(dir, "log")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := openLogFile(path)
		if err != nil {
			t.Fatal(err)
		}
		w := newLineWriter(f, "text")
		say(w, 0, 1)
		synctest.Wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookAgain)
		say(w, 1, 4)
		synctest.Wait()
		if w.dropped() != 3 {
			t.Errorf("without a directory %d lines were dropped, want 3", w.dropped())
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookAgain)
		say(w, 4, 5)
		w.close()
		if got := fmt.Sprint(linesIn(t, path)); got != "[-1 4]" {
			t.Errorf("the new file has %s, want a report and line 4", got)
		}
	})
}

// A worker whose stderr nobody reads does its work, and says afterwards what the log lacks.
func TestAWorkerWithAnUnreadPipeWorks(t *testing.T) {
	t.Parallel()
	cmd := opscoreCommand(t, "dev", "--verbose", "--ready-file", "ready")
	doc := "actors: {chat: {command: [sh, -c, 'yes | head -c 1048576 >&2']}}"
	if err := os.WriteFile(filepath.Join(cmd.Dir, "opscore.yaml"), []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	r, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	for stuff := true; stuff; {
		stuff = !pipeFull(to)
		if stuff {
			_, _ = to.Write(bytes.Repeat([]byte("#"), 4096))
		}
	}
	cmd.Stderr, cmd.Stdout = to, to
	if err := errors.Join(cmd.Start(), to.Close()); err != nil {
		t.Fatal(err)
	}
	eventuallyTrue(t, "the ready file", func() bool {
		_, err := os.Stat(filepath.Join(cmd.Dir, "ready"))
		return err == nil
	})
	submit := opscoreCommand(t, "submit", "--wait", "chat")
	submit.Dir, submit.Env = cmd.Dir, cmd.Env
	if out, err := submit.CombinedOutput(); err != nil {
		t.Fatalf("a task of a worker that nobody listens to: %v: %s", err, out)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// Still unread: the end must not wait either.
	if state, err := cmd.Process.Wait(); err != nil || state.ExitCode() != 0 {
		t.Errorf("the worker ended with %v, %v", state, err)
	}
	if got, err := bufio.NewReader(r).Peek(1); err != nil || string(got) != "#" {
		t.Errorf("the pipe has %q, %v", got, err)
	}
}

// The runtime prints a crash itself. The log file has it as well, after a rotation too.
func TestTheLogFileHasTheCrash(t *testing.T) {
	t.Parallel()
	cmd := opscoreCommand(t, "dev", "--log-file", "log", "--ready-file", "ready")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(cmd.Dir, "log")
	eventuallyTrue(t, "the ready file", func() bool {
		_, err := os.Stat(filepath.Join(cmd.Dir, "ready"))
		return err == nil
	})
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	// Each task is worth a line, and so a look at the name.
	eventuallyTrue(t, "the new log", func() bool {
		submit := opscoreCommand(t, "submit", "--wait", "--max-attempts", "1", "flaky", `{"fail":1}`)
		submit.Dir, submit.Env = cmd.Dir, cmd.Env
		_ = submit.Run() // fails, as asked
		_, err := os.Stat(log)
		return err == nil
	})
	if err := cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // crashed
	doc, err := os.ReadFile(log)
	if err != nil || !strings.Contains(string(doc), "SIGQUIT: quit\n") || !strings.Contains(string(doc), "goroutine 1 ") {
		t.Errorf("the log does not have the crash: %v\n%.2000s", err, doc)
	}
}

// Libraries use the process's own log: it must not be stderr, which may block.
func TestTheLogOfAWorkerIsThatOfTheProcess(t *testing.T) {
	before := slog.Default()
	defer slog.SetDefault(before)
	for verbose, want := range map[bool]int{false: 1, true: 2} {
		var stderr bytes.Buffer
		_, out, err := (&app{stderr: &stderr}).openLog(&config{logFormat: "json", verbose: verbose})
		if err != nil {
			t.Fatal(err)
		}
		slog.Info("from a library")
		slog.Debug("with details")
		out.close()
		if got := strings.Count(stderr.String(), "{"); got != want {
			t.Errorf("verbose %t: the log has %d lines, want %d:\n%s", verbose, got, want, &stderr)
		}
	}
}

// TestALogThatCannotBeWrittenIsShown has every write fail, and then none.
func TestALogThatCannotBeWrittenIsShown(t *testing.T) {
	t.Parallel()
	var full atomic.Bool
	full.Store(true)
	w := newLineWriter(writerFunc(func(line []byte) (int, error) {
		if full.Load() {
			return 0, syscall.ENOSPC
		}
		return len(line), nil
	}), "text")
	defer w.close()
	check := func() opscore.Check {
		var r opscore.Report
		w.tell(&r)
		return r.Check(opscore.CheckLog)
	}
	_, _ = w.Write([]byte("lost\n"))
	eventuallyTrue(t, "a degraded log", func() bool { return check().State == opscore.CheckDegraded })
	if text := check().Text; !strings.Contains(text, syscall.ENOSPC.Error()) {
		t.Errorf("it says %q", text)
	}
	full.Store(false)
	_, _ = w.Write([]byte("written\n"))
	eventuallyTrue(t, "a log in order", func() bool { return check().State == opscore.CheckOK })
}
