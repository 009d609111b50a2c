package nodes

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"
)

// Proxy passes TCP connections on to a server, with faults on demand. Faults add up and hold for connections that exist
// and for new ones, until Heal. Its methods may be used concurrently.
type Proxy struct {
	t      testing.TB
	target string
	addr   string
	wg     sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener // nil while it refuses connections
	links    map[*link]struct{}
	closed   bool
	faults   faults
	changed  chan struct{} // closed when the faults change
}

// faults are what a Proxy does to the connections.
type faults struct {
	blackhole bool
	delay     time.Duration
	truncate  bool
	limit     int // of each new connection, if truncate is set
	cut       *cut
}

// cut is armed until a request matches.
type cut struct {
	match []byte
	after bool // the server gets the request
	done  chan struct{}
}

// NewProxy listens on a free loopback port until the test ends.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	p := &Proxy{t: t, target: target, links: map[*link]struct{}{}, changed: make(chan struct{})}
	var err error
	for range 5 { // somebody else may take the port meanwhile
		var port int
		if port, err = freePort(t.Context()); err != nil {
			break
		}
		p.addr = loopback(port)
		if err = p.listen(); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// Addr returns the host and port to connect to; it stays the same.
func (p *Proxy) Addr() string {
	return p.addr
}

// URL returns the URL of something on the server, by way of the proxy.
func (p *Proxy) URL(of string) string {
	u, err := url.Parse(of)
	if err != nil {
		p.t.Fatalf("go by way of the proxy: %v", err)
	}
	u.Host = p.addr
	return u.String()
}

// Cut closes every connection and refuses new ones.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		p.listener.Close()
		p.listener = nil
	}
	for l := range p.links {
		l.close()
	}
}

// Reset closes every connection so that both ends see "connection reset by peer". New ones are not affected.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.reset()
	}
}

// Blackhole keeps connections open, accepts new ones, and passes nothing on, not even that an end closes its connection. What it
// has kept back is passed on after Heal; what was on its way already may still arrive.
func (p *Proxy) Blackhole() {
	p.inject(func(f *faults) { f.blackhole = true })
}

// Strand is [Proxy.Blackhole] for the connections that exist: new ones pass, as behind a firewall that has forgotten them.
func (p *Proxy) Strand() {
	p.inject(func(*faults) {
		for l := range p.links {
			l.stranded = true
		}
	})
}

// Delay passes everything on after d, in both directions: a request and its answer take 2d longer, a long answer more.
func (p *Proxy) Delay(d time.Duration) {
	p.inject(func(f *faults) { f.delay = d })
}

// Truncate passes n more bytes of the server's answers on each connection, old or new, and then closes it.
func (p *Proxy) Truncate(n int) {
	p.inject(func(f *faults) {
		f.truncate, f.limit = true, n
		for l := range p.links {
			l.left = n
		}
	})
}

// CutAfterRequest waits for the next request that contains match, passes it on, waits for the first byte of the answer
// and closes both connections instead of passing the answer on: the server has done it, and its client cannot know.
// It happens once; the channel is closed when it has.
func (p *Proxy) CutAfterRequest(match []byte) <-chan struct{} {
	return p.cutAt(match, true)
}

// CutBeforeRequest waits for the next request that contains match and closes both connections instead of passing it on: to its
// client it looks like CutAfterRequest, and the server has not done it. It happens once; the channel is closed when it has.
func (p *Proxy) CutBeforeRequest(match []byte) <-chan struct{} {
	return p.cutAt(match, false)
}

func (p *Proxy) cutAt(match []byte, after bool) <-chan struct{} {
	c := &cut{match: bytes.Clone(match), after: after, done: make(chan struct{})}
	p.inject(func(f *faults) { f.cut = c })
	return c.done
}

// Heal ends all faults. Connections that a fault has closed stay closed.
func (p *Proxy) Heal() {
	p.inject(func(f *faults) {
		*f = faults{}
		for l := range p.links {
			l.answered, l.stranded = nil, false
		}
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener == nil && !p.closed {
		if err := p.listen(); err != nil {
			p.t.Errorf("heal: %v", err)
		}
	}
}

// Close ends the proxy and its connections, and returns when nothing of it runs any more.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Cut()
	p.wg.Wait()
}

// inject changes the faults and tells the connections.
func (p *Proxy) inject(change func(*faults)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.faults)
	close(p.changed)
	p.changed = make(chan struct{})
}

// listen accepts connections until the listener is closed; p.mu is held, or nobody else knows p.
func (p *Proxy) listen() error {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", p.addr)
	if err != nil {
		return err
	}
	p.listener = listener
	p.wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			p.open(listener, client.(*net.TCPConn))
		}
	})
	return nil
}

// open begins to serve a connection, unless its listener has been closed since.
func (p *Proxy) open(listener net.Listener, client *net.TCPConn) {
	ctx, cancel := context.WithCancel(context.Background())
	l := &link{proxy: p, client: client, over: ctx.Done(), end: cancel}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != listener {
		l.close()
		return
	}
	l.left = p.faults.limit
	p.links[l] = struct{}{}
	p.wg.Go(func() { l.serve(ctx) })
}

// link is a client's connection and the one to the server that belongs to it.
type link struct {
	proxy *Proxy
	over  <-chan struct{} // closed when the link is
	end   func()

	mu             sync.Mutex // after proxy.mu
	client, server *net.TCPConn

	// Guarded by proxy.mu:
	left     int    // bytes of the server's answers to pass on, if they are truncated
	stranded bool   // nothing is passed on
	answered *cut   // happens at the next answer
	recent   []byte // what the client has sent last: a match may begin there
}

// serve passes everything on until both ends have closed or the link is closed.
func (l *link) serve(ctx context.Context) {
	defer func() {
		l.close()
		l.proxy.mu.Lock()
		defer l.proxy.mu.Unlock()
		delete(l.proxy.links, l)
	}()
	if !l.await() || !l.connect(ctx) {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { l.pump(l.server, l.client, l.request) })
	l.pump(l.client, l.server, l.answer)
	wg.Wait()
}

func (l *link) connect(ctx context.Context) bool {
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.proxy.target)
	if err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.server = server.(*net.TCPConn)
	if ctx.Err() != nil {
		l.server.Close()
		return false
	}
	return true
}

// pump passes on in one direction what the rule says of each chunk, until that says that it was the last.
func (l *link) pump(to, from *net.TCPConn, rule func(chunk []byte) (pass []byte, last bool)) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if !l.await() {
			return
		}
		if n > 0 {
			chunk, last := rule(buffer[:n])
			if _, err := to.Write(chunk); err != nil || last {
				l.close()
				return
			}
		}
		if errors.Is(err, io.EOF) {
			_ = to.CloseWrite() // it may have closed itself
			return
		}
		if err != nil {
			l.reset()
			return
		}
	}
}

// await returns when what has arrived now may be passed on, or false if the link is closed before.
func (l *link) await() bool {
	arrived := time.Now()
	for {
		l.proxy.mu.Lock()
		faults, changed := l.proxy.faults, l.proxy.changed
		hold := faults.blackhole || l.stranded
		l.proxy.mu.Unlock()
		var due <-chan time.Time
		if !hold {
			left := faults.delay - time.Since(arrived)
			if left <= 0 {
				return true
			}
			due = time.After(left)
		}
		select {
		case <-due:
		case <-changed:
		case <-l.over:
			return false
		}
	}
}

// request is the rule for what the client sends.
func (l *link) request(chunk []byte) (pass []byte, last bool) {
	l.proxy.mu.Lock()
	defer l.proxy.mu.Unlock()
	c := l.proxy.faults.cut
	if c == nil {
		l.recent = nil
		return chunk, false
	}
	seen := slices.Concat(end(l.recent, len(c.match)-1), chunk)
	l.recent = bytes.Clone(end(seen, len(c.match)-1))
	if !bytes.Contains(seen, c.match) {
		return chunk, false
	}
	l.proxy.faults.cut = nil
	if c.after {
		l.answered = c
		return chunk, false
	}
	close(c.done)
	return nil, true
}

// end returns the last n bytes.
func end(b []byte, n int) []byte {
	return b[len(b)-min(len(b), max(n, 0)):]
}

// answer is the rule for what the server sends.
func (l *link) answer(chunk []byte) (pass []byte, last bool) {
	l.proxy.mu.Lock()
	defer l.proxy.mu.Unlock()
	if l.answered != nil {
		close(l.answered.done)
		return nil, true
	}
	if l.proxy.faults.truncate {
		chunk = chunk[:min(len(chunk), l.left)]
		l.left -= len(chunk)
		return chunk, l.left == 0
	}
	return chunk, false
}

// close closes both connections.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end()
	l.client.Close()
	if l.server != nil {
		l.server.Close()
	}
}

// reset closes both connections as a host does that does not know them.
func (l *link) reset() {
	l.mu.Lock()
	for _, conn := range []*net.TCPConn{l.client, l.server} {
		if conn != nil {
			_ = conn.SetLinger(0) // it may be closed already
		}
	}
	l.mu.Unlock()
	l.close()
}
