package nodes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// erlang says where the programs of RabbitMQ and of Erlang are.
type erlang struct {
	rabbitmq string // RabbitMQ's scripts
	erts     string // what belongs to Erlang's virtual machine
}

// packagedScripts is where packages of Linux distributions have RabbitMQ's scripts.
const packagedScripts = "/usr/lib/rabbitmq/bin"

// findRabbitMQ finds the programs by way of PATH; RabbitMQ's scripts may be in the usual directory instead.
func findRabbitMQ(usual string) (found erlang, err error) {
	if found.rabbitmq, err = findScripts(usual); err == nil {
		found.erts, err = findErts()
	}
	if err != nil {
		return erlang{}, fmt.Errorf("find RabbitMQ: %w; install it with: sudo internal/nodes/install.sh", err)
	}
	return found, nil
}

// findScripts returns the directory of RabbitMQ's scripts themselves: what a package puts into PATH insists on being run as a
// certain user, but is a link to a file beside them.
func findScripts(usual string) (string, error) {
	dirs := []string{usual}
	if server, err := exec.LookPath("rabbitmq-server"); err == nil {
		if server, err = filepath.EvalSymlinks(server); err == nil {
			dirs = []string{filepath.Dir(server), usual}
		}
	}
	for _, dir := range dirs {
		server, err := filepath.EvalSymlinks(filepath.Join(dir, "rabbitmq-server"))
		if err != nil {
			continue
		}
		dir = filepath.Dir(server)
		if _, err := os.Stat(filepath.Join(dir, "rabbitmq-env")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("neither PATH nor " + usual + " has rabbitmq-server with rabbitmq-env beside it")
}

// findErts returns the directory of the programs that belong to Erlang's virtual machine. Not all of them are in PATH.
func findErts() (string, error) {
	erl, err := exec.LookPath("erl")
	if err != nil {
		return "", err
	}
	if erl, err = filepath.EvalSymlinks(erl); err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(filepath.Dir(erl), "../erts-*/bin/erl_call"))
	if err != nil || len(found) == 0 {
		return "", errors.Join(errors.New("there is no ../erts-*/bin/erl_call beside "+erl), err)
	}
	return filepath.Dir(found[0]), nil
}

// link makes a directory of plugins with the broker itself alone. A start reads all that are there: with those that come with
// RabbitMQ it takes a second longer. For the management API it is all of them.
func (e erlang) link(plugins string, all bool) error {
	if all {
		if err := os.Symlink(filepath.Join(e.rabbitmq, "../plugins"), plugins); !errors.Is(err, os.ErrExist) {
			return err
		}
		return nil
	}
	broker, err := filepath.Glob(filepath.Join(e.rabbitmq, "../plugins/rabbit-[0-9]*"))
	if err != nil || len(broker) != 1 {
		return errors.Join(fmt.Errorf("find the broker in %s/../plugins: found %v", e.rabbitmq, broker), err)
	}
	if err := os.MkdirAll(plugins, 0o700); err != nil {
		return err
	}
	if err := os.Symlink(broker[0], filepath.Join(plugins, filepath.Base(broker[0]))); !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// epmd is a name server of our own for Erlang nodes: those that are to know each other share one. The system's is never asked.
type epmd struct {
	dir    *directory
	port   int
	server *process
}

// startEpmd starts one of these programs on a port that is still free when it asks for it.
func startEpmd(ctx context.Context, with erlang) (*epmd, error) {
	dir, err := newDirectory(ctx, "epmd", "")
	if err != nil {
		return nil, fmt.Errorf("start epmd: %w", err)
	}
	e := &epmd{dir: dir}
	for range 5 {
		if e.port, err = freePort(ctx); err != nil {
			break
		}
		if err = e.start(ctx, with); err == nil || !strings.Contains(err.Error(), "already a epmd running") {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start epmd: %w", err), e.close())
	}
	return e, nil
}

// start returns when it listens, which it says in its log if it is told twice to say what it does.
func (e *epmd) start(ctx context.Context, with erlang) (err error) {
	port := strconv.Itoa(e.port)
	e.server, err = e.dir.start(ctx, "KILL", filepath.Join(with.erts, "epmd"), "-address", "127.0.0.1", "-port", port, "-d", "-d")
	if err != nil {
		return err
	}
	return e.dir.ready(ctx, e.server, patience, func() bool { return strings.Contains(e.dir.log(), "entering the main select") })
}

func (e *epmd) close() error {
	var err error
	if e.server != nil {
		err = e.server.end()
	}
	return errors.Join(err, e.dir.close())
}
