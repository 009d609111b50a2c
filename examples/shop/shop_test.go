package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"image"
	"image/png"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/opscoretest"
	"github.com/opscore/opscore/sqlite"
)

// TestMain makes this test binary a worker, too, for tests that want one in a process of its own.
func TestMain(m *testing.M) {
	opscoretest.Main(m, func(store opscore.Store) opscore.Handlers {
		return newShop(store, &bank{}, &post{}).Handlers()
	})
}

func newShop(store opscore.Store, b Bank, p Post) *Shop {
	s := &Shop{Client: &opscore.Client{Store: store}, Bank: b, Post: p}
	if file, ok := store.(*sqlite.Store); ok {
		s.DB = file.DB()
	}
	return s
}

// open gives a test a shop on the environment's store.
func open(t *testing.T, env *opscoretest.Env, s *Shop) {
	t.Helper()
	s.DB, s.Client = env.Store.(*sqlite.Store).DB(), env.Client
	if err := s.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func place(t *testing.T, s *Shop, o Order) opscore.ID {
	t.Helper()
	id, err := s.PlaceOrder(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// bank is a stand-in that fails as often as it is told, and otherwise charges.
type bank struct {
	charge func(key string, cents int)

	mu   sync.Mutex
	fail []error // of the next calls
}

// Charge implements [Bank].
func (b *bank) Charge(_ context.Context, key string, cents int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.fail) > 0 {
		err := b.fail[0]
		b.fail = b.fail[1:]
		return err
	}
	if b.charge != nil {
		b.charge(key, cents)
	}
	return nil
}

// post is a stand-in that keeps what it is given.
type post struct {
	mu    sync.Mutex
	mails []Mail
}

// Deliver implements [Post].
func (p *post) Deliver(_ context.Context, m Mail) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mails = append(p.mails, m)
	return nil
}

func (p *post) texts() (texts []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.mails {
		texts = append(texts, m.Text)
	}
	return texts
}

// PostgreSQL and RabbitMQ of the test's own.
func TestMailsSurviveABrokerThatLosesEveryTicket(t *testing.T) {
	t.Parallel()
	env, p := mailroom(t)
	env.LoseTickets()
	sendTen(t, env)
	if n := len(p.texts()); n != 10 {
		t.Errorf("%d mails, want 10", n)
	}
}

func TestMailsSurviveABrokerThatRepeatsItselfAndGoesAway(t *testing.T) {
	t.Parallel()
	env, p := mailroom(t)
	env.DuplicateDelivery()
	sendTen(t, env)
	env.DropBroker(200 * time.Millisecond)
	sendTen(t, env)
	if n := len(p.texts()); n != 20 {
		t.Errorf("%d mails, want 20", n)
	}
}

func mailroom(t *testing.T) (*opscoretest.Env, *post) {
	t.Helper()
	p, h := &post{}, opscore.Handlers{}
	opscore.Handle(h, SendMail, (&Shop{Post: p}).sendMail)
	return opscoretest.Live(t, opscoretest.Options{Tier: opscoretest.Cluster, Handlers: h}), p
}

func sendTen(t *testing.T, env *opscoretest.Env) {
	t.Helper()
	for range 10 {
		if _, err := SendMail.Submit(t.Context(), env.Client, Mail{To: "ann@example.com"}); err != nil {
			t.Fatal(err)
		}
	}
	env.Drain()
}

// One handler, called like a function.
func TestAMailNeedsSomebodyToGoTo(t *testing.T) {
	t.Parallel()
	s := &Shop{Post: &post{}}
	out, err := opscoretest.Handler(t, SendMail, s.sendMail, Mail{To: "ann@example.com", Text: "hello"})
	if err != nil || out != "delivered to ann@example.com" {
		t.Errorf("got %q, %v", out, err)
	}
	if _, err := opscoretest.Handler(t, SendMail, s.sendMail, Mail{Text: "hello"}); err == nil {
		t.Error("a mail to nobody was delivered")
	}
}

// What a program submits, without a worker.
func TestAnOrderIsKeptWithItsChargeOrNotAtAll(t *testing.T) {
	t.Parallel()
	opscoretest.Run(t, nil, func(t *testing.T, env *opscoretest.Env) {
		s := &Shop{}
		open(t, env, s)
		place(t, s, Order{Number: 7, Customer: "ann@example.com", Cents: 1200})
		opscoretest.Submitted(env, Charge, func(o Order) bool { return o.Number == 7 && o.Cents == 1200 })

		if _, err := s.PlaceOrder(t.Context(), Order{Number: 7, Cents: 999}); err == nil {
			t.Error("the same number was taken twice")
		}
		opscoretest.NotSubmitted(env, Charge, func(o Order) bool { return o.Cents == 999 })
	})
}

// A live worker, in fake time.
func TestAnOrderIsChargedAndConfirmed(t *testing.T) {
	t.Parallel()
	p := &post{}
	s := &Shop{Bank: &bank{}, Post: p}
	opscoretest.Run(t, s.Handlers(), func(t *testing.T, env *opscoretest.Env) {
		open(t, env, s)
		id := place(t, s, Order{Number: 7, Customer: "ann@example.com", Cents: 1200})
		env.Drain()
		if got := p.texts(); len(got) != 1 || got[0] != "We have charged 12.00 for order 7." {
			t.Errorf("mails: %q", got)
		}
		env.MustComplete(id)
	})
}

func TestTwoWeeksLaterWeAsk(t *testing.T) {
	t.Parallel()
	p := &post{}
	s := &Shop{Bank: &bank{}, Post: p}
	opscoretest.Run(t, s.Handlers(), func(t *testing.T, env *opscoretest.Env) {
		open(t, env, s)
		place(t, s, Order{Number: 7, Customer: "ann@example.com", Cents: 1200})
		env.Advance(13 * 24 * time.Hour)
		if got := p.texts(); len(got) != 1 {
			t.Errorf("after 13 days: %q", got)
		}
		env.Advance(25 * time.Hour)
		if got := p.texts(); len(got) != 2 || got[1] != "How do you like order 7?" {
			t.Errorf("after two weeks: %q", got)
		}
	})
}

// Expected failures.
func TestADeclinedCardIsFinal(t *testing.T) {
	t.Parallel()
	s := &Shop{Bank: &bank{fail: []error{ErrDeclined}}, Post: &post{}}
	opscoretest.Run(t, s.Handlers(), func(t *testing.T, env *opscoretest.Env) {
		open(t, env, s)
		id := place(t, s, Order{Number: 7, Cents: 1200})
		env.Failed(id, "card declined")
		env.Attempts(id, 1)
		opscoretest.NotSubmitted(env, SendMail, nil)
	})
}

func TestABankThatIsDownIsTriedAgain(t *testing.T) {
	t.Parallel()
	down := errors.New("connection refused")
	s := &Shop{Bank: &bank{fail: []error{down, down, down}}, Post: &post{}}
	opscoretest.Run(t, s.Handlers(), func(t *testing.T, env *opscoretest.Env) {
		open(t, env, s)
		id := place(t, s, Order{Number: 7, Cents: 1200})
		env.MustComplete(id)
		if attempts := env.Attempts(id, 4); attempts[0].Error != "connection refused" {
			t.Errorf("the first attempt ended with %q", attempts[0].Error)
		}
	})
}

// Faults.
func TestACrashChargesNobodyTwice(t *testing.T) {
	t.Parallel()
	charges := map[string]int{} // by key: the bank's promise
	b := &bank{charge: func(key string, cents int) { charges[key] = cents }}
	p := &post{}
	s := &Shop{Bank: b, Post: p}
	opscoretest.Run(t, s.Handlers(), func(t *testing.T, env *opscoretest.Env) {
		open(t, env, s)
		env.FailStore(3)
		id := place(t, s, Order{Number: 7, Customer: "ann@example.com", Cents: 1200})
		env.CrashWorker()
		env.PauseWorker(time.Minute) // longer than its lease
		env.MustComplete(id)
		env.Drain()
		if len(charges) != 1 || len(p.texts()) != 1 {
			t.Errorf("charges %v, mails %q", charges, p.texts())
		}
	})
}

// A crash at every place where it could matter.
func TestChargingCanBeRepeated(t *testing.T) {
	t.Parallel()
	opscoretest.Twice(t, func(t *testing.T, tr *opscoretest.Trial) func(context.Context, Order) (string, error) {
		s := &Shop{DB: tr.Store.DB(), Client: tr.Client, Post: &post{}}
		s.Bank = &bank{charge: func(key string, cents int) { tr.EffectOnce(key, "charged %d", cents) }}
		if err := s.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s.charge
	}, Order{Number: 7, Customer: "ann@example.com", Cents: 1200})
}

// Real time, for what has sockets.
func TestAnOrderComesByHTTP(t *testing.T) {
	t.Parallel()
	p := &post{}
	s := &Shop{Bank: &bank{}, Post: p}
	env := opscoretest.Live(t, opscoretest.Options{Handlers: s.Handlers()})
	open(t, env, s)
	server := httptest.NewServer(s.API())
	defer server.Close()
	body := strings.NewReader(`{"number":7,"customer":"ann@example.com","cents":1200}`)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/orders", body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var got struct{ Task opscore.ID }
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != http.StatusAccepted {
		t.Fatalf("status %s, %v", resp.Status, err)
	}
	env.MustComplete(got.Task)
	env.Drain()
	if len(p.texts()) != 1 {
		t.Errorf("mails: %q", p.texts())
	}
}

// A worker in a process of its own, which can really be killed.
func TestOrdersSurviveAKilledWorker(t *testing.T) {
	t.Parallel()
	env := opscoretest.Live(t, opscoretest.Options{Process: true})
	s := &Shop{}
	open(t, env, s)
	env.DropStore(100 * time.Millisecond)
	var ids []opscore.ID
	for n := range 20 {
		ids = append(ids, place(t, s, Order{Number: n, Customer: "ann@example.com", Cents: 100}))
	}
	env.CrashWorker()
	for _, id := range ids {
		env.MustComplete(id)
	}
	var paid int
	if err := s.DB.QueryRowContext(t.Context(), "SELECT count(*) FROM orders WHERE paid").Scan(&paid); err != nil || paid != 20 {
		t.Errorf("%d of 20 orders are paid, %v", paid, err)
	}
}

// The whole system: the shop beside opscore dev, which runs the command.
func TestAPictureBecomesAThumbnail(t *testing.T) {
	t.Parallel()
	env := opscoretest.Live(t, opscoretest.Options{Database: fixture(t), Process: true})
	s := &Shop{}
	open(t, env, s)
	place(t, s, Order{Number: 7, Customer: "ann@example.com", Cents: 1200, Picture: drawing(t)})
	env.Drain()
	made, err := Thumbnail.Wait(t.Context(), env.Client, opscoretest.Submitted(env, Thumbnail, nil).ID)
	if err != nil {
		t.Fatal(err)
	}
	small, err := png.Decode(bytes.NewReader(made.Base64))
	if err != nil || small.Bounds().Dx() != 32 || small.Bounds().Dy() != 16 {
		t.Errorf("the thumbnail: %v, %v", small, err)
	}
}

// fixture starts opscore dev with the shop's opscore.yaml and returns its database.
func fixture(t *testing.T) (database string) {
	t.Helper()
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", dir, "../../cmd/opscore", "./thumbnail")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	ready := filepath.Join(dir, "ready")
	dev := exec.CommandContext(context.WithoutCancel(t.Context()), filepath.Join(dir, "opscore"), "dev", "--ephemeral", "--die-with-parent", "--ready-file", ready)
	dev.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	dev.Stderr = t.Output()
	if err := dev.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- dev.Wait() }()
	t.Cleanup(func() {
		if err := errors.Join(dev.Process.Signal(syscall.SIGTERM), <-ended); err != nil {
			t.Errorf("opscore dev: %v", err)
		}
	})
	for {
		doc, err := os.ReadFile(ready)
		if err == nil {
			var info struct{ Database string }
			if err := json.Unmarshal(doc, &info); err != nil {
				t.Fatal(err)
			}
			return info.Database
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("opscore dev ended before it was ready: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func drawing(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewGray(image.Rect(0, 0, 128, 64))); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
