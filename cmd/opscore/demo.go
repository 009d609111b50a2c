package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/opscore/opscore"
)

func (a *app) demoCommand() *cobra.Command {
	return a.group("demo", "See on this machine how opscore finds out what is wrong", `Demo plays a failure with real processes on this machine, in a directory of its own that it removes, and shows how it is
found and mended. It touches no database of yours and needs nothing but this program.`, a.staleWorkerCommand())
}

func (a *app) staleWorkerCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "stale-worker",
		Short: "A forgotten worker holds a task, and the new one is ready and idle",
		Long: `Stale-worker plays the story that opscore was made after: a worker that somebody started yesterday, and suspended with Ctrl-Z in a
terminal that nobody looks at, holds a task. Today's worker says that it is ready, and does nothing. The demo asks opscore explain, does what
it says, and shows the completed task. It takes a few seconds, and needs Linux, which tells opscore that a process is stopped. All that it executes is shown, as you would type it.`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.play(cmd.Context(), (*stage).staleWorker) },
	}
}

// stage is where a demo plays: a directory with a database, and a PATH in which this program is opscore.
type stage struct {
	*app
	dir     string
	env     []string
	workers []*exec.Cmd
	unsaid  error // the first failure to print
}

// play has a stage for the time of a demo.
func (a *app) play(ctx context.Context, demo func(*stage, context.Context) error) (err error) {
	ctx, _, release := interruptible(ctx, nil)
	defer release()
	dir, err := os.MkdirTemp("", "opscore-demo-")
	if err != nil {
		return fmt.Errorf("make the demo's directory: %w", err)
	}
	s := &stage{app: a, dir: dir}
	defer func() { err = errors.Join(err, s.clear()) }()
	if err := s.setUp(); err != nil {
		return err
	}
	err = demo(s, ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx) // what failed because of it does not matter
	}
	return errors.Join(err, s.unsaid)
}

// setUp makes this program opscore, and leaves out of the environment what would have it work on something else than the demo.
func (s *stage) setUp() error {
	program, err := exec.LookPath(os.Args[0])
	if err == nil {
		program, err = filepath.Abs(program)
	}
	if err == nil {
		err = os.Symlink(program, filepath.Join(s.dir, "opscore"))
	}
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if !strings.HasPrefix(name, "OPSCORE_") && !slices.Contains([]string{"DATABASE_URL", "RABBITMQ_URL", "PATH"}, name) {
			s.env = append(s.env, v)
		}
	}
	s.env = append(s.env, "PATH="+s.dir+string(os.PathListSeparator)+os.Getenv("PATH"), "OPSCORE_DATABASE_URL="+filepath.Join(s.dir, "opscore.db"))
	return nil
}

// clear ends the workers, also one that is stopped, and removes the directory.
func (s *stage) clear() error {
	for _, w := range s.workers {
		_ = w.Process.Kill()
		_ = w.Wait()
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove the demo's directory: %w", err)
	}
	return nil
}

func (s *stage) staleWorker(ctx context.Context) error {
	s.tell("Yesterday somebody started a worker in a terminal:")
	stale, err := s.hire(ctx, "yesterday")
	if err != nil {
		return err
	}
	s.tell("Today a task comes, and that worker takes it:")
	id, err := s.submit(ctx)
	if err != nil {
		return err
	}
	s.tell("Then Ctrl-Z hits that terminal. The process is still there, it has the task, and does nothing any more:")
	if _, err := s.run(ctx, fmt.Sprintf("kill -STOP %d", stale)); err != nil {
		return err
	}
	s.tell("Somebody starts a new worker. It is ready, and idle:")
	if _, err := s.hire(ctx, "today"); err != nil {
		return err
	}
	s.tell("The task does not move:")
	if _, err := s.run(ctx, "opscore task list"); err != nil {
		return err
	}
	s.tell("Why?")
	if _, err := s.run(ctx, "opscore explain "+id); err != nil {
		return err
	}
	remedy, err := s.remedy(ctx, id)
	if err != nil {
		return err
	}
	s.tell("Done as it says:")
	if _, err := s.run(ctx, remedy); err != nil {
		return err
	}
	if _, err := s.run(ctx, "opscore task wait "+id); err != nil {
		return err
	}
	s.tell("The task is completed. If nobody had asked, the new worker would have got it when the lease of the old one had run out: that takes %s.",
		opscore.LeaseFor)
	return nil
}

// hire starts a worker and returns its process id when it is ready.
func (s *stage) hire(ctx context.Context, name string) (pid int, err error) {
	log, err := os.Create(filepath.Join(s.dir, name+".log"))
	if err != nil {
		return 0, fmt.Errorf("make the worker's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	s.line("$ opscore dev &")
	w := s.command(context.WithoutCancel(ctx), "exec opscore dev --ready-file "+name)
	w.Stderr = log
	w.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C at the demo is not for it: clear ends it
	if err := w.Start(); err != nil {
		return 0, fmt.Errorf("start a worker: %w", err)
	}
	s.workers = append(s.workers, w)
	err = until(ctx, "the worker is ready", func() (bool, error) {
		_, err := os.Stat(filepath.Join(s.dir, name))
		return err == nil, nil
	})
	if err != nil {
		said, _ := os.ReadFile(log.Name())
		return 0, fmt.Errorf("%w; it said: %s", err, said)
	}
	s.line("worker ready, process %d", w.Process.Pid)
	return w.Process.Pid, nil
}

// submit stores a task and returns its id when it is running.
func (s *stage) submit(ctx context.Context) (id string, err error) {
	out, err := s.run(ctx, `opscore submit sleep '{"seconds":1}'`)
	if err != nil {
		return "", err
	}
	id = strings.TrimSpace(out)
	return id, until(ctx, "the task is running", func() (bool, error) {
		var t opscore.Task
		err := s.ask(ctx, &t, "opscore task show --json "+id)
		return t.State == opscore.Running, err
	})
}

// remedy returns the first command that explain names.
func (s *stage) remedy(ctx context.Context, id string) (string, error) {
	var why struct {
		Causes []opscore.Cause `json:"causes"`
	}
	if err := s.ask(ctx, &why, "opscore explain --json "+id); err != nil {
		return "", err
	}
	for _, c := range why.Causes {
		for _, r := range c.Remedy {
			if r.Command != "" {
				return r.Command, nil
			}
		}
	}
	return "", errors.New("opscore explain names no command here")
}

// run shows a command, executes it, shows what it says, and returns what it printed.
func (s *stage) run(ctx context.Context, line string) (printed string, err error) {
	s.line("$ %s", line)
	var out bytes.Buffer
	c := s.command(ctx, line)
	c.Stdout, c.Stderr = io.MultiWriter(&out, s.stdout), s.stdout
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s: %w", line, err)
	}
	return out.String(), nil
}

// ask executes a command that prints JSON, without showing it.
func (s *stage) ask(ctx context.Context, answer any, line string) error {
	out, err := s.command(ctx, line).Output()
	if err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	return json.Unmarshal(out, answer)
}

func (s *stage) command(ctx context.Context, line string) *exec.Cmd {
	c := exec.CommandContext(ctx, "sh", "-c", line)
	c.Dir, c.Env = s.dir, s.env
	return c
}

func (s *stage) tell(format string, args ...any) { s.line("\n"+format, args...) }

func (s *stage) line(format string, args ...any) {
	s.unsaid = errors.Join(s.unsaid, s.print(fmt.Sprintf(format, args...)+"\n"))
}

// until waits for what takes a moment.
func until(ctx context.Context, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("waited in vain until "+what))
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
