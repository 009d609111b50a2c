package opscoretest

import (
	"bufio"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pidMark is followed by the process id of a worker, for the parent of a scenario.
const pidMark = "the worker is process "

func toBeKilled(t *testing.T, pause time.Duration) {
	env := Live(t, Options{Process: true})
	submit(t, env, block, struct{}{})
	if pause > 0 {
		env.PauseWorker(pause)
	}
	fmt.Printf("%s%d\n", pidMark, env.hand.info().PID)
	select {}
}

func TestNoWorkerOutlivesAKilledTest(t *testing.T) {
	names := []string{"killed"}
	if runtime.GOOS == "linux" { // elsewhere, nobody tells a stopped process
		names = append(names, "killed while the worker is paused")
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := player(t, name)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			pid := 0
			for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
				if n, ok := strings.CutPrefix(lines.Text(), pidMark); ok {
					if pid, err = strconv.Atoi(n); err != nil {
						t.Fatal(err)
					}
				}
			}
			if pid == 0 {
				t.Fatal("no worker was started")
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // killed
			for deadline := time.Now().Add(30 * time.Second); !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH); {
				if time.Now().After(deadline) {
					t.Fatalf("process %d still runs", pid)
				}
				<-time.After(10 * time.Millisecond)
			}
		})
	}
}
