//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
)

// databaseFaults are part E of the catalogue.
func databaseFaults() []play {
	return []play{
		{name: "F64 database down", on: onOwnPostgres, act: databaseDown},
		{name: "F66 pool exhausted", on: onPostgres, act: poolExhausted},
		{name: "F67 row locked", fast: true, on: onPostgres, act: rowLocked},
		{name: "F68 table locked", fast: true, on: onPostgres, act: tableLocked},
		{name: "F69 read-only", on: onOwnPostgres, act: readOnly},
	}
}

// busy has a worker with all of its slots taken, and the target waiting: then it is there to be asked about, although nothing that happens
// around it would hold it up.
func (s *scene) busy(slots int, args ...string) *hand {
	s.Helper()
	w := s.occupied(slots, args...)
	s.submit()
	return w
}

// occupied has a worker with all of its slots taken.
func (s *scene) occupied(slots int, args ...string) *hand {
	s.Helper()
	w := s.worker(append([]string{"--slots", fmt.Sprint(slots)}, args...)...)
	s.occupy(slots)
	return w
}

func databaseDown(s *scene) want {
	s.busy(4)
	s.must(s.server.StopImmediately())
	return want{
		codes: []string{opscore.CauseDatabaseUnreachable}, evidence: []string{s.server.Addr()},
		remedy: byOperator, names: []string{"start the database at " + s.server.Addr()},
		undo: func() { s.must(s.server.Start(s.Context())) },
	}
}

// poolExhausted: a handler has taken all connections of the pool that the worker claims with.
func poolExhausted(s *scene) want {
	w := s.program([]string{"accomplice", "hold"}, nil)
	holder := s.submitAll(opscore.NewRequest("misbehave", nil, opscore.MaxAttempts(1)))[0]
	s.until("a task that holds all connections", func() bool {
		t := s.tasks(holder)[0]
		return t.State == opscore.Running && s.backends(`state = 'idle'`) >= 4
	})
	s.submit()
	s.until("a pool with nothing to give", func() bool {
		workers, err := s.store.Workers(s.Context(), 0)
		s.must(err)
		return workers[0].LastBeat.After(s.tasks(s.target)[0].CreatedAt)
	})
	return want{
		codes: []string{opscore.CausePoolExhausted}, evidence: []string{"4 of 4", "holdPool", w.info.ID.String()},
		remedy: byOperator, names: []string{"process " + w.pid()},
		undo: func() { s.opscore("task", "cancel", holder.String()) },
	}
}

// backends counts the connections to the database that match.
func (s *scene) backends(which string) (n int) {
	s.Helper()
	s.must(s.watcher().QueryRow(s.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND "+which).Scan(&n))
	return n
}

// transaction begins one of somebody else, which has done that much and is left open.
func (s *scene) transaction(app, sql string, args ...any) (pid string, tx pgx.Tx) {
	s.Helper()
	conn := s.connect(app)
	tx, err := conn.Begin(s.Context())
	s.must(err)
	_, err = tx.Exec(s.Context(), sql, args...)
	s.must(err)
	return fmt.Sprint(conn.PgConn().PID()), tx
}

// settle waits until the transaction of that name is so old that it matters: each claim is one that holds locks for a moment.
func (s *scene) settle(app string) {
	s.Helper()
	s.until("an old transaction", func() bool {
		return s.backends(fmt.Sprintf("application_name = '%s' AND clock_timestamp() - xact_start > interval '%g s'", app, 1.5*opscore.SettledAfter.Seconds())) > 0
	})
}

// rowLocked: a report has locked the target's row and forgotten it.
func rowLocked(s *scene) want {
	s.submit()
	pid, tx := s.transaction("report", "SELECT '"+canary+"' FROM opscore.task WHERE id = $1 FOR UPDATE", s.target)
	s.worker()
	s.until("the end of the other tasks", func() bool { return s.counted(opscore.Completed) == backdrop })
	s.settle("report")
	return want{
		codes: []string{opscore.CauseRowLocked}, evidence: []string{pid, "report"}, remedy: byCommand,
		undo: func() { s.must(tx.Rollback(s.Context())) },
	}
}

// counted counts the tasks in a state.
func (s *scene) counted(state opscore.State) (n int64) {
	s.Helper()
	counts, err := s.client.Count(s.Context())
	s.must(err)
	for _, c := range counts {
		if c.State == state {
			n += c.Tasks
		}
	}
	return n
}

// tableLocked: somebody has the table, and a migration waits behind him.
func tableLocked(s *scene) want {
	s.busy(4)
	pid, tx := s.transaction("backup", "LOCK TABLE opscore.task IN ACCESS SHARE MODE")
	waiter := s.connect("migration")
	ctx, cancel := context.WithCancel(s.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = waiter.Exec(ctx, "ALTER TABLE opscore.task ADD COLUMN IF NOT EXISTS note text") // it waits, until it may or is told not to
	}()
	s.Cleanup(func() {
		cancel()
		<-gone
	})
	s.until("a migration that waits", func() bool { return s.backends(`application_name = 'migration' AND wait_event_type = 'Lock'`) == 1 })
	s.settle("backup")
	return want{
		codes: []string{opscore.CauseTableLocked}, evidence: []string{pid, "backup"}, remedy: byCommand,
		undo: func() { s.must(tx.Rollback(s.Context())) },
	}
}

// readOnly: the server takes no writes any more.
func readOnly(s *scene) want {
	s.busy(4)
	set := func(how string) {
		conn := s.connect("operator")
		_, err := conn.Exec(s.Context(), "SET default_transaction_read_only = off")
		s.must(err)
		_, err = conn.Exec(s.Context(), how)
		s.must(err)
		_, err = conn.Exec(s.Context(), "SELECT pg_reload_conf()")
		s.must(errors.Join(err, conn.Close(s.Context())))
	}
	set("ALTER SYSTEM SET default_transaction_read_only = on")
	s.until("a server that takes no writes", func() bool { return s.store.Resume(s.Context(), []string{"none"}) != nil })
	return want{
		codes: []string{opscore.CauseDatabaseReadOnly}, evidence: []string{"true"},
		remedy: byOperator, names: []string{"default_transaction_read_only"},
		undo: func() { set("ALTER SYSTEM RESET default_transaction_read_only") },
	}
}
