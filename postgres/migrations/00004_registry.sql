-- +goose Up
-- What workers say of themselves, how long their lease is (microseconds), and who asked them to stop.
ALTER TABLE opscore.worker
	ADD COLUMN lease   bigint NOT NULL DEFAULT 30000000,
	ADD COLUMN about   json NOT NULL DEFAULT '{}',
	ADD COLUMN report  json NOT NULL DEFAULT '{}',
	ADD COLUMN stop_by text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE opscore.worker DROP COLUMN lease, DROP COLUMN about, DROP COLUMN report, DROP COLUMN stop_by;
