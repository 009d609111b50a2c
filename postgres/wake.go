package postgres

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
)

// waker tells the sources of this process that a task may have become due.
type waker struct {
	mu     sync.Mutex
	ch     chan struct{}
	listen sync.Once
	cancel context.CancelFunc
	done   chan struct{}

	notified time.Time   // when the others were told last
	pending  *time.Timer // tells them again at the end of the interval
}

// notifyEvery bounds how often a process tells the others: a commit that notifies takes a lock of the whole server.
const notifyEvery = 20 * time.Millisecond

func (w *waker) init() { w.ch = make(chan struct{}) }

func (w *waker) all() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.ch)
	w.ch = make(chan struct{})
}

func (w *waker) close() {
	w.mu.Lock()
	if w.pending != nil {
		w.pending.Stop()
	}
	cancel, done := w.cancel, w.done
	w.mu.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
}

// Wake implements [opscore.Waker]. The first call starts to listen to other processes.
func (s *Store) Wake() <-chan struct{} {
	w := &s.wake
	w.listen.Do(func() {
		ctx, cancel := context.WithCancel(context.Background())
		w.mu.Lock()
		w.cancel, w.done = cancel, make(chan struct{})
		w.mu.Unlock()
		go func() {
			defer close(w.done)
			s.listenAll(ctx)
		}()
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ch
}

// listenAll hears the other processes. It is only speed: where it cannot listen, as behind a proxy, sources see new tasks at
// their next poll.
func (s *Store) listenAll(ctx context.Context) {
	for ctx.Err() == nil {
		if errors.Is(s.listenOnce(ctx), errProxied) {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// errProxied says that the connection may lead to another of the server's processes at any time. The one that listens would
// talk to whoever gets it next.
var errProxied = errors.New("a proxy pools the connections")

func (s *Store) listenOnce(ctx context.Context) error {
	pooled, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	limited, cancel := within(ctx, opscore.HeartbeatEvery)
	defer cancel()
	var pid uint32
	if err := pooled.QueryRow(limited, "SELECT pg_backend_pid()").Scan(&pid); err != nil || pid != pooled.Conn().PgConn().PID() {
		pooled.Release()
		return cmp.Or(err, errProxied)
	}
	conn := pooled.Hijack() // a connection of its own: it listens for good
	s.usage.forget(conn)
	defer func() {
		ending, cancel := within(context.WithoutCancel(ctx), closeFor)
		defer cancel()
		_ = conn.Close(ending)
	}()
	if _, err := conn.Exec(limited, "LISTEN "+s.channel()); err != nil {
		return err
	}
	for {
		if err := s.hear(ctx, conn); err != nil {
			return err
		}
		s.wake.all()
	}
}

// hear waits for a notification. A connection that says nothing for long is asked whether it still lives.
func (s *Store) hear(ctx context.Context, conn *pgx.Conn) error {
	for {
		quiet, cancel := context.WithTimeout(ctx, statementFor)
		_, err := conn.WaitForNotification(quiet)
		cancel()
		if err == nil || ctx.Err() != nil || conn.IsClosed() {
			return err
		}
		ping, cancel := within(ctx, pingFor)
		err = conn.Ping(ping)
		cancel()
		if err != nil {
			return err
		}
	}
}

// channel is the name of the notifications, one per schema.
func (s *Store) channel() string { return s.schema }

// notify tells the other processes, at once or, if it has just done so, at the end of the interval.
func (s *Store) notify() {
	w := &s.wake
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pending != nil {
		return
	}
	w.pending = time.AfterFunc(max(0, notifyEvery-time.Since(w.notified)), func() {
		w.mu.Lock()
		w.pending, w.notified = nil, time.Now()
		w.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		// If it fails the others see the tasks at their next poll.
		_, _ = s.pool.Exec(ctx, "NOTIFY "+s.channel())
	})
}
