package dramatiq_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/dramatiq"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
)

// sent takes a message out of a queue of Python's.
func (r *rig) sent(queue string) (m dramatiq.Message) {
	r.Helper()
	m, err := dramatiq.Decode(r.get(queue).Body)
	check(r, err)
	return m
}

// callback takes a callback out of a queue: the message that it is about and what it tells.
func (r *rig) callback(queue, actor string) (about map[string]any, tells string) {
	r.Helper()
	m := r.sent(queue)
	var args []json.RawMessage
	check(r, json.Unmarshal(m.Args, &args), json.Unmarshal(args[0], &about))
	if m.Actor != actor || m.Queue != queue || string(m.Kwargs) != "{}" || len(args) != 2 {
		r.Errorf("the callback is %+v", m)
	}
	return about, string(args[1])
}

func TestWhatFollowsFromAMessageIsSent(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default", "python", "spent") // the order of two that follow from one attempt is not certain
	h := adders()
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "boom"}, func(context.Context, json.RawMessage) (string, error) {
		return "", errors.New("ValueError: no such thing")
	})
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "abort"}, func(context.Context, json.RawMessage) (string, error) {
		return "", opscore.Abort(errors.New("no"))
	})
	r.work(h, &worker{actors: map[string]string{"ok": "python", "bad": "python", "spent": "spent"}})

	id := r.send("add", "default", "[1,2]", "{}", `{"on_success":"ok","mine":3.0}`)
	about, tells := r.callback("python", "ok")
	if tells != "3" || about["message_id"] != id.String() || about["queue_name"] != "default" || fmt.Sprint(about["options"]) != "map[mine:3 on_success:ok]" {
		t.Errorf("on_success tells %s of %v", tells, about)
	}

	failed := r.send("boom", "default", `["a"]`, "{}", `{"max_retries":1,"min_backoff":0,"max_backoff":0,"on_failure":"bad","on_retry_exhausted":"spent"}`)
	want := map[any]bool{1.: true, 2.: true} // retries so far
	for range 2 {
		about, tells := r.callback("python", "bad")
		options := about["options"].(map[string]any)
		if tells != `{"message":"no such thing","type":"ValueError"}` || !want[options["retries"]] || options["traceback"] == nil {
			t.Errorf("on_failure tells %s of %v", tells, about)
		}
		delete(want, options["retries"])
	}
	if about, tells := r.callback("spent", "spent"); tells != `{"retries":1,"max_retries":1}` || about["message_id"] != failed.String() {
		t.Errorf("on_retry_exhausted tells %s of %v", tells, about)
	}
	r.send("abort", "default", "[]", "{}", `{"on_failure":"bad","on_retry_exhausted":"spent"}`)
	r.callback("python", "bad")
	r.until("all is sent", func() bool {
		return r.count("SELECT count(*) FROM opscore.task WHERE queue = $1 AND state <> 'completed'", dramatiq.SendActor) == 0
	})
	if n := r.waiting("python") + r.waiting("spent"); n != 0 {
		t.Errorf("%d more messages were sent", n)
	}
}

func TestAPipelineOfAlternatingLanguagesRuns(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default", "python")
	r.work(adders(), &worker{})
	last := `{"queue_name":"default","actor_name":"add","args":[100],"kwargs":{},"options":{},"message_id":"79b00dd9-0000-4000-8000-000000000003","message_timestamp":1700000000000}`
	step := `{"queue_name":"python","actor_name":"mul","args":["own arg", NaN],"kwargs":{},"options":{"pipe_target":` + last + `},` +
		`"message_id":"79b00dd9-0000-4000-8000-000000000002","message_timestamp":1700000000000}`
	r.send("add", "default", "[1,2]", "{}", `{"pipe_target":`+step+`}`)
	m := r.sent("python")
	if string(m.Args) != `["own arg", NaN,3]` || m.ID != "79b00dd9-0000-4000-8000-000000000002" || m.Timestamp.UnixMilli() != 1700000000000 {
		t.Errorf("the second step is %+v with args %s", m, m.Args)
	}
	r.publish("default", []byte(strings.Replace(last, "[100]", "[100,30]", 1))) // what Python does next
	r.until("the third step has run", func() bool {
		return r.count("SELECT count(*) FROM opscore.task WHERE id = '79b00dd9-0000-4000-8000-000000000003' AND convert_from(result, 'UTF8') = '130'") == 1
	})
	// A step that ignores the result, after a delay.
	late := strings.NewReplacer(`{"pipe_target":`+last+`}`, `{"delay":3600000,"pipe_ignore":true}`, "000002", "000004").Replace(step)
	r.send("add", "default", "[1,2]", "{}", `{"pipe_target":`+late+`}`)
	m = r.sent("python.DQ")
	if string(m.Args) != `["own arg", NaN]` || !strings.Contains(string(m.Options), `"delay":3600000`) || !strings.Contains(string(m.Options), `"eta":`) {
		t.Errorf("the delayed step is %s with options %s", m.Args, m.Options)
	}
}

// TestWhatFollowsIsSentWhenTheBrokerIsBack ends attempts while nothing can be published: nothing of it is lost.
func TestWhatFollowsIsSentWhenTheBrokerIsBack(t *testing.T) {
	n, at := node(t)
	r := newRigAt(t, at)
	r.declare(0, "default")
	h := opscore.Handlers{}
	started, release := make(chan struct{}, 2), make(chan struct{})
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "hold"}, func(_ context.Context, in json.RawMessage) (string, error) {
		started <- struct{}{}
		<-release
		if strings.Contains(string(in), "fail") {
			return "", errors.New("boom")
		}
		return "done", nil
	})
	r.work(h, &worker{})
	ok := r.send("hold", "default", "[]", "{}", `{"on_success":"notify"}`)
	bad := r.send("hold", "default", `["fail"]`, "{}", `{"max_retries":1,"min_backoff":3600000}`)
	<-started
	<-started
	check(t, n.Kill())
	close(release)
	r.completed(ok, `"done"`)
	r.until("the failure is recorded", func() bool {
		return r.count("SELECT count(*) FROM opscore.task WHERE id = $1 AND state = 'pending' AND attempt = 1 AND run_at > clock_timestamp() + interval '50 minutes'", bad) == 1
	})
	check(t, n.Start(t.Context()))
	r.ch = r.channel()
	// This worker takes it back as a message for an actor that nobody has.
	r.until("the callback has come", func() bool { return r.logged.has("actor=notify reason=actor_unknown") })
}

func TestAWorkerWorksAgainAfterAnAlarmAndATimeLimit(t *testing.T) {
	n, at := node(t)
	r := newRigAt(t, at)
	r.declare(0, "default")
	h := adders()
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "slow"}, func(ctx context.Context, _ json.RawMessage) (string, error) {
		<-ctx.Done()
		return "", context.Cause(ctx)
	})
	r.work(h, &worker{Worker: opscore.Worker{Slots: 2}})
	ids := []opscore.ID{}
	for range 4 {
		ids = append(ids, r.send("slow", "default", "[]", "{}", `{"time_limit":100,"max_retries":1,"min_backoff":0,"max_backoff":0,"on_failure":"notify"}`))
	}
	after := r.send("add", "default", "[1,2]", "{}", "{}")
	eval(t, n, `vm_memory_monitor:set_vm_memory_high_watermark(0.0000001)`)
	for _, id := range ids {
		if task := r.await(id); task.Code != opscore.CodeTimeout || task.Attempt != 2 {
			t.Errorf("%s %s after %d attempts", task.State, task.Code, task.Attempt)
		}
	}
	eval(t, n, `vm_memory_monitor:set_vm_memory_high_watermark(0.6)`)
	r.completed(after, "3")
	r.completed(r.send("add", "default", "[2,2]", "{}", "{}"), "4")
	r.until("the callbacks are sent", func() bool {
		return r.count("SELECT count(*) FROM opscore.task WHERE queue = $1 AND state = 'completed'", dramatiq.SendActor) == 8
	})
}

// TestWhatTakesLongerThanTheBrokersPatienceRunsOnce makes that three seconds: for a delay, and for a task.
func TestWhatTakesLongerThanTheBrokersPatienceRunsOnce(t *testing.T) {
	n, at := node(t)
	eval(t, n, `application:set_env(rabbit, consumer_timeout, 2000), application:set_env(rabbit, channel_tick_interval, 500)`)
	r := newRigAt(t, at)
	r.declare(0, "default")
	h := adders()
	runs := make(chan struct{}, 100)
	opscore.Handle(h, opscore.Actor[json.RawMessage, string]{Name: "long"}, func(context.Context, json.RawMessage) (string, error) {
		runs <- struct{}{}
		<-time.After(6 * time.Second)
		return "done", nil
	})
	r.work(h, &worker{Worker: opscore.Worker{Slots: 1}})
	long := r.send("long", "default", "[]", "{}", "{}")
	<-runs
	var behind []opscore.ID
	for range 5 { // that wait for the slot
		behind = append(behind, r.send("add", "default", "[1,2]", "{}", "{}"))
	}
	late := r.send("add", "default.DQ", "[2,2]", "{}", fmt.Sprintf(`{"eta":%d}`, time.Now().Add(5*time.Second).UnixMilli()))
	r.completed(long, `"done"`)
	for _, id := range behind {
		if task := r.completed(id, "3"); task.Attempt != 1 {
			t.Errorf("%d attempts", task.Attempt)
		}
	}
	r.completed(late, "4")
	if len(runs) > 0 {
		t.Error("the long task ran again")
	}
	if r.logged.has("delivery acknowledgement") || r.logged.has("it closed the channel") {
		t.Error("the broker closed the channel")
	}
}

// behind returns an adapter that reaches the database by way of a proxy.
func (r *rig) behind() (*dramatiq.Adapter, *nodes.Proxy) {
	r.Helper()
	at, err := url.Parse(r.url)
	check(r, err)
	proxy := nodes.NewProxy(r, at.Host)
	store, err := postgres.Open(r.Context(), proxy.URL(r.url), postgres.Options{Log: r.log})
	check(r, err)
	r.Cleanup(store.Close)
	return &dramatiq.Adapter{Client: &opscore.Client{Store: store}, Actors: map[string]string{"ok": "python"}}, proxy
}

// TestAnOutcomeWaitsUntilWhatFollowsIsStored takes the database away from what stores that, and from nothing else.
func TestAnOutcomeWaitsUntilWhatFollowsIsStored(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default", "python")
	adapter, proxy := r.behind()
	r.work(adders(), &worker{adapter: adapter})
	proxy.Cut()
	id := r.send("add", "default", "[1,2]", "{}", `{"on_success":"ok"}`)
	r.until("it cannot be stored", func() bool { return r.logged.has("cannot store what follows from an attempt") })
	if task, err := r.client.Get(t.Context(), id); err != nil || task.State != opscore.Running {
		t.Errorf("the task is %s, %v", task.State, err)
	}
	proxy.Heal()
	r.completed(id, "3")
	r.callback("python", "ok")
}

// TestATaskIsGivenBackIfWhatFollowsCannotBeStored stops the worker meanwhile: its handlers have returned, so that none is stuck.
func TestATaskIsGivenBackIfWhatFollowsCannotBeStored(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default", "python")
	adapter, proxy := r.behind()
	hurry := make(chan struct{})
	close(hurry)
	stop := r.work(adders(), &worker{Worker: opscore.Worker{Hurry: hurry, Grace: 100 * time.Millisecond}, adapter: adapter})
	proxy.Cut()
	id := r.send("add", "default", "[1,2]", "{}", `{"on_success":"ok"}`)
	r.until("it cannot be stored", func() bool { return r.logged.has("cannot store what follows from an attempt") })
	stop()
	task, err := r.client.Get(t.Context(), id)
	check(t, err)
	if task.State != opscore.Pending || task.Attempt != 0 || task.Lost != 0 || task.Code != opscore.CodeShutdown {
		t.Errorf("the task is %s (%s), %d attempts, lost %d times", task.State, task.Code, task.Attempt, task.Lost)
	}
}

func TestAWorkerWithoutAnAdapterGivesATaskBack(t *testing.T) {
	r := newRig(t)
	body, id := message("add", "default", "[1,2]", "{}", "{}")
	a, err := dramatiq.Adoption("default", body, nil)
	check(t, err)
	_, err = r.store.Adopt(t.Context(), opscore.Claim{}, []opscore.Adoption{a})
	check(t, err)
	stop := r.background((&opscore.Worker{Store: r.store, Handlers: adders(), Queues: []string{"default"}, Log: r.log}).Run)
	var task opscore.Task
	r.until("it is given back", func() bool {
		task, err = r.client.Get(t.Context(), id)
		return err == nil && task.Code == opscore.CodeArgsIncompatible
	})
	stop()
	if task.Attempt != 0 || !strings.Contains(task.Error, "no adapter") {
		t.Errorf("%d attempts, error %q", task.Attempt, task.Error)
	}
}
