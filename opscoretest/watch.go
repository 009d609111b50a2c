package opscoretest

import (
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// pulse is how a watcher outside a bubble knows that it is alive, and how the bubble learns that it was given up. A nil one is that of real time.
type pulse struct {
	beats     atomic.Int64 // grows with every call to the store and with fake time
	bubble    atomic.Pointer[string]
	abandoned atomic.Bool
}

// enter begins to beat in the bubble that it is called in, until leave.
func (p *pulse) enter() (leave func()) {
	name := ownBubble()
	p.bubble.Store(&name)
	quit := make(chan struct{})
	go func() {
		tick := time.NewTicker(10 * time.Minute)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				p.beats.Add(1)
			}
		}
	}()
	return func() { close(quit) }
}

// beat is a sign of life. In a bubble that was given up it never returns: the test is over, and whoever touches its T now would end all of them.
func (p *pulse) beat() {
	if p == nil {
		return
	}
	p.beats.Add(1)
	if p.abandoned.Load() {
		select {}
	}
}

// output passes on what is written until the bubble is given up.
func (p *pulse) output(to io.Writer) io.Writer {
	return writerFunc(func(b []byte) (int, error) {
		p.beat()
		return to.Write(b)
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// watch calls do, which runs a bubble, and fails the test with the stacks of its goroutines if it does not move for limit of real time, or
// ends with goroutines that will never end. What hangs is left behind.
func watch(t *testing.T, limit time.Duration, do func(*pulse)) {
	t.Helper()
	p, done, well := &pulse{}, make(chan struct{}), false
	go func() {
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				t.Errorf("%v\n%s", v, p.stacks())
			}
		}()
		do(p)
		well = true
	}()
	tick := time.NewTicker(limit / 10)
	defer tick.Stop()
	for still, last := 0, int64(-1); ; still++ {
		select {
		case <-done:
			if !well { // what ended it has failed the test
				t.FailNow()
			}
			return
		case <-tick.C:
		}
		if now := p.beats.Load(); now != last {
			still, last = 0, now
		}
		if still >= 10 {
			p.abandoned.Store(true)
			t.Fatalf("nothing has moved for %s of real time: a handler or the test does not come to an end, or waits for something outside its bubble, "+
				"or computes for so long\n%s", limit, p.stacks())
		}
	}
}

// stacks returns those of the handlers in the bubble, or of all its goroutines if there is none.
func (p *pulse) stacks() string {
	bubble := p.bubble.Load()
	if bubble == nil {
		return ""
	}
	if s := handlerStacks(*bubble); s != "" {
		return s
	}
	return strings.Join(stacks(*bubble, func(string) bool { return true }), "\n\n")
}
