package nodes

import (
	"slices"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
)

// members counts those of a quorum queue that run, as the node sees them.
func members(t *testing.T, r *RabbitMQ, queue string) int {
	t.Helper()
	out, err := r.Ctl(t.Context(), "--silent", "list_queues", "name", "online")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		if name, online, _ := strings.Cut(strings.TrimSpace(line), "\t"); name == queue {
			return len(strings.Fields(strings.ReplaceAll(online, ",", " ")))
		}
	}
	return 0
}

func TestClusterKeepsWhatWasConfirmedWhenANodeIsKilledAndComesBack(t *testing.T) {
	c := OwnRabbitCluster(t, 3)
	declare(t, channel(t, c.Nodes[0].URL("/")), "kept", amqp.Table{"x-queue-type": "quorum"})
	for i, r := range c.Nodes {
		ch := channel(t, r.URL("/"))
		if n := members(t, r, "kept"); n != 3 {
			t.Errorf("node %d sees %d members of the queue, want 3", i, n)
		}
		publish(t, ch, "kept", r.Name())
	}
	killed := c.Nodes[0] // it leads the queue
	if err := killed.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the queue has another leader", func() bool {
		conn, err := amqp.Dial(c.Nodes[1].URL("/"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		m, ok, err := ch.Get("kept", false)
		if err != nil || !ok {
			return false
		}
		if string(m.Body) != killed.Name() {
			t.Fatalf("the first message is %q, want %q", m.Body, killed.Name())
		}
		return m.Ack(false) == nil
	})
	if n := members(t, c.Nodes[1], "kept"); n != 2 {
		t.Errorf("%d members run, want 2", n)
	}
	publish(t, channel(t, c.Nodes[2].URL("/")), "kept", "meanwhile")
	if err := killed.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node's member runs", func() bool { return members(t, killed, "kept") == 3 })
	ch := channel(t, killed.URL("/"))
	got := []string{take(t, ch, "kept"), take(t, ch, "kept"), take(t, ch, "kept")}
	if want := []string{c.Nodes[1].Name(), c.Nodes[2].Name(), "meanwhile"}; !slices.Equal(got, want) {
		t.Errorf("the queue has %q, want %q", got, want)
	}
}

func TestClusterThatIsStoppedAsAWholeStartsAsAWhole(t *testing.T) {
	dir := temp(t)
	t.Setenv("TMPDIR", dir)
	c := OwnRabbitCluster(t, 2, "net_ticktime = 7")
	declare(t, channel(t, c.Nodes[0].URL("/")), "kept", amqp.Table{"x-queue-type": "quorum"})
	publish(t, channel(t, c.Nodes[0].URL("/")), "kept", "text")
	for _, r := range c.Nodes {
		if got, err := r.Eval(t.Context(), "net_kernel:get_net_ticktime()"); err != nil || got != "7" {
			t.Errorf("net_ticktime = %s, %v, want 7", got, err)
		}
	}
	if err := each(c.Nodes, (*RabbitMQ).Stop); err != nil { // not Kill: the queue is too new
		t.Fatal(err)
	}
	if err := each(c.Nodes, func(r *RabbitMQ) error { return r.Start(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both members run", func() bool { return members(t, c.Nodes[1], "kept") == 2 })
	if got := take(t, channel(t, c.Nodes[1].URL("/")), "kept"); got != "text" {
		t.Errorf("the queue has %q, want %q", got, "text")
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if left := remaining(t, dir); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	if _, err := StartRabbitCluster(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "at least 1") {
		t.Errorf("a cluster of nothing: %v", err)
	}
	_, err := StartRabbitCluster(t.Context(), 2, "no_such_setting = on")
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("an unknown setting: %v", err)
	}
	if left := remaining(t, dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func BenchmarkStartRabbitCluster(b *testing.B) {
	for b.Loop() {
		c, err := StartRabbitCluster(b.Context(), 3)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
