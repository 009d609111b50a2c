package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// hold has another process listen at an address, and returns the port and the process's id.
func hold(t *testing.T, addr string) (port, pid int) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), "sleep", "600")
	child.ExtraFiles = []*os.File{f}
	if err := errors.Join(child.Start(), f.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port, child.Process.Pid
}

func TestAPortInUseNamesItsHolder(t *testing.T) {
	t.Parallel()
	for held, wanted := range map[string]string{
		"127.0.0.1:0": "127.0.0.1:%d",
		"0.0.0.0:0":   "127.0.0.1:%d",
		"[::1]:0":     "[::1]:%d",
		"[::]:0":      "localhost:%d",
		"127.0.0.2:0": "0.0.0.0:%d",
	} {
		port, pid := hold(t, held)
		l, err := listen(t.Context(), fmt.Sprintf(wanted, port))
		if err == nil {
			l.Close()
		}
		if want := fmt.Sprintf("the port is in use by process %d (sleep): ", pid); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s while %s is held: got %v, want %q", wanted, held, err, want)
		}
	}
}
