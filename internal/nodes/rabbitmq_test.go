package nodes

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// channel opens one on a connection of its own.
func channel(t *testing.T, url string) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// declare makes a durable queue.
func declare(t *testing.T, ch *amqp.Channel, name string, args amqp.Table) {
	t.Helper()
	if _, err := ch.QueueDeclare(name, true, false, false, false, args); err != nil {
		t.Fatalf("declare %s: %v", name, err)
	}
}

// publish returns when the broker has confirmed a persistent message.
func publish(t *testing.T, ch *amqp.Channel, queue, text string) {
	t.Helper()
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	confirmed, err := ch.PublishWithDeferredConfirmWithContext(t.Context(), "", queue, true, false,
		amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := confirmed.WaitContext(t.Context()); !ok || err != nil {
		t.Fatalf("publish: %v, %v", ok, err)
	}
}

// take takes a message from a queue.
func take(t *testing.T, ch *amqp.Channel, queue string) string {
	t.Helper()
	m, ok, err := ch.Get(queue, true)
	if err != nil || !ok {
		t.Fatalf("get from %s: %v, %v", queue, ok, err)
	}
	return string(m.Body)
}

func TestBrokerKeepsWhatWasConfirmedHoweverItEnds(t *testing.T) {
	r := OwnRabbitMQ(t)
	declare(t, channel(t, r.URL("/")), "kept", nil)
	for _, end := range []struct {
		how string
		do  func() error
	}{{"stopped", r.Stop}, {"killed", r.Kill}} {
		ch := channel(t, r.URL("/"))
		lost := ch.NotifyClose(make(chan *amqp.Error, 1))
		publish(t, ch, "kept", end.how)
		if err := end.do(); err != nil {
			t.Fatal(err)
		}
		if err := <-lost; err == nil {
			t.Errorf("%s: the channel was closed without an error", end.how)
		}
		if !refused(r.Addr()) {
			t.Errorf("%s: the broker accepts connections", end.how)
		}
		if err := end.do(); err == nil || !strings.Contains(err.Error(), "it has ended") {
			t.Errorf("%s twice: %v", end.how, err)
		}
		if err := r.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := take(t, channel(t, r.URL("/")), "kept"); got != end.how {
			t.Errorf("%s: the queue has %q", end.how, got)
		}
	}
	if err := r.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "it runs") {
		t.Errorf("a start of a broker that runs: %v", err)
	}
}

func TestPausedBrokerAnswersWhenItContinues(t *testing.T) {
	r := OwnRabbitMQ(t)
	ch := channel(t, r.URL("/"))
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	declared := make(chan error, 1)
	go func() {
		_, err := ch.QueueDeclare("late", true, false, false, false, nil)
		declared <- err
	}()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := greets(conn, time.Now().Add(50*time.Millisecond)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a new connection to a paused broker: %v, want no answer", err)
	}
	select {
	case err := <-declared:
		t.Errorf("an answer of a paused broker: %v", err)
	default:
	}
	if err := r.Continue(); err != nil {
		t.Fatal(err)
	}
	if err := <-declared; err != nil {
		t.Error(err)
	}
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := r.Stop(); err != nil {
		t.Errorf("stop a paused broker: %v", err)
	}
}

func TestWipedBrokerKnowsNothingButItsUser(t *testing.T) {
	r := OwnRabbitMQ(t)
	declare(t, channel(t, r.URL("/")), "lost", nil)
	if _, err := r.Ctl(t.Context(), "add_vhost", "lost"); err != nil {
		t.Fatal(err)
	}
	for _, before := range []func() error{func() error { return nil }, r.Stop} {
		if err := before(); err != nil {
			t.Fatal(err)
		}
		if err := r.Wipe(t.Context()); err != nil {
			t.Fatal(err)
		}
		channel(t, r.URL("/"))
		for _, what := range []string{"list_queues", "list_vhosts"} {
			out, err := r.Ctl(t.Context(), "--quiet", what, "name")
			if err != nil || strings.Contains(out, "lost") {
				t.Errorf("%s: %q, %v", what, out, err)
			}
		}
	}
}

func TestBrokerThatDoesNotStartSaysWhy(t *testing.T) {
	dir := temp(t)
	t.Setenv("TMPDIR", dir)
	_, err := StartRabbitMQ(t.Context(), "no_such_setting = on")
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("an unknown setting: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := StartRabbitMQ(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context: %v", err)
	}
	if left := remaining(t, dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestFailedCommandsSayWhy(t *testing.T) {
	r := Broker(t)
	if out, err := r.Ctl(t.Context(), "no_such_command"); err == nil || !strings.Contains(err.Error(), "no_such_command") {
		t.Errorf("an unknown command: %q, %v", out, err)
	}
	if out, err := r.Eval(t.Context(), "no:such_function()"); err == nil || !strings.Contains(err.Error(), "undef") {
		t.Errorf("an unknown function: %q, %v", out, err)
	}
	if out, err := r.Eval(t.Context(), `{<<"}">>, 1 + 1}`); err != nil || out != `{<<"}">>,2}` {
		t.Errorf("an expression: %q, %v", out, err)
	}
}

// TestBrokerListensOnNothingButLoopback is about this machine's neighbours, who could take the broker for one of theirs.
func TestBrokerListensOnNothingButLoopback(t *testing.T) {
	r := Broker(t)
	got, err := r.Eval(t.Context(), "lists:usort([A || P <- erlang:ports(), {name, \"tcp_inet\"} =:= erlang:port_info(P, name), "+
		"{error, enotconn} =:= inet:peername(P), {ok, {A, _}} <- [inet:sockname(P)]])")
	if want := "[{127,0,0,1}]"; err != nil || got != want {
		t.Errorf("it listens on %s, %v, want %s", got, err, want)
	}
	cookie, err := os.Stat(filepath.Join(r.dir.path, ".erlang.cookie"))
	if err != nil || cookie.Mode().Perm() != 0o600 {
		t.Errorf("the cookie's mode: %v, %v", cookie.Mode(), err)
	}
	if conn, err := amqp.Dial("amqp://guest:guest@" + r.Addr() + "/"); err == nil {
		t.Error("a guest was let in")
		_ = conn.Close()
	}
}

func TestBrokersStartAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			r, err := StartRabbitMQ(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestClosedBrokerIsGoneAndStaysClosed(t *testing.T) {
	dir := temp(t)
	t.Setenv("TMPDIR", dir)
	r := OwnRabbitMQ(t)
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if left := remaining(t, dir); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	if err := r.Start(t.Context()); err == nil {
		t.Error("a closed broker started")
	}
}

func TestMissingBrokerIsAnErrorWithTheCommandThatInstallsIt(t *testing.T) {
	t.Setenv("PATH", "")
	for _, usual := range []string{t.TempDir(), packagedScripts} { // without erl
		_, err := findRabbitMQ(usual)
		if err == nil || !strings.HasSuffix(err.Error(), "install it with: sudo internal/nodes/install.sh") {
			t.Errorf("err = %v", err)
		}
	}
}

func TestEachTestHasAVirtualHostOfItsOwn(t *testing.T) {
	var urls sync.Map
	t.Run("parallel", func(t *testing.T) {
		for range 4 {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				url := Vhost(t)
				if _, again := urls.LoadOrStore(url, true); again {
					t.Errorf("%s was given out twice", url)
				}
				ch := channel(t, url) // still connected when the virtual host is deleted
				declare(t, ch, "queue", nil)
				publish(t, ch, "queue", url)
				if got := take(t, ch, "queue"); got != url {
					t.Errorf("received %q, want %q", got, url)
				}
			})
		}
	})
	for url := range urls.Range {
		if conn, err := amqp.Dial(url.(string)); err == nil {
			t.Errorf("%s was not deleted", url)
			_ = conn.Close()
		}
	}
}

func TestVirtualHostOfABrokerThatIsNotOursIsUsedAsItIs(t *testing.T) {
	const want = "amqp://user:password@broker.example/vhost"
	t.Setenv(brokerEnv, want)
	if got := Vhost(t); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	t.Setenv(brokerEnv, "broker.example")
	if _, _, err := NewVhost(); err == nil || !strings.Contains(err.Error(), brokerEnv) {
		t.Errorf("no URL: %v", err)
	}
}

func TestURLNamesAnyVirtualHost(t *testing.T) {
	r := Broker(t)
	const name = "a/b c%"
	if _, err := r.Ctl(t.Context(), "add_vhost", name); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Ctl(t.Context(), "set_permissions", "--vhost", name, brokerUser, ".*", ".*", ".*"); err != nil {
		t.Fatal(err)
	}
	channel(t, r.URL(name))
	u, err := url.Parse(r.URL(name))
	if err != nil || u.Path != "/"+name {
		t.Errorf("the URL's path is %q, %v", u.Path, err)
	}
	if _, err := r.Ctl(t.Context(), "delete_vhost", name); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkStartRabbitMQ(b *testing.B) {
	for b.Loop() {
		r, err := StartRabbitMQ(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkVhost(b *testing.B) {
	Vhost(b)
	for b.Loop() {
		Vhost(b)
	}
}
