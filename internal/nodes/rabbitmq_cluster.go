package nodes

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"testing"
)

// RabbitCluster is a cluster of RabbitMQ nodes of our own, like which no process and no directory of it outlives ours. Its nodes
// share their user, their Erlang cookie and their name server. One that was stopped or killed rejoins when it starts; if all
// were, the first to start waits for the others, so that they have to start at once. If all are killed at once, queues that were
// declared a moment before may be gone, and with them what was confirmed: not every node has written them yet.
type RabbitCluster struct {
	Nodes []*RabbitMQ
	names *epmd
}

// joining are the settings of a node that joins the first of these, the other being itself.
const joining = `
cluster_formation.classic_config.nodes.1 = %s
cluster_formation.classic_config.nodes.2 = %s
cluster_formation.discovery_retry_interval = 100
cluster_formation.discovery_retry_limit = 100
`

// StartRabbitCluster creates a cluster of n nodes, with more lines for their rabbitmq.conf if any are given, and returns when all
// accept connections and know each other. ctx is for the start only: the cluster runs until Close.
func StartRabbitCluster(ctx context.Context, n int, more ...string) (*RabbitCluster, error) {
	if n < 1 {
		return nil, fmt.Errorf("start a cluster of RabbitMQ: of %d nodes, want at least 1", n)
	}
	with, err := findRabbitMQ(packagedScripts)
	if err != nil {
		return nil, err
	}
	names, err := startEpmd(ctx, with)
	if err != nil {
		return nil, fmt.Errorf("start a cluster of RabbitMQ: %w", err)
	}
	c := &RabbitCluster{names: names}
	if err := c.create(ctx, with, n, more); err != nil {
		return nil, errors.Join(fmt.Errorf("start a cluster of RabbitMQ: %w", err), c.Close())
	}
	return c, nil
}

// create starts one node and then, at once, those that join it. If all were started at once, they would lose more time by waiting
// for each other, and each could become a cluster of its own.
func (c *RabbitCluster) create(ctx context.Context, with erlang, n int, more []string) error {
	cookie, password := rand.Text(), rand.Text()
	for range n {
		r, err := newRabbitMQ(ctx, with, c.names)
		if err != nil {
			return err
		}
		r.password = password
		c.Nodes = append(c.Nodes, r)
	}
	first := c.Nodes[0]
	if err := first.create(ctx, cookie, more); err != nil {
		return err
	}
	err := each(c.Nodes[1:], func(r *RabbitMQ) error {
		return r.create(ctx, cookie, append([]string{fmt.Sprintf(joining, first.name, r.name)}, more...))
	})
	if err != nil {
		return err
	}
	for _, r := range c.Nodes {
		expression := fmt.Sprintf("ok = rabbit_nodes:await_running_count(%d, %d)", n, patience.Milliseconds())
		if _, err := r.Eval(ctx, expression); err != nil {
			return err
		}
	}
	return nil
}

// each does something to all of the nodes at once.
func each(nodes []*RabbitMQ, do func(*RabbitMQ) error) error {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, r := range nodes {
		wg.Go(func() { errs[i] = do(r) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Close kills the nodes that run and removes their directories. A second Close does nothing.
func (c *RabbitCluster) Close() error {
	return errors.Join(each(c.Nodes, (*RabbitMQ).Close), c.names.close())
}

// OwnRabbitCluster returns a cluster of the test's own, whose nodes it may stop, kill and pause. If the test fails, the ends of
// the nodes' logs are shown.
func OwnRabbitCluster(t testing.TB, n int, more ...string) *RabbitCluster {
	t.Helper()
	c, err := StartRabbitCluster(t.Context(), n, more...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, r := range c.Nodes {
				t.Log("the end of the log of " + r.name + ":\n" + r.Log())
			}
		}
		if err := c.Close(); err != nil {
			t.Errorf("close the cluster of RabbitMQ: %v", err)
		}
	})
	return c
}
