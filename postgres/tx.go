package postgres

import (
	"context"
	"database/sql"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
)

// In submits within the caller's transaction: the task exists exactly if tx commits. Workers learn of it by a
// notification that commits with it. The tables are those of the default schema; [Store.In] has its own.
func In(tx pgx.Tx) opscore.Option { return inTx(tx, DefaultSchema) }

// In is [In] for the store's schema.
func (s *Store) In(tx pgx.Tx) opscore.Option { return inTx(tx, s.schema) }

// InSQL is [In] for a transaction of database/sql, with whatever PostgreSQL driver it was opened.
func InSQL(tx *sql.Tx) opscore.Option { return inSQLTx(tx, DefaultSchema) }

// InSQL is [InSQL] for the store's schema.
func (s *Store) InSQL(tx *sql.Tx) opscore.Option { return inSQLTx(tx, s.schema) }

func inTx(tx pgx.Tx, schema string) opscore.Option { return opscore.Via(&pgxInserter{tx, schema}) }

func inSQLTx(tx *sql.Tx, schema string) opscore.Option { return opscore.Via(sqlInserter{tx, schema}) }

type pgxInserter struct {
	tx     pgx.Tx
	schema string
}

// Insert implements [opscore.Inserter]. The savepoint keeps the caller's transaction usable if the insert is refused.
func (i *pgxInserter) Insert(ctx context.Context, requests []opscore.Request) (inserted []opscore.Inserted, err error) {
	err = pgx.BeginFunc(ctx, i.tx, func(tx pgx.Tx) error {
		text := func(text string) string { return inSchema(text, i.schema) }
		if inserted, err = inserterOn(ctx, tx, text).run(requests); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "NOTIFY "+i.schema)
		return err
	})
	if err != nil {
		return nil, unavailable("insert tasks", err)
	}
	return inserted, nil
}

type sqlInserter struct {
	tx     *sql.Tx
	schema string
}

// Insert implements [opscore.Inserter].
func (i sqlInserter) Insert(ctx context.Context, requests []opscore.Request) (inserted []opscore.Inserted, err error) {
	exec := func(text string) error {
		_, err := i.tx.ExecContext(ctx, text)
		return err
	}
	if err := exec("SAVEPOINT opscore_insert"); err != nil {
		return nil, unavailable("insert tasks", err)
	}
	inserted, err = i.inserter(ctx).run(requests)
	if err == nil {
		err = exec("NOTIFY " + i.schema)
	}
	if err != nil {
		return nil, errors.Join(unavailable("insert tasks", err), exec("ROLLBACK TO SAVEPOINT opscore_insert"))
	}
	return inserted, exec("RELEASE SAVEPOINT opscore_insert")
}

func (i sqlInserter) inserter(ctx context.Context) inserter {
	// one reads the only row, if there is one.
	one := func(text string, args []any, dest ...any) (bool, error) {
		err := i.tx.QueryRowContext(ctx, inSchema(text, i.schema), args...).Scan(dest...)
		if errors.Is(err, sql.ErrNoRows) {
			return false, nil
		}
		return err == nil, err
	}
	return inserter{
		insert: func(c *columns) (ids []opscore.ID, err error) {
			params, err := c.literals()
			if err != nil {
				return nil, err
			}
			rows, err := i.tx.QueryContext(ctx, inSchema(insertSQL, i.schema), params...)
			if err != nil {
				return nil, err
			}
			defer rows.Close()
			for rows.Next() {
				var id opscore.ID
				if err := rows.Scan(&id); err != nil {
					return nil, err
				}
				ids = append(ids, id)
			}
			return ids, rows.Err()
		},
		byID: func(id opscore.ID) (actor string, args []byte, found bool, err error) {
			found, err = one(byIDSQL, []any{id.String()}, &actor, &args)
			return actor, args, found, err
		},
		holder: func(actor, key string) (id opscore.ID, found bool, err error) {
			found, err = one(holderSQL, []any{actor, key}, &id)
			return id, found, err
		},
	}
}

// Complete completes the task of the handler that ctx belongs to with result out, in tx: the handler's effects in tx and
// its completion happen together or not at all. It returns [opscore.ErrLeaseLost] if another claim owns the task now;
// roll back then. After Complete commit tx and return: the handler's own result no longer counts.
func (s *Store) Complete(ctx context.Context, tx pgx.Tx, out any) error {
	return complete(ctx, out, s.schema, func(text string, args ...any) (int64, error) {
		tag, err := tx.Exec(ctx, text, args...)
		return tag.RowsAffected(), err
	})
}

// CompleteSQL is [Store.Complete] for a transaction of database/sql.
func (s *Store) CompleteSQL(ctx context.Context, tx *sql.Tx, out any) error {
	return complete(ctx, out, s.schema, func(text string, args ...any) (int64, error) {
		res, err := tx.ExecContext(ctx, text, args...)
		if err != nil {
			return 0, err
		}
		return res.RowsAffected()
	})
}

func complete(ctx context.Context, out any, schema string, exec func(text string, args ...any) (int64, error)) error {
	r := opscore.FromContext(ctx)
	if r.ID == (opscore.ID{}) {
		return &opscore.Error{Code: opscore.CodeInvalid, Message: "complete: the context does not belong to a handler"}
	}
	result, err := r.Encode(out)
	if err != nil {
		return err
	}
	n, err := exec(inSchema(`
		UPDATE opscore.task SET state = 'completed', finished_at = clock_timestamp(), result = $4, code = '', error = ''
		WHERE id = $1 AND state = 'running' AND claim_seq = $2 AND worker = $3`, schema),
		r.ID.String(), r.ClaimSeq, r.Worker.String(), result)
	if err != nil {
		return unavailable("complete task", err)
	}
	if n == 0 {
		return opscore.ErrLeaseLost
	}
	return nil
}
