package opscore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opscore/opscore/internal/batch"
)

// Defaults of a worker.
const (
	DefaultSlots     = 100
	MaxSlots         = 100_000
	DefaultDrain     = 20 * time.Second
	DefaultGrace     = 5 * time.Second
	DefaultMaxResult = 1 << 20 // bytes
)

// Worker runs tasks. Its fields must not change while it runs; a zero field means its default.
type Worker struct {
	Store     Store
	Handlers  Handlers
	Queues    []string          // to listen to; empty means the handlers' own queues
	Sources   []Source          // empty means FromStore(Store, 0)
	Slots     int               // running tasks at most; 0 means 100: a slot is a goroutine
	Drain     time.Duration     // how long running tasks may finish after Run's context ends; 0 means 20 s
	Grace     time.Duration     // how long after that handlers have to heed their cancelled context; 0 means 5 s
	Hurry     <-chan struct{}   // closed to skip what is left of Drain
	Lease     time.Duration     // without a heartbeat for so long, its tasks are given to others; 0 means 30 s
	MaxResult int               // bytes of a result; 0 means 1 MiB
	Adapter   Adapter           // for tasks that were made of another system's messages; nil means that they are given back
	Build     string            // empty means what the binary knows of its version
	Origins   map[string]string // who said what it is connected to, by the kind of [Endpoint]; the registry shows it
	Log       *slog.Logger      // nil means [slog.Default]
	OnEvent   func(Event)
	OnReady   func(WorkerInfo) // called once, when the worker is registered, its store answers and it takes tasks; an [EventWorker] tells of a new id after that
	OnReport  func(*Report)    // completes what the worker says of itself, at least at each heartbeat

	crew atomic.Pointer[crew] // that works, or worked last
}

// Run works until ctx ends or somebody asks the worker to stop, then drains: it takes nothing new, lets running tasks finish for
// Drain, cancels their contexts, hands back what is left without burning an attempt, and returns. It returns an error if it could
// not start, and [ErrHandlerStuck] if a handler still ran at the end.
func (w *Worker) Run(ctx context.Context) error {
	c, err := w.hire(ctx)
	if err != nil {
		return fmt.Errorf("start worker: %w", err)
	}
	if err := c.register(ctx, WorkerBooting); err != nil {
		return fmt.Errorf("start worker: %w", err)
	}
	w.crew.Store(c)
	ctx, c.dismiss = context.WithCancelCause(ctx)
	defer c.dismiss(nil)
	if err := c.heartbeat(ctx); err != nil {
		return errors.Join(fmt.Errorf("start worker: %w", err), c.leave("could not start"))
	}
	beats, stopBeats := context.WithCancel(context.WithoutCancel(ctx))
	var beating, taking sync.WaitGroup
	beating.Go(func() { c.beat(beats) })
	beating.Go(func() { c.watch(beats) })
	for i := range c.sources {
		taking.Go(func() { c.take(ctx, i) })
	}
	c.begin(ctx)
	taking.Wait()
	err = c.drain()
	stopBeats()
	beating.Wait()
	return errors.Join(err, c.leave(stopText(ctx)))
}

// crew is a running worker: its identity, its slots and the runs that it owns.
type crew struct {
	*Worker
	log      *slog.Logger
	sources  []Source
	actors   []string      // that it claims tasks of
	canaries Handler       // of canaries
	slots    chan struct{} // a token per free slot
	share    int           // of the slots, that one source may reserve at a time
	backlog  chan struct{} // a token per outcome that is not recorded yet: twice the slots, so that recording and running overlap
	door     door          // that new tasks come in by
	ended    *batch.Batch[ending]
	notes    *batch.Batch[Note]

	performing sync.WaitGroup // handlers
	stop       chan struct{}  // closed when nothing is tried again any more

	dismiss context.CancelCauseFunc // ends the work, and says why
	beating sync.Mutex              // one heartbeat at a time, or an older one could overwrite what a newer one says

	mu      sync.Mutex
	info    WorkerInfo
	lease   deadline // until when new runs may start
	runs    map[fence]*running
	strays  map[fence]bool  // what the store had as ours, and we did not know of, at the last heartbeat
	silence silence         // of the store
	refused map[int]silence // what the store does not do although it answers: claims, by the number of their source, and outcomes
	skew    time.Duration
	drained Drained // what has ended so far; once it is over, how the worker drained
}

type fence struct {
	task ID
	seq  int64
}

// running is a claimed task, from the claim until its outcome is recorded.
type running struct {
	task   Task
	run    *Run
	cancel context.CancelCauseFunc
	done   bool         // the handler has returned
	begun  atomic.Int64 // when the handler was called, in ns since 1970; 0 before
	told   time.Time    // when it was told to end before its time
	why    error        // that it was told
	owes   bool         // what follows from its outcome cannot be stored
	freed  bool         // its task was released at the end of the drain
}

type ending struct {
	*running
	outcome Outcome
	took    time.Duration
}

// hire validates the worker and prepares what it needs.
func (w *Worker) hire(ctx context.Context) (*crew, error) {
	queues := w.Queues
	if len(queues) == 0 {
		queues = w.Handlers.Queues()
	}
	switch {
	case w.Store == nil:
		return nil, invalid("the worker has no store")
	case len(w.Handlers) == 0:
		return nil, invalid("no actor is registered: a worker needs at least one")
	case w.Slots < 0 || w.Slots > MaxSlots:
		return nil, invalid("slots %d: must be between 1 and %d", w.Slots, MaxSlots)
	case w.Lease != 0 && (w.Lease < MinLease || w.Lease > MaxLease):
		return nil, invalid("lease %s: must be between %s and %s", w.Lease, MinLease, MaxLease)
	case w.Drain < 0 || w.Grace < 0:
		return nil, invalid("drain %s, grace %s: must not be negative", w.Drain, w.Grace)
	}
	for _, q := range queues {
		if err := ValidName("queue", q); err != nil {
			return nil, err
		}
	}
	for _, name := range w.Handlers.Actors() {
		if err := w.Handlers[name].err; err != nil {
			return nil, err
		}
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	slots := cmp.Or(w.Slots, DefaultSlots)
	c := &crew{
		Worker: w, log: cmp.Or(w.Log, slog.Default()), sources: w.Sources,
		slots: make(chan struct{}, slots), backlog: make(chan struct{}, 2*slots), stop: make(chan struct{}),
		runs: map[fence]*running{}, strays: map[fence]bool{},
		info: WorkerInfo{
			Host: host, PID: os.Getpid(), Build: cmp.Or(w.Build, Build()), Slots: slots,
			Queues: queues, Actors: w.Handlers.Actors(), Lease: Duration(cmp.Or(w.Lease, LeaseFor)),
		},
	}
	if len(c.sources) == 0 {
		c.sources = []Source{FromStore(w.Store, 0)}
	}
	c.canaries = c.canary()
	c.actors = append(slices.Clone(c.info.Actors), CanaryActor)
	c.info.About = c.about(ctx)
	c.share = (slots + len(c.sources) - 1) / len(c.sources)
	for range slots {
		c.slots <- struct{}{}
	}
	c.ended = batch.New(500, c.record)
	c.notes = batch.New(500, c.storeNotes)
	return c, nil
}

// Build is what the binary knows of its version.
func Build() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value[:min(12, len(s.Value))]
		}
	}
	return cmp.Or(info.Main.Version, "unknown")
}

func (c *crew) announce() {
	info := c.identity()
	attrs := []any{"worker", info.ID}
	for _, e := range info.Endpoints {
		attrs = append(attrs, e.Kind, e.String())
	}
	c.log.Info("worker ready", append(attrs, "queues", strings.Join(info.Queues, ","),
		"actors", strings.Join(info.Actors, ","), "slots", info.Slots, "build", info.Build)...)
	if c.OnReady != nil {
		c.OnReady(info)
	}
}

// take fills free slots from one of the sources until ctx ends.
func (c *crew) take(ctx context.Context, source int) {
	var backoff, gather time.Duration
	for {
		n := c.reserve(ctx, gather)
		if n == 0 {
			return
		}
		asked := time.Now()
		tasks, err := c.next(ctx, c.sources[source], n)
		if gather = 0; len(tasks) == n || len(tasks) > 0 && n > MaxTicket && n-len(tasks) < MaxTicket {
			// There is more than fits, or the next ticket does not. A claim of many tasks takes hardly longer than one of few, so the next one is
			// worth a wait that at most doubles the time without it.
			gather = min(time.Since(asked), maxGather)
		}
		if ctx.Err() != nil {
			c.handBack(tasks)
			return
		}
		for range n - len(tasks) {
			c.slots <- struct{}{}
		}
		c.startAll(ctx, tasks)
		if err == nil {
			if backoff > 0 {
				c.done(source)
			}
			backoff = 0
			continue
		}
		if ctx.Err() == nil {
			c.refuse(source, err)
			backoff = min(max(2*backoff, 100*time.Millisecond), HeartbeatEvery)
			c.log.Error("cannot take tasks", "retry_in", backoff, "error", err)
			pause(ctx, backoff)
		}
	}
}

// next asks a source, unless the lease is in doubt: then the right answer is to wait for a heartbeat.
func (c *crew) next(ctx context.Context, s Source, n int) ([]Task, error) {
	if !c.leased() {
		pause(ctx, pollEvery)
		return nil, nil
	}
	info := c.identity()
	return s.Next(ctx, Claim{Worker: info.ID, Queues: info.Queues, Actors: c.actors, Max: n})
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// maxGather bounds how long a free slot stays empty for the sake of a larger claim.
const maxGather = 5 * time.Millisecond

// reserve waits for a free slot and takes what is free, or gets free within gather, up to a source's share; 0 means that
// ctx ended.
func (c *crew) reserve(ctx context.Context, gather time.Duration) int {
	if !c.enterSlot(ctx) {
		return 0
	}
	enough := time.NewTimer(gather)
	defer enough.Stop()
	for n := 1; n < c.share; n++ {
		select {
		case <-c.slots:
			continue
		default:
		}
		if gather == 0 {
			return n
		}
		select {
		case <-ctx.Done():
			return 0
		case <-c.slots:
		case <-enough.C:
			return n
		}
	}
	return c.share
}

// start makes a claimed task a run, and begins it.
func (c *crew) start(ctx context.Context, t Task) {
	run, r := c.admit(ctx, t)
	c.performing.Add(1)
	go c.perform(run, r)
}

// admit makes a claimed task a run, which ends with the returned context.
func (c *crew) admit(ctx context.Context, t Task) (context.Context, *running) {
	base, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	r := &running{task: t, run: newRun(t, c.MaxResult, noteEvery, func(n Note) { c.notes.Add(n) }), cancel: cancel}
	c.mu.Lock()
	c.runs[fence{t.ID, t.ClaimSeq}] = r
	if t.Worker != c.info.ID {
		r.interrupt(ErrLeaseLost) // claimed before this worker lost its lease
	}
	c.mu.Unlock()
	return base, r
}

// perform takes one task from its claim to its outcome.
func (c *crew) perform(ctx context.Context, r *running) {
	defer c.performing.Done()
	began := time.Now()
	r.begun.Store(began.UnixNano())
	started := taskEvent(EventStarted, &r.task)
	started.Duration = max(r.task.StartedAt.Sub(r.task.RunAt), 0)
	emit(c.OnEvent, started)
	ctx, stop := context.WithTimeout(context.WithValue(ctx, runKey{}, r.run), time.Duration(r.task.Timeout))
	result, err := []byte(nil), errGoexit
	defer func() { // also when the handler ends its goroutine
		cause := contextCause(ctx)
		stop()
		r.cancel(nil)
		o := outcome(&r.task, result, err, cause, c.handler(r.task.Actor).retry, rand.Float64())
		// What a run fails with whose claim was lost is no end of an attempt: another run is.
		if lost := errors.Is(cause, ErrLeaseLost) && o.State != Completed; lost || c.follow(r, &o) {
			c.finish(ending{running: r, outcome: o, took: time.Since(began)})
		}
	}()
	result, err = c.call(ctx, &r.task)
	if tooBig := checkResult(result, c.MaxResult); err == nil && tooBig != nil {
		err = &resultError{fmt.Sprintf("result of actor %s: %s", r.task.Actor, tooBig)}
	}
}

// call runs the handler; a panic is a failed attempt.
func (c *crew) call(ctx context.Context, t *Task) (result []byte, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicError{v, debug.Stack()}
		}
	}()
	h := c.handler(t.Actor)
	args, err := c.open(ctx, h, t)
	if err != nil {
		return nil, err
	}
	return h.run(ctx, args)
}

// finish hands the outcome to the recorder and frees the slot. It waits while too many outcomes are unrecorded,
// so a store that does not answer stops the worker from taking more.
func (c *crew) finish(e ending) {
	e.outcome.Log = e.run.notes.end()
	c.mu.Lock()
	e.done = true
	c.mu.Unlock()
	select {
	case c.backlog <- struct{}{}:
		c.ended.Add(e)
	case <-c.stop: // a stuck handler that returns after all: its task is released
	}
	c.slots <- struct{}{}
}

// record stores outcomes, again and again while the store fails: a handler's work is not thrown away.
func (c *crew) record(ended []ending) {
	outcomes := make([]Outcome, len(ended))
	for i, e := range ended {
		outcomes[i] = e.outcome
	}
	recorded, err := c.Store.Finish(context.Background(), outcomes)
	for backoff := 50 * time.Millisecond; err != nil; backoff = min(2*backoff, HeartbeatEvery) {
		c.log.Error("cannot record outcomes; claims wait", "outcomes", len(outcomes), "retry_in", backoff, "error", err)
		c.refuse(recording, err)
		select {
		case <-c.stop:
			c.forget(ended)
			return
		case <-time.After(backoff):
		}
		if recorded, err = c.Store.Finish(context.Background(), outcomes); err == nil {
			c.done(recording)
		}
	}
	c.forget(ended)
	for i, e := range ended {
		c.tell(e, recorded[i])
	}
}

func (c *crew) forget(ended []ending) {
	c.mu.Lock()
	for _, e := range ended {
		delete(c.runs, fence{e.task.ID, e.task.ClaimSeq})
		switch {
		case e.freed: // it counts as released already
		case e.outcome.State == Pending && e.outcome.Uncounted:
			c.drained.HandedBack++
		default:
			c.drained.Finished++
		}
	}
	c.mu.Unlock()
	for range ended {
		<-c.backlog
	}
}

func (c *crew) tell(e ending, r Recorded) {
	ev := taskEvent(EventFinished, &e.task)
	ev.State, ev.Code, ev.Duration = r.State, e.outcome.Code, e.took
	level := slog.LevelDebug
	switch {
	case r.Late:
		ev.Kind, level = EventLate, slog.LevelWarn
	case r.State == Failed:
		level = slog.LevelError
	case e.outcome.Code == CodeArgsIncompatible:
		level = slog.LevelWarn
	case r.State == Pending && !e.outcome.Uncounted:
		level = slog.LevelInfo
	}
	if e.outcome.Error != "" {
		ev.Err = errors.New(e.outcome.Error)
	}
	emit(c.OnEvent, ev)
	if c.log.Enabled(context.Background(), level) {
		line, _, _ := strings.Cut(e.outcome.Error, "\n")
		c.log.Log(context.Background(), level, "attempt ended", "task", e.task.ID, "actor", e.task.Actor,
			"attempt", e.task.Attempt, "outcome", cmp.Or(e.outcome.Code, Code(Completed)), "state", r.State, "late", r.Late,
			"took", e.took, "error", line)
	}
}

func (c *crew) storeNotes(notes []Note) {
	if err := c.Store.Note(context.Background(), notes); err != nil {
		c.log.Error("cannot store progress and logs", "error", err)
	}
}
