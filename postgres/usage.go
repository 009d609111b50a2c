package postgres

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/opscore/opscore"
)

// usage knows who has the pool's connections and who waits for one: handlers may hold them all, and then nothing can be claimed.
type usage struct {
	mu      sync.Mutex
	held    map[*pgx.Conn]holding
	waiting map[*time.Time]bool
}

// holding is since when somebody has a connection, and who.
type holding struct {
	since   time.Time
	callers [24]uintptr
}

func newUsage() *usage {
	return &usage{held: map[*pgx.Conn]holding{}, waiting: map[*time.Time]bool{}}
}

// attach makes the pool tell of its connections. The pool takes whoever traces its connections for that; the connections themselves are not traced.
func (u *usage) attach(config *pgxpool.Config) {
	config.ConnConfig.Tracer = u
	config.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		c.Tracer = nil
		return nil
	}
}

// TraceQueryStart implements [pgx.QueryTracer].
func (*usage) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

// TraceQueryEnd implements [pgx.QueryTracer].
func (*usage) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

type waitKey struct{}

// TraceAcquireStart implements [pgxpool.AcquireTracer].
func (u *usage) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	since := time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.waiting[&since] = true
	return context.WithValue(ctx, waitKey{}, &since)
}

// TraceAcquireEnd implements [pgxpool.AcquireTracer].
func (u *usage) TraceAcquireEnd(ctx context.Context, _ *pgxpool.Pool, data pgxpool.TraceAcquireEndData) {
	h := holding{since: time.Now()}
	runtime.Callers(3, h.callers[:])
	since, _ := ctx.Value(waitKey{}).(*time.Time)
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.waiting, since)
	if data.Conn != nil {
		u.held[data.Conn] = h
	}
}

// TraceRelease implements [pgxpool.ReleaseTracer].
func (u *usage) TraceRelease(_ *pgxpool.Pool, data pgxpool.TraceReleaseData) { u.forget(data.Conn) }

// forget takes note that the pool does not have the connection any more, or has it back.
func (u *usage) forget(conn *pgx.Conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.held, conn)
}

// patience is how long it may take to get a connection of the pool.
const patience = time.Second

// check says whether there are connections left.
func (u *usage) check(stat *pgxpool.Stat, now time.Time) opscore.Check {
	u.mu.Lock()
	defer u.mu.Unlock()
	c := opscore.Check{Name: opscore.CheckPool, State: opscore.CheckOK}
	for since := range u.waiting {
		if c.Since.IsZero() || since.Before(c.Since) {
			c.Since = *since
		}
	}
	waits := now.Sub(c.Since).Round(100 * time.Millisecond)
	if stat.AcquiredConns() < stat.MaxConns() || c.Since.IsZero() || waits < patience {
		c.Since = time.Time{}
		return c
	}
	c.State, c.Since = opscore.CheckDegraded, c.Since.UTC()
	c.Text = fmt.Sprintf("%d of %d connections in use, %d wait for one, the first for %s", stat.AcquiredConns(), stat.MaxConns(), len(u.waiting), waits)
	if len(u.held) > int(stat.MaxConns()) {
		return c // some were taken out of the pool for good: who has those of the pool is not known
	}
	var longest holding
	for _, h := range u.held {
		if longest.since.IsZero() || h.since.Before(longest.since) {
			longest = h
		}
	}
	if by := longest.by(); by != "" {
		c.Text += fmt.Sprintf("; one has been held for %s, by %s", now.Sub(longest.since).Round(100*time.Millisecond), by)
	}
	return c
}

// by names the function that has the connection: the first one that is not the driver's.
func (h holding) by() string {
	frames := runtime.CallersFrames(h.callers[:])
	for {
		f, more := frames.Next()
		if f.Function != "" && !strings.HasPrefix(f.Function, "github.com/jackc/") {
			return fmt.Sprintf("%s (%s:%d)", f.Function, filepath.Base(f.File), f.Line)
		}
		if !more {
			return ""
		}
	}
}

// Checks implements [opscore.Checked]: it says whether the pool has connections left.
func (s *Store) Checks() []opscore.Check {
	return []opscore.Check{s.usage.check(s.pool.Stat(), time.Now())}
}
