package sqlite

import (
	"errors"

	driver "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/opscore/opscore"
)

const codeError = lib.SQLITE_ERROR

// sqliteCode returns the primary result code of an error of SQLite, or 0.
func sqliteCode(err error) int {
	if e, ok := errors.AsType[*driver.Error](err); ok {
		return e.Code() & 0xff
	}
	return 0
}

// reasons says in words what SQLite's errors about the file mean, and what helps.
var reasons = map[int]string{
	lib.SQLITE_FULL:     "the disk is full: free space on it; nothing is lost, work goes on by itself",
	lib.SQLITE_READONLY: "the file or its directory is read-only for this user",
	lib.SQLITE_CANTOPEN: "the file cannot be opened: check the path and its permissions",
	lib.SQLITE_PERM:     "permission denied",
	lib.SQLITE_IOERR:    "the disk reports an error",
	lib.SQLITE_CORRUPT:  "the file is damaged: stop all workers and restore it from a backup, or save what is readable with `sqlite3 FILE .recover`",
	lib.SQLITE_NOTADB:   "the file is not a SQLite database, or is encrypted",
	lib.SQLITE_BUSY: "another transaction has held the write lock for more than " + busyTimeout.String() +
		"; a submit inside your own open transaction on this file needs sqlite.In(tx)",
}

// unavailable wraps an error of the file; errors that have a code of ours already stay as they are.
func unavailable(what string, err error) error {
	if opscore.CodeOf(err) != "" {
		return err
	}
	if reason, ok := reasons[sqliteCode(err)]; ok {
		what += ": " + reason
	}
	return &opscore.Error{Code: opscore.CodeUnavailable, Message: what, Err: err}
}
