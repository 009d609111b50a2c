package sqlite

import (
	"context"
	"database/sql"
	"errors"

	"github.com/opscore/opscore"
)

// In submits within the caller's transaction on the store's file: the task exists exactly if tx commits.
// Begin tx on [Store.DB], or on a database handle of your own with _txlock=immediate. A worker in this process learns of
// the task at its next poll, within 250 ms.
func In(tx *sql.Tx) opscore.Option { return opscore.Via(txInserter{tx}) }

type txInserter struct{ tx *sql.Tx }

// Insert implements [opscore.Inserter].
func (i txInserter) Insert(_ context.Context, requests []opscore.Request) (inserted []opscore.Inserted, err error) {
	err = within(i.tx, "insert tasks", func(c *conn) error {
		inserted, err = insert(c, requests)
		return err
	})
	return inserted, err
}

// Complete completes the task of the handler that ctx belongs to with result out, in tx: the handler's effects
// in tx and its completion happen together or not at all. It returns [opscore.ErrLeaseLost] if another claim owns the
// task now; roll back then. After Complete commit tx and return: the handler's own result no longer counts.
func Complete(ctx context.Context, tx *sql.Tx, out any) error {
	r := opscore.FromContext(ctx)
	if r.ID == (opscore.ID{}) {
		return &opscore.Error{Code: opscore.CodeInvalid, Message: "complete: the context does not belong to a handler"}
	}
	result, err := r.Encode(out)
	if err != nil {
		return err
	}
	return within(tx, "complete task", func(c *conn) error {
		held, err := complete(c, r.ID, r.ClaimSeq, r.Worker, result, now())
		if err == nil && !held {
			err = opscore.ErrLeaseLost
		}
		return err
	})
}

// within runs do on the caller's transaction.
// The savepoint leaves nothing of a refused write behind and the transaction usable.
func within(tx *sql.Tx, what string, do func(*conn) error) error {
	c := newConn(tx)
	if err := errors.Join(atomically(c, do), c.close()); err != nil {
		return unavailable(what, err)
	}
	return nil
}

func atomically(c *conn, do func(*conn) error) error {
	if _, err := c.exec("SAVEPOINT opscore"); err != nil {
		return err
	}
	err := do(c)
	if err != nil {
		_, back := c.exec("ROLLBACK TO opscore")
		err = errors.Join(err, back)
	}
	_, release := c.exec("RELEASE opscore")
	return errors.Join(err, release)
}
