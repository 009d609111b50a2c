package opscore

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

func TestAMessageThatCannotBeATaskIsRefusedWithTheFieldAndItsValue(t *testing.T) {
	for _, tc := range []struct {
		says   string // "" if it is accepted
		change func(a *Adoption)
	}{
		{"", func(*Adoption) {}},
		{"", func(a *Adoption) { a.Request.MaxAttempts, a.Attempts = ForeverAttempts, 1000 }},
		{"", func(a *Adoption) { a.Request.At, a.Request.ExpiresAt = time.Now(), time.Now().Add(-time.Hour) }},
		{"", func(a *Adoption) { a.Request.After, a.Request.ExpiresAfter = time.Hour, time.Minute }},
		{"", func(a *Adoption) { a.Made = time.Now().AddDate(100, 0, 0) }},
		{"the message has no id", func(a *Adoption) { a.Request.ID = ID{} }},
		{`unique key "k": a message has none`, func(a *Adoption) { a.Request.UniqueKey = "k" }},
		{`actor "a b": `, func(a *Adoption) { a.Request.Actor = "a b" }},
		{"args: not valid JSON", func(a *Adoption) { a.Request.Args = json.RawMessage("NaN") }},
		{"origin: not valid JSON", func(a *Adoption) { a.Origin = json.RawMessage("NaN") }},
		{"attempts -1: ", func(a *Adoption) { a.Attempts = -1 }},
		{"attempts 2147483647: ", func(a *Adoption) { a.Attempts = math.MaxInt32 }},
		{"made at ", func(a *Adoption) { a.Made = time.Unix(-1, 0) }},
		{"expires at ", func(a *Adoption) { a.Request.ExpiresAt = time.Unix(-1, 0) }},
		{"expires after -1ns", func(a *Adoption) { a.Request.ExpiresAfter = -1 }},
		{"retry: ", func(a *Adoption) { a.Retry.Jitter = 2 }},
	} {
		a := Adoption{Request: Request{ID: ID{1}, Actor: "a"}}
		tc.change(&a)
		err := a.Complete()
		if tc.says == "" {
			if err != nil || a.Request.Queue != DefaultQueue || a.Request.MaxAttempts == 0 || a.Request.Timeout != DefaultTimeout {
				t.Errorf("%+v, %v", a, err)
			}
		} else if !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), tc.says) {
			t.Errorf("got %v, want %s", err, tc.says)
		}
	}
}

func TestTheWaitOfATaskWinsOverItsActors(t *testing.T) {
	task := Task{Attempt: 3, MaxAttempts: 10, Retry: Backoff{Base: 15 * time.Second}}
	for name, end := range map[string]struct{ err, cause error }{
		"an error": {errors.New("boom"), nil}, "a timeout": {errors.New("boom"), errTimeout}, "a panic": {panicError{"ouch", nil}, nil},
	} {
		if o := outcome(&task, nil, end.err, end.cause, Backoff{Base: time.Hour}, 0.5); o.Delay != time.Minute {
			t.Errorf("%s: the wait is %s, want 1m", name, o.Delay)
		}
	}
	task.Retry = Backoff{}
	if o := outcome(&task, nil, errors.New("boom"), nil, Backoff{Base: time.Second}, 0.5); o.Delay != 4*time.Second {
		t.Errorf("without its own the wait is %s, want 4s", o.Delay)
	}
}

func TestABackoffIsWrittenSoThatItReadsTheSame(t *testing.T) {
	for want, b := range map[string]Backoff{
		`{}`: {},
		`{"base":"15s","factor":2,"jitter":0.3333333333333333,"max":"168h0m0s"}`: {15 * time.Second, 2, 1. / 3, 168 * time.Hour},
	} {
		doc, err := json.Marshal(b)
		var again Backoff
		if err := errors.Join(err, json.Unmarshal(doc, &again)); err != nil || string(doc) != want || again != b {
			t.Errorf("%s reads as %+v, %v; want %s", doc, again, err, want)
		}
	}
	doc, err := json.Marshal(Task{})
	if err != nil || strings.Contains(string(doc), "retry") || strings.Contains(string(doc), "origin") {
		t.Errorf("a task that was not adopted is %s, %v", doc, err)
	}
}
