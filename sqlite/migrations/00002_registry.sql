-- +goose Up
-- What workers say of themselves (JSON objects), how long their lease is (microseconds), and who asked them to stop.
ALTER TABLE opscore_worker ADD COLUMN lease INTEGER NOT NULL DEFAULT 30000000;
ALTER TABLE opscore_worker ADD COLUMN about TEXT NOT NULL DEFAULT '{}';
ALTER TABLE opscore_worker ADD COLUMN report TEXT NOT NULL DEFAULT '{}';
ALTER TABLE opscore_worker ADD COLUMN stop_by TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE opscore_worker DROP COLUMN lease;
ALTER TABLE opscore_worker DROP COLUMN about;
ALTER TABLE opscore_worker DROP COLUMN report;
ALTER TABLE opscore_worker DROP COLUMN stop_by;
