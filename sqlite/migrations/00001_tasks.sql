-- +goose Up
-- Times are microseconds since 1970 UTC, bound from the process clock; 0 means unset.
CREATE TABLE opscore_task (
	id            BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16),
	queue         TEXT NOT NULL,
	actor         TEXT NOT NULL,
	rank          INTEGER NOT NULL, -- the negated priority, so that all of task_due ascends
	state         TEXT NOT NULL CHECK (state IN ('pending', 'running', 'completed', 'failed', 'cancelled')),
	run_at        INTEGER NOT NULL,
	created_at    INTEGER NOT NULL,
	expires_at    INTEGER NOT NULL,
	timeout       INTEGER NOT NULL,
	max_attempts  INTEGER NOT NULL,
	attempt       INTEGER NOT NULL DEFAULT 0,
	lost          INTEGER NOT NULL DEFAULT 0,
	claim_seq     INTEGER NOT NULL DEFAULT 0,
	worker        BLOB,
	started_at    INTEGER NOT NULL DEFAULT 0,
	finished_at   INTEGER NOT NULL DEFAULT 0,
	cancel_at     INTEGER NOT NULL DEFAULT 0,
	cancel_by     TEXT NOT NULL DEFAULT '',
	unique_key    TEXT NOT NULL,
	labels        TEXT NOT NULL, -- a JSON object, or '' for none
	code          TEXT NOT NULL DEFAULT '',
	error         TEXT NOT NULL DEFAULT '',
	progress      REAL NOT NULL DEFAULT 0,
	progress_text TEXT NOT NULL DEFAULT '',
	args          BLOB NOT NULL,
	result        BLOB
);
-- A lane is the pending tasks of one queue, actor and priority, ordered by due time.
CREATE INDEX opscore_task_due ON opscore_task (queue, actor, rank, run_at, id) WHERE state = 'pending';
CREATE INDEX opscore_task_running ON opscore_task (worker) WHERE state = 'running';
CREATE INDEX opscore_task_expiring ON opscore_task (expires_at) WHERE state = 'pending' AND expires_at > 0;
CREATE INDEX opscore_task_completed ON opscore_task (finished_at) WHERE state = 'completed';
CREATE INDEX opscore_task_ended ON opscore_task (id) WHERE state IN ('failed', 'cancelled');
CREATE UNIQUE INDEX opscore_task_unique ON opscore_task (actor, unique_key)
	WHERE unique_key <> '' AND state IN ('pending', 'running', 'completed');

-- What did not complete its task, oldest first.
CREATE TABLE opscore_attempt (
	task       BLOB NOT NULL,
	claim_seq  INTEGER NOT NULL,
	worker     BLOB,
	build      TEXT NOT NULL,
	started_at INTEGER NOT NULL,
	ended_at   INTEGER NOT NULL,
	code       TEXT NOT NULL,
	error      TEXT NOT NULL,
	late       INTEGER NOT NULL
);
CREATE INDEX opscore_attempt_task ON opscore_attempt (task, claim_seq);

CREATE TABLE opscore_log (
	task      BLOB NOT NULL,
	claim_seq INTEGER NOT NULL,
	at        INTEGER NOT NULL,
	level     TEXT NOT NULL,
	text      TEXT NOT NULL
);
CREATE INDEX opscore_log_task ON opscore_log (task, claim_seq);

CREATE TABLE opscore_worker (
	id          BLOB PRIMARY KEY NOT NULL,
	host        TEXT NOT NULL,
	pid         INTEGER NOT NULL,
	build       TEXT NOT NULL,
	queues      TEXT NOT NULL, -- JSON arrays
	actors      TEXT NOT NULL,
	slots       INTEGER NOT NULL,
	state       TEXT NOT NULL,
	started_at  INTEGER NOT NULL,
	last_beat   INTEGER NOT NULL,
	beats       INTEGER NOT NULL DEFAULT 0,
	lease_until INTEGER NOT NULL,
	gone_at     INTEGER NOT NULL DEFAULT 0,
	cause       TEXT NOT NULL DEFAULT ''
);
CREATE INDEX opscore_worker_present ON opscore_worker (id) WHERE state <> 'gone';
CREATE INDEX opscore_worker_gone ON opscore_worker (gone_at) WHERE state = 'gone';

CREATE TABLE opscore_pause (
	queue   TEXT PRIMARY KEY NOT NULL,
	at      INTEGER NOT NULL,
	by      TEXT NOT NULL,
	comment TEXT NOT NULL
);

-- +goose Down
DROP TABLE opscore_pause;
DROP TABLE opscore_worker;
DROP TABLE opscore_log;
DROP TABLE opscore_attempt;
DROP TABLE opscore_task;
