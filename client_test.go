package opscore_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/opscoretest"
	"github.com/opscore/opscore/sqlite"
	"github.com/opscore/opscore/storetest"
)

type mail struct {
	To string `json:"to"`
}

var send = opscore.Actor[mail, string]{Name: "send", MaxAttempts: 3, Timeout: time.Minute}

var fetch = opscore.Actor[string, string]{Name: "fetch"}

// handlers registers fn as the handler of send.
func handlers(fn func(context.Context, mail) (string, error)) opscore.Handlers {
	h := opscore.Handlers{}
	opscore.Handle(h, send, fn)
	return h
}

func ok(context.Context, mail) (string, error) { return "sent", nil }

func submit(t *testing.T, env *opscoretest.Env, opts ...opscore.Option) opscore.ID {
	t.Helper()
	sub, err := send.Submit(t.Context(), env.Client, mail{"ann@example.com"}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return sub.ID
}

func TestWrongInputIsRefusedByNameAndStoresNothing(t *testing.T) {
	opscoretest.Run(t, handlers(ok), func(t *testing.T, env *opscoretest.Env) {
		for _, tc := range []struct {
			name string
			opt  opscore.Option
			args string
			says string
			code opscore.Code
		}{
			{name: "queue with a space", opt: opscore.Queue("a b"), says: `queue "a b"`},
			{name: "queue of 201 characters", opt: opscore.Queue(strings.Repeat("q", 201)), says: "1 to 200 characters"},
			{name: "priority over 100", opt: opscore.Priority(101), says: "priority 101: must be between -100 and 100"},
			{name: "priority under -100", opt: opscore.Priority(-101), says: "priority -101"},
			{name: "negative attempts", opt: opscore.MaxAttempts(-1), says: "max attempts -1"},
			{name: "negative delay", opt: opscore.After(-time.Second), says: "after -1s"},
			{name: "negative expiry", opt: opscore.ExpiresAfter(-time.Second), says: "expires after -1s"},
			{name: "negative timeout", opt: opscore.Timeout(-time.Second), says: "timeout -1s"},
			{name: "a timeout too short to be stored", opt: opscore.Timeout(time.Nanosecond), says: "timeout 1ns: must be at least 1ms"},
			{name: "a time before 1970", opt: opscore.At(time.Unix(-5, 0)), says: "between 1970 and the year 10000"},
			{name: "a time that JSON cannot hold", opt: opscore.At(time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -12*3600))), says: "between 1970"},
			{name: "an expiry that no store can hold", opt: opscore.ExpiresAt(time.Date(400_000, 1, 1, 0, 0, 0, 0, time.UTC)), says: "expires at"},
			{name: "an expiry before the start", opt: func(r *opscore.Request) { r.At, r.ExpiresAt = time.Now().Add(time.Hour), time.Now() }, says: "must be after"},
			{name: "long unique key", opt: opscore.Unique(strings.Repeat("k", 513)), says: "513 bytes, the limit is 512"},
			{name: "unique key that is not text", opt: opscore.Unique("\xff"), says: "not valid UTF-8"},
			{name: "label name with a space", opt: opscore.Labels(map[string]string{"a b": ""}), says: `label "a b"`},
			{name: "long label", opt: opscore.Labels(map[string]string{"a": strings.Repeat("v", 513)}), says: "label a: value has 513 bytes"},
			{name: "args that are not JSON", args: `{"to":}`, says: "not valid JSON", code: opscore.CodeInvalid},
			{name: "args that are not UTF-8", args: "\"a\xff\"", says: "byte 2 is not valid UTF-8"},
			{name: "two documents", args: `{} {}`, says: "not valid JSON"},
			{name: "large args", args: `"` + strings.Repeat("x", 1<<20) + `"`, says: "1048578 bytes, the limit is 1048576", code: opscore.CodeTooLarge},
		} {
			t.Log(tc.name)
			r := send.Request(mail{})
			if tc.args != "" {
				r.Args = json.RawMessage(tc.args)
			}
			if tc.opt != nil {
				tc.opt(&r)
			}
			_, err := env.Client.Submit(t.Context(), send.Request(mail{}), r)
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error = %v, want it to say %q", err, tc.says)
			}
			if tc.code == "" {
				tc.code = opscore.CodeInvalid
			}
			if opscore.CodeOf(err) != tc.code {
				t.Errorf("code = %s, want %s", opscore.CodeOf(err), tc.code)
			}
		}
		tasks, err := env.Client.List(t.Context(), opscore.Filter{})
		if err != nil || len(tasks) != 0 {
			t.Errorf("stored %d tasks, %v", len(tasks), err)
		}
	})
}

func TestASubmitLeavesItsCallersRequestsAlone(t *testing.T) {
	opscoretest.Run(t, handlers(ok), func(t *testing.T, env *opscoretest.Env) {
		requests := []opscore.Request{send.Request(mail{"a"}), send.Request(mail{"b"})}
		for range 2 {
			subs, err := env.Client.Submit(t.Context(), requests...)
			if err != nil || subs[0].Duplicate || subs[1].Duplicate {
				t.Errorf("submit = %+v, %v", subs, err)
			}
		}
		if requests[0].ID != (opscore.ID{}) || requests[0].Queue != "" {
			t.Errorf("the caller's request is now %+v", requests[0])
		}
	})
}

func TestAnInputThatDoesNotEncodeIsRefused(t *testing.T) {
	bad := opscore.Actor[chan int, string]{Name: "bad"}
	h := handlers(ok)
	opscoretest.Run(t, h, func(t *testing.T, env *opscoretest.Env) {
		_, err := bad.Submit(t.Context(), env.Client, nil)
		if !errors.Is(err, opscore.ErrInvalid) || !strings.Contains(err.Error(), "args of actor bad") {
			t.Errorf("error = %v", err)
		}
	})
}

func TestAnActorsDefaultsHoldUnlessACallOverridesThem(t *testing.T) {
	a := opscore.Actor[mail, string]{
		Name: "a", Queue: "mail", Priority: 5, After: time.Hour, ExpiresAfter: 2 * time.Hour, MaxAttempts: 4, Timeout: time.Second,
		Unique: func(m mail) string { return m.To }, Labels: map[string]string{"team": "x", "kind": "y"},
	}
	r := a.Request(mail{"k"})
	if r.Queue != "mail" || r.Priority != 5 || r.After != time.Hour || r.ExpiresAfter != 2*time.Hour || r.MaxAttempts != 4 ||
		r.Timeout != time.Second || r.UniqueKey != "k" || len(r.Labels) != 2 {
		t.Errorf("defaults: %+v", r)
	}
	at := time.Now()
	r = a.Request(mail{"k"}, opscore.Queue("other"), opscore.Priority(-1), opscore.At(at), opscore.ExpiresAt(at.Add(time.Hour)),
		opscore.MaxAttempts(1), opscore.Timeout(time.Minute), opscore.Unique("mine"), opscore.Labels(map[string]string{"kind": "z"}))
	if r.Queue != "other" || r.Priority != -1 || r.After != 0 || !r.At.Equal(at) || r.ExpiresAfter != 0 || r.MaxAttempts != 1 ||
		r.Timeout != time.Minute || r.UniqueKey != "mine" || r.Labels["team"] != "x" || r.Labels["kind"] != "z" {
		t.Errorf("overridden: %+v", r)
	}
	if a.Labels["kind"] != "y" {
		t.Error("a call changed the actor's labels")
	}
}

func TestASubmitWarnsWhenNoLiveWorkerWouldRunTheTask(t *testing.T) {
	opscoretest.Run(t, handlers(ok), func(t *testing.T, env *opscoretest.Env) {
		sub, err := send.Submit(t.Context(), env.Client, mail{}, opscore.Queue("nobody"))
		if err != nil || len(sub.Warnings) != 1 || sub.Warnings[0].Code != opscore.CauseQueueNotListened {
			t.Errorf("submission = %+v, %v", sub, err)
		}
		if task, err := env.Client.Get(t.Context(), sub.ID); err != nil || task.State != opscore.Pending {
			t.Errorf("the task is not stored: %+v, %v", task, err)
		}
	})
}

func TestAWarningIsNeverOlderThanItsSubmit(t *testing.T) {
	opscoretest.Run(t, handlers(ok), func(t *testing.T, env *opscoretest.Env) {
		looks := 0
		c := &opscore.Client{Store: &storetest.Faulty{Store: env.Store, Before: func(method string, _ int) error {
			if method == "Workers" {
				looks++
			}
			return nil
		}}}
		warned := func(what string, want int, queue string) {
			t.Helper()
			sub, err := send.Submit(t.Context(), c, mail{}, opscore.Queue(queue))
			if err != nil || len(sub.Warnings) != want {
				t.Errorf("%s: warnings %v, want %d; %v", what, sub.Warnings, want, err)
			}
		}
		for range 100 {
			warned("a worker is live", 0, "default")
		}
		if looks != 1 {
			t.Errorf("100 submits at once looked %d times", looks)
		}
		if err := c.Pause(t.Context(), "default", "ann", ""); err != nil {
			t.Fatal(err)
		}
		warned("this client paused the queue", 1, "default")
		if err := env.Client.Resume(t.Context(), "default"); err != nil {
			t.Fatal(err)
		}
		warned("another client resumed it", 0, "default")
		if err := env.Client.Pause(t.Context(), "default", "ann", ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		warned("another client paused it a second ago", 1, "default")
		warned("nobody listens", 1, "nobody")
	})
}

func TestRequestsOfOneSubmitShareOneTransaction(t *testing.T) {
	opscoretest.Run(t, handlers(ok), func(t *testing.T, env *opscoretest.Env) {
		tx, err := env.Store.(*sqlite.Store).DB().BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		for _, reqs := range [][]opscore.Request{
			{send.Request(mail{}, sqlite.In(tx)), send.Request(mail{})},
			{send.Request(mail{}), send.Request(mail{}, sqlite.In(tx))},
		} {
			if _, err := env.Client.Submit(t.Context(), reqs...); !errors.Is(err, opscore.ErrInvalid) {
				t.Errorf("error = %v", err)
			}
		}
	})
}

func TestWaitReportsTasksThatEndWithoutAResult(t *testing.T) {
	h := handlers(func(context.Context, mail) (string, error) { return "", opscore.Abort(errors.New("no such mailbox")) })
	opscoretest.Run(t, h, func(t *testing.T, env *opscoretest.Env) {
		id := submit(t, env)
		_, err := send.Wait(t.Context(), env.Client, id)
		var failed *opscore.TaskError
		if !errors.As(err, &failed) || failed.Task.Code != opscore.CodeAborted || !strings.Contains(err.Error(), "no such mailbox") {
			t.Errorf("error = %v", err)
		}
		if _, err := env.Client.Wait(t.Context(), opscore.ID{1}); !errors.Is(err, opscore.ErrTaskNotFound) {
			t.Errorf("wait for an unknown task: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := env.Client.Wait(ctx, submit(t, env, opscore.After(time.Hour))); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait beyond its context: %v", err)
		}
	})
}
