-- +goose Up
-- What a task that was a message of another system has besides: its own wait before retries, and what else the message held.
ALTER TABLE opscore.task ADD COLUMN retry jsonb, ADD COLUMN origin bytea;

-- Several orphans may have come with one message id, and say why they are orphans. Workers of the version before go on storing theirs, with
-- neither message nor digest.
ALTER TABLE opscore.orphan
	ADD COLUMN message uuid,
	ADD COLUMN digest  uuid, -- the first half of the whole body's SHA-256
	ADD COLUMN actor   text NOT NULL DEFAULT '',
	ADD COLUMN why     text NOT NULL DEFAULT '',
	ADD COLUMN size    integer NOT NULL DEFAULT 0; -- of the whole body
UPDATE opscore.orphan SET message = id, digest = left(encode(sha256(body), 'hex'), 32)::uuid, size = length(body);
CREATE UNIQUE INDEX orphan_message ON opscore.orphan (message, digest);

-- +goose Down
ALTER TABLE opscore.orphan DROP COLUMN message, DROP COLUMN digest, DROP COLUMN actor, DROP COLUMN why, DROP COLUMN size;
ALTER TABLE opscore.task DROP COLUMN retry, DROP COLUMN origin;
