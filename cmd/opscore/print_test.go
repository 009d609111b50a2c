package main

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/opscore/opscore"
)

func TestDataCannotPlayWithATerminal(t *testing.T) {
	for in, want := range map[string]string{
		"plain äöü 日本 👩‍💻":       "plain äöü 日本 👩‍💻",
		"\x1b]52;c;AAAA\a":       `\x1b]52;c;AAAA\x07`,
		"\x1b]8;;http://x\x1b\\": `\x1b]8;;http://x\x1b\`,
		"a\r\nopscore: forged":   `a\r\nopscore: forged`,
		"tab\there":              `tab\there`,
		"\u009b31m":              `\u009b31m`,
		"\u202egpj.exe":          `\u202egpj.exe`,
		"\u2066\u2028":           `\u2066\u2028`,
		"\x7f\x00":               `\x7f\x00`,
		"bad \xff":               `bad \xff`,
		"real \uFFFD":            "real \uFFFD",
	} {
		if got := safe(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

func TestEscapedJSONIsTheSameDocument(t *testing.T) {
	doc := []byte("{\n\t\"k\u202e\": [\"\u009b31m\", \"\x7f\", \"\u2028\", \"ok 日本\"]}")
	escaped := safeJSON(doc)
	if strings.IndexFunc(string(escaped), func(r rune) bool { return hostile(r) && r != '\n' && r != '\t' }) >= 0 {
		t.Errorf("got %q", escaped)
	}
	var before, after any
	if err := json.Unmarshal(doc, &before); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(escaped, &after); err != nil || !reflect.DeepEqual(before, after) {
		t.Errorf("got %s, %v", escaped, err)
	}
}

func TestProgressIsOneLineOfTheTerminal(t *testing.T) {
	running := opscore.Task{State: opscore.Running, Progress: 0.5, ProgressText: "half\x1b[2J", Attempt: 2, MaxAttempts: 10}
	waiting := opscore.Task{State: opscore.Pending, Attempt: 1, MaxAttempts: 3, Error: "boom\nstack", RunAt: time.Now().Add(time.Hour)}
	for want, task := range map[string]opscore.Task{
		`[##########..........]  50%  half\x1b[2J  (attempt 2 of 10)`: running,
		"waiting for attempt 2 of 3, in 59m: boom":                    waiting,
		"waiting in queue mail":                                       {State: opscore.Pending, Queue: "mail"},
	} {
		if got := progressLine(task, 200); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := progressLine(task, 10); utf8.RuneCountInString(got) > 9 {
			t.Errorf("%q does not fit", got)
		}
	}
}

func TestSecretsOfURLsAreNotRepeated(t *testing.T) {
	for _, in := range []string{
		"postgres://me:canary@db.example.com/x", "amqp://me:ca@canary@mq.example.com", "postgres://db.example.com/x?password=canary",
		"host=db.example.com password=canary", "POSTGRES://me:canary@x",
	} {
		if got := redactDatabase(in); strings.Contains(got, "canary") {
			t.Errorf("got %s", got)
		}
	}
	if got := redact("try --database postgres://me@db.example.com:5432/app"); !strings.Contains(got, "//me@db") {
		t.Errorf("a user without a password is hidden: %s", got)
	}
	for _, in := range []string{`dial "postgres://me:canary@db.example.com": refused`, "at postgres://db.example.com/x?sslmode=require&password=canary"} {
		if got := redact(in); strings.Contains(got, "canary") {
			t.Errorf("got %s", got)
		}
	}
}

func TestASuggestionIsGivenOnlyIfItIsLikely(t *testing.T) {
	names := []string{"worker", "submit", "task"}
	for in, want := range map[string]string{"wroker": `; did you mean "worker"?`, "sub": `; did you mean "submit"?`, "xyzzy": "", "": ""} {
		if got := didYouMean(in, names); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestATaskWithoutALimitOfAttemptsIsShownAsSuch(t *testing.T) {
	if got := atMost(opscore.ForeverAttempts) + ", " + atMost(3); got != "any number, 3" {
		t.Errorf("got %q", got)
	}
}

func TestWhatTaskShowSaysOfLosses(t *testing.T) {
	for _, tc := range []struct {
		task         opscore.Task
		losses, note string
	}{
		{opscore.Task{State: opscore.Running, Lost: 1}, "once with its worker", "started "},
		{
			opscore.Task{State: opscore.Pending, Lost: 2, Code: opscore.CodeLost},
			"2 times with its worker; it runs alone next, and is failed if it is lost then",
			"due again; lost: ",
		},
		{
			opscore.Task{State: opscore.Running, Lost: 5},
			"5 times with its worker; it runs alone next, and is failed if it is lost then",
			"lost 5 times with its worker: runs alone, once that has nothing else to run",
		},
		{opscore.Task{State: opscore.Running, Lost: 2, Alone: true}, "2 times with its worker; it runs alone now, and is failed if it is lost again", "started "},
		{opscore.Task{State: opscore.Failed, Lost: 3, Code: opscore.CodePoison}, "3 times with its worker", "poison: "},
	} {
		if got := losses(tc.task); got != tc.losses {
			t.Errorf("losses = %q, want %q", got, tc.losses)
		}
		if got := standing(tc.task); !strings.HasPrefix(got, tc.note) {
			t.Errorf("note = %q, want %q", got, tc.note)
		}
	}
}
