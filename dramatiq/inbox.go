package dramatiq

import (
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// delivery is a message that came and is not settled. It is settled on the channel that it came on: on another one its tag means another message.
type delivery struct {
	*amqp.Delivery
	queue   string // Dramatiq's, without .DQ
	main    bool   // it came in that queue itself
	feed    *feed
	came    time.Time
	read    *arrival // once it was decoded: a message without an id has the same new one at each try
	tries   int      // how often it was put off
	settled bool     // or put off: nobody has to look at it now
}

// feed is one connection's worth of deliveries.
type feed struct{ name string }

// inbox holds deliveries. Its methods may be used concurrently.
type inbox struct {
	arrived chan struct{} // has a token when something may be there to take

	mu      sync.Mutex
	feed    *feed // nil while nothing can arrive
	waiting []*delivery
	held    map[*delivery]time.Time // until when; nobody takes them meanwhile
}

func newInbox() *inbox {
	return &inbox{arrived: make(chan struct{}, 1), held: map[*delivery]time.Time{}}
}

// open begins with a new feed, nil if there is none. What came on another will come again.
func (b *inbox) open(f *feed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.feed, b.waiting = f, nil
	clear(b.held)
}

func (b *inbox) signal() {
	select {
	case b.arrived <- struct{}{}:
	default:
	}
}

// put adds what has arrived, or comes back.
func (b *inbox) put(all ...*delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range all {
		if d.feed == b.feed && !d.settled {
			b.waiting = append(b.waiting, d)
			b.signal()
		}
	}
}

// hold puts a delivery off.
func (b *inbox) hold(d *delivery, wait time.Duration) {
	d.tries++
	d.settled = true
	b.mu.Lock()
	defer b.mu.Unlock()
	if d.feed != b.feed {
		return
	}
	b.held[d] = time.Now().Add(wait)
	time.AfterFunc(wait, func() {
		b.mu.Lock()
		_, still := b.held[d]
		delete(b.held, d)
		b.mu.Unlock()
		if still {
			d.settled = false
			b.put(d)
		}
	})
}

// take removes what is there, at most limit deliveries and, but for the first, so many bytes.
func (b *inbox) take(limit, bytes int) []*delivery {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for n < len(b.waiting) && n < limit {
		if bytes -= len(b.waiting[n].Body); bytes < 0 && n > 0 {
			break
		}
		n++
	}
	taken := b.waiting[:n:n]
	if b.waiting = b.waiting[n:]; len(b.waiting) > 0 {
		b.signal()
	}
	return taken
}

// since returns for how long the oldest delivery has been waiting to be taken, 0 if there is none.
func (b *inbox) since() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) == 0 {
		return 0
	}
	return time.Since(b.waiting[0].came)
}

// clear removes what came in main queues and nobody has taken.
func (b *inbox) clear(f *feed) (removed []*delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.feed != f {
		return nil
	}
	var left []*delivery
	for _, d := range b.waiting {
		if d.main {
			removed = append(removed, d)
		} else {
			left = append(left, d)
		}
	}
	b.waiting = left
	return removed
}
