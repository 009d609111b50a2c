package nodes

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

// serverEnv names the server to use instead of one of our own.
const serverEnv = "OPSCORE_TEST_DATABASE_URL"

// Shared by all tests of a process, for a server is too dear to start for each: the server, ended by its guard when the
// process ends, and what became of each template. Nothing else may use them.
var (
	sharedServer    = sync.OnceValues(func() (*Postgres, error) { return StartPostgres(context.Background()) })
	sharedTemplates sync.Map // of its name to a func() (database string, err error) that makes it
)

// Database returns the URL of a database of the test's own, dropped when the test ends with whoever is connected to it. It is a
// copy of the template of that name, which is an empty database that migrate was called on, once per process.
//
// It is on a server that all tests of the process share. If OPSCORE_TEST_DATABASE_URL is set it is on that server
// instead, and migrate is called on the database itself, so that nothing remains there but what a killed test leaves: databases
// called opscore_test_….
func Database(t testing.TB, template string, migrate func(url string) error) string {
	t.Helper()
	at, drop, err := NewDatabase(template, migrate)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := drop(); err != nil {
			t.Error(err)
		}
	})
	return at
}

// NewDatabase is [Database] for examples, which have no test.
func NewDatabase(template string, migrate func(url string) error) (at string, drop func() error, err error) {
	name, server, from := randomName(), os.Getenv(serverEnv), "template0"
	if server == "" {
		p, err := sharedServer()
		if err != nil {
			return "", nil, err
		}
		server = p.URL("postgres")
		made, _ := sharedTemplates.LoadOrStore(template, sync.OnceValues(func() (string, error) {
			database := randomName()
			return database, createDatabase(server, database, from, migrate)
		}))
		if from, err = made.(func() (string, error))(); err != nil {
			return "", nil, fmt.Errorf("make the template %s: %w", template, err)
		}
		migrate = nil
	}
	drop = func() error { return execOn(server, "DROP DATABASE IF EXISTS "+quote(name)+" WITH (FORCE)") }
	if at, err = on(server, name); err != nil {
		return "", nil, err
	}
	if err := createDatabase(server, name, from, migrate); err != nil {
		return "", nil, errors.Join(err, drop())
	}
	return at, drop, nil
}

func randomName() string {
	return "opscore_test_" + strings.ToLower(rand.Text())
}

// createDatabase creates a database and, unless it is nil, calls migrate on it.
func createDatabase(server, name, template string, migrate func(url string) error) error {
	at, err := on(server, name)
	if err != nil {
		return err
	}
	if err := execOn(server, "CREATE DATABASE "+quote(name)+" TEMPLATE "+quote(template)); err != nil || migrate == nil {
		return err
	}
	if err := migrate(at); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// on returns the URL of another database of the server.
func on(server, database string) (string, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return "", errors.New("read " + serverEnv + ": want postgres://user:password@host:port/database")
	}
	u.Path = "/" + database
	return u.String(), nil
}

func quote(name string) string {
	return pgx.Identifier{name}.Sanitize()
}

// execOn executes a statement on a connection of its own.
func execOn(server, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	if err != nil {
		err = fmt.Errorf("%s: %w", sql, err)
	}
	return errors.Join(err, conn.Close(ctx))
}
