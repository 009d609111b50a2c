// Package storetest holds what every opscore store must do, as a suite of tests.
package storetest

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/opscore/opscore"
)

// Harness is what the suite needs to know of a store.
type Harness struct {
	// Open makes a new, empty store; dir is an empty directory of its own.
	Open func(dir string) (opscore.Store, func() error, error)
	// Around runs one test: in a bubble of fake time where the store lives in this process.
	Around func(t *testing.T, test func(t *testing.T))
	// Pass lets d pass by the store's clock: it sleeps in a bubble, or ages the rows of a real database.
	Pass func(s opscore.Store, d time.Duration)
}

// Run runs the suite. Test names are the sentences that hold for a store.
func Run(t *testing.T, h Harness) {
	for _, group := range [][]scenario{submits, claims, finishes, clients, workers, registry, chores, standings} {
		for _, sc := range group {
			t.Run(sc.name, func(t *testing.T) {
				h.Around(t, func(t *testing.T) { sc.test(newEnv(t, h, t.TempDir())) })
			})
		}
	}
}

type scenario struct {
	name string
	test func(e *env)
}

// tb is the part of testing.TB that rapid's T has too.
type tb interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// env is a store with the small vocabulary that the scenarios are written in.
type env struct {
	tb
	ctx   context.Context
	store opscore.Store
	pass  func(d time.Duration)
}

func newEnv(t *testing.T, h Harness, dir string) *env {
	s, closeStore, err := h.Open(dir)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		if err := closeStore(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return &env{tb: t, ctx: t.Context(), store: s, pass: func(d time.Duration) { h.Pass(s, d) }}
}

func newID() opscore.ID { return uuid.Must(uuid.NewV7()) }

// request is a complete request, as a client hands it to a store.
func request(opts ...opscore.Option) opscore.Request {
	r := opscore.NewRequest("act", json.RawMessage(`{"n":1}`), opscore.WithID(newID()), opscore.Queue("q"),
		opscore.MaxAttempts(3), opscore.Timeout(time.Minute))
	for _, o := range opts {
		o(&r)
	}
	return r
}

func actor(name string) opscore.Option { return func(r *opscore.Request) { r.Actor = name } }

func args(doc string) opscore.Option {
	return func(r *opscore.Request) { r.Args = json.RawMessage(doc) }
}

func (e *env) insert(requests ...opscore.Request) []opscore.Inserted {
	e.Helper()
	in, err := e.store.Insert(e.ctx, requests)
	if err != nil {
		e.Fatalf("insert: %v", err)
	}
	if len(in) != len(requests) {
		e.Fatalf("insert of %d requests answered %d", len(requests), len(in))
	}
	return in
}

// submit stores one task and returns its id.
func (e *env) submit(opts ...opscore.Option) opscore.ID {
	e.Helper()
	in := e.insert(request(opts...))[0]
	if in.Duplicate {
		e.Fatalf("unexpected duplicate of %s", in.ID)
	}
	return in.ID
}

func (e *env) get(id opscore.ID) opscore.Task {
	e.Helper()
	tasks, err := e.store.Get(e.ctx, []opscore.ID{id})
	if err != nil {
		e.Fatalf("get: %v", err)
	}
	if len(tasks) != 1 || tasks[0].ID != id {
		e.Fatalf("get %s = %v", id, tasks)
	}
	return tasks[0]
}

// workerSlots are so few that they matter.
const workerSlots = 3

// worker registers a live worker, which listens to q unless the queues are given.
func (e *env) worker(queues ...string) opscore.ID {
	e.Helper()
	if len(queues) == 0 {
		queues = []string{"q"}
	}
	w := opscore.WorkerInfo{
		ID: newID(), Host: "host", PID: 1, Build: "build", Queues: queues, Actors: []string{"act"}, Slots: workerSlots,
		State: opscore.WorkerReady,
	}
	if err := e.store.Register(e.ctx, w); err != nil {
		e.Fatalf("register: %v", err)
	}
	return w.ID
}

// wants is a claim of queue q and actor act.
func wants(worker opscore.ID, limit int) opscore.Claim {
	return opscore.Claim{Worker: worker, Queues: []string{"q"}, Actors: []string{"act"}, Max: limit}
}

func (e *env) claim(want opscore.Claim) []opscore.Task {
	e.Helper()
	got, err := e.store.Claim(e.ctx, want)
	if err != nil {
		e.Fatalf("claim: %v", err)
	}
	return got.Tasks
}

// claimOne submits a task and claims it.
func (e *env) claimOne(worker opscore.ID, opts ...opscore.Option) opscore.Task {
	e.Helper()
	id := e.submit(opts...)
	want := wants(worker, 1)
	want.IDs = []opscore.ID{id}
	tasks := e.claim(want)
	if len(tasks) != 1 || tasks[0].ID != id {
		e.Fatalf("claim of %s = %v", id, ids(tasks))
	}
	return tasks[0]
}

func (e *env) finish(outcomes ...opscore.Outcome) []opscore.Recorded {
	e.Helper()
	r, err := e.store.Finish(e.ctx, outcomes)
	if err != nil {
		e.Fatalf("finish: %v", err)
	}
	if len(r) != len(outcomes) {
		e.Fatalf("finish of %d outcomes answered %d", len(outcomes), len(r))
	}
	return r
}

func ends(t opscore.Task, s opscore.State) opscore.Outcome {
	o := opscore.Outcome{Task: t.ID, ClaimSeq: t.ClaimSeq, Worker: t.Worker, State: s}
	switch s {
	case opscore.Completed:
		o.Result = []byte(`"done"`)
	case opscore.Failed, opscore.Pending:
		o.Code, o.Error = opscore.CodeError, "boom"
	case opscore.Cancelled:
		o.Code = opscore.CodeCancelled
	case opscore.Running:
	}
	return o
}

func (e *env) attempts(id opscore.ID) []opscore.Attempt {
	e.Helper()
	a, err := e.store.Attempts(e.ctx, id)
	if err != nil {
		e.Fatalf("attempts: %v", err)
	}
	return a
}

func (e *env) heartbeat(worker opscore.ID) []opscore.Owned {
	e.Helper()
	heard, err := e.store.Heartbeat(e.ctx, worker, opscore.WorkerReady, opscore.Report{})
	if err != nil {
		e.Fatalf("heartbeat: %v", err)
	}
	return heard.Owned
}

func (e *env) rescue() []opscore.Task {
	e.Helper()
	tasks, err := e.store.Rescue(e.ctx)
	if err != nil {
		e.Fatalf("rescue: %v", err)
	}
	return tasks
}

func (e *env) cancel(id opscore.ID) opscore.Task {
	e.Helper()
	tasks, err := e.store.Cancel(e.ctx, []opscore.ID{id}, "ann")
	if err != nil || len(tasks) != 1 {
		e.Fatalf("cancel: %v, %v", tasks, err)
	}
	return tasks[0]
}

func (e *env) list(f opscore.Filter) []opscore.ID {
	e.Helper()
	tasks, err := e.store.List(e.ctx, f)
	if err != nil {
		e.Fatalf("list: %v", err)
	}
	return ids(tasks)
}

// want checks one field of a task.
func want[T comparable](e *env, what string, got, want T) {
	e.Helper()
	if got != want {
		e.Errorf("%s = %v, want %v", what, got, want)
	}
}

func (e *env) wantState(id opscore.ID, s opscore.State) opscore.Task {
	e.Helper()
	t := e.get(id)
	want(e, "state", t.State, s)
	return t
}

func (e *env) wantCode(err error, code opscore.Code) {
	e.Helper()
	if opscore.CodeOf(err) != code {
		e.Errorf("error = %v, want code %s", err, code)
	}
}

func (e *env) wantIDs(what string, got []opscore.ID, want ...opscore.ID) {
	e.Helper()
	if !slices.Equal(got, want) {
		e.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}

func (e *env) wantBytes(what string, got []byte, want string) {
	e.Helper()
	if !bytes.Equal(got, []byte(want)) {
		e.Errorf("%s = %q, want %q", what, got, want)
	}
}

// wantAbout allows for the time that a call takes by the store's clock.
func (e *env) wantAbout(what string, got, want time.Time) {
	e.Helper()
	if d := got.Sub(want); d < -2*time.Second || d > 2*time.Second {
		e.Errorf("%s = %v, want about %v", what, got, want)
	}
}

func ids(tasks []opscore.Task) []opscore.ID {
	out := make([]opscore.ID, len(tasks))
	for i, t := range tasks {
		out[i] = t.ID
	}
	return out
}
