package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
)

// replay holds what a store needs to notice that the database has lost what it had acknowledged, as after a failover to a
// standby that lagged behind or the restore of a backup, and to assert it again: a completed task would run a second time.
type replay struct {
	mu       sync.Mutex
	timeline string               // of the server's history: a promoted standby begins a new one
	beats    map[opscore.ID]int64 // of our workers: they only grow, unless the past comes back
	kept     []ended              // oldest first
	bytes    int
}

// ended is a terminal outcome that was recorded.
type ended struct {
	at     time.Time
	task   opscore.ID
	seq    int64
	worker opscore.ID
	state  opscore.State
	code   opscore.Code
	err    string
	result []byte
}

func (e *ended) size() int { return 160 + len(e.err) + len(e.result) }

// Outcomes are kept for replayFor, but no more than replayBytes of them: at thousands of tasks a second that is less time.
const (
	replayFor   = 2 * time.Minute
	replayBytes = 32 << 20
)

// remember keeps the terminal outcomes that were written here. One that was recorded before, as in a handler's own transaction,
// is not ours to write again: its effects are lost with it, and it has to run again.
func (r *replay) remember(outcomes []opscore.Outcome, recorded []opscore.Recorded, wrote []bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for i := range outcomes {
		o := &outcomes[i]
		if !wrote[i] || !recorded[i].State.Terminal() {
			continue
		}
		e := ended{
			at: now, task: o.Task, seq: o.ClaimSeq, worker: o.Worker, state: recorded[i].State, code: o.Code, err: o.Error, result: o.Result,
		}
		r.kept = append(r.kept, e)
		r.bytes += e.size()
	}
	for len(r.kept) > 0 && (r.bytes > replayBytes || now.Sub(r.kept[0].at) > replayFor) {
		r.bytes -= r.kept[0].size()
		r.kept[0] = ended{} // frees the result
		r.kept = r.kept[1:]
	}
}

// timelineSQL is empty where it cannot be told.
const timelineSQL = "CASE WHEN pg_is_in_recovery() THEN '' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END"

// connected looks at the history of the server behind a new connection before anything else uses it.
func (s *Store) connected(ctx context.Context, conn *pgx.Conn) error {
	var timeline string
	if err := conn.QueryRow(ctx, "SELECT "+timelineSQL).Scan(&timeline); err != nil {
		if conn.IsClosed() {
			return err
		}
		return nil // a server that cannot tell its timeline is watched by heartbeats alone
	}
	if timeline == "" && s.replay.wasPrimary() {
		return errStandby
	}
	return s.observe(ctx, conn, timeline, opscore.ID{}, 0)
}

// errStandby refuses a connection that would go on when the standby is promoted, without a look at what it then lacks.
var errStandby = &opscore.Error{Code: opscore.CodeUnavailable, Message: "the server is a standby now, which has not been promoted"}

func (r *replay) wasPrimary() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.timeline != ""
}

// observe compares the server's history with the one that this store has seen, and asserts again what may be missing. It holds
// everybody up who has a new connection until that is done. worker is zero if no heartbeat was seen.
func (s *Store) observe(ctx context.Context, q querier, timeline string, worker opscore.ID, beats int64) error {
	r := &s.replay
	r.mu.Lock()
	defer r.mu.Unlock()
	why := ""
	switch {
	case timeline != "" && r.timeline != "" && timeline != r.timeline:
		why = fmt.Sprintf("the server continues on timeline %s, it was %s", timeline, r.timeline)
	case worker != opscore.ID{} && beats < r.beats[worker]:
		why = fmt.Sprintf("heartbeat %d of worker %s came after heartbeat %d", beats, worker, r.beats[worker])
	}
	if why != "" {
		if err := s.assertAgain(ctx, q, why); err != nil {
			return err // and the next one tries again
		}
	}
	if timeline != "" {
		r.timeline = timeline
	}
	if worker != (opscore.ID{}) {
		r.beats[worker] = beats
	}
	return nil
}

// replaySQL records outcomes that the database has lost. A task that another worker has claimed since is left to it only if
// that claim is newer than the outcome's.
const replaySQL = `
	WITH l AS MATERIALIZED (
		SELECT t.ctid AS at, o.*
		FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::bytea[])
				AS o (task, seq, worker, next, code, error, result)
			JOIN opscore.task t ON t.id = o.task
		WHERE t.state IN ('pending', 'running') AND t.claim_seq <= o.seq
		ORDER BY t.id FOR UPDATE OF t),
	u AS (
		UPDATE opscore.task t SET state = l.next, finished_at = clock_timestamp(), claim_seq = l.seq, worker = l.worker, code = l.code,
			error = l.error, result = l.result
		FROM l WHERE t.ctid = l.at RETURNING t.id, l.seq, l.worker)
	INSERT INTO opscore.attempt (task, claim_seq, worker, build, ended_at, code, error, late)
	SELECT id, seq, worker, '', clock_timestamp(), $9, $8, false FROM u`

func (s *Store) assertAgain(ctx context.Context, q querier, why string) error {
	r := &s.replay
	since, missing := "nothing is remembered", int64(0)
	if len(r.kept) > 0 {
		since = "those since " + r.kept[0].at.UTC().Format(time.RFC3339) + " are looked at"
	}
	for from := 0; from < len(r.kept); from += batchSize {
		some := r.kept[from:min(from+batchSize, len(r.kept))]
		var tasks, workers [][16]byte
		var seqs []int64
		var states, codes, errs []string
		var results [][]byte
		for _, e := range some {
			tasks, workers, seqs = append(tasks, e.task), append(workers, e.worker), append(seqs, e.seq)
			states, codes, errs = append(states, string(e.state)), append(codes, string(e.code)), append(errs, e.err)
			results = append(results, e.result)
		}
		tag, err := q.Exec(ctx, s.sql(replaySQL), tasks, seqs, workers, states, codes, errs, results, "the database had lost this outcome: "+why,
			string(opscore.CodeReplayed))
		if err != nil {
			return unavailable("record lost outcomes again", err)
		}
		missing += tag.RowsAffected()
	}
	s.lanes.changed()
	s.log.Error("the database may have lost part of its history: "+why, "outcomes_recorded_again", missing, "outcomes", since)
	return nil
}

// logger is where a store tells of what no call can answer.
func (o Options) logger() *slog.Logger {
	if o.Log != nil {
		return o.Log
	}
	return slog.Default()
}
