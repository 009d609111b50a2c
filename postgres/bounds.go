package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/opscore/opscore"
)

// A firewall, a proxy or a host that has died may keep a connection open and pass nothing on any more. Nobody tells, so whoever waits for
// an answer needs a limit of its own.
const (
	statementFor = 30 * time.Second           // for a statement of the store's; what tasks wait for has less
	recordFor    = 2 * opscore.HeartbeatEvery // for outcomes
	pingFor      = 2 * time.Second            // for a connection that was idle to show that it lives
	closeFor     = 2 * time.Second            // for a connection, or all, to end in good order
)

var errStuck = errors.New("the database does not answer")

// within gives what is done in ctx no more time than d.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, errStuck)
}

// pool is a pool whose statements end in time, and when the store closes.
type pool struct {
	limited
	plainPool
}

// plainPool and plainTx have their methods one level down, where those of limited come first.
type (
	plainPool struct{ *pgxpool.Pool }
	plainTx   struct{ pgx.Tx }
)

func newPool(ctx, over context.Context, config *pgxpool.Config) (*pool, error) {
	if config.PingTimeout == 0 {
		config.PingTimeout = pingFor
	}
	config.BeforeClose = hasten
	all, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return &pool{limited{all, &bounds{all, over}}, plainPool{all}}, nil
}

// hasten bounds the good-byes of a connection whose statement was given up: the driver waits 15 s for them, in which the connection
// counts as one of the pool's.
func hasten(c *pgx.Conn) {
	if c.IsClosed() {
		time.AfterFunc(closeFor, func() { _ = c.PgConn().Conn().Close() })
	}
}

// Begin begins a transaction whose statements end in time as well.
func (p *pool) Begin(ctx context.Context) (pgx.Tx, error) { return p.begin(ctx, p.Pool.Begin) }

// bounds are the limits of what runs on a pool.
type bounds struct {
	pool *pgxpool.Pool
	over context.Context // ends when the store closes
}

// limit begins to count. end must be called when there is nothing more to wait for.
func (b *bounds) limit(ctx context.Context) (bounded context.Context, end func()) {
	ctx, cancel := within(ctx, statementFor)
	unhook := context.AfterFunc(b.over, cancel)
	return ctx, func() {
		if errors.Is(context.Cause(ctx), errStuck) {
			if s := b.pool.Stat(); s.AcquiredConns() < s.MaxConns() {
				b.pool.Reset() // it did not wait for others to give a connection back: the rest may be as dead as this one
			}
		}
		unhook()
		cancel()
	}
}

// limited statements run on a pool or in a transaction.
type limited struct {
	on querier
	*bounds
}

func (s limited) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	ctx, end := s.limit(ctx)
	defer end()
	return s.on.Exec(ctx, sql, args...)
}

func (s limited) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	ctx, end := s.limit(ctx)
	rows, err := s.on.Query(ctx, sql, args...)
	if err != nil {
		end()
		return nil, err
	}
	return limitedRows{rows, end}, nil
}

func (s limited) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	ctx, end := s.limit(ctx)
	return limitedRow{s.on.QueryRow(ctx, sql, args...), end}
}

func (s limited) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	ctx, end := s.limit(ctx)
	return limitedBatch{s.on.SendBatch(ctx, b), end}
}

func (s limited) begin(ctx context.Context, begin func(context.Context) (pgx.Tx, error)) (pgx.Tx, error) {
	ctx, end := s.limit(ctx)
	defer end()
	tx, err := begin(ctx)
	if err != nil {
		return nil, err
	}
	return limitedTx{limited{tx, s.bounds}, plainTx{tx}}, nil
}

type limitedRows struct {
	pgx.Rows
	end func()
}

func (r limitedRows) Close() {
	r.Rows.Close()
	r.end()
}

type limitedRow struct {
	pgx.Row
	end func()
}

func (r limitedRow) Scan(dest ...any) error {
	defer r.end()
	return r.Row.Scan(dest...)
}

type limitedBatch struct {
	pgx.BatchResults
	end func()
}

func (b limitedBatch) Close() error {
	defer b.end()
	return b.BatchResults.Close()
}

type limitedTx struct {
	limited
	plainTx
}

func (t limitedTx) Begin(ctx context.Context) (pgx.Tx, error) { return t.begin(ctx, t.Tx.Begin) }

func (t limitedTx) Commit(ctx context.Context) error {
	ctx, end := t.limit(ctx)
	defer end()
	return t.Tx.Commit(ctx)
}

func (t limitedTx) Rollback(ctx context.Context) error {
	ctx, end := t.limit(ctx)
	defer end()
	return t.Tx.Rollback(ctx)
}
