-- +goose Up
-- The tickets that are out. They are hints: not logged, so that they cost little; a crash of the server forgets them.
CREATE UNLOGGED TABLE opscore.ticket (
	id    uuid PRIMARY KEY,
	queue text NOT NULL,
	at    timestamptz NOT NULL,
	tasks uuid[] NOT NULL,
	seqs  bigint[] NOT NULL -- the claim numbers that the tasks had
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX ticket_queue ON opscore.ticket (queue, at);

-- Messages that belong to no task.
CREATE TABLE opscore.orphan (
	id         uuid PRIMARY KEY,
	queue      text NOT NULL,
	reason     text NOT NULL,
	first_seen timestamptz NOT NULL,
	last_seen  timestamptz NOT NULL,
	count      integer NOT NULL,
	headers    text NOT NULL,
	body       bytea NOT NULL
);
CREATE INDEX orphan_seen ON opscore.orphan (last_seen);

-- One row: who this database is, and which broker's state belongs to it.
CREATE TABLE opscore.deployment (
	one      boolean PRIMARY KEY DEFAULT true CHECK (one),
	instance uuid NOT NULL,
	epoch    uuid
);
INSERT INTO opscore.deployment (instance) VALUES (md5(random()::text || clock_timestamp()::text || pg_backend_pid()::text)::uuid);

-- +goose Down
DROP TABLE opscore.deployment;
DROP TABLE opscore.orphan;
DROP TABLE opscore.ticket;
