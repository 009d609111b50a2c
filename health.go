package opscore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Info says what the worker is and what it says of itself right now; the zero value before it is registered. It may be called at
// any time.
func (w *Worker) Info() WorkerInfo {
	c := w.crew.Load()
	if c == nil {
		return WorkerInfo{}
	}
	info := c.identity()
	info.Live = info.State != WorkerGone && c.leased()
	info.Report = c.report()
	return info
}

// about describes this process and what it is connected to. A store or a broker that cannot be asked is not described: that it does
// not answer is said elsewhere.
func (c *crew) about(ctx context.Context) About {
	ctx, cancel := context.WithTimeout(ctx, HeartbeatEvery)
	defer cancel()
	a := About{Process: self(), Canaries: true}
	for _, x := range c.connected() {
		if l, ok := x.(Located); ok {
			e, err := l.Endpoint(ctx)
			e.Origin = c.Origins[e.Kind]
			if err == nil && !slices.Contains(a.Endpoints, e) {
				a.Endpoints = append(a.Endpoints, e)
			}
		}
	}
	return a
}

// connected is what the worker is connected to: its store, and what its sources are.
func (c *crew) connected() []any {
	all := []any{c.Store}
	for _, s := range c.sources {
		all = append(all, s)
	}
	return all
}

// report gathers what the worker says of itself.
func (c *crew) report() Report {
	c.mu.Lock()
	r := Report{Checks: []Check{c.checkStore()}, Skew: Duration(c.skew)}
	for _, run := range c.runs {
		if !run.done {
			r.Running++
		}
	}
	if c.drained.Took > 0 {
		d := c.drained
		r.Drained = &d
	}
	c.mu.Unlock()
	r.Checks = append(r.Checks, c.checkHandlers())
	for _, s := range c.connected() {
		if checked, ok := s.(Checked); ok {
			for _, check := range checked.Checks() {
				r.Add(check)
			}
		}
	}
	if c.OnReport != nil {
		c.OnReport(&r)
	}
	return r
}

// recording stands for outcomes among what the store refuses.
const recording = -1

// refusedFor is how long the store may refuse something before that is more than what a retry mends.
const refusedFor = HeartbeatEvery

// refuse notes that the store does not do what it is asked; done, that it does.
func (c *crew) refuse(what int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.refused[what]
	s.keep(err, time.Now())
	if c.refused == nil {
		c.refused = map[int]silence{}
	}
	c.refused[what] = s
}

func (c *crew) done(what int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.refused, what)
}

// checkStore says that the store does not answer, or that nothing can be taken, by no source, or recorded. c.mu is held.
func (c *crew) checkStore() Check {
	failed := func(text string, s silence) Check {
		return Check{Name: CheckStore, State: CheckFailed, Text: text + s.err.Error(), Since: s.since.UTC()}
	}
	lasts := func(s silence) bool { return s.err != nil && time.Since(s.since) >= refusedFor }
	if c.silence.err != nil {
		return failed("", c.silence)
	}
	if s := c.refused[recording]; lasts(s) {
		return failed("cannot record outcomes: ", s)
	}
	for i := range c.sources {
		s := c.refused[i]
		if !lasts(s) {
			break
		}
		if i == len(c.sources)-1 {
			return failed("cannot take tasks: ", s)
		}
	}
	return Check{Name: CheckStore, State: CheckOK}
}

// Add adds a check. Of several of one name the worst counts, with what all those say that are not well.
func (r *Report) Add(check Check) {
	i := slices.IndexFunc(r.Checks, func(c Check) bool { return c.Name == check.Name })
	if i < 0 {
		r.Checks = append(r.Checks, check)
		return
	}
	severity := []CheckState{CheckOK, CheckDegraded, CheckFailed}
	known := r.Checks[i]
	if slices.Index(severity, check.State) > slices.Index(severity, known.State) {
		known, check = check, known
	}
	if check.State != CheckOK && check.Text != "" && check.Text != known.Text {
		known.Text = strings.TrimPrefix(known.Text+"; "+check.Text, "; ")
	}
	r.Checks[i] = known
}

const (
	checkEvery  = 20 * time.Millisecond // whether the worker has become ready
	complainFor = 10 * time.Second      // how often it is said why a worker is not ready
)

// begin makes the worker ready once none of its checks fails. A worker that cannot say so is dismissed.
func (c *crew) begin(ctx context.Context) {
	for r := c.report(); len(r.Failed()) > 0; r = c.report() {
		if pause(ctx, checkEvery); ctx.Err() != nil {
			return
		}
	}
	for backoff := checkEvery; ctx.Err() == nil; backoff = min(2*backoff, HeartbeatEvery) {
		err := c.enter(ctx, WorkerReady)
		if err == nil {
			c.announce()
			return
		}
		if ctx.Err() == nil {
			c.log.Error("heartbeat failed", "worker", c.identity().ID, "error", err)
			pause(ctx, backoff)
		}
	}
}

// watch says why the worker is not ready, again and again, and when something has changed about what hinders it.
func (c *crew) watch(ctx context.Context) {
	tick := time.NewTicker(complainFor)
	defer tick.Stop()
	before := map[string]CheckState{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r := c.report()
		for _, check := range r.Checks {
			c.complain(check, cmp.Or(before[check.Name], CheckOK))
			before[check.Name] = check.State
		}
		c.endIfStuck()
	}
}

func (c *crew) complain(check Check, before CheckState) {
	attrs := []any{"check", check.Name, "why", check.Text}
	if !check.Since.IsZero() {
		attrs = append(attrs, "since", check.Since)
	}
	switch check.State {
	case CheckFailed:
		c.log.Warn("worker is not ready", attrs...)
	case CheckDegraded:
		if before != CheckDegraded {
			c.log.Warn("worker is degraded", attrs...)
		}
	case CheckOK:
		if before != CheckOK {
			c.log.Info("worker has recovered", "check", check.Name)
		}
	}
}

// stopText says why a worker ended.
func stopText(ctx context.Context) string {
	cause := context.Cause(ctx)
	if cause == nil || errors.Is(cause, context.Canceled) {
		return "stopped"
	}
	return fmt.Sprintf("stopped: %s", cause)
}
