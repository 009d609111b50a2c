//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
)

// canary is the password in every URL: it must be in no output.
const canary = "Canary7Password"

// scene is a deployment of real processes, and the task that is asked about.
type scene struct {
	*testing.T
	bin, dir string
	database string // as --database takes it
	env      []string
	store    store
	client   *opscore.Client
	target   opscore.ID

	server *nodes.Postgres // of the scene's own; nil if it is shared
	broker *broker         // the scene's part of one; nil without
	watch  *pgx.Conn       // to look at the database

	mu      sync.Mutex
	outputs []string // files with what was written
	gate    *os.File // open for writing: whoever waits at it goes on
}

// The actors. A task of wait goes on when the gate is opened; hello is done at once.
const sceneConfig = `actors:
  hello: {command: [cat]}
  wait: {command: [sh, -c, ': <DIR/gate']}
  fail: {command: [sh, -c, 'echo the printer is on fire >&2; exit 1'], retry: {base: 1h}}
`

func newScene(t *testing.T, bin string) *scene {
	t.Helper()
	s := &scene{T: t, bin: bin, dir: t.TempDir()}
	s.write("opscore.yaml", strings.ReplaceAll(sceneConfig, "DIR", s.dir))
	s.must(syscall.Mkfifo(s.path("gate"), 0o600))
	s.must(os.Mkdir(s.path("bin"), 0o700))
	s.must(os.Symlink(filepath.Join(bin, "opscore"), s.path("bin", "opscore")))
	t.Cleanup(func() {
		s.openGate()
		(&launch{T: t, dir: s.dir}).killAll()
	})
	return s
}

func (s *scene) path(names ...string) string {
	return filepath.Join(append([]string{s.dir}, names...)...)
}

func (s *scene) write(name, text string) {
	s.Helper()
	s.must(os.WriteFile(s.path(name), []byte(text), 0o600))
}

func (s *scene) read(name string) string {
	text, err := os.ReadFile(s.path(name))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// create opens a file for what is written by a process, in which no password may be.
func (s *scene) create(name string) *os.File {
	s.Helper()
	f, err := os.OpenFile(s.path(name), os.O_APPEND|os.O_CREATE|os.O_RDWR, 0o600)
	s.must(err)
	s.Cleanup(func() { _ = f.Close() })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outputs = append(s.outputs, name)
	return f
}

// leaks counts the passwords in all that was written.
func (s *scene) leaks() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.Sort(s.outputs)
	for _, name := range slices.Compact(s.outputs) {
		n += strings.Count(s.read(name), canary)
	}
	return n
}

// environ is what all processes of the scene see.
func (s *scene) environ() []string {
	return append([]string{
		"PATH=" + s.path("bin") + ":" + os.Getenv("PATH"), "HOME=" + s.dir, "XDG_STATE_HOME=" + s.path("state"), "TZ=UTC", "PGCONNECT_TIMEOUT=10",
	}, s.env...)
}

// set gives all processes that start from now on a variable.
func (s *scene) set(name, value string) {
	s.env = slices.DeleteFunc(s.env, func(v string) bool { return strings.HasPrefix(v, name+"=") })
	s.env = append(s.env, name+"="+value)
}

// embedded keeps the tasks in a file.
func onEmbedded(_ *testing.T, s *scene) { s.keepIn(s.path("tasks.db")) }

// onPostgres keeps them in a database of a server that all tests share.
func onPostgres(t *testing.T, s *scene) {
	s.keepIn(guarded(nodes.Database(t, "opscore", migrated(t))))
}

// onOwnPostgres has a server of its own.
func onOwnPostgres(_ *testing.T, s *scene) {
	s.ownDatabase()
}

func (s *scene) ownDatabase(config ...string) {
	s.Helper()
	s.server = nodes.Own(s.T, config...)
	at := s.server.URL("postgres")
	s.must(migrated(s.T)(at))
	s.keepIn(guarded(at))
}

// onCluster adds a virtual host of a broker that the plays share.
func onCluster(t *testing.T, s *scene) {
	onPostgres(t, s)
	s.join(nodes.ManagedBroker(t))
	t.Cleanup(s.broker.leave)
}

// onOwnCluster has a broker of its own.
func onOwnCluster(t *testing.T, s *scene) {
	onPostgres(t, s)
	s.join(nodes.OwnManagedRabbitMQ(t))
}

func migrated(t *testing.T) func(string) error {
	return func(url string) error { return postgres.Migrate(t.Context(), url, postgres.Options{}) }
}

// guarded puts the password into a URL. The servers of our tests let in whoever comes.
func guarded(at string) string {
	u, err := url.Parse(at)
	if err != nil {
		panic(err) // we have made it
	}
	u.User = url.UserPassword(u.User.Username(), canary)
	return u.String()
}

func (s *scene) keepIn(database string) {
	s.Helper()
	s.database = database
	s.set("OPSCORE_DATABASE_URL", database)
	s.store = openDatabase(s.T, database)
	s.client = &opscore.Client{Store: s.store}
}

// hand is a worker of the scene.
type hand struct {
	*scene
	cmd   *exec.Cmd
	info  opscore.WorkerInfo
	ended chan struct{}
}

func (h *hand) pid() string { return fmt.Sprint(h.cmd.Process.Pid) }

// worker starts one and returns when it is ready.
func (s *scene) worker(args ...string) *hand {
	s.Helper()
	return s.program([]string{s.path("bin", "opscore"), "worker"}, nil, args...)
}

// program starts a worker of that program, and changes how before it does.
func (s *scene) program(argv []string, change func(*exec.Cmd), args ...string) *hand {
	s.Helper()
	h := s.begin(argv, change, args...)
	h.awaitReady()
	return h
}

func (s *scene) begin(argv []string, change func(*exec.Cmd), args ...string) *hand {
	s.Helper()
	name := fmt.Sprintf("worker%d", len(s.outputs))
	argv = slices.Concat(argv, []string{"--ready-file", s.path(name + ".ready")}, args)
	h := &hand{scene: s, ended: make(chan struct{}), cmd: exec.Command(argv[0], argv[1:]...)} //nolint:noctx // the scene's end ends it
	h.cmd.Dir, h.cmd.Env = s.dir, s.environ()
	log := s.create(name)
	h.cmd.Stdout, h.cmd.Stderr = log, log
	if change != nil {
		change(h.cmd)
	}
	s.must(h.cmd.Start())
	s.Cleanup(func() { _ = h.cmd.Process.Kill() }) // it may have ended
	go func() {
		_ = h.cmd.Wait() // many are killed
		close(h.ended)
	}()
	return h
}

func (h *hand) awaitReady() {
	h.Helper()
	ready := h.cmd.Args[slices.Index(h.cmd.Args, "--ready-file")+1]
	h.until("a worker to be ready", func() bool {
		if closed(h.ended) {
			h.Fatalf("a worker ended before it was ready:\n%s", h.log())
		}
		doc, err := os.ReadFile(ready)
		return err == nil && json.Unmarshal(doc, &h.info) == nil
	})
}

func (h *hand) log() string {
	ready := h.cmd.Args[slices.Index(h.cmd.Args, "--ready-file")+1]
	text, err := os.ReadFile(strings.TrimSuffix(ready, ".ready"))
	return fmt.Sprint(string(text), errors.Join(err))
}

func (h *hand) signal(sig syscall.Signal) {
	h.Helper()
	h.must(h.cmd.Process.Signal(sig))
}

// stop ends a worker as an operator does.
func (h *hand) stop() {
	h.Helper()
	h.signal(syscall.SIGTERM)
	h.until("a worker to end", func() bool { return closed(h.ended) })
}

// kill ends it at once.
func (h *hand) kill() {
	h.Helper()
	h.signal(syscall.SIGKILL)
	h.until("a worker to end", func() bool { return closed(h.ended) })
}

// until waits for an event that can be seen.
func (s *scene) until(what string, seen func() bool) {
	s.Helper()
	eventuallyTrue(s.T, what, seen)
}

// within looks again and again, for so long at most, until done says yes.
func within(patience time.Duration, what string, done func() bool) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !done(); <-tick.C {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited in vain for %s", what)
		}
	}
	return nil
}

// backdrop is how many tasks there are besides the target.
const backdrop = 20

// submit submits the target, a task of hello, among others like it.
func (s *scene) submit(options ...opscore.Option) {
	s.Helper()
	s.submitActor("hello", options...)
}

func (s *scene) submitActor(actor string, options ...opscore.Option) {
	s.Helper()
	requests := make([]opscore.Request, backdrop+1)
	for i := range requests {
		requests[i] = opscore.NewRequest("hello", json.RawMessage(fmt.Sprint(i)), options...)
	}
	requests[backdrop/2].Actor = actor
	s.target = s.submitAll(requests...)[backdrop/2]
}

func (s *scene) submitAll(requests ...opscore.Request) []opscore.ID {
	s.Helper()
	subs, err := s.client.Submit(s.Context(), requests...)
	s.must(err)
	ids := make([]opscore.ID, len(subs))
	for i, sub := range subs {
		ids[i] = sub.ID
	}
	return ids
}

// occupy has tasks wait at the gate until they fill the slots of the workers, n in all.
func (s *scene) occupy(n int, options ...opscore.Option) []opscore.ID {
	s.Helper()
	requests := make([]opscore.Request, n)
	for i := range requests {
		requests[i] = opscore.NewRequest("wait", nil, append([]opscore.Option{opscore.Timeout(time.Hour)}, options...)...)
	}
	ids := s.submitAll(requests...)
	s.until("all slots to be taken", func() bool {
		return !slices.ContainsFunc(s.tasks(ids...), func(t opscore.Task) bool { return t.State != opscore.Running })
	})
	return ids
}

// openGate lets go on what waits at it, and what comes to it later. Opened for reading too, it does not wait for those that wait.
func (s *scene) openGate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gate != nil {
		return
	}
	f, err := os.OpenFile(s.path("gate"), os.O_RDWR, 0)
	if err != nil {
		s.Error(err)
		return
	}
	s.gate = f
	s.Cleanup(func() { _ = f.Close() })
}

// tasks reads them as they are now.
func (s *scene) tasks(ids ...opscore.ID) []opscore.Task {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), 5*time.Second)
	defer cancel()
	tasks, err := s.store.Get(ctx, ids)
	if err != nil {
		s.Logf("read tasks: %v", err)
	}
	return tasks
}

// await waits until the target is as it should be, and returns it.
func (s *scene) await(what string, seen func(opscore.Task) bool) (t opscore.Task) {
	s.Helper()
	s.until(what, func() bool {
		tasks := s.tasks(s.target)
		if len(tasks) == 0 {
			return false
		}
		t = tasks[0]
		return seen(t)
	})
	return t
}

func (s *scene) isOver() bool {
	tasks := s.tasks(s.target)
	return len(tasks) == 1 && tasks[0].State.Terminal()
}

// ended waits for the end of the target.
func (s *scene) ended() error {
	if err := within(time.Minute, "the end of the target", s.isOver); err != nil {
		tasks := s.tasks(s.target)
		return fmt.Errorf("%w: %+v", err, tasks)
	}
	return nil
}

// opscore runs a command to its end.
func (s *scene) opscore(args ...string) reply {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.path("bin", "opscore"), args...)
	cmd.Dir, cmd.Env = s.dir, s.environ()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	a := reply{took: time.Since(began), raw: stdout.String(), errors: stderr.String()}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		a.status = exit.ExitCode()
	} else {
		s.must(err)
	}
	log := s.create("said")
	_, err = fmt.Fprintf(log, "%s\n%s%s\n", cmd, a.raw, a.errors)
	s.must(errors.Join(err, log.Close()))
	return a
}

// ask runs a command that tells causes, once, for a program and for people: the latter's words are only looked at for passwords.
func (s *scene) ask(args ...string) reply {
	s.Helper()
	a := s.opscore(append(args, "--json")...)
	if err := json.Unmarshal([]byte(a.raw), &a); err != nil {
		if err := json.Unmarshal([]byte(a.raw), &a.Causes); err != nil {
			s.Logf("opscore %s: %v: %s%s", strings.Join(args, " "), err, a.raw, a.errors)
		}
	}
	s.opscore(args...)
	return a
}

// connect opens a connection of somebody else to the database, under a name that the server lists.
func (s *scene) connect(app string) *pgx.Conn {
	s.Helper()
	conn, err := s.dial(app, "")
	s.must(err)
	return conn
}

// dial is connect that may fail, as another role if it is named.
func (s *scene) dial(app, role string) (*pgx.Conn, error) {
	s.Helper()
	config, err := pgx.ParseConfig(s.database)
	s.must(err)
	config.RuntimeParams["application_name"] = app
	if role != "" {
		config.User = role
	}
	conn, err := pgx.ConnectConfig(s.Context(), config)
	if err == nil {
		s.Cleanup(func() { _ = conn.Close(noContext()) }) // its backend may have been ended
	}
	return conn, err
}

// watcher is a connection that looks on.
func (s *scene) watcher() *pgx.Conn {
	s.Helper()
	if s.watch == nil {
		s.watch = s.connect("watcher")
	}
	return s.watch
}

// noContext is that of an end, at which the test's is over.
func noContext() context.Context { return context.Background() }
