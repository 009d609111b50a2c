package opscoretest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/rabbitmq"
	"github.com/opscore/opscore/sqlite"
)

// Tier is where tasks are kept and how they reach workers.
type Tier string

// The tiers. The servers of Postgres and Cluster are private ones, which the tests of a process share: they start with the first test that
// needs them and end with the process, and PostgreSQL and RabbitMQ must be installed. Every test has a database and a
// virtual host of its own.
const (
	Embedded Tier = "embedded" // SQLite
	Postgres Tier = "postgres" // PostgreSQL
	Cluster  Tier = "cluster"  // PostgreSQL, and RabbitMQ for tickets
)

// Options say what [Live] starts. The zero value is an empty SQLite file and no worker.
type Options struct {
	Handlers opscore.Handlers // of a worker in the test's own process; none for no worker
	Process  bool             // a worker in a process of its own: the test binary once more, whose TestMain calls Main
	Env      []string         // that process's environment, besides the test's own; as "NAME=value"

	Tier     Tier   // with storage and servers of the test's own; "" means Embedded, or what Database and Broker are
	Database string // instead: a path, or a postgres:// URL, which is migrated if need be and used as it is
	Broker   string // with a postgres:// Database: an amqp:// URL

	Queues   []string      // to listen to; none for the handlers' own queues
	Slots    int           // running tasks at most; 0 means 100
	Patience time.Duration // how long the test waits for anything; 0 means 30 s
}

// Live starts a worker and a keeper in real time, and returns when the worker is ready. When the test ends, the worker is drained, and nothing
// of it remains, even if the test is killed. What the worker logs becomes the test's log. Tests with it can run in parallel.
func Live(t *testing.T, o Options) *Env {
	t.Helper()
	if ownBubble() != "" {
		t.Fatal("Live in a bubble of fake time: processes and sockets live in real time, so call it outside")
	}
	at, err := o.place(t)
	if err != nil {
		t.Fatal(err)
	}
	e := &Env{Tier: at.tier(), Database: at.Database, Broker: at.Broker, t: t, patience: cmp.Or(o.Patience, defaultPatience)}
	behind, err := e.faults.place(t, at)
	if err != nil {
		t.Fatal(err)
	}
	var opened closers
	t.Cleanup(func() { // before the cleanups that end the proxies
		e.faults.heal()
		e.close(opened.close)
	})
	if err := e.build(o, at, behind, &opened); err != nil {
		t.Fatal(err)
	}
	e.start()
	return e
}

const (
	defaultPatience = 30 * time.Second
	drainWithin     = 5 * time.Second // at the end of a test, running tasks may finish for so long
)

// build prepares the worker and the keeper, which reach their servers by way of the proxies.
func (e *Env) build(o Options, at, behind place, opened *closers) error {
	ctx, log := e.t.Context(), slog.NewTextHandler(e.t.Output(), nil)
	store, err := at.open(ctx, log, opened)
	if err != nil {
		return err
	}
	e.Store, e.Client = store, &opscore.Client{Store: store}
	if at.tier() != Embedded { // a SQLite file is opened once in a process, so that a submit wakes the worker
		if store, err = behind.open(ctx, log, opened); err != nil {
			return err
		}
	}
	k := &opscore.Keeper{Store: store, Log: slog.New(log)}
	if at.Broker != "" {
		if k.Publisher, err = e.faults.publisher(ctx, behind, store, log, opened); err != nil {
			return err
		}
	}
	e.keep = func() func() { return keep(e.t, k) }
	switch {
	case o.Process:
		e.hire = func() (hand, error) { return hireProcess(e.t, o, behind, e.patience) }
	case len(o.Handlers) > 0:
		p := post{handlers: o.Handlers, queues: o.Queues, slots: o.Slots, drain: drainWithin, log: log, sources: behind.sources(log)}
		e.hire = func() (hand, error) { return hireLocal(ctx, newGate(store, nil), p) }
	}
	return nil
}

// place is where tasks are.
type place struct {
	Database string // a path or a postgres:// URL
	Broker   string // "" for none
}

// place is what the options say, made if it is to be the test's own.
func (o Options) place(t *testing.T) (place, error) {
	t.Helper()
	switch {
	case o.Process && len(o.Handlers) > 0:
		return place{}, errors.New("the Handlers of Options are for a worker in the test's own process; that of Options.Process has those that TestMain gives to Main")
	case o.Tier != "" && (o.Database != "" || o.Broker != ""):
		return place{}, errors.New("a Tier of Options has servers of the test's own: leave it out where Database or Broker are given")
	case o.Broker != "" && !isPostgres(o.Database):
		return place{}, errors.New("the Broker of Options needs a postgres:// Database: other stores have no tickets")
	case isPostgres(o.Database):
		return place{o.Database, o.Broker}, postgres.Migrate(t.Context(), o.Database, postgres.Options{})
	case o.Database != "":
		return place{Database: o.Database}, nil
	}
	switch o.Tier {
	case "", Embedded:
		return place{Database: filepath.Join(t.TempDir(), "opscore.db")}, nil
	case Postgres, Cluster:
		p := place{Database: nodes.Database(t, "opscore", func(url string) error {
			return postgres.Migrate(t.Context(), url, postgres.Options{})
		})}
		if o.Tier == Cluster {
			p.Broker = nodes.Vhost(t)
		}
		return p, nil
	}
	return place{}, fmt.Errorf("unknown tier %q; known: %s, %s, %s", o.Tier, Embedded, Postgres, Cluster)
}

func isPostgres(database string) bool {
	return strings.HasPrefix(database, "postgres://") || strings.HasPrefix(database, "postgresql://")
}

func (p place) tier() Tier {
	switch {
	case !isPostgres(p.Database):
		return Embedded
	case p.Broker == "":
		return Postgres
	}
	return Cluster
}

func (p place) open(ctx context.Context, log slog.Handler, opened *closers) (opscore.Store, error) {
	if p.tier() == Embedded {
		s, err := sqlite.Open(p.Database)
		if err == nil {
			opened.add(s.Close)
		}
		return s, err
	}
	s, err := postgres.Open(ctx, p.Database, postgres.Options{Log: slog.New(log)})
	if err == nil {
		opened.add(func() error { s.Close(); return nil })
	}
	return s, err
}

// sources returns how a worker here gets its tasks.
func (p place) sources(log slog.Handler) func(*gate) ([]opscore.Source, func(), error) {
	return func(g *gate) ([]opscore.Source, func(), error) {
		if p.Broker == "" {
			return []opscore.Source{opscore.FromStore(g, 0)}, func() {}, nil
		}
		o := rabbitmq.Options{Log: slog.New(&mortal{log, g})}
		b, err := rabbitmq.Open(context.Background(), p.Broker, ticketGate{g, g.Store.(outbox)}, o)
		if err != nil {
			return nil, nil, err
		}
		return []opscore.Source{b.Source()}, b.Close, nil
	}
}

// outbox is what [rabbitmq.Store] has besides a store.
type outbox interface {
	opscore.Outbox
	Deployment(ctx context.Context) (opscore.Deployment, error)
	BeginEpoch(ctx context.Context, before, next opscore.ID) (now opscore.ID, err error)
	KeepOrphans(ctx context.Context, orphans []opscore.Orphan) (dropped int, err error)
}

// ticketGate is a gate for workers that get tickets.
type ticketGate struct {
	*gate
	outbox
}

// place returns how to reach the servers of at by way of proxies, where that is possible.
func (f *faults) place(t *testing.T, at place) (place, error) {
	t.Helper()
	if at.tier() == Embedded {
		return at, nil
	}
	behind := at
	for _, way := range []struct {
		url   *string
		proxy **nodes.Proxy
	}{{&behind.Database, &f.toStore}, {&behind.Broker, &f.toBroker}} {
		target, err := proxyable(*way.url)
		if err != nil {
			return at, err
		}
		if target != "" {
			*way.proxy = nodes.NewProxy(t, target)
			*way.url = (*way.proxy).URL(*way.url)
		}
	}
	return behind, nil
}

// proxyable returns the one host and port that a URL leads to, or "" where a proxy would be noticed.
func proxyable(server string) (target string, err error) {
	if server == "" || strings.Contains(server, ",") {
		return "", nil
	}
	u, err := url.Parse(server)
	if err != nil {
		return "", errors.New("a server's URL cannot be read") // the error would show its password
	}
	if strings.HasPrefix(u.Query().Get("sslmode"), "verify") || u.Scheme == "amqps" || u.Hostname() == "" {
		return "", nil
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"amqp": "5672", "postgres": "5432", "postgresql": "5432"}[u.Scheme]
	}
	return u.Hostname() + ":" + port, nil
}

// publisher returns the keeper's, with faults.
func (f *faults) publisher(ctx context.Context, at place, store opscore.Store, log slog.Handler, opened *closers) (opscore.Publisher, error) {
	b, err := rabbitmq.Open(ctx, at.Broker, store.(rabbitmq.Store), rabbitmq.Options{Log: slog.New(log)})
	if err != nil {
		return nil, err
	}
	opened.add(func() error { b.Close(); return nil })
	f.tickets = &tamper{Publisher: b.Publisher()}
	f.purge = func(ctx context.Context, queues []string) error {
		for _, q := range queues {
			if _, err := b.Purge(ctx, q); err != nil {
				return err
			}
		}
		return nil
	}
	return f.tickets, nil
}

// closers close what was opened, the last first.
type closers []func() error

func (c *closers) add(one func() error) { *c = append(*c, one) }

func (c *closers) close() error {
	var errs []error
	for _, one := range slices.Backward(*c) {
		errs = append(errs, one())
	}
	return errors.Join(errs...)
}
