package dramatiq_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/dramatiq"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/rabbitmq"
)

// TestMain lets tests start this binary again as a worker of another process.
func TestMain(m *testing.M) {
	if url := os.Getenv("OPSCORE_TEST_WORKER"); url != "" {
		if err := runWorker(url, os.Getenv("OPSCORE_TEST_WORKER_BROKER")); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runWorker takes over the queue default until it is killed.
func runWorker(url, broker string) error {
	ctx := context.Background()
	s, err := postgres.Open(ctx, url, postgres.Options{})
	if err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	session, err := rabbitmq.Connect(ctx, broker, rabbitmq.Options{Log: log})
	if err != nil {
		return err
	}
	h := opscore.Handlers{}
	opscore.Handle(h, opscore.Actor[sum, int]{Name: "add"}, func(_ context.Context, in sum) (int, error) {
		<-time.After(2 * time.Millisecond)
		return in.X + in.Y, nil
	})
	source, err := dramatiq.NewSource(session, s, dramatiq.Options{Queues: map[string][]string{"default": nil}, Handlers: h, Log: log})
	if err != nil {
		return err
	}
	go func() { _ = (&opscore.Keeper{Store: s, Log: log}).Run(ctx) }()
	w := &opscore.Worker{
		Store: s, Sources: []opscore.Source{source, opscore.FromStore(s, 0)}, Handlers: h, Queues: []string{"default"}, Slots: 20, Log: log,
		Adapter: &dramatiq.Adapter{Client: &opscore.Client{Store: s}}, OnReady: func(w opscore.WorkerInfo) { fmt.Println(w.ID) },
	}
	return w.Run(ctx)
}

// spawn starts a worker in a process of its own and returns its id when it is ready.
func (r *rig) spawn() (*exec.Cmd, opscore.ID) {
	r.Helper()
	exe, err := os.Executable()
	check(r, err)
	cmd := exec.CommandContext(r.Context(), exe)
	cmd.Env = append(os.Environ(), "OPSCORE_TEST_WORKER="+r.url, "OPSCORE_TEST_WORKER_BROKER="+r.at, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = r.Output()
	out, err := cmd.StdoutPipe()
	check(r, err, cmd.Start())
	r.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	check(r, err)
	var id opscore.ID
	check(r, id.UnmarshalText([]byte(line[:len(line)-1])))
	return cmd, id
}

// kill kills a worker -9 and lets its lease run out.
func (r *rig) kill(cmd *exec.Cmd, id opscore.ID) {
	r.Helper()
	check(r, cmd.Process.Kill())
	_, err := r.store.Pool().Exec(r.Context(), "UPDATE opscore.worker SET lease_until = clock_timestamp() - interval '1 second' WHERE id = $1", id)
	check(r, err)
}

const fromPython = 10_000

// TestMessagesWithoutConfirmsAreAdoptedOnceEachThoughWorkersAreKilled sends as Dramatiq does by default, and kills the worker -9 twice on the
// way.
func TestMessagesWithoutConfirmsAreAdoptedOnceEachThoughWorkersAreKilled(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	completed := func() int { return r.count("SELECT count(*) FROM opscore.task WHERE state = 'completed'") }
	sending := make(chan error, 1)
	python := r.channel() // not used by anybody else meanwhile
	go func() {
		for i := range fromPython {
			body, _ := message("add", "default", fmt.Sprintf("[%d]", i), `{"y":1}`, "{}")
			if err := python.PublishWithContext(t.Context(), "", "default", false, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: body}); err != nil {
				sending <- err
				return
			}
		}
		sending <- nil
	}()
	for i := range 2 {
		cmd, id := r.spawn()
		r.until("it works", func() bool { return completed() > 1500*(i+1) })
		r.kill(cmd, id)
	}
	check(t, <-sending)
	began := time.Now()
	r.spawn()
	deadline := time.Now().Add(3 * time.Minute)
	for completed() < fromPython && time.Now().Before(deadline) {
		<-time.After(20 * time.Millisecond)
	}
	t.Logf("the rest in %s; lost with their workers: %d; orphans: %d", time.Since(began), r.count("SELECT count(*) FROM opscore.attempt WHERE code = 'lost'"),
		r.count("SELECT count(*) FROM opscore.orphan"))
	if n := r.count("SELECT count(*) FROM opscore.task"); n != fromPython || completed() != fromPython {
		t.Errorf("%d tasks, %d of them completed, want %d", n, completed(), fromPython)
	}
	if n := r.count("SELECT count(DISTINCT args) FROM opscore.task"); n != fromPython {
		t.Errorf("%d different messages were adopted", n)
	}
	if n := r.waiting("default.XQ"); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// TestNothingIsLostByAnAlarmAndAKill lets messages become due, and tasks be retried, while the broker takes nothing, and then kills the worker.
func TestNothingIsLostByAnAlarmAndAKill(t *testing.T) {
	n, at := node(t)
	r := newRigAt(t, at)
	r.declare(0, "default")
	soon := fmt.Sprintf(`{"eta":%d}`, time.Now().Add(4*time.Second).UnixMilli())
	var ids []opscore.ID
	for range 3 {
		ids = append(ids, r.send("add", "default.DQ", "[1,2]", "{}", soon), r.send("add", "default", "[1,2]", "{}", "{}"))
	}
	r.until("the broker has them", func() bool { return r.waiting("default.DQ") == 3 && r.waiting("default") == 3 })
	eval(t, n, `vm_memory_monitor:set_vm_memory_high_watermark(0.0000001)`)
	cmd, worker := r.spawn()
	r.until("all are tasks", func() bool { return r.count("SELECT count(*) FROM opscore.task") == 6 })
	r.kill(cmd, worker)
	eval(t, n, `vm_memory_monitor:set_vm_memory_high_watermark(0.6)`)
	r.spawn()
	for _, id := range ids {
		r.completed(id, "3")
	}
}

// TestAnAckNeverHitsAnotherMessage loses the connection again and again while messages are adopted: their tags begin anew each time.
func TestAnAckNeverHitsAnotherMessage(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	proxy := nodes.NewProxy(t, nodes.Broker(t).Addr())
	at, err := url.Parse(r.at)
	check(t, err)
	at.Host = proxy.Addr()
	h := opscore.Handlers{}
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "touch"}, func(context.Context, json.RawMessage) (string, error) { return "", nil })
	r.work(h, &worker{session: r.connect(at.String())})
	const all = 3000
	for i := range all {
		r.send("touch", "default", fmt.Sprintf("[%d]", i), "{}", "{}")
		if i%500 == 250 {
			r.until("it takes some", func() bool { return r.count("SELECT count(*) FROM opscore.task") > i/2 })
			proxy.Reset()
		}
	}
	r.until("all are completed", func() bool { return r.count("SELECT count(*) FROM opscore.task WHERE state = 'completed'") == all })
	if n := r.count("SELECT count(*) FROM opscore.attempt"); n != 0 {
		t.Errorf("%d attempts did not complete their tasks", n)
	}
	r.until("nothing is left", func() bool { return r.waiting("default") == 0 })
}
