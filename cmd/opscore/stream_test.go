package main

import (
	"net"
	"os"
	"path/filepath"
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
		"other":  {open(os.Open("/dev/zero")), open(os.Open(t.TempDir()))},
		"closed": {closed, nil},
		"tty":    {open(os.OpenFile("/dev/ptmx", os.O_RDWR, 0))},
	} {
		for _, f := range files {
			if got := streamKind(f); got != want {
				t.Errorf("%v is a %s, want %s", f, got, want)
			}
		}
	}
}

func TestAPipeIsFullWhenAWriteWouldWait(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if pipeFull(w) {
		t.Error("an empty pipe is full")
	}
	room := 0
	for block := make([]byte, 4096); !pipeFull(w); room++ {
		if _, err := w.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	if room == 0 {
		t.Error("a pipe without room for anything")
	}
	if _, err := r.Read(make([]byte, 4096)); err != nil || pipeFull(w) {
		t.Errorf("a pipe that was read from is full, %v", err)
	}
	if err := r.Close(); err != nil || pipeFull(w) {
		t.Errorf("a pipe whose reader is gone is full, %v", err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil || pipeFull(file) || pipeFull(nil) {
		t.Errorf("what is no pipe is full, %v", err)
	}
}
