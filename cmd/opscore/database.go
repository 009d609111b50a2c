package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/rabbitmq"
	"github.com/opscore/opscore/sqlite"
)

// store is an open database.
type store interface {
	opscore.Store
	io.Closer
}

// database is where the tasks are kept: what --database names.
type database interface {
	// open opens it. The SQLite file is created if it is missing, unless exists forbids it.
	open(ctx context.Context, exists mustExist) (store, error)
	// look opens what exists only to read from it.
	look(ctx context.Context) (store, error)
	// schema compares its schema with that of this binary and changes nothing.
	schema(ctx context.Context) (migration, error)
	// migrate brings its schema up to date.
	migrate(ctx context.Context) error
	// migrationSQL returns what migrate would execute on a schema of that version, without connecting.
	migrationSQL(from int64) (string, error)
	// String names it, without secrets, for people.
	String() string
	// flag is what --database is given to get there; secrets are left out.
	flag() string
}

var urlScheme = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*)://`)

// place returns the database that the configuration names, and whether it is the default one.
func (c *config) place() (db database, isDefault bool, err error) {
	if isPostgres(c.database) {
		return postgresPlace{c.database, c.schema, c.orphans}, false, nil
	}
	path, isDefault, err := c.databasePath()
	if err == nil && c.schema != postgres.DefaultSchema {
		err = usagef("schema (%s) %q: only a postgres:// database has schemas, but the tasks are kept in the file %s", c.origin("schema"), c.schema, path)
	}
	if err == nil && c.broker != "" {
		err = usagef("broker (%s): only tasks in a postgres:// database can be dispatched through RabbitMQ, but they are kept in the file %s", c.origin("broker"), path)
	}
	return sqliteFile(path), isDefault, err
}

func isPostgres(database string) bool {
	return strings.HasPrefix(database, "postgres://") || strings.HasPrefix(database, "postgresql://")
}

// databasePath returns the file that holds the tasks, and whether it is the default one.
func (c *config) databasePath() (path string, isDefault bool, err error) {
	if c.database == "" {
		path, err = defaultDatabase()
		return path, true, err
	}
	path = c.database
	if rest, ok := strings.CutPrefix(path, "sqlite:"); ok {
		path = strings.TrimPrefix(rest, "//")
	} else if redacted := redactDatabase(path); redacted != path || strings.HasPrefix(path, "file:") || path == ":memory:" {
		return "", false, usagef("database %q: accepted: a file path, sqlite:PATH or postgres://HOST/DATABASE", redacted)
	}
	if path, err = atHome(path); err != nil {
		return "", false, usagef("database %q: %s", c.database, err)
	}
	if path == "" || strings.HasSuffix(path, "/") {
		return "", false, usagef("database %q: not a file path", c.database)
	}
	path, err = filepath.Abs(path)
	return path, false, err
}

// atHome returns a path with the home directory in place of the ~ in front.
func atHome(path string) (string, error) {
	rest, ok := strings.CutPrefix(path, "~/")
	if !ok {
		return path, nil
	}
	home := os.Getenv("HOME")
	if home == "" {
		return "", errors.New("HOME is not set; give an absolute path")
	}
	return filepath.Join(home, rest), nil
}

// redactDatabase leaves of a URL or connection string only what cannot be secret.
func redactDatabase(s string) string {
	if strings.HasPrefix(s, "sqlite:") || strings.HasPrefix(s, "/") {
		return s // a path, whatever its directories are called
	}
	if m := urlScheme.FindStringSubmatch(s); m != nil {
		return m[0] + "…"
	}
	if strings.Contains(s, "password=") || strings.Contains(s, "host=") || strings.Contains(s, "dbname=") {
		return "…"
	}
	return s
}

// postgresURL takes a URL apart (scheme, user, servers with the path, parameters) if there is no part of a password outside of its place: one that is not
// escaped may have an @ or a / in it.
var postgresURL = regexp.MustCompile(`^(postgres(?:ql)?://)(?:([^:/?#@]*)(?::[^/?#@]*)?@)?(` + oneServer + `(?:,` + oneServer + `)*(?:/[^?#@]*)?)(?:\?([^#@]*))?$`)

const oneServer = `(?:\[[^]/?#@,]+]|[^]:/?#@,[]*)(?::\d*)?`

var (
	secretName = regexp.MustCompile(`(?i)pass|secret|token|key`)
	paths      = []string{"passfile", "sslkey"} // parameters that are only named like secrets
)

// without returns a postgres:// URL without its password, and without the parameters that are not kept.
func without(text string, kept func(name, value string) bool) string {
	m := postgresURL.FindStringSubmatch(text)
	if m == nil {
		return redactDatabase(text)
	}
	shown := m[1]
	if m[2] != "" {
		shown += m[2] + "@"
	}
	shown += m[3]
	params := slices.DeleteFunc(strings.Split(m[4], "&"), func(pair string) bool {
		name, value, _ := strings.Cut(pair, "=")
		name, err := url.PathUnescape(name) // as who connects does
		return err != nil || name == "" || !kept(name, value)
	})
	if len(params) > 0 {
		shown += "?" + strings.Join(params, "&")
	}
	return shown
}

// withoutPasswords returns broker URLs as they are, but for the passwords.
func withoutPasswords(urls string) string {
	all := strings.Split(urls, ",")
	for i, text := range all {
		u, err := url.Parse(strings.TrimSpace(text))
		if err != nil {
			return rabbitmq.Redacted(urls)
		}
		if u.User != nil {
			u.User = url.User(u.User.Username())
		}
		all[i] = u.String()
	}
	return strings.Join(all, ",")
}

func defaultDatabase() (string, error) {
	state := os.Getenv("XDG_STATE_HOME")
	if state == "" {
		home := os.Getenv("HOME")
		if home == "" {
			return "", usagef("no database is given, and neither XDG_STATE_HOME nor HOME is set to find the default; give --database FILE")
		}
		state = filepath.Join(home, ".local", "state")
	}
	if !filepath.IsAbs(state) {
		return "", usagef("the default database would be in %q, which is not an absolute path; give --database FILE or set XDG_STATE_HOME", state)
	}
	return filepath.Join(state, "opscore", "opscore.db"), nil
}

// sqliteFile is the embedded tier: its absolute path.
type sqliteFile string

func (f sqliteFile) String() string { return string(f) }

func (f sqliteFile) flag() string { return string(f) }

func (f sqliteFile) open(_ context.Context, exists mustExist) (store, error) {
	if exists {
		return f.opened(sqlite.Open)
	}
	s, err := sqlite.Open(string(f))
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (f sqliteFile) look(context.Context) (store, error) { return f.opened(sqlite.Look) }

// opened opens a file that exists.
func (f sqliteFile) opened(by func(path string) (*sqlite.Store, error)) (store, error) {
	if _, err := os.Stat(string(f)); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no database at %s: check --database, or submit the first task: opscore run echo 1", f)
	}
	s, err := by(string(f))
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (f sqliteFile) schema(context.Context) (migration, error) {
	_, missing := os.Stat(string(f))
	st, err := sqlite.Status(string(f))
	return migration{f.String(), "", !errors.Is(missing, fs.ErrNotExist), st.Current, st.Target}, err
}

// migrate needs no more than an open.
func (f sqliteFile) migrate(context.Context) error {
	s, err := sqlite.Open(string(f))
	if err != nil {
		return err
	}
	return s.Close()
}

func (f sqliteFile) migrationSQL(from int64) (string, error) { return sqlite.MigrationSQL(from) }

// postgresPlace is the postgres tier.
type postgresPlace struct {
	url, schemaName string
	maxOrphans      int
}

func (p postgresPlace) options() postgres.Options {
	return postgres.Options{Schema: p.schemaName, MaxOrphans: p.maxOrphans}
}

// String is where it is, and no more.
func (p postgresPlace) String() string {
	return without(p.url, func(name, _ string) bool {
		return slices.Contains([]string{"host", "port", "dbname", "user", "service"}, name)
	})
}

func (p postgresPlace) flag() string {
	return without(p.url, func(name, value string) bool {
		return slices.Contains(paths, name) || !secretName.MatchString(name) && (name != "options" || !secretName.MatchString(value))
	})
}

func (p postgresPlace) open(ctx context.Context, _ mustExist) (store, error) {
	s, err := postgres.Open(ctx, p.url, p.options())
	if err != nil {
		return nil, err
	}
	return postgresStore{s}, nil
}

// look needs no more than an open, which changes nothing.
func (p postgresPlace) look(ctx context.Context) (store, error) { return p.open(ctx, existing) }

func (p postgresPlace) schema(ctx context.Context) (migration, error) {
	st, err := postgres.Status(ctx, p.url, p.options())
	return migration{p.String(), p.schemaName, st.Current > 0, st.Current, st.Target}, err
}

func (p postgresPlace) migrate(ctx context.Context) error {
	return postgres.Migrate(ctx, p.url, p.options())
}

func (p postgresPlace) migrationSQL(from int64) (string, error) {
	return postgres.MigrationSQL(p.options(), from)
}

// postgresStore closes like the other.
type postgresStore struct{ *postgres.Store }

func (s postgresStore) Close() error {
	s.Store.Close()
	return nil
}
