package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore/internal/nodes"
)

// server is one private PostgreSQL server for all measurements of a run, and one RabbitMQ node, each started when the first of them needs it.
type server struct {
	postgres  *nodes.Postgres
	databases int
	rabbitmq  *nodes.RabbitMQ
	vhosts    int
}

func (s *server) start(ctx context.Context) error {
	if s.postgres != nil {
		return nil
	}
	p, err := nodes.StartPostgres(ctx)
	s.postgres = p
	return err
}

func (s *server) close() error {
	var err error
	if s.rabbitmq != nil {
		err = s.rabbitmq.Close()
	}
	if s.postgres != nil {
		err = errors.Join(err, s.postgres.Close())
	}
	return err
}

// withDatabase calls do with the URL of a new, empty database. To drop it makes the server write out what is left of it, so
// that no measurement pays for the one before.
func (s *server) withDatabase(ctx context.Context, do func(url string) error) (err error) {
	s.databases++
	name := fmt.Sprintf("bench_%d", s.databases)
	if err := s.exec(ctx, "CREATE DATABASE "+name); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, s.exec(context.WithoutCancel(ctx), "DROP DATABASE "+name+" WITH (FORCE)"))
	}()
	return do(s.postgres.URL(name))
}

func (s *server) exec(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, s.postgres.URL("postgres"))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

// describe says what was measured, with the settings that the figures rest on as the server itself reports them.
func (s *server) describe(ctx context.Context) (string, error) {
	conn, err := pgx.Connect(ctx, s.postgres.URL("postgres"))
	if err != nil {
		return "", err
	}
	var settings string
	err = conn.QueryRow(ctx, `SELECT string_agg(name || ' ' || current_setting(name), ', ' ORDER BY name) FROM pg_settings
		WHERE name IN ('server_version', 'fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers')`).Scan(&settings)
	about := fmt.Sprintf("PostgreSQL: %s; River %s", settings, moduleVersion("github.com/riverqueue/river"))
	if s.rabbitmq != nil {
		version, evalErr := s.rabbitmq.Eval(ctx, `list_to_atom(rabbit_misc:version())`)
		about, err = about+"; RabbitMQ "+version, errors.Join(err, evalErr)
	}
	return about, errors.Join(err, conn.Close(ctx))
}

func moduleVersion(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == path {
				return m.Version
			}
		}
	}
	return "of unknown version"
}
