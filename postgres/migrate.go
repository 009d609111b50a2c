package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/opscore/opscore"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrate brings the schema at url up to date, and creates it if it is missing. Several may run at once. It
// waits at most 5 s at a time for a lock that others hold on a table, and tries again, so that it never blocks the
// queries behind it for longer. It needs the rights of the schema's owner and a direct connection, not a
// transaction-pooling proxy.
func Migrate(ctx context.Context, url string, o Options) error {
	s, err := connect(ctx, url, o)
	if err != nil {
		return err
	}
	defer s.Close()
	for try := 1; ; try++ {
		err := s.migrate(ctx)
		if err == nil || try == 5 || !strings.Contains(err.Error(), "55P03") { // lock_not_available
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}

func (s *Store) migrate(ctx context.Context) (err error) {
	config := s.pool.Config().ConnConfig.Copy()
	config.RuntimeParams["lock_timeout"] = "5s"
	config.RuntimeParams["search_path"] = s.schema // where goose looks for its table
	db := stdlib.OpenDB(*config)
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(2) // goose, and the lock
	lock, err := db.Conn(ctx)
	if err != nil {
		return unavailable("migrate", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if _, err := lock.ExecContext(ctx, "SELECT pg_advisory_lock(hashtext($1))", "opscore migrate "+s.schema); err != nil {
		return unavailable("wait for another migration", err)
	}
	st, err := s.status(ctx)
	if err == nil {
		err = s.newer(st)
	}
	if err != nil {
		return err
	}
	if _, err := lock.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS "+s.schema); err != nil {
		return unavailable("create the schema", err)
	}
	all, err := migrationsFor(s.schema)
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, nil, goose.WithGoMigrations(all...),
		goose.WithTableName("version"), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return unavailable("migrate", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return unavailable("migrate", err)
	}
	return nil
}

// migrationsFor returns the migrations with the schema's name put in.
func migrationsFor(schema string) ([]*goose.Migration, error) {
	var all []*goose.Migration
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return nil, err
		}
		text, err := migrations.ReadFile(name)
		if err != nil {
			return nil, err
		}
		up, down, _ := strings.Cut(inSchema(string(text), schema), "-- +goose Down")
		all = append(all, goose.NewGoMigration(version, statements(up), statements(down)))
	}
	return all, nil
}

func statements(text string) *goose.GoFunc {
	return &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, text)
		return err
	}}
}

// SchemaStatus says where a schema stands.
type SchemaStatus struct {
	Current int64 `json:"current"` // of the database; 0 if it has none yet
	Target  int64 `json:"target"`  // of this binary
}

// Status reads the schema's version without changing anything.
func Status(ctx context.Context, url string, o Options) (SchemaStatus, error) {
	s, err := connect(ctx, url, o)
	if err != nil {
		return SchemaStatus{}, err
	}
	defer s.Close()
	return s.status(ctx)
}

func (s *Store) status(ctx context.Context) (st SchemaStatus, err error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return st, err
	}
	for _, name := range names {
		v, err := goose.NumericComponent(name)
		if err != nil {
			return st, err
		}
		st.Target = max(st.Target, v)
	}
	var exists bool
	if err := s.pool.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", s.schema+".version").Scan(&exists); err != nil {
		return st, unavailable("read schema version", err)
	}
	if !exists {
		return st, nil
	}
	err = s.pool.QueryRow(ctx, "SELECT coalesce(max(version_id), 0) FROM "+s.schema+".version").Scan(&st.Current)
	if err != nil {
		return st, unavailable("read schema version", err)
	}
	return st, nil
}

// newer refuses a schema that this binary does not know.
func (s *Store) newer(st SchemaStatus) error {
	if st.Current <= st.Target {
		return nil
	}
	return &opscore.Error{Code: opscore.CodeUnavailable, Message: fmt.Sprintf(
		"schema %s has version %d, but this binary knows only up to %d: use a newer opscore; nothing was changed", s.schema, st.Current, st.Target)}
}

// remedy is the command that brings this schema up to date.
func (s *Store) remedy() string {
	command := "opscore migrate up"
	if name := strings.Trim(s.schema, `"`); name != DefaultSchema {
		command += " --schema " + name
	}
	return command
}

// check refuses a schema that this binary does not know, and one that says it is right but lacks a column.
func (s *Store) check(ctx context.Context) error {
	st, err := s.status(ctx)
	if err != nil {
		return err
	}
	if st.Current < st.Target {
		return &opscore.Error{Code: opscore.CodeUnavailable, Message: fmt.Sprintf(
			"schema %s has version %d, this binary needs %d: run `%s`", s.schema, st.Current, st.Target, s.remedy())}
	}
	if err := s.newer(st); err != nil {
		return err
	}
	for _, probe := range []string{
		"SELECT " + head + ", t.args, t.result FROM opscore.task t LIMIT 0",
		"SELECT task, claim_seq, worker, build, started_at, ended_at, code, error, late FROM opscore.attempt LIMIT 0",
		"SELECT task, claim_seq, at, level, text FROM opscore.log LIMIT 0",
		`SELECT id, host, pid, build, queues, actors, slots, state, started_at, last_beat, beats, lease_until, gone_at, cause
			FROM opscore.worker LIMIT 0`,
		"SELECT queue, at, by, comment FROM opscore.pause LIMIT 0",
	} {
		if _, err := s.pool.Exec(ctx, s.sql(probe)); err != nil {
			return unavailable(fmt.Sprintf("schema %s says it has version %d, but cannot be used", s.schema, st.Current), err)
		}
	}
	return nil
}
