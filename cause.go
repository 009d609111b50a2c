package opscore

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Cause is one machine-readable reason why a task is where it is, or what is wrong with a deployment, with what was read about it and what
// can be done.
type Cause struct {
	Code     string     `json:"code"` // one of [Causes]
	Severity Severity   `json:"severity"`
	Text     string     `json:"text"`           // one sentence with the evidence
	Since    time.Time  `json:"since,omitzero"` // if that is known
	Evidence []Evidence `json:"evidence,omitempty"`
	Impact   string     `json:"impact,omitempty"`
	Remedy   []Remedy   `json:"remedy,omitempty"`       // the best one first; none where there is nothing to be mended
	Next     time.Time  `json:"next_event_at,omitzero"` // when something happens by itself
}

// Severity is what a cause means for tasks.
type Severity string

// The severities.
const (
	Fault   Severity = "fault"   // tasks do not go on until somebody does something
	Warning Severity = "warning" // they go on, but later, with less certainty, or not for long
	Reason  Severity = "reason"  // it is as it should be
)

// Evidence is one fact as it was read, and from whom.
type Evidence struct {
	Source string    `json:"source"` // store, postgres, rabbitmq, management, host
	Fact   string    `json:"fact"`
	Value  string    `json:"value"`
	At     time.Time `json:"at,omitzero"`
}

// Remedy is something to do about a cause: a command to be executed as it is, or an action that only a person can do. Nothing of it
// is ever executed by opscore.
type Remedy struct {
	Command string `json:"command,omitempty"` // for a POSIX shell
	Action  string `json:"action,omitempty"`
	Safe    bool   `json:"safe"` // it loses nothing and interrupts nobody
}

// String is the command, or the action.
func (r Remedy) String() string { return r.Command + r.Action }

// because begins a cause of the table.
func because(code, format string, args ...any) Cause {
	k := kindOf(code)
	return Cause{Code: code, Severity: k.Severity, Text: visible(fmt.Sprintf(format, args...)), Impact: k.Impact}
}

// with adds what was read.
func (c Cause) with(source, fact string, value any) Cause {
	c.Evidence = append(c.Evidence, Evidence{Source: source, Fact: fact, Value: fmt.Sprint(value)})
	return c
}

func (c Cause) since(t time.Time) Cause {
	c.Since = t
	return c
}

func (c Cause) next(t time.Time) Cause {
	c.Next = t
	return c
}

func (c Cause) fix(remedies ...Remedy) Cause {
	c.Remedy = append(c.Remedy, remedies...)
	return c
}

// act is a remedy that only a person can do.
func act(format string, args ...any) Remedy {
	return Remedy{Action: visible(fmt.Sprintf(format, args...))}
}

// command is a remedy to be executed: args are words of it, from wherever they come. A word that a terminal, or the program, could take for
// something else is not put into a command: then it is an action, with the word quoted.
func command(format string, args ...any) Remedy {
	words, odd, option := make([]any, len(args)), false, false
	parts := strings.Split(format, "%s")
	for i, a := range args {
		s := fmt.Sprint(a)
		value := strings.HasSuffix(parts[i], "=") // of an option: it is none itself
		odd, option = odd || !printable(s), option || strings.HasPrefix(s, "-") && !value
		words[i] = shellWord(s)
	}
	if at := strings.Index(format, "%"); option && !odd && strings.HasPrefix(format, "opscore ") {
		return Remedy{Command: fmt.Sprintf(format[:at]+"-- "+format[at:], words...)}
	}
	if odd || option {
		for i, a := range args {
			words[i] = fmt.Sprintf("%+q", fmt.Sprint(a))
		}
		return act("do what this means, with the names that are quoted here as Go does: "+format, words...)
	}
	return Remedy{Command: fmt.Sprintf(format, words...)}
}

// safe says that a remedy loses nothing and interrupts nobody.
func safe(r Remedy) Remedy {
	r.Safe = true
	return r
}

// printable reports whether s shows as what it is.
func printable(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool {
		return !unicode.IsPrint(r) || unicode.Is(unicode.Bidi_Control, r)
	}) < 0
}

// visible shows s with escapes, as Go has them, for what does not show as what it is.
func visible(s string) string {
	if printable(s) {
		return s
	}
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(s, "\uFFFD") {
		if printable(string(r)) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
	}
	return b.String()
}

// shellWord makes s one word of a POSIX shell.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-:@%+,=", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// brief shows a duration in its largest unit or two.
func brief(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		d = d.Round(100 * time.Millisecond)
	case d < time.Hour:
		d = d.Round(time.Second)
	case d < 48*time.Hour:
		d = d.Round(time.Minute)
	default:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	}
	return strings.NewReplacer("h0m0s", "h", "m0s", "m").Replace(d.String())
}

// moment shows a time as evidence does.
func moment(t time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	return t.UTC().Format(time.RFC3339)
}

// countOf shows a count with its noun.
func countOf(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
