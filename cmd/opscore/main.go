// Command opscore submits, runs and inspects durable background tasks.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/opscore/opscore"
)

func main() {
	settle()
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// The exit statuses. Scripts and supervisors rely on them.
const (
	exitOK          = 0
	exitFailed      = 1   // the operation failed: the task failed, was not found, the store is unavailable
	exitUsage       = 2   // wrong usage, input or configuration; nothing was stored
	exitStuck       = 70  // a worker gave up on a handler that ignored its cancelled context
	exitInterrupted = 130 // a signal ended the wait for something that goes on
)

// run is the whole command: it reports an error as one line and returns the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := a.rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if text := err.Error(); text != "" {
		text = redact(strings.ReplaceAll(text, "\n", "; ")) // of joined errors
		a.lastWords("opscore: %s", a.completed(text))
	}
	return exitStatus(err)
}

func exitStatus(err error) int {
	var usage usageError
	var interrupted interruptedError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &interrupted):
		return exitInterrupted
	}
	switch opscore.CodeOf(err) {
	case opscore.CodeInvalid, opscore.CodeTooLarge:
		return exitUsage
	case opscore.CodeHandlerStuck:
		return exitStuck
	}
	return exitFailed
}

// app is one invocation of the command.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	json           bool // --json

	given *given // nil before the configuration was read
}

// say writes one line for people. What it says may contain data, so it is escaped for the terminal.
func (a *app) say(format string, args ...any) {
	// A reader of stderr that is gone, or does not read, must not stop the work that it would have read about.
	out := newLineWriter(a.stderr, "text")
	defer out.close()
	_, _ = fmt.Fprintln(out, safe(fmt.Sprintf(format, args...)))
}

// lastWords says why we end. A pipe whose reader is gone must not keep the exit status from being seen.
func (a *app) lastWords(format string, args ...any) {
	signal.Ignore(syscall.SIGPIPE)
	a.say(format, args...)
}

// usageError is a mistake of the caller: wrong arguments, input or configuration.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

// interruptedError is the cause of a context that a signal ended.
type interruptedError struct{ text string }

func (e interruptedError) Error() string { return e.text }

var (
	userinfo    = regexp.MustCompile(`://[^\s"'@]*:[^\s"']*@`)
	secretParam = regexp.MustCompile(`(?i)[?&](?:\w*pass\w*|\w*secret\w*|\w*token\w*|\w*key)=[^&\s"']*`)
)

// redact removes the user and the password of a URL that has a password, and parameters that are secret: errors quote what they were given.
func redact(s string) string {
	return secretParam.ReplaceAllStringFunc(userinfo.ReplaceAllString(s, "://…@"), func(param string) string {
		name, _, _ := strings.Cut(param, "=")
		if slices.Contains(paths, name[1:]) {
			return param
		}
		return name + "=…"
	})
}
