package dramatiq

import (
	"maps"
	"slices"
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

// feed is one connection's worth of deliveries, all of one queue.
type feed struct{ name string }

// inbox holds deliveries. Its methods may be used concurrently.
type inbox struct {
	arrived chan struct{} // has a token when something may be there to take

	mu      sync.Mutex
	feeds   map[*feed]bool // that are open
	waiting []*delivery
	held    map[*delivery]time.Time // until when; nobody takes them meanwhile
}

func newInbox() *inbox {
	return &inbox{arrived: make(chan struct{}, 1), feeds: map[*feed]bool{}, held: map[*delivery]time.Time{}}
}

// open takes what comes on a feed until shut is called. What came on it and is there then will come again.
func (b *inbox) open(f *feed) (shut func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.feeds[f] = true
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.feeds, f)
		b.waiting = slices.DeleteFunc(b.waiting, func(d *delivery) bool { return d.feed == f })
		maps.DeleteFunc(b.held, func(d *delivery, _ time.Time) bool { return d.feed == f })
	}
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
		if b.feeds[d.feed] && !d.settled {
			b.waiting = append(b.waiting, d)
			b.signal()
		}
	}
}

// hold puts a delivery off.
func (b *inbox) hold(d *delivery, wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d.tries++
	d.settled = true
	if !b.feeds[d.feed] {
		return
	}
	b.held[d] = time.Now().Add(wait)
	time.AfterFunc(wait, func() {
		b.mu.Lock()
		_, still := b.held[d]
		delete(b.held, d)
		if still {
			d.settled = false
		}
		b.mu.Unlock()
		if still {
			b.put(d)
		}
	})
}

// take removes what is there of a feed, or of all for nil, at most maxBatch deliveries and, but for the first, maxBytes.
func (b *inbox) take(f *feed) (taken []*delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()
	bytes, full := 0, false
	b.waiting = slices.DeleteFunc(b.waiting, func(d *delivery) bool {
		if full || f != nil && d.feed != f {
			return false
		}
		bytes += len(d.Body)
		if full = len(taken) == maxBatch || bytes > maxBytes && len(taken) > 0; full {
			return false
		}
		taken = append(taken, d)
		return true
	})
	if len(b.waiting) > 0 {
		b.signal()
	}
	return taken
}

// since returns for how long the oldest delivery of a feed has been waiting to be taken, 0 if there is none.
func (b *inbox) since(f *feed) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range b.waiting {
		if d.feed == f {
			return time.Since(d.came)
		}
	}
	return 0
}

// has reports whether anything is here that came on a feed.
func (b *inbox) has(f *feed) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for d := range b.held {
		if d.feed == f {
			return true
		}
	}
	return slices.ContainsFunc(b.waiting, func(d *delivery) bool { return d.feed == f })
}

// clear removes what came on a feed in the main queue and nobody has taken.
func (b *inbox) clear(f *feed) (removed []*delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting = slices.DeleteFunc(b.waiting, func(d *delivery) bool {
		if d.feed != f || !d.main {
			return false
		}
		removed = append(removed, d)
		return true
	})
	return removed
}
