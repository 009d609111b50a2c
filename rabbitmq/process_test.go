package rabbitmq_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/opscore/opscore"
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

// runWorker charges orders and relays until it is killed.
func runWorker(url, broker string) error {
	ctx := context.Background()
	s, err := postgres.Open(ctx, url, postgres.Options{})
	if err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	b, err := rabbitmq.Open(ctx, broker, s, rabbitmq.Options{Log: log})
	if err != nil {
		return err
	}
	h := opscore.Handlers{}
	opscore.Handle(h, charge, func(_ context.Context, o order) (string, error) {
		<-time.After(o.Takes)
		return fmt.Sprintf("charged by %d", os.Getpid()), nil
	})
	go func() { _ = (&opscore.Keeper{Store: s, Publisher: b.Publisher(), Log: log}).Run(ctx) }()
	w := &opscore.Worker{Store: s, Sources: []opscore.Source{b.Source()}, Handlers: h, Slots: 10, Log: log, OnReady: func(w opscore.WorkerInfo) { fmt.Println(w.ID) }}
	return w.Run(ctx)
}

// spawn starts a worker with a relay in a process of its own and returns its id when it is ready.
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

// TestTasksOfKilledWorkersCompleteOnceEach kills processes at any moment between ticket and outcome: with tickets that are not claimed, claimed
// and not settled, issued and not published.
func TestTasksOfKilledWorkersCompleteOnceEach(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	r.work(b, &opscore.Worker{Slots: 10})
	r.keep(b)
	loaded := r.loading(5000, 10, 5*time.Millisecond)
	for range 4 {
		cmd, id := r.spawn()
		r.until("it works", func() bool {
			return r.count("SELECT count(*) FROM opscore.task WHERE worker = $1 AND state = 'completed'", id) > 50
		})
		check(t, cmd.Process.Kill())
		_, err := r.store.Pool().Exec(t.Context(), "UPDATE opscore.worker SET lease_until = clock_timestamp() - interval '1 second' WHERE id = $1", id)
		check(t, err)
	}
	<-loaded
	r.await()
	t.Logf("lost with their workers: %d", r.count("SELECT count(*) FROM opscore.attempt WHERE code = 'lost'"))
	if n := r.count("SELECT count(*) FROM opscore.attempt WHERE code <> 'lost'"); n != 0 {
		t.Errorf("%d attempts ended otherwise", n)
	}
}

func TestATicketCostsNothingWhenItsPublisherIsStopped(t *testing.T) {
	r := newRig(t, nodes.Vhost(t))
	b := r.broker(rabbitmq.Options{})
	r.work(b, &opscore.Worker{Slots: 10})
	stop := r.keep(b)
	r.load(500, 10, 0)
	stop() // in the middle of it, as far as it knows
	r.submit(500, 0)
	r.await()
}
