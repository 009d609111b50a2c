package postgres

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/opscore/opscore"
)

var _ opscore.Orphans = (*Store)(nil)

// orphanHead are the columns of an orphan that scanOrphan reads, without its body.
const orphanHead = `id, coalesce(message, id), queue, actor, reason, why, first_seen, last_seen, count, headers, greatest(size, length(body))`

// scanOrphan reads orphanHead, then more.
func scanOrphan(rows pgx.Rows, more ...any) (o opscore.Orphan, err error) {
	err = rows.Scan(append([]any{
		&o.ID, &o.Message, &o.Queue, &o.Actor, (*string)(&o.Reason), &o.Why, &o.FirstSeen, &o.LastSeen, &o.Count, &o.Headers, &o.Size,
	}, more...)...)
	o.FirstSeen, o.LastSeen = o.FirstSeen.UTC(), o.LastSeen.UTC()
	return o, err
}

// fullness remembers that there was no room for orphans: a flood of messages must not make the database count them each time.
type fullness struct {
	mu    sync.Mutex
	until time.Time
}

const fullFor = time.Second

func (f *fullness) is() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Before(f.until)
}

func (f *fullness) note(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.until = time.Now().Add(d)
}

// Whoever writes orphans locks them all, for a transaction: they are few, and so the limits hold exactly and nobody waits in a circle.
const lockOrphansSQL = "SELECT pg_advisory_xact_lock(hashtext($1), hashtext('orphans'))"

// Orphans that are there already are counted; roomSQL says how much there is, and keepSQL adds the others. Of two bodies with one message id the
// second one gets an id of its own.
const (
	againSQL = `
		UPDATE opscore.orphan o SET count = o.count + a.times, last_seen = clock_timestamp(), reason = a.reason, why = a.why
		FROM unnest($1::uuid[], $2::uuid[], $3::integer[], $4::text[], $5::text[]) WITH ORDINALITY AS a (message, digest, times, reason, why, n)
		WHERE o.message = a.message AND o.digest = a.digest RETURNING a.n`
	roomSQL = "SELECT count(*), coalesce(sum(length(body)), 0) FROM opscore.orphan"
	keepSQL = `
		INSERT INTO opscore.orphan (id, message, digest, queue, actor, reason, why, first_seen, last_seen, count, headers, size, body)
		SELECT CASE WHEN EXISTS (SELECT FROM opscore.orphan WHERE id = $1) THEN $2::uuid ELSE $1 END, $3, $4, $5, $6, $7, $8,
			clock_timestamp(), clock_timestamp(), $9, $10, $11, $12
		ON CONFLICT DO NOTHING`
)

// keeping is an orphan as it is kept.
type keeping struct {
	opscore.Orphan
	digest opscore.ID
	other  opscore.ID // its id if another body has come with its own
	of     []int      // the orphans that it stands for
	kept   bool
}

// distinct gathers what came several times, and makes all of it fit for the table.
func distinct(orphans []opscore.Orphan) (all []*keeping) {
	type identity struct{ message, digest opscore.ID }
	known := map[identity]*keeping{}
	for i, o := range orphans {
		sum := sha256.Sum256(o.Body)
		digest := opscore.ID(sum[:16])
		o.ID = cmp.Or(o.ID, o.Message, uuid.NewSHA1(uuid.NameSpaceOID, o.Body))
		o.Message = cmp.Or(o.Message, o.ID)
		k := known[identity{o.Message, digest}]
		if k == nil {
			o.Queue, o.Actor, o.Reason, o.Why = clean(o.Queue, 255), clean(o.Actor, 255), opscore.Code(clean(string(o.Reason), 255)), clean(o.Why, 2<<10)
			o.Headers, o.Size = clean(o.Headers, 8<<10), max(o.Size, len(o.Body))
			o.Body = append([]byte{}, o.Body[:min(len(o.Body), opscore.MaxOrphanBytes)]...)
			k = &keeping{Orphan: o, digest: digest, other: uuid.NewSHA1(o.Message, digest[:])}
			known[identity{o.Message, digest}] = k
			all = append(all, k)
		}
		k.of = append(k.of, i)
	}
	return all
}

// clean makes a text that came from outside fit to be stored.
func clean(text string, limit int) string {
	text = strings.ToValidUTF8(text[:min(len(text), limit)], "\uFFFD")
	return strings.ReplaceAll(text, "\x00", "\uFFFD")
}

// KeepOrphans implements [opscore.Orphans].
func (s *Store) KeepOrphans(ctx context.Context, orphans []opscore.Orphan) (dropped int, err error) {
	kept, err := s.keepOrphans(ctx, orphans)
	if err != nil {
		return 0, unavailable("keep orphans", err)
	}
	for _, k := range kept {
		if !k {
			dropped++
		}
	}
	return dropped, nil
}

// keepOrphans says of each whether it is kept.
func (s *Store) keepOrphans(ctx context.Context, orphans []opscore.Orphan) ([]bool, error) {
	kept := make([]bool, len(orphans))
	if len(orphans) == 0 {
		return kept, nil
	}
	all := distinct(orphans)
	fresh, err := s.countAgain(ctx, s.pool, all)
	if err == nil && len(fresh) > 0 && !s.full.is() {
		err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if fresh, err = s.countAgain(ctx, tx, fresh); err != nil { // somebody may have been faster
				return err
			}
			if fresh, err = s.fitting(ctx, tx, fresh); err != nil {
				return err
			}
			return s.addOrphans(ctx, tx, fresh)
		})
	}
	for _, k := range all {
		for _, i := range k.of {
			kept[i] = k.kept
		}
	}
	return kept, err
}

// countAgain counts the orphans that are there already and returns the others.
func (s *Store) countAgain(ctx context.Context, q querier, all []*keeping) (fresh []*keeping, err error) {
	var messages, digests [][16]byte
	var times []int32
	var reasons, whys []string
	for _, k := range all {
		messages, digests, times = append(messages, k.Message), append(digests, k.digest), append(times, int32(len(k.of)))
		reasons, whys = append(reasons, string(k.Reason)), append(whys, k.Why)
	}
	b := &pgx.Batch{}
	b.Queue(steer)
	b.Queue(lockOrphansSQL, s.schema)
	b.Queue(s.sql(againSQL), messages, digests, times, reasons, whys).Query(func(rows pgx.Rows) error {
		return scanAll(rows, func(rows pgx.Rows) error {
			var n int
			if err := rows.Scan(&n); err != nil {
				return err
			}
			all[n-1].kept = true
			return nil
		})
	})
	if err := q.SendBatch(ctx, b).Close(); err != nil {
		return nil, err
	}
	for _, k := range all {
		if !k.kept {
			fresh = append(fresh, k)
		}
	}
	return fresh, nil
}

// fitting returns those of the orphans for which there is room.
func (s *Store) fitting(ctx context.Context, tx pgx.Tx, fresh []*keeping) ([]*keeping, error) {
	var count, bytes int
	b := &pgx.Batch{}
	b.Queue("SELECT set_config('enable_seqscan', 'on', true)") // it reads all: to be steered away from that would make it compile itself
	b.Queue(s.sql(roomSQL)).QueryRow(func(row pgx.Row) error { return row.Scan(&count, &bytes) })
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, err
	}
	for i, k := range fresh {
		count++
		if bytes += len(k.Body); count > s.maxOrphans || bytes > opscore.MaxOrphansBytes {
			s.full.note(fullFor)
			return fresh[:i], nil
		}
	}
	return fresh, nil
}

// addOrphans stores orphans that were not there.
func (s *Store) addOrphans(ctx context.Context, tx pgx.Tx, fresh []*keeping) error {
	b := &pgx.Batch{}
	for _, k := range fresh {
		b.Queue(s.sql(keepSQL), k.ID, k.other, k.Message, k.digest, k.Queue, k.Actor, string(k.Reason), k.Why, len(k.of), k.Headers, k.Size, k.Body).
			Exec(func(tag pgconn.CommandTag) error {
				k.kept = tag.RowsAffected() == 1
				return nil
			})
	}
	return tx.SendBatch(ctx, b).Close()
}

// ListOrphans implements [opscore.Orphans].
func (s *Store) ListOrphans(ctx context.Context, f opscore.OrphanFilter) (orphans []opscore.Orphan, err error) {
	if f.Before != (opscore.ID{}) {
		if _, err := s.GetOrphan(ctx, f.Before); err != nil {
			return nil, err
		}
	}
	where, args := orphanConditions(f)
	limit := f.Limit
	if limit <= 0 {
		limit = 50
	}
	args = append(args, min(limit, 1000))
	err = each(ctx, s.pool, func(rows pgx.Rows) error {
		o, err := scanOrphan(rows)
		orphans = append(orphans, o)
		return err
	}, s.sql("SELECT "+orphanHead+" FROM opscore.orphan WHERE "+where+fmt.Sprintf(" ORDER BY first_seen DESC, id DESC LIMIT $%d", len(args))), args...)
	if err != nil {
		return nil, unavailable("list orphans", err)
	}
	return orphans, nil
}

// orphanConditions compiles a filter. Values are bound; the text holds only constants.
func orphanConditions(f opscore.OrphanFilter) (where string, args []any) {
	terms := []string{"true"}
	add := func(given bool, term string, value any) {
		if given {
			args = append(args, value)
			terms = append(terms, fmt.Sprintf(term, len(args)))
		}
	}
	add(f.Reason != "", "reason = $%d", string(f.Reason))
	add(f.Queue != "", "queue = $%d", f.Queue)
	add(f.Message != opscore.ID{}, "coalesce(message, id) = $%d", f.Message)
	add(f.OlderThan > 0, "last_seen < clock_timestamp() - $%d * interval '1 microsecond'", f.OlderThan.Microseconds())
	add(f.NewerThan > 0, "last_seen >= clock_timestamp() - $%d * interval '1 microsecond'", f.NewerThan.Microseconds())
	add(f.Before != opscore.ID{}, "(first_seen, id) < (SELECT first_seen, id FROM opscore.orphan WHERE id = $%d)", f.Before)
	return strings.Join(terms, " AND "), args
}

// GetOrphan implements [opscore.Orphans].
func (s *Store) GetOrphan(ctx context.Context, id opscore.ID) (o opscore.Orphan, err error) {
	found := false
	err = each(ctx, s.pool, func(rows pgx.Rows) error {
		var body []byte
		o, err = scanOrphan(rows, &body)
		o.Body, found = body, true
		return err
	}, s.sql("SELECT "+orphanHead+", body FROM opscore.orphan WHERE id = $1"), id)
	switch {
	case err != nil:
		return opscore.Orphan{}, unavailable("read orphans", err)
	case !found:
		return opscore.Orphan{}, orphanNotFound(id)
	}
	return o, nil
}

func orphanNotFound(id opscore.ID) error {
	return &opscore.Error{Code: opscore.CodeOrphanNotFound, Message: fmt.Sprintf("orphan %s not found", id)}
}

// DropOrphans implements [opscore.Orphans].
func (s *Store) DropOrphans(ctx context.Context, ids []opscore.ID) (dropped []opscore.ID, err error) {
	err = s.transact(ctx, "drop orphans", func(tx pgx.Tx) error {
		dropped, err = s.dropOrphans(ctx, tx, ids)
		return err
	})
	return dropped, err
}

func (s *Store) dropOrphans(ctx context.Context, tx pgx.Tx, ids []opscore.ID) (dropped []opscore.ID, err error) {
	b := &pgx.Batch{}
	b.Queue(lockOrphansSQL, s.schema)
	b.Queue(s.sql("DELETE FROM opscore.orphan WHERE id = ANY($1) RETURNING id"), raw(ids)).Query(func(rows pgx.Rows) error {
		return scanAll(rows, func(rows pgx.Rows) error {
			var id opscore.ID
			err := rows.Scan(&id)
			dropped = append(dropped, id)
			return err
		})
	})
	err = tx.SendBatch(ctx, b).Close()
	s.full.note(0)
	return dropped, err
}

// AdoptOrphan implements [opscore.Orphans].
func (s *Store) AdoptOrphan(ctx context.Context, id opscore.ID, m opscore.Adoption) (t opscore.Task, err error) {
	if err := m.Complete(); err != nil {
		return t, err
	}
	a := &adopting{want: &opscore.Claim{}, messages: []opscore.Adoption{m}, answers: make([]opscore.Adopted, 1), todo: []int{0}}
	err = s.transact(ctx, "adopt an orphan", func(tx pgx.Tx) error {
		dropped, err := s.dropOrphans(ctx, tx, []opscore.ID{id})
		if err != nil {
			return err
		}
		if len(dropped) == 0 {
			return orphanNotFound(id)
		}
		if err := s.adopt(ctx, tx, a); err != nil {
			return err
		}
		if answer := a.answers[0]; answer.Duplicate || answer.Orphan != "" {
			return &opscore.Error{Code: opscore.CodeConflict, Message: fmt.Sprintf("there is a task %s already, which is %s", answer.Task.ID, answer.Task.State)}
		}
		tasks, err := s.get(ctx, tx, []opscore.ID{m.Request.ID})
		if err == nil {
			t = tasks[0]
		}
		return err
	})
	if refused(err) {
		err = &opscore.Error{Code: opscore.CodeInvalid, Message: "the message cannot be stored", Err: secretless{err}}
	}
	if err != nil {
		return opscore.Task{}, err
	}
	s.adopted(a)
	return t, nil
}

// forgetOrphans removes those that were not seen for long.
func (s *Store) forgetOrphans(ctx context.Context, keep time.Duration) error {
	if keep == opscore.Forever {
		return nil
	}
	for {
		tag, err := s.pool.Exec(ctx, s.sql(`WITH l AS MATERIALIZED (
				SELECT id FROM opscore.orphan WHERE last_seen < clock_timestamp() - $1 * interval '1 microsecond' LIMIT $2 FOR UPDATE SKIP LOCKED)
			DELETE FROM opscore.orphan o USING l WHERE o.id = l.id`), keep.Microseconds(), batchSize)
		if err != nil {
			return unavailable("forget orphans", err)
		}
		if tag.RowsAffected() < batchSize {
			return nil
		}
	}
}
