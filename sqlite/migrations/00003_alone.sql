-- +goose Up
-- The claim number under which the task had its worker to itself last: it has if that is its present one.
ALTER TABLE opscore_task ADD COLUMN alone_seq INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE opscore_task DROP COLUMN alone_seq;
