-- +goose Up
CREATE TABLE opscore.task (
	id            uuid PRIMARY KEY,
	queue         text NOT NULL,
	actor         text NOT NULL,
	rank          smallint NOT NULL, -- the negated priority, so that all of task_due ascends
	state         text NOT NULL CHECK (state IN ('pending', 'running', 'completed', 'failed', 'cancelled')),
	run_at        timestamptz NOT NULL,
	created_at    timestamptz NOT NULL,
	expires_at    timestamptz,
	timeout       bigint NOT NULL, -- microseconds
	max_attempts  integer NOT NULL,
	attempt       integer NOT NULL DEFAULT 0,
	lost          integer NOT NULL DEFAULT 0,
	claim_seq     bigint NOT NULL DEFAULT 0,
	worker        uuid,
	started_at    timestamptz,
	finished_at   timestamptz,
	cancel_at     timestamptz,
	cancel_by     text NOT NULL DEFAULT '',
	unique_key    text NOT NULL,
	labels        jsonb, -- an object of strings
	code          text NOT NULL DEFAULT '',
	error         text NOT NULL DEFAULT '',
	progress      double precision NOT NULL DEFAULT 0,
	progress_text text NOT NULL DEFAULT '',
	args          bytea NOT NULL,
	result        bytea
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1);
-- A lane is the pending tasks of one queue, actor and priority, ordered by due time.
CREATE INDEX task_due ON opscore.task (queue, actor, rank, run_at, id) WHERE state = 'pending';
CREATE INDEX task_running ON opscore.task (worker) WHERE state = 'running';
CREATE INDEX task_expiring ON opscore.task (expires_at) WHERE state = 'pending' AND expires_at IS NOT NULL;
CREATE INDEX task_completed ON opscore.task (finished_at) WHERE state = 'completed';
CREATE INDEX task_ended ON opscore.task (id) WHERE state IN ('failed', 'cancelled');
CREATE UNIQUE INDEX task_unique ON opscore.task (actor, unique_key)
	WHERE unique_key <> '' AND state IN ('pending', 'running', 'completed');

-- What did not complete its task, oldest first.
CREATE TABLE opscore.attempt (
	seq        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	task       uuid NOT NULL,
	claim_seq  bigint NOT NULL,
	worker     uuid,
	build      text NOT NULL,
	started_at timestamptz,
	ended_at   timestamptz NOT NULL,
	code       text NOT NULL,
	error      text NOT NULL,
	late       boolean NOT NULL
);
CREATE INDEX attempt_task ON opscore.attempt (task, claim_seq);

CREATE TABLE opscore.log (
	seq       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	task      uuid NOT NULL,
	claim_seq bigint NOT NULL,
	at        timestamptz NOT NULL,
	level     text NOT NULL,
	text      text NOT NULL
);
CREATE INDEX log_task ON opscore.log (task, claim_seq);

CREATE TABLE opscore.worker (
	id          uuid PRIMARY KEY,
	host        text NOT NULL,
	pid         integer NOT NULL,
	build       text NOT NULL,
	queues      text[] NOT NULL,
	actors      text[] NOT NULL,
	slots       integer NOT NULL,
	state       text NOT NULL,
	started_at  timestamptz NOT NULL,
	last_beat   timestamptz NOT NULL,
	beats       bigint NOT NULL DEFAULT 0,
	lease_until timestamptz NOT NULL,
	gone_at     timestamptz,
	cause       text NOT NULL DEFAULT ''
) WITH (fillfactor = 50);

CREATE TABLE opscore.pause (
	queue   text PRIMARY KEY,
	at      timestamptz NOT NULL,
	by      text NOT NULL,
	comment text NOT NULL
);

-- +goose Down
DROP TABLE opscore.pause;
DROP TABLE opscore.worker;
DROP TABLE opscore.log;
DROP TABLE opscore.attempt;
DROP TABLE opscore.task;
