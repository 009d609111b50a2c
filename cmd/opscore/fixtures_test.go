package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// example is a program of examples/fixtures, and what it prints if all is well.
type example struct {
	argv   []string
	passed string
}

// examples are those for each kind of test runner.
func examples(t *testing.T) map[string]example {
	t.Helper()
	dir, err := filepath.Abs("../../examples/fixtures")
	if err != nil {
		t.Fatal(err)
	}
	return map[string]example{
		"sh": {[]string{filepath.Join(dir, "fixture.sh")}, "ok: concurrent submissions get their own results: eve\n"},
		"pytest": {
			[]string{pythonWithPytest(t), "-m", "pytest", "-p", "no:cacheprovider", filepath.Join(dir, "test_thumbnails.py")},
			" 3 passed in ",
		},
	}
}

// pythonWithPytest tries more than what is in PATH: that may be a version manager's, without pytest.
func pythonWithPytest(t *testing.T) string {
	t.Helper()
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		if exec.CommandContext(t.Context(), python, "-c", "import pytest").Run() == nil {
			return python
		}
	}
	t.Fatal("find pytest: neither /usr/bin/python3 nor the python3 in PATH can import it; install it with: sudo internal/nodes/install.sh")
	return ""
}

// run runs the example with that binary, and fails the test if it leaves anything behind.
func (e example) run(t *testing.T, opscore string) (output string, err error) {
	t.Helper()
	home, tmp := t.TempDir(), t.TempDir()
	cmd := exec.CommandContext(t.Context(), e.argv[0], e.argv[1:]...)
	cmd.Dir = home
	cmd.Env = append(os.Environ(), "OPSCORE="+opscore, "HOME="+home, "TMPDIR="+tmp, "GORACE=atexit_sleep_ms=0",
		"PYTHONDONTWRITEBYTECODE=1", "PYTEST_ADDOPTS=", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", "PYTEST_DEBUG_TEMPROOT="+home)
	out, err := cmd.CombinedOutput() // ends when the worker has ended too: it holds stderr
	isEmpty(t, tmp)
	return string(out), err
}

func TestTheFixturesForOtherTestRunnersWork(t *testing.T) {
	t.Parallel()
	for name, e := range examples(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if out, err := e.run(t, "opscore"); err != nil || !strings.Contains(out, e.passed) {
				t.Errorf("got %v, want %q in the output:\n%s", err, e.passed, out)
			}
		})
	}
}

func TestTheFixturesForOtherTestRunnersFailWhenTheyShould(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]struct{ opscore, want string }{
		"a worker that cannot start": {`echo "no luck today" >&2; exit 3`, "no luck today"},
		"wrong results": {
			`case $1 in dev) exec opscore "$@" ;; *) echo '{"id": "1", "state": "completed", "result": "a dog", "error": ""}' ;; esac`,
			"a dog",
		},
	} {
		fake := filepath.Join(t.TempDir(), "opscore")
		if err := os.WriteFile(fake, []byte("#!/bin/sh\n"+test.opscore+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		for name, e := range examples(t) {
			t.Run(name+"/"+what, func(t *testing.T) {
				t.Parallel()
				out, err := e.run(t, fake)
				if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(out, test.want) {
					t.Errorf("got %v, want exit status 1 and %q in the output:\n%s", err, test.want, out)
				}
			})
		}
	}
}
