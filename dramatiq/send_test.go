package dramatiq_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/dramatiq"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
)

func (r *rig) sender(q dramatiq.Queues) *dramatiq.Sender {
	r.Helper()
	s, err := dramatiq.NewSender(r.session, q)
	check(r, err)
	return s
}

func newMessage(t testing.TB, actor, queue, args string) dramatiq.Message {
	t.Helper()
	m, err := dramatiq.NewMessage(actor, queue, []byte(args), nil)
	check(t, err)
	return m
}

func TestASentMessageIsWhatPythonWouldHaveSent(t *testing.T) {
	r := newRig(t)
	m, err := newMessage(t, "add", "jobs", `[1,3.0,"é<"]`).WithOption("broker_priority", []byte("5"))
	check(t, err)
	m, err = m.WithOption("trace", []byte(`{"id":1}`))
	check(t, err, r.sender(dramatiq.Queues{}).Send(t.Context(), m))
	r.declare(0, "jobs") // as Python would: a mismatch is an error
	d := r.get("jobs")
	want := fmt.Sprintf(`{"queue_name":"jobs","actor_name":"add","args":[1,3.0,"é<"],"kwargs":{},"options":{"broker_priority":5,"trace":{"id":1}},`+
		`"message_id":"%s","message_timestamp":%d}`, m.ID, m.Timestamp.UnixMilli())
	if string(d.Body) != want || d.DeliveryMode != amqp.Persistent || d.Priority != 5 || d.Headers != nil {
		t.Errorf("got %s, mode %d, priority %d, headers %v\nwant %s", d.Body, d.DeliveryMode, d.Priority, d.Headers, want)
	}
	before := time.Now()
	check(t, r.sender(dramatiq.Queues{}).Send(t.Context(), newMessage(t, "add", "jobs", "[1]").Delayed(time.Hour)))
	late, err := dramatiq.Decode(r.get("jobs.DQ").Body)
	check(t, err)
	var options struct {
		ETA int64 `json:"eta"`
	}
	check(t, json.Unmarshal(late.Options, &options))
	if wait := time.UnixMilli(options.ETA).Sub(before); late.Queue != "jobs.DQ" || wait < time.Hour-time.Second || wait > time.Hour+time.Minute {
		t.Errorf("delayed: queue_name %s, due in %s", late.Queue, wait)
	}
}

// TestQueuesOfEitherSideAreUsedByTheOther declares them first here, then there, in every way that Dramatiq can be configured.
func TestQueuesOfEitherSideAreUsedByTheOther(t *testing.T) {
	r := newRig(t)
	for i, q := range []dramatiq.Queues{{}, {MaxPriority: 10}, {DeadFor: time.Hour}, {MaxPriority: 255, DeadFor: time.Minute}} {
		ours := fmt.Sprintf("ours%d", i)
		check(t, r.sender(q).Send(t.Context(), newMessage(t, "add", ours, "[1,2]")))
		args := amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": ours + ".XQ"}
		if q.MaxPriority > 0 {
			args["x-max-priority"] = int32(q.MaxPriority)
		}
		ttl := int32(604800000)
		if q.DeadFor > 0 {
			ttl = int32(q.DeadFor.Milliseconds())
		}
		for name, with := range map[string]amqp.Table{ours: args, ours + ".DQ": args, ours + ".XQ": {"x-message-ttl": ttl}} {
			if _, err := r.ch.QueueDeclare(name, true, false, false, false, with); err != nil {
				t.Fatalf("%+v: %s: %v", q, name, err)
			}
		}
	}
	r.declare(10, "theirs") // and the worker does not know of the priorities
	id := r.send("add", "theirs", "[2,3]", "{}", `{"broker_priority":9}`)
	r.work(adders(), &worker{source: dramatiq.Options{Queues: map[string][]string{"theirs": nil}}})
	if task := r.completed(id, "5"); task.Priority != 9 {
		t.Errorf("priority %d", task.Priority)
	}
	if !r.logged.has("x-max-priority") {
		t.Error("the log does not say what differs")
	}
	check(t, r.sender(dramatiq.Queues{}).Send(t.Context(), newMessage(t, "add", "theirs", "[1,2]")))
}

// refusal fails the test if do takes longer, or does not fail.
func refusal(t *testing.T, limit time.Duration, do func() error) error {
	t.Helper()
	began := time.Now()
	err := do()
	if took := time.Since(began); err == nil || took > limit {
		t.Errorf("%v after %s, want an error within %s", err, took, limit)
	}
	return err
}

func TestASendIntoABlackHoleFailsInTime(t *testing.T) {
	r := newRig(t)
	proxy := nodes.NewProxy(t, nodes.Broker(t).Addr())
	at, err := url.Parse(r.at)
	check(t, err)
	at.Host = proxy.Addr()
	r.session = r.connect(at.String())
	s := r.sender(dramatiq.Queues{})
	check(t, s.Send(t.Context(), newMessage(t, "add", "default", "[1,2]")))
	proxy.Blackhole()
	for range 2 {
		err := refusal(t, 10*time.Second, func() error { return s.Send(t.Context(), newMessage(t, "add", "default", "[1,2]")) })
		t.Log(err)
	}
	proxy.Heal()
	proxy.Reset()
	r.until("it sends again", func() bool { return s.Send(t.Context(), newMessage(t, "add", "default", "[1,2]")) == nil })
}

func TestASendThatTheBrokerDoesNotTakeFails(t *testing.T) {
	r := newRig(t)
	s := r.sender(dramatiq.Queues{})
	check(t, s.Send(t.Context(), newMessage(t, "add", "default", "[1,2]")))
	_, err := r.ch.QueueDelete("default", false, false, false)
	check(t, err, s.Send(t.Context(), newMessage(t, "add", "default", "[3,4]"))) // it is made again
	if m, err := dramatiq.Decode(r.get("default").Body); err != nil || string(m.Args) != "[3,4]" {
		t.Errorf("%s, %v", m.Args, err)
	}
	_, err = r.ch.QueueDeclare("full", true, false, false, false, amqp.Table{"x-max-length": int32(1), "x-overflow": "reject-publish"})
	check(t, err, s.Send(t.Context(), newMessage(t, "add", "full", "[]")))
	if err := refusal(t, 6*time.Second, func() error { return s.Send(t.Context(), newMessage(t, "add", "full", "[]")) }); !strings.Contains(fmt.Sprint(err), "full") {
		t.Error(err)
	}
	n := nodes.Broker(t)
	at, err := url.Parse(r.at)
	check(t, err)
	_, err = n.Eval(t.Context(), fmt.Sprintf(`ok = rabbit_auth_backend_internal:add_user(<<"reader">>, <<"pw">>, <<"t">>),
		ok = rabbit_auth_backend_internal:set_permissions(<<"reader">>, <<"%s">>, <<".*">>, <<"^$">>, <<".*">>, <<"t">>)`, at.Path[1:]))
	check(t, err)
	t.Cleanup(func() {
		_, err := n.Eval(context.WithoutCancel(t.Context()), `rabbit_auth_backend_internal:delete_user(<<"reader">>, <<"t">>)`)
		check(t, err)
	})
	at.User = url.UserPassword("reader", "pw")
	r.session = r.connect(at.String())
	err = refusal(t, 6*time.Second, func() error {
		return r.sender(dramatiq.Queues{}).Send(t.Context(), newMessage(t, "add", "default", "[]"))
	})
	t.Log(err)
}

type photo struct {
	Name  string `json:"name"`
	Width int    `json:"width"`
}

func TestARemoteActorSendsExactlyIfItsTransactionCommits(t *testing.T) {
	r := newRig(t)
	r.declare(0, "images")
	resize := dramatiq.Remote[photo]{Name: "resize", Queue: "images", Options: map[string]any{"max_retries": 3}}
	r.work(adders(), &worker{})
	for _, commit := range []bool{false, true} {
		tx, err := r.store.Pool().Begin(t.Context())
		check(t, err)
		sub, err := resize.Submit(t.Context(), r.client, photo{"a.jpg", 200}, postgres.In(tx))
		check(t, err)
		if !commit {
			check(t, tx.Rollback(t.Context()))
			continue
		}
		check(t, tx.Commit(t.Context()))
		m, err := dramatiq.Decode(r.get("images").Body)
		check(t, err)
		if m.ID == sub.ID.String() || m.Actor != "resize" || string(m.Kwargs) != `{"name":"a.jpg","width":200}` || string(m.Options) != `{"max_retries":3}` {
			t.Errorf("sent %+v", m)
		}
		r.completed(sub.ID, fmt.Sprintf(`{"message_id":"%s","queue_name":"images"}`, m.ID))
	}
	resize.Positional, resize.Delay = true, time.Hour
	_, err := resize.Submit(t.Context(), r.client, photo{"b.jpg", 1})
	check(t, err)
	if m, err := dramatiq.Decode(r.get("images.DQ").Body); err != nil || string(m.Args) != `["b.jpg",1]` || string(m.Kwargs) != "{}" {
		t.Errorf("sent %+v, %v", m, err)
	}
	if r.waiting("images") != 0 {
		t.Error("more was sent than was committed")
	}
	if _, err := (dramatiq.Remote[int]{Name: "resize"}).Request(1); opscore.CodeOf(err) != opscore.CodeInvalid {
		t.Errorf("an input that is no object: %v", err)
	}
}

// TestTheDocumentedPermissionsAreEnough takes queues over that exist, and makes others.
func TestTheDocumentedPermissionsAreEnough(t *testing.T) {
	r := newRig(t)
	n := nodes.Broker(t)
	r.declare(0, "images", "mail")
	for i, may := range []struct{ queue, configure, write, read string }{
		{"images", `^$`, `^amq\\.default$`, `^(images|mail)(\\.DQ)?$`},
		{"made", `^(made|mail)(\\.[DX]Q)?$`, `^((made|mail)(\\.[DX]Q)?|amq\\.default)$`, `^(made|mail)(\\.[DX]Q)?$`},
	} {
		at, err := url.Parse(r.at)
		check(t, err)
		name := fmt.Sprintf("limited%d", i)
		_, err = n.Eval(t.Context(), fmt.Sprintf(`ok = rabbit_auth_backend_internal:add_user(<<"%[1]s">>, <<"pw">>, <<"t">>),
			ok = rabbit_auth_backend_internal:set_permissions(<<"%[1]s">>, <<"%[2]s">>, <<"%[3]s">>, <<"%[4]s">>, <<"%[5]s">>, <<"t">>)`,
			name, at.Path[1:], may.configure, may.write, may.read))
		check(t, err)
		t.Cleanup(func() {
			_, err := n.Eval(context.WithoutCancel(t.Context()), `rabbit_auth_backend_internal:delete_user(<<"`+name+`">>, <<"t">>)`)
			check(t, err)
		})
		at.User = url.UserPassword(name, "pw")
		stop := r.work(adders(), &worker{
			session: r.connect(at.String()), source: dramatiq.Options{Queues: map[string][]string{may.queue: nil}}, actors: map[string]string{"notify": "mail"},
		})
		r.until("the queue is there", func() bool {
			_, err := r.channel().QueueDeclarePassive(may.queue+".DQ", true, false, false, false, nil)
			return err == nil
		})
		r.completed(r.send("add", may.queue, "[1,2]", "{}", `{"on_success":"notify"}`), "3")
		r.callback("mail", "notify")
		nobody := r.send("nobody", may.queue, "[]", "{}", "{}")
		r.orphan(opscore.CodeActorUnknown, nobody)
		r.get(may.queue + ".XQ")
		stop()
	}
}
