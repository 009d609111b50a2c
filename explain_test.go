package opscore_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/opscore/opscore"
)

var writeDocs = flag.Bool("docs", false, "write docs/causes.md instead of comparing it")

// at is when the facts of these tests were read.
var at = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return at.Add(-d) }

// idFrom is an id that was made then.
func idFrom(made time.Time) (id opscore.ID) {
	id = uuid.MustParse("00000000-0000-7000-8000-00000000beef")
	for i := range 6 {
		id[i] = byte(made.UnixMilli() >> (8 * (5 - i)))
	}
	return id
}

var (
	taskID   = idFrom(ago(time.Minute))
	workerID = uuid.MustParse("01890a5d-ac96-774b-bcce-b302099a8057")
	otherID  = uuid.MustParse("01890a5d-ac96-774b-bcce-b302099a8058")
)

// healthy is a task that can start at once, on a deployment where all is well and everything was asked.
func healthy() opscore.Facts {
	return opscore.Facts{
		At: at, ID: taskID, Made: ago(30 * 24 * time.Hour), Kept: opscore.Duration(7 * 24 * time.Hour),
		Store:   opscore.Endpoint{Kind: "postgres", Address: "db:5432", Name: "app/opscore", Instance: "mine"},
		Sources: []opscore.Asked{{Source: "store", At: "db:5432/app/opscore"}, {Source: "postgres"}, {Source: "rabbitmq"}, {Source: "host"}},
		Task: &opscore.Task{
			ID: taskID, Actor: "act", Queue: "q", State: opscore.Pending, CreatedAt: ago(time.Minute), RunAt: ago(time.Second), MaxAttempts: 3,
			Timeout: opscore.Duration(time.Minute),
		},
		Queues: []opscore.Standing{{Queue: "q", Lines: []opscore.Line{{Queue: "q", Actor: "act", Due: opscore.Tally{N: 1}}}}},
		Workers: []opscore.WorkerInfo{{
			ID: workerID, Host: "hall", PID: 4711, Build: "b1", Queues: []string{"q"}, Actors: []string{"act"}, Slots: 2, State: opscore.WorkerReady, Live: true,
			Lease: opscore.Duration(30 * time.Second), StartedAt: ago(time.Hour), LastBeat: ago(time.Second),
			About: opscore.About{Endpoints: []opscore.Endpoint{{Kind: "rabbitmq", Address: "mq:5672", Name: "/"}}},
		}},
		Database: &opscore.DatabaseFacts{Connections: 10, Limit: 100, Endpoint: opscore.Endpoint{Address: "db:5432", Name: "app"}},
		Broker: &opscore.BrokerFacts{
			Endpoint: opscore.Endpoint{Kind: "rabbitmq", Address: "mq:5672", Name: "/"}, Reached: opscore.BrokerOpen, Epoch: otherID, Expected: otherID,
			Queues: []opscore.BrokerQueue{{
				Queue: "q", Name: "opscore.q", Exists: true, Consumers: 1,
				Consuming: []opscore.Consumer{{Tag: "t1", Worker: workerID, Host: "hall", PID: 4711, Instance: "mine"}},
			}},
		},
		Host: &opscore.HostFacts{Name: "hall", Processes: []opscore.ProcessFacts{{PID: 4711, Worker: workerID, Exists: true, State: "S"}}},
	}
}

func running(f *opscore.Facts) {
	f.Task.State, f.Task.Worker, f.Task.StartedAt, f.Task.Attempt = opscore.Running, workerID, ago(10*time.Second), 1
	f.Loads = []opscore.Load{{Worker: workerID, Running: opscore.Tally{N: 1}, Runs: []opscore.RunState{{Task: taskID, Actor: "act", StartedAt: ago(10 * time.Second)}}}}
}

func over(state opscore.State, code opscore.Code) func(*opscore.Facts) {
	return func(f *opscore.Facts) {
		f.Task.State, f.Task.Code, f.Task.Error, f.Task.FinishedAt, f.Task.Attempt = state, code, "boom", ago(time.Second), 3
	}
}

func waits(code opscore.Code) func(*opscore.Facts) {
	return func(f *opscore.Facts) {
		f.Task.Code, f.Task.Error, f.Task.RunAt, f.Task.Attempt = code, "boom", at.Add(4*time.Second), 1
	}
}

func gone(cause string) func(*opscore.Facts) {
	return func(f *opscore.Facts) {
		w := &f.Workers[0]
		w.State, w.Live, w.GoneAt, w.Cause = opscore.WorkerGone, false, ago(3*time.Second), cause
		f.Broker.Queues[0].Consumers, f.Broker.Queues[0].Consuming = 0, nil
	}
}

func missing(made time.Time) func(*opscore.Facts) {
	return func(f *opscore.Facts) { f.Task, f.ID = nil, idFrom(made) }
}

func broker(change func(*opscore.BrokerFacts)) func(*opscore.Facts) {
	return func(f *opscore.Facts) { change(f.Broker) }
}

func queue(change func(*opscore.BrokerQueue)) func(*opscore.Facts) {
	return func(f *opscore.Facts) { change(&f.Broker.Queues[0]) }
}

func worker(change func(*opscore.WorkerInfo)) func(*opscore.Facts) {
	return func(f *opscore.Facts) { change(&f.Workers[0]) }
}

func busy(f *opscore.Facts) {
	f.Loads = []opscore.Load{{Worker: workerID, Running: opscore.Tally{N: 2}, Runs: []opscore.RunState{
		{Task: otherID, Actor: "slow", StartedAt: ago(5 * time.Minute)}, {Task: otherID, Actor: "quick", StartedAt: ago(time.Second)},
	}}}
}

func inFront(n int, arriving, completing float64) func(*opscore.Facts) {
	return func(f *opscore.Facts) {
		f.Queues[0].Lines = append(f.Queues[0].Lines, opscore.Line{
			Queue: "q", Actor: "act", Priority: 9, Due: opscore.Tally{N: n}, Ahead: opscore.Tally{N: n}, Arriving: arriving, Completing: completing,
			FirstCame: ago(30 * time.Second), LastCame: ago(time.Second),
		})
	}
}

func all(changes ...func(*opscore.Facts)) func(*opscore.Facts) {
	return func(f *opscore.Facts) {
		for _, change := range changes {
			change(f)
		}
	}
}

var backend = opscore.Backend{
	PID: 1234, App: "billing", Client: "10.0.0.9:5544", State: "idle in transaction", Since: ago(4 * time.Minute), Begun: ago(5 * time.Minute), Query: "SELECT … FOR UPDATE",
	Locking: []string{"opscore.task"},
}

// explanations is what is said, code by code: what has changed against a healthy deployment, what the evidence and the text must hold, and what helps.
var explanations = []struct {
	code   string
	change func(*opscore.Facts)
	says   []string // in text or evidence
	remedy string   // the first one; "" for none
	also   []string // further causes, in their order
}{
	{opscore.CauseCompleted, over(opscore.Completed, ""), []string{"1s ago"}, "", nil},
	{opscore.CauseCancelled, all(over(opscore.Cancelled, "cancelled"), func(f *opscore.Facts) { f.Task.CancelledBy = "ann@hall" }), []string{"ann@hall"}, "opscore task retry ", nil},
	{opscore.CauseAttemptsExhausted, all(over(opscore.Failed, opscore.CodeError), func(f *opscore.Facts) {
		for i := range 3 {
			f.Attempts = append(f.Attempts, opscore.Attempt{Code: opscore.CodeError, Error: "boom", EndedAt: ago(time.Duration(3-i) * time.Minute)})
		}
		f.Attempts = append(f.Attempts, opscore.Attempt{Code: opscore.CodeTimeout, Error: "too long", EndedAt: ago(0)})
	}), []string{"1 time timeout: too long", "3 times error: boom, first at 2026-05-04T11:57:00Z, last at 2026-05-04T11:59:00Z"}, "opscore task retry ", nil},
	{opscore.CauseAborted, over(opscore.Failed, opscore.CodeAborted), []string{"boom"}, "opscore task retry ", nil},
	{opscore.CauseResultInvalid, over(opscore.Failed, opscore.CodeResultInvalid), []string{"boom"}, "opscore task retry ", nil},
	{opscore.CauseExpired, all(over(opscore.Failed, opscore.CodeExpired), func(f *opscore.Facts) { f.Task.ExpiresAt, f.Task.Attempt = ago(2*time.Second), 0 }), []string{"was not started before it expired at 2026-05-04T11:59:58Z"}, "opscore task retry ", nil},
	{opscore.CauseExpired, all(over(opscore.Failed, opscore.CodeExpired), func(f *opscore.Facts) { f.Task.ExpiresAt = ago(2 * time.Second) }), []string{"11:59:58"}, "opscore task retry ", nil},
	{opscore.CausePoison, all(over(opscore.Failed, opscore.CodePoison), func(f *opscore.Facts) { f.Task.Lost = 3 }), []string{"lost 3 times"}, "opscore task retry ", nil},
	{opscore.CauseFailed, over(opscore.Failed, "of_tomorrow"), []string{"of_tomorrow"}, "opscore task retry ", nil},

	{opscore.CauseOrphan, all(missing(ago(time.Minute)), func(f *opscore.Facts) {
		f.Orphans = []opscore.Orphan{{ID: f.ID, Message: f.ID, Queue: "q", Reason: opscore.CodeActorUnknown, Why: "no live worker has actor x", Count: 2}}
	}), []string{"2 times", "no live worker has actor x"}, "opscore orphan adopt ", nil},
	{
		opscore.CauseTransactionOpen, all(missing(ago(5*time.Minute)), func(f *opscore.Facts) { f.Database.Idle = []opscore.Backend{backend} }),
		[]string{"1234", "billing", "10.0.0.9:5544", "idle in transaction"},
		`psql "${OPSCORE_DATABASE_URL:?}" -c 'SELECT pg_terminate_backend(1234)'`,
		[]string{opscore.CauseNeverCommitted},
	},
	{opscore.CauseNeverCommitted, missing(ago(time.Minute)), []string{"db:5432/app/opscore", "1m", "mine"}, "look how the submitting transaction ended", nil},
	{opscore.CauseNeverCommitted, all(missing(ago(time.Hour)), func(f *opscore.Facts) {
		f.Database.Started, f.Database.Timeline = ago(time.Minute), "00000002"
	}), []string{"11:59:00", "00000002"}, "look how the submitting transaction ended, and whether what was committed before 2026-05-04T11:59:00Z was lost", nil},
	{opscore.CausePruned, missing(ago(8 * 24 * time.Hour)), []string{"8 days ago", "7 days"}, "", nil},
	{opscore.CauseOtherDatabase, missing(ago(40 * 24 * time.Hour)), []string{"2026-03-25", "2026-04-04"}, "ask the database that the submitter uses", nil},
	{opscore.CauseTaskUnknown, func(f *opscore.Facts) { f.Task, f.ID = nil, uuid.MustParse("8c5e1f0a-2b1c-4d3e-9f10-000000000001") }, []string{"does not say when"}, "compare the id", nil},

	{opscore.CauseScheduled, func(f *opscore.Facts) { f.Task.RunAt = at.Add(time.Hour) }, []string{"2026-05-04T13:00:00Z", "in 1h"}, "", nil},
	{opscore.CauseRetryBackoff, waits(opscore.CodeError), []string{"attempt 1 of 3", "boom", "in 4s"}, "", nil},
	{opscore.CauseRetryBackoff, all(waits(opscore.CodeError), func(f *opscore.Facts) { f.Task.ExpiresAt = at.Add(time.Second) }), []string{"before that, at 2026-05-04T12:00:01Z, it expires"}, "", nil},
	{opscore.CauseRetryBackoff, all(waits(opscore.CodeError), func(f *opscore.Facts) { f.Task.MaxAttempts = opscore.ForeverAttempts }), []string{"attempt 1 of any number"}, "", nil},
	{opscore.CauseSnoozed, waits(opscore.CodeSnoozed), []string{"in 4s"}, "", nil},
	{opscore.CauseHandedBack, waits(opscore.CodeShutdown), []string{"shutdown"}, "", nil},
	{opscore.CauseArgsIncompatible, waits(opscore.CodeArgsIncompatible), []string{"boom"}, "deploy a build", nil},
	{
		opscore.CauseQueuePaused, func(f *opscore.Facts) {
			f.Queues[0].Paused = &opscore.Pause{Queue: "q", By: "ann", At: ago(time.Hour), Comment: "new disk"}
		},
		[]string{"ann", "2026-05-04T11:00:00Z", "new disk"},
		"opscore queue resume q", nil,
	},
	{opscore.CauseSlotsBusy, busy, []string{"2 of 2", "5m", otherID.String(), "slow"}, "", nil},
	{opscore.CauseSlotsBusy, all(busy, inFront(7, 0, 2)), []string{"2 of 2"}, "", []string{opscore.CauseBehindOthers}},
	{opscore.CauseBehindOthers, inFront(7, 0, 2), []string{"number 8 in line", "4s"}, "", nil},
	{opscore.CauseStarved, inFront(700, 50, 20), []string{"number 701", "50/s", "20/s"}, "start more workers that listen to queue q", nil},
	{opscore.CauseBehindOthers, all(inFront(7, 0, 2.0/60), func(f *opscore.Facts) { f.Task.RunAt = ago(2 * time.Second) }), []string{"number 8 in line [{"}, "", nil},
	{opscore.CauseBehindOthers, all(inFront(700, 50, 20), func(f *opscore.Facts) { // they came at once
		f.Queues[0].Lines[1].FirstCame = f.Queues[0].Lines[1].LastCame
	}), []string{"number 701"}, "", nil},
	{opscore.CauseBehindOthers, all(inFront(700, 50, 20), func(f *opscore.Facts) { // and none comes any more
		f.Queues[0].Lines[1].LastCame = ago(10 * time.Second)
	}), []string{"number 701"}, "", nil},
	{opscore.CauseWaitsForSuspect, func(f *opscore.Facts) {
		f.Loads = []opscore.Load{{Worker: workerID, Running: opscore.Tally{N: 1}, Runs: []opscore.RunState{{Task: otherID, Actor: "bad", Lost: 2, StartedAt: ago(time.Minute)}}}}
	}, []string{otherID.String(), "lost 2 times"}, "", nil},
	{opscore.CauseReady, func(*opscore.Facts) {}, []string{workerID.String(), "2 of 2 slots free"}, "", nil},

	{opscore.CauseRunning, running, []string{"10s", "hall", "4711"}, "", nil},
	{opscore.CauseWaitsAlone, all(running, func(f *opscore.Facts) { f.Task.Lost = 2 }), []string{"lost 2 times", workerID.String()}, "", nil},
	{opscore.CauseCancelRequested, all(running, func(f *opscore.Facts) { f.Task.CancelRequestedAt, f.Task.CancelledBy = ago(time.Second), "ann" }), []string{"ann"}, "", nil},
	{opscore.CauseHandlerStuck, all(running, func(f *opscore.Facts) { f.Task.StartedAt = ago(3 * time.Minute) }), []string{"1m0s was over 2m", "4711"}, "opscore worker stop " + workerID.String(), nil},
	{opscore.CauseHandlerStuck, all(running, func(f *opscore.Facts) {
		f.Workers[0].Report.Checks = []opscore.Check{{Name: opscore.CheckHandlers, State: opscore.CheckDegraded, Text: "they go on: act (task " + taskID.String() + ")"}}
	}), []string{"they go on"}, "opscore worker stop " + workerID.String(), nil},

	{opscore.CauseRunning, all(running, func(f *opscore.Facts) { // the worker says since that no handler goes on
		f.Task.StartedAt, f.Workers[0].Report.Checks = ago(3*time.Minute), []opscore.Check{{Name: opscore.CheckHandlers, State: opscore.CheckOK}}
	}), []string{"has ended", "about to be recorded, 2m after its time of 1m0s"}, "", nil},
	{opscore.CauseWorkerDied, all(running, func(f *opscore.Facts) { f.Task.Worker = otherID }), []string{"is not registered any more", otherID.String()}, "", nil},
	{opscore.CauseWorkerDied, all(running, func(f *opscore.Facts) { f.Task.Worker, f.Task.StartedAt = otherID, ago(time.Minute) }), []string{"is not registered any more"}, "", []string{opscore.CauseNoKeeper}},

	{opscore.CauseNoWorker, gone("stopped"), []string{"hall", "4711", "11:59:57", "stopped"}, "start a worker that listens to queue q and has actor act", nil},
	{opscore.CauseActorUnknown, worker(func(w *opscore.WorkerInfo) { w.Actors = []string{"else"} }), []string{"actor act", "else", "b1"}, "start a worker", nil},
	{opscore.CauseQueueNotListened, worker(func(w *opscore.WorkerInfo) { w.Queues = []string{"other"} }), []string{"queue q", "other"}, "start a worker", nil},
	{opscore.CauseWorkerNotReady, worker(func(w *opscore.WorkerInfo) {
		w.Report.Checks = []opscore.Check{{Name: opscore.CheckDelivery, State: opscore.CheckFailed, Text: "deaf since noon"}}
	}), []string{"deaf since noon"}, "on host hall", nil},
	{opscore.CauseWorkerNotReady, worker(func(w *opscore.WorkerInfo) { w.State, w.Stop = opscore.WorkerDraining, "ann" }), []string{"ann asked"}, "wait for another", nil},
	{opscore.CauseWorkerSilent, all(running, worker(func(w *opscore.WorkerInfo) { w.LastBeat = ago(20 * time.Second) })), []string{"20s", "4711 state Value:S", "12:00:10"}, "process 4711 is alive on this host", nil},
	{opscore.CauseWorkerSilent, all(worker(func(w *opscore.WorkerInfo) { w.LastBeat, w.Live = ago(100*time.Second), false }), func(f *opscore.Facts) { f.Host = nil }), []string{"for 1m40s,"}, "look at process 4711 on host hall", nil},
	{opscore.CauseWorkerStopped, all(running, func(f *opscore.Facts) { f.Host.Processes[0].State = "T" }), []string{"4711", "state T"}, "kill -CONT 4711", nil},
	{opscore.CauseWorkerStopped, func(f *opscore.Facts) { f.Host.Processes[0].State = "T" }, []string{"state T"}, "kill -CONT 4711", nil},
	{opscore.CauseWorkerDied, all(running, func(f *opscore.Facts) { f.Host.Processes[0].Exists = false }), []string{"4711", "no such process", "12:00:29"}, "", []string{opscore.CauseNoWorker}},
	{opscore.CauseWorkerDied, func(f *opscore.Facts) { f.Host.Processes[0].Exists = false }, []string{"4711"}, "", []string{opscore.CauseNoWorker}},
	{opscore.CauseWorkerDied, all(running, gone("its process is dead")), []string{"its process is dead"}, "", []string{opscore.CauseNoWorker}},
	{opscore.CauseWorkerDied, all(waits(opscore.CodeLost), func(f *opscore.Facts) { f.Task.Lost = 1 }), []string{"1 of 3", "in 4s"}, "", nil},
	{opscore.CauseWorkerOOMKilled, all(running, func(f *opscore.Facts) { f.Host.Processes[0].Exists, f.Host.Processes[0].OOMKills = false, 2 }), []string{"oom_kill 2"}, "give process 4711", []string{opscore.CauseNoWorker}},
	{opscore.CauseWorkerLeft, all(running, gone("stopped: by a signal")), []string{"by a signal"}, "", []string{opscore.CauseNoWorker}},
	{opscore.CauseNoKeeper, func(f *opscore.Facts) { f.Task.ExpiresAt = ago(time.Minute) }, []string{"expired 1m"}, "opscore worker", []string{opscore.CauseExpired}},
	{opscore.CauseWorkerDied, all(running, gone("its process is dead"), worker(func(w *opscore.WorkerInfo) { w.GoneAt = ago(time.Hour) })), []string{"is dead"}, "", []string{opscore.CauseNoKeeper, opscore.CauseNoWorker}},
	{opscore.CauseWorkerDegraded, worker(func(w *opscore.WorkerInfo) {
		w.Report.Checks = []opscore.Check{{Name: opscore.CheckBroker, State: opscore.CheckDegraded, Text: "not connected"}}
	}), []string{"not connected"}, "on host hall", []string{opscore.CauseReady}},
	{opscore.CauseOutputBlocked, func(f *opscore.Facts) {
		f.Host.Processes[0].Pipes = []opscore.PipeFill{{FD: 1, Full: true, Buffered: 65536, Size: 65536, Readers: []int{99}}}
	}, []string{"65536 of 65536", "99"}, "let process 99 read", []string{opscore.CauseReady}},
	{opscore.CauseOutputBlocked, worker(func(w *opscore.WorkerInfo) {
		w.Report.LogDropped = 17
		w.Report.Checks = []opscore.Check{{Name: opscore.CheckLog, State: opscore.CheckDegraded, Text: "blocked for 9s"}}
	}), []string{"17", "blocked for 9s"}, "read the output", []string{opscore.CauseReady}},
	{opscore.CauseClockSkew, worker(func(w *opscore.WorkerInfo) { w.Report.Skew = opscore.Duration(-time.Minute) }), []string{"-1m0s"}, "set the clock of host hall", []string{opscore.CauseReady}},
	{opscore.CauseNoWorker, all(gone("stopped"), func(f *opscore.Facts) {
		f.Host.Processes = []opscore.ProcessFacts{{PID: 77, Exists: true, Args: []string{"opscore", "worker"}, Dir: "/srv"}}
	}), []string{"hall"}, "start a worker", []string{opscore.CauseWorkerUnregistered}},
	{opscore.CauseWorkerOtherBroker, worker(func(w *opscore.WorkerInfo) { w.Endpoints[0].Name = "other" }), []string{"other", "4711"}, "start process 4711 on host hall", []string{opscore.CauseReady}},
	{opscore.CauseWorkerOtherBroker, all(worker(func(w *opscore.WorkerInfo) { w.Endpoints[0].Instance = "rabbit@a" }), broker(func(b *opscore.BrokerFacts) {
		b.Endpoint.Instance, b.Epoch = "rabbit@b", opscore.ID{}
	})), []string{"mq:5672 (rabbit@a)", "mq:5672 (rabbit@b)"}, "start process 4711 on host hall", []string{opscore.CauseReady}},
	{opscore.CauseWorkerOtherDatabase, queue(func(q *opscore.BrokerQueue) {
		q.Consuming = append(q.Consuming, opscore.Consumer{Tag: "t2", Worker: otherID, Host: "attic", PID: 55, Instance: "theirs"})
	}), []string{"theirs", "mine", "55", "attic"}, "give process 55 on host attic", []string{opscore.CauseReady}},

	{opscore.CauseBrokerUnreachable, broker(func(b *opscore.BrokerFacts) {
		b.Reached, b.Err, b.Queues = opscore.BrokerNone, "connection refused", nil
	}), []string{"mq:5672", "connection refused"}, "start RabbitMQ at mq:5672", []string{opscore.CauseReady}},
	{opscore.CauseBrokerFrozen, broker(func(b *opscore.BrokerFacts) { b.Reached, b.Err, b.Queues = opscore.BrokerTLS, "i/o timeout", nil }), []string{"mq:5672", "i/o timeout"}, "continue or restart RabbitMQ at mq:5672", []string{opscore.CauseReady}},
	{opscore.CauseBrokerTLS, broker(func(b *opscore.BrokerFacts) { b.Reached, b.Err, b.Queues = opscore.BrokerTCP, "unknown authority", nil }), []string{"unknown authority"}, "mend the certificate", []string{opscore.CauseReady}},
	{opscore.CauseBrokerLoginRefused, broker(func(b *opscore.BrokerFacts) {
		b.Reached, b.Err, b.Queues, b.User = opscore.BrokerHandshake, "username or password not allowed", nil, "u"
	}), []string{"not allowed", "Value:u "}, "give user u of RabbitMQ at mq:5672 the password", []string{opscore.CauseReady}},
	{opscore.CauseBrokerVhostRefused, broker(func(b *opscore.BrokerFacts) {
		b.Reached, b.Err, b.Queues, b.User = opscore.BrokerLogin, "no access", nil, "u"
	}), []string{"virtual host /"}, "rabbitmqctl set_permissions -p / u '.*' '.*' '.*'", []string{opscore.CauseReady}},
	{opscore.CauseBrokerVhostRefused, vhostRefused("530 NOT_ALLOWED - vhost limit not found"), []string{"virtual host limit"}, "rabbitmqctl add_vhost limit && rabbitmqctl set_permissions -p limit down '.*' '.*' '.*'", []string{opscore.CauseReady}},
	{opscore.CauseBrokerVhostRefused, vhostRefused("530 NOT_ALLOWED - access to vhost 'limit' refused for user 'down': connection limit (4) is reached"), []string{"(4)"}, "raise the limit of connections for virtual host limit or user down", []string{opscore.CauseReady}},
	{opscore.CauseBrokerVhostRefused, vhostRefused("541 INTERNAL_ERROR - access to vhost 'limit' refused for user 'down': vhost 'limit' is down"), []string{"is down"}, "rabbitmqctl restart_vhost -p limit", []string{opscore.CauseReady}},
	{opscore.CauseBrokerVhostRefused, vhostRefused("530 NOT_ALLOWED - access to vhost 'limit' refused for user 'down'"), []string{"refused"}, "rabbitmqctl set_permissions -p limit down '.*' '.*' '.*'", []string{opscore.CauseReady}},
	{opscore.CauseBrokerPermission, queue(func(q *opscore.BrokerQueue) { q.Refused = []string{"read: access refused for user u"} }), []string{"user u"}, "give the user that the error names", []string{opscore.CauseReady}},
	{
		opscore.CauseBrokerPermission,
		all(broker(func(b *opscore.BrokerFacts) { b.User = "u" }), queue(func(q *opscore.BrokerQueue) { q.Refused = []string{"read: access refused"} })),
		[]string{"access refused"},
		"rabbitmqctl set_permissions -p / u '.*' '.*' '.*'",
		[]string{opscore.CauseReady},
	},
	{opscore.CauseWorkerStopped, func(f *opscore.Facts) { f.Host.Processes[0].Frozen = true }, []string{"frozen", "4711"}, "thaw the control group of process 4711 on host hall", nil},
	{opscore.CauseBrokerAlarm, broker(func(b *opscore.BrokerFacts) { b.Blocked = "low on memory" }), []string{"low on memory"}, "free what RabbitMQ at mq:5672 is low on", []string{opscore.CauseReady}},
	{opscore.CauseBrokerStateLost, broker(func(b *opscore.BrokerFacts) { b.Epoch = opscore.ID{} }), []string{otherID.String(), "none"}, "", []string{opscore.CauseReady}},
	{opscore.CauseBrokerQueueMissing, queue(func(q *opscore.BrokerQueue) { *q = opscore.BrokerQueue{Queue: "q", Name: "opscore.q"} }), []string{"opscore.q"}, "opscore queue ensure q", []string{opscore.CauseReady}},
	{opscore.CauseBrokerQueueMismatch, queue(func(q *opscore.BrokerQueue) { q.Mismatch = "x-max-priority is none, wanted 10" }), []string{"x-max-priority is none, wanted 10"}, "opscore queue migrate q", []string{opscore.CauseReady}},
	{opscore.CauseBrokerQueueUnusable, queue(func(q *opscore.BrokerQueue) { q.Exists, q.Err, q.Reply = false, "405 RESOURCE_LOCKED - in use", 405 }), []string{"RESOURCE_LOCKED"}, "end the connection that has queue opscore.q for itself", []string{opscore.CauseReady}},
	{opscore.CauseBrokerQueueUnusable, queue(func(q *opscore.BrokerQueue) { q.Err, q.Reply = "403 ACCESS_REFUSED - in exclusive use", 403 }), []string{"in exclusive use"}, "stop the consumer that has queue opscore.q for itself", []string{opscore.CauseReady}},
	{opscore.CauseBrokerQueueUnusable, queue(func(q *opscore.BrokerQueue) { q.Err, q.Reply = "404 NOT_FOUND - home node is down", 404 }), []string{"home node is down"}, "mend what RabbitMQ says of queue opscore.q", []string{opscore.CauseReady}},
	{opscore.CauseBrokerQueueUnusable, queue(func(q *opscore.BrokerQueue) {
		q.Members, q.Online = []string{"a@x", "b@x", "c@x", "d@x"}, []string{"b@x", "a@x"}
	}), []string{"4 nodes", "c@x, d@x"}, "start the RabbitMQ nodes that are down: c@x, d@x", []string{opscore.CauseReady}},
	{opscore.CauseReady, queue(func(q *opscore.BrokerQueue) {
		q.Members, q.Online = []string{"a@x", "b@x", "c@x"}, []string{"b@x", "a@x"}
	}), nil, "", nil},
	{opscore.CauseReady, queue(func(q *opscore.BrokerQueue) { q.Err = "no answer in time" }), nil, "", []string{opscore.CauseSourceSilent}},
	{opscore.CauseBrokerPolicyLimits, queue(func(q *opscore.BrokerQueue) {
		q.Policy = &opscore.BrokerPolicy{Name: "tiny", Definition: map[string]any{"max-length": 3, "ha-mode": "all"}}
	}), []string{"tiny", "max-length=3"}, "rabbitmqctl clear_policy -p / tiny", []string{opscore.CauseReady}},
	{opscore.CauseBrokerPolicyLimits, queue(func(q *opscore.BrokerQueue) {
		q.Policy = &opscore.BrokerPolicy{Operator: "house", Definition: map[string]any{"max-length": 3}}
	}), []string{"operator policy house"}, "rabbitmqctl clear_operator_policy -p / house", []string{opscore.CauseReady}},
	{opscore.CauseBrokerPolicyLimits, queue(func(q *opscore.BrokerQueue) {
		q.Policy = &opscore.BrokerPolicy{Name: "tiny", Operator: "house", Definition: map[string]any{"max-length": 3}}
	}), []string{"policy tiny with operator policy house"}, "take the limits out of policy tiny or operator policy house", []string{opscore.CauseReady}},
	{opscore.CauseBrokerPolicyLimits, queue(func(q *opscore.BrokerQueue) {
		q.Messages = 5000
		q.Policy = &opscore.BrokerPolicy{Name: "house", Definition: map[string]any{"max-length": 5000.0, "overflow": "reject-publish"}}
	}), []string{"house", "max-length=5000", "5000 wait"}, "rabbitmqctl clear_policy -p / house", []string{opscore.CauseReady}},
	{opscore.CauseBrokerPolicyLimits, queue(func(q *opscore.BrokerQueue) {
		q.Policy = &opscore.BrokerPolicy{Name: "fresh", Definition: map[string]any{"message-ttl": 500.0}}
	}), []string{"fresh", "message-ttl=500"}, "rabbitmqctl clear_policy -p / fresh", []string{opscore.CauseReady}},
	{opscore.CauseReady, queue(func(q *opscore.BrokerQueue) { // a policy that any queue may have
		q.Messages = 4999
		q.Policy = &opscore.BrokerPolicy{Name: "house", Definition: map[string]any{"max-length": 5000.0, "message-ttl": 6e4, "expires": 36e5, "delivery-limit": 20.0}}
	}), nil, "", nil},
	{opscore.CauseReady, queue(func(q *opscore.BrokerQueue) { // of another system, whose workers take from it as well
		*q = opscore.BrokerQueue{Queue: "q", Name: "mail", Adopted: true, Exists: true, Consumers: 2, Consuming: append(q.Consuming, opscore.Consumer{Tag: "dramatiq", Peer: "10.0.0.7:4000"})}
	}), nil, "", nil},
	{opscore.CauseReady, queue(func(q *opscore.BrokerQueue) { q.Adopted, q.Consumers, q.Consuming = true, 2, nil }), nil, "", nil},
	{opscore.CauseReady, func(f *opscore.Facts) { f.Ticket = &opscore.OutTicket{ID: otherID, At: ago(6 * time.Second), In: 1} }, nil, "", nil}, // its consumer may have it
	{opscore.CauseBrokerMessagesAside, queue(func(q *opscore.BrokerQueue) {
		*q = opscore.BrokerQueue{Queue: "q", Name: "mail", Adopted: true, Exists: true, Aside: 60, AsideIn: "opscore-moving-mail"}
	}), []string{"60 messages of queue mail are in queue opscore-moving-mail"}, "opscore queue migrate --stopped q", []string{opscore.CauseReady}},
	{opscore.CauseTicketLost, all(queue(func(q *opscore.BrokerQueue) { q.Consumers, q.Consuming = 0, nil }), func(f *opscore.Facts) {
		f.Ticket = &opscore.OutTicket{ID: otherID, At: ago(6 * time.Second), In: 1}
	}), []string{"11:59:54", "opscore.q"}, "", []string{opscore.CauseReady}},
	{opscore.CauseTicketLost, func(f *opscore.Facts) {
		f.Broker.Managed, f.Ticket = true, &opscore.OutTicket{ID: otherID, At: ago(6 * time.Second), In: 1}
	}, []string{"11:59:54", "opscore.q"}, "", []string{opscore.CauseReady}},
	{opscore.CauseTicketsHeld, func(f *opscore.Facts) {
		f.Ticket = &opscore.OutTicket{ID: otherID, At: ago(time.Second), In: 1}
		busy := f.Workers[0]
		busy.ID, busy.PID = otherID, 55
		f.Workers = append(f.Workers, busy)
		f.Loads = []opscore.Load{{Worker: otherID, Running: opscore.Tally{N: 2}}}
		f.Broker.Queues[0].Consumers = 2
		f.Broker.Queues[0].Consuming = append(f.Broker.Queues[0].Consuming, opscore.Consumer{Tag: "t2", Worker: otherID, PID: 55, Host: "hall", Unacked: 5})
	}, []string{"5", "2 of 2", "55"}, "", []string{opscore.CauseReady}},
	{opscore.CauseForeignConsumer, queue(func(q *opscore.BrokerQueue) {
		q.Consumers = 2
		q.Consuming = append(q.Consuming, opscore.Consumer{Tag: "ghost", Peer: "10.0.0.7:4000", AutoAck: true, PID: 66, Host: "hall"})
	}), []string{"ghost", "10.0.0.7:4000", "ack_required=false"}, "on host hall, end process 66 if it is a worker of opscore", []string{opscore.CauseReady}},
	{opscore.CauseForeignConsumer, all(queue(func(q *opscore.BrokerQueue) {
		q.Consumers = 2
		q.Consuming = append(q.Consuming, opscore.Consumer{Tag: "ghost", Peer: "10.0.0.7:4000", PID: 66, Host: "hall"})
	}), func(f *opscore.Facts) {
		f.Host.Processes = append(f.Host.Processes, opscore.ProcessFacts{PID: 66, Exists: true})
	}), []string{"ghost"}, "kill 66", []string{opscore.CauseReady}},
	{opscore.CauseReady, queue(func(q *opscore.BrokerQueue) { q.Consumers, q.Consuming = 1, []opscore.Consumer{{Tag: "t9"}} }), nil, "", nil},
	{opscore.CauseForeignConsumer, queue(func(q *opscore.BrokerQueue) {
		q.Consumers, q.Consuming = 2, append(q.Consuming, opscore.Consumer{Tag: "t9"})
	}), []string{"t9 from a connection without a name"}, "stop the consumer t9", []string{opscore.CauseReady}},
	{opscore.CauseForeignConsumer, queue(func(q *opscore.BrokerQueue) { q.Consumers, q.Consuming = 2, nil }), []string{"2 consumers", "1 registered"}, "rabbitmqctl list_consumers -p /", []string{opscore.CauseReady}},

	{opscore.CauseDatabaseUnreachable, all(storeFails, func(f *opscore.Facts) { f.Database = nil }), []string{"db:5432", "connection refused"}, "start the database at db:5432", nil},
	{opscore.CauseDatabaseSilent, storeFails, []string{"connection refused"}, "look what keeps", nil},
	{opscore.CauseDatabaseReadOnly, func(f *opscore.Facts) { f.Database.Recovery = true }, []string{"standby", "true"}, "connect to the primary", nil},
	{opscore.CauseDatabaseReadOnly, func(f *opscore.Facts) { f.Database.ReadOnly = true }, []string{"read-only"}, "unset default_transaction_read_only", nil},
	{opscore.CauseDatabaseFull, all(storeFails, func(f *opscore.Facts) { f.Database.Connections = 100 }), []string{"100 of 100"}, "end idle connections", nil},
	{opscore.CauseDatabaseTimeout, all(storeFails, func(f *opscore.Facts) {
		f.Database.Timeouts = []opscore.Setting{{Name: "idle_in_transaction_session_timeout", Value: opscore.Duration(time.Minute)}, {Name: "statement_timeout", Value: opscore.Duration(time.Millisecond)}}
	}), []string{"statement_timeout", "1ms"}, "raise statement_timeout, or reset it", nil},
	{opscore.CauseDatabaseFull, all(storeFails, func(f *opscore.Facts) {
		f.Database.Connections, f.Database.Crowds = 100, []opscore.Crowd{{App: "leak", User: "u", Client: "10.0.0.9", N: 90}, {User: "v", N: 2}}
	}), []string{"leak (user u, 10.0.0.9) Value:90", "a program without a name (user v, local) Value:2"}, "end idle connections of leak (user u, 10.0.0.9)", nil},
	{opscore.CauseDatabaseStalled, func(f *opscore.Facts) {
		waits := backend
		waits.Wait, waits.State = "IPC: SyncRep", "active"
		f.Database.Slow, f.Database.SyncStandbys = []opscore.Backend{waits}, "berlin"
		f.Database.Locks = []opscore.Lock{{On: "row of table opscore.worker", Mode: "ExclusiveLock", Holder: waits}}
	}, []string{"berlin", "IPC: SyncRep", "1234", "none"}, "start a standby that synchronous_standby_names of", nil},
	{opscore.CauseDatabaseStalled, func(f *opscore.Facts) {
		f.Database.Slow = []opscore.Backend{
			{PID: 8, App: "opscore", State: "active", Since: ago(9 * time.Second), Wait: "Lock: relation"},
			{PID: 9, App: "opscore", State: "active", Since: ago(8 * time.Second), Wait: "IO: DataFileRead"},
			{PID: 10, App: "report", State: "active", Since: ago(time.Hour), Wait: "IO: DataFileRead"},
		}
	}, []string{"process 9 ", "IO: DataFileRead", "1 statement"}, "look what process 9 of the database works at", nil},
	{opscore.CauseRowLocked, func(f *opscore.Facts) {
		f.Database.Locks = []opscore.Lock{{On: "row of the task", Mode: "RowShareLock", Holder: backend, Waiting: []int{12, 13}}}
	}, []string{"1234", "billing", "10.0.0.9:5544", "SELECT … FOR UPDATE", "12, 13"}, `psql "${OPSCORE_DATABASE_URL:?}" -c 'SELECT pg_terminate_backend(1234)'`, nil},
	{opscore.CauseTableLocked, all(storeFails, func(f *opscore.Facts) {
		f.Database.Locks = []opscore.Lock{{On: "table opscore.task", Mode: "AccessExclusiveLock", Holder: backend}}
	}), []string{"table opscore.task", "AccessExclusiveLock", "1234"}, `psql "${OPSCORE_DATABASE_URL:?}" -c 'SELECT pg_terminate_backend(1234)'`, nil},
	{opscore.CauseTransactionIdle, func(f *opscore.Facts) { f.Database.Idle = []opscore.Backend{backend} }, []string{"1234", "opscore.task", "4m"}, `psql "${OPSCORE_DATABASE_URL:?}" -c 'SELECT pg_terminate_backend(1234)'`, []string{opscore.CauseReady}},
	{opscore.CauseDatabaseUnreachable, reached(opscore.DatabaseNone, ""), []string{"db:5432", "nobody home"}, "start the database at db:5432", nil},
	{opscore.CauseDatabaseFrozen, reached(opscore.DatabaseTCP, ""), []string{"db:5432", "nobody home"}, "continue or restart the database server at db:5432", nil},
	{opscore.CauseDatabaseRefused, reached(opscore.DatabaseRefused, "28P01"), []string{"28P01", "nobody home"}, "mend what the database at db:5432 says", nil},
	{opscore.CauseDatabaseFull, reached(opscore.DatabaseRefused, "53300"), []string{"53300"}, "end idle connections", nil},
	{opscore.CauseDatabaseSchema, func(f *opscore.Facts) { f.Database.Schema, f.Database.SchemaWanted = 4, 5 }, []string{"version 4", "wants 5"}, "opscore migrate up", nil},
	{opscore.CauseDatabaseSchema, func(f *opscore.Facts) { f.Database.Schema, f.Database.SchemaWanted = 6, 5 }, []string{"version 6", "only up to 5"}, "use the newer opscore", nil},
	{opscore.CauseDatabaseSchema, all(storeFails, func(f *opscore.Facts) {
		f.Database.Endpoint = opscore.Endpoint{Kind: "postgres", Address: "db:5432", Name: "shop/tasks"}
		f.Database.Schema, f.Database.SchemaWanted = 0, 5
	}), []string{"db:5432/shop/tasks"}, "compare db:5432/shop/tasks with where the submitter's tasks are", nil},
	{opscore.CauseDatabaseSchema, onFile(4, 5, "older"), []string{"/srv/tasks.db has version 4", "wants 5", "Source:sqlite Fact:schema version"}, "opscore migrate up", nil},
	{opscore.CauseDatabaseSchema, onFile(6, 5, "newer"), []string{"/srv/tasks.db has version 6", "only up to 5"}, "use the newer opscore", nil},
	{opscore.CauseDatabaseSchema, onFile(0, 5, "no tables"), []string{"/srv/tasks.db has no tables of opscore"}, "compare /srv/tasks.db with where", nil},
	{opscore.CauseDatabaseRefused, onFile(5, 5, "the file is damaged"), []string{"/srv/tasks.db cannot be used: the file is damaged"}, "mend what the error says of /srv/tasks.db", nil},
	{opscore.CauseDatabaseRefused, all(onFile(0, 0, "it is a directory"), func(f *opscore.Facts) {
		f.Database.Reached, f.Database.Err = opscore.DatabaseRefused, "it is no regular file"
	}), []string{"/srv/tasks.db", "it is a directory", "it is no regular file"}, "mend what the error says of /srv/tasks.db", nil},
	{opscore.CauseDatabaseRefused, all(onFile(0, 0, "it is a directory"), func(f *opscore.Facts) { f.Database = nil }), []string{"it is a directory"}, "mend what the error says of /srv/tasks.db", nil},
	{opscore.CauseDatabaseUnreachable, all(onFile(0, 0, "no such file"), func(f *opscore.Facts) {
		f.Database.Reached, f.Database.Err = opscore.DatabaseNone, "no such file"
	}), []string{"there is no database file /srv/tasks.db"}, "compare /srv/tasks.db with where", nil},
	{opscore.CauseDatabaseSilent, all(onFile(5, 5, "no answer within 1s"), func(f *opscore.Facts) { f.Sources[0].Late = true }), []string{"/srv/tasks.db", "no answer within 1s"}, "look which processes have /srv/tasks.db open", nil},
	{opscore.CauseDatabaseDiskFull, all(onFile(5, 5, ""), func(f *opscore.Facts) { f.Database.Free = new(int64) }), []string{"/srv/tasks.db", "0 bytes"}, "free room on the disk", nil},
	{opscore.CauseReady, onFile(5, 5, ""), nil, "", nil}, // what is free is not known
	{opscore.CauseTableLocked, func(f *opscore.Facts) {
		f.Database.Endpoint, f.Database.Free = opscore.Endpoint{Kind: "sqlite", Name: "/srv/tasks.db"}, new(int64(1<<30))
		f.Database.Locks = []opscore.Lock{{On: "file", Mode: "write", Holder: opscore.Backend{PID: 99, App: "backup", State: "T"}}}
	}, []string{"99", "backup"}, "let process 99 on this host end its transaction", nil},
	{opscore.CauseTableLocked, func(f *opscore.Facts) {
		f.Database.Locks = []opscore.Lock{{
			On: "table opscore.task", Mode: "AccessExclusiveLock", Holder: opscore.Backend{Prepared: "it's me"}, Next: &opscore.Backend{PID: 77, App: "migrate"},
		}}
	}, []string{"it's me", "77", "migrate"}, `psql "${OPSCORE_DATABASE_URL:?}" -c 'ROLLBACK PREPARED '\''it'\'''\''s me'\'''`, nil},
	{opscore.CauseRowsLocked, func(f *opscore.Facts) {
		f.Database.Locks = []opscore.Lock{{On: "row of table opscore.worker", Mode: "ExclusiveLock", Holder: backend}}
	}, []string{"opscore.worker", "1234"}, `psql "${OPSCORE_DATABASE_URL:?}"`, []string{opscore.CauseReady}},
	{opscore.CausePoolExhausted, worker(func(w *opscore.WorkerInfo) {
		w.Report.Checks = []opscore.Check{{Name: opscore.CheckPool, State: opscore.CheckDegraded, Text: "4 of 4 connections are taken, 3 wait"}}
	}), []string{"4 of 4", "3 wait"}, "on host hall", []string{opscore.CauseReady}},
	{opscore.CauseReady, func(f *opscore.Facts) { f.Sources[3].Err, f.Host = "no /proc", nil }, nil, "", []string{opscore.CauseSourceSilent}},

	{opscore.CauseUnknown, all(worker(func(w *opscore.WorkerInfo) { w.Report.Skew = opscore.Duration(time.Minute) }), func(f *opscore.Facts) { f.Task.RunAt = ago(time.Minute) }), []string{"1m ago"}, "", []string{opscore.CauseClockSkew, opscore.CauseReady}},
	{opscore.CauseUnknown, func(f *opscore.Facts) { f.Task.RunAt = ago(time.Minute) }, []string{"1m ago", workerID.String(), "1 consumers", "open"}, "", []string{opscore.CauseReady}},
}

func reached(step opscore.DatabaseStep, state string) func(*opscore.Facts) {
	return all(storeFails, func(f *opscore.Facts) {
		f.Database.Reached, f.Database.SQLState, f.Database.Err = step, state, "nobody home"
	})
}

func vhostRefused(words string) func(*opscore.Facts) {
	return all(worker(func(w *opscore.WorkerInfo) { w.Endpoints[0].Name = "limit" }), broker(func(b *opscore.BrokerFacts) {
		b.Reached, b.Err, b.Queues, b.User, b.Endpoint.Name = opscore.BrokerLogin, words, nil, "down", "limit"
	}))
}

func storeFails(f *opscore.Facts) {
	f.Sources[0].Err, f.Task, f.Queues, f.Workers, f.Store = "connection refused", nil, nil, nil, opscore.Endpoint{}
}

// onFile is the embedded tier: the schema of its file, the one that is wanted, and what the store says instead of an answer.
func onFile(schema, wanted int64, says string) func(*opscore.Facts) {
	return func(f *opscore.Facts) {
		if says != "" {
			storeFails(f)
		}
		f.Sources = []opscore.Asked{{Source: "store", At: "/srv/tasks.db", Err: says}, {Source: "sqlite"}, {Source: "host"}}
		f.Database = &opscore.DatabaseFacts{
			Endpoint: opscore.Endpoint{Kind: "sqlite", Name: "/srv/tasks.db"}, Reached: opscore.DatabaseOpen, Schema: schema, SchemaWanted: wanted,
		}
		f.Broker = nil
	}
}

func TestExplainNamesTheCauseTheEvidenceAndTheRemedy(t *testing.T) {
	for _, tc := range explanations {
		t.Run(tc.code, func(t *testing.T) {
			f := healthy()
			tc.change(&f)
			causes := opscore.Explain(f)
			var codes []string
			for _, c := range causes {
				codes = append(codes, c.Code)
			}
			if want := append([]string{tc.code}, tc.also...); !slices.Equal(codes, want) {
				t.Fatalf("causes = %v, want %v\n%+v", codes, want, causes)
			}
			top := causes[0]
			said := fmt.Sprintf("%s %+v", top.Text, top.Evidence)
			for _, s := range tc.says {
				if !strings.Contains(said, s) {
					t.Errorf("%q is missing in %s", s, said)
				}
			}
			remedy := ""
			if len(top.Remedy) > 0 {
				remedy = top.Remedy[0].String()
			}
			if !strings.HasPrefix(remedy, tc.remedy) || tc.remedy == "" && remedy != "" {
				t.Errorf("remedy = %q, want %q", remedy, tc.remedy)
			}
			if len(top.Evidence) == 0 || top.Severity == "" {
				t.Errorf("no evidence or no severity: %+v", top)
			}
		})
	}
}

func TestEveryCodeOfTheTableIsExplainedSomewhere(t *testing.T) {
	seen := map[string]bool{}
	for _, tc := range explanations {
		f := healthy()
		tc.change(&f)
		for _, c := range opscore.Explain(f) {
			seen[c.Code] = true
		}
	}
	for _, k := range opscore.Causes() {
		if !seen[k.Code] {
			t.Errorf("no row of the test's table has %s", k.Code)
		}
		delete(seen, k.Code)
		if k.Means == "" || k.See == "" || k.Fix == "" || k.Severity == "" {
			t.Errorf("%s is not described: %+v", k.Code, k)
		}
	}
	for code := range seen {
		t.Errorf("%s is not in the table", code)
	}
}

func TestTwoFaultsAtOnceAreBothNamed(t *testing.T) {
	codes := func(changes ...func(*opscore.Facts)) (codes []string) {
		f := healthy()
		all(changes...)(&f)
		for _, c := range opscore.Explain(f) {
			codes = append(codes, c.Code)
		}
		return codes
	}
	brokerDown := broker(func(b *opscore.BrokerFacts) { b.Reached, b.Err, b.Queues = opscore.BrokerNone, "refused", nil })
	locked := func(f *opscore.Facts) { f.Database.Locks = []opscore.Lock{{On: "row of the task", Holder: backend}} }
	pause := func(f *opscore.Facts) { f.Queues[0].Paused = &opscore.Pause{Queue: "q", By: "ann"} }
	for _, tc := range []struct {
		got, want []string
	}{
		{codes(gone("stopped"), brokerDown), []string{opscore.CauseNoWorker, opscore.CauseBrokerUnreachable}},
		{codes(pause, gone("stopped")), []string{opscore.CauseQueuePaused, opscore.CauseNoWorker}},
		{codes(locked, gone("stopped")), []string{opscore.CauseRowLocked, opscore.CauseNoWorker}},
		{codes(locked, brokerDown), []string{opscore.CauseRowLocked, opscore.CauseBrokerUnreachable}},
		{codes(waits(opscore.CodeError), brokerDown), []string{opscore.CauseRetryBackoff, opscore.CauseBrokerUnreachable}},
		{codes(busy, brokerDown), []string{opscore.CauseBrokerUnreachable, opscore.CauseSlotsBusy}},
		{codes(storeFails, func(f *opscore.Facts) { f.Database = nil }, brokerDown), []string{opscore.CauseDatabaseUnreachable, opscore.CauseBrokerUnreachable}},
	} {
		if !slices.Equal(tc.got, tc.want) {
			t.Errorf("causes = %v, want %v", tc.got, tc.want)
		}
	}
}

func TestAHealthyDeploymentHasNothingToExamine(t *testing.T) {
	f := healthy()
	f.Task, f.ID = nil, opscore.ID{}
	if causes := opscore.Examine(f); len(causes) > 0 {
		t.Errorf("causes = %+v", causes)
	}
	for _, change := range []func(*opscore.Facts){busy, inFront(3, 0, 1)} {
		f := healthy()
		f.Task, f.ID = nil, opscore.ID{}
		change(&f)
		if causes := opscore.Examine(f); len(causes) > 0 {
			t.Errorf("causes = %+v", causes)
		}
	}
}

func idle(f *opscore.Facts) { f.Queues[0].Lines = nil }

func starting(since time.Duration) func(*opscore.Facts) {
	return worker(func(w *opscore.WorkerInfo) {
		w.State, w.StartedAt = opscore.WorkerBooting, ago(since)
		w.Report.Checks = []opscore.Check{{Name: opscore.CheckStore, State: opscore.CheckFailed, Text: "it does not answer"}}
	})
}

func TestExamineNamesWhatWouldStopTasksFirst(t *testing.T) {
	for _, tc := range []struct {
		change func(*opscore.Facts)
		want   []string
	}{
		{gone("stopped"), []string{opscore.CauseNoWorker}},
		{worker(func(w *opscore.WorkerInfo) { w.Actors = nil }), []string{opscore.CauseActorUnknown}},
		{broker(func(b *opscore.BrokerFacts) { b.Blocked = "low on disk" }), []string{opscore.CauseBrokerAlarm}},
		{
			all(broker(func(b *opscore.BrokerFacts) { b.Blocked = "low on disk" }), func(f *opscore.Facts) { f.Database.ReadOnly = true }),
			[]string{opscore.CauseDatabaseReadOnly, opscore.CauseBrokerAlarm},
		},
		{func(f *opscore.Facts) { f.Queues[0].Paused = &opscore.Pause{Queue: "q", By: "ann"} }, []string{opscore.CauseQueuePaused}},
		{
			all(gone("stopped"), func(f *opscore.Facts) {
				f.Queues[0].Lines, f.Queues[0].Paused = nil, &opscore.Pause{Queue: "q", By: "ann"}
			}),
			[]string{opscore.CauseNoWorker, opscore.CauseQueuePaused},
		},
		{
			all(inFront(700, 50, 20), func(f *opscore.Facts) {
				l := &f.Queues[0].Lines
				(*l)[0].Oldest = ago(time.Minute)
				slices.Reverse(*l)
			}),
			[]string{opscore.CauseStarved},
		},
		{all(idle, starting(time.Minute)), []string{opscore.CauseWorkerNotReady}},
		{all(idle, starting(time.Second)), nil},
		{all(idle, worker(func(w *opscore.WorkerInfo) { w.State = opscore.WorkerDraining })), nil},
		{all(idle, worker(func(w *opscore.WorkerInfo) { w.State = opscore.WorkerDraining }), func(f *opscore.Facts) { f.Host.Processes[0].State = "T" }), []string{opscore.CauseWorkerStopped}},
		{func(f *opscore.Facts) { f.Sources[3].Err, f.Host = "no /proc", nil }, []string{opscore.CauseSourceSilent}},
		{func(f *opscore.Facts) { f.Host.Processes[0].State = "T" }, []string{opscore.CauseWorkerStopped}},
		{func(f *opscore.Facts) { f.Queues[0].Lines, f.Host.Processes[0].State = nil, "T" }, []string{opscore.CauseWorkerStopped}},
		{all(storeFails, func(f *opscore.Facts) { f.Database = nil }), []string{opscore.CauseDatabaseUnreachable}},
		{
			all(running, gone("its process is dead"), func(f *opscore.Facts) { f.Queues[0].Lines = nil; f.Workers[0].GoneAt = ago(time.Hour) }),
			[]string{opscore.CauseNoWorker, opscore.CauseNoKeeper},
		},
	} {
		f := healthy()
		tc.change(&f)
		f.Task, f.ID = nil, opscore.ID{}
		var codes []string
		for _, c := range opscore.Examine(f) {
			codes = append(codes, c.Code)
		}
		if !slices.Equal(codes, tc.want) {
			t.Errorf("causes = %v, want %v", codes, tc.want)
		}
	}
}

// TestARemedyIsOneCommandWhateverTheNames hands the commands to a shell whose programs print their arguments.
func TestARemedyIsOneCommandWhateverTheNames(t *testing.T) {
	for _, name := range []string{"plain", "a b", "$(touch pwned)", "`touch pwned`", "'; touch pwned; '", `"; touch pwned; "`, "-rf", "~", "*", "a\nb", "\x1b[31mred", "\u202eevil", "", "&& touch pwned"} {
		for what, change := range map[string]func(*opscore.Facts){
			"queue": all(queue(func(q *opscore.BrokerQueue) { q.Mismatch, q.Queue = "x", name }), func(f *opscore.Facts) {
				f.Task.Queue, f.Queues[0].Queue, f.Workers[0].Queues = name, name, []string{name}
			}),
			"unheard": func(f *opscore.Facts) { f.Task.Queue, f.Queues[0].Queue, f.Broker = name, name, nil },
			"policy": queue(func(q *opscore.BrokerQueue) {
				q.Policy = &opscore.BrokerPolicy{Name: name, Definition: map[string]any{"max-length": 1}}
			}),
			"vhost": broker(func(b *opscore.BrokerFacts) { b.Reached, b.Endpoint.Name, b.Queues = opscore.BrokerLogin, name, nil }),
		} {
			f := healthy()
			change(&f)
			for _, c := range opscore.Explain(f) {
				for _, r := range c.Remedy {
					checkRemedy(t, what, name, r)
				}
			}
		}
	}
}

func checkRemedy(t *testing.T, what, name string, r opscore.Remedy) {
	t.Helper()
	if r.Command == "" {
		if strings.ContainsAny(r.Action, "\n\x1b\u202e") {
			t.Errorf("%s %q: the action has it as it is: %q", what, name, r.Action)
		}
		return
	}
	dir := t.TempDir()
	show := `for p in opscore rabbitmqctl kill psql; do eval "$p() { printf '<%s>' $p \"\$@\"; }"; done; ` + r.Command
	cmd := exec.CommandContext(t.Context(), "sh", "-c", show)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %q: %s: %v, %s", what, name, r.Command, err, out)
	}
	if made, err := os.ReadDir(dir); err != nil || len(made) > 0 {
		t.Errorf("%s %q: %s made %v, %v", what, name, r.Command, made, err)
	}
	if strings.Contains(r.Command, "clear_policy") && what == "policy" && !strings.HasSuffix(string(out), "<"+name+">") {
		t.Errorf("%s %q: %s has the words %s", what, name, r.Command, out)
	}
	if strings.Contains(r.Command, "worker --queues") && !strings.HasSuffix(string(out), "<--queues="+name+">") {
		t.Errorf("%s %q: %s has the words %s", what, name, r.Command, out)
	}
	if strings.Contains(r.Command, "migrate") && what == "queue" && !strings.HasSuffix(string(out), "<"+name+">") {
		t.Errorf("%s %q: %s has the words %s", what, name, r.Command, out)
	}
}

// TestTheListOfCausesIsWhatTheTableSays holds docs/causes.md to the table it is made of; make docs writes it.
func TestTheListOfCausesIsWhatTheTableSays(t *testing.T) {
	const file = "docs/causes.md"
	var b strings.Builder
	b.WriteString("# Causes\n\nWhat `opscore explain` and `opscore doctor` can say, by code. Codes never change their meaning. Made by `make docs` of the table in\n" +
		"[causes.go](../causes.go).\n\nA *fault* keeps tasks from going on until somebody does something; with a *warning* they go on, but later, with less certainty, or not for\n" +
		"long; a *reason* is as it should be.\n")
	group := ""
	for _, k := range opscore.Causes() {
		if k.Group != group {
			group = k.Group
			fmt.Fprintf(&b, "\n## %s\n", group)
		}
		fmt.Fprintf(&b, "\n### `%s`\n\n*%s.* %s", k.Code, k.Severity, k.Means)
		if k.Impact != "" {
			fmt.Fprintf(&b, " What follows: %s.", k.Impact)
		}
		fmt.Fprintf(&b, "\n\n- See it: %s.\n- Fix it: %s\n", strings.TrimSuffix(k.See, "."), k.Fix)
	}
	if *writeDocs {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != b.String() {
		t.Errorf("%s is stale: run make docs (%v)", file, err)
	}
}

// TestWhatTheStoreDidNotTellIsNotGuessed has the store tell of the task and the workers, and then no more.
func TestWhatTheStoreDidNotTellIsNotGuessed(t *testing.T) {
	f := healthy()
	f.Sources[0].Err, f.Queues, f.Loads = "look where tasks stand: timeout", nil, nil
	for _, c := range opscore.Explain(f) {
		if c.Code == opscore.CauseReady || c.Code == opscore.CauseSlotsBusy || c.Code == opscore.CauseBehindOthers {
			t.Errorf("it says %s: %s", c.Code, c.Text)
		}
	}
}

// TestABrokerIsNotSaidToHaveLostItsStateWhereAWorkerUsesAnother: then the epoch that the database expects is the other one's.
func TestABrokerIsNotSaidToHaveLostItsStateWhereAWorkerUsesAnother(t *testing.T) {
	f := healthy()
	broker(func(b *opscore.BrokerFacts) { b.Epoch = opscore.ID{} })(&f)
	if c := opscore.Explain(f); c[0].Code != opscore.CauseBrokerStateLost {
		t.Fatalf("it says %s first", c[0].Code)
	}
	f.Workers[0].Endpoints[0].Name = "other"
	for i, c := range opscore.Explain(f) {
		if c.Code == opscore.CauseBrokerStateLost || i == 0 && c.Code != opscore.CauseWorkerOtherBroker {
			t.Errorf("cause %d is %s", i, c.Code)
		}
	}
}
