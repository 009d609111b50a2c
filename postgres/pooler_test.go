package postgres_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/storetest"
)

// pooled makes the URL of a database one by way of a transaction-pooling proxy.
func pooled(t *testing.T) func(url string) string {
	t.Helper()
	via := nodes.Pooler(t, database(t))
	return func(url string) string { return via(url) + "&default_query_exec_mode=cache_describe" }
}

func TestConformanceBehindATransactionPoolingProxy(t *testing.T) {
	h, via := harness(t), pooled(t)
	h.Open = func(string) (opscore.Store, func() error, error) {
		s, err := postgres.Open(t.Context(), via(database(t)), postgres.Options{})
		if err != nil {
			return nil, nil, err
		}
		return s, func() error { s.Close(); return nil }, nil
	}
	storetest.Run(t, h)
}

func TestAWrongModeForAProxyIsNamedWithTheRightOne(t *testing.T) {
	url := database(t)
	via := nodes.Pooler(t, url)
	_, err := postgres.Open(t.Context(), url+"&default_query_exec_mode=exec", postgres.Options{})
	if !errors.Is(err, opscore.ErrInvalid) || !strings.Contains(err.Error(), "default_query_exec_mode=exec") || !strings.Contains(err.Error(), "cache_describe") {
		t.Errorf("a mode that cannot work: %v", err)
	}
	// Prepared statements: sooner or later a connection to the server has them already, or not yet.
	for range 100 {
		var s *postgres.Store
		if s, err = postgres.Open(t.Context(), via(url), postgres.Options{}); err != nil {
			break
		}
		_, err = s.Count(t.Context())
		s.Close()
		if err != nil {
			break
		}
	}
	if !errors.Is(err, opscore.ErrUnavailable) || !strings.Contains(err.Error(), "add default_query_exec_mode=cache_describe to the URL") {
		t.Errorf("prepared statements behind a proxy that does not know them: %v", err)
	}
}

func TestAWorkerNeedsNoSessionOfTheDatabase(t *testing.T) {
	url := database(t)
	direct, behind := open(t, url), open(t, pooled(t)(url))
	const tasks = 2000
	fill(t, direct, tasks/2)
	var ran atomic.Int64
	h := opscore.Handlers{}
	opscore.Handle(h, charge, func(context.Context, order) (string, error) {
		ran.Add(1)
		return "", nil
	})
	employ(t, &opscore.Worker{Store: behind, Handlers: h})
	fill(t, direct, tasks/2) // of which no notification arrives
	until(t, "all are completed", 30*time.Second, func() bool {
		return count(t, direct, "SELECT count(*) FROM opscore.task WHERE state = 'completed'") == tasks
	})
	if ran.Load() != tasks {
		t.Errorf("%d runs of %d tasks", ran.Load(), tasks)
	}
}
