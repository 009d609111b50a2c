package rabbitmq

import (
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
)

// feed is one incarnation of the channel that tickets come on. Delivery tags mean nothing on another: what is settled after it is
// gone is dropped, for the broker delivers it again.
type feed struct {
	ch *amqp.Channel

	mu      sync.Mutex
	low     uint64            // every tag up to here is settled
	settled map[uint64]bool   // those above
	open    map[uint64]string // the queues of those that are not settled
}

func newFeed(ch *amqp.Channel) *feed {
	return &feed{ch: ch, settled: map[uint64]bool{}, open: map[uint64]string{}}
}

// came notes that a delivery has come from a queue.
func (f *feed) came(tag uint64, queue string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open[tag] = queue
}

// held returns how many deliveries of a queue are not settled.
func (f *feed) held(queue string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, q := range f.open {
		if q == queue {
			n++
		}
	}
	return n
}

// ack settles deliveries: all below the first one that is not in one frame, the rest one by one.
func (f *feed) ack(tags []uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note(tags)
	top := uint64(0) // one of these, for the broker does not know a tag any more that was settled before
	for _, tag := range tags {
		if tag <= f.low {
			top = max(top, tag)
		} else {
			_ = f.ch.Ack(tag, false) // an error means that the channel is gone: it is noticed elsewhere
		}
	}
	if top > 0 {
		_ = f.ch.Ack(top, true)
	}
}

// nack gives deliveries back: to the queue, or to where dead letters go.
func (f *feed) nack(tags []uint64, requeue bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, tag := range tags {
		_ = f.ch.Nack(tag, false, requeue)
	}
	f.note(tags)
}

func (f *feed) note(tags []uint64) {
	for _, tag := range tags {
		f.settled[tag] = true
		delete(f.open, tag)
	}
	for f.settled[f.low+1] {
		delete(f.settled, f.low+1)
		f.low++
	}
}

// delivery is a ticket that has arrived and is not settled.
type delivery struct {
	opscore.Ticket
	feed *feed
	tag  uint64
	came time.Time

	// Guarded by the inbox:
	taken int  // of its tasks, those that were given out to be claimed
	open  int  // of its tasks, those of which it is not known yet what to do
	back  bool // it was given back: nothing is settled any more
	stay  bool // it remains out although nobody has it any more: its tasks come back when it is old
	late  bool // no claim got all of its tasks at once, so that none has ended it
}

// piece is one task of a delivery.
type piece struct {
	*delivery
	id    opscore.ID
	seq   int64
	tries int // how often it could not be claimed although it should have been
}

// inbox holds what has arrived and is not claimed. Its methods may be used concurrently.
type inbox struct {
	arrived chan struct{} // has a token when something may be there to take

	mu      sync.Mutex
	feed    *feed // nil while nothing can arrive
	lost    time.Time
	again   []piece // that are worth another try
	waiting []*delivery
}

func newInbox() *inbox {
	return &inbox{arrived: make(chan struct{}, 1), lost: time.Now()}
}

// open begins with a new feed, nil if there is none; what came on another is of no use.
func (b *inbox) open(f *feed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.feed != nil && f == nil {
		b.lost = time.Now()
	}
	b.feed, b.waiting, b.again = f, nil, nil
	b.signal()
}

func (b *inbox) signal() {
	select {
	case b.arrived <- struct{}{}:
	default:
	}
}

// put adds what has arrived.
func (b *inbox) put(d *delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.feed != d.feed {
		return
	}
	b.waiting = append(b.waiting, d)
	b.signal()
}

// retry adds pieces that could not be claimed.
func (b *inbox) retry(pieces ...piece) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range pieces {
		if p.late = true; p.feed == b.feed && !p.back {
			b.again = append(b.again, p)
		}
	}
	b.signal()
}

// take removes at most limit tasks, in the order of their arrival. A ticket is taken apart only if it names more than fit: else the claim
// that gets all of its tasks ends it.
func (b *inbox) take(limit int) (pieces []piece) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(limit, len(b.again))
	pieces = slices.Clone(b.again[:n])
	b.again = b.again[n:]
	for len(b.waiting) > 0 {
		d := b.waiting[0]
		left := len(d.Tasks) - d.taken
		if room := limit - len(pieces); room < left {
			if len(pieces) > 0 || room == 0 {
				break
			}
			left, d.late = room, true
		}
		for range left {
			pieces = append(pieces, piece{delivery: d, id: d.Tasks[d.taken], seq: d.ClaimSeqs[d.taken]})
			d.taken++
		}
		if d.taken == len(d.Tasks) {
			b.waiting = b.waiting[1:]
		}
	}
	return pieces
}

// tasks returns how many tasks are there to be taken.
func (b *inbox) tasks() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range b.waiting {
		n += len(d.Tasks) - d.taken
	}
	return n + len(b.again)
}

// oldest returns for how long the oldest ticket has been here that nobody could claim; 0 if there is none.
func (b *inbox) oldest() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) > 0 {
		return time.Since(b.waiting[0].came)
	}
	if len(b.again) > 0 {
		return time.Since(b.again[0].came)
	}
	return 0
}

// live reports whether deliveries of the feed can still be settled.
func (b *inbox) live(f *feed) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.feed == f
}

// done notes that it is known of these pieces what to do, and returns the deliveries of which that was the last piece.
func (b *inbox) done(pieces []piece) (over []*delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range pieces {
		if p.open--; p.open == 0 && !p.back {
			over = append(over, p.delivery)
		}
	}
	return over
}

// mark changes deliveries.
func (b *inbox) mark(pieces []piece, change func(*delivery)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range pieces {
		change(p.delivery)
	}
}

// clear removes what is waiting and returns the tags, so that others get the tickets. One that is claimed in part goes back as well: whoever
// gets it finds its other tasks running.
func (b *inbox) clear(f *feed) (tags []uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.feed != f {
		return nil
	}
	giveBack := func(d *delivery) {
		if !d.back {
			d.back = true
			tags = append(tags, d.tag)
		}
	}
	for _, d := range b.waiting {
		giveBack(d)
	}
	for _, p := range b.again {
		giveBack(p.delivery)
	}
	b.waiting, b.again = nil, nil
	return tags
}

// unfed returns for how long there has been no feed.
func (b *inbox) unfed() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.feed != nil {
		return 0
	}
	return time.Since(b.lost)
}
