package doctor_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/doctor"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/sqlite"
)

// gatherer is somebody else's source.
type gatherer func(ctx context.Context, known *opscore.Facts) (opscore.Facts, error)

func (g gatherer) Gather(ctx context.Context, known *opscore.Facts) (opscore.Facts, error) {
	return g(ctx, known)
}

func client(t *testing.T) (*opscore.Client, opscore.ID) {
	t.Helper()
	s, err := sqlite.Open(filepath.Join(t.TempDir(), "opscore.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &opscore.Client{Store: s}
	subs, err := c.Submit(t.Context(), opscore.NewRequest("act", nil, opscore.Queue("q")))
	if err != nil {
		t.Fatal(err)
	}
	return c, subs[0].ID
}

func codes(causes []opscore.Cause) (codes []string) {
	for _, c := range causes {
		codes = append(codes, c.Code)
	}
	return codes
}

func source(f opscore.Facts, name string) opscore.Asked {
	for _, a := range f.Sources {
		if a.Source == name {
			return a
		}
	}
	return opscore.Asked{}
}

func TestTheOthersAreToldWhatTheStoreSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, id := client(t)
		var queue string
		host := doctor.Source{Name: "host", Gatherer: gatherer(func(_ context.Context, known *opscore.Facts) (opscore.Facts, error) {
			queue = known.Task.Queue
			return opscore.Facts{Host: &opscore.HostFacts{Name: "hall"}}, nil
		})}
		f := doctor.Ask(t.Context(), id, doctor.Store(c), host)
		if queue != "q" || f.Host == nil || f.Host.Name != "hall" || f.Task == nil {
			t.Errorf("the host was told of queue %q; facts = %+v", queue, f)
		}
		if got := codes(opscore.Explain(f)); !slices.Equal(got, []string{opscore.CauseNoWorker}) {
			t.Errorf("causes = %v", got)
		}
	})
}

func TestASourceThatHangsIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, id := client(t)
		release := make(chan struct{})
		defer close(release)
		deaf := gatherer(func(context.Context, *opscore.Facts) (opscore.Facts, error) { <-release; return opscore.Facts{}, nil })
		slow := gatherer(func(ctx context.Context, _ *opscore.Facts) (opscore.Facts, error) {
			<-ctx.Done()
			return opscore.Facts{Broker: &opscore.BrokerFacts{Reached: opscore.BrokerTLS, Err: "i/o timeout"}}, context.Cause(ctx)
		})
		began := time.Now()
		f := doctor.Ask(t.Context(), id, doctor.Store(c), doctor.Source{Name: "host", Gatherer: deaf}, doctor.Source{Name: "rabbitmq", Gatherer: slow})
		if took := time.Since(began); took > doctor.InAll {
			t.Errorf("it took %s", took)
		}
		if source(f, "host").Err != "no answer within 1s" || source(f, "rabbitmq").Err != "no answer within 1s" {
			t.Errorf("sources = %+v", f.Sources)
		}
		if f.Task == nil || f.Broker == nil {
			t.Errorf("what was told is missing: %+v", f)
		}
		want := []string{opscore.CauseNoWorker, opscore.CauseBrokerFrozen, opscore.CauseSourceSilent}
		if got := codes(opscore.Explain(f)); !slices.Equal(got, want) {
			t.Errorf("causes = %v, want %v", got, want)
		}
	})
}

func TestAStoreThatHangsIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		deaf := gatherer(func(context.Context, *opscore.Facts) (opscore.Facts, error) { <-release; return opscore.Facts{}, nil })
		id := opscore.ID{6: 0x70, 8: 0x80}
		known := opscore.ID{}
		host := gatherer(func(_ context.Context, f *opscore.Facts) (opscore.Facts, error) {
			known = f.ID
			return opscore.Facts{}, errors.New("no /proc here")
		})
		began := time.Now()
		f := doctor.Ask(t.Context(), id, doctor.Source{Name: "store", At: "db:5432", Gatherer: deaf}, doctor.Source{Name: "host", Gatherer: host})
		if took := time.Since(began); took > doctor.InAll || known != id {
			t.Errorf("it took %s, the host was asked for %s", took, known)
		}
		if !source(f, "store").Late || source(f, "host").Late {
			t.Errorf("the wrong one is late: %+v", f.Sources)
		}
		causes := opscore.Explain(f)
		if got := codes(causes); !slices.Equal(got, []string{opscore.CauseDatabaseUnreachable, opscore.CauseSourceSilent}) {
			t.Errorf("causes = %v", got)
		}
		if !strings.Contains(causes[0].Text, "db:5432") || !strings.Contains(causes[0].Text, "no answer within 1s") {
			t.Errorf("text = %s", causes[0].Text)
		}
	})
}

func TestAStoppedDatabaseIsSaidFirst(t *testing.T) {
	node := nodes.Own(t)
	url := node.URL("postgres")
	if err := postgres.Migrate(t.Context(), url, postgres.Options{}); err != nil {
		t.Fatal(err)
	}
	s, err := postgres.Open(t.Context(), url, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	c := &opscore.Client{Store: s}
	subs, err := c.Submit(t.Context(), opscore.NewRequest("act", nil))
	if err != nil {
		t.Fatal(err)
	}
	f := doctor.Ask(t.Context(), subs[0].ID, doctor.Store(c))
	if got := codes(opscore.Explain(f)); !slices.Equal(got, []string{opscore.CauseNoWorker}) {
		t.Errorf("causes = %v", got)
	}
	if err := node.Stop(); err != nil {
		t.Fatal(err)
	}
	broker := gatherer(func(context.Context, *opscore.Facts) (opscore.Facts, error) {
		return opscore.Facts{Broker: &opscore.BrokerFacts{Reached: opscore.BrokerOpen, Blocked: "low on memory"}}, nil
	})
	f = doctor.Ask(t.Context(), subs[0].ID, doctor.Store(c), doctor.Source{Name: "rabbitmq", Gatherer: broker})
	if got := codes(opscore.Explain(f)); !slices.Equal(got, []string{opscore.CauseDatabaseUnreachable, opscore.CauseBrokerAlarm}) {
		t.Errorf("causes = %v: %+v", got, f.Sources)
	}
	if got := codes(opscore.Examine(f)); !slices.Equal(got, []string{opscore.CauseDatabaseUnreachable, opscore.CauseBrokerAlarm}) {
		t.Errorf("examined: %v", got)
	}
}
