package postgres_test

import (
	"testing"

	"github.com/opscore/opscore/storetest"
)

var mutants = []storetest.Mutant{
	{"no fence", "runs.go", "WHERE t.state IN ('running', '') AND t.claim_seq = o.seq AND t.worker = o.worker\n\t\tORDER BY t.id FOR UPDATE OF t)", "ORDER BY t.id FOR UPDATE OF t)"},
	{"fence on state only", "runs.go", "WHERE t.state IN ('running', '') AND t.claim_seq = o.seq AND t.worker = o.worker\n\tORDER BY t.id, o.n FOR UPDATE OF t", "WHERE t.state = 'running'\n\tORDER BY t.id, o.n FOR UPDATE OF t"},
	{"claim ignores the due time", "runs.go", "AND run_at <= clock_timestamp() AND (expires_at IS NULL OR expires_at > clock_timestamp())`\n\tclaimEnd", "AND (expires_at IS NULL OR expires_at > clock_timestamp())`\n\tclaimEnd"},
	{"claim is not in order", "runs.go", "ORDER BY run_at, id LIMIT $4 FOR UPDATE SKIP LOCKED) t", "ORDER BY id DESC LIMIT $4 FOR UPDATE SKIP LOCKED) t"},
	{"claim ignores priority", "runs.go", "ORDER BY t.rank, t.run_at, t.id LIMIT $4)", "ORDER BY t.rank DESC, t.run_at, t.id LIMIT $4)"},
	{"claim ignores a pause since it read the lanes", "runs.go", "\n\t\tWHERE queue NOT IN (SELECT queue FROM opscore.pause)),", "),"},
	{"claim does not see a more urgent task since it read the lanes", "lanes.go", "l.fronts[at] = front{paused: f.paused}", "_ = front{paused: f.paused}"},
	{"claim does not see what was put back since it read the lanes", "runs.go", "\t\t\ts.lanes.changed()\n", ""},
	{"claim does not bump the claim number", "runs.go", "state = 'running', claim_seq = t.claim_seq + 1,", "state = 'running',"},
	{"revoke does not bump the claim number", "runs.go", "t.claim_seq + (t.cancel_at IS NULL AND $4 = 'pending' OR $11)::integer", "t.claim_seq + ($11 AND false)::integer"},
	{"lost update on cancel", "runs.go", "state       = CASE WHEN t.cancel_at IS NOT NULL THEN 'cancelled' ELSE $4 END", "state       = $4"},
	{"unique keys end with the task", "tasks.go", "AND unique_key <> '' AND state IN ('pending', 'running', 'completed')`", "AND unique_key <> '' AND state IN ('pending', 'running')`"},
	{"list repeats a page edge", "tasks.go", "t.id < $%d", "t.id <= $%d"},
	{"rescue without WHERE", "chores.go", "AND NOT EXISTS (SELECT FROM opscore.worker w WHERE w.id = t.worker AND w.state <> 'gone')", ""},
	{"rescue at the first observation", "chores.go", "if !again || seen.beats != beats {", "if again && seen.beats != beats {"},
	{"rescue ignores a heartbeat in between", "chores.go", "if !again || seen.beats != beats {", "if !again {"},
	{"prune ignores the queue's retention", "chores.go", "ELSE queue = $3 END", "ELSE $3 <> '' END"},
	{"a worker that is gone can heartbeat", "registry.go", "WHERE id = $1 AND state <> 'gone' RETURNING", "WHERE id = $1 RETURNING"},
}

func TestTheSuiteKillsEveryMutant(t *testing.T) {
	storetest.KillAll(t, "^(TestConformance|TestTheStoreBehavesLikeItsModel)$", mutants)
}
