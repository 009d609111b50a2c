package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/google/uuid"
)

// bare is the least that a durable queue in SQLite can do, as a measure for drain: it marks a batch as running, commits,
// marks each as done, commits. It has no fence, no history, no lanes and no goroutine, and its handler is nothing.
func bare(ctx context.Context, dir string) ([]result, error) {
	var rates []float64
	for i := range runs {
		rate, err := bareOnce(ctx, filepath.Join(dir, fmt.Sprintf("%d.db", i)))
		if err != nil {
			return nil, err
		}
		rates = append(rates, rate)
	}
	return []result{{fmt.Sprintf("bare loop without fence and history, %d tasks", tasks), "tasks/s", median(rates)}}, nil
}

func bareOnce(ctx context.Context, path string) (rate float64, err error) {
	// The driver comes with the store's package; the settings are the store's.
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(ctx, `
		CREATE TABLE task (id BLOB PRIMARY KEY NOT NULL, state INTEGER NOT NULL, run_at INTEGER NOT NULL, args BLOB NOT NULL, result BLOB);
		CREATE INDEX due ON task (run_at, id) WHERE state = 0;`); err != nil {
		return 0, err
	}
	if err := bareFill(ctx, db); err != nil {
		return 0, err
	}
	claim, err := db.PrepareContext(ctx, `
		UPDATE task SET state = 1 WHERE rowid IN (SELECT rowid FROM task WHERE state = 0 AND run_at <= ? ORDER BY run_at, id LIMIT 100)
		RETURNING id, args`)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, claim.Close()) }()
	finish, err := db.PrepareContext(ctx, "UPDATE task SET state = 2, result = ? WHERE id = ?")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, finish.Close()) }()
	began := time.Now()
	for n := 0; n < tasks; {
		done, err := bareStep(ctx, db, claim, finish)
		if err != nil {
			return 0, err
		}
		n += done
	}
	return perSecond(tasks, began), nil
}

func bareFill(ctx context.Context, db *sql.DB) error {
	return within(ctx, db, func(tx *sql.Tx) error {
		insert, err := tx.PrepareContext(ctx, "INSERT INTO task (id, state, run_at, args) VALUES (?, 0, ?, '{}')")
		if err != nil {
			return err
		}
		defer insert.Close()
		for range tasks {
			id, err := uuid.NewV7()
			if err != nil {
				return err
			}
			if _, err := insert.ExecContext(ctx, id[:], time.Now().UnixMicro()); err != nil {
				return err
			}
		}
		return nil
	})
}

// bareStep claims in one transaction and finishes in another.
func bareStep(ctx context.Context, db *sql.DB, claim, finish *sql.Stmt) (done int, err error) {
	var ids [][]byte
	err = within(ctx, db, func(tx *sql.Tx) error {
		s := tx.StmtContext(ctx, claim)
		defer s.Close()
		rows, err := s.QueryContext(ctx, time.Now().UnixMicro())
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id, args []byte
			if err := rows.Scan(&id, &args); err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return rows.Err()
	})
	if err != nil {
		return 0, err
	}
	if len(ids) == 0 {
		return 0, errors.New("nothing is left to claim")
	}
	return len(ids), within(ctx, db, func(tx *sql.Tx) error {
		s := tx.StmtContext(ctx, finish)
		defer s.Close()
		for _, id := range ids {
			if _, err := s.ExecContext(ctx, []byte("{}"), id); err != nil {
				return err
			}
		}
		return nil
	})
}

func within(ctx context.Context, db *sql.DB, do func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := do(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}
