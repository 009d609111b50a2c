package sqlite

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/opscore/opscore"
)

// Inspector looks at a SQLite file from outside, without opening it: SQLite's locks belong to the process, and whoever closes a file loses
// those that it has on it.
type Inspector struct{ Path string }

// A write lock that somebody holds for longer, while nothing is written, is no commit under way.
const (
	stillAfter = 500 * time.Millisecond
	lookEvery  = 25 * time.Millisecond
)

// Gather returns what the system knows about the file: whether it can be written to, what space is left, and, on Linux, which process has kept the write lock
// for half a second without writing. It waits that long only if there is one.
func (i Inspector) Gather(ctx context.Context, _ *opscore.Facts) (opscore.Facts, error) {
	d := &opscore.DatabaseFacts{Reached: opscore.DatabaseNone}
	facts := opscore.Facts{Database: d}
	path, err := filepath.Abs(i.Path)
	if err != nil {
		return facts, err
	}
	d.Endpoint = opscore.Endpoint{Kind: "sqlite", Name: path}
	info, err := os.Stat(path)
	if err != nil {
		d.Err = err.Error()
		return facts, unavailable("inspect the database", err)
	}
	d.Reached, d.Endpoint.Instance = opscore.DatabaseOpen, inode(info)
	d.WAL = wal(path).size
	d.Free = freeBytes(filepath.Dir(path))
	d.ReadOnlyBy = readOnly(path)
	d.ReadOnly = d.ReadOnlyBy != ""
	if holder := still(ctx, path); holder != nil {
		d.Locks = []opscore.Lock{{On: "file", Mode: "write", Holder: *holder}}
	}
	return facts, ctx.Err()
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
