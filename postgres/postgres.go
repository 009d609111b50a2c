// Package postgres is the store in PostgreSQL: the tiers that more than one machine shares.
package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/opscore/opscore"
)

// Store is a [opscore.Store] in one schema of a PostgreSQL database. Any number of processes may share it.
type Store struct {
	schema   string
	pool     *pool
	beats    *pool // one connection for heartbeats: a busy pool must not cost the lease
	wake     waker
	lanes    lanes
	outgoing outgoing
	replay   replay
	full     fullness
	usage    *usage // of the pool
	log      *slog.Logger
	end      context.CancelFunc // ends what is under way

	maxOrphans int

	mu       sync.Mutex
	texts    map[string]string // of statements, with the schema's name put in
	observed observations
}

var (
	_ opscore.Store     = (*Store)(nil)
	_ opscore.Waker     = (*Store)(nil)
	_ opscore.Discarder = (*Store)(nil)

	_ opscore.Checked = (*Store)(nil)
)

// Options change how a database is used; the zero value is the default.
type Options struct {
	Schema     string       // that holds the tables; empty means opscore
	MaxOrphans int          // that are kept; 0 means [opscore.MaxOrphans]
	Log        *slog.Logger // nil means [slog.Default]
}

// DefaultSchema is the schema that holds the tables unless told otherwise.
const DefaultSchema = "opscore"

var schemaRule = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)

// ValidSchema checks a name for [Options]. The error is [opscore.ErrInvalid] and says what a name may be.
func ValidSchema(name string) error {
	if !schemaRule.MatchString(name) {
		return &opscore.Error{Code: opscore.CodeInvalid, Message: "a name starts with a letter or _ and has up to 63 letters, digits and _"}
	}
	return nil
}

// schema returns the name as statements have it.
func (o Options) schema() (quoted string, err error) {
	name := cmp.Or(o.Schema, DefaultSchema)
	if err := ValidSchema(name); err != nil {
		return "", fmt.Errorf("schema %q: %w", name, err)
	}
	return pgx.Identifier{name}.Sanitize(), nil
}

// Open connects to the database that url names (see pgx for what it may hold) and checks that its schema is the one
// this binary knows: [Migrate] makes it so. An encrypted connection that would silently fall back to plain text is
// refused unless the server is on this machine. Errors are [opscore.ErrUnavailable] and never hold a password.
func Open(ctx context.Context, url string, o Options) (*Store, error) {
	s, err := connect(ctx, url, o)
	if err != nil {
		return nil, err
	}
	if err := s.check(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// connectTimeout is how long a server is waited for that accepts the connection and says nothing, unless the URL or PGCONNECT_TIMEOUT says otherwise.
const connectTimeout = 15 * time.Second

func connect(ctx context.Context, url string, o Options) (*Store, error) {
	schema, err := o.schema()
	if err != nil {
		return nil, err
	}
	config, err := parseConfig(url)
	if err != nil {
		return nil, err
	}
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = "opscore"
	}
	s := &Store{
		schema: schema, texts: map[string]string{}, lanes: lanes{fronts: map[lane]front{}},
		outgoing: outgoing{cursors: map[lane]cursor{}}, replay: replay{beats: map[opscore.ID]int64{}}, log: o.logger(),
		maxOrphans: cmp.Or(o.MaxOrphans, opscore.MaxOrphans), usage: newUsage(),
	}
	over, end := context.WithCancel(context.WithoutCancel(ctx))
	s.end = end
	config.AfterConnect = s.connected
	s.wake.init()
	single := config.Copy()
	single.MaxConns, single.MinConns = 1, 0
	s.usage.attach(config)
	if s.pool, err = newPool(ctx, over, config); err != nil {
		end()
		return nil, unavailable("connect", err)
	}
	if s.beats, err = newPool(ctx, over, single); err != nil {
		end()
		s.pool.Close()
		return nil, unavailable("connect", err)
	}
	if err := s.pool.Ping(ctx); err != nil {
		s.Close()
		return nil, unavailable("connect to "+address(config.ConnConfig), err)
	}
	return s, nil
}

// parseConfig reads the URL, and refuses what would go wrong without a word.
func parseConfig(url string) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, &opscore.Error{Code: opscore.CodeInvalid, Message: "database URL: " + redacted(err)}
	}
	if err := refuseDowngrade(config.ConnConfig); err != nil {
		return nil, err
	}
	if err := refuseMode(config.ConnConfig.DefaultQueryExecMode); err != nil {
		return nil, err
	}
	config.ConnConfig.ConnectTimeout = cmp.Or(config.ConnConfig.ConnectTimeout, connectTimeout)
	return config, nil
}

// refuseDowngrade refuses what sslmode=prefer and allow do with a server elsewhere: try without encryption as well.
func refuseDowngrade(c *pgx.ConnConfig) error {
	hosts := []*pgconn.FallbackConfig{{Host: c.Host, TLSConfig: c.TLSConfig}}
	for _, f := range append(hosts, c.Fallbacks...) {
		if f.TLSConfig == nil && !local(f.Host) {
			// sslmode=disable has no encrypted variant at all: it was asked for, in so many words.
			if c.TLSConfig == nil && !encryptedFallback(c.Fallbacks) {
				continue
			}
			return &opscore.Error{Code: opscore.CodeInvalid, Message: fmt.Sprintf(
				"database at %s: sslmode prefer or allow may end up without encryption and not say so; use sslmode=verify-full "+
					"(or require), or sslmode=disable if plain text is what you want", f.Host[strings.LastIndex(f.Host, "@")+1:])} // a password with an @ looks like a part of it
		}
	}
	return nil
}

// refuseMode refuses the modes that do not learn the types of parameters from the server: arrays of ids cannot be sent in them.
func refuseMode(mode pgx.QueryExecMode) error {
	if mode == pgx.QueryExecModeExec || mode == pgx.QueryExecModeSimpleProtocol {
		return &opscore.Error{Code: opscore.CodeInvalid, Message: fmt.Sprintf(
			"database URL: default_query_exec_mode %s does not work here; behind a transaction-pooling proxy use cache_describe",
			strings.ReplaceAll(mode.String(), " ", "_"))}
	}
	return nil
}

func encryptedFallback(fallbacks []*pgconn.FallbackConfig) bool {
	for _, f := range fallbacks {
		if f.TLSConfig != nil {
			return true
		}
	}
	return false
}

func local(host string) bool {
	return strings.HasPrefix(host, "/") || host == "localhost" || host == "::1" || strings.HasPrefix(host, "127.")
}

func address(c *pgx.ConnConfig) string {
	return fmt.Sprintf("%s:%d, database %s", c.Host, c.Port, c.Database)
}

// Close ends the connections. Workers, keepers and clients of the store must have stopped: what is under way ends with an error, and a
// connection that somebody does not give back, such as a handler that ignores its cancelled context, is not waited for long.
func (s *Store) Close() {
	s.end()
	s.wake.close()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		s.beats.Close()
		s.pool.Close()
	}()
	select {
	case <-closed:
	case <-time.After(2 * closeFor):
	}
}

// Pool returns the connections, for the caller's own transactions.
func (s *Store) Pool() *pgxpool.Pool { return s.pool.Pool }

// sql puts the schema's name into a statement, which says opscore.
func (s *Store) sql(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	named, ok := s.texts[text]
	if !ok {
		named = inSchema(text, s.schema)
		s.texts[text] = named
	}
	return named
}

func inSchema(text, schema string) string { return strings.ReplaceAll(text, "opscore.", schema+".") }

// querier is what statements run on: a pool, a connection or a transaction.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// each runs a query and calls scan for each of its rows.
func each(ctx context.Context, q querier, scan func(pgx.Rows) error, sql string, args ...any) error {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	return scanAll(rows, scan)
}

func scanAll(rows pgx.Rows, scan func(pgx.Rows) error) error {
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// steer keeps the planner, for one transaction, to the plans that the indexes are made for, and from making them anew each time. A
// plan that was made while there were few tasks reads all of them, and a connection keeps it until the next vacuum: a queue is the
// table whose statistics are always wrong.
const steer = `SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
	set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
	set_config('plan_cache_mode', 'force_generic_plan', true)`

// steered is each for the statements whose plan decides how fast tasks flow; both go to the server together. sql says opscore.
func (s *Store) steered(ctx context.Context, q querier, scan func(pgx.Rows) error, sql string, args ...any) error {
	b := &pgx.Batch{}
	b.Queue(steer)
	b.Queue(s.sql(sql), args...).Query(func(rows pgx.Rows) error { return scanAll(rows, scan) })
	return q.SendBatch(ctx, b).Close()
}

// transact runs do in a transaction of the pool's.
func (s *Store) transact(ctx context.Context, what string, do func(pgx.Tx) error) error {
	if err := pgx.BeginFunc(ctx, s.pool, do); err != nil {
		return unavailable(what, err)
	}
	return nil
}

// unprepared is what a proxy does that gives each transaction another connection.
const unprepared = "prepared statements get lost or mixed up between us and the server, as behind a transaction-pooling proxy: " +
	"add default_query_exec_mode=cache_describe to the database URL"

// causes says in words what PostgreSQL's errors mean for whoever runs the tasks, and what helps.
var causes = map[string]string{
	"42P01": "a table is missing: run `opscore migrate up`",
	"42703": "a column is missing: run `opscore migrate up`",
	"3F000": "the schema is missing: run `opscore migrate up`",
	"26000": unprepared,
	"42P05": unprepared,
	"42501": "the role lacks a permission: see docs/operations/postgres.md for the grants",
	"28P01": "the password is wrong",
	"28000": "the server does not let this role in",
	"3D000": "the database does not exist",
	"53100": "the server's disk is full: nothing is lost, work goes on when there is space",
	"53300": "the server has no connection left",
	"25006": "the database is read-only: a standby, or default_transaction_read_only",
	"57P01": "the server is shutting down",
	"57P03": "the server is starting up or shutting down",
}

// unavailable wraps an error of the database; errors that have a code of ours already, and ended contexts, stay as
// they are.
func unavailable(what string, err error) error {
	if err == nil || opscore.CodeOf(err) != "" || errors.Is(err, context.Canceled) {
		return err
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		if cause, ok := causes[pg.Code]; ok {
			what += ": " + cause
		}
	}
	return &opscore.Error{Code: opscore.CodeUnavailable, Message: what, Err: secretless{err}}
}

// secretless is an error whose text holds no password.
type secretless struct{ err error }

func (e secretless) Error() string { return redacted(e.err) }
func (e secretless) Unwrap() error { return e.err }

var (
	userinfo = regexp.MustCompile(`://\S*@`) // to the last @: a password may have one
	password = regexp.MustCompile(`(password\s*=\s*)('[^']*'|\S+)`)
	keywords = regexp.MustCompile("cannot parse `[^:`]*=.*`") // a value may have escapes: nothing of it is shown
)

func redacted(err error) string {
	line := strings.Join(strings.Fields(err.Error()), " ") // pgx breaks lines
	line = keywords.ReplaceAllString(line, "cannot parse the connection string")
	return password.ReplaceAllString(userinfo.ReplaceAllString(line, "://…@"), "${1}…")
}

func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}
