package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
)

// intruder is a connection beside opscore's.
type intruder struct {
	*pgx.Conn
	t *testing.T
}

func intrude(t *testing.T, at, name string) intruder {
	t.Helper()
	config, err := pgx.ParseConfig(at)
	if err != nil {
		t.Fatal(err)
	}
	config.RuntimeParams["application_name"] = name
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol // literals stay in the text
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return intruder{conn, t}
}

func (i intruder) pid() int { return int(i.PgConn().PID()) }

func (i intruder) exec(sql string, args ...any) {
	i.t.Helper()
	if _, err := i.Exec(i.t.Context(), sql, args...); err != nil {
		i.t.Fatalf("%s: %v", sql, err)
	}
}

// hang executes what has to wait, until the test ends.
func (i intruder) hang(sql string) {
	i.t.Helper()
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(i.t.Context())
	go func() {
		defer close(done)
		_, _ = i.Exec(ctx, sql)
	}()
	i.t.Cleanup(func() { cancel(); <-done })
}

// inspect looks at the server until it sees what is wanted.
func inspect(t *testing.T, at string, task opscore.ID, what string, seen func(*opscore.DatabaseFacts) bool) *opscore.DatabaseFacts {
	t.Helper()
	var d *opscore.DatabaseFacts
	until(t, what, 20*time.Second, func() bool {
		f, err := (postgres.Inspector{URL: at}).Gather(t.Context(), &opscore.Facts{ID: task})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if f.Database.Reached != opscore.DatabaseOpen || f.Database.Started.IsZero() || f.Database.Endpoint.Instance == "" && len(f.Database.Locks) == 0 {
			t.Fatalf("%s: %+v", what, f.Database)
		}
		d = f.Database
		return seen(d)
	})
	return d
}

func lockOn(on string) func(*opscore.DatabaseFacts) bool {
	return func(d *opscore.DatabaseFacts) bool {
		return slices.ContainsFunc(d.Locks, func(l opscore.Lock) bool { return l.On == on })
	}
}

func theLock(t *testing.T, d *opscore.DatabaseFacts, on string) opscore.Lock {
	t.Helper()
	i := slices.IndexFunc(d.Locks, func(l opscore.Lock) bool { return l.On == on })
	if len(d.Locks) != 1 || i < 0 {
		t.Fatalf("locks = %+v, want one on %s", d.Locks, on)
	}
	return d.Locks[i]
}

func submitted(t *testing.T, s *postgres.Store) opscore.ID {
	t.Helper()
	sub, err := charge.Submit(t.Context(), &opscore.Client{Store: s}, order{1})
	if err != nil {
		t.Fatal(err)
	}
	return sub.ID
}

func TestInspectorNamesWhoHoldsTheTasksRowAlthoughNobodyWaits(t *testing.T) {
	for name, sql := range map[string]string{
		"FOR UPDATE": "SELECT 'hunter2', 4711 FROM opscore.task WHERE id = '%s' FOR UPDATE",
		"UPDATE":     "UPDATE opscore.task SET labels = labels /* hunter2 */ WHERE id = '%s'",
		"savepoint":  "SAVEPOINT a; SELECT 'hunter2' FROM opscore.task WHERE id = '%s' FOR UPDATE",
	} {
		t.Run(name, func(t *testing.T) {
			at := database(t)
			s := open(t, at)
			id := submitted(t, s)
			submitted(t, s) // another one, to be left alone
			i := intrude(t, at, "nightly report")
			i.exec("BEGIN")
			i.exec(fmt.Sprintf(sql, id))
			l := theLock(t, inspect(t, at, id, "the lock on the row", lockOn("row of the task")), "row of the task")
			h := l.Holder
			if h.PID != i.pid() || h.App != "nightly report" || h.State != "idle in transaction" || h.User != "postgres" || h.Client == "" ||
				time.Since(h.Begun) < opscore.SettledAfter || h.Since.Before(h.Begun) || len(l.Waiting) != 0 {
				t.Errorf("lock = %+v, want that of %d", l, i.pid())
			}
			if !strings.Contains(h.Query, "WHERE id = ?") || strings.Contains(h.Query, "hunter2") || strings.Contains(h.Query, "4711") {
				t.Errorf("query = %s", h.Query)
			}
			if f := inspect(t, at, submitted(t, s), "another task", func(*opscore.DatabaseFacts) bool { return true }); len(f.Locks) != 0 {
				t.Errorf("another task's row: %+v", f.Locks)
			}
		})
	}
}

func TestInspectorNamesAllWhoShareTheTasksRow(t *testing.T) {
	at := database(t)
	id := submitted(t, open(t, at))
	var want []int
	for range 2 {
		i := intrude(t, at, "foreign key")
		i.exec("BEGIN")
		i.exec("SELECT 1 FROM opscore.task WHERE id = $1 FOR SHARE", id)
		want = append(want, i.pid())
	}
	d := inspect(t, at, id, "both locks", func(d *opscore.DatabaseFacts) bool { return len(d.Locks) == 2 })
	var got []int
	for _, l := range d.Locks {
		got = append(got, l.Holder.PID)
		if l.On != "row of the task" || l.Mode != "FOR SHARE" {
			t.Errorf("lock = %+v", l)
		}
	}
	if !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		t.Errorf("holders = %v, want %v", got, want)
	}
}

func TestInspectorNamesTheHeadOfTheLineAndNotTheMigrationThatWaits(t *testing.T) {
	at := database(t)
	s := open(t, at)
	id := submitted(t, s)
	reader, migration, behind := intrude(t, at, "report"), intrude(t, at, "migration"), intrude(t, at, "worker")
	reader.exec("BEGIN")
	reader.exec("SELECT count(*) FROM opscore.task")
	migration.hang("ALTER TABLE opscore.task ADD COLUMN more text DEFAULT 'hunter2'")
	blocked := func(pid int) func() bool {
		return func() bool {
			return count(t, s, fmt.Sprintf("SELECT count(*) FROM pg_locks WHERE pid = %d AND NOT granted", pid)) > 0
		}
	}
	until(t, "the migration waits", 10*time.Second, blocked(migration.pid()))
	behind.hang("UPDATE opscore.task SET actor = actor")
	until(t, "the update waits", 10*time.Second, blocked(behind.pid()))
	l := theLock(t, inspect(t, at, id, "the line", func(d *opscore.DatabaseFacts) bool {
		return lockOn("table opscore.task")(d) && len(d.Locks[0].Waiting) == 2
	}), "table opscore.task")
	if l.Holder.PID != reader.pid() || l.Mode != "AccessShareLock" || l.Holder.State != "idle in transaction" || l.Holder.Query != "SELECT count(*) FROM opscore.task" {
		t.Errorf("holder = %+v, want %d", l, reader.pid())
	}
	if l.Next == nil || l.Next.PID != migration.pid() || !strings.HasPrefix(l.Next.Query, "ALTER TABLE opscore.task ADD COLUMN more text DEFAULT ?") || l.Next.Wait != "Lock: relation" {
		t.Errorf("next = %+v, want %d", l.Next, migration.pid())
	}
	if !slices.Contains(l.Waiting, migration.pid()) || !slices.Contains(l.Waiting, behind.pid()) {
		t.Errorf("waiting = %v, want %d and %d", l.Waiting, migration.pid(), behind.pid())
	}
}

func TestInspectorNamesWhoLocksATable(t *testing.T) {
	at := database(t)
	id := submitted(t, open(t, at))
	i := intrude(t, at, "\x1b[31mfix")
	i.exec("BEGIN")
	i.exec("LOCK TABLE opscore.task IN ACCESS EXCLUSIVE MODE")
	l := theLock(t, inspect(t, at, id, "the lock", lockOn("table opscore.task")), "table opscore.task")
	if l.Holder.PID != i.pid() || l.Mode != "AccessExclusiveLock" || strings.Contains(l.Holder.App, "\x1b") {
		t.Errorf("lock = %+v, want that of %d", l, i.pid())
	}
}

func TestInspectorFollowsRowsToTheHeadOfTheLine(t *testing.T) {
	at := database(t)
	s := open(t, at)
	id, other := submitted(t, s), submitted(t, s)
	head, middle, last := intrude(t, at, "head"), intrude(t, at, "middle"), intrude(t, at, "last")
	head.exec("BEGIN")
	head.exec("SELECT 1 FROM opscore.task WHERE id = $1 FOR UPDATE", id)
	middle.exec("BEGIN")
	middle.exec("SELECT 1 FROM opscore.task WHERE id = $1 FOR UPDATE", other)
	middle.hang(fmt.Sprintf("UPDATE opscore.task SET actor = actor WHERE id = '%s'", id))
	last.hang(fmt.Sprintf("UPDATE opscore.task SET actor = actor WHERE id = '%s'", other))
	d := inspect(t, at, id, "the line", func(d *opscore.DatabaseFacts) bool {
		n := 0
		for _, l := range d.Locks {
			n += len(l.Waiting)
		}
		return n == 2
	})
	for _, l := range d.Locks {
		if l.Holder.PID != head.pid() {
			t.Errorf("lock = %+v, want all to be those of %d", l, head.pid())
		}
	}
	if d.Locks[0].On != "row of the task" || !slices.Contains(d.Locks[0].Waiting, middle.pid()) {
		t.Errorf("first = %+v", d.Locks[0])
	}
}

func TestInspectorShowsATransactionThatWasNotCommitted(t *testing.T) {
	at := database(t)
	s := open(t, at)
	conn, err := pgx.Connect(t.Context(), at+"&application_name=shop")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sub, err := charge.Submit(t.Context(), &opscore.Client{Store: s}, order{1}, postgres.In(tx))
	if err != nil {
		t.Fatal(err)
	}
	d := inspect(t, at, sub.ID, "the open transaction", func(d *opscore.DatabaseFacts) bool { return len(d.Idle) > 0 })
	b := d.Idle[0]
	if len(d.Idle) != 1 || b.PID != int(conn.PgConn().PID()) || b.App != "shop" || b.State != "idle in transaction" || !slices.Equal(b.Locking, []string{"opscore.task"}) ||
		len(d.Locks) != 0 {
		t.Errorf("facts = %+v", d)
	}
}

func TestInspectorNamesAPreparedTransaction(t *testing.T) {
	p := nodes.Own(t, "max_prepared_transactions = 2")
	at := p.URL("postgres")
	if err := postgres.Migrate(t.Context(), at, postgres.Options{}); err != nil {
		t.Fatal(err)
	}
	id := submitted(t, open(t, at))
	i := intrude(t, at, "two phases")
	i.exec("BEGIN")
	i.exec("UPDATE opscore.task SET actor = actor")
	i.exec("PREPARE TRANSACTION 'forgotten 1'")
	intrude(t, at, "waits").hang("UPDATE opscore.task SET actor = actor")
	d := inspect(t, at, id, "the lock with who waits", func(d *opscore.DatabaseFacts) bool {
		return lockOn("row of the task")(d) && len(d.Locks[0].Waiting) == 1
	})
	if h := theLock(t, d, "row of the task").Holder; h.Prepared != "forgotten 1" || h.PID != 0 || h.Begun.IsZero() {
		t.Errorf("holder = %+v", h)
	}
	if len(d.Idle) != 1 || d.Idle[0].Prepared != "forgotten 1" {
		t.Errorf("open = %+v", d.Idle)
	}
}

func TestInspectorSaysWhatItsRoleDoesNotSee(t *testing.T) {
	at := database(t)
	id := submitted(t, open(t, at))
	admin := intrude(t, at, "admin")
	role := fmt.Sprintf("reader%d", time.Now().UnixNano())
	admin.exec("CREATE ROLE " + role + " LOGIN CONNECTION LIMIT 3")
	t.Cleanup(func() {
		if _, err := admin.Exec(context.WithoutCancel(t.Context()), "DROP OWNED BY "+role+"; DROP ROLE "+role); err != nil {
			t.Error(err)
		}
	})
	admin.exec("GRANT USAGE ON SCHEMA opscore TO " + role + "; GRANT SELECT ON ALL TABLES IN SCHEMA opscore TO " + role)
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	i := intrude(t, at, "report")
	i.exec("BEGIN")
	i.exec("SELECT 'hunter2' FROM opscore.task WHERE id = $1 FOR UPDATE", id)
	d := inspect(t, u.String(), id, "the lock", lockOn("row of the task"))
	if h := theLock(t, d, "row of the task").Holder; h.PID != i.pid() || h.User != "postgres" || h.State != "" || h.Query != "" || !h.Begun.IsZero() {
		t.Errorf("holder = %+v", h)
	}
	if !strings.Contains(d.Unseen, `GRANT pg_read_all_stats TO "`+role+`"`) {
		t.Errorf("unseen = %q", d.Unseen)
	}
	if d.LimitOf != "role" || d.Limit != 3 || d.Connections != 1 {
		t.Errorf("limit = %d of %s, %d in use", d.Limit, d.LimitOf, d.Connections)
	}
	for range 2 {
		u2 := u.String()
		intrude(t, u2, "another")
	}
	intrude(t, u.String(), "the last")
	f, err := (postgres.Inspector{URL: u.String()}).Gather(t.Context(), &opscore.Facts{})
	if f.Database.SQLState != "53300" || f.Database.Reached != opscore.DatabaseRefused || !errors.Is(err, opscore.ErrUnavailable) {
		t.Errorf("with no connection left: %+v, %v", f.Database, err)
	}
}

func TestInspectorSaysWhereADatabaseIsMadeReadOnly(t *testing.T) {
	at := database(t)
	i := intrude(t, at, "admin")
	i.exec("ALTER DATABASE " + pgx.Identifier{i.Config().Database}.Sanitize() + " SET default_transaction_read_only = on")
	d := inspect(t, at, opscore.ID{}, "read-only", func(d *opscore.DatabaseFacts) bool { return true })
	if !d.ReadOnly || d.ReadOnlyBy != "database" || d.Recovery || d.Schema != d.SchemaWanted || d.Schema == 0 {
		t.Errorf("facts = %+v", d)
	}
}

func TestInspectorSaysThatTheServerIsAStandby(t *testing.T) {
	p := nodes.Own(t)
	at := p.URL("postgres")
	if err := postgres.Migrate(t.Context(), at, postgres.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Backup(t.Context()), p.Demote(t.Context())); err != nil {
		t.Fatal(err)
	}
	if d := inspect(t, at, opscore.ID{}, "a standby", func(*opscore.DatabaseFacts) bool { return true }); !d.Recovery || d.ReadOnly {
		t.Errorf("facts = %+v", d)
	}
}

func TestInspectorSaysHowFarItCame(t *testing.T) {
	p := nodes.Own(t)
	at := strings.Replace(p.URL("postgres"), "postgres@", "postgres:hunter2@", 1)
	gather := func(at string) (*opscore.DatabaseFacts, error) {
		t.Helper()
		began := time.Now()
		f, err := (postgres.Inspector{URL: at}).Gather(t.Context(), &opscore.Facts{})
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %s", took)
		}
		if f.Database.Endpoint.Address != p.Addr() || strings.Contains(fmt.Sprint(f.Database, err), "hunter2") {
			t.Errorf("facts = %+v, %v", f.Database, err)
		}
		return f.Database, err
	}
	if d, err := gather(at); err != nil || d.Reached != opscore.DatabaseOpen || d.Schema != 0 || d.SchemaWanted == 0 {
		t.Errorf("an empty database: %+v, %v", d, err)
	}
	if d, err := gather(strings.Replace(at, "/postgres?", "/missing?", 1)); err == nil || d.Reached != opscore.DatabaseRefused || d.SQLState != "3D000" {
		t.Errorf("no such database: %+v, %v", d, err)
	}
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	if d, err := gather(at); err == nil || d.Reached != opscore.DatabaseTCP {
		t.Errorf("frozen: %+v, %v", d, err)
	}
	if err := p.StopImmediately(); err != nil {
		t.Fatal(err)
	}
	if d, err := gather(at); err == nil || d.Reached != opscore.DatabaseNone {
		t.Errorf("down: %+v, %v", d, err)
	}
}

// TestInspectorLooksAtTheServerThatAnswers has a URL with several servers, as there are for a primary and its standbys.
func TestInspectorLooksAtTheServerThatAnswers(t *testing.T) {
	frozen, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer frozen.Close()
	standby := nodes.Own(t)
	intrude(t, standby.URL("postgres"), "admin").exec("ALTER DATABASE postgres SET default_transaction_read_only = on")
	alive := nodes.Own(t)
	const down = "127.0.0.1:1"
	for _, c := range []struct {
		hosts   []string
		more    string
		at      string
		reached opscore.DatabaseStep
	}{
		{[]string{frozen.Addr().String(), alive.Addr()}, "", alive.Addr(), opscore.DatabaseOpen},
		{[]string{down, alive.Addr(), frozen.Addr().String()}, "", alive.Addr(), opscore.DatabaseOpen},
		{[]string{alive.Addr(), standby.Addr()}, "", alive.Addr(), opscore.DatabaseOpen},
		{[]string{standby.Addr(), alive.Addr()}, "", standby.Addr(), opscore.DatabaseOpen},
		{[]string{standby.Addr(), alive.Addr()}, "&target_session_attrs=read-write", alive.Addr(), opscore.DatabaseOpen},
		{[]string{down, standby.Addr()}, "&target_session_attrs=read-write", standby.Addr(), opscore.DatabaseRefused},
		{[]string{down, frozen.Addr().String()}, "", frozen.Addr().String(), opscore.DatabaseTCP},
	} {
		at := strings.Replace(alive.URL("postgres"), "postgres@"+alive.Addr(), "postgres:hunter2@"+strings.Join(c.hosts, ","), 1) + c.more
		f, err := (postgres.Inspector{URL: at}).Gather(t.Context(), &opscore.Facts{})
		d := f.Database
		if d.Reached != c.reached || d.Endpoint.Address != c.at || (err == nil) != (c.reached == opscore.DatabaseOpen) || d.Started.IsZero() != (err != nil) {
			t.Errorf("%s: %+v, %v; want %s at %s", at, d, err, c.reached, c.at)
		}
		if strings.Contains(fmt.Sprint(d, err), "hunter2") {
			t.Errorf("the facts hold a password: %+v, %v", d, err)
		}
	}
}

func TestAWorkerSaysThatHandlersHoldAllConnections(t *testing.T) {
	at := database(t) + "&pool_max_conns=2"
	s := open(t, at)
	h := opscore.Handlers{}
	free := make(chan struct{})
	opscore.Handle(h, charge, func(ctx context.Context, _ order) (string, error) {
		conn, err := s.Pool().Acquire(ctx)
		if err != nil {
			return "", err
		}
		defer conn.Release()
		<-free
		return "", nil
	})
	w := &opscore.Worker{Store: s, Handlers: h}
	employ(t, w)
	t.Cleanup(func() { close(free) })
	if info := w.Info(); info.Report.Check(opscore.CheckPool).State != opscore.CheckOK {
		t.Errorf("at first: %+v", info.Report.Checks)
	}
	other := open(t, at) // a submit looks at the registry as well
	fill(t, other, 3)
	var c opscore.Check
	until(t, "the worker says so", 20*time.Second, func() bool {
		info := w.Info()
		c = info.Report.Check(opscore.CheckPool)
		return c.State == opscore.CheckDegraded
	})
	if !strings.HasPrefix(c.Text, "2 of 2 connections in use, ") || !strings.Contains(c.Text, "TestAWorkerSaysThatHandlersHoldAllConnections") || c.Since.IsZero() {
		t.Errorf("check = %+v", c)
	}
	heard := func() bool { // by others, through another connection
		workers, err := other.Workers(t.Context(), 0)
		return err == nil && len(workers) == 1 && workers[0].Report.Check(opscore.CheckPool).State == opscore.CheckDegraded
	}
	until(t, "the registry knows it", 20*time.Second, heard)
}

func TestInspectorFindsNothingWrongWithWorkersAtWork(t *testing.T) {
	at := database(t)
	s := open(t, at)
	h := opscore.Handlers{}
	opscore.Handle(h, charge, func(context.Context, order) (string, error) { return "", nil })
	employ(t, &opscore.Worker{Store: s, Handlers: h})
	keep(t, s)
	for range 10 {
		fill(t, s, 200)
		f, err := (postgres.Inspector{URL: at}).Gather(t.Context(), &opscore.Facts{ID: submitted(t, s)})
		if d := f.Database; err != nil || len(d.Locks)+len(d.Idle)+len(d.Slow) > 0 || d.ReadOnly || d.Recovery || d.Connections >= d.Limit || d.Err+d.SQLState+d.Unseen != "" {
			t.Errorf("facts = %+v, %v", d, err)
		}
	}
}
