package sqlite

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	lib "modernc.org/sqlite/lib"

	"github.com/opscore/opscore"
)

// Inspector looks at a SQLite file from outside. It opens it by SQLite only, and only to read the version of the schema: SQLite's locks belong to the
// process, and whoever else closes a file loses those that the process has on it.
type Inspector struct{ Path string }

// A write lock that somebody holds for longer, while nothing is written, is no commit under way.
const (
	stillAfter = 500 * time.Millisecond
	lookEvery  = 25 * time.Millisecond
)

// versionWithin is how long it waits for the version of a file that is locked even for those that read.
const versionWithin = 100 * time.Millisecond

// Gather returns what is known about the file: whether it is one of opscore's and of which version, whether it can be written to, what space is left, and, on
// Linux, which process has kept the write lock for half a second without writing. It waits that long only if there is one.
func (i Inspector) Gather(ctx context.Context, _ *opscore.Facts) (opscore.Facts, error) {
	d := &opscore.DatabaseFacts{Reached: opscore.DatabaseNone}
	facts := opscore.Facts{Database: d}
	path, err := filepath.Abs(i.Path)
	if err != nil {
		return facts, err
	}
	d.Endpoint = opscore.Endpoint{Kind: "sqlite", Name: path}
	info, err := os.Stat(path)
	if err == nil {
		d.Endpoint.Instance = inode(info)
		err = readSchema(ctx, path, d)
	}
	if err != nil {
		d.Err = err.Error()
		if !errors.Is(err, fs.ErrNotExist) {
			d.Reached = opscore.DatabaseRefused
		}
		return facts, unavailable("inspect the database", err)
	}
	d.Reached = opscore.DatabaseOpen
	d.WAL = wal(path).size
	d.Free = freeBytes(filepath.Dir(path))
	d.ReadOnlyBy = readOnly(path)
	d.ReadOnly = d.ReadOnlyBy != ""
	if holder := still(ctx, path); holder != nil {
		d.Locks = []opscore.Lock{{On: "file", Mode: "write", Holder: *holder}}
	}
	return facts, ctx.Err()
}

// readSchema reads the version of the schema, if the file is one that the store would open. That somebody keeps even readers out for now is no error: what is
// said of locks tells of it.
func readSchema(ctx context.Context, path string, d *opscore.DatabaseFacts) error {
	if err := checkFile(path); err != nil {
		return err
	}
	st, err := readStatus(ctx, path, versionWithin)
	switch {
	case err == nil:
		d.Schema, d.SchemaWanted = st.Current, st.Target
	case sqliteCode(err) == lib.SQLITE_BUSY || ctx.Err() != nil:
		err = nil
	}
	return err
}

// written says when the log of a file was written to last: each commit does.
type written struct {
	size int64
	at   time.Time
}

func wal(path string) written {
	info, err := os.Stat(path + "-wal")
	if err != nil {
		return written{}
	}
	return written{info.Size(), info.ModTime()}
}

// still returns who holds the write lock and does not write; nil if there is nobody.
func still(ctx context.Context, path string) *opscore.Backend {
	began, before, first := time.Now(), wal(path), writer(path)
	for first != nil && time.Since(began) < stillAfter {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lookEvery):
		}
		if now := writer(path); now == nil || now.PID != first.PID || wal(path) != before {
			return nil
		}
	}
	if first != nil {
		first.Since, first.Begun = began.UTC(), began.UTC() // at the latest
	}
	return first
}
