package opscore

import (
	"context"
	"slices"
	"time"
)

// Registry is the register of workers and their leases.
type Registry interface {
	// Register adds a worker and starts its lease.
	Register(ctx context.Context, w WorkerInfo) error
	// Heartbeat renews the worker's lease and records its state and its report. It is an [ErrLeaseLost] if the worker is
	// gone: it needs a new id. Whether it was asked to stop is answered all the same.
	Heartbeat(ctx context.Context, worker ID, state WorkerState, r Report) (Heard, error)
	// Leave ends the worker's lease. Tasks that it still owns are rescued without waiting.
	Leave(ctx context.Context, worker ID, cause string, last Report) error
	// StopWorkers asks workers to stop, as a signal does, and returns those that it asked: the ones that are not gone. They learn of it
	// at their next heartbeat.
	StopWorkers(ctx context.Context, workers []ID, by string) ([]ID, error)
	// Workers returns the registered workers, oldest first: those that are not gone, and those gone for less than
	// goneFor. They are forgotten after 30 days.
	Workers(ctx context.Context, goneFor time.Duration) ([]WorkerInfo, error)
}

// Heard is the store's answer to a heartbeat.
type Heard struct {
	Owned []Owned   // what the store thinks the worker is running
	Stop  string    // who asked the worker to stop; "" for nobody
	Clock time.Time // the store's
}

// Owned is a task that the store has as running under a worker.
type Owned struct {
	Task     ID
	ClaimSeq int64
	Cancel   bool // somebody asked to cancel it
}

// WorkerState is where a worker stands in its life.
type WorkerState string

// The states of a worker.
const (
	WorkerBooting  WorkerState = "booting"
	WorkerReady    WorkerState = "ready"
	WorkerDraining WorkerState = "draining" // takes nothing new and finishes what it has
	WorkerGone     WorkerState = "gone"
)

// Leases: a worker heartbeats every HeartbeatEvery; without one for LeaseFor its tasks may be rescued. A worker with a lease of its own
// heartbeats six times in it.
const (
	HeartbeatEvery = 5 * time.Second
	LeaseFor       = 30 * time.Second
	MinLease       = time.Second
	MaxLease       = time.Hour
)

// WorkerInfo is a worker's row in the registry: one process incarnation.
type WorkerInfo struct {
	ID     ID       `json:"id"`
	Host   string   `json:"host"`
	PID    int      `json:"pid"`
	Build  string   `json:"build"`
	Queues []string `json:"queues"`
	Actors []string `json:"actors"`
	Slots  int      `json:"slots"`
	Lease  Duration `json:"lease"`
	About
	State     WorkerState `json:"state"`
	Live      bool        `json:"live"` // not gone and within its lease
	StartedAt time.Time   `json:"started_at"`
	LastBeat  time.Time   `json:"last_heartbeat"`
	Report    Report      `json:"report"`
	Stop      string      `json:"stop_requested_by,omitempty"`
	GoneAt    time.Time   `json:"gone_at,omitzero"`
	Cause     string      `json:"cause,omitempty"` // why it is gone
}

// Ready reports whether the worker says that it takes tasks, and that none of its checks has failed.
func (w *WorkerInfo) Ready() bool { return w.State == WorkerReady && len(w.Report.Failed()) == 0 }

// About is what does not change while a worker lives, besides its work.
type About struct {
	Process   Process    `json:"process"`
	Endpoints []Endpoint `json:"endpoints"` // the store first
	Canaries  bool       `json:"canaries"`  // it runs those of its queues; older builds do not
}

// Takes reports whether the worker listens to the queue and has the actor: whether it could run such a task.
func (w *WorkerInfo) Takes(queue, actor string) bool {
	return slices.Contains(w.Queues, queue) && (slices.Contains(w.Actors, actor) || actor == CanaryActor && w.Canaries)
}

// Process is how a worker was started. What the system does not tell is empty.
type Process struct {
	Started time.Time `json:"started_at,omitzero"`
	Parents []string  `json:"parents,omitempty"` // names of the programs that started it, the nearest first
	Args    []string  `json:"args"`              // without what may be secret, and shortened
	Dir     string    `json:"dir"`
	Go      string    `json:"go"`
	Stdout  string    `json:"stdout"` // tty, file, pipe, socket, null (also if it was closed) or other
	Stderr  string    `json:"stderr"`

	Space    string `json:"pid_space,omitempty"`     // where its id is one: the boot of the system, and the namespace
	Ticks    int64  `json:"start_ticks,omitempty"`   // when it started, as the kernel counts from its boot
	Group    string `json:"control_group,omitempty"` // that counts its memory
	OOMKills int    `json:"oom_kills,omitempty"`     // that the group had counted when it registered
}

// Endpoint is what a worker is connected to, told apart from others of its kind and without secrets.
type Endpoint struct {
	Kind     string `json:"kind"`              // sqlite, postgres or rabbitmq
	Address  string `json:"address,omitempty"` // host:port
	Name     string `json:"name"`              // the file, the database and its schema, the virtual host
	Instance string `json:"instance,omitempty"`
	Origin   string `json:"origin,omitempty"` // who said that it be used: a flag, a variable, a file, or nobody: default
}

// Same reports whether both are the same place, whoever named it.
func (e Endpoint) Same(f Endpoint) bool {
	e.Origin = f.Origin
	return e == f
}

// String names the endpoint for people.
func (e Endpoint) String() string {
	if e.Address == "" {
		return e.Name
	}
	return e.Address + "/" + e.Name
}

// Located is implemented by stores and sources that can say what they are connected to.
type Located interface {
	Endpoint(ctx context.Context) (Endpoint, error)
}

// Report is what a worker says of itself at each heartbeat.
type Report struct {
	Checks     []Check  `json:"checks,omitempty"`
	Running    int      `json:"running"`                     // tasks
	Skew       Duration `json:"clock_skew,omitempty"`        // its clock less the store's
	LogDropped int64    `json:"log_lines_dropped,omitempty"` // because they could not be written, or nobody read them fast enough
	Drained    *Drained `json:"drained,omitempty"`           // at its end
}

// Drained is how a worker's tasks ended while it stopped.
type Drained struct {
	Finished   int      `json:"finished"`
	HandedBack int      `json:"handed_back"`     // in time, without an attempt burnt
	Released   int      `json:"released"`        // at the end, by force
	Stuck      []string `json:"stuck,omitempty"` // handlers that ignored their cancelled context
	Took       Duration `json:"took"`
}

// Check is one thing that decides whether a worker does its work.
type Check struct {
	Name  string     `json:"name"`
	State CheckState `json:"state"`
	Text  string     `json:"text,omitempty"` // what is wrong
	Since time.Time  `json:"since,omitzero"` // since when, if it is known
}

// CheckState is the result of a check.
type CheckState string

// The results of checks. A worker is ready when none of them has failed.
const (
	CheckOK       CheckState = "ok"
	CheckDegraded CheckState = "degraded" // tasks run all the same
	CheckFailed   CheckState = "failed"
)

// The names of checks.
const (
	CheckStore    = "store"    // it answers heartbeats
	CheckBroker   = "broker"   // it is connected, and the queues are subscribed to
	CheckDelivery = "delivery" // what waits in the broker arrives; a worker that fails in this is deaf
	CheckHandlers = "handlers" // they end when their context does
	CheckPool     = "pool"     // the store has connections left
	CheckLog      = "log"      // it is read fast enough
)

// Checked is implemented by stores and sources that can say how they are.
type Checked interface {
	Checks() []Check
}

// Check returns the check of that name, or the zero value.
func (r *Report) Check(name string) Check {
	for _, c := range r.Checks {
		if c.Name == name {
			return c
		}
	}
	return Check{}
}

// Failed returns the checks that have failed.
func (r *Report) Failed() (failed []Check) {
	for _, c := range r.Checks {
		if c.State == CheckFailed {
			failed = append(failed, c)
		}
	}
	return failed
}
