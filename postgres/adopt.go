package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/opscore/opscore"
)

var _ opscore.Adopter = (*Store)(nil)

// adoptSQL stores messages as tasks, given as insertSQL's arrays and four more, and claims the most urgent $20 of them that are new, due, of the
// actors $19 and in no paused queue for the worker $18. Such a task has never been pending: no index for due tasks sees it. The rows are written in
// the order of their ids, so that two that adopt the same messages wait for each other in the same order. A task that another one stores at the same
// time counts towards $20 here, and is claimed by the other.
const adoptSQL = `
	WITH r AS MATERIALIZED (
		SELECT r.*, c.now,
			CASE WHEN r.at = 0 THEN c.now + r.after * c.us ELSE timestamptz 'epoch' + r.at * c.us END AS run_at,
			CASE WHEN r.made = 0 THEN c.now ELSE least(c.now, timestamptz 'epoch' + r.made * c.us) END AS created_at,
			CASE WHEN r.expires <> 0 THEN timestamptz 'epoch' + r.expires * c.us WHEN r.lifetime <> 0 THEN c.now + r.lifetime * c.us END AS expires_at
		FROM (SELECT clock_timestamp() AS now, interval '1 microsecond' AS us) c,
			unnest($1::uuid[], $2::text[], $3::text[], $4::smallint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[],
				$10::integer[], $11::text[], $12::text[], $13::bytea[], $14::integer[], $15::bigint[], $16::text[], $17::bytea[])
			AS r (id, queue, actor, rank, at, after, expires, lifetime, timeout, attempts, key, labels, args, had, made, retry, origin)
		WHERE ` + adopter + `),
	f AS (
		SELECT r.*, t.id IS NULL AND r.actor = ANY($19) AND r.queue NOT IN (SELECT queue FROM opscore.pause)
			AND r.run_at <= r.now AND (r.expires_at IS NULL OR r.expires_at > r.now) AS free
		FROM r LEFT JOIN opscore.task t ON t.id = r.id),
	p AS (
		SELECT f.*, (free AND row_number() OVER (PARTITION BY free ORDER BY rank, run_at, id) <= $20)::integer AS claim FROM f)
	INSERT INTO opscore.task (id, queue, actor, rank, state, run_at, created_at, expires_at, timeout, max_attempts, attempt, claim_seq, worker,
		started_at, unique_key, labels, args, retry, origin)
	SELECT id, queue, actor, rank, CASE claim WHEN 1 THEN 'running' ELSE 'pending' END, run_at, created_at, expires_at, timeout, attempts,
		had + claim, claim, CASE claim WHEN 1 THEN $18::uuid END, CASE claim WHEN 1 THEN clock_timestamp() END,
		key, nullif(labels, '')::jsonb, args, nullif(retry, '')::jsonb, origin
	FROM p ORDER BY id
	ON CONFLICT (id) DO NOTHING
	RETURNING id, run_at, created_at, expires_at, attempt, claim_seq, started_at`

// adopter is true if $18 is a worker that is not gone, or no worker at all.
const adopter = `($18::uuid IS NULL OR EXISTS (SELECT FROM opscore.worker WHERE id = $18 AND state <> 'gone'))`

// standingSQL looks for the tasks that stood in the way of messages, and for the worker $4.
const standingSQL = `
	SELECT w.adopts, t.n, t.state, t.same
	FROM (SELECT $4::uuid IS NULL OR EXISTS (SELECT FROM opscore.worker WHERE id = $4 AND state <> 'gone') AS adopts) w LEFT JOIN (
		SELECT r.n, t.state, t.actor = r.actor AND t.args = r.args AS same
		FROM unnest($1::uuid[], $2::text[], $3::bytea[]) WITH ORDINALITY AS r (id, actor, args, n) JOIN opscore.task t ON t.id = r.id) t ON true`

// adopting is a batch of messages on its way to become tasks.
type adopting struct {
	want     *opscore.Claim
	messages []opscore.Adoption // complete, if they are valid
	answers  []opscore.Adopted
	todo     []int // the messages that have no answer yet
}

// Adopt implements [opscore.Adopter].
func (s *Store) Adopt(ctx context.Context, want opscore.Claim, messages []opscore.Adoption) ([]opscore.Adopted, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	// As a claim it is run to its end: what is cut off in the middle may be ours without our knowing.
	ctx, cancel := within(context.WithoutCancel(ctx), opscore.HeartbeatEvery)
	defer cancel()
	a := &adopting{want: &want, messages: slices.Clone(messages), answers: make([]opscore.Adopted, len(messages))}
	for i := range a.messages {
		if err := a.messages[i].Complete(); err != nil {
			a.orphan(i, opscore.CodeOf(err), err)
		} else {
			a.todo = append(a.todo, i)
		}
	}
	err := s.adopt(ctx, s.pool, a)
	if refused(err) {
		err = s.adoptEach(ctx, a)
	}
	if err != nil {
		return nil, unavailable("adopt messages", err)
	}
	s.adopted(a)
	s.keepRest(ctx, a)
	return a.answers, nil
}

// adopt stores what is new and finds out what stood in the way of the rest. That may be removed between the two: then there is another try.
func (s *Store) adopt(ctx context.Context, q querier, a *adopting) error {
	for range 10 {
		if len(a.todo) == 0 {
			return nil
		}
		if err := s.storeNew(ctx, q, a); err != nil {
			return err
		}
		if err := s.explainOld(ctx, q, a); err != nil {
			return err
		}
	}
	return &opscore.Error{Code: opscore.CodeUnavailable, Message: "their ids come and go all the time; try again"}
}

// adoptEach keeps a message that the database does not want from hindering the others.
func (s *Store) adoptEach(ctx context.Context, a *adopting) error {
	all := a.todo
	for _, i := range all {
		a.todo = []int{i}
		err := s.adopt(ctx, s.pool, a)
		if refused(err) {
			a.orphan(i, opscore.CodeInvalid, fmt.Errorf("the message cannot be stored: %s", redacted(err)))
		} else if err != nil {
			return err
		}
	}
	return nil
}

// orphan answers that a message does not become a task.
func (a *adopting) orphan(i int, reason opscore.Code, why error) {
	a.answers[i].Orphan, a.answers[i].Err = reason, why
}

// storeNew inserts the messages that have no answer yet, each id once.
func (s *Store) storeNew(ctx context.Context, q querier, a *adopting) error {
	index := make(map[opscore.ID]int, len(a.todo))
	var first []opscore.Adoption
	for _, i := range a.todo {
		id := a.messages[i].Request.ID
		if _, twice := index[id]; !twice {
			index[id], first = i, append(first, a.messages[i])
		}
	}
	params, err := adoptionColumns(first)
	if err != nil {
		return err
	}
	stored := map[int]opscore.Adopted{}
	err = s.steered(ctx, q, func(rows pgx.Rows) error {
		t := opscore.Task{State: opscore.Pending}
		var expires, started *time.Time
		err := rows.Scan((*[16]byte)(&t.ID), &t.RunAt, &t.CreatedAt, &expires, &t.Attempt, &t.ClaimSeq, &started)
		i := index[t.ID]
		if started == nil {
			stored[i] = opscore.Adopted{Task: opscore.Task{ID: t.ID, State: t.State}}
			return err
		}
		t.State, t.Worker, t.StartedAt, t.ExpiresAt = opscore.Running, a.want.Worker, *started, timeOf(expires)
		fill(&t, &a.messages[i])
		stored[i] = opscore.Adopted{Task: t, Claimed: true}
		return err
	}, adoptSQL, append(params, a.worker(), list(a.want.Actors), a.room())...)
	if err != nil {
		return err // rows come before the commit
	}
	for i, answer := range stored {
		a.answers[i] = answer
	}
	a.todo = slices.DeleteFunc(a.todo, func(i int) bool { _, ok := stored[i]; return ok })
	return nil
}

// adoptionColumns are adoptSQL's parameters up to origin.
func adoptionColumns(messages []opscore.Adoption) ([]any, error) {
	requests := make([]opscore.Request, len(messages))
	had, made := make([]int32, len(messages)), make([]int64, len(messages))
	retry, origin := make([]string, len(messages)), make([][]byte, len(messages))
	for i := range messages {
		m := &messages[i]
		requests[i], had[i], made[i], origin[i] = m.Request, int32(m.Attempts), microsOrZero(m.Made), m.Origin
		if m.Retry != (opscore.Backoff{}) {
			doc, err := json.Marshal(m.Retry)
			if err != nil {
				return nil, err
			}
			retry[i] = string(doc)
		}
	}
	c, err := columnsOf(requests)
	if err != nil {
		return nil, err
	}
	return append(c.parameters(), had, made, retry, origin), nil
}

// fill adds to a claimed task what its message says of it.
func fill(t *opscore.Task, m *opscore.Adoption) {
	r := &m.Request
	t.Queue, t.Actor, t.Priority, t.Args, t.MaxAttempts = r.Queue, r.Actor, r.Priority, r.Args, r.MaxAttempts
	t.Timeout, t.Labels, t.Retry, t.Origin = opscore.Duration(r.Timeout.Truncate(time.Microsecond)), r.Labels, m.Retry, m.Origin
}

// room is how many more may be claimed.
func (a *adopting) room() int {
	n := a.want.Max
	for i := range a.answers {
		if a.answers[i].Claimed {
			n--
		}
	}
	if a.worker() == nil {
		n = 0
	}
	return max(n, 0)
}

// worker is nil if nobody claims.
func (a *adopting) worker() *opscore.ID {
	if a.want.Worker == (opscore.ID{}) {
		return nil
	}
	return &a.want.Worker
}

// explainOld answers for the messages whose ids stood there already.
func (s *Store) explainOld(ctx context.Context, q querier, a *adopting) error {
	if len(a.todo) == 0 {
		return nil
	}
	var ids [][16]byte
	var actors []string
	var args [][]byte
	for _, i := range a.todo {
		r := &a.messages[i].Request
		ids, actors, args = append(ids, r.ID), append(actors, r.Actor), append(args, r.Args)
	}
	adopts, known := false, map[int]bool{}
	err := s.steered(ctx, q, func(rows pgx.Rows) error {
		var n *int
		var state *string
		var same *bool
		if err := rows.Scan(&adopts, &n, &state, &same); err != nil || n == nil {
			return err
		}
		i := a.todo[*n-1]
		known[i] = true
		a.stands(i, opscore.State(*state), *same)
		return nil
	}, standingSQL, ids, actors, args, a.worker())
	if err == nil && !adopts {
		err = opscore.ErrLeaseLost
	}
	a.todo = slices.DeleteFunc(a.todo, func(i int) bool { return known[i] })
	return err
}

// stands answers for a message whose id a task has.
func (a *adopting) stands(i int, state opscore.State, same bool) {
	id := a.messages[i].Request.ID
	a.answers[i].Task = opscore.Task{ID: id, State: state}
	switch {
	case !same:
		a.orphan(i, opscore.CodeConflict, fmt.Errorf("task %s has the message's id, but another actor or other args", id))
	case state.Terminal():
		a.orphan(i, opscore.CodeReplayed, fmt.Errorf("task %s, with the message's id, is %s", id, state))
	default:
		a.answers[i].Duplicate = true
	}
}

// adopted tells whoever waits for tasks of those that stayed pending.
func (s *Store) adopted(a *adopting) {
	var pending []opscore.Request
	for i, answer := range a.answers {
		if answer.Task.State == opscore.Pending && !answer.Duplicate && answer.Orphan == "" {
			pending = append(pending, a.messages[i].Request)
		}
	}
	if len(pending) > 0 {
		s.lanes.inserted(pending)
		s.wake.all()
		s.notify()
	}
}

// keepRest keeps the messages that did not become tasks. What cannot be kept is no error: the answer says so, and the others have theirs. It
// has time of its own: what was adopted is certain by now.
func (s *Store) keepRest(ctx context.Context, a *adopting) {
	var orphans []opscore.Orphan
	var of []int
	for i := range a.answers {
		if a.answers[i].Orphan == "" {
			continue
		}
		m := &a.messages[i]
		o := m.Message
		o.Reason, o.Why = a.answers[i].Orphan, a.answers[i].Err.Error()
		o.ID, o.Actor, o.Queue = cmp.Or(o.ID, m.Request.ID), cmp.Or(o.Actor, m.Request.Actor), cmp.Or(o.Queue, m.Request.Queue)
		orphans, of = append(orphans, o), append(of, i)
	}
	ctx, cancel := within(context.WithoutCancel(ctx), opscore.HeartbeatEvery)
	defer cancel()
	kept, err := s.keepOrphans(ctx, orphans)
	for k, i := range of {
		a.answers[i].Dropped = err == nil && !kept[k]
		if err != nil {
			a.answers[i].Err = errors.Join(a.answers[i].Err, unavailable("keep orphans", err))
		}
	}
}
