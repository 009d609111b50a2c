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
	{"rescue without WHERE", "chores.go", " AND coalesce(w.state, 'gone') = 'gone'", ""},
	{"rescue at the first observation", "chores.go", "if !again || seen.beats != beats {", "if again && seen.beats != beats {"},
	{"rescue ignores a heartbeat in between", "chores.go", "if !again || seen.beats != beats {", "if !again {"},
	{"alone for ever", "tasks.go", "t.state = 'running' AND t.alone_seq = t.claim_seq`", "t.state = 'running' AND t.alone_seq > 0`"},
	{"isolated by whoever", "runs.go", "AND claim_seq = $2 AND worker = $3\n\t\t\tAND EXISTS", "AND (claim_seq = $2 OR worker = $3)\n\t\t\tAND EXISTS"},
	{"isolated by a worker that is gone", "runs.go", "AND EXISTS (SELECT FROM opscore.worker WHERE id = $3 AND state <> 'gone')`), task", "AND EXISTS (SELECT FROM opscore.worker WHERE id = $3)`), task"},
	{"a suspect that came to an end stays one", "runs.go", "WHEN $12 AND t.alone_seq = t.claim_seq THEN 0", "WHEN $12 AND t.alone_seq < 0 THEN 0"},
	{"whoever comes to an end is cleared", "runs.go", "WHEN $12 AND t.alone_seq = t.claim_seq THEN 0", "WHEN $12 THEN 0"},
	{"prune ignores the queue's retention", "chores.go", "ELSE queue = $3 END", "ELSE $3 <> '' END"},
	{"ahead are the less urgent as well", "standing.go", "case l.of == nil || -l.of.Priority < int(at.rank):", "case l.of == nil:"},
	{"a task is ahead of itself", "standing.go", "(run_at, id) < (l.before, l.id)", "(run_at, id) <= (l.before, l.id)"},
	{"a long line has an end", "standing.go", "TallyOf(due, limit)", "TallyOf(due, limit+1)"},
	{"who asked last wins", "registry.go", "coalesce(nullif(w.stop_by, ''), $2)", "$2"},
	{"a lease of its own is not renewed for as long", "registry.go", "clock_timestamp() + lease * interval", "clock_timestamp() + 30000000 * interval"},
	{"a worker that is gone can heartbeat", "registry.go", "WHERE id = $1 AND state <> 'gone' RETURNING", "WHERE id = $1 RETURNING"},
}

// outboxMutants are for the suite of the outbox alone.
var outboxMutants = []storetest.Mutant{
	{"a ticket of an earlier claim is out", "standing.go", "AND a.seq = $3)", "OR a.seq > $3)"},
	{"a ticket names a task that is out", "outbox.go", "\n\t\t\t\tAND (id, claim_seq) NOT IN (SELECT task, seq FROM away)", ""},
	{"a task that was put back is still out", "outbox.go", "AND (id, claim_seq) NOT IN (SELECT task, seq FROM away)", "AND id NOT IN (SELECT task FROM away)"},
	{"the window has no end", "outbox.go", "greatest($7 - (SELECT count(*) FROM away), 0)", "greatest($7, 0)"},
	{"tickets are not in order", "outbox.go", "SELECT actor, rank, run_at, id, claim_seq FROM pick ORDER BY n", "SELECT actor, rank, run_at, id, claim_seq FROM pick ORDER BY n DESC"},
	{"tickets for paused queues", "outbox.go", "WHERE queue NOT IN (SELECT queue FROM opscore.pause) AND current_setting", "WHERE current_setting"},
	{"tickets ahead of time", "outbox.go", "AND run_at <= clock_timestamp() AND (expires_at", "AND (expires_at"},
	{"tickets are not spread", "outbox.go", "greatest(least($8::bigint, count(*) / $9::bigint), 1)", "greatest(least($8::bigint, count(*) / least($9::bigint, 1)), 1)"},
	{"a claim does not end its tickets", "runs.go", "USING ended WHERE k.id = ended.id", "USING ended WHERE k.id = ended.id AND false"},
	{"a claim of a part ends a ticket", "runs.go", "\n\t\t\tAND NOT EXISTS (SELECT FROM unnest(k.tasks) AS task WHERE task NOT IN (SELECT pick.task FROM pick))\n", "\n"},
	{"a pull takes what is out", "runs.go", "\" AND (id, claim_seq) NOT IN (SELECT task, seq FROM away)\" + ", "\"\" + "},
	{"what is out is out for ever", "runs.go", "AND k.at > now() - $8 * interval '1 microsecond'", "AND $8::bigint > 0"},
	{"the newest tickets are forgotten", "outbox.go", "ORDER BY at DESC, id DESC OFFSET $2", "ORDER BY at, id OFFSET $2"},
	{"young tickets are forgotten", "outbox.go", "WHERE at < now() - $3 * interval '1 microsecond'", "WHERE at < now() + $3 * interval '1 microsecond'"},
	{"what comes to stand before the cursor is not seen", "outbox.go", "now.Sub(c.begun) > cursorFor", "false"},
}

// adopterMutants are for the suite of those that adopt messages.
var adopterMutants = []storetest.Mutant{
	{"more are claimed than asked for", "adopt.go", "id) <= $20)", "id) <= $20 + 1)"},
	{"the least urgent are claimed", "adopt.go", "ORDER BY rank, run_at, id) <= $20", "ORDER BY rank DESC, run_at, id) <= $20"},
	{"later ones are claimed first", "adopt.go", "ORDER BY rank, run_at, id) <= $20", "ORDER BY rank, run_at DESC, id) <= $20"},
	{"claims from a paused queue", "adopt.go", " AND r.queue NOT IN (SELECT queue FROM opscore.pause)", ""},
	{"claims ahead of time", "adopt.go", "AND r.run_at <= r.now AND (", "AND ("},
	{"claims what has expired", "adopt.go", " AND (r.expires_at IS NULL OR r.expires_at > r.now)", ""},
	{"claims what the worker cannot run", "adopt.go", " AND r.actor = ANY($19)", " AND cardinality($19::text[]) > 0"},
	{"duplicates use up the room", "adopt.go", "t.id IS NULL AND r.actor", "r.actor"},
	{"a worker that is gone adopts", "adopt.go", "WHERE ` + adopter + `),", "WHERE true OR ` + adopter + `),"},
	{"attempts elsewhere do not count", "adopt.go", "had + claim, claim,", "claim, claim,"},
	{"a claim without a number", "adopt.go", "had + claim, claim,", "had + claim, 0,"},
	{"it is as old as its row", "adopt.go", "WHEN r.made = 0 THEN c.now ELSE", "WHEN r.made >= 0 THEN c.now ELSE"},
	{"a replay is a duplicate", "adopt.go", "case state.Terminal():", "case false:"},
	{"any task with the id is the message's", "adopt.go", "t.actor = r.actor AND t.args = r.args AS same", "true AS same"},
	{"args do not tell tasks apart", "adopt.go", "t.actor = r.actor AND t.args = r.args AS same", "t.actor = r.actor AS same"},
	{"nobody hears of what stays pending", "adopt.go", "\t\ts.lanes.inserted(pending)\n", ""},
	{"what is refused is not kept", "adopt.go", "\ts.keepRest(ctx, a)\n\treturn a.answers, nil", "\treturn a.answers, nil"},
	{"one that the database refuses hinders the others", "adopt.go", "if refused(err) {\n\t\terr = s.adoptEach", "if false {\n\t\terr = s.adoptEach"},
	{"a claim forgets what came with the message", "runs.go", "\tif retry != nil {", "\tif false {"},
	{"one id hides another body", "orphans.go", "WHERE o.message = a.message AND o.digest = a.digest", "WHERE o.message = a.message"},
	{"a second body is not kept", "orphans.go", "WHERE id = $1) THEN $2::uuid ELSE $1 END", "WHERE id = $1) THEN $1 ELSE $1 END"},
	{"the page begins with the last of the one before", "orphans.go", "\"(first_seen, id) < (", "\"(first_seen, id) <= ("},
	{"forgotten although it came again", "orphans.go", "SELECT id FROM opscore.orphan WHERE last_seen <", "SELECT id FROM opscore.orphan WHERE first_seen <"},
	{"an orphan is adopted and stays", "orphans.go", "DELETE FROM opscore.orphan WHERE id = ANY($1) RETURNING id", "SELECT id FROM opscore.orphan WHERE id = ANY($1)"},
}

func TestTheSuiteOfAdoptersKillsEveryMutant(t *testing.T) {
	storetest.KillAll(t, "^TestAdopterConformance$", adopterMutants)
}

func TestTheSuiteOfTheOutboxKillsEveryMutant(t *testing.T) {
	storetest.KillAll(t, "^TestOutboxConformance$", outboxMutants)
}

func TestTheSuiteKillsEveryMutant(t *testing.T) {
	storetest.KillAll(t, "^(TestConformance|TestTheStoreBehavesLikeItsModel)$", mutants)
}
