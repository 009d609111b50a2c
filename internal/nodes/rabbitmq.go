package nodes

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// brokerPatience is how long a broker may take to start: on a busy machine that is many times as long as on an idle one, and
// the nodes of a cluster wait for each other.
const brokerPatience = 2 * patience

// RabbitMQ is a RabbitMQ node of our own, without plugins. Only who knows its random password can use it, and it has an Erlang
// cookie and a name server (epmd) of its own. No process and no directory of it outlives ours, even if ours is killed. Its
// methods may be used concurrently.
type RabbitMQ struct {
	with     erlang
	dir      *directory
	names    *epmd
	own      bool // the name server is of this node alone
	name     string
	password string
	port     int // for AMQP
	peers    int // for Erlang's distribution

	management int // for the management API; 0 without

	mu     sync.Mutex
	server *process // the latest
	paused bool
}

// brokerUser is the user that a node without data creates, with all rights to all virtual hosts.
const brokerUser = "opscore"

// brokerSettings are those that differ from RabbitMQ's defaults.
const brokerSettings = `
listeners.tcp.1 = 127.0.0.1:%d
default_user = %s
default_pass = %s
log.console = false
%s
`

// StartRabbitMQ creates a node, with more lines for its rabbitmq.conf if any are given, and returns when it accepts
// connections. ctx is for the start only: the node runs until Close.
func StartRabbitMQ(ctx context.Context, more ...string) (*RabbitMQ, error) {
	with, err := findRabbitMQ(packagedScripts)
	if err != nil {
		return nil, err
	}
	names, err := startEpmd(ctx, with)
	if err != nil {
		return nil, fmt.Errorf("start RabbitMQ: %w", err)
	}
	r, err := newRabbitMQ(ctx, with, names)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start RabbitMQ: %w", err), names.close())
	}
	r.own = true
	if err := r.create(ctx, rand.Text(), more); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// newRabbitMQ makes a node's directory. The node runs as our user, whoever that is: RabbitMQ does not mind root.
func newRabbitMQ(ctx context.Context, with erlang, names *epmd) (*RabbitMQ, error) {
	dir, err := newDirectory(ctx, "rabbitmq", "")
	if err != nil {
		return nil, err
	}
	name := "opscore" + strings.ToLower(rand.Text()) + "@localhost"
	return &RabbitMQ{with: with, dir: dir, names: names, name: name, password: rand.Text()}, nil
}

// create starts the node on ports that are still free when the node asks for them.
func (r *RabbitMQ) create(ctx context.Context, cookie string, more []string) error {
	if err := os.WriteFile(filepath.Join(r.dir.path, ".erlang.cookie"), []byte(cookie), 0o600); err != nil {
		return err
	}
	for range 5 {
		if err := r.configure(ctx, more); err != nil {
			return err
		}
		err := r.Start(ctx)
		if err == nil || ctx.Err() != nil || isFree(ctx, r.port) == nil && isFree(ctx, r.peers) == nil {
			return err
		}
	}
	return errors.New("start RabbitMQ: find free ports")
}

// configure chooses the ports and writes the configuration.
func (r *RabbitMQ) configure(ctx context.Context, more []string) (err error) {
	if r.port, err = freePort(ctx); err != nil {
		return err
	}
	if r.peers, err = freePort(ctx); err != nil {
		return err
	}
	plugins := "[]"
	if managed(more) {
		if r.management, err = freePort(ctx); err != nil {
			return err
		}
		more = append(slices.Clone(more), fmt.Sprintf("management.tcp.port = %d", r.management))
		plugins = "[rabbitmq_management]"
	}
	r.dir.env = r.environment()
	text := fmt.Sprintf(brokerSettings, r.port, brokerUser, r.password, strings.Join(more, "\n"))
	for name, text := range map[string]string{"rabbitmq.conf": text, "advanced.config": "[].\n", "enabled_plugins": plugins + ".\n"} {
		if err := os.WriteFile(filepath.Join(r.dir.path, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return r.with.link(filepath.Join(r.dir.path, "plugins"), managed(more))
}

// environment tells RabbitMQ's and Erlang's programs to use nothing of the system's, to listen on nothing but loopback, and to
// start no name server, which would outlive us.
func (r *RabbitMQ) environment() []string {
	in := func(name string) string { return filepath.Join(r.dir.path, name) }
	return []string{
		"ERL_AFLAGS=-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
		"ERL_EPMD_PORT=" + strconv.Itoa(r.names.port),
		"ERL_CRASH_DUMP_SECONDS=0", // no dump
		"RABBITMQ_NODENAME=" + r.name,
		"RABBITMQ_DIST_PORT=" + strconv.Itoa(r.peers),
		"RABBITMQ_CTL_DIST_PORT_MIN=0", // any port: by default there are eleven for the whole machine
		"RABBITMQ_CTL_DIST_PORT_MAX=0",
		"RABBITMQ_CONF_ENV_FILE=/dev/null",
		"RABBITMQ_CONFIG_FILE=" + in("rabbitmq.conf"),
		"RABBITMQ_CONFIG_FILES=" + in("conf.d"), // there is none
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + in("advanced.config"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + in("enabled_plugins"),
		"RABBITMQ_PLUGINS_DIR=" + in("plugins"),
		"RABBITMQ_MNESIA_BASE=" + r.data(),
		"RABBITMQ_LOG_BASE=" + r.dir.path,
		"RABBITMQ_LOGS=" + in("log"),
		"RABBITMQ_SCHEDULER_BIND_TYPE=u", // or every node would be bound to the same cores
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+S 2:2",
		"RUNNING_UNDER_SYSTEMD=true", // the script becomes the server instead of waiting for it: a signal reaches that
	}
}

func (r *RabbitMQ) data() string {
	return filepath.Join(r.dir.path, "data")
}

// Port returns the node's port for AMQP; it stays the same.
func (r *RabbitMQ) Port() int {
	return r.port
}

// Addr returns the node's host and port for AMQP.
func (r *RabbitMQ) Addr() string {
	return loopback(r.port)
}

// Name returns the node's name among Erlang nodes.
func (r *RabbitMQ) Name() string {
	return r.name
}

// URL returns where a virtual host of the node is, for an administrator; the virtual host "/" always exists.
func (r *RabbitMQ) URL(vhost string) string {
	return "amqp://" + brokerUser + ":" + r.password + "@" + r.Addr() + "/" + url.PathEscape(vhost)
}

// Log returns the end of the node's log.
func (r *RabbitMQ) Log() string {
	return r.dir.log()
}

// Start starts the node again, with its data and on its ports, and returns when it accepts connections.
func (r *RabbitMQ) Start(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server.runs() {
		return errors.New("start RabbitMQ: it runs")
	}
	server, err := r.dir.start(ctx, "KILL", filepath.Join(r.with.rabbitmq, "rabbitmq-server"))
	if err != nil {
		return fmt.Errorf("start RabbitMQ: %w", err)
	}
	r.server, r.paused = server, false
	if err := r.dir.ready(ctx, server, brokerPatience, r.accepts); err != nil {
		return fmt.Errorf("start RabbitMQ: %w", err)
	}
	// It has begun to accept connections before its start was complete; and whoever accepted one is not it if its port was taken.
	ctx, cancel := context.WithTimeout(ctx, brokerPatience)
	defer cancel()
	if _, err := r.Eval(ctx, fmt.Sprintf("rabbit:await_startup(node(), false, %d)", brokerPatience.Milliseconds())); err != nil {
		return errors.Join(fmt.Errorf("start RabbitMQ: %w\n%s", err, r.Log()), server.end())
	}
	return nil
}

// accepts reports whether something answers at the node's address as an AMQP server does.
func (r *RabbitMQ) accepts() bool {
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", r.Addr())
	if err != nil {
		return false
	}
	defer conn.Close()
	return greets(conn, time.Now().Add(time.Second)) == nil
}

// greets returns nil if whoever is at the other end of the connection answers to AMQP's header with a method.
func greets(conn net.Conn, deadline time.Time) error {
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("AMQP\x00\x00\x09\x01")); err != nil {
		return err
	}
	var frame [1]byte
	if _, err := conn.Read(frame[:]); err != nil {
		return err
	}
	if frame[0] != 1 {
		return fmt.Errorf("a frame of type %d", frame[0])
	}
	return nil
}

// Stop stops the node as an administrator does: it ends its connections and writes its data back.
func (r *RabbitMQ) Stop() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.wake(); err != nil {
		return err
	}
	if err := r.server.signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop RabbitMQ: %w", err)
	}
	if err := r.server.await(); err != nil {
		return fmt.Errorf("stop RabbitMQ: %w\n%s", err, r.Log())
	}
	return nil
}

// Kill kills the node at once, as a crash of its machine would, save that what it has written stays.
func (r *RabbitMQ) Kill() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kill()
}

func (r *RabbitMQ) kill() error {
	// Its helpers end when they lose it.
	if err := r.server.signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill RabbitMQ: %w", err)
	}
	r.paused = false
	return r.server.await()
}

// Pause stops the node in its tracks: connections stay open, the kernel accepts new ones, and nothing answers until Continue,
// Stop or Close.
func (r *RabbitMQ) Pause() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.server.signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("pause RabbitMQ: %w", err)
	}
	r.paused = true
	return nil
}

// Continue ends a Pause.
func (r *RabbitMQ) Continue() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wake()
}

func (r *RabbitMQ) wake() error {
	if !r.paused {
		return nil
	}
	r.paused = false
	if err := r.server.signal(syscall.SIGCONT); err != nil {
		return fmt.Errorf("continue RabbitMQ: %w", err)
	}
	return nil
}

// Wipe kills the node, if it runs, and starts it without anything that it knew, as if its disk had been lost: it has its user
// and the virtual host "/" and nothing else. The other nodes of a cluster do not forget it by that.
func (r *RabbitMQ) Wipe(ctx context.Context) error {
	r.mu.Lock()
	if r.server.runs() {
		if err := r.kill(); err != nil {
			r.mu.Unlock()
			return err
		}
	}
	err := os.RemoveAll(r.data())
	r.mu.Unlock()
	if err != nil {
		return err
	}
	return r.Start(ctx)
}

// Ctl runs rabbitmqctl on the node and returns what it prints. It takes half a second; see Eval.
func (r *RabbitMQ) Ctl(ctx context.Context, args ...string) (string, error) {
	return r.dir.output(ctx, r.dir.as, "", append([]string{filepath.Join(r.with.rabbitmq, "rabbitmqctl")}, args...)...)
}

// evaluation prints what an expression returns or throws, for erl_call itself does not print every term.
const evaluation = `try %s of V -> io:format("returned ~0p", [V]) catch C:E -> io:format("~0p", [{C, E}]) end.
`

// Eval evaluates Erlang expressions on the node and returns the value of the last. It is many times faster than Ctl.
func (r *RabbitMQ) Eval(ctx context.Context, expressions string) (string, error) {
	caller := "caller" + rand.Text() // two of one name could not be connected at once
	out, err := r.dir.output(ctx, r.dir.as, fmt.Sprintf(evaluation, expressions),
		filepath.Join(r.with.erts, "erl_call"), "-h", caller, "-sname", r.name, "-fetch_stdout", "-e")
	if err != nil {
		return "", err
	}
	value, returned := strings.CutPrefix(strings.TrimSuffix(out, "{ok, ok}"), "returned ")
	if !returned {
		return "", fmt.Errorf("evaluate %s: %s", expressions, out)
	}
	return value, nil
}

// Close kills the node, if it runs, and removes its directory. A second Close does nothing.
func (r *RabbitMQ) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	if r.server != nil {
		err = r.server.end()
	}
	err = errors.Join(err, r.dir.close())
	if r.own {
		err = errors.Join(err, r.names.close())
	}
	return err
}

// OwnRabbitMQ returns a node of the test's own, which it may stop, kill, pause and wipe. If the test fails, the end of the
// node's log is shown.
func OwnRabbitMQ(t testing.TB, more ...string) *RabbitMQ {
	t.Helper()
	r, err := StartRabbitMQ(t.Context(), more...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("the end of RabbitMQ's log:\n" + r.Log())
		}
		if err := r.Close(); err != nil {
			t.Errorf("close RabbitMQ: %v", err)
		}
	})
	return r
}
