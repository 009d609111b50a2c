package opscore

import "time"

// Facts is what was read about a task, or about a whole deployment, and from whom. Nothing in it is a guess: what no source told is
// its zero value, and Sources says which ones did not answer.
type Facts struct {
	At      time.Time `json:"at"` // when it was read, by the store's clock if it answered
	ID      ID        `json:"id,omitzero"`
	Sources []Asked   `json:"sources"`

	// From the store:
	Store    Endpoint     `json:"store,omitzero"`
	Made     time.Time    `json:"made_at,omitzero"` // when the database was made for tasks
	Kept     Duration     `json:"kept,omitzero"`    // how long any task is kept at least after its end
	Task     *Task        `json:"task,omitempty"`   // nil if there is no such task, or none was asked for
	Attempts []Attempt    `json:"attempts,omitempty"`
	Queues   []Standing   `json:"queues,omitempty"` // the task's and those that its workers listen to besides, or all
	Loads    []Load       `json:"loads,omitempty"`  // of workers that run something
	Ticket   *OutTicket   `json:"ticket,omitempty"` // the latest that names the task and is out
	Workers  []WorkerInfo `json:"workers,omitempty"`
	Orphans  []Orphan     `json:"orphans,omitempty"`

	// From elsewhere; nil if it was not asked or did not answer:
	Database *DatabaseFacts `json:"database,omitempty"`
	Broker   *BrokerFacts   `json:"broker,omitempty"`
	Host     *HostFacts     `json:"host,omitempty"`
}

// Asked is one source of facts and what became of the question.
type Asked struct {
	Source string   `json:"source"`       // store, postgres, sqlite, rabbitmq, management, host
	At     string   `json:"at,omitempty"` // its address, without secrets
	Took   Duration `json:"took"`
	Err    string   `json:"error,omitempty"` // it did not answer, or not everything
	Late   bool     `json:"late,omitempty"`  // because its time was up
}

// DatabaseFacts is what the database server says about itself and about those that wait in it.
type DatabaseFacts struct {
	Endpoint     Endpoint     `json:"endpoint"`
	Reached      DatabaseStep `json:"reached"`
	Err          string       `json:"error,omitempty"`    // why it came no further, or could not look at everything
	SQLState     string       `json:"sqlstate,omitempty"` // the server's code for that
	Started      time.Time    `json:"started_at,omitzero"`
	Timeline     string       `json:"timeline,omitempty"`            // of its history: one above the first says that it was restored or promoted; "" if it does not tell
	Recovery     bool         `json:"in_recovery"`                   // a standby: it takes no writes
	ReadOnly     bool         `json:"read_only"`                     // its transactions are read-only unless they say otherwise
	ReadOnlyBy   string       `json:"read_only_by,omitempty"`        // where that is set: "database", "user", "configuration file"; of a file, why it is
	Connections  int          `json:"connections"`                   // that are open, of those that the limit is for
	Limit        int          `json:"connection_limit"`              // the one that is nearest
	LimitOf      string       `json:"connection_limit_of"`           // server, database or role
	Reserved     int          `json:"reserved_connections"`          // of the server's limit, those that are for superusers only
	Crowds       []Crowd      `json:"crowds,omitempty"`              // who has most of the connections, if none is left
	Schema       int64        `json:"schema_version,omitempty"`      // 0 if it has none
	SchemaWanted int64        `json:"schema_wanted,omitempty"`       // by this binary
	Free         *int64       `json:"free_bytes,omitempty"`          // where a file is; nil if it is not known
	WAL          int64        `json:"wal_bytes,omitempty"`           // of a file
	Locks        []Lock       `json:"locks,omitempty"`               // on the task's row or on opscore's tables, that somebody waits for or that stop claims
	Idle         []Backend    `json:"idle_in_transaction,omitempty"` // whose transaction has written to opscore's tables and goes on; most are idle
	Slow         []Backend    `json:"slow_statements,omitempty"`     // on opscore's tables
	Timeouts     []Setting    `json:"timeouts,omitempty"`            // that end statements, or transactions, of each session
	SyncStandbys string       `json:"sync_standbys,omitempty"`       // synchronous_standby_names: a commit waits for them
	Standbys     []string     `json:"standbys,omitempty"`            // that are connected, with their state
	Unseen       string       `json:"unseen,omitempty"`              // what this role may not see, and what would let it
}

// DatabaseStep is how far a fresh connection to the database came.
type DatabaseStep string

// The steps of a connection, in their order.
const (
	DatabaseNone    DatabaseStep = "none"    // no TCP connection, or no such file
	DatabaseTCP     DatabaseStep = "tcp"     // but no answer: frozen, overloaded, or no PostgreSQL
	DatabaseRefused DatabaseStep = "refused" // the server answers, and does not let us in; SQLState says why. Of a file: it is there, and is no database that is used
	DatabaseOpen    DatabaseStep = "open"
)

// SettledAfter is how old a transaction or a statement is that is listed: a younger one is in the middle of its work.
const SettledAfter = time.Second

// Setting is one of the server's settings, as a session begins with it.
type Setting struct {
	Name  string   `json:"name"`
	Value Duration `json:"value"`
}

// Crowd is how many connections to the database one program has.
type Crowd struct {
	App    string `json:"application,omitempty"`
	User   string `json:"user,omitempty"`
	Client string `json:"client,omitempty"` // its host; "" for a local socket
	N      int    `json:"connections"`
}

// Lock is something of opscore's that one backend holds and others need.
type Lock struct {
	On      string   `json:"on"` // "row of the task", "row of table opscore.task", "table opscore.task", "file"
	Mode    string   `json:"mode"`
	Holder  Backend  `json:"holder"`            // the head of the line, not another one that waits
	Next    *Backend `json:"next,omitempty"`    // the first of those that wait, if others wait for it in turn: such as a migration
	Waiting []int    `json:"waiting,omitempty"` // pids of backends
}

// Backend is one connection to the database, as the server lists it. Of a file it is a process of this host.
type Backend struct {
	PID      int       `json:"pid"`                   // 0 for a prepared transaction, which has no connection any more
	App      string    `json:"application,omitempty"` // what it calls itself; "autovacuum worker" and the like if it is no client
	User     string    `json:"user,omitempty"`
	Client   string    `json:"client,omitempty"` // host:port; "" for a local socket
	State    string    `json:"state"`            // as the server says: active, idle in transaction; of a process, the system's letter; "" if it may not be seen
	Since    time.Time `json:"since,omitzero"`   // in this state
	Begun    time.Time `json:"transaction_started_at,omitzero"`
	Wait     string    `json:"wait,omitempty"`     // what an active one waits for, as the server names it: "Lock: relation", "IPC: SyncRep"
	Query    string    `json:"query,omitempty"`    // the last one, shortened, without its literals
	Locking  []string  `json:"locking,omitempty"`  // opscore's tables that its transaction has written to
	Prepared string    `json:"prepared,omitempty"` // the name of a prepared transaction
}

// BrokerFacts is what a fresh connection to the broker, and the management API if it is configured, found out.
type BrokerFacts struct {
	Endpoint Endpoint      `json:"endpoint"`
	User     string        `json:"user"` // as whom it was asked: what it may do need not be what a worker may
	Reached  BrokerStep    `json:"reached"`
	Err      string        `json:"error,omitempty"`         // why it came no further
	Blocked  string        `json:"blocked,omitempty"`       // why the broker takes no messages: low on memory, low on disk
	Epoch    ID            `json:"epoch,omitzero"`          // of the broker's state; another one than the store's says that the state was lost
	Expected ID            `json:"expected_epoch,omitzero"` // the store's; zero as well if it could not be looked for
	Alarms   []string      `json:"alarms,omitempty"`        // of the management API
	Managed  bool          `json:"managed"`                 // the management API answered
	Queues   []BrokerQueue `json:"queues,omitempty"`
}

// BrokerStep is how far a fresh connection to the broker came.
type BrokerStep string

// The steps of a connection, in their order.
const (
	BrokerNone      BrokerStep = "none"      // no TCP connection
	BrokerTCP       BrokerStep = "tcp"       // but no TLS
	BrokerTLS       BrokerStep = "tls"       // or TCP where there is no TLS, but no AMQP
	BrokerHandshake BrokerStep = "handshake" // it speaks AMQP, but does not take the password
	BrokerLogin     BrokerStep = "login"     // but not into the virtual host
	BrokerOpen      BrokerStep = "open"      // all of it
)

// BrokerQueue is a queue in the broker that carries the tickets, or the adopted messages, of one queue of tasks.
type BrokerQueue struct {
	Queue     string        `json:"queue"`             // of tasks
	Name      string        `json:"name"`              // in the broker
	Adopted   bool          `json:"adopted,omitempty"` // it carries another system's messages, which others may take as well
	Exists    bool          `json:"exists"`
	Err       string        `json:"error,omitempty"`     // it could not be looked at
	Reply     int           `json:"reply,omitempty"`     // the broker's code for that; 0 if it did not answer
	Mismatch  string        `json:"mismatch,omitempty"`  // what the broker says against the arguments that are wanted
	Unchecked string        `json:"unchecked,omitempty"` // why its arguments could not be compared: this user may not declare it, which nobody has to
	Refused   []string      `json:"refused,omitempty"`   // what this user may not do: "read", "write", with the broker's words
	Messages  int           `json:"messages"`            // that wait
	Consumers int           `json:"consumers"`
	Aside     int           `json:"messages_aside,omitempty"` // that a migration which was interrupted left in another queue
	AsideIn   string        `json:"aside_in,omitempty"`       // the name of that
	Unacked   int           `json:"unacked,omitempty"`        // of the management API, like all that follows
	Policy    *BrokerPolicy `json:"policy,omitempty"`
	Members   []string      `json:"members,omitempty"` // the nodes of one that is replicated
	Online    []string      `json:"online,omitempty"`  // those of them that run
	Consuming []Consumer    `json:"consuming,omitempty"`
}

// BrokerPolicy is the policy that is in effect on a queue.
type BrokerPolicy struct {
	Name       string         `json:"name,omitempty"`
	Operator   string         `json:"operator_policy,omitempty"` // the name of an operator's policy, which adds to the other one
	Definition map[string]any `json:"definition"`                // of both
}

// Consumer is one subscription that the broker lists.
type Consumer struct {
	Tag      string `json:"tag"`
	Conn     string `json:"connection,omitempty"` // the broker's name for it
	Peer     string `json:"peer,omitempty"`       // host:port
	User     string `json:"user,omitempty"`
	AutoAck  bool   `json:"auto_ack"`
	Prefetch int    `json:"prefetch"`
	Unacked  int    `json:"unacked"` // on its channel, which may have others
	// What the consumer says of itself, if it is opscore's:
	Worker   ID     `json:"worker,omitzero"`
	Host     string `json:"host,omitempty"`
	PID      int    `json:"pid,omitempty"`
	Build    string `json:"build,omitempty"`
	Instance string `json:"instance,omitempty"` // of the database that it works for
}

// HostFacts is what this host says of the workers' processes on it.
type HostFacts struct {
	Name      string         `json:"name"`
	Processes []ProcessFacts `json:"processes,omitempty"` // of the store's workers that are or were on this host, and other workers of opscore
}

// ProcessFacts is one process on this host.
type ProcessFacts struct {
	PID      int        `json:"pid"`
	Worker   ID         `json:"worker,omitzero"` // zero: it is not registered in this store
	Exists   bool       `json:"exists"`          // with the start time that the registry has, so that it is the same one
	State    string     `json:"state,omitempty"` // the system's letter: R S D T Z
	Args     []string   `json:"args,omitempty"`  // without what may be secret, and shortened
	Dir      string     `json:"dir,omitempty"`
	Pipes    []PipeFill `json:"pipes,omitempty"`     // its stdout and stderr, where they are pipes
	OOMKills int        `json:"oom_kills,omitempty"` // that its control group has counted since it registered
	Frozen   bool       `json:"frozen,omitempty"`    // its control group does not let it run
	// Of one that is not registered, what it was told to use: by its arguments, or by those of our variables that its environment has.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
	Databases []string   `json:"databases,omitempty"` // files of SQLite that it has open, as the system names them: also "… (deleted)"
}

// PipeFill is how full a pipe is, and who should read it.
type PipeFill struct {
	FD       int    `json:"fd"`
	Name     string `json:"name"`                     // that the system has for it
	Buffered int    `json:"buffered"`                 // bytes
	Size     int    `json:"size"`                     // bytes; 0 if it may not be looked into
	Full     bool   `json:"full"`                     // it takes nothing: small writes may fill it before all its bytes are used
	Broken   bool   `json:"broken,omitempty"`         // it has no reader any more
	Readers  []int  `json:"readers,omitempty"`        // pids of processes that have its other end
	Hidden   bool   `json:"readers_hidden,omitempty"` // there may be readers that may not be seen
}
