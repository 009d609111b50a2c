package postgres

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/opscore/opscore"
)

// Inspector asks a PostgreSQL server about itself, on a connection of its own: a pool may be exhausted, and what it has open says nothing about
// whether the server lets anybody in. It reads only, takes no lock that anything of opscore's waits for, and gives up after a second.
type Inspector struct {
	URL     string
	Options Options
}

const (
	inspectFor  = time.Second
	inspectLock = 100 * time.Millisecond // how long it waits for a table that is locked
	maxListed   = 20                     // of each kind
)

// Gather returns what the server says about itself and those that are connected to it, and, if known has the id of a task, about its row. With an
// error it returns what it has come to know all the same.
func (i Inspector) Gather(ctx context.Context, known *opscore.Facts) (opscore.Facts, error) {
	var d opscore.DatabaseFacts
	err := i.inspect(ctx, known.ID, &d)
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		d.SQLState = pg.Code
	}
	if err != nil {
		d.Err = oneLine(err.Error())
	}
	return opscore.Facts{Database: &d}, err
}

func (i Inspector) inspect(ctx context.Context, task opscore.ID, d *opscore.DatabaseFacts) error {
	ctx, cancel := context.WithTimeout(ctx, inspectFor)
	defer cancel()
	schema, err := i.Options.schema()
	if err != nil {
		return err
	}
	config, err := parseConfig(i.URL)
	if err != nil {
		return err
	}
	c := config.ConnConfig
	c.RuntimeParams["application_name"] = "opscore explain"
	c.DefaultQueryExecMode = pgx.QueryExecModeExec // one round trip, and no statement that a pooling proxy could mix up
	a := reach(ctx, c)
	d.Endpoint, d.Reached = endpoint(a.config, schema), a.reached
	if a.err != nil {
		return unavailable("connect to "+address(a.config), a.err)
	}
	conn := a.conn
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	look := &inspection{schema: schema, task: task, facts: d}
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error { return look.all(ctx, tx) })
	return unavailable("inspect "+address(a.config), err)
}

// inspection is one look at a server.
type inspection struct {
	schema   string
	task     opscore.ID
	facts    *opscore.DatabaseFacts
	now      time.Time // the server's
	ctid     string    // of the task's row
	xmax     string    // of it: who has locked or changed it last
	members  map[string]string
	locks    []heldLock
	backends map[int]*backend
}

// all looks at everything. What tells nothing, because a table is locked or missing, leaves its part out.
func (l *inspection) all(ctx context.Context, tx pgx.Tx) error {
	limits := "SET LOCAL lock_timeout = '" + inspectLock.String() + "'; SET LOCAL statement_timeout = '" + inspectFor.String() +
		"'; SET LOCAL idle_in_transaction_session_timeout = '" + (2 * inspectFor).String() + "'" // this process may be stopped
	if _, err := tx.Exec(ctx, limits); err != nil {
		return err
	}
	if err := l.server(ctx, tx); err != nil {
		return err
	}
	var missing error
	for _, part := range []func(context.Context, pgx.Tx) error{l.deployment, l.version, l.row, l.lockers, l.history, l.timeouts} {
		err := pgx.BeginFunc(ctx, tx, func(sub pgx.Tx) error { return part(ctx, sub) }) // a savepoint
		if ctx.Err() != nil {
			return err
		}
		missing = cmp.Or(missing, unexpected(err))
	}
	err := cmp.Or(l.readLocks(ctx, tx), l.readBackends(ctx, tx), l.lookAgain(ctx, tx), l.readPrepared(ctx, tx), l.readCrowds(ctx, tx), l.readStandbys(ctx, tx))
	if err == nil {
		l.describe()
	}
	return cmp.Or(err, missing)
}

// unexpected leaves out errors that other facts tell of: that something is missing, or locked.
func unexpected(err error) error {
	if lacks(err) || hasCode(err, "55P03") || errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	return err
}

// lacks reports whether there is no such table, or no such schema.
func lacks(err error) bool { return hasCode(err, "42P01", "3F000") }

func hasCode(err error, codes ...string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.Contains(codes, pg.Code)
}

// Of other roles' backends a role may not see what they are, but that they are somebody's, in a database.
const serverSQL = `WITH client AS (SELECT * FROM pg_stat_activity
		WHERE coalesce(backend_type, 'client backend') = 'client backend' AND datid IS NOT NULL AND usesysid IS NOT NULL)
	SELECT clock_timestamp(), pg_postmaster_start_time(), pg_is_in_recovery(), s.setting = 'on', s.source,
		current_setting('max_connections')::int,
		current_setting('superuser_reserved_connections')::int + coalesce(current_setting('reserved_connections', true)::int, 0),
		(SELECT count(*) FROM client),
		d.datconnlimit, (SELECT count(*) FROM client WHERE datid = d.oid),
		r.rolconnlimit, (SELECT count(*) FROM client WHERE usesysid = r.oid),
		r.rolsuper, pg_has_role('pg_read_all_stats', 'USAGE'), r.rolname
	FROM pg_database d, pg_roles r, pg_settings s
	WHERE d.datname = current_database() AND r.rolname = current_user AND s.name = 'default_transaction_read_only'`

// server reads what the server is, and how many connections are left to this role.
func (l *inspection) server(ctx context.Context, tx pgx.Tx) error {
	d := l.facts
	var source, role string
	var limit, used [3]int
	var super, sees bool
	err := tx.QueryRow(ctx, serverSQL).Scan(&l.now, &d.Started, &d.Recovery, &d.ReadOnly, &source, &limit[0], &d.Reserved, &used[0],
		&limit[1], &used[1], &limit[2], &used[2], &super, &sees, &role)
	if err != nil {
		return err
	}
	d.Started = d.Started.UTC()
	if d.ReadOnly {
		d.ReadOnlyBy = source
	}
	if !super || used[0] >= limit[0]-d.Reserved { // a superuser gets in where nobody else does any more
		limit[0] -= d.Reserved
	}
	for n, of := range []string{"server", "database", "role"} {
		if d.LimitOf == "" || limit[n] >= 0 && !super && limit[n]-used[n] < d.Limit-d.Connections {
			d.LimitOf, d.Limit, d.Connections = of, limit[n], used[n]
		}
	}
	if !super && !sees {
		d.Unseen = oneLine("of what other roles do, role " + role + " sees neither state nor statement nor since when; GRANT pg_read_all_stats TO " +
			pgx.Identifier{role}.Sanitize())
	}
	return nil
}

func (l *inspection) deployment(ctx context.Context, tx pgx.Tx) error {
	var instance string
	err := tx.QueryRow(ctx, inSchema("SELECT instance::text FROM opscore.deployment", l.schema)).Scan(&instance)
	l.facts.Endpoint.Instance = instance
	return err
}

// history reads the timeline. Some servers that are like PostgreSQL do not tell.
func (l *inspection) history(ctx context.Context, tx pgx.Tx) error {
	err := tx.QueryRow(ctx, "SELECT "+timelineSQL).Scan(&l.facts.Timeline)
	if _, said := errors.AsType[*pgconn.PgError](err); said {
		return nil
	}
	return err
}

// timeouts reads what ends the statements of others; of this transaction they are set already.
func (l *inspection) timeouts(ctx context.Context, tx pgx.Tx) error {
	return each(ctx, tx, func(rows pgx.Rows) error {
		var name string
		var ms int64
		err := rows.Scan(&name, &ms)
		l.facts.Timeouts = append(l.facts.Timeouts, opscore.Setting{Name: name, Value: opscore.Duration(time.Duration(ms) * time.Millisecond)})
		return err
	}, `SELECT name, reset_val::bigint FROM pg_settings
		WHERE name IN ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout') AND reset_val <> '0' ORDER BY name`)
}

func (l *inspection) version(ctx context.Context, tx pgx.Tx) error {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return err
	}
	err = tx.QueryRow(ctx, "SELECT coalesce(max(version_id), 0) FROM "+l.schema+".version").Scan(&l.facts.Schema)
	if err == nil || lacks(err) {
		l.facts.SchemaWanted = int64(len(names))
	}
	return err
}

// row reads where the task's row is and which transaction has locked or changed it last. To read that takes no lock on it.
func (l *inspection) row(ctx context.Context, tx pgx.Tx) error {
	if l.task == (opscore.ID{}) {
		return nil
	}
	return tx.QueryRow(ctx, inSchema("SELECT ctid::text, xmax::text FROM opscore.task WHERE id = $1::uuid", l.schema), l.task.String()).Scan(&l.ctid, &l.xmax)
}

// lockers reads which transactions the row's is a group of, as it is when several have locked the row. The server would log an error if there were
// no such group.
func (l *inspection) lockers(ctx context.Context, tx pgx.Tx) error {
	if l.xmax == "" || l.xmax == "0" {
		return nil
	}
	l.members = map[string]string{}
	return each(ctx, tx, func(rows pgx.Rows) error {
		var xid, mode string
		err := rows.Scan(&xid, &mode)
		l.members[xid] = mode
		return err
	}, lockersSQL, l.xmax)
}

const lockersSQL = `SELECT m.xid::text, m.mode FROM pg_database d CROSS JOIN LATERAL pg_get_multixact_members(
		CASE WHEN mxid_age($1::text::xid) BETWEEN 1 AND mxid_age(d.datminmxid) THEN $1::text::xid END) m
	WHERE d.datname = current_database()`

// heldLock is a row of pg_locks: a lock that somebody has or waits for.
type heldLock struct {
	pid     int
	vxid    string
	kind    string
	table   string // of opscore's; "" for others
	mode    string
	granted bool
	tuple   string // of a row: its place in the table, as a ctid
	xid     string
}

const locksSQL = `SELECT coalesce(l.pid, 0), coalesce(l.virtualtransaction, ''), l.locktype, coalesce(c.relname, ''), l.mode, l.granted,
		coalesce('(' || l.page || ',' || l.tuple || ')', ''), coalesce(l.transactionid::text, '')
	FROM pg_locks l LEFT JOIN (pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = $1)
		ON c.oid = l.relation AND c.relkind IN ('r', 'p') AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
	WHERE l.pid IS DISTINCT FROM pg_backend_pid() AND (c.oid IS NOT NULL OR l.locktype = 'transactionid' OR NOT l.granted)`

func (l *inspection) readLocks(ctx context.Context, tx pgx.Tx) error {
	l.locks = nil
	return each(ctx, tx, func(rows pgx.Rows) error {
		var h heldLock
		err := rows.Scan(&h.pid, &h.vxid, &h.kind, &h.table, &h.mode, &h.granted, &h.tuple, &h.xid)
		l.locks = append(l.locks, h)
		return err
	}, locksSQL, strings.Trim(l.schema, `"`))
}

// backend is a connection with those that it waits for.
type backend struct {
	opscore.Backend
	blockers []int
	hidden   bool // the server does not say what it does
}

const backendsSQL = `SELECT pid, coalesce(nullif(application_name, ''), nullif(backend_type, 'client backend'), ''), coalesce(usename, ''),
		coalesce(host(client_addr), ''), coalesce(client_port, 0), coalesce(state, ''), state_change, xact_start, coalesce(query, ''),
		coalesce(wait_event_type || ': ' || wait_event, ''),
		CASE WHEN pid = ANY($1::int[]) THEN pg_blocking_pids(pid) ELSE '{}' END
	FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`

// maxWaiters bounds of how many that wait it is asked whom for: each question stops the lock manager for a moment.
const maxWaiters = 100

func (l *inspection) readBackends(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, "SELECT pg_stat_clear_snapshot()"); err != nil { // a transaction sees the backends as they were when it looked first
		return err
	}
	var waiting []int
	for _, h := range l.locks {
		if !h.granted && len(waiting) < maxWaiters && !slices.Contains(waiting, h.pid) {
			waiting = append(waiting, h.pid)
		}
	}
	l.backends = map[int]*backend{}
	return each(ctx, tx, func(rows pgx.Rows) error {
		b, client, port := &backend{}, "", 0
		var since, begun *time.Time
		err := rows.Scan(&b.PID, &b.App, &b.User, &client, &port, &b.State, &since, &begun, &b.Query, &b.Wait, &b.blockers)
		b.App, b.User, b.Query, b.Since, b.Begun = oneLine(b.App), oneLine(b.User), shownQuery(b.Query), timeOf(since), timeOf(begun)
		if client != "" {
			b.Client = net.JoinHostPort(client, strconv.Itoa(port))
		}
		if b.State != "active" {
			b.Wait = ""
		}
		if b.hidden = b.State == "" && since == nil && strings.HasPrefix(b.Query, "<"); b.hidden {
			b.Query = "" // it says that it does not say
		}
		l.backends[b.PID] = b
		return err
	}, backendsSQL, array(waiting))
}

// lookAgainAfter is how long a lock must have been held of which the server does not say since when.
const lookAgainAfter = 300 * time.Millisecond

// lookAgain tells old locks from young ones where the server does not say since when: it leaves out those of which nothing is to be seen and
// that are not there any more after a while, or in another transaction.
func (l *inspection) lookAgain(ctx context.Context, tx pgx.Tx) error {
	hides := func(h heldLock) bool { return l.backends[h.pid] != nil && l.backends[h.pid].hidden }
	if !slices.ContainsFunc(l.locks, hides) {
		return nil
	}
	before := l.locks
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(lookAgainAfter):
	}
	if err := l.readLocks(ctx, tx); err != nil {
		return err
	}
	l.locks = slices.DeleteFunc(l.locks, func(h heldLock) bool { return hides(h) && !slices.Contains(before, h) })
	return nil
}

const crowdsSQL = `SELECT coalesce(application_name, ''), coalesce(usename, ''), coalesce(host(client_addr), ''), count(*)
	FROM pg_stat_activity
	WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND CASE $1 WHEN 'database' THEN datname = current_database() WHEN 'role' THEN usename = current_user ELSE true END
	GROUP BY 1, 2, 3 ORDER BY 4 DESC LIMIT 3`

// readCrowds finds who has the connections of which none is left.
func (l *inspection) readCrowds(ctx context.Context, tx pgx.Tx) error {
	if l.facts.Connections < l.facts.Limit {
		return nil
	}
	return each(ctx, tx, func(rows pgx.Rows) error {
		var c opscore.Crowd
		err := rows.Scan(&c.App, &c.User, &c.Client, &c.N)
		c.App, c.User = oneLine(c.App), oneLine(c.User)
		l.facts.Crowds = append(l.facts.Crowds, c)
		return err
	}, crowdsSQL, l.facts.LimitOf)
}

// readStandbys reads for whom a commit waits, and who is there.
func (l *inspection) readStandbys(ctx context.Context, tx pgx.Tx) error {
	if err := tx.QueryRow(ctx, "SELECT current_setting('synchronous_standby_names')").Scan(&l.facts.SyncStandbys); err != nil || l.facts.SyncStandbys == "" {
		return err
	}
	l.facts.SyncStandbys = oneLine(l.facts.SyncStandbys)
	return each(ctx, tx, func(rows pgx.Rows) error {
		var name, state, sync string
		err := rows.Scan(&name, &state, &sync)
		l.facts.Standbys = append(l.facts.Standbys, oneLine(name+" ("+state+", "+sync+")"))
		return err
	}, "SELECT coalesce(application_name, ''), coalesce(state, ''), coalesce(sync_state, '') FROM pg_stat_replication ORDER BY 1")
}

// array is a list as a literal of PostgreSQL's.
func array(of []int) string {
	var words []string
	for _, n := range of {
		words = append(words, strconv.Itoa(n))
	}
	return "{" + strings.Join(words, ",") + "}"
}

// readPrepared finds the transactions that are prepared: they hold their locks without a connection, also after a restart. In pg_locks they have
// no process; here each gets a number below 0 in its place.
func (l *inspection) readPrepared(ctx context.Context, tx pgx.Tx) error {
	return each(ctx, tx, func(rows pgx.Rows) error {
		var xid string
		b := &backend{Backend: opscore.Backend{State: "prepared transaction"}}
		if err := rows.Scan(&xid, &b.Prepared, &b.User, &b.Begun); err != nil {
			return err
		}
		b.Prepared, b.User, b.Begun = oneLine(b.Prepared), oneLine(b.User), b.Begun.UTC()
		b.Since = b.Begun
		stand := -1 - len(l.backends)
		l.backends[stand] = b
		of := ""
		for _, h := range l.locks {
			if h.pid == 0 && h.xid == xid {
				of = h.vxid
			}
		}
		for n := range l.locks {
			if h := &l.locks[n]; h.pid == 0 && h.vxid == of {
				h.pid = stand
			}
		}
		return nil
	}, "SELECT transaction::text, gid, owner, prepared FROM pg_prepared_xacts WHERE database = current_database()")
}

// describe makes facts of what was read.
func (l *inspection) describe() {
	l.describeWaiters()
	l.describeRow()
	l.describeTables()
	for pid, b := range l.backends {
		switch wrote := l.tables(pid, writes); {
		case b.Begun.IsZero() && !b.hidden, !l.settled(b.Begun):
		case len(wrote) > 0 && len(b.blockers) == 0: // who waits is told of with whom it waits for
			b.Locking = wrote
			l.facts.Idle = append(l.facts.Idle, b.Backend)
		}
		if b.State == "active" && l.settled(b.Since) && len(l.tables(pid, func(heldLock) bool { return true })) > 0 {
			l.facts.Slow = append(l.facts.Slow, b.Backend)
		}
	}
	for _, some := range []*[]opscore.Backend{&l.facts.Idle, &l.facts.Slow} {
		slices.SortFunc(*some, func(a, b opscore.Backend) int { return cmp.Or(a.Begun.Compare(b.Begun), a.PID-b.PID) })
		*some = (*some)[:min(len(*some), maxListed)]
	}
	slices.SortStableFunc(l.facts.Locks, func(a, b opscore.Lock) int {
		return cmp.Or(strings.Compare(b.On, a.On), a.Holder.Begun.Compare(b.Holder.Begun)) // "row of the task" first
	})
	l.facts.Locks = l.facts.Locks[:min(len(l.facts.Locks), maxListed)]
}

// settled reports whether something began long enough ago to be told. What may not be seen is.
func (l *inspection) settled(since time.Time) bool {
	return since.IsZero() || l.now.Sub(since) >= opscore.SettledAfter
}

// tables returns opscore's tables on which the process has locks that are wanted.
func (l *inspection) tables(pid int, wanted func(heldLock) bool) (names []string) {
	for _, h := range l.locks {
		if h.pid == pid && h.table != "" && wanted(h) {
			names = append(names, l.name(h.table))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (l *inspection) name(table string) string {
	return oneLine(strings.Trim(l.schema, `"`) + "." + table)
}

// strengths are the modes of locks on tables, from the weakest to the strongest.
var strengths = []string{
	"AccessShareLock", "RowShareLock", "RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock", "ShareRowExclusiveLock",
	"ExclusiveLock", "AccessExclusiveLock",
}

// writes says that the lock is that of who has changed rows.
func writes(h heldLock) bool {
	return h.granted && h.kind == "relation" && h.mode == "RowExclusiveLock"
}

// stops says that nobody can change rows beside the lock.
func stops(h heldLock) bool {
	return h.granted && h.kind == "relation" && h.table != "" && slices.Index(strengths, h.mode) >= slices.Index(strengths, "ShareLock")
}

// describeWaiters follows each that waits, and has to do with opscore's tables, to the head of its line.
func (l *inspection) describeWaiters() {
	for _, h := range l.locks {
		if h.granted || h.table == "" && len(l.tables(h.pid, func(heldLock) bool { return true })) == 0 || l.backends[h.pid] == nil {
			continue
		}
		for head, next := range l.heads(h.pid) {
			if b := l.backends[head]; b != nil && l.settled(b.Begun) {
				lock := l.lock(l.what(h, head), head, h.table)
				lock.Waiting = append(lock.Waiting, h.pid)
				if n := l.backends[next]; n != nil && next != h.pid && lock.Next == nil {
					waits := n.Backend
					lock.Next = &waits
				}
			}
		}
	}
}

// heads returns those that pid waits for in the end, who wait for nobody, each with who waits for it directly.
func (l *inspection) heads(pid int) map[int]int {
	heads, seen := map[int]int{}, map[int]bool{}
	var follow func(pid int)
	follow = func(pid int) {
		if seen[pid] {
			return
		}
		seen[pid] = true
		b := l.backends[pid]
		if b == nil {
			return
		}
		for _, by := range b.blockers {
			if by == 0 {
				by = l.prepared(pid)
			}
			if b := l.backends[by]; b != nil && len(b.blockers) > 0 {
				follow(by)
			} else if b != nil {
				heads[by] = pid
			}
		}
	}
	follow(pid)
	return heads
}

// prepared returns the number of the prepared transaction that has what the process waits for.
func (l *inspection) prepared(pid int) int {
	for _, w := range l.locks {
		for _, h := range l.locks {
			if w.pid == pid && !w.granted && h.pid < 0 && h.granted && h.kind == w.kind && h.table == w.table && h.xid == w.xid {
				return h.pid
			}
		}
	}
	return 0
}

// what names the thing that a waiter waits for. Who waits for a row has a lock that says which, and waits for its holder's transaction.
func (l *inspection) what(h heldLock, head int) string {
	if h.kind == "relation" && h.table != "" {
		return "table " + l.name(h.table)
	}
	for _, t := range l.locks {
		if t.pid == h.pid && t.kind == "tuple" && t.table != "" {
			if t.table == "task" && t.tuple == l.ctid {
				return rowOfTask
			}
			return "row of table " + l.name(t.table)
		}
	}
	if _, ours := l.onRow(head); ours {
		return rowOfTask
	}
	return "row that process " + strconv.Itoa(h.pid) + " needs"
}

const rowOfTask = "row of the task"

// onRow says how a process has locked the task's row, if it has.
func (l *inspection) onRow(pid int) (mode string, has bool) {
	for _, h := range l.locks {
		if h.pid != pid || h.kind != "transactionid" || !h.granted || h.xid == "" {
			continue
		}
		if h.xid == l.xmax {
			mode, has = "row lock", true
		} else if m, member := l.members[h.xid]; member {
			mode, has = cmp.Or(rowModes[m], m), true
		}
	}
	return mode, has && len(l.tables(pid, func(h heldLock) bool { return h.table == "task" && h.granted })) > 0
}

// rowModes are the names of the modes in which a transaction of several has locked a row.
var rowModes = map[string]string{
	"keysh": "FOR KEY SHARE", "sh": "FOR SHARE", "fornokeyupd": "FOR NO KEY UPDATE", "forupd": "FOR UPDATE", "nokeyupd": "UPDATE", "upd": "UPDATE or DELETE",
}

// describeRow finds who has locked the task's row. A claim steps over such a row, so that nobody need wait for it.
func (l *inspection) describeRow() {
	for pid, b := range l.backends {
		if mode, has := l.onRow(pid); has && l.settled(b.Begun) && len(b.blockers) == 0 {
			l.lock(rowOfTask, pid, "").Mode = mode
		}
	}
}

// describeTables finds the locks that nobody can work beside, even if nobody has tried.
func (l *inspection) describeTables() {
	for _, h := range l.locks {
		if b := l.backends[h.pid]; stops(h) && b != nil && l.settled(b.Begun) {
			l.lock("table "+l.name(h.table), h.pid, h.table)
		}
	}
}

// lock returns the lock of a holder, which it adds if it is not there yet.
func (l *inspection) lock(on string, holder int, table string) *opscore.Lock {
	locks := &l.facts.Locks
	for n := range *locks {
		if known := &(*locks)[n]; known.On == on && known.Holder.PID == l.backends[holder].PID && known.Holder.Prepared == l.backends[holder].Prepared {
			return known
		}
	}
	mode := -1
	for _, h := range l.locks {
		if h.pid == holder && h.granted && h.table == table && h.kind == "relation" {
			mode = max(mode, slices.Index(strengths, h.mode))
		}
	}
	added := opscore.Lock{On: on, Mode: "row lock", Holder: l.backends[holder].Backend}
	if strings.HasPrefix(on, "table ") {
		added.Mode = ""
		if mode >= 0 {
			added.Mode = strengths[mode]
		}
	}
	added.Holder.Locking = l.tables(holder, writes)
	*locks = append(*locks, added)
	return &(*locks)[len(*locks)-1]
}
