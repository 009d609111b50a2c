package nodes

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// echo is a server that answers each connection with what it is sent, and keeps it.
type echo struct {
	addr string
	mu   sync.Mutex
	got  bytes.Buffer
}

func startEcho(t *testing.T) *echo {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{addr: listener.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(io.MultiWriter(e, conn), conn)
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		wg.Wait() // the proxy has closed the connections before
	})
	return e
}

func (e *echo) Write(b []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.got.Write(b)
}

func (e *echo) received() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.got.String()
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

func send(t *testing.T, conn net.Conn, what string) {
	t.Helper()
	if _, err := io.WriteString(conn, what); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("received %q, %v, want %q", got[:n], err, want)
	}
}

// silent waits a moment for an answer that must not come.
func silent(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes, %v, want silence", n, err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
}

// ends reads to the end of a connection and returns what came before.
func ends(t *testing.T, conn net.Conn) string {
	t.Helper()
	got, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the connection is still open")
	}
	return string(got)
}

func TestProxyPassesEverythingOn(t *testing.T) {
	p := NewProxy(t, startEcho(t).addr)
	conn := dial(t, p.Addr())
	big := strings.Repeat("0123456789", 1<<17)
	go func() {
		_, _ = io.WriteString(conn, big)
		_ = conn.CloseWrite()
	}()
	if got := ends(t, conn); got != big {
		t.Errorf("received %d bytes, want the %d that were sent", len(got), len(big))
	}
	if got, want := p.URL("postgres://me:secret@127.0.0.1:5432/db?a=b"), "postgres://me:secret@"+p.Addr()+"/db?a=b"; got != want {
		t.Errorf("URL = %s, want %s", got, want)
	}
}

func TestCutConnectionsCloseAndNewOnesAreRefusedUntilHeal(t *testing.T) {
	p := NewProxy(t, startEcho(t).addr)
	conn := dial(t, p.Addr())
	send(t, conn, "a")
	receive(t, conn, "a")
	p.Cut()
	if got := ends(t, conn); got != "" {
		t.Errorf("received %q", got)
	}
	if _, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new connection: %v, want it refused", err)
	}
	p.Heal()
	conn = dial(t, p.Addr())
	send(t, conn, "b")
	receive(t, conn, "b")
}

func TestBlackholeKeepsEverythingBackUntilHeal(t *testing.T) {
	e := startEcho(t)
	p := NewProxy(t, e.addr)
	old := dial(t, p.Addr())
	send(t, old, "a")
	receive(t, old, "a")
	p.Blackhole()
	send(t, old, "b")
	fresh := dial(t, p.Addr())
	send(t, fresh, "c")
	silent(t, old)
	silent(t, fresh)
	if got := e.received(); got != "a" {
		t.Errorf("the server received %q, want a", got)
	}
	p.Heal()
	receive(t, old, "b")
	receive(t, fresh, "c")
}

func TestDelayedAnswersComeNoSooner(t *testing.T) {
	p := NewProxy(t, startEcho(t).addr)
	conn := dial(t, p.Addr())
	const d = 20 * time.Millisecond
	p.Delay(d)
	for range 2 {
		begin := time.Now()
		send(t, conn, "a")
		receive(t, conn, "a")
		if took := time.Since(begin); took < 2*d {
			t.Errorf("the answer took %v, want at least %v", took, 2*d)
		}
	}
	p.Delay(time.Hour)
	send(t, conn, "b")
	silent(t, conn)
	p.Heal()
	receive(t, conn, "b")
}

func TestTruncatedAnswersEndAfterNBytes(t *testing.T) {
	p := NewProxy(t, startEcho(t).addr)
	old := dial(t, p.Addr())
	send(t, old, "not counted")
	receive(t, old, "not counted")
	p.Truncate(3)
	for _, conn := range []net.Conn{old, dial(t, p.Addr())} {
		send(t, conn, "ab")
		receive(t, conn, "ab")
		send(t, conn, "cd")
		if got := ends(t, conn); got != "c" {
			t.Errorf("received %q, want c", got)
		}
	}
	p.Truncate(0)
	conn := dial(t, p.Addr())
	send(t, conn, "a")
	if got := ends(t, conn); got != "" {
		t.Errorf("received %q, want nothing", got)
	}
	p.Heal()
	conn = dial(t, p.Addr())
	send(t, conn, "abcd")
	receive(t, conn, "abcd")
}

func TestResetIsSeenByBothEnds(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	p := NewProxy(t, listener.Addr().String())
	client := dial(t, p.Addr())
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	send(t, client, "a")
	receive(t, server, "a")
	p.Reset()
	for name, conn := range map[string]net.Conn{"client": client, "server": server} {
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the %s sees %v, want a reset", name, err)
		}
	}
	dial(t, p.Addr())
	if _, err := listener.Accept(); err != nil {
		t.Error(err)
	}
}

func TestServerHasDoneWhatItsClientCannotKnow(t *testing.T) {
	e := startEcho(t)
	p := NewProxy(t, e.addr)
	conn := dial(t, p.Addr())
	done := p.CutAfterRequest([]byte("commit"))
	send(t, conn, "insert;com")
	receive(t, conn, "insert;com")
	send(t, conn, "mit;")
	if got := ends(t, conn); got != "" {
		t.Errorf("the client received %q", got)
	}
	<-done
	if got, want := e.received(), "insert;commit;"; got != want {
		t.Errorf("the server received %q, want %q", got, want)
	}
	conn = dial(t, p.Addr())
	send(t, conn, "commit")
	receive(t, conn, "commit") // it happens once
}

func TestServerHasNotDoneWhatItsClientCannotKnow(t *testing.T) {
	e := startEcho(t)
	p := NewProxy(t, e.addr)
	conn := dial(t, p.Addr())
	done := p.CutBeforeRequest([]byte("commit"))
	send(t, conn, "insert")
	receive(t, conn, "insert")
	send(t, conn, "commit")
	if got := ends(t, conn); got != "" {
		t.Errorf("the client received %q", got)
	}
	<-done
	if got := e.received(); got != "insert" {
		t.Errorf("the server received %q, want insert", got)
	}
}

func TestProxyOfAServerThatIsDownClosesConnections(t *testing.T) {
	port, err := freePort(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := NewProxy(t, loopback(port))
	if got := ends(t, dial(t, p.Addr())); got != "" {
		t.Errorf("received %q", got)
	}
}

func TestNothingOfAProxyRunsAfterClose(t *testing.T) {
	p := NewProxy(t, startEcho(t).addr)
	p.Delay(time.Millisecond)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.Addr())
				if err != nil {
					continue
				}
				_, _ = io.WriteString(conn, "commit")
				_ = conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
				_, _ = conn.Read(make([]byte, 1))
				conn.Close()
			}
		})
	}
	for range 20 {
		for _, fault := range []func(){
			p.Cut, p.Heal, p.Reset, p.Blackhole, p.Heal, func() { p.Truncate(2) }, func() { p.CutAfterRequest([]byte("commit")) },
		} {
			fault()
		}
	}
	p.Close()
	p.Heal()
	if !refused(p.Addr()) {
		t.Error("a closed proxy accepts connections")
	}
	wg.Wait()
	var stacks bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&stacks, 2); err != nil {
		t.Fatal(err)
	}
	for stack := range strings.SplitSeq(stacks.String(), "\n\n") {
		if strings.Contains(stack, "nodes.(*link)") || strings.Contains(stack, "nodes.(*Proxy)") {
			t.Errorf("still running:\n%s", stack)
		}
	}
}
