// Package sqlite is the store in one SQLite file: the embedded tier.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/batch"
)

// Store is a [opscore.Store] in a SQLite file. Several processes of one host may open the same file.
type Store struct {
	path   string
	file   os.FileInfo // what was at path when it was opened
	atRest bool        // it is only looked at, and nobody had it open
	db     *sql.DB     // for the caller
	reader *sql.DB     // not the caller's, or its waiting transactions would keep us from reading
	writer *sql.DB     // one connection: SQLite has one writer at a time
	w      *conn       // on writer
	r      *conn       // on reader
	ops    *batch.Batch[*op]

	mu       sync.Mutex
	wake     chan struct{}
	locks    map[opscore.ID]*os.File // of the workers of this process
	observed map[opscore.ID]lapsed   // workers that were past their lease when last looked at
}

var (
	_ opscore.Store     = (*Store)(nil)
	_ opscore.Waker     = (*Store)(nil)
	_ opscore.Discarder = (*Store)(nil)
)

// busyTimeout is how long a statement waits for another process's or transaction's write lock.
const busyTimeout = 5 * time.Second

// Open opens the file, creates it (mode 0600) and its directory (0700) if they are missing, and brings its schema up
// to date. It refuses symbolic links, directories that everybody may write to, and network file systems, where
// SQLite's locks do not hold. The errors are [opscore.ErrUnavailable].
func Open(path string) (*Store, error) {
	s, err := open(path, prepareFile, dsn)
	if err != nil {
		return nil, unavailable("open "+path, err)
	}
	if err := s.migrate(context.Background()); err != nil {
		return nil, errors.Join(unavailable("open "+path, err), s.Close())
	}
	return s, nil
}

// Look opens a file that exists to look at it: nothing is written, neither to it nor, where nobody has it open, beside it. All that writes fails, and so does
// Look itself if the schema is not the one that this binary knows. Look again for what happens later: if nobody had the file open, reads fail as soon as
// somebody writes to it. The errors are [opscore.ErrUnavailable].
func Look(path string) (*Store, error) {
	s, err := open(path, checkFile, func(path string) string { return lookDSN(path, busyTimeout) })
	if err != nil {
		return nil, unavailable("look at "+path, err)
	}
	s.atRest = atRest(path)
	st, err := status(context.Background(), s.reader)
	if err == nil {
		err = st.fits(s.path)
	}
	if err != nil {
		return nil, errors.Join(unavailable("look at "+path, err), s.Close())
	}
	return s, nil
}

func open(path string, check func(path string) error, dsn func(path string) string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := check(path); err != nil {
		return nil, err
	}
	file, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	s := &Store{path: path, file: file, wake: make(chan struct{}), locks: map[opscore.ID]*os.File{}, observed: map[opscore.ID]lapsed{}}
	for db, conns := range map[**sql.DB]int{&s.db: 8, &s.reader: 4, &s.writer: 1} {
		if *db, err = sql.Open("sqlite", dsn(path)); err != nil {
			return nil, err
		}
		(*db).SetMaxOpenConns(conns)
		(*db).SetMaxIdleConns(min(conns, 4))
	}
	s.w, s.r = newConn(s.writer), newConn(s.reader)
	s.ops = batch.New(128, s.commit)
	return s, nil
}

// dsn names the file for the driver.
func dsn(path string) string {
	q := waits(busyTimeout)
	q.Set("_txlock", "immediate") // a read that becomes a write later would fail at once, whatever the timeout
	q.Add("_pragma", "journal_mode(WAL)")
	q.Add("_pragma", "synchronous(FULL)") // an acknowledged task survives a power loss
	q.Add("_pragma", "journal_size_limit(67108864)")
	return fileURL(path, q)
}

// lookDSN names the file for connections that change nothing. To read a file in WAL mode that nobody has open SQLite would make its -wal and -shm anew, and a
// connection that may not write leaves them behind; it need not if it is told that nobody else is there.
func lookDSN(path string, patience time.Duration) string {
	q := waits(patience)
	q.Set("mode", "ro")
	if atRest(path) {
		q.Set("immutable", "1")
	}
	return fileURL(path, q)
}

func waits(patience time.Duration) url.Values {
	return url.Values{"_pragma": {fmt.Sprintf("busy_timeout(%d)", patience.Milliseconds())}}
}

func fileURL(path string, q url.Values) string {
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String()
}

// DB returns the connections for the caller's own tables and transactions in the same file.
// Its transactions are immediate: each holds the one write lock from its start to its end, so keep them short.
func (s *Store) DB() *sql.DB { return s.db }

// Path returns the absolute path of the file.
func (s *Store) Path() string { return s.path }

// Endpoint implements [opscore.Located]: a file that was replaced is another instance.
func (s *Store) Endpoint(context.Context) (opscore.Endpoint, error) {
	return opscore.Endpoint{Kind: "sqlite", Name: s.path, Instance: inode(s.file)}, nil
}

// Close closes the file. Workers, keepers and clients of the store must have stopped.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, f := range s.locks {
		errs = append(errs, f.Close())
	}
	errs = append(errs, s.w.close(), s.r.close(), s.db.Close(), s.reader.Close(), s.writer.Close())
	return errors.Join(errs...)
}

// sameFile notices that the file was removed or replaced: SQLite would go on with one that nobody else sees.
func (s *Store) sameFile() error {
	file, err := os.Stat(s.path)
	if err != nil {
		return err
	}
	if !os.SameFile(file, s.file) {
		return fmt.Errorf("%s was replaced by another file: start again", s.path)
	}
	return nil
}

// undisturbed notices that somebody writes to a file that is read as if nobody did: what was read may belong to different moments.
func (s *Store) undisturbed() error {
	if !s.atRest {
		return nil
	}
	file, err := os.Stat(s.path)
	if err == nil && (!atRest(s.path) || !os.SameFile(file, s.file) || !file.ModTime().Equal(s.file.ModTime()) || file.Size() != s.file.Size()) {
		err = fmt.Errorf("%s was opened by another process meanwhile: look again", s.path)
	}
	return err
}

// Wake implements [opscore.Waker].
func (s *Store) Wake() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wake
}

func (s *Store) wakeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.wake)
	s.wake = make(chan struct{})
}

// now is the clock of this tier: times are bound as parameters, so that tests with fake time work.
func now() int64 { return time.Now().UnixMicro() }

// micros is how a time is stored. 0 means unset, so nothing lies before 1970.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(t.UnixMicro(), 1)
}

func timeOf(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}
