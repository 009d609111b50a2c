package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"sync"
)

// conn runs statements that it prepares once. Statements get no caller's context: the driver would start a
// goroutine for each, and all are short.
type conn struct {
	on    preparer
	mu    sync.Mutex
	stmts map[string]*sql.Stmt
	wakes bool // a statement made a task due, or due earlier
}

// preparer is a pool, or the caller's transaction.
type preparer interface {
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

func newConn(on preparer) *conn {
	return &conn{on: on, stmts: map[string]*sql.Stmt{}}
}

func (c *conn) stmt(query string) (*sql.Stmt, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.stmts[query]; ok {
		return s, nil
	}
	s, err := c.on.PrepareContext(context.Background(), query)
	if err == nil {
		c.stmts[query] = s
	}
	return s, err
}

// exec returns how many rows the statement changed.
func (c *conn) exec(query string, args ...any) (int64, error) {
	s, err := c.stmt(query)
	if err != nil {
		return 0, err
	}
	res, err := s.ExecContext(context.Background(), args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// query calls scan for each row.
func (c *conn) query(scan func(*sql.Rows) error, query string, args ...any) error {
	s, err := c.stmt(query)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(context.Background(), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (c *conn) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// op is a write that waits for its commit.
type op struct {
	do   func(*conn) error
	err  error
	done chan struct{}
}

// write runs do in a transaction and returns after its commit. Writes that wait at the same time share one commit;
// do may run twice if one of them fails, so it must start afresh each time.
func (s *Store) write(ctx context.Context, what string, do func(*conn) error) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	o := &op{do: do, done: make(chan struct{})}
	s.ops.Add(o)
	<-o.done // not ctx: what is under way commits, and its caller has to know
	if o.err == nil {
		return nil
	}
	return unavailable(what, o.err)
}

// commit runs the writes in one transaction, or each in its own if one of them fails.
func (s *Store) commit(ops []*op) {
	s.w.wakes = false
	ops, err := s.transact(ops, s.ops.Take)
	refused := writeError{}
	for _, o := range ops {
		switch {
		case err == nil:
		case len(ops) > 1 && errors.As(err, &refused):
			_, o.err = s.transact([]*op{o}, nil)
		default:
			o.err = err // of the database, not of one write: trying each would only wait that often
		}
	}
	if s.w.wakes {
		s.wakeAll()
	}
	for _, o := range ops {
		close(o.done)
	}
}

// transact runs the writes and those that more returns once they have run: what came meanwhile joins the commit,
// which costs more than most writes. It returns all the writes that the outcome is for.
func (s *Store) transact(ops []*op, more func() []*op) ([]*op, error) {
	if _, err := s.w.exec("BEGIN IMMEDIATE"); err != nil {
		return ops, err
	}
	for i := 0; i < len(ops); i++ {
		if err := ops[i].do(s.w); err != nil {
			return ops, writeError{errors.Join(err, s.rollback())}
		}
		if i == len(ops)-1 && more != nil {
			ops, more = append(ops, more()...), nil
		}
	}
	if _, err := s.w.exec("COMMIT"); err != nil {
		return ops, errors.Join(err, s.rollback())
	}
	return ops, nil
}

// writeError is the error of one write, which the others of its transaction can do without.
type writeError struct{ err error }

func (e writeError) Error() string { return e.err.Error() }
func (e writeError) Unwrap() error { return e.err }

// rollback ends the transaction unless SQLite has done so itself, as it does when the disk is full.
func (s *Store) rollback() error {
	_, err := s.w.exec("ROLLBACK")
	if sqliteCode(err) == codeError {
		return nil
	}
	return err
}

// read wraps the error of a read.
func (s *Store) read(ctx context.Context, what string, do func(*conn) error) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	err := do(s.r)
	if err == nil {
		err = s.undisturbed()
	}
	if err != nil {
		return unavailable(what, err)
	}
	return nil
}
