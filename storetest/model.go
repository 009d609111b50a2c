package storetest

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/opscore/opscore"
)

// RunModel compares the store with a model of a few lines, over random histories of submits, claims, outcomes of
// held and of revoked claims, cancellations, retries, dead workers and passing time.
func RunModel(t *testing.T, h Harness) {
	h.Around(t, func(t *testing.T) {
		root := t.TempDir()
		rapid.Check(struct{ rapid.TB }{t}, func(rt *rapid.T) { // hides Deadline, which panics in a bubble
			dir, err := os.MkdirTemp(root, "model")
			if err != nil {
				rt.Fatalf("%v", err)
			}
			s, closeStore, err := h.Open(dir)
			if err != nil {
				rt.Fatalf("open: %v", err)
			}
			defer func() {
				if err := closeStore(); err != nil {
					rt.Errorf("close: %v", err)
				}
			}()
			m := &model{
				env:   &env{tb: rt, ctx: t.Context(), store: s, pass: func(d time.Duration) { h.Pass(s, d) }},
				tasks: map[opscore.ID]*modelTask{}, paused: map[string]bool{},
			}
			m.workers = []opscore.ID{m.listener(), m.listener()}
			rt.Repeat(map[string]func(*rapid.T){
				"submit":  m.submitOne,
				"claim":   m.claimSome,
				"isolate": m.isolateOne,
				"finish":  m.finishOne,
				"cancel":  m.cancelOne,
				"retry":   m.retryOne,
				"pass":    m.passTime,
				"die":     m.workerDies,
				"pause":   m.pauseOrResume,
				"explain": m.explainAll,
				"":        m.compare,
			})
		})
	})
}

// modelTask is what the model knows of a task.
type modelTask struct {
	id            opscore.ID
	queue, key    string
	priority      int
	state         opscore.State
	attempt, lost int
	seq           int64
	worker        opscore.ID
	cancel, alone bool
	result        string
}

type model struct {
	*env
	order   []opscore.ID // of submission
	tasks   map[opscore.ID]*modelTask
	workers []opscore.ID
	paused  map[string]bool
	claimed []opscore.Task // every claim ever made
}

// listener registers a worker that listens to both queues.
func (m *model) listener() opscore.ID { return m.worker("q", "r") }

func (m *model) any(rt *rapid.T) *modelTask {
	if len(m.order) == 0 {
		rt.Skip("no tasks")
	}
	return m.tasks[rapid.SampledFrom(m.order).Draw(rt, "task")]
}

func (m *model) holder(key string) *modelTask {
	for _, t := range m.tasks {
		if key != "" && t.key == key && t.state != opscore.Failed && t.state != opscore.Cancelled {
			return t
		}
	}
	return nil
}

func (m *model) submitOne(rt *rapid.T) {
	t := &modelTask{
		state:    opscore.Pending,
		queue:    rapid.SampledFrom([]string{"q", "r"}).Draw(rt, "queue"),
		key:      rapid.SampledFrom([]string{"", "", "k1", "k2"}).Draw(rt, "key"),
		priority: rapid.IntRange(-1, 1).Draw(rt, "priority"),
	}
	delay := time.Duration(rapid.SampledFrom([]int{0, 0, 30, 60}).Draw(rt, "delay")) * time.Second
	options := []opscore.Option{opscore.Queue(t.queue), opscore.Unique(t.key), opscore.Priority(t.priority), opscore.After(delay)}
	if expires := rapid.SampledFrom([]int{0, 0, 0, 90}).Draw(rt, "expires"); expires > 0 {
		options = append(options, opscore.ExpiresAfter(time.Duration(expires)*time.Second))
	}
	holder := m.holder(t.key)
	in := m.insert(request(options...))[0]
	if holder != nil {
		want(m.env, "duplicate", in, opscore.Inserted{ID: holder.id, Duplicate: true})
		return
	}
	want(m.env, "duplicate", in.Duplicate, false)
	t.id = in.ID
	m.tasks[t.id], m.order = t, append(m.order, t.id)
}

func (m *model) claimSome(rt *rapid.T) {
	w := rapid.SampledFrom(m.workers).Draw(rt, "worker")
	limit := rapid.IntRange(1, 4).Draw(rt, "max")
	queues := rapid.SampledFrom([][]string{{"q"}, {"q", "r"}}).Draw(rt, "queues")
	due := m.due(queues)
	slices.SortFunc(due, func(a, b opscore.Task) int {
		return cmp.Or(b.Priority-a.Priority, a.RunAt.Compare(b.RunAt), slices.Compare(a.ID[:], b.ID[:]))
	})
	m.wantIDs("claim", m.claimFor(w, queues, limit), ids(due[:min(limit, len(due))])...)
}

// claimFor claims for a worker and returns what it got.
func (m *model) claimFor(w opscore.ID, queues []string, limit int) []opscore.ID {
	c := wants(w, limit)
	c.Queues = queues
	got := m.claim(c)
	for _, g := range got {
		t := m.tasks[g.ID]
		if t == nil {
			continue
		}
		t.state, t.worker = opscore.Running, w
		t.attempt++
		t.seq++
		want(m.env, "claim number", g.ClaimSeq, t.seq)
		m.claimed = append(m.claimed, g)
	}
	return ids(got)
}

func (m *model) pauseOrResume(rt *rapid.T) {
	queue := rapid.SampledFrom([]string{"q", "r"}).Draw(rt, "queue")
	change := func() error { return m.store.Pause(m.ctx, []string{queue}, "ann", "") }
	if m.paused[queue] {
		change = func() error { return m.store.Resume(m.ctx, []string{queue}) }
	}
	if err := change(); err != nil {
		rt.Fatalf("pause or resume: %v", err)
	}
	m.paused[queue] = !m.paused[queue]
}

// explainAll holds what Explain says against what a claim does: those tasks are said to be ready that the next claim of a worker, of as many as it
// has free slots, takes.
func (m *model) explainAll(rt *rapid.T) {
	w := rapid.SampledFrom(m.workers).Draw(rt, "worker")
	m.due([]string{"q", "r"}) // what is about to be due is
	var ready []opscore.ID
	var said []string
	free, alone := workerSlots, false
	for _, id := range m.order {
		switch t := m.tasks[id]; t.state {
		case opscore.Pending:
			causes := m.explainFor(rt, w, id)
			said = append(said, fmt.Sprintf("%s: %+v", id, causes))
			if slices.ContainsFunc(causes, func(c opscore.Cause) bool { return c.Code == opscore.CauseReady }) {
				ready = append(ready, id)
			}
		case opscore.Running:
			if t.worker == w {
				free--
				alone = alone || t.lost >= opscore.MaxLost-1
			}
		case opscore.Completed, opscore.Failed, opscore.Cancelled:
		}
	}
	var taken []opscore.ID
	if free > 0 && !alone { // else the worker does not ask
		taken = m.claimFor(w, []string{"q", "r"}, free)
	}
	for _, of := range [][]opscore.ID{ready, taken} {
		slices.SortFunc(of, func(a, b opscore.ID) int { return slices.Compare(a[:], b[:]) })
	}
	m.wantIDs("taken, against what is said to be ready", taken, ready...)
	if !slices.Equal(taken, ready) {
		rt.Errorf("said of the pending ones:\n%s", strings.Join(said, "\n"))
	}
}

// explainFor explains a task as if there were no other live worker.
func (m *model) explainFor(rt *rapid.T, w, id opscore.ID) []opscore.Cause {
	facts, err := (&opscore.Client{Store: m.store}).Facts(m.ctx, id)
	if err != nil {
		rt.Fatalf("facts: %v", err)
	}
	facts.Workers = slices.DeleteFunc(facts.Workers, func(o opscore.WorkerInfo) bool { return o.ID != w && o.Live })
	return opscore.Explain(facts)
}

func (m *model) isolateOne(rt *rapid.T) {
	if len(m.claimed) == 0 {
		rt.Skip("no claims")
	}
	c := rapid.SampledFrom(m.claimed).Draw(rt, "claim")
	err := m.store.Isolate(m.ctx, c.ID, c.ClaimSeq, c.Worker)
	if t := m.tasks[c.ID]; t.state == opscore.Running && t.seq == c.ClaimSeq && t.worker == c.Worker {
		t.alone = true
		want(m.env, "isolate", err, nil)
		return
	}
	m.wantCode(err, opscore.CodeLeaseLost)
}

func (m *model) finishOne(rt *rapid.T) {
	if len(m.claimed) == 0 {
		rt.Skip("no claims")
	}
	c := rapid.SampledFrom(m.claimed).Draw(rt, "claim")
	o := ends(c, rapid.SampledFrom([]opscore.State{opscore.Completed, opscore.Failed, opscore.Pending}).Draw(rt, "end"))
	o.Uncounted = o.State == opscore.Pending && rapid.Bool().Draw(rt, "uncounted")
	o.Delay = time.Duration(rapid.SampledFrom([]int{0, 30}).Draw(rt, "delay")) * time.Second
	m.finish(o)
	t := m.tasks[c.ID]
	if t.state != opscore.Running || t.seq != c.ClaimSeq || t.worker != c.Worker {
		return // not held: nothing changes
	}
	t.end(o)
}

func (t *modelTask) end(o opscore.Outcome) {
	if t.alone && o.State == opscore.Pending && !o.Uncounted {
		t.lost = 0
	}
	t.state, t.alone = o.State, false
	if o.Uncounted {
		t.attempt--
	}
	switch {
	case o.State == opscore.Completed:
		t.result = string(o.Result)
	case t.cancel:
		t.state = opscore.Cancelled
	case o.State == opscore.Pending:
		t.seq++
	}
}

func (m *model) cancelOne(rt *rapid.T) {
	t := m.any(rt)
	m.cancel(t.id)
	switch t.state {
	case opscore.Pending:
		t.state = opscore.Cancelled
	case opscore.Running:
		t.cancel = true
	case opscore.Completed, opscore.Failed, opscore.Cancelled:
	}
}

func (m *model) retryOne(rt *rapid.T) {
	t := m.any(rt)
	_, err := m.store.Retry(m.ctx, []opscore.ID{t.id}, "ann")
	if t.state != opscore.Failed && t.state != opscore.Cancelled || m.holder(t.key) != nil {
		m.wantCode(err, opscore.CodeConflict)
		return
	}
	if err != nil {
		rt.Fatalf("retry: %v", err)
	}
	t.state, t.attempt, t.lost, t.cancel = opscore.Pending, 0, 0, false
	t.seq++
}

// due returns the pending tasks of the queues whose time has come by the store's account, unless a pause or their expiry keeps them. The clock of a real database
// goes on meanwhile, so those whose time is about to come are given it first.
func (m *model) due(queues []string) (due []opscore.Task) {
	const soon = 10 * time.Second
	for {
		due = nil
		near := false
		for _, id := range m.order {
			if t := m.tasks[id]; t.state != opscore.Pending || !slices.Contains(queues, t.queue) {
				continue
			}
			switch t := m.get(id); {
			case !t.ExpiresAt.IsZero() && time.Until(t.ExpiresAt) < soon:
				near = near || time.Until(t.ExpiresAt) > 0
			case !t.RunAt.After(time.Now()) && m.paused[t.Queue]:
			case !t.RunAt.After(time.Now()):
				due = append(due, t)
			case time.Until(t.RunAt) < soon:
				near = true
			}
		}
		if !near {
			return due
		}
		m.passAll(soon)
	}
}

func (m *model) passTime(rt *rapid.T) {
	m.passAll(time.Duration(rapid.IntRange(1, 20).Draw(rt, "seconds")) * time.Second)
}

func (m *model) passAll(d time.Duration) {
	m.pass(d)
	for _, w := range m.workers {
		m.heartbeat(w)
	}
}

func (m *model) workerDies(rt *rapid.T) {
	i := rapid.IntRange(0, len(m.workers)-1).Draw(rt, "worker")
	if err := m.store.Leave(m.ctx, m.workers[i], "died", opscore.Report{}); err != nil {
		rt.Fatalf("leave: %v", err)
	}
	m.rescue()
	for _, t := range m.tasks {
		if t.state != opscore.Running || t.worker != m.workers[i] {
			continue
		}
		t.lost++
		o := opscore.Outcome{State: opscore.Pending, Uncounted: true}
		if t.lost >= opscore.MaxLost && t.alone {
			o.State = opscore.Failed
		}
		seq := t.seq
		t.end(o)
		t.seq = seq + 1 // a revoke, whatever becomes of the task
	}
	m.workers[i] = m.listener()
}

func (m *model) compare(rt *rapid.T) {
	listed := m.list(opscore.Filter{Limit: 1000})
	slices.Reverse(listed)
	m.wantIDs("tasks", listed, m.order...)
	tasks, err := m.store.Get(m.ctx, m.order)
	if err != nil || len(tasks) != len(m.order) {
		rt.Fatalf("get = %d tasks, %v", len(tasks), err)
	}
	for _, got := range tasks {
		t := m.tasks[got.ID]
		have := modelTask{
			id: got.ID, queue: got.Queue, key: got.UniqueKey, priority: got.Priority, state: got.State, attempt: got.Attempt,
			lost: got.Lost, seq: got.ClaimSeq, result: string(got.Result), cancel: t.cancel, worker: t.worker, alone: got.Alone,
		}
		want(m.env, "task", have, *t)
	}
}
