package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/opscore/opscore"
)

//go:embed migrations/*.sql
var migrations embed.FS

const versionTable = "opscore_version"

// SchemaStatus says where a file's schema stands.
type SchemaStatus struct {
	Current int64 `json:"current"` // of the file; 0 if it has none yet
	Target  int64 `json:"target"`  // of this binary
}

// Status reads the schema version of the file at path without changing it. A missing file has version 0.
func Status(path string) (SchemaStatus, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return SchemaStatus{Target: target()}, nil
	}
	return readStatus(context.Background(), path, busyTimeout)
}

func readStatus(ctx context.Context, path string, patience time.Duration) (SchemaStatus, error) {
	db, err := sql.Open("sqlite", lookDSN(path, patience))
	if err != nil {
		return SchemaStatus{}, unavailable("open "+path, err)
	}
	st, err := status(ctx, db)
	if err != nil {
		err = unavailable("read schema version of "+path, err)
	}
	return st, errors.Join(err, db.Close())
}

// fits returns an error if this binary cannot read what is in the file.
func (st SchemaStatus) fits(path string) error {
	var text string
	switch {
	case st.Current > st.Target:
		text = fmt.Sprintf("%s has schema version %d, but this binary knows only up to %d: use a newer opscore; nothing was changed", path, st.Current, st.Target)
	case st.Current == 0:
		text = path + " has no tables of opscore; nothing was changed"
	case st.Current < st.Target:
		text = fmt.Sprintf("%s has schema version %d, and this binary wants %d; nothing was changed", path, st.Current, st.Target)
	default:
		return nil
	}
	return &opscore.Error{Code: opscore.CodeUnavailable, Message: text}
}

// target is the version of the last of our migrations: their file names start with it.
func target() int64 {
	files, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	var last int64
	for _, f := range files {
		v, err := goose.NumericComponent(f)
		if err != nil {
			panic(fmt.Sprintf("migration %s has no number", f)) // embedded in this binary
		}
		last = max(last, v)
	}
	return last
}

func (s *Store) provider() (*goose.Provider, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(goose.DialectSQLite3, s.writer, files, goose.WithTableName(versionTable), goose.WithDisableGlobalRegistry(true))
}

func status(ctx context.Context, db *sql.DB) (SchemaStatus, error) {
	st := SchemaStatus{Target: target()}
	// Asked directly: goose would create its table, and this must not write.
	var exists bool
	err := db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema WHERE name = ?", versionTable).Scan(&exists)
	if err != nil || !exists {
		return st, err
	}
	err = db.QueryRowContext(ctx, "SELECT coalesce(max(version_id), 0) FROM "+versionTable).Scan(&st.Current)
	return st, err
}

// MigrationSQL returns what an open would execute on a file of that version, which is 0 for a new one, for somebody else to
// review or to execute: one transaction, with what goose notes about versions. It is empty if nothing is left to do.
func MigrationSQL(from int64) (string, error) {
	files, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return "", err
	}
	var steps strings.Builder
	note := func(version int64) {
		fmt.Fprintf(&steps, "INSERT INTO %s (version_id, is_applied) VALUES (%d, 1);\n", versionTable, version)
	}
	if from == 0 {
		steps.WriteString(createVersionTable)
		note(0)
	}
	for _, name := range files {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return "", err
		}
		text, err := migrations.ReadFile(name)
		if err != nil {
			return "", err
		}
		if version > from {
			up, _, _ := strings.Cut(string(text), "-- +goose Down\n")
			fmt.Fprintf(&steps, "\n-- %s\n%s", path.Base(name), strings.TrimPrefix(up, "-- +goose Up\n"))
			note(version)
		}
	}
	if from >= target() {
		return "", nil
	}
	return fmt.Sprintf("-- opscore's tables, from version %d to %d. Stop at the first error: sqlite3 -bail DATABASE <FILE\n"+
		"BEGIN IMMEDIATE;\n%s\nCOMMIT;\n", from, target(), &steps), nil
}

// createVersionTable makes the table that goose makes for itself.
const createVersionTable = `CREATE TABLE ` + versionTable + ` (
	id INTEGER PRIMARY KEY AUTOINCREMENT,
	version_id INTEGER NOT NULL,
	is_applied INTEGER NOT NULL,
	tstamp TIMESTAMP DEFAULT (datetime('now'))
);
`

// knownSchema notices that a newer binary has changed the schema meanwhile.
func knownSchema(c *conn) error {
	var current int64
	err := c.query(func(rows *sql.Rows) error { return rows.Scan(&current) }, "SELECT coalesce(max(version_id), 0) FROM "+versionTable)
	if known := target(); err == nil && current > known {
		err = &opscore.Error{Code: opscore.CodeUnavailable, Message: fmt.Sprintf(
			"the file has schema version %d now, but this binary knows only up to %d: it stops taking tasks; use a newer opscore", current, known)}
	}
	return err
}

// migrate brings the schema up to date. A lock file serialises the processes that start at once: goose takes no lock on
// SQLite, and SQLite itself does not wait for another process that turns a new file to WAL as well.
func (s *Store) migrate(ctx context.Context) (err error) {
	f, err := lock(s.path + ".migrate")
	if err != nil {
		return fmt.Errorf("lock for migration: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := status(ctx, s.writer)
	if err != nil {
		return err
	}
	if st.Current > st.Target {
		return st.fits(s.path)
	}
	if st.Current == st.Target {
		return nil
	}
	p, err := s.provider()
	if err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}
