package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
)

// KeepOrphans stores messages that belong to no task, up to [opscore.MaxOrphans]; one that is there already is counted. It returns
// how many there was no room for.
func (s *Store) KeepOrphans(ctx context.Context, orphans []opscore.Orphan) (dropped int, err error) {
	err = s.transact(ctx, "keep orphans", func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		for _, o := range orphans {
			b.Queue(s.sql(`
				WITH again AS (
					UPDATE opscore.orphan SET count = count + 1, last_seen = clock_timestamp(), reason = $3 WHERE id = $1 RETURNING id),
				made AS (
					INSERT INTO opscore.orphan (id, queue, reason, first_seen, last_seen, count, headers, body)
					SELECT $1, $2, $3, clock_timestamp(), clock_timestamp(), 1, $4, $5
					WHERE NOT EXISTS (SELECT FROM again) AND (SELECT count(*) FROM opscore.orphan) < $6
					ON CONFLICT (id) DO NOTHING RETURNING id)
				SELECT 1 - (SELECT count(*) FROM again) - (SELECT count(*) FROM made)`),
				o.ID, o.Queue, string(o.Reason), o.Headers, o.Body[:min(len(o.Body), opscore.MaxOrphanBytes)], opscore.MaxOrphans).
				QueryRow(func(row pgx.Row) error {
					var n int
					err := row.Scan(&n)
					dropped += n
					return err
				})
		}
		return tx.SendBatch(ctx, b).Close()
	})
	return dropped, err
}

// Orphans returns the messages that belong to no task, the latest first.
func (s *Store) Orphans(ctx context.Context, limit int) (orphans []opscore.Orphan, err error) {
	err = each(ctx, s.pool, func(rows pgx.Rows) error {
		var o opscore.Orphan
		err := rows.Scan(&o.ID, &o.Queue, (*string)(&o.Reason), &o.FirstSeen, &o.LastSeen, &o.Count, &o.Headers, &o.Body)
		o.FirstSeen, o.LastSeen = o.FirstSeen.UTC(), o.LastSeen.UTC()
		orphans = append(orphans, o)
		return err
	}, s.sql("SELECT id, queue, reason, first_seen, last_seen, count, headers, body FROM opscore.orphan ORDER BY last_seen DESC LIMIT $1"), limit)
	if err != nil {
		return nil, unavailable("read orphans", err)
	}
	return orphans, nil
}
