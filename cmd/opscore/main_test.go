package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/opscore/opscore"
)

func TestMain(m *testing.M) {
	if base := filepath.Base(os.Args[0]); base != "opscore" && base != "accomplice" { // the tests, not a command of a script
		// Processes that the tests start would inherit an ignored SIGHUP, as under nohup, and not end by it. A caught one they do not.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	testscript.Main(m, map[string]func(){"opscore": main, "accomplice": accomplice})
}

// TestScripts runs testdata/*.txtar, which read as the manual of each command. What they say holds on SQLite.
func TestScripts(t *testing.T) {
	t.Parallel()
	p := scripts("sqlite", func(*testscript.Env) error { return nil })
	p.Dir = "testdata"
	testscript.Run(t, p)
}

// scripts returns how scripts run on a tier, whose name is a condition in them.
func scripts(tier string, setup func(*testscript.Env) error) testscript.Params {
	return testscript.Params{
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Condition: func(cond string) (bool, error) {
			if cond != "sqlite" && cond != "postgres" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			return cond == tier, nil
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("TZ", "UTC")
			env.Setenv("GORACE", "atexit_sleep_ms=0") // else every command takes a second longer under -race
			if err := os.Mkdir(filepath.Join(env.WorkDir, "home"), 0o700); err != nil {
				return err
			}
			return setup(env)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"waitfile":   waitFile,
			"signal":     signalWorker,
			"setid":      setID,
			"setfield":   setField,
			"eventually": eventually,
			"writefile":  writeFile,
			"status":     exitsWith,
			"execsql":    executeSQL,
			"server":     startServer,
		},
	}
}

const patience = 20 * time.Second

// waitUntil looks again and again until done says yes.
func waitUntil(ts *testscript.TestScript, what string, done func() bool) {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline.C:
			ts.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

// waitFile waits until a file exists, or with ! until it does not.
func waitFile(ts *testscript.TestScript, neg bool, args []string) {
	waitUntil(ts, args[0], func() bool {
		_, err := os.Stat(ts.MkAbs(args[0]))
		return os.IsNotExist(err) == neg
	})
}

// signalWorker sends a signal to the worker that wrote a ready file: signal TERM FILE.
func signalWorker(ts *testscript.TestScript, _ bool, args []string) {
	signals := map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}
	var w opscore.WorkerInfo
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &w))
	ts.Check(syscall.Kill(w.PID, signals[args[0]]))
}

var idPattern = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[47][0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)

// setID sets a variable to the first id in a file or stdout or stderr: setid NAME FILE.
func setID(ts *testscript.TestScript, _ bool, args []string) {
	id := idPattern.FindString(ts.ReadFile(args[1]))
	if id == "" {
		ts.Fatalf("no id in %s", args[1])
	}
	ts.Setenv(args[0], id)
}

// setField sets a variable to a string of a JSON object in a file: setfield NAME FILE KEY.
func setField(ts *testscript.TestScript, _ bool, args []string) {
	var object map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &object))
	text, ok := object[args[2]].(string)
	if !ok {
		ts.Fatalf("%s has no string %s", args[1], args[2])
	}
	ts.Setenv(args[0], text)
}

// eventually runs a command again and again until it succeeds and its output matches: eventually PATTERN COMMAND ARG…
func eventually(ts *testscript.TestScript, _ bool, args []string) {
	pattern := regexp.MustCompile(args[0])
	waitUntil(ts, strings.Join(args, " "), func() bool {
		err := ts.Exec(args[1], args[2:]...)
		return err == nil && pattern.MatchString(ts.ReadFile("stdout"))
	})
}

// exitsWith runs a command that must end with this exit status: status N COMMAND ARG…
func exitsWith(ts *testscript.TestScript, _ bool, args []string) {
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit status %d, want %s", got, args[0])
	}
}

// executeSQL does with a SQLite file what another program does: execsql DATABASE FILE.
func executeSQL(ts *testscript.TestScript, _ bool, args []string) {
	db, err := sql.Open("sqlite", ts.MkAbs(args[0]))
	ts.Check(err)
	_, err = db.ExecContext(context.Background(), ts.ReadFile(args[1]))
	ts.Check(errors.Join(err, db.Close()))
}

// writeFile writes text, with Go's escapes, COUNT times: writefile FILE TEXT COUNT. For what txtar cannot hold.
func writeFile(ts *testscript.TestScript, _ bool, args []string) {
	var text string
	ts.Check(json.Unmarshal([]byte(`"`+args[1]+`"`), &text))
	n := 1
	if len(args) > 2 {
		ts.Check(json.Unmarshal([]byte(args[2]), &n))
	}
	var raw []byte
	for _, r := range text { // each character is one byte, so that scripts can write invalid UTF-8
		raw = append(raw, byte(r))
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Repeat(string(raw), n)), 0o600))
}
