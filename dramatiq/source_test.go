package dramatiq_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/dramatiq"
)

func TestAMessageFromPythonBecomesATaskAndRuns(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	before := r.send("add", "default", "[1]", `{"y":2}`, "{}")
	r.work(adders(), &worker{})
	task := r.completed(before, "3")
	if task.Queue != "default" || task.MaxAttempts != 21 || task.Labels[dramatiq.MessageLabel] != before.String() {
		t.Errorf("the task is %+v", task)
	}
	r.completed(r.send("add", "default", "[1,1]", `{}`, "{}"), "2")
	r.until("nothing is left", func() bool { return r.waiting("default") == 0 })
	if n := r.waiting("default.XQ"); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

func TestWrongArgumentsFailTheAttemptInPythonsWords(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	r.work(adders(), &worker{})
	for args, want := range map[string]string{
		"[1]":          "TypeError: add() missing 1 required positional argument: 'y'",
		"[1,2,3]":      "TypeError: add() takes 2 positional arguments but 3 were given",
		`["one",2]`:    "TypeError: args of actor add: json: cannot unmarshal string into Go struct field sum.x of type int",
		"[1,Infinity]": "TypeError: add() argument 'y' holds Infinity, which JSON does not have: dramatiq_test.sum cannot take it, only a json.RawMessage can",
	} {
		task := r.await(r.send("add", "default", args, "{}", `{"max_retries":0}`))
		if task.State != opscore.Failed || task.Code != opscore.CodeError || task.Error != want {
			t.Errorf("%s: %s %s %q, want %q", args, task.State, task.Code, task.Error, want)
		}
	}
}

// TestOptionsOfAMessageAreHonoured reads them from the row, and sees what they do.
func TestOptionsOfAMessageAreHonoured(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	h := adders()
	var runs atomic.Int32
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "boom"}, func(context.Context, json.RawMessage) (string, error) {
		runs.Add(1)
		return "", errors.New("boom")
	})
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "slow"}, func(ctx context.Context, _ json.RawMessage) (string, error) {
		<-ctx.Done()
		return "", context.Cause(ctx)
	})
	r.work(h, &worker{})
	r.keep()
	failed := r.await(r.send("boom", "default", "[]", "{}", `{"max_retries":3,"min_backoff":0,"max_backoff":0}`))
	if failed.State != opscore.Failed || failed.Attempt != 4 || runs.Load() != 4 {
		t.Errorf("%s after %d attempts, %d runs, want failed after 4", failed.State, failed.Attempt, runs.Load())
	}
	if all, err := r.client.Attempts(t.Context(), failed.ID); err != nil || len(all) != 4 {
		t.Errorf("the history has %d attempts, %v", len(all), err)
	}
	if late := r.await(r.send("slow", "default", "[]", "{}", `{"max_retries":0,"time_limit":50}`)); late.Code != opscore.CodeTimeout {
		t.Errorf("time_limit: %s %s", late.State, late.Code)
	}
	body, id := message("add", "default", "[1,2]", "{}", `{"max_age":1000}`)
	old := fmt.Sprintf(`"message_timestamp":%d`, time.Now().Add(-time.Hour).UnixMilli())
	r.publish("default", []byte(strings.Replace(string(body), `"message_timestamp":1`, old+`,"message_timestamp":1`, 1)))
	r.orphan(opscore.CodeUndecodable, opscore.ID{}) // that had the key twice
	r.publish("default", []byte(string(body[:strings.Index(string(body), `"message_timestamp"`)])+old+"}"))
	if aged := r.await(id); aged.Code != opscore.CodeExpired {
		t.Errorf("max_age: %s %s", aged.State, aged.Code)
	}
	again := r.await(r.send("boom", "default", "[]", "{}", `{"max_retries":2,"retries":2,"traceback":"…\nValueError: boom\n","broker_priority":200}`))
	if again.Attempt != 3 || again.State != opscore.Failed || again.Priority != 100 {
		t.Errorf("retries elsewhere: %s after %d attempts, priority %d", again.State, again.Attempt, again.Priority)
	}
	for _, want := range []string{"it failed 2 times at a worker of Dramatiq's, the last time with ValueError: boom", "broker_priority 200"} {
		if !strings.Contains(r.logs(again.ID), want) {
			t.Errorf("the log does not say %q: %s", want, r.logs(again.ID))
		}
	}
	for options, want := range map[string]opscore.Backoff{
		`{}`:                                     {Base: 22500 * time.Millisecond, Factor: 2, Jitter: 1. / 3, Max: 7 * 24 * time.Hour},
		`{"min_backoff":100,"max_backoff":1000}`: {Base: 150 * time.Millisecond, Factor: 2, Jitter: 1. / 3, Max: time.Second},
		`{"max_backoff":99999999999,"retries":null}`: {Base: 22500 * time.Millisecond, Factor: 2, Jitter: 1. / 3, Max: 7 * 24 * time.Hour},
	} {
		body, _ := message("boom", "default", "[]", "{}", options)
		a, err := dramatiq.Adoption("default", body, nil)
		if err != nil || a.Retry != want {
			t.Errorf("%s: backoff %+v, %v, want %+v", options, a.Retry, err, want)
		}
	}
	body, _ = message("boom", "default", "[]", "{}", `{"max_retries":null}`)
	if a, err := dramatiq.Adoption("default", body, nil); err != nil || a.Request.MaxAttempts != opscore.ForeverAttempts {
		t.Errorf("max_retries null: %d attempts, %v", a.Request.MaxAttempts, err)
	}
}

// TestFarDelayedMessagesNeverHoldUpNearOnes sends more far ones than any prefetch holds.
func TestFarDelayedMessagesNeverHoldUpNearOnes(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	far := fmt.Sprintf(`{"eta":%d}`, time.Now().Add(time.Hour).UnixMilli())
	for range 1200 {
		r.send("add", "default.DQ", "[1,2]", "{}", far)
	}
	near := time.Now().Add(time.Second).Truncate(time.Millisecond)
	id := r.send("add", "default.DQ", "[1,2]", "{}", fmt.Sprintf(`{"eta":%d}`, near.UnixMilli()))
	r.work(adders(), &worker{})
	task := r.completed(id, "3")
	if task.StartedAt.Before(near) {
		t.Errorf("it started at %s, before its eta %s", task.StartedAt, near)
	}
	r.until("all are tasks", func() bool { return r.count("SELECT count(*) FROM opscore.task") == 1201 })
	if n := r.count("SELECT count(*) FROM opscore.task WHERE state = 'pending'"); n != 1200 {
		t.Errorf("%d wait, want 1200", n)
	}
	r.until("nothing is held", func() bool { return r.waiting("default.DQ") == 0 })
	if now := r.completed(r.send("add", "default", "[2,2]", "{}", `{"eta":1.5}`), "4"); now.Attempt != 1 {
		t.Errorf("%d attempts", now.Attempt)
	}
}

func TestAMessageThatComesAgainIsTheSameTask(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	h := adders()
	release := make(chan struct{})
	opscore.Handle(h, opscore.Actor[json.RawMessage, int]{Name: "hold"}, func(context.Context, json.RawMessage) (int, error) {
		<-release
		return 1, nil
	})
	r.work(h, &worker{})
	body, id := message("hold", "default", "[]", "{}", "{}")
	r.publish("default", body)
	r.until("it runs", func() bool { return r.count("SELECT count(*) FROM opscore.task WHERE state = 'running'") == 1 })
	r.publish("default", body)
	r.until("it is recognised", func() bool { return r.logged.has("a message came again") })
	close(release)
	r.completed(id, "1")
	r.publish("default", body) // an operator put it back
	if o := r.orphan(opscore.CodeReplayed, id); string(o.Body) != string(body) || o.Actor != "hold" {
		t.Errorf("the orphan is %+v", o)
	}
	if n := r.count("SELECT count(*) FROM opscore.task"); n != 1 {
		t.Errorf("%d tasks, want 1", n)
	}
}

func TestUnknownActorsAreOrphansAndDeadLetters(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	r.work(adders(), &worker{source: dramatiq.Options{Queues: map[string][]string{"default": {"add"}}}})
	id := r.send("nobody", "default", "[1]", "{}", "{}")
	if o := r.orphan(opscore.CodeActorUnknown, id); !strings.Contains(o.Why, "queue default takes no messages for actor nobody") {
		t.Errorf("why: %s", o.Why)
	}
	if d := r.get("default.XQ"); !strings.Contains(string(d.Body), id.String()) || d.Headers["x-first-death-reason"] != "rejected" {
		t.Errorf("the dead letter is %s with headers %v", d.Body, d.Headers)
	}
	r.completed(r.send("add", "default", "[1,2]", "{}", "{}"), "3")
}

func TestAMessageForAnActorOfAnotherWorkerOfOursBecomesItsTask(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	other := opscore.Handlers{}
	opscore.Handle(other, opscore.Actor[json.RawMessage, string]{Name: "greet"}, func(_ context.Context, in json.RawMessage) (string, error) { return string(in), nil })
	r.background((&opscore.Worker{Store: r.store, Handlers: other, Queues: []string{"default"}, Log: r.log, Adapter: &dramatiq.Adapter{Client: r.client}}).Run)
	r.until("it is registered", func() bool { return r.count("SELECT count(*) FROM opscore.worker WHERE 'greet' = ANY(actors)") == 1 })
	r.work(adders(), &worker{})
	r.completed(r.send("greet", "default", "[]", `{"you": 1}`, "{}"), `"{\"you\":1}"`)
}

// TestEveryCapturedMessageRuns puts each into a queue again, as it was captured, and runs it with a handler that takes anything.
func TestEveryCapturedMessageRuns(t *testing.T) {
	r := newRig(t)
	r.declare(0, "vec", "vecout")
	h := opscore.Handlers{}
	want := map[opscore.ID]string{}
	var bodies []vector
	for _, v := range vectors(t, "vectors") {
		m, err := dramatiq.Decode(v.body())
		if err != nil {
			continue // TestEveryCapturedMessageIsDecodedAndEncodedToTheSameValues knows which
		}
		if m.ID == "00000000-0000-4000-8000-0000000000aa" { // made by hand, several with this id
			v.UTF8 = strings.ReplaceAll(v.UTF8, m.ID, uuid.NewString())
			m, err = dramatiq.Decode(v.body())
			check(t, err)
		}
		v.Queue = strings.Replace(v.Queue, ".XQ", "", 1)
		bodies = append(bodies, v)
		id, err := m.TaskID()
		check(t, err)
		want[id] = v.name
		if _, known := h[m.Actor]; !known {
			opscore.Handle(h, opscore.Actor[json.RawMessage, int]{Name: m.Actor}, func(_ context.Context, in json.RawMessage) (int, error) { return len(in), nil })
		}
	}
	r.work(h, &worker{source: dramatiq.Options{Queues: map[string][]string{"vec": nil, "vecout": nil}}})
	r.keep() // fails those that are too old by now
	for _, v := range bodies {
		r.publish(v.Queue, v.body())
	}
	for id, name := range want {
		r.until(name+" is over", func() bool {
			task, err := r.client.Get(t.Context(), id)
			return err == nil && (task.State == opscore.Completed || task.RunAt.After(time.Now()) || task.Code == opscore.CodeExpired)
		})
	}
}

// TestWhatIsNotOursGoesBackToAForeignConsumer lets a worker that is not ours have the actor that we do not.
func TestWhatIsNotOursGoesBackToAForeignConsumer(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	python := r.channel()
	check(t, python.Qos(1, 0, false))
	deliveries, err := python.Consume("default", "ctag1.python", false, false, false, false, nil)
	check(t, err)
	r.work(adders(), &worker{source: dramatiq.Options{Alone: time.Minute}})
	r.until("it is seen", func() bool { return r.logged.has("foreign_consumers=1") })
	want := map[string]bool{}
	for range 5 {
		want[r.send("python_only", "default", "[]", "{}", "{}").String()] = true
	}
	for len(want) > 0 {
		d := <-deliveries
		m, err := dramatiq.Decode(d.Body)
		check(t, err, d.Ack(false))
		delete(want, m.ID)
	}
	if n := r.waiting("default.XQ"); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

func TestAStrictWorkerTakesOnlyMessagesWithATaskRecord(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	r.work(adders(), &worker{source: dramatiq.Options{Strict: true}})
	lost := r.send("add", "default", "[1,2]", `{"password":"canary"}`, "{}")
	body, known := message("add", "default", "[7,7]", "{}", "{}")
	_, err := r.client.Submit(t.Context(), opscore.NewRequest("add", json.RawMessage(`{"x":1,"y":2}`), opscore.WithID(known), opscore.At(time.Now())))
	check(t, err)
	r.publish("default", body)
	r.completed(known, "3") // the row is what runs
	o := r.orphan(opscore.CodeTaskNotFound, lost)
	if !strings.Contains(o.Why, "TaskNotFoundError") || !strings.Contains(string(o.Body), "canary") {
		t.Errorf("the orphan is %+v", o)
	}
	for _, want := range []string{"message received", "TaskNotFoundError", "message=" + lost.String(), "actor=add", "args_bytes=26"} {
		if !r.logged.has(want) {
			t.Errorf("the log does not say %q", want)
		}
	}
	if r.logged.has("canary") {
		t.Error("the log holds arguments")
	}
	if d := r.get("default.XQ"); !strings.Contains(string(d.Body), lost.String()) {
		t.Errorf("the dead letter is %s", d.Body)
	}
	// One whose record is committed a moment later is no orphan.
	body, late := message("add", "default", "[]", "{}", "{}")
	r.publish("default", body)
	r.until("it has come", func() bool { return r.logged.has("message=" + late.String()) })
	_, err = r.client.Submit(t.Context(), opscore.NewRequest("add", json.RawMessage(`{"x":2,"y":2}`), opscore.WithID(late)))
	check(t, err)
	r.completed(late, "4")
	// Nor may a message make another actor's task run.
	forged := uuid.New()
	_, err = r.client.Submit(t.Context(), opscore.NewRequest("other", nil, opscore.WithID(forged)))
	check(t, err)
	body, _ = message("add", "default", "[1,1]", "{}", "{}")
	m, err := dramatiq.Decode(body)
	check(t, err)
	m.ID = forged.String()
	body, err = m.Encode()
	check(t, err)
	r.publish("default", body)
	r.orphan(opscore.CodeConflict, forged)
}

// TestEveryPoisonBodyEndsWithAReasonWhileTheQueueGoesOn is a row per body: what becomes of it, and what is said.
func TestEveryPoisonBodyEndsWithAReasonWhileTheQueueGoesOn(t *testing.T) {
	r := newRig(t)
	r.declare(0, "vec")
	h := adders()
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "noop"}, func(context.Context, json.RawMessage) (string, error) { return "ran", nil })
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "old"}, func(context.Context, json.RawMessage) (string, error) { return "ran", nil })
	opscore.Handle(h, opscore.Actor[struct {
		X int `json:"x"`
		Y int `json:"y,omitempty"`
	}, string]{Name: "one"}, nil)
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "boom", MaxAttempts: 1}, func(context.Context, json.RawMessage) (string, error) {
		return "", errors.New("ValueError: boom")
	})
	r.work(h, &worker{source: dramatiq.Options{Queues: map[string][]string{"vec": nil}}})
	const (
		undecodable = "undecodable: "
		ran         = "completed: "
		failed      = "failed: "
		waits       = "pending: "
	)
	table := map[string]string{
		"actor_name_list":            undecodable + "actor_name is a list",
		"args_null":                  undecodable + "args is null",
		"broker_priority_string":     failed + "broker_priority is a string: it counts as not given",
		"dq_without_eta_main_name":   ran,
		"duplicate_keys":             undecodable + "actor_name is there twice",
		"empty_body":                 undecodable + "it is empty",
		"eta_float":                  ran,
		"eta_in_main_queue":          waits,
		"group_uuid_without_barrier": failed + "group_completion_uuid: the group's completion is counted in Dramatiq's rate limiter backend",
		"json_array":                 undecodable + "it is a list, not an object",
		"json_null":                  undecodable + "it is null, not an object",
		"kwargs_list":                undecodable + "kwargs is a list",
		"latin1":                     undecodable + "it is not valid UTF-8",
		"max_backoff_null":           failed + "max_backoff is null: it counts as not given",
		"max_retries_string":         failed + "max_retries is a string: it counts as not given",
		"message_id_null":            ran,
		"message_timestamp_string":   ran + "message_timestamp is a string: the message counts as new",
		"no_message_id_no_timestamp": ran,
		"not_json":                   undecodable + "no value of JSON begins like this",
		"on_success_unknown_actor":   failed,
		"options_list":               undecodable + "options is a list",
		"options_null":               undecodable + "options is null",
		"pipe_target_extra_field":    failed + `pipe_target: decode message: unknown key "x": there is no next step`,
		"pipe_target_incomplete":     failed + "pipe_target: decode message: actor_name is missing: there is no next step",
		"queue_name_XQ":              ran + `queue_name is "vec.XQ", but the message came in queue vec: that counts`,
		"queue_name_null":            ran + "queue_name is null",
		"queue_name_of_other_queue":  ran + `queue_name is "elsewhere", but the message came in queue vec: that counts`,
		"retries_null":               failed + "retries is null: it counts as not given",
		"time_limit_string":          ran + "time_limit is a string: it counts as not given",
		"utf8_bom":                   undecodable + "it begins with a byte order mark",
	}
	for _, v := range vectors(t, "poison") {
		want, known := table[v.name]
		if !known {
			t.Errorf("%s: not in the table", v.name)
			continue
		}
		delete(table, v.name)
		r.poison(v, want)
		r.completed(r.send("add", "vec", "[1,2]", "{}", "{}"), "3")
	}
	for name := range table {
		t.Errorf("%s: there is no such body", name)
	}
}

// poison publishes a body and checks how it ends. Each body gets an id of its own: most of the vectors have the same one.
func (r *rig) poison(v vector, want string) {
	r.Helper()
	state, why, _ := strings.Cut(want, ": ")
	id := uuid.NewString()
	body := strings.ReplaceAll(string(v.body()), `00000000-0000-4000-8000-0000000000aa","message_timestamp":1700000000000}`,
		id+`","message_timestamp":1700000000000}`)
	before := map[opscore.ID]bool{}
	for _, t := range r.tasks() {
		before[t.ID] = true
	}
	r.publish(v.Queue, []byte(body))
	if state == "undecodable" {
		o := r.orphan(opscore.CodeUndecodable, uuid.NewSHA1(uuid.NameSpaceOID, []byte(body)))
		if !strings.Contains(o.Why, why) || string(o.Body) != body {
			r.Errorf("%s: why %q, want %q", v.name, o.Why, why)
		}
		if d := r.get("vec.XQ"); string(d.Body) != body {
			r.Errorf("%s: the dead letter is %q", v.name, d.Body)
		}
		return
	}
	var t opscore.Task
	r.until(v.name+" is a task", func() bool {
		for _, one := range r.tasks() {
			if !before[one.ID] && one.Actor != dramatiq.SendActor {
				t = one
			}
		}
		if t.ID == (opscore.ID{}) {
			return false
		}
		var err error
		t, err = r.client.Get(r.Context(), t.ID)
		check(r, err)
		return t.State == opscore.State(state) || t.Error != ""
	})
	if state == "failed" && t.State == opscore.Pending {
		// It lacks an argument, and is going to be tried again.
		if !strings.Contains(t.Error, "TypeError") {
			r.Errorf("%s: %s %s", v.name, t.State, t.Error)
		}
	} else if string(t.State) != state {
		r.Errorf("%s: %s %s, want %s", v.name, t.State, t.Error, state)
	}
	r.until(v.name+": "+why, func() bool { return why == "" || strings.Contains(r.logs(t.ID), why) })
}

func (r *rig) tasks() []opscore.Task {
	r.Helper()
	all, err := r.client.List(r.Context(), opscore.Filter{Limit: 1000})
	check(r, err)
	return all
}

// TestHostileTextStopsNothing puts characters that a database does not take, and long names, into everything that is kept.
func TestHostileTextStopsNothing(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	r.work(adders(), &worker{})
	const nul = `a\u0000\u001b[31m`
	long := strings.Repeat("x", 100_000)
	field := func(key, value string) {
		body, _ := message("add", "default", "[1,2]", "{}", `{"max_retries":0}`)
		var doc map[string]json.RawMessage
		check(t, json.Unmarshal(body, &doc))
		doc[key] = json.RawMessage(value)
		body, err := json.Marshal(doc)
		check(t, err)
		r.publish("default", body)
	}
	for _, text := range []string{nul, long} {
		field("actor_name", `"`+text+`"`)
		field("message_id", `"`+text+`"`)
		field("queue_name", `"`+text+`"`)
		field("kwargs", `{"`+text+`":1}`)
		field("args", `["`+text+`",2]`)
		field("options", `{"retries":1,"max_retries":1,"traceback":"`+text+`","on_success":"`+text+`","eta":"`+text+`"}`)
		field("options", `{"max_retries":0,"pipe_target":{"`+text+`":1}}`)
		field(strings.ReplaceAll(text, `\u0000\u001b`, "\x00\x1b"), `1`)
		check(t, r.ch.PublishWithContext(t.Context(), "", "default", false, false, amqp.Publishing{Body: []byte("{"), Headers: amqp.Table{"x": text}}))
	}
	r.completed(r.send("add", "default", "[1,2]", "{}", "{}"), "3")
	r.until("all are over", func() bool {
		n := r.count("SELECT count(*) FROM opscore.task WHERE state IN ('completed', 'failed') AND actor = 'add'")
		return n == 13 && r.count("SELECT count(*) FROM opscore.orphan") >= 5
	})
	for _, task := range r.tasks() {
		if task.Actor == "add" && task.Code == opscore.CodeResultInvalid {
			t.Errorf("its outcome could not be stored: %s", task.Error)
		}
	}
}
