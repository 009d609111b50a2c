package opscore

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestKindsOfStreams(t *testing.T) {
	t.Parallel()
	open := func(f *os.File, err error) *os.File {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	closed := open(os.Create(filepath.Join(t.TempDir(), "closed")))
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	for want, files := range map[string][]*os.File{
		"file":   {open(os.Create(filepath.Join(t.TempDir(), "f")))},
		"pipe":   {r, w},
		"socket": {open(l.File())},
		"null":   {open(os.Open(os.DevNull))},
		"other":  {open(os.Open(t.TempDir()))},
		"closed": {closed, nil},
		"tty":    {open(os.OpenFile("/dev/ptmx", os.O_RDWR, 0))},
	} {
		for _, f := range files {
			if got := streamKind(f.Stat()); got != want {
				t.Errorf("%v is a %s, want %s", f, got, want)
			}
		}
	}
}

func TestACommandLineIsShownWithoutItsSecrets(t *testing.T) {
	t.Parallel()
	long := string(make([]byte, 300))
	for _, c := range []struct{ args, want []string }{
		{
			[]string{"/bin/worker", "--database", "postgres://app:canary@db.example.com/app", "amqp://u:canary@h"},
			[]string{"/bin/worker", "--database", "postgres://…@db.example.com/app", "amqp://…@h"},
		},
		{[]string{"w", "--password", "canary", "--slots", "3"}, []string{"w", "--password", "…", "--slots", "3"}},
		{[]string{"w", "-api-token", "canary"}, []string{"w", "-api-token", "…"}},
		{[]string{"w", "--secret=canary", "PASSWORD=canary"}, []string{"w", "--secret=…", "PASSWORD=…"}},
		{[]string{"w", "host=db password='canary with spaces' user=u"}, []string{"w", "host=db password=…"}},
		{[]string{"w", "amqp://bob:can@ary@h1/v", "postgres://u:p/canary@h"}, []string{"w", "amqp://…@h1/v", "postgres://…@h"}},
		{[]string{"w", `{"password":"canary"}`, "--password=can ary", "Authorization: Bearer canary"}, []string{"w", `{"password":…`, "--password=…", "Authorization: …"}},
		{[]string{"w", "--token", "-canary", "--slots", "3"}, []string{"w", "--token", "…", "--slots", "3"}},
		{[]string{"my-token-service", "run"}, []string{"my-token-service", "run"}},
		{[]string{"w", long}, []string{"w", long[:maxShownArg] + "…"}},
		{[]string{"w", "\xff"}, []string{"w", "\uFFFD"}},
	} {
		if got := shownArgs(c.args); !slices.Equal(got, c.want) {
			t.Errorf("%q is shown as %q, want %q", c.args, got, c.want)
		}
	}
	if got := shownArgs(make([]string, 1000)); len(got) != maxShownArgs+1 {
		t.Errorf("of 1000 arguments %d are shown", len(got))
	}
}

func TestOnlyControlGroupsAreAskedForKills(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "memory.events"), []byte("oom 3\noom_kill 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, elsewhere := range []string{dir, groups + "/.." + dir, groups + "x", ""} {
		if n, known := oomKills(elsewhere); known {
			t.Errorf("%s counts %d", elsewhere, n)
		}
	}
}
