package server_test

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/server"
)

const token = "correct horse battery"

// serve answers as if at an address, and returns the URL.
func serve(t *testing.T, p *server.Probe, at net.IP) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := p.Server(&net.TCPAddr{IP: at})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return "http://" + l.Addr().String()
}

func get(t *testing.T, url string, change ...func(*http.Request)) (status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(r)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	doc, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if answer.Header.Get("Access-Control-Allow-Origin") != "" || answer.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%s: headers %v", url, answer.Header)
	}
	return answer.StatusCode, string(doc)
}

func described(state opscore.WorkerState, checks ...opscore.Check) func() opscore.WorkerInfo {
	return func() opscore.WorkerInfo {
		return opscore.WorkerInfo{
			ID: opscore.ID{1}, State: state, Slots: 7, Build: "b",
			Report: opscore.Report{Checks: checks, Running: 3, LogDropped: 5, Skew: opscore.Duration(-2 * time.Second)},
		}
	}
}

func TestReadinessFollowsTheWorkersStateAndItsChecks(t *testing.T) {
	failed := opscore.Check{Name: opscore.CheckStore, State: opscore.CheckFailed, Text: "the disk is full"}
	degraded := opscore.Check{Name: opscore.CheckBroker, State: opscore.CheckDegraded, Text: "it cannot be reached"}
	for name, c := range map[string]struct {
		info  func() opscore.WorkerInfo
		ready bool
		state opscore.WorkerState
	}{
		"none yet":  {func() opscore.WorkerInfo { return opscore.WorkerInfo{} }, false, opscore.WorkerBooting},
		"booting":   {described(opscore.WorkerBooting), false, opscore.WorkerBooting},
		"ready":     {described(opscore.WorkerReady), true, opscore.WorkerReady},
		"degraded":  {described(opscore.WorkerReady, degraded), true, opscore.WorkerReady},
		"not ready": {described(opscore.WorkerReady, degraded, failed), false, opscore.WorkerReady},
		"draining":  {described(opscore.WorkerDraining), false, opscore.WorkerDraining},
		"gone":      {described(opscore.WorkerGone), false, opscore.WorkerGone},
	} {
		t.Run(name, func(t *testing.T) {
			at := serve(t, server.NewProbe(c.info, ""), net.IPv6loopback)
			if status, body := get(t, at+"/healthz"); status != http.StatusOK || body != "ok\n" {
				t.Errorf("/healthz = %d %q", status, body)
			}
			status, body := get(t, at+"/readyz")
			var doc struct {
				Ready  bool
				State  opscore.WorkerState
				Checks []opscore.Check
			}
			if err := json.Unmarshal([]byte(body), &doc); err != nil {
				t.Fatal(err)
			}
			want := map[bool]int{true: http.StatusOK, false: http.StatusServiceUnavailable}[c.ready]
			if status != want || doc.Ready != c.ready || doc.State != c.state || len(doc.Checks) != len(c.info().Report.Checks) {
				t.Errorf("/readyz = %d %s", status, body)
			}
			wantMetric := "opscore_worker_ready " + map[bool]string{true: "1", false: "0"}[c.ready] + "\n"
			if _, body := get(t, at+"/metrics"); !strings.Contains(body, wantMetric) {
				t.Errorf("/metrics has no %s", wantMetric)
			}
		})
	}
}

func TestMetricsCountWhatTheWorkerDoes(t *testing.T) {
	p := server.NewProbe(described(opscore.WorkerReady, opscore.Check{Name: opscore.CheckBroker, State: opscore.CheckDegraded}), "")
	e := opscore.Event{Kind: opscore.EventStarted, Queue: "mail", Actor: "send", Duration: 2 * time.Second}
	p.Observe(e)
	p.Observe(e)
	e.Kind, e.State = opscore.EventFinished, opscore.Completed
	p.Observe(e)
	e.Code = opscore.CodeTimeout
	p.Observe(e)
	e.Kind = opscore.EventLate
	p.Observe(e)
	p.Observe(opscore.Event{Kind: opscore.EventPruned, Count: 9})
	_, body := get(t, serve(t, p, net.IPv6loopback)+"/metrics")
	for _, line := range []string{
		`opscore_attempts_started_total{actor="send",queue="mail"} 2`,
		`opscore_attempts_finished_total{actor="send",outcome="completed",queue="mail"} 1`,
		`opscore_attempts_finished_total{actor="send",outcome="timeout",queue="mail"} 1`,
		`opscore_attempts_finished_total{actor="send",outcome="late",queue="mail"} 1`,
		`opscore_attempt_wait_seconds_sum{queue="mail"} 4`,
		`opscore_attempt_duration_seconds_count{actor="send",queue="mail"} 3`,
		`opscore_slots 7`, `opscore_tasks_running 3`, `opscore_check{check="broker"} 1`, `opscore_log_lines_dropped_total 5`,
		`opscore_clock_skew_seconds -2`,
	} {
		if !strings.Contains(body, line+"\n") {
			t.Errorf("/metrics has no %s", line)
		}
	}
}

func TestOnlyThisMachineIsAnsweredOnLoopback(t *testing.T) {
	at := serve(t, server.NewProbe(described(opscore.WorkerReady), ""), net.IPv6loopback)
	for host, want := range map[string]int{
		"localhost": 200, "localhost:9191": 200, "127.0.0.1": 200, "[::1]:80": 200, "127.1.2.3": 200,
		"rebound.example.com": 421, "127.0.0.1.example.com:80": 421, "192.0.2.1": 421,
	} {
		if got, _ := get(t, at+"/metrics", func(r *http.Request) { r.Host = host }); got != want {
			t.Errorf("host %s: status %d, want %d", host, got, want)
		}
	}
}

func TestOthersNeedTheTokenForMoreThanAStatus(t *testing.T) {
	check := opscore.Check{Name: opscore.CheckBroker, State: opscore.CheckDegraded, Text: "amqp://inside.example.com"}
	bearer := func(text string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", text) }
	}
	for _, has := range []string{"", token} {
		at := serve(t, server.NewProbe(described(opscore.WorkerReady, check), has), net.IPv4zero)
		if status, body := get(t, at+"/readyz"); status != http.StatusOK || strings.Contains(body, "inside") {
			t.Errorf("token %q: /readyz tells %d %s", has, status, body)
		}
		for _, with := range []string{"", "Bearer ", "Bearer wrong", "Basic " + token} {
			if status, body := get(t, at+"/metrics", bearer(with)); status != http.StatusUnauthorized || strings.Contains(body, "opscore_") {
				t.Errorf("token %q: /metrics with %q: %d", has, with, status)
			}
		}
	}
	at := serve(t, server.NewProbe(described(opscore.WorkerReady, check), token), net.IPv4zero)
	if status, body := get(t, at+"/readyz", bearer("Bearer "+token)); status != http.StatusOK || !strings.Contains(body, "inside") {
		t.Errorf("/readyz with the token: %d %s", status, body)
	}
	if status, _ := get(t, at+"/metrics", bearer("Bearer "+token)); status != http.StatusOK {
		t.Errorf("/metrics with the token: %d", status)
	}
	if status, _ := get(t, at+"/elsewhere"); status != http.StatusNotFound {
		t.Errorf("/elsewhere: %d", status)
	}
}
