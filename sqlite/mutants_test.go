package sqlite_test

import (
	"testing"

	"github.com/opscore/opscore/storetest"
)

var mutants = []storetest.Mutant{
	{"no fence", "runs.go", "WHERE id = ? AND state = 'running' AND claim_seq = ? AND worker = ?`, at, result", "WHERE id = ? AND (1 OR claim_seq = ? OR worker = ?)`, at, result"},
	{"fence on state only", "runs.go", "WHERE id = ?8 AND state = 'running' AND claim_seq = ?9 AND worker = ?10", "WHERE id = ?8 AND state = 'running' AND (?9 OR ?10 OR 1)"},
	{"fence without the worker", "runs.go", "AND claim_seq = ?9 AND worker = ?10", "AND claim_seq = ?9 AND (?10 OR 1)"},
	{"fence without the claim number", "runs.go", "WHERE id = ? AND state = 'running' AND claim_seq = ? AND worker = ?`, at, result", "WHERE id = ? AND state = 'running' AND (? OR 1) AND worker = ?`, at, result"},
	{"claim ignores the due time", "runs.go", "AND rank = ? AND run_at <= ? AND", "AND rank = ? AND (run_at <= ? OR 1) AND"},
	{"claim is not in order", "runs.go", "ORDER BY run_at, id LIMIT ?`", "ORDER BY id DESC LIMIT ?`"},
	{"claim ignores priority", "runs.go", "opscore_pause) ORDER BY rank`", "opscore_pause) ORDER BY rank DESC`"},
	{"claim takes expired tasks", "runs.go", "AND run_at <= ? AND (expires_at = 0 OR expires_at > ?)\n\t\t\t\tORDER BY", "AND run_at <= ? AND (expires_at = 0 OR expires_at > ? OR 1)\n\t\t\t\tORDER BY"},
	{"claim ignores pauses", "runs.go", "WHERE queue NOT IN (SELECT queue FROM opscore_pause) ORDER BY", "WHERE 1 ORDER BY"},
	{"claim takes more than asked for", "runs.go", "level[:min(len(level), want.Max-len(chosen))]", "level"},
	{"claim by a worker that is gone", "runs.go", "WHERE id = ? AND state <> 'gone'\", want.Worker[:]", "WHERE id = ? OR 1\", want.Worker[:]"},
	{"claim does not bump the claim number", "runs.go", "state = 'running', claim_seq = claim_seq + 1,", "state = 'running',"},
	{"revoke does not bump the claim number", "runs.go", "claim_seq   = claim_seq + (cancel_at = 0 AND ?2 OR ?11)", "claim_seq   = claim_seq + (?11 AND 0)"},
	{"lost update on cancel", "runs.go", "state       = CASE WHEN cancel_at > 0 THEN 'cancelled' ELSE ?1 END", "state       = ?1"},
	{"cancel beats success", "runs.go", "SET state = 'completed', finished_at", "SET state = CASE WHEN cancel_at > 0 THEN 'cancelled' ELSE 'completed' END, finished_at"},
	{"late outcomes are forgotten", "runs.go", "\tif !exists {", "\tif exists || !exists {"},
	{"cancel reaches finished tasks", "tasks.go", "WHERE id = ? AND state = 'pending'`, at, at, by", "WHERE id = ?`, at, at, by"},
	{"unique keys end with the task", "tasks.go", "AND state IN ('pending', 'running', 'completed')`, actor, key", "AND state IN ('pending', 'running')`, actor, key"},
	{"unique keys outlive a failure", "tasks.go", "AND state IN ('pending', 'running', 'completed')`, actor, key", "`, actor, key"},
	{"unique keys are shared by actors", "tasks.go", "WHERE actor = ? AND unique_key = ?", "WHERE (actor = ? OR 1) AND unique_key = ?"},
	{"any task with the id will do", "tasks.go", "if actor == r.Actor && bytes.Equal(args, r.Args) {", "if actor == r.Actor || bytes.Equal(args, r.Args) {"},
	{"list skips a page edge", "tasks.go", "add(\"id < ?\", f.Before[:])", "add(\"id < (SELECT max(id) FROM opscore_task WHERE id < ?)\", f.Before[:])"},
	{"list repeats a page edge", "tasks.go", "add(\"id < ?\", f.Before[:])", "add(\"id <= ?\", f.Before[:])"},
	{"retry of a completed task", "tasks.go", "if t.State != opscore.Failed && t.State != opscore.Cancelled {", "if !t.State.Terminal() {"},
	{"retry keeps the claim number", "tasks.go", "state = 'pending', claim_seq = claim_seq + 1,", "state = 'pending',"},
	{"rescue without WHERE", "chores.go", "WHERE state = 'running' AND worker NOT IN (SELECT id FROM opscore_worker WHERE state <> 'gone') LIMIT ?", "WHERE state = 'running' LIMIT ?"},
	{"rescue at the first observation", "chores.go", "case !again || seen.beats != w.beats:", "case again && !again && seen.beats != w.beats:"},
	{"rescue without a lease", "chores.go", "case lease < at:", "case lease < at || true:"},
	{"rescue ignores a heartbeat in between", "chores.go", "case !again || seen.beats != w.beats:", "case !again:"},
	{"poison among others", "../task.go", "case t.Alone && t.Lost+1 >= MaxLost:", "case t.Lost+1 >= MaxLost:"},
	{"alone for ever", "tasks.go", "state = 'running' AND alone_seq = claim_seq`", "state = 'running' AND alone_seq > 0`"},
	{"isolated by whoever", "runs.go", "AND claim_seq = ? AND worker = ?\n\t\t\t\tAND worker IN", "AND (claim_seq = ? OR worker = ?)\n\t\t\t\tAND worker IN"},
	{"isolated by a worker that is gone", "runs.go", "AND worker IN (SELECT id FROM opscore_worker WHERE state <> 'gone')`", "AND worker IN (SELECT id FROM opscore_worker)`"},
	{"a suspect that came to an end stays one", "runs.go", "WHEN ?12 AND alone_seq = claim_seq THEN 0", "WHEN ?12 AND alone_seq < 0 THEN 0"},
	{"whoever comes to an end is cleared", "runs.go", "WHEN ?12 AND alone_seq = claim_seq THEN 0", "WHEN ?12 THEN 0"},
	{"a loss counts as an attempt", "../task.go", "Uncounted: true, Code: CodeLost,\n", "Code: CodeLost,\n"},
	{"prune takes what is waiting", "chores.go", "DELETE FROM opscore_task WHERE id = ? AND state IN ('completed', 'failed', 'cancelled')", "DELETE FROM opscore_task WHERE id = ? OR state = 'pending'"},
	{"prune without queues of their own", "chores.go", "own := append([]string{}, slices.Sorted(maps.Keys(r.Queues))...)", "own := slices.Sorted(maps.Keys(r.Queues))"},
	{"prune ignores the queue's retention", "chores.go", "ELSE queue = ?3 END", "ELSE ?3 <> '' END"},
	{"a worker that is gone can heartbeat", "registry.go", "gone = present == string(opscore.WorkerGone)", "gone = false"},
	{"a worker does not learn that it shall stop", "registry.go", "rows.Scan(&present, &heard.Stop)", "rows.Scan(&present, new(string))"},
	{"a lease of its own is not renewed for as long", "registry.go", "lease_until = ? + lease WHERE", "lease_until = ? + 30000000 WHERE"},
	{"a heartbeat keeps no report", "registry.go", "state = ?, report = ?, last_beat", "state = ?, report = coalesce('{}', ?), last_beat"},
	{"ahead are the less urgent as well", "standing.go", "case l.of == nil || -l.of.Priority < k.rank:", "case l.of == nil:"},
	{"a task is ahead of itself", "standing.go", "OR run_at = ?1 AND id < ?2", "OR run_at = ?1 AND id <= ?2"},
	{"ahead are expired ones", "standing.go", "AND (expires_at = 0 OR expires_at > ?6)", "AND ?6 > 0"},
	{"a long line has an end", "standing.go", "TallyOf(due, limit)", "TallyOf(due, limit+1)"},
	{"who asked last wins", "registry.go", "CASE stop_by WHEN '' THEN ? ELSE stop_by END", "?"},
}

func TestTheSuiteKillsEveryMutant(t *testing.T) {
	storetest.KillAll(t, "^(TestConformance|TestTheStoreBehavesLikeItsModel)$", mutants)
}
