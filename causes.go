package opscore

import "slices"

// The codes of causes. They never change their meaning.
const (
	// Over:
	CauseCompleted         = "completed"
	CauseCancelled         = "cancelled"
	CauseAttemptsExhausted = "attempts_exhausted"
	CauseAborted           = "aborted"
	CauseResultInvalid     = "result_invalid"
	CauseExpired           = "expired"
	CausePoison            = "poison"
	CauseFailed            = "failed"

	// Not there:
	CauseOrphan          = "orphan"
	CauseTransactionOpen = "transaction_open"
	CauseNeverCommitted  = "never_committed"
	CausePruned          = "pruned"
	CauseOtherDatabase   = "other_database"
	CauseTaskUnknown     = "task_unknown"

	// Waiting as it should:
	CauseScheduled        = "scheduled"
	CauseRetryBackoff     = "retry_backoff"
	CauseSnoozed          = "snoozed"
	CauseHandedBack       = "handed_back"
	CauseArgsIncompatible = "args_incompatible"
	CauseQueuePaused      = "queue_paused"
	CauseSlotsBusy        = "slots_busy"
	CauseBehindOthers     = "behind_others"
	CauseStarved          = "starved"
	CauseWaitsForSuspect  = "waits_for_suspect"
	CauseReady            = "ready"

	// Running:
	CauseRunning         = "running"
	CauseWaitsAlone      = "waits_alone"
	CauseCancelRequested = "cancel_requested"
	CauseHandlerStuck    = "handler_stuck"

	// Workers:
	CauseNoWorker            = "no_worker"
	CauseActorUnknown        = "actor_unknown"
	CauseQueueNotListened    = "queue_not_listened"
	CauseWorkerNotReady      = "worker_not_ready"
	CauseWorkerSilent        = "worker_silent"
	CauseWorkerStopped       = "worker_stopped"
	CauseWorkerDied          = "worker_died"
	CauseWorkerOOMKilled     = "worker_oom_killed"
	CauseWorkerLeft          = "worker_left"
	CauseNoKeeper            = "no_keeper"
	CauseWorkerDegraded      = "worker_degraded"
	CausePoolExhausted       = "pool_exhausted"
	CauseOutputBlocked       = "output_blocked"
	CauseClockSkew           = "clock_skew"
	CauseWorkerUnregistered  = "worker_unregistered"
	CauseWorkerOtherBroker   = "worker_other_broker"
	CauseWorkerOtherDatabase = "worker_other_database"

	// The broker:
	CauseBrokerUnreachable   = "broker_unreachable"
	CauseBrokerFrozen        = "broker_frozen"
	CauseBrokerTLS           = "broker_tls"
	CauseBrokerLoginRefused  = "broker_login_refused"
	CauseBrokerVhostRefused  = "broker_vhost_refused"
	CauseBrokerPermission    = "broker_permission"
	CauseBrokerAlarm         = "broker_alarm"
	CauseBrokerStateLost     = "broker_state_lost"
	CauseBrokerQueueMissing  = "broker_queue_missing"
	CauseBrokerQueueMismatch = "broker_queue_mismatch"
	CauseBrokerQueueUnusable = "broker_queue_unusable"
	CauseBrokerPolicyLimits  = "broker_policy"
	CauseBrokerMessagesAside = "broker_messages_aside"
	CauseTicketLost          = "ticket_lost"
	CauseTicketsHeld         = "tickets_held"
	CauseForeignConsumer     = "foreign_consumer"

	// The database:
	CauseDatabaseUnreachable = "database_unreachable"
	CauseDatabaseFrozen      = "database_frozen"
	CauseDatabaseRefused     = "database_refused"
	CauseDatabaseSchema      = "database_schema"
	CauseDatabaseDiskFull    = "database_disk_full"
	CauseDatabaseSilent      = "database_silent"
	CauseDatabaseReadOnly    = "database_read_only"
	CauseDatabaseFull        = "database_full"
	CauseDatabaseStalled     = "database_stalled"
	CauseDatabaseTimeout     = "database_timeout"
	CauseRowLocked           = "row_locked"
	CauseRowsLocked          = "rows_locked"
	CauseTableLocked         = "table_locked"
	CauseTransactionIdle     = "transaction_idle"
	CauseSourceSilent        = "source_silent"

	// None of these:
	CauseUnknown = "unknown"
)

// CauseKind is one row of the table of causes.
type CauseKind struct {
	Code     string
	Severity Severity
	Impact   string // what it does to tasks
	Means    string
	See      string // how to see it without opscore's explanation
	Fix      string
	Group    string
}

// Causes is the table of all causes, in the order of docs/causes.md, which is made of it.
func Causes() []CauseKind { return slices.Clone(causeKinds) }

func kindOf(code string) CauseKind {
	if i := slices.IndexFunc(causeKinds, func(k CauseKind) bool { return k.Code == code }); i >= 0 {
		return causeKinds[i]
	}
	return CauseKind{Code: code, Severity: Fault}
}

var causeKinds = []CauseKind{
	{
		Group: "Over", Code: CauseCompleted, Severity: Reason, Impact: "",
		Means: "The task's handler returned a result, which is stored.",
		See:   "`opscore task show ID`",
		Fix:   "Nothing is to be done.",
	},
	{
		Group: "Over", Code: CauseCancelled, Severity: Reason, Impact: "the task does not run",
		Means: "Somebody cancelled the task.",
		See:   "`opscore task show ID` names who did, and when",
		Fix:   "If it shall run after all: `opscore task retry ID`.",
	},
	{
		Group: "Over", Code: CauseAttemptsExhausted, Severity: Reason, Impact: "the task does not run again by itself",
		Means: "The last of the task's attempts failed. The evidence groups them by their error.",
		See:   "`opscore task show ID`, `opscore task logs ID`",
		Fix:   "Mend what the errors say, then `opscore task retry ID`.",
	},
	{
		Group: "Over", Code: CauseAborted, Severity: Reason, Impact: "the task does not run again by itself",
		Means: "Its handler said that another attempt would be no use: `opscore.Abort`, or exit status 65 of a command.",
		See:   "`opscore task show ID`",
		Fix:   "Mend what the error says, then `opscore task retry ID`.",
	},
	{
		Group: "Over", Code: CauseResultInvalid, Severity: Reason, Impact: "the task has run, but its result is lost",
		Means: "What its handler returned cannot be stored: it is too large, or no JSON.",
		See:   "`opscore task show ID`",
		Fix:   "Mend the handler; `opscore task retry ID` runs it again, with its effects.",
	},
	{
		Group: "Over", Code: CauseExpired, Severity: Reason, Impact: "the task does not run",
		Means: "The task had not started when its `expires_at` came.",
		See:   "`opscore task show ID`",
		Fix:   "If it shall run all the same: `opscore task retry ID`, which drops the expiry. Look why it waited: `opscore doctor`.",
	},
	{
		Group: "Over", Code: CausePoison, Severity: Fault, Impact: "the task does not run again by itself",
		Means: "The task was lost with its worker three times, and the last time nothing ran beside it: it kills its worker, by `os.Exit`, a crash or memory.",
		See:   "`opscore task show ID` has each loss with the worker's host and process; the kernel's log has those that were killed for memory",
		Fix:   "Mend the handler or give it more memory, then `opscore task retry ID`.",
	},
	{
		Group: "Over", Code: CauseFailed, Severity: Reason, Impact: "the task does not run again by itself",
		Means: "The task has failed with a code that this version does not know.",
		See:   "`opscore task show ID`",
		Fix:   "Mend what the error says, then `opscore task retry ID`.",
	},
	{
		Group: "Not there", Code: CauseOrphan, Severity: Fault, Impact: "nothing runs for this message",
		Means: "A message with this id came from the broker, but could not become a task. The evidence says why.",
		See:   "`opscore orphan show ID`",
		Fix:   "`opscore orphan adopt ID` makes it a task once its reason is gone; `opscore orphan drop ID` forgets it.",
	},
	{
		Group: "Not there", Code: CauseTransactionOpen, Severity: Reason, Impact: "the task exists once that transaction commits",
		Means: "There is no such task yet, and a transaction that has written to the tasks is open: its submit is not committed.",
		See:   "`SELECT pid, state, xact_start, query FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'`",
		Fix:   "Commit the transaction. Whoever forgot it can be ended: `SELECT pg_terminate_backend(PID)`, which undoes what it wrote.",
	},
	{
		Group: "Not there", Code: CauseNeverCommitted, Severity: Fault, Impact: "nothing runs",
		Means: "No task has this id, although it is too young to have been removed: the transaction that submitted it was rolled back, or it was submitted elsewhere.",
		See:   "`opscore task show ID`; the database that the submitter uses is in its log and its configuration",
		Fix:   "Look at the end of the submitting transaction, and compare `opscore config show` of both sides; then submit again. With the same id it is the same task.",
	},
	{
		Group: "Not there", Code: CausePruned, Severity: Reason, Impact: "",
		Means: "No task has this id, and it is old enough to have been removed after it was over.",
		See:   "`opscore config show` has how long tasks are kept",
		Fix:   "Nothing is to be done. To keep them longer, set `retention`.",
	},
	{
		Group: "Not there", Code: CauseOtherDatabase, Severity: Fault, Impact: "nothing runs from here",
		Means: "The id was made before this database was: the task belongs to another one.",
		See:   "`opscore config show` names the database, and where its name comes from",
		Fix:   "Ask the database that the submitter uses: `opscore --database … explain ID`.",
	},
	{
		Group: "Not there", Code: CauseTaskUnknown, Severity: Fault, Impact: "nothing runs",
		Means: "No task has this id, and the id does not tell when it was made.",
		See:   "`opscore task list`",
		Fix:   "Compare the id, and the database, with those of the submitter.",
	},
	{
		Group: "Waiting as it should", Code: CauseScheduled, Severity: Reason, Impact: "",
		Means: "The task was submitted for later.",
		See:   "`opscore task show ID` has when it starts",
		Fix:   "Nothing is to be done.",
	},
	{
		Group: "Waiting as it should", Code: CauseRetryBackoff, Severity: Reason, Impact: "",
		Means: "An attempt failed, and the next one waits for its time. The wait doubles with each attempt, up to an hour.",
		See:   "`opscore task show ID`",
		Fix:   "Nothing is to be done; it is retried by itself.",
	},
	{
		Group: "Waiting as it should", Code: CauseSnoozed, Severity: Reason, Impact: "",
		Means: "Its handler put it off.",
		See:   "`opscore task show ID`",
		Fix:   "Nothing is to be done.",
	},
	{
		Group: "Waiting as it should", Code: CauseHandedBack, Severity: Reason, Impact: "",
		Means: "A worker gave the task back without an attempt: it was shut down, or had lost track of it.",
		See:   "`opscore task show ID`",
		Fix:   "Nothing is to be done.",
	},
	{
		Group: "Waiting as it should", Code: CauseArgsIncompatible, Severity: Warning, Impact: "the task waits for a worker whose build takes its args",
		Means: "The worker that claimed the task cannot decode its args: its build has another input type. The task is tried again, less and less often, so that a worker of the right build gets it.",
		See:   "`opscore task show ID` has the args and the error; `opscore worker list` the builds",
		Fix:   "Deploy a build that takes the args, or cancel the task: `opscore task cancel ID`.",
	},
	{
		Group: "Waiting as it should", Code: CauseQueuePaused, Severity: Reason, Impact: "no task of the queue starts",
		Means: "Somebody paused the queue.",
		See:   "`opscore queue list` says who, when and why",
		Fix:   "`opscore queue resume QUEUE`",
	},
	{
		Group: "Waiting as it should", Code: CauseSlotsBusy, Severity: Reason, Impact: "the task starts when one of these ends",
		Means: "All slots of the workers that could run it are taken.",
		See:   "`opscore worker list`, `opscore task list --state running`",
		Fix:   "Wait, or start more workers, or give them more slots (`--slots`).",
	},
	{
		Group: "Waiting as it should", Code: CauseBehindOthers, Severity: Reason, Impact: "the task starts after these",
		Means: "More urgent tasks are ahead: of a higher priority, or due for longer.",
		See:   "`opscore queue list`",
		Fix:   "Wait, or start more workers.",
	},
	{
		Group: "Waiting as it should", Code: CauseStarved, Severity: Warning, Impact: "at this rate the task never starts",
		Means: "Tasks of a higher priority come faster than the workers complete any.",
		See:   "`opscore queue list`, twice",
		Fix:   "Start more workers, or submit less at the higher priority.",
	},
	{
		Group: "Waiting as it should", Code: CauseWaitsForSuspect, Severity: Reason, Impact: "the task starts when that one has ended",
		Means: "Every worker that could run it runs, or is about to run, a task alone that was lost twice with its worker.",
		See:   "`opscore task list --state running`",
		Fix:   "Wait, or start another worker.",
	},
	{
		Group: "Waiting as it should", Code: CauseReady, Severity: Reason, Impact: "",
		Means: "The task can start now: a live worker that takes it has a free slot, and nothing is ahead of it.",
		See:   "`opscore task show ID`",
		Fix:   "Nothing is to be done; it is claimed within a second as a rule.",
	},
	{
		Group: "Running", Code: CauseRunning, Severity: Reason, Impact: "",
		Means: "A live worker runs the task.",
		See:   "`opscore task show ID`, `opscore task logs ID`",
		Fix:   "Nothing is to be done.",
	},
	{
		Group: "Running", Code: CauseWaitsAlone, Severity: Reason, Impact: "the task starts when its worker has nothing else to run",
		Means: "The task was lost twice with its worker and runs alone the next time: its worker claimed it, and lets its other tasks end first.",
		See:   "`opscore task show ID`",
		Fix:   "Wait.",
	},
	{
		Group: "Running", Code: CauseCancelRequested, Severity: Reason, Impact: "",
		Means: "Somebody cancelled the running task; its worker learns of it at its next heartbeat and ends the handler's context.",
		See:   "`opscore task show ID`",
		Fix:   "Wait.",
	},
	{
		Group: "Running", Code: CauseHandlerStuck, Severity: Fault, Impact: "the slot is taken until the worker's process ends",
		Means: "The handler goes on although its time is over or its task was cancelled: it ignores its context.",
		See:   "`opscore worker show ID`; the stack is in the worker's log when it stops",
		Fix:   "`opscore worker stop ID` ends the worker; its supervisor starts it again. Mend the handler so that it heeds its context.",
	},
	{
		Group: "Workers", Code: CauseNoWorker, Severity: Fault, Impact: "no task starts",
		Means: "No live worker is registered.",
		See:   "`opscore worker list`",
		Fix:   "Start a worker that listens to the queue and has the actor: `opscore worker`.",
	},
	{
		Group: "Workers", Code: CauseActorUnknown, Severity: Fault, Impact: "tasks of the actor do not start",
		Means: "No live worker has the actor. Perhaps an older or a newer build had it.",
		See:   "`opscore worker list --json`",
		Fix:   "Start a worker of a build that has the actor.",
	},
	{
		Group: "Workers", Code: CauseQueueNotListened, Severity: Fault, Impact: "tasks of the queue do not start",
		Means: "No live worker that has the actor listens to the queue.",
		See:   "`opscore worker list`",
		Fix:   "Start a worker with the queue: `opscore worker --queues QUEUE`, or submit to a queue that is listened to.",
	},
	{
		Group: "Workers", Code: CauseWorkerNotReady, Severity: Fault, Impact: "the worker takes nothing",
		Means: "A worker that could run the task is registered and alive, but takes nothing: one of its checks has failed, or it is starting or stopping.",
		See:   "`opscore worker show ID`",
		Fix:   "What the failed check says.",
	},
	{
		Group: "Workers", Code: CauseWorkerSilent, Severity: Fault, Impact: "its tasks are given to others once its lease has run out",
		Means: "A worker has missed heartbeats: its process is gone, stopped or starved, or it cannot reach the store.",
		See:   "`opscore worker list`; on its host `ps -o pid,stat,wchan,cmd -p PID`",
		Fix:   "Look at the process on its host; start it again if it is gone.",
	},
	{
		Group: "Workers", Code: CauseWorkerStopped, Severity: Fault, Impact: "the worker does nothing; its tasks are given to others once its lease has run out",
		Means: "The worker's process is stopped, by SIGSTOP, Ctrl-Z or a debugger.",
		See:   "`ps -o pid,stat,cmd -p PID` shows state T",
		Fix:   "`kill -CONT PID` on its host.",
	},
	{
		Group: "Workers", Code: CauseWorkerDied, Severity: Warning, Impact: "its tasks are given to others",
		Means: "The worker that ran the task has died. What it ran is pending again after a short wait.",
		See:   "`opscore task show ID` has the loss; `opscore worker list` the worker",
		Fix:   "It is retried by itself. Start a worker if it was the only one: tasks of dead workers are taken back by others.",
	},
	{
		Group: "Workers", Code: CauseWorkerOOMKilled, Severity: Fault, Impact: "its tasks are given to others, and may kill them too",
		Means: "The worker's process is gone, and the kernel has killed processes of its control group for want of memory.",
		See:   "`memory.events` of its control group, or the kernel's log: `journalctl -k -g oom`",
		Fix:   "Give the worker more memory, or fewer slots (`--slots`).",
	},
	{
		Group: "Workers", Code: CauseWorkerLeft, Severity: Reason, Impact: "its tasks are given to others",
		Means: "The worker that ran the task has ended, and what it could not finish is about to be taken back.",
		See:   "`opscore worker list`",
		Fix:   "Nothing is to be done; it is retried by itself.",
	},
	{
		Group: "Workers", Code: CauseNoKeeper, Severity: Fault, Impact: "tasks of dead workers are not taken back, and nothing expires",
		Means: "What a keeper does every five seconds has not been done for far longer: none runs, or it fails.",
		See:   "The log of the workers; `opscore worker list`",
		Fix:   "Start a process that runs a keeper: `opscore worker`, or a program with an `opscore.Keeper`.",
	},
	{
		Group: "Workers", Code: CauseWorkerDegraded, Severity: Warning, Impact: "tasks run all the same, but later or with less certainty",
		Means: "A check of a live worker is not well. The evidence has its words.",
		See:   "`opscore worker show ID`",
		Fix:   "What the check says.",
	},
	{
		Group: "Workers", Code: CausePoolExhausted, Severity: Warning, Impact: "what the worker stores or claims waits for a connection",
		Means: "All connections of a worker's pool are in use, and others of it wait for one. The check says who holds them.",
		See:   "`opscore worker show ID`",
		Fix:   "Give the connections back that handlers hold, or make the pool larger: `pool_max_conns` in the database's URL.",
	},
	{
		Group: "Workers", Code: CauseOutputBlocked, Severity: Warning, Impact: "log lines are lost; a program without opscore's pump would hang",
		Means: "Nobody reads the worker's output fast enough: its pipe is full.",
		See:   "`opscore worker show ID`; on its host `ls -l /proc/PID/fd/1`",
		Fix:   "Read the pipe, or start the worker with its output in a file: `--log-file`.",
	},
	{
		Group: "Workers", Code: CauseClockSkew, Severity: Warning, Impact: "times that the worker writes are off; leases are not concerned",
		Means: "The worker's clock differs from the store's.",
		See:   "`date` on both machines",
		Fix:   "Run an NTP client on both.",
	},
	{
		Group: "Workers", Code: CauseWorkerUnregistered, Severity: Warning, Impact: "it takes nothing from this database",
		Means: "A process of opscore on this host is not registered in this database: it works for another one.",
		See:   "`opscore worker list`; `ps -p PID -o args`",
		Fix:   "Compare its database with this one: `opscore config show` with its settings.",
	},
	{
		Group: "Workers", Code: CauseWorkerOtherBroker, Severity: Warning, Impact: "tickets do not reach the worker: it pulls",
		Means: "A live worker is connected to another virtual host or broker than the one that was asked.",
		See:   "`opscore worker show ID`",
		Fix:   "Give all processes the same `OPSCORE_BROKER_URL`.",
	},
	{
		Group: "Workers", Code: CauseWorkerOtherDatabase, Severity: Warning, Impact: "it takes tickets of tasks that it cannot run; they are pulled late",
		Means: "A consumer of the queue in the broker works for another database: it gets tickets of this one and finds no such tasks.",
		See:   "`opscore worker show ID`, `opscore orphan list --reason foreign_database`",
		Fix:   "Give it the right database, or a virtual host of its own.",
	},
	{
		Group: "The broker", Code: CauseBrokerUnreachable, Severity: Warning, Impact: "workers look for tasks themselves; tasks start up to a second later",
		Means: "RabbitMQ takes no connections where it should be.",
		See:   "`nc -zv HOST PORT`; `rabbitmqctl status` on its host",
		Fix:   "Start RabbitMQ, or mend the address: `opscore config show`.",
	},
	{
		Group: "The broker", Code: CauseBrokerFrozen, Severity: Warning, Impact: "workers look for tasks themselves; tasks start up to a second later",
		Means: "RabbitMQ's port takes connections, but nobody speaks AMQP there: the process is stopped or overloaded, or it is another service.",
		See:   "`rabbitmqctl status` on its host",
		Fix:   "Continue or restart RabbitMQ.",
	},
	{
		Group: "The broker", Code: CauseBrokerTLS, Severity: Warning, Impact: "workers look for tasks themselves",
		Means: "The TLS handshake with RabbitMQ fails. The evidence has the reason.",
		See:   "`openssl s_client -connect HOST:PORT`",
		Fix:   "Mend the certificate, the CA, or the scheme and port of the URL.",
	},
	{
		Group: "The broker", Code: CauseBrokerLoginRefused, Severity: Warning, Impact: "what connects anew cannot; running connections go on",
		Means: "RabbitMQ does not take the user or its password.",
		See:   "`rabbitmqctl authenticate_user USER`",
		Fix:   "Mend the password: `rabbitmqctl change_password USER`, or in the URL.",
	},
	{
		Group: "The broker", Code: CauseBrokerVhostRefused, Severity: Warning, Impact: "what connects anew cannot; running connections go on",
		Means: "The user may not use the virtual host, or there is none of that name.",
		See:   "`rabbitmqctl list_vhosts`, `rabbitmqctl list_permissions -p VHOST`",
		Fix:   "Mend the URL, or create the virtual host and give the user permissions.",
	},
	{
		Group: "The broker", Code: CauseBrokerPermission, Severity: Warning, Impact: "a worker that reconnects is not let in",
		Means: "A fresh connection may not read or write the queue, although running ones perhaps still do: RabbitMQ remembers their permissions for a while.",
		See:   "`rabbitmqctl list_permissions -p VHOST`",
		Fix:   "`rabbitmqctl set_permissions -p VHOST USER '.*' '.*' '.*'`, or less: opscore's queues begin with `opscore`.",
	},
	{
		Group: "The broker", Code: CauseBrokerAlarm, Severity: Warning, Impact: "no ticket is published; workers look for tasks themselves",
		Means: "RabbitMQ is low on memory or disk and blocks whoever publishes. What waits there is still delivered.",
		See:   "`rabbitmqctl status` has the alarms",
		Fix:   "Free memory or disk, or raise its limits.",
	},
	{
		Group: "The broker", Code: CauseBrokerStateLost, Severity: Warning, Impact: "tickets that were out are issued anew",
		Means: "RabbitMQ has another state than the database remembers: it was reset, or its disk is a new one.",
		See:   "`rabbitmqctl list_queues`",
		Fix:   "Nothing is to be done: tickets are hints. Look why its state was lost.",
	},
	{
		Group: "The broker", Code: CauseBrokerQueueMissing, Severity: Warning, Impact: "tickets for it are returned or dropped; workers look for tasks themselves",
		Means: "There is no queue for these tickets in the broker.",
		See:   "`rabbitmqctl list_queues -p VHOST name`",
		Fix:   "`opscore queue ensure QUEUE`",
	},
	{
		Group: "The broker", Code: CauseBrokerQueueMismatch, Severity: Warning, Impact: "the queue is used as it is",
		Means: "The queue in the broker has other arguments than are wanted.",
		See:   "`rabbitmqctl list_queues -p VHOST name arguments`",
		Fix:   "`opscore queue migrate QUEUE`",
	},
	{
		Group: "The broker", Code: CauseBrokerQueueUnusable, Severity: Warning, Impact: "no ticket comes by that queue; workers look for tasks themselves",
		Means: "There is such a queue in the broker, and the broker does not let us use it: somebody has it for himself, or its node is down. The evidence has the broker's words.",
		See:   "`rabbitmqctl list_queues -p VHOST name state owner_pid`, `rabbitmqctl list_consumers -p VHOST`",
		Fix:   "End the connection that has the queue for itself, or start the queue's node.",
	},
	{
		Group: "The broker", Code: CauseBrokerPolicyLimits, Severity: Warning, Impact: "tickets may be dropped; their tasks are pulled",
		Means: "A policy of the broker limits the queue: it drops what is too much or too old.",
		See:   "`rabbitmqctl list_policies -p VHOST`",
		Fix:   "`rabbitmqctl clear_policy -p VHOST NAME`",
	},
	{
		Group: "The broker", Code: CauseBrokerMessagesAside, Severity: Warning, Impact: "nobody takes these messages",
		Means: "A migration of a queue of Dramatiq's was interrupted: messages are in the queue aside that it uses, `opscore-moving-…`.",
		See:   "`rabbitmqctl list_queues -p VHOST name messages`",
		Fix:   "Stop all senders and workers of the queue, and migrate it again, which goes on: `opscore queue migrate --stopped QUEUE`",
	},
	{
		Group: "The broker", Code: CauseTicketLost, Severity: Warning, Impact: "the task is pulled, or gets a new ticket, within seconds",
		Means: "A ticket for the task was published and is not in the broker any more, and nobody has claimed the task: it was purged, dropped or expired.",
		See:   "`rabbitmqctl list_queues -p VHOST name messages consumers`",
		Fix:   "Nothing is to be done. Look who purges the queue.",
	},
	{
		Group: "The broker", Code: CauseTicketsHeld, Severity: Warning, Impact: "the task waits until that worker has a slot, or its ticket is 5 s old",
		Means: "The task's ticket has been delivered to a worker that has no free slot for it.",
		See:   "`rabbitmqctl list_consumers -p VHOST`",
		Fix:   "Wait, or start more workers.",
	},
	{
		Group: "The broker", Code: CauseForeignConsumer, Severity: Warning, Impact: "it takes tickets that nobody acts on; their tasks are pulled late",
		Means: "Somebody who is no registered worker consumes from the queue.",
		See:   "`rabbitmqctl list_consumers -p VHOST`",
		Fix:   "Stop that process, or close its connection.",
	},
	{
		Group: "The database", Code: CauseDatabaseUnreachable, Severity: Fault, Impact: "nothing is submitted, started or recorded; what is committed is safe",
		Means: "The database does not answer. The evidence has the error.",
		See:   "`psql \"$OPSCORE_DATABASE_URL\" -c 'SELECT 1'`",
		Fix:   "Start the database, or mend its address or password: `opscore config show`.",
	},
	{
		Group: "The database", Code: CauseDatabaseFrozen, Severity: Fault, Impact: "nothing is submitted, started or recorded; what is committed is safe",
		Means: "The database takes connections, but nobody answers there: the server is stopped or overloaded, or it is another service.",
		See:   "`pg_isready`; on its host the state of its processes",
		Fix:   "Continue or restart the server.",
	},
	{
		Group: "The database", Code: CauseDatabaseRefused, Severity: Fault, Impact: "what connects anew cannot",
		Means: "The database server answers, and does not let us in; or the database's file is there, and cannot be used: it is no database, is damaged, or lies where others could replace it. The evidence has the code and the words.",
		See:   "`psql \"$OPSCORE_DATABASE_URL\" -c 'SELECT 1'`; of a file, `ls -ld` of it and its directory, `sqlite3 FILE .tables`",
		Fix:   "What the words say: the user, its password, the database's name, `pg_hba.conf`; of a file, the path, its permissions, or a backup.",
	},
	{
		Group: "The database", Code: CauseDatabaseSchema, Severity: Fault, Impact: "nothing works that needs what is missing",
		Means: "The schema in the database is not the one that this binary wants.",
		See:   "`opscore migrate status`",
		Fix:   "`opscore migrate up`, or use the binary that the schema is for; so does any worker or submit on a file. If there is no schema at all, compare the database with the submitter's first: `opscore config show`.",
	},
	{
		Group: "The database", Code: CauseDatabaseDiskFull, Severity: Fault, Impact: "nothing is submitted or recorded",
		Means: "There is no room where the database's file is.",
		See:   "`df`",
		Fix:   "Free room there; what waits goes on by itself.",
	},
	{
		Group: "The database", Code: CauseDatabaseSilent, Severity: Fault, Impact: "tasks are not claimed or recorded as long as it lasts",
		Means: "The database takes connections, or its file is there, but what the store asked was not answered within a second.",
		See:   "`SELECT pid, state, wait_event_type, query FROM pg_stat_activity`; of a file, `lsof FILE`",
		Fix:   "Look at its load and locks.",
	},
	{
		Group: "The database", Code: CauseDatabaseReadOnly, Severity: Fault, Impact: "nothing is submitted, started or recorded",
		Means: "The database takes no writes: it is a standby, or its transactions are read-only.",
		See:   "`SELECT pg_is_in_recovery()`, `SHOW default_transaction_read_only`",
		Fix:   "Connect to the primary, or `ALTER DATABASE … RESET default_transaction_read_only`.",
	},
	{
		Group: "The database", Code: CauseDatabaseFull, Severity: Fault, Impact: "what connects anew cannot",
		Means: "All connections that the server allows are in use.",
		See:   "`SELECT application_name, count(*) FROM pg_stat_activity GROUP BY 1`",
		Fix:   "End idle ones, use a pooling proxy, or raise `max_connections`.",
	},
	{
		Group: "The database", Code: CauseDatabaseStalled, Severity: Fault, Impact: "what has to be stored waits until they end",
		Means: "Statements on opscore's tables take far longer than they should, and no lock is the reason: commits wait for a synchronous standby that is not there, or the server is overloaded.",
		See:   "`SELECT pid, state, wait_event_type, wait_event, query FROM pg_stat_activity WHERE state = 'active'`, `SHOW synchronous_standby_names`",
		Fix:   "Start the standby or take it out of `synchronous_standby_names`; else look at the server's load and disk.",
	},
	{
		Group: "The database", Code: CauseDatabaseTimeout, Severity: Fault, Impact: "statements are cancelled before they are done",
		Means: "A timeout of less than a second is set for the sessions of this role: `statement_timeout`, `transaction_timeout` or `idle_in_transaction_session_timeout`.",
		See:   "`SHOW statement_timeout`; `SELECT setrole::regrole, setdatabase, setconfig FROM pg_db_role_setting`",
		Fix:   "Raise it to 30 s or more, or reset it: `ALTER ROLE ROLE RESET statement_timeout`, or of the database or the server.",
	},
	{
		Group: "The database", Code: CauseRowLocked, Severity: Fault, Impact: "the task is not claimed, or its outcome not recorded, until the lock is gone",
		Means: "Another transaction holds the task's row.",
		See:   "`SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity`",
		Fix:   "End that transaction: `SELECT pg_terminate_backend(PID)`.",
	},
	{
		Group: "The database", Code: CauseRowsLocked, Severity: Warning, Impact: "what waits for the row does not go on until the lock is gone",
		Means: "Another transaction holds a row of opscore's that others wait for.",
		See:   "`SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity`",
		Fix:   "End that transaction: `SELECT pg_terminate_backend(PID)`.",
	},
	{
		Group: "The database", Code: CauseTableLocked, Severity: Fault, Impact: "nothing that needs the table goes on until the lock is gone",
		Means: "Another transaction holds a lock on a table of opscore's, or another process on its file, that others wait for.",
		See:   "`SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity`",
		Fix:   "End that transaction: `SELECT pg_terminate_backend(PID)`.",
	},
	{
		Group: "The database", Code: CauseTransactionIdle, Severity: Warning, Impact: "what it wrote is invisible, and its locks stay, until it ends",
		Means: "A transaction that has written to opscore's tables is idle.",
		See:   "`SELECT pid, state, xact_start, query FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'`",
		Fix:   "Commit it, or end it: `SELECT pg_terminate_backend(PID)`.",
	},
	{
		Group: "The database", Code: CauseSourceSilent, Severity: Warning, Impact: "what it would have told is missing here",
		Means: "One of the sources of facts did not answer in time, or with an error.",
		See:   "`opscore doctor --json`",
		Fix:   "What the error says.",
	},
	{
		Group: "None of these", Code: CauseUnknown, Severity: Fault, Impact: "",
		Means: "Nothing that was read explains why the task does not go on. The evidence is what was collected.",
		See:   "`opscore explain ID --json`",
		Fix:   "Look at the evidence. If it is a defect of opscore, report it with the JSON.",
	},
}
