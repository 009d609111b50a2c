package dramatiq_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/dramatiq"
	"github.com/opscore/opscore/internal/nodes"
)

// fill puts numbered messages with all that a message may have into a queue.
func (r *rig) fill(queue string, n int) {
	r.Helper()
	ch := r.channel()
	check(r, ch.Confirm(false))
	for i := range n {
		p := amqp.Publishing{
			Headers: amqp.Table{"x-made-by": "the test", "nested": amqp.Table{"n": int32(i)}}, ContentType: "application/json", DeliveryMode: amqp.Persistent,
			Priority: uint8(i % 3), Expiration: "3600000", MessageId: fmt.Sprint(i), Body: fmt.Appendf(nil, `{"n":%d}`, i),
		}
		c, err := ch.PublishWithDeferredConfirmWithContext(r.Context(), "", queue, true, false, p)
		check(r, err)
		if i == n-1 {
			c.Wait()
		}
	}
}

// found counts the messages of a queue by their ids, and checks that they are as they were.
func (r *rig) found(queue string) (times map[string]int, all int) {
	r.Helper()
	ch := r.channel()
	times = map[string]int{}
	for {
		m, ok, err := ch.Get(queue, true)
		check(r, err)
		if !ok {
			return times, all
		}
		all++
		times[m.MessageId]++
		n := m.Headers["nested"].(amqp.Table)["n"]
		if fmt.Sprint(n) != m.MessageId || m.Headers["x-made-by"] != "the test" || len(m.Headers) != 2 || m.ContentType != "application/json" || m.DeliveryMode != amqp.Persistent ||
			fmt.Sprint(m.Priority) != fmt.Sprint(n.(int32)%3) || m.Expiration != "3600000" || string(m.Body) != fmt.Sprintf(`{"n":%d}`, n) {
			r.Errorf("a message is %+v", m)
		}
	}
}

func TestDramatiqsQueuesAreMigratedWithAllTheirMessages(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	for _, q := range []string{"default", "default.DQ", "default.XQ"} {
		r.fill(q, 50)
	}
	want := dramatiq.Queues{MaxPriority: 10}
	all, err := dramatiq.Migrate(t.Context(), r.session, want, "default", false)
	if !errors.Is(err, dramatiq.ErrInUse) || len(all) != 2 || all[1].Was != "" || !strings.Contains(all[1].Differs, "x-max-priority") {
		t.Errorf("%+v, %v; want that it is in use", all, err)
	}
	stop := r.channel()
	_, err = stop.Consume("default", "somebody", false, false, false, false, nil)
	check(t, err)
	if _, err := dramatiq.Migrate(t.Context(), r.session, want, "default", true); err == nil || !strings.Contains(err.Error(), "queue default: it still has 1 consumers") {
		t.Errorf("while somebody consumes: %v", err)
	}
	check(t, stop.Close())
	all, err = dramatiq.Migrate(t.Context(), r.session, want, "default", true)
	if err != nil || len(all) != 3 || all[0].Was != "" || all[1].Moved != 50 || all[2].Moved != 50 {
		t.Errorf("%+v, %v; want two queues made anew, with 50 messages each", all, err)
	}
	for _, q := range []string{"default", "default.DQ", "default.XQ"} {
		if times, n := r.found(q); n != 50 || len(times) != 50 {
			t.Errorf("queue %s has %d messages, want each of 50 once", q, n)
		}
	}
}

func TestAMessageThatWouldGoToMoreQueuesIsNotMoved(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	r.fill("default", 50)
	check(t, r.ch.PublishWithContext(t.Context(), "", "default", true, false, amqp.Publishing{Headers: amqp.Table{"CC": []any{"other"}}}))
	r.until("it has come", func() bool { return r.waiting("default") == 51 })
	for range 2 {
		_, err := dramatiq.Migrate(t.Context(), r.session, dramatiq.Queues{MaxPriority: 10}, "default", true)
		if err == nil || !strings.Contains(err.Error(), "has the header CC") {
			t.Errorf("%v; want that it has the header", err)
		}
		r.until("it is back", func() bool { return r.waiting("default") == 51 })
		if _, err := r.channel().QueueDeclarePassive("opscore-moving-default", true, false, false, false, nil); err == nil {
			t.Error("there is a queue aside, although nothing could be moved")
		}
	}
}

// TestWhatIsAsideIsSaid has such a message in the queue again after others were moved aside.
func TestWhatIsAsideIsSaid(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	_, err := r.ch.QueueDeclare("opscore-moving-default", true, false, false, false, nil)
	check(t, err)
	r.fill("opscore-moving-default", 50)
	check(t, r.ch.PublishWithContext(t.Context(), "", "default", true, false, amqp.Publishing{Headers: amqp.Table{"CC": []any{"other"}}}))
	r.until("it has come", func() bool { return r.waiting("default") == 1 })
	all, err := dramatiq.Ensure(t.Context(), r.session, dramatiq.Queues{}, "default")
	if err != nil || len(all) != 3 || all[0].Aside != 0 || all[1].Aside != 50 {
		t.Errorf("%+v, %v; want 50 messages aside", all, err)
	}
	_, err = dramatiq.Migrate(t.Context(), r.session, dramatiq.Queues{MaxPriority: 10}, "default", true)
	if err == nil || !strings.Contains(err.Error(), "has the header CC") || !strings.Contains(err.Error(), "50 messages of it are in queue opscore-moving-default") {
		t.Errorf("%v; want that it has the header, and what is aside", err)
	}
	if errors.Is(err, dramatiq.ErrInUse) || !errors.Is(err, opscore.ErrConflict) {
		t.Errorf("%v: another conflict is taken for %v", err, dramatiq.ErrInUse)
	}
}

// TestWhoMayNotMoveMessagesLeavesThem has users who lack each of the permissions that are needed.
func TestWhoMayNotMoveMessagesLeavesThem(t *testing.T) {
	r := newRig(t)
	n := nodes.Broker(t)
	r.declare(0, "default")
	r.fill("default", 60)
	for name, may := range map[string][3]string{
		"unread": {".*", ".*", "^default"}, "unwritten": {".*", "^default", ".*"}, "unconfigured": {"^default", ".*", ".*"},
	} {
		at, err := url.Parse(r.at)
		check(t, err)
		eval(t, n, fmt.Sprintf(`ok = rabbit_auth_backend_internal:add_user(<<"%[1]s">>, <<"pw">>, <<"t">>),
			ok = rabbit_auth_backend_internal:set_permissions(<<"%[1]s">>, <<"%[2]s">>, <<"%[3]s">>, <<"%[4]s">>, <<"%[5]s">>, <<"t">>)`,
			name, at.Path[1:], may[0], may[1], may[2]))
		t.Cleanup(func() {
			_, err := n.Eval(context.WithoutCancel(t.Context()), `rabbit_auth_backend_internal:delete_user(<<"`+name+`">>, <<"t">>)`)
			check(t, err)
		})
		at.User = url.UserPassword(name, "pw")
		_, err = dramatiq.Migrate(t.Context(), r.connect(at.String()), dramatiq.Queues{MaxPriority: 10}, "default", true)
		if err == nil || !strings.Contains(err.Error(), "refused for user '"+name+"'") {
			t.Errorf("%s: %v; want that it is refused", name, err)
		}
		r.until("they are there", func() bool { return r.waiting("default") == 60 })
		if _, err := r.channel().QueueDeclarePassive("opscore-moving-default", true, false, false, false, nil); err == nil {
			t.Errorf("%s: there is a queue aside, although nothing could be moved", name)
		}
	}
}

// TestAPolicyThatDropsMessagesEndsAMigration has policies for all queues whose names begin like those of opscore's, as those aside do.
func TestAPolicyThatDropsMessagesEndsAMigration(t *testing.T) {
	for _, tc := range []struct {
		policy string
		kept   int // at least; of what may stay for a moment that is not known
		says   []string
	}{
		{`{<<"max-length">>, 10}`, 50, []string{"did not confirm", "opscore-moving-default", "list_policies"}},
		{`{<<"max-length">>, 10}, {<<"overflow">>, <<"drop-head">>}`, 50, []string{"did not confirm", "opscore-moving-default"}},
		{`{<<"message-ttl">>, 1}`, 0, []string{"messages were moved from queue default, which has ", " left, to queue opscore-moving-default, which had 0 before, and it has only "}},
	} {
		t.Run(tc.policy, func(t *testing.T) {
			n, at := node(t)
			r := newRigAt(t, at)
			r.declare(0, "default")
			r.fill("default", 50)
			eval(t, n, `ok = rabbit_policy:set(<<"app">>, <<"limit">>, <<"^opscore">>, [`+tc.policy+`], 0, <<"queues">>, <<"t">>)`)
			for range 2 {
				all, err := dramatiq.Migrate(t.Context(), r.session, dramatiq.Queues{MaxPriority: 10}, "default", true)
				if err == nil {
					t.Fatalf("%+v: want an error", all)
				}
				for _, s := range tc.says {
					if !strings.Contains(err.Error(), s) {
						t.Errorf("%v does not say %q", err, s)
					}
				}
				if tc.kept == 0 {
					break // what is done again has nothing to say of what was lost before
				}
				r.until("all are there", func() bool { return r.waiting("default")+r.waiting("opscore-moving-default") >= tc.kept })
			}
			eval(t, n, `ok = rabbit_policy:delete(<<"app">>, <<"limit">>, <<"t">>)`)
			_, err := dramatiq.Migrate(t.Context(), r.session, dramatiq.Queues{MaxPriority: 10}, "default", true)
			if times, _ := r.found("default"); err != nil || len(times) < tc.kept {
				t.Errorf("%d messages are there, %v; want %d", len(times), err, tc.kept)
			}
		})
	}
}

// TestAMigrationThatIsStoppedAnywhereLosesNothing stops it again and again, until it gets through.
func TestAMigrationThatIsStoppedAnywhereLosesNothing(t *testing.T) {
	r := newRig(t)
	r.declare(0, "default")
	const n = 300
	r.fill("default", n)
	stopped := 0
	for priorities := 1; priorities <= 5; priorities++ {
		for limit := 20 * time.Millisecond; ; limit += limit / 4 {
			ctx, cancel := context.WithTimeout(t.Context(), rand.N(limit))
			_, err := dramatiq.Migrate(ctx, r.session, dramatiq.Queues{MaxPriority: priorities}, "default", true)
			cancel()
			if err == nil {
				break
			}
			stopped++
			r.until("its connection is gone", func() bool {
				for _, q := range []string{"default", "opscore-moving-default"} {
					if found, err := r.channel().QueueDeclarePassive(q, true, false, false, false, nil); err == nil && found.Consumers > 0 {
						return false
					}
				}
				return true
			})
		}
	}
	all, err := dramatiq.Ensure(t.Context(), r.session, dramatiq.Queues{MaxPriority: 5}, "default")
	for _, c := range all {
		if err != nil || c.Made || c.Differs != "" {
			t.Errorf("%+v, %v; want all queues as they should be", c, err)
		}
	}
	times, found := r.found("default")
	t.Logf("stopped %d times: %d messages", stopped, found)
	if len(times) != n || found > n+stopped*dramatiq.MovedAtOnce {
		t.Errorf("%d of %d messages are there, %d with doubles", len(times), n, found)
	}
	if stopped < 10 {
		t.Errorf("it was stopped %d times only", stopped)
	}
	if _, err := r.channel().QueueDeclarePassive("opscore-moving-default", true, false, false, false, nil); err == nil {
		t.Error("the queue aside is still there")
	}
}
