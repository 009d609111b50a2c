package nodes

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// withManagement has the node serve RabbitMQ's management API: it starts a second later.
const withManagement = "management.tcp.ip = 127.0.0.1"

// managed reports whether lines of a configuration ask for the management API.
func managed(more []string) bool {
	return strings.Contains(strings.Join(more, "\n"), withManagement)
}

// StartManagedRabbitMQ is [StartRabbitMQ] with the management API.
func StartManagedRabbitMQ(ctx context.Context, more ...string) (*RabbitMQ, error) {
	return StartRabbitMQ(ctx, append(more, withManagement)...)
}

// OwnManagedRabbitMQ is [OwnRabbitMQ] with the management API.
func OwnManagedRabbitMQ(t testing.TB, more ...string) *RabbitMQ {
	t.Helper()
	return OwnRabbitMQ(t, append(more, withManagement)...)
}

// sharedManaged is shared by all tests of a process that need the management API, as [sharedBroker] is. Nothing else may use it.
var sharedManaged = sync.OnceValues(func() (*RabbitMQ, error) { return StartManagedRabbitMQ(context.Background()) })

// ManagedBroker returns the node with the management API that all tests of the process share. They must not stop it.
func ManagedBroker(t testing.TB) *RabbitMQ {
	t.Helper()
	r, err := sharedManaged()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Management returns the URL of the management API, without a user; it is empty if the node was started without it.
func (r *RabbitMQ) Management() string {
	if r.management == 0 {
		return ""
	}
	return "http://" + loopback(r.management)
}

// Tool writes a program rabbitmqctl into a directory that is at work on this node, for commands of a shell.
func (r *RabbitMQ) Tool(dir string) error {
	var script strings.Builder
	script.WriteString("#!/bin/sh\n")
	for _, v := range append(environment(r.dir.path), r.dir.env...) {
		name, value, _ := strings.Cut(v, "=")
		fmt.Fprintf(&script, "export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
	}
	fmt.Fprintf(&script, "exec '%s' \"$@\"\n", filepath.Join(r.with.rabbitmq, "rabbitmqctl"))
	return os.WriteFile(filepath.Join(dir, "rabbitmqctl"), []byte(script.String()), 0o700) //nolint:gosec // it is a program
}
