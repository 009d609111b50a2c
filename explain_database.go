package opscore

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// SourcePostgres is the name of PostgreSQL's catalogs among the sources of facts.
const SourcePostgres = "postgres"

// silence says why the store did not answer, as far as the database itself says.
func (v *view) silence() []Cause {
	a, _ := v.asked(SourceStore)
	if v.storeAnswered() {
		return nil
	}
	about := func(c Cause) Cause { return c.with(SourceStore, "error", a.Err).with(SourceStore, "address", a.At) }
	at := cmp.Or(a.At, v.Store.String(), "its address")
	catalogs, asked := v.asked(SourcePostgres)
	switch {
	case v.Database == nil:
		c := about(because(CauseDatabaseUnreachable, "the database at %s does not answer: %s", at, a.Err))
		if asked && catalogs.Err != "" {
			c = c.with(SourcePostgres, "error", catalogs.Err)
		}
		return []Cause{c.fix(safe(act("start the database at %s, or mend what the error says", at)))}
	case len(v.stopping()) > 0:
		return nil // said better by what the database itself says
	}
	return []Cause{about(because(CauseDatabaseSilent, "the database at %s takes connections, but did not answer the store: %s", at, a.Err)).
		fix(act("look what keeps the database at %s busy: pg_stat_activity", at))}
}

// database says what of the database itself keeps tasks from going on.
func (v *view) database() []Cause {
	if v.Database == nil {
		return nil
	}
	return append(v.stopping(), v.forgotten()...)
}

func (v *view) stopping() (causes []Cause) {
	d := v.Database
	at := cmp.Or(d.Endpoint.String(), "the database")
	if d.Recovery || d.ReadOnly {
		c := because(CauseDatabaseReadOnly, "%s takes no writes: its transactions are read-only", at).
			fix(act("unset default_transaction_read_only of the database, or of the role, at %s", at))
		if d.Recovery {
			c = because(CauseDatabaseReadOnly, "%s takes no writes: it is a standby (in recovery)", at).
				fix(act("connect to the primary instead of %s, or promote it", at))
		}
		causes = append(causes, c.with(SourcePostgres, "pg_is_in_recovery", d.Recovery).with(SourcePostgres, "default_transaction_read_only", d.ReadOnly))
	}
	if d.Limit > 0 && d.Connections >= d.Limit {
		causes = append(causes, because(CauseDatabaseFull, "%s has no connection left: %d of %d are in use", at, d.Connections, d.Limit).
			with(SourcePostgres, "connections", d.Connections).with(SourcePostgres, "limit", d.Limit).
			fix(act("end idle connections to %s, or raise its max_connections", at)))
	}
	for _, l := range d.Locks {
		causes = append(causes, v.lock(l))
	}
	return causes
}

// lock says who holds what others need.
func (v *view) lock(l Lock) Cause {
	code := CauseTableLocked
	if strings.HasPrefix(l.On, "row") {
		code = CauseRowLocked
	}
	b := l.Holder
	c := because(code, "the %s is locked (%s) by process %d of the database (%s, %s), %s for %s: %s",
		l.On, l.Mode, b.PID, cmp.Or(b.App, "no name"), cmp.Or(b.Client, "local"), b.State, v.ago(b.Since), b.Query).since(b.Begun).
		with(SourcePostgres, "lock", l.Mode+" on "+l.On)
	if len(l.Waiting) > 0 {
		c = c.with(SourcePostgres, "waiting", pids(l.Waiting))
	}
	return v.aboutBackend(c, b)
}

// aboutBackend adds one connection to the database, and how to end it.
func (v *view) aboutBackend(c Cause, b Backend) Cause {
	return c.with(SourcePostgres, "pid", b.PID).with(SourcePostgres, "application", b.App).with(SourcePostgres, "client", b.Client).
		with(SourcePostgres, "state", fmt.Sprintf("%s since %s", b.State, moment(b.Since))).with(SourcePostgres, "query", b.Query).
		fix(command(`psql "$OPSCORE_DATABASE_URL" -c 'SELECT pg_terminate_backend(%s)'`, b.PID))
}

// idleWorthTelling is how long a transaction may be idle before that is remarkable.
const idleWorthTelling = 10 * HeartbeatEvery

// forgotten names idle transactions that have written to opscore's tables.
func (v *view) forgotten() (causes []Cause) {
	for _, b := range v.Database.Idle {
		held := slices.ContainsFunc(v.Database.Locks, func(l Lock) bool { return l.Holder.PID == b.PID })
		if held || len(b.Locking) == 0 || v.At.Sub(b.Since) < idleWorthTelling {
			continue
		}
		causes = append(causes, v.aboutBackend(because(CauseTransactionIdle,
			"process %d of the database (%s, %s) has written to %s and is %s for %s",
			b.PID, cmp.Or(b.App, "no name"), cmp.Or(b.Client, "local"), strings.Join(b.Locking, ", "), b.State, v.ago(b.Since)), b).since(b.Begun))
	}
	return causes
}
