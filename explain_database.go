package opscore

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The names among the sources of facts of PostgreSQL's catalogs, and of the file of the embedded tier.
const (
	SourcePostgres = "postgres"
	SourceSQLite   = "sqlite"
)

// silence says why the store did not answer, as far as the database itself says.
func (v *view) silence() []Cause {
	if v.storeAnswered() {
		return nil
	}
	a, _ := v.asked(SourceStore)
	at := cmp.Or(a.At, v.Store.String(), "its address")
	about := func(c Cause) Cause { return c.with(SourceStore, "error", a.Err).with(SourceStore, "address", at) }
	switch d := v.Database; {
	case v.isFile():
		return v.fileSilence(a, at)
	case d == nil:
		c := about(because(CauseDatabaseUnreachable, "the database at %s does not answer: %s", at, a.Err))
		if catalogs, asked := v.asked(SourcePostgres); asked && catalogs.Err != "" {
			c = c.with(SourcePostgres, "error", catalogs.Err)
		}
		return []Cause{c.fix(safe(act("start the database at %s, or mend what the error says", at)))}
	case !d.open():
		return []Cause{v.notLetIn(cmp.Or(d.Endpoint.Address, at)).with(SourceStore, "error", a.Err)}
	case len(v.stopping()) > 0:
		return nil // said better by what the database itself says
	}
	c := about(because(CauseDatabaseSilent, "the database at %s takes connections, but did not answer the store: %s", at, a.Err))
	for _, b := range v.Database.Slow {
		c = c.with(SourcePostgres, "slow statement", fmt.Sprintf("%s, %s for %s, waits for %s: %s", b.name(), b.State, v.ago(b.Since), cmp.Or(b.Wait, "nothing"), b.Query))
	}
	return []Cause{c.fix(act("look what keeps the database at %s busy: pg_stat_activity", at))}
}

// open reports whether a fresh connection got to its end.
func (d *DatabaseFacts) open() bool { return d.Reached == DatabaseOpen || d.Reached == "" }

// otherSchema reports whether the schema is known not to be the one that this binary wants.
func (d *DatabaseFacts) otherSchema() bool { return d.SchemaWanted > 0 && d.Schema != d.SchemaWanted }

// isFile reports whether the database is a file of the embedded tier.
func (v *view) isFile() bool {
	_, asked := v.asked(SourceSQLite)
	return asked || v.Database != nil && v.Database.Endpoint.Kind == SourceSQLite
}

// catalogs is the source that tells of the database itself.
func (v *view) catalogs() string {
	if v.isFile() {
		return SourceSQLite
	}
	return SourcePostgres
}

// fileSilence says why the store did not answer from the file at path.
func (v *view) fileSilence(store Asked, path string) []Cause {
	d := v.Database
	c := because(CauseDatabaseRefused, "the database file %s cannot be used: %s", path, store.Err).fix(act("mend what the error says of %s", path))
	switch {
	case d != nil && d.Reached == DatabaseNone:
		c = because(CauseDatabaseUnreachable, "there is no database file %s: %s", path, d.Err).
			fix(safe(act("compare %s with where the submitter's tasks are (opscore config show), or put the file back", path)))
	case d != nil && d.open() && d.otherSchema():
		return nil // said better by what the file itself says
	case !store.Late: // the store has looked into it further than anybody else
	case d != nil && d.open() && len(v.stopping()) > 0:
		return nil
	case d == nil || d.open():
		c = because(CauseDatabaseSilent, "what the store asked of the database file %s was not answered: %s", path, store.Err).
			fix(act("look which processes have %s open, and at the load of its disk", path))
	}
	c = c.with(SourceStore, "error", store.Err).with(SourceStore, "address", path)
	if d != nil && d.Err != "" {
		c = c.with(SourceSQLite, "error", d.Err)
	}
	return []Cause{c}
}

// PostgreSQL's codes for a server that has no connection left, and for one that is not there yet, or not any more.
const (
	tooManyConnections = "53300"
	startingUp         = "57P03"
)

// notLetIn says how far a fresh connection to the database came.
func (v *view) notLetIn(at string) Cause {
	d := v.Database
	about := func(c Cause) Cause {
		c = c.with(SourcePostgres, "error", d.Err).with(SourcePostgres, "reached", d.Reached)
		if d.SQLState != "" {
			c = c.with(SourcePostgres, "sqlstate", d.SQLState)
		}
		return c.with(SourcePostgres, "address", at)
	}
	switch {
	case d.Reached == DatabaseTCP:
		return about(because(CauseDatabaseFrozen, "%s takes connections, but no database answers there: %s", at, d.Err)).
			fix(act("continue or restart the database server at %s: it is stopped or overloaded", at))
	case d.Reached == DatabaseNone || d.SQLState == startingUp:
		return about(because(CauseDatabaseUnreachable, "the database at %s does not answer: %s", at, d.Err)).fix(safe(act("start the database at %s", at)))
	case d.SQLState == tooManyConnections:
		return about(because(CauseDatabaseFull, "the database at %s has no connection left: %s", at, d.Err)).
			fix(act("end idle connections to %s, or raise its max_connections", at))
	}
	return about(because(CauseDatabaseRefused, "the database at %s does not let us in: %s", at, d.Err)).
		fix(act("mend what the database at %s says: the user, its password, the name of the database, or pg_hba.conf", at))
}

// database says what of the database itself keeps tasks from going on.
func (v *view) database() []Cause {
	if v.Database == nil || !v.Database.open() {
		return nil
	}
	return append(v.stopping(), v.forgotten()...)
}

// leastFree is as little room on a disk as none.
const leastFree = 1 << 20

// stopping is what of the database keeps tasks from going on, and who holds what others wait for.
func (v *view) stopping() (causes []Cause) {
	d := v.Database
	at := cmp.Or(d.Endpoint.String(), "the database")
	if d.Recovery || d.ReadOnly {
		causes = append(causes, v.readOnly(at))
	}
	if d.Limit > 0 && d.Connections >= d.Limit {
		causes = append(causes, v.full(at, cmp.Or(d.LimitOf, "server")))
	}
	if d.otherSchema() {
		causes = append(causes, v.schema(at))
	}
	if d.Free != nil && *d.Free < leastFree {
		causes = append(causes, because(CauseDatabaseDiskFull, "the disk of %s is full: %d bytes are free", at, *d.Free).
			with("host", "free bytes", *d.Free).fix(act("free room on the disk of %s", at)))
	}
	causes = append(causes, v.hurried(at)...)
	causes = append(causes, v.stalled(at)...)
	for _, l := range d.Locks {
		if l.Holder.Wait != commitWaits { // it ends when what it waits for is there
			causes = append(causes, v.lock(l))
		}
	}
	return causes
}

// full says who has the connections of which none is left.
func (v *view) full(at, of string) Cause {
	d := v.Database
	text, whose := fmt.Sprintf("%s has no connection left: %d of %d are in use, the limit of the %s", at, d.Connections, d.Limit, of), ""
	if len(d.Crowds) > 0 {
		whose = " of " + d.Crowds[0].name()
		text += fmt.Sprintf("; %d are%s", d.Crowds[0].N, whose)
	}
	c := because(CauseDatabaseFull, "%s", text).with(SourcePostgres, "connections", d.Connections).with(SourcePostgres, "limit of the "+of, d.Limit)
	for _, k := range d.Crowds {
		c = c.with(SourcePostgres, "connections of "+k.name(), k.N)
	}
	return c.fix(act("end idle connections%s to %s, or raise the limit of the %s", whose, at, of))
}

// name names whose connections they are for people.
func (c *Crowd) name() string {
	return fmt.Sprintf("%s (user %s, %s)", cmp.Or(c.App, "a program without a name"), cmp.Or(c.User, "not known"), cmp.Or(c.Client, "local"))
}

// schema says that the schema is not the one that this binary knows.
func (v *view) schema(at string) Cause {
	d := v.Database
	about := func(c Cause) Cause {
		return c.with(v.catalogs(), "schema version", d.Schema).with(v.catalogs(), "wanted", d.SchemaWanted).with(v.catalogs(), "looked in", at)
	}
	up := command("opscore migrate up")
	switch {
	case d.Schema > d.SchemaWanted:
		return about(because(CauseDatabaseSchema, "the schema of %s has version %d, and this binary knows only up to %d: a newer one has changed it", at, d.Schema, d.SchemaWanted)).
			fix(safe(act("use the newer opscore that the schema of %s was made by", at)))
	case d.Schema == 0:
		c := about(because(CauseDatabaseSchema, "%s has no tables of opscore", at))
		if v.isFile() { // up would make them in whatever file it is: first make sure
			return c.fix(safe(act("compare %s with where the submitter's tasks are (opscore config show)", at)), up)
		}
		look := safe(act("compare %s with where the submitter's tasks are (opscore config show): schema %s is not there, or was dropped or renamed",
			at, d.Endpoint.Name[strings.LastIndex(d.Endpoint.Name, "/")+1:]))
		if v.ID != (ID{}) { // somebody has submitted it somewhere
			return c.fix(look, up)
		}
		return c.fix(up, look)
	}
	return about(because(CauseDatabaseSchema, "the schema of %s has version %d, and this binary wants %d", at, d.Schema, d.SchemaWanted)).fix(up)
}

// leastTime is what a statement must have: some of opscore's take hundreds of milliseconds on a busy server.
const leastTime = time.Second

// hurried says that the server ends statements before they can be done.
func (v *view) hurried(at string) (causes []Cause) {
	for _, s := range v.Database.Timeouts {
		if time.Duration(s.Value) < leastTime {
			causes = append(causes, because(CauseDatabaseTimeout, "%s ends what takes longer than %s: %s is set for its sessions", at, s.Value, s.Name).
				with(SourcePostgres, s.Name, s.Value).
				fix(act("raise %s, or reset it, of the role, the database or the server at %s: ALTER ROLE … RESET %s", s.Name, at, s.Name)))
		}
	}
	return causes
}

// commitWaits is what a backend waits for whose commit a standby has not confirmed.
const commitWaits = "IPC: SyncRep"

// slowWorthTelling is far more than any statement of opscore's takes.
const slowWorthTelling = 5 * time.Second

// stalled says that statements do not end, although no lock keeps them.
func (v *view) stalled(at string) []Cause {
	d := v.Database
	var slow []Backend
	for _, b := range d.Slow {
		if b.Wait == commitWaits || strings.HasPrefix(b.App, "opscore") && !strings.HasPrefix(b.Wait, "Lock: ") && v.At.Sub(b.Since) >= slowWorthTelling {
			slow = append(slow, b)
		}
	}
	if len(slow) == 0 {
		return nil
	}
	slices.SortStableFunc(slow, func(a, b Backend) int { return a.Since.Compare(b.Since) })
	b := slow[0]
	why := fmt.Sprintf("%s, active for %s, waits for %s", b.name(), v.ago(b.Since), cmp.Or(b.Wait, "nothing but its own work"))
	c := because(CauseDatabaseStalled, "%s on tasks in %s %s not end: %s", countOf(len(slow), "statement"), at, map[bool]string{true: "does", false: "do"}[len(slow) == 1], why)
	remedy := act("look what process %d of the database works at, and at the load and the disk of %s", b.PID, at)
	if b.Wait == commitWaits {
		standbys := cmp.Or(strings.Join(d.Standbys, ", "), "none")
		c = because(CauseDatabaseStalled, "commits in %s wait for a synchronous standby that does not confirm them: synchronous_standby_names is %s, connected is %s; %s",
			at, cmp.Or(d.SyncStandbys, "not known"), standbys, why).
			with(SourcePostgres, "synchronous_standby_names", d.SyncStandbys).with(SourcePostgres, "standbys", standbys)
		remedy = act("start a standby that synchronous_standby_names of %s lists (%s), or take it out of there", at, d.SyncStandbys)
	}
	return []Cause{c.since(b.Since).with(SourcePostgres, "pid", b.PID).with(SourcePostgres, "waits for", b.Wait).with(SourcePostgres, "query", b.Query).
		with(SourcePostgres, "statements", len(slow)).fix(remedy)}
}

func (v *view) readOnly(at string) Cause {
	d := v.Database
	by := cmp.Or(d.ReadOnlyBy, "server")
	switch {
	case d.Recovery:
		return because(CauseDatabaseReadOnly, "%s takes no writes: it is a standby (in recovery)", at).with(SourcePostgres, "pg_is_in_recovery", d.Recovery).
			fix(act("connect to the primary instead of %s, or promote it", at))
	case v.isFile():
		return because(CauseDatabaseReadOnly, "%s cannot be written: %s", at, by).with("host", "read-only", by).
			fix(act("make the file %s writable, and its directory", at))
	}
	return because(CauseDatabaseReadOnly, "%s takes no writes: its transactions are read-only, which is set for the %s", at, by).
		with(SourcePostgres, "default_transaction_read_only", d.ReadOnly).with(SourcePostgres, "set for", by).
		fix(act("unset default_transaction_read_only of the %s at %s", by, at))
}

// lock says who holds what others need.
func (v *view) lock(l Lock) Cause {
	code := CauseTableLocked
	switch {
	case l.On == "row of the task":
		code = CauseRowLocked
	case strings.HasPrefix(l.On, "row"):
		code = CauseRowsLocked
	}
	b := l.Holder
	text := fmt.Sprintf("the %s is locked (%s) by %s, %s for %s", l.On, l.Mode, b.name(), cmp.Or(b.State, "in a state that may not be seen"), v.ago(b.Since))
	if b.Query != "" {
		text += ": " + b.Query
	}
	c := because(code, "%s", text).since(b.Begun).with(v.told(), "lock", l.Mode+" on "+l.On)
	c = v.aboutBackend(c, b)
	if n := l.Next; n != nil {
		c = c.with(v.told(), "first in line", n.name()+": "+n.Query)
	}
	if len(l.Waiting) > 0 {
		c = c.with(v.told(), "waiting", pids(l.Waiting))
	}
	return c
}

// told is who tells of the database's connections: its catalogs, or of a file this host.
func (v *view) told() string {
	if v.isFile() {
		return "host"
	}
	return SourcePostgres
}

// name names a connection for people.
func (b *Backend) name() string {
	if b.Prepared != "" {
		return "prepared transaction " + b.Prepared
	}
	return fmt.Sprintf("process %d of the database (%s, %s)", b.PID, cmp.Or(b.App, "no name"), cmp.Or(b.Client, "local"))
}

// aboutBackend adds one connection to the database, and how to end it.
func (v *view) aboutBackend(c Cause, b Backend) Cause {
	c = c.with(v.told(), "pid", b.PID).with(v.told(), "state", fmt.Sprintf("%s since %s", b.State, moment(b.Since))).
		with(v.told(), "application", b.App).with(v.told(), "client", b.Client).with(v.told(), "query", b.Query)
	const run = `psql "${OPSCORE_DATABASE_URL:?}" -c `
	switch {
	case v.isFile():
		return c.fix(act("let process %d on this host end its transaction, or end it", b.PID))
	case b.Prepared != "":
		return c.with(v.told(), "prepared transaction", b.Prepared).
			fix(command(run+"%s", "ROLLBACK PREPARED '"+strings.ReplaceAll(b.Prepared, "'", "''")+"'"))
	}
	return c.fix(command(run+"%s", fmt.Sprintf("SELECT pg_terminate_backend(%d)", b.PID)))
}

// idleWorthTelling is how long a transaction may be idle before that is remarkable.
const idleWorthTelling = 10 * HeartbeatEvery

// forgotten names idle transactions that have written to opscore's tables.
func (v *view) forgotten() (causes []Cause) {
	for _, b := range v.Database.Idle {
		held := slices.ContainsFunc(v.Database.Locks, func(l Lock) bool { return l.Holder.PID == b.PID && l.Holder.Prepared == b.Prepared })
		if held || len(b.Locking) == 0 || v.At.Sub(b.Since) < idleWorthTelling {
			continue
		}
		causes = append(causes, v.aboutBackend(because(CauseTransactionIdle, "%s has written to %s and is %s for %s",
			b.name(), strings.Join(b.Locking, ", "), b.State, v.ago(b.Since)), b).since(b.Begun))
	}
	return causes
}
