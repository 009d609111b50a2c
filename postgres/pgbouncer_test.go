package postgres_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/storetest"
)

// pooled is what docs/operations/postgres.md says to add to the URL of a transaction-pooling proxy.
const pooled = "&default_query_exec_mode=cache_describe"

func TestConformanceBehindATransactionPoolingProxy(t *testing.T) {
	proxy := nodes.NewPgbouncer(t, database(t))
	h := harness(t)
	h.Open = func(string) (opscore.Store, func() error, error) {
		s, err := postgres.Open(t.Context(), proxy.URL(database(t))+pooled, postgres.Options{})
		if err != nil {
			return nil, nil, err
		}
		return s, func() error { s.Close(); return nil }, nil
	}
	storetest.Run(t, h)
	storetest.RunOutbox(t, h)
}

func TestWorkersBehindATransactionPoolingProxyCompleteEachTaskOnce(t *testing.T) {
	url := database(t)
	direct := open(t, url+"&application_name=direct")
	record(t, direct)
	proxy := nodes.NewPgbouncer(t, url)
	via := proxy.URL(url) + pooled
	handlers := opscore.Handlers{}
	opscore.Handle(handlers, charge, func(context.Context, order) (string, error) {
		<-time.After(time.Millisecond)
		return "", nil
	})
	for range 2 {
		s := open(t, via)
		employ(t, &opscore.Worker{Store: s, Handlers: handlers, Slots: 20})
		keep(t, s)
	}
	const tasks = 1000
	submitter := open(t, via)
	for range 10 {
		fill(t, submitter, tasks/10)
	}
	done := completed(t, direct)
	until(t, "all are completed", 60*time.Second, func() bool { return done() == tasks })
	wantEachOnce(t, direct, tasks)
	if n := count(t, direct, "SELECT count(*) FROM opscore.task WHERE attempt <> 1 OR lost <> 0"); n != 0 {
		t.Errorf("%d tasks needed more than one attempt", n)
	}
	// The server's own processes, autovacuum's among them, are in this database without a connection.
	if n := count(t, direct, `SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> 'direct'`); n > 4 {
		t.Errorf("the three stores have %d connections to the server, the proxy has 4: it does not pool", n)
	}
	if log := proxy.Log(); strings.Contains(log, "WARNING") { // as of each notification, if anybody listens
		t.Errorf("the proxy complains:\n%s", log)
	}
}

func TestPreparedStatementsBehindATransactionPoolingProxyAreAnErrorThatSaysWhatToAdd(t *testing.T) {
	url := database(t)
	via := nodes.NewPgbouncer(t, url, "default_pool_size = 1").URL(url)
	open(t, via)
	_, err := postgres.Open(t.Context(), via, postgres.Options{}) // the connection has the statements of the first one
	if !errors.Is(err, opscore.ErrUnavailable) || !strings.Contains(err.Error(), ": add default_query_exec_mode=cache_describe to the database URL: ") {
		t.Errorf("err = %v", err)
	}
	for _, mode := range []string{"exec", "simple_protocol"} {
		_, err := postgres.Open(t.Context(), via+"&default_query_exec_mode="+mode, postgres.Options{})
		want := "default_query_exec_mode " + mode + " does not work here; behind a transaction-pooling proxy use cache_describe"
		if !errors.Is(err, opscore.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", mode, err)
		}
	}
	if err := postgres.Migrate(t.Context(), via+pooled, postgres.Options{}); err == nil || !strings.Contains(err.Error(), "unsupported startup parameter") {
		t.Errorf("migrate: %v", err)
	}
}
