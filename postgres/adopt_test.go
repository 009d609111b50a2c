package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/storetest"
)

func TestAdopterConformance(t *testing.T) { storetest.RunAdopter(t, harness(t)) }

// messages are orders from elsewhere, with ids that begin with the bytes of first.
func messages(first byte, n int) []opscore.Adoption {
	all := make([]opscore.Adoption, n)
	for i := range all {
		id := opscore.ID{first, 'm', 'e', 's', 's', 'a', 'g', 'e', 's', byte(i >> 8), byte(i)}
		all[i] = opscore.Adoption{Request: charge.Request(order{i}, opscore.WithID(id)), Message: opscore.Orphan{Body: []byte("body")}}
	}
	return all
}

// broker is a source of messages that are delivered until they are acked, as a broker does.
type broker struct {
	store *postgres.Store

	mu       sync.Mutex
	messages []opscore.Adoption // not acked
	cut      atomic.Int64       // batches whose answer was lost
}

// Next adopts what is there and acks it.
func (b *broker) Next(ctx context.Context, want opscore.Claim) (tasks []opscore.Task, err error) {
	b.mu.Lock()
	some := slices.Clone(b.messages[:min(len(b.messages), want.Max)])
	b.mu.Unlock()
	if len(some) == 0 {
		return opscore.FromStore(b.store, 0).Next(ctx, want)
	}
	adopted, err := b.store.Adopt(ctx, want, some)
	if err != nil {
		b.cut.Add(1)
		return nil, err
	}
	for _, a := range adopted {
		if a.Claimed {
			tasks = append(tasks, a.Task)
		}
		if a.Orphan != "" {
			return nil, fmt.Errorf("orphan: %w", a.Err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.messages = b.messages[len(some):]
	return tasks, nil
}

func TestMessagesWhoseAdoptionWasCutOffRunOnceEach(t *testing.T) {
	url := database(t)
	direct := open(t, url)
	record(t, direct)
	proxy := nodes.NewProxy(t, direct.Address())
	s := open(t, proxy.URL(url))
	h := opscore.Handlers{}
	opscore.Handle(h, charge, func(context.Context, order) (string, error) { return "", nil })
	b := &broker{store: s, messages: messages('a', 10)}
	employ(t, &opscore.Worker{Store: s, Handlers: h, Slots: 30, Sources: []opscore.Source{b}})
	done := completed(t, direct)
	until(t, "the statements are known", 20*time.Second, func() bool { return done() == 10 })
	tasks := 10
	for first, cut := range map[byte]func([]byte) <-chan struct{}{'b': proxy.CutBeforeRequest, 'c': proxy.CutAfterRequest} {
		more := messages(first, 30)
		is := cut(more[0].Request.ID[:9])
		b.mu.Lock()
		b.messages = append(b.messages, more...)
		b.mu.Unlock()
		<-is
		proxy.Heal()
		tasks += 30
		until(t, "all that was adopted is completed", 60*time.Second, func() bool { return done() == tasks })
	}
	wantEachOnce(t, direct, tasks)
	if n := b.cut.Load(); n < 2 {
		t.Errorf("%d batches were cut off", n)
	}
	if n := count(t, direct, "SELECT count(*) FROM opscore.task WHERE state <> 'completed'") + count(t, direct, "SELECT count(*) FROM opscore.orphan"); n != 0 {
		t.Errorf("%d tasks and orphans are left", n)
	}
}

func TestAnAdoptionWhoseAnswerWasLostIsKnownWhenItIsTriedAgain(t *testing.T) {
	url := database(t)
	direct := open(t, url)
	for _, tc := range []struct {
		first  byte
		cut    func(*nodes.Proxy, []byte) <-chan struct{}
		stored bool
	}{
		{'b', (*nodes.Proxy).CutBeforeRequest, false},
		{'c', (*nodes.Proxy).CutAfterRequest, true},
	} {
		proxy := nodes.NewProxy(t, direct.Address())
		s := open(t, proxy.URL(url))
		w := opscore.WorkerInfo{ID: opscore.ID{tc.first}, Queues: []string{"default"}, Actors: []string{"charge"}}
		if err := s.Register(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		want := opscore.Claim{Worker: w.ID, Queues: w.Queues, Actors: w.Actors, Max: 10}
		if _, err := s.Adopt(t.Context(), want, messages(tc.first+10, 1)); err != nil { // the statement is known
			t.Fatal(err)
		}
		batch := messages(tc.first, 5)
		cut := tc.cut(proxy, batch[0].Request.ID[:9])
		if got, err := s.Adopt(t.Context(), want, batch); !errors.Is(err, opscore.ErrUnavailable) || got != nil {
			t.Fatalf("stored %v: the adoption that was cut off = %+v, %v", tc.stored, got, err)
		}
		<-cut
		proxy.Heal()
		got, err := s.Adopt(t.Context(), want, batch)
		if err != nil {
			t.Fatal(err)
		}
		for i, a := range got {
			if a.Duplicate != tc.stored || a.Claimed == tc.stored || a.Orphan != "" {
				t.Errorf("stored %v: answer %d = %+v", tc.stored, i, a)
			}
		}
		if n := count(t, direct, "SELECT count(*) FROM opscore.task WHERE worker = $1 AND state = 'running' AND claim_seq = 1 AND attempt = 1", w.ID); n != 6 {
			t.Errorf("stored %v: the worker owns %d tasks", tc.stored, n)
		}
	}
}

func TestOrphansOfTheSchemaBeforeAreKept(t *testing.T) {
	url := nodes.Database(t, "empty", func(string) error { return nil })
	text, err := postgres.MigrationSQL(postgres.Options{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	before, _, ok := strings.Cut(text, "\n-- 00003_")
	if !ok {
		t.Fatal("there is no step to version 3")
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	const store = `INSERT INTO opscore.orphan (id, queue, reason, first_seen, last_seen, count, headers, body)
		VALUES ('00000000-0000-0000-0000-00000000000%d', 'q', 'undecodable', now(), now(), 2, '{}', 'body')` // as version 2 does
	_, err = conn.Exec(t.Context(), before+"COMMIT; "+fmt.Sprintf(store, 1))
	if err := errors.Join(err, conn.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	if err := postgres.Migrate(t.Context(), url, postgres.Options{}); err != nil {
		t.Fatal(err)
	}
	s := open(t, url)
	if _, err := s.Pool().Exec(t.Context(), fmt.Sprintf(store, 2)); err != nil {
		t.Fatalf("a worker of the version before keeps an orphan: %v", err)
	}
	id := opscore.ID{15: 1}
	if _, err := s.KeepOrphans(t.Context(), []opscore.Orphan{{ID: id, Queue: "q", Reason: opscore.CodeUndecodable, Body: []byte("body")}}); err != nil {
		t.Fatal(err)
	}
	for last, seen := range map[byte]int{1: 3, 2: 2} {
		id := opscore.ID{15: last}
		o, err := s.GetOrphan(t.Context(), id)
		if err != nil || o.Count != seen || o.Message != id || o.Size != 4 {
			t.Errorf("orphan = %+v, %v", o, err)
		}
	}
}

func TestAFloodOfOrphansStopsAtItsLimitsWhoeverKeepsThem(t *testing.T) {
	url := database(t)
	const limit = 100
	var stores []*postgres.Store
	for range 3 {
		s, err := postgres.Open(t.Context(), url, postgres.Options{MaxOrphans: limit})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		stores = append(stores, s)
	}
	var wg sync.WaitGroup
	var dropped atomic.Int64
	for n, s := range stores {
		wg.Go(func() {
			for i := range 20 {
				var some []opscore.Orphan
				for k := range 7 {
					some = append(some, opscore.Orphan{ID: opscore.ID{byte(n + 1), byte(i), byte(k)}, Reason: opscore.CodeUndecodable})
				}
				d, err := s.KeepOrphans(t.Context(), some)
				if err != nil {
					t.Error(err)
				}
				dropped.Add(int64(d))
			}
		})
	}
	wg.Wait()
	s := stores[0]
	if n := count(t, s, "SELECT count(*) FROM opscore.orphan"); n != limit || int(dropped.Load()) != 3*20*7-limit {
		t.Errorf("%d orphans are kept and %d were dropped, want %d", n, dropped.Load(), limit)
	}
	// One that is there is counted all the same; one that is dropped makes room.
	first, err := s.ListOrphans(t.Context(), opscore.OrphanFilter{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	again := opscore.Orphan{ID: first[0].ID, Reason: opscore.CodeUndecodable}
	if d, err := s.KeepOrphans(t.Context(), []opscore.Orphan{again}); err != nil || d != 0 {
		t.Errorf("one that is there: %d dropped, %v", d, err)
	}
	if _, err := s.DropOrphans(t.Context(), []opscore.ID{first[0].ID}); err != nil {
		t.Fatal(err)
	}
	if d, err := s.KeepOrphans(t.Context(), []opscore.Orphan{again}); err != nil || d != 0 {
		t.Errorf("one for which there is room again: %d dropped, %v", d, err)
	}
}

func TestAMessageForWhoseOrphanThereIsNoRoomIsDroppedInSoManyWords(t *testing.T) {
	s, err := postgres.Open(t.Context(), database(t), postgres.Options{MaxOrphans: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	batch := messages('a', 3)
	batch[0].Request.Actor, batch[2].Request.Actor = "no name", "no name"
	got, err := s.Adopt(t.Context(), opscore.Claim{}, batch)
	if err != nil || got[0].Dropped || got[0].Orphan == "" || !got[2].Dropped || got[1].Task.State != opscore.Pending {
		t.Errorf("adopted = %+v, %v", got, err)
	}
}
