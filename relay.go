package opscore

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// The relay keeps a small window of tickets in the broker, so that priority, pause and cancellation stay true.
const (
	windowFor     = 500 * time.Millisecond    // of work at the rate at which the queue's tasks are taken
	windowPerSlot = 2                         // at least, of the live workers
	listenersFor  = time.Second               // how long the relay believes what it has read in the registry
	relayRest     = 5                         // looking for due queues takes at most one part in so many of the time
	ticketFor     = 10 * time.Millisecond     // a ticket names as many tasks as are taken in this time
	guessPerSlot  = 10                        // tasks a second, until it is known
	forgetAfter   = TicketFor + 2*time.Second // for as long, what is lost is left to workers that pull: a new ticket may be lost as well
)

// relay turns due tasks into tickets. Any number may run: whoever comes first to a queue serves it.
type relay struct {
	store     Store
	outbox    Outbox
	publisher Publisher
	log       *slog.Logger

	mu        sync.Mutex
	listeners map[string]listeners // by queue
	read      time.Time
	lines     map[string]*line
	wg        sync.WaitGroup
}

// listeners are the live workers of a queue.
type listeners struct {
	workers, slots int
	least          int      // slots of the worker that has the fewest
	actors         []string // that all of them know: a ticket may come to any
}

func (k *Keeper) newRelay(outbox Outbox) *relay {
	return &relay{store: k.Store, outbox: outbox, publisher: k.Publisher, log: cmp.Or(k.Log, slog.Default()), lines: map[string]*line{}}
}

// run looks for queues with due tasks, when it is woken or has not for pollEvery, and has a goroutine for each.
func (r *relay) run(ctx context.Context) {
	defer r.wg.Wait()
	waker, _ := r.store.(Waker)
	failed := false
	for ctx.Err() == nil {
		var woken <-chan struct{}
		if waker != nil {
			woken = waker.Wake() // taken before the look, so that nothing that comes after it is missed
		}
		began := time.Now()
		err := r.look(ctx)
		if err != nil && ctx.Err() == nil && !failed {
			r.log.Error("cannot look for due tasks; workers pull meanwhile", "error", err)
		}
		failed = err != nil
		pause(ctx, relayRest*time.Since(began))
		timer := time.NewTimer(pollEvery)
		select {
		case <-ctx.Done():
		case <-woken:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// look wakes the lines of the queues that have due tasks and somebody to run them.
func (r *relay) look(ctx context.Context) error {
	if !r.publisher.Ready() {
		return nil
	}
	queues, err := r.outbox.Due(ctx)
	if err != nil || len(queues) == 0 {
		return err
	}
	if err := r.readListeners(ctx, queues); err != nil {
		return err
	}
	for _, q := range queues {
		if _, heard := r.listening(q); heard {
			r.line(ctx, q).kick()
		}
	}
	return nil
}

// readListeners reads the registry, unless it has just done so. It believes for longer that a queue has listeners than that it has none.
func (r *relay) readListeners(ctx context.Context, queues []string) error {
	all := !slices.ContainsFunc(queues, func(q string) bool { _, heard := r.listening(q); return !heard })
	r.mu.Lock()
	fresh := all && time.Since(r.read) < listenersFor
	r.mu.Unlock()
	if fresh {
		return nil
	}
	workers, err := r.store.Workers(ctx, 0)
	if err != nil {
		return err
	}
	byQueue := map[string]listeners{}
	for _, w := range workers {
		if !w.Live || w.State == WorkerDraining {
			continue
		}
		for _, q := range w.Queues {
			l := byQueue[q]
			l.workers, l.slots = l.workers+1, l.slots+w.Slots
			l.least = min(cmp.Or(l.least, w.Slots), w.Slots)
			if l.workers == 1 {
				l.actors = append(slices.Clone(w.Actors), CanaryActor)
			}
			l.actors = slices.DeleteFunc(l.actors, func(a string) bool { return !w.Takes(q, a) })
			byQueue[q] = l
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listeners, r.read = byQueue, time.Now()
	return nil
}

func (r *relay) listening(queue string) (listeners, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ok := r.listeners[queue]
	return l, ok
}

func (r *relay) line(ctx context.Context, queue string) *line {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.lines[queue]
	if l == nil {
		l = &line{relay: r, queue: queue, kicked: make(chan struct{}, 1)}
		r.lines[queue] = l
		r.wg.Go(func() { l.run(ctx) })
	}
	return l
}

// line is the relay of one queue.
type line struct {
	*relay
	queue  string
	kicked chan struct{}

	out     int       // tasks that were out after the last step
	stepped time.Time // when that was
	rate    float64   // tasks that are taken a second
	checked time.Time // when it last asked the broker what waits there
	failed  bool
}

func (l *line) kick() {
	select {
	case l.kicked <- struct{}{}:
	default: // it will look again anyway
	}
}

// run issues and publishes, from a kick until nothing is due that is not out.
func (l *line) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.kicked:
		}
		for backoff := time.Duration(0); ctx.Err() == nil; {
			again, err := l.step(ctx)
			if err == nil {
				backoff = 0
			} else {
				backoff = min(max(2*backoff, 100*time.Millisecond), HeartbeatEvery)
				l.complain(ctx, err)
				pause(ctx, backoff)
			}
			if !again || !l.publisher.Ready() {
				break
			}
		}
	}
}

// complain logs the first error of a row of them: workers pull, so that no task waits for the broker.
func (l *line) complain(ctx context.Context, err error) {
	if !l.failed && ctx.Err() == nil {
		l.log.Warn("cannot publish tickets; workers pull meanwhile", "queue", l.queue, "error", err)
	}
	l.failed = true
}

// step fills the window and says whether to go on at once.
func (l *line) step(ctx context.Context) (again bool, err error) {
	want, ok := l.want()
	if !ok {
		return false, nil
	}
	issued, err := l.outbox.Issue(ctx, want)
	if err != nil || issued.Busy {
		return err != nil, err
	}
	defer l.forget(ctx, issued.Oldest)
	n := tasksOf(issued.Tickets)
	l.measure(issued.Out, n)
	if n == 0 {
		if issued.Out < want.Window {
			return false, nil // nothing is due that is not out
		}
		pause(ctx, l.rest(want.Window))
		return true, nil
	}
	if err := l.publish(ctx, issued.Tickets); err != nil {
		return true, err
	}
	if l.failed {
		l.failed = false
		l.log.Info("tickets are published again", "queue", l.queue)
	}
	if issued.Out+n >= want.Window {
		pause(ctx, l.rest(want.Window))
	}
	return true, nil
}

func tasksOf(tickets []Ticket) (n int) {
	for i := range tickets {
		n += len(tickets[i].Tasks)
	}
	return n
}

// publish takes back what has not certainly arrived, also when we stop: it must not wait for somebody to notice.
func (l *line) publish(ctx context.Context, tickets []Ticket) error {
	refused, err := l.publisher.Publish(ctx, tickets)
	if len(refused) == 0 {
		return err
	}
	withdrawing, cancel := context.WithTimeout(context.WithoutCancel(ctx), HeartbeatEvery)
	defer cancel()
	for i := range tickets {
		if slices.Contains(refused, tickets[i].ID) {
			l.out -= len(tickets[i].Tasks) // nobody has taken them
		}
	}
	return cmp.Or(err, l.outbox.Withdraw(withdrawing, refused))
}

// want says how much may be out, and in tickets of how many tasks.
func (l *line) want() (Issue, bool) {
	heard, ok := l.listening(l.queue)
	if !ok {
		return Issue{}, false
	}
	rate := l.rate
	if l.stepped.IsZero() {
		rate = float64(guessPerSlot * heard.slots)
	}
	return Issue{
		Queue: l.queue, Actors: heard.actors, Spread: 2 * heard.workers,
		Window: max(int(l.rate*windowFor.Seconds()), windowPerSlot*heard.slots),
		Size:   min(max(int(rate*ticketFor.Seconds()), 1), heard.least, MaxTicket),
	}, true
}

// measure learns from what has been taken since the last step how fast that goes.
func (l *line) measure(out, issued int) {
	now := time.Now()
	if took := now.Sub(l.stepped).Seconds(); l.stepped.IsZero() {
		// Nothing is known yet.
	} else if took < 1 && took > 0 {
		// Weighed by the time that it was observed for, so that free slots that are filled at first do not count for more than the window that they
		// have. When hardly anything is out any more the window was too small: that is learnt faster.
		memory := 0.3
		if 4*out < l.out {
			memory = 0.05
		}
		weight := took / (took + memory)
		l.rate += weight * (float64(max(l.out-out, 0))/took - l.rate)
	} else if took >= 1 {
		l.rate = float64(max(l.out-out, 0)) / took
	}
	l.out, l.stepped = out+issued, now
}

// rest is how long it takes until a quarter of the window is free again.
func (l *line) rest(window int) time.Duration {
	quarter := float64(window) / 4 / max(l.rate, 1)
	return min(max(time.Duration(quarter*float64(time.Second)), time.Millisecond), 50*time.Millisecond)
}

// forget takes back tickets that have been out for long and do not wait in the broker.
func (l *line) forget(ctx context.Context, oldest time.Duration) {
	if oldest <= forgetAfter || time.Since(l.checked) < time.Second {
		return
	}
	l.checked = time.Now()
	waiting, err := l.publisher.Waiting(ctx, l.queue)
	var forgotten int
	if err == nil {
		forgotten, err = l.outbox.Forget(ctx, l.queue, waiting, forgetAfter)
	}
	switch {
	case err != nil:
		l.log.Debug("cannot look for lost tickets", "queue", l.queue, "error", err)
	case forgotten > 0:
		l.stepped = time.Time{} // what has gone now was not taken: the rate stays as it is
		l.log.Warn("tickets got lost: their tasks get new ones", "queue", l.queue, "tickets", forgotten, "waiting", waiting)
	}
}
