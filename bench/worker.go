package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// worker starts the real binary, on a database that exists already, with one command actor.
func worker(ctx context.Context, dir string) ([]result, error) {
	const starts = 11
	binary := filepath.Join(dir, "opscore")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/opscore")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w\n%s", err, out)
	}
	config := "database: " + filepath.Join(dir, "opscore.db") + "\nactors:\n  cat:\n    command: [cat]\n"
	if err := os.WriteFile(filepath.Join(dir, "opscore.yaml"), []byte(config), 0o600); err != nil {
		return nil, err
	}
	var took, rss []float64
	for i := range starts {
		t, r, err := startWorker(ctx, binary, dir)
		if err != nil {
			return nil, err
		}
		if i > 0 { // the first one makes the database
			took, rss = append(took, t), append(rss, r)
		}
	}
	return []result{
		{"start of the process to ready", "ms", median(took)},
		{"memory of an idle worker (VmRSS)", "MB", median(rss)},
	}, nil
}

// startWorker returns how many milliseconds passed until the ready file was there, and the resident megabytes a second later.
func startWorker(ctx context.Context, binary, dir string) (ready, rss float64, err error) {
	file := filepath.Join(dir, "ready")
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, 0, err
	}
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, binary, "worker", "--ready-file", file)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &output, &output
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	for {
		if _, err := os.Stat(file); err == nil {
			break
		}
		select {
		case err := <-exited:
			return 0, 0, fmt.Errorf("the worker ended: %w\n%s", err, &output)
		case <-time.After(time.Millisecond / 2):
		}
		if time.Since(began) > 30*time.Second {
			return 0, 0, errors.Join(fmt.Errorf("not ready after 30 s"), cmd.Process.Kill())
		}
	}
	ready = time.Since(began).Seconds() * 1000
	time.Sleep(time.Second)
	rss, err = vmRSS(cmd.Process.Pid)
	if err := errors.Join(err, cmd.Process.Signal(os.Interrupt)); err != nil {
		return 0, 0, err
	}
	if err := <-exited; err != nil {
		return 0, 0, fmt.Errorf("stop: %w\n%s", err, &output)
	}
	return ready, rss, nil
}

// vmRSS returns a process's resident memory in megabytes (10^6 bytes).
func vmRSS(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte("VmRSS:")); ok {
			kb, err := strconv.ParseFloat(string(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(rest), []byte("kB")))), 64)
			return kb * 1024 / 1e6, err
		}
	}
	return 0, errors.New("no VmRSS in /proc/PID/status")
}
