// Package server answers over HTTP for what runs in this process.
package server

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/opscore/opscore"
)

// Probe answers for one worker:
//
//	GET /healthz  200 as long as the process serves; it says nothing else
//	GET /readyz   200 if the worker is ready, else 503, and as JSON which check says what
//	GET /metrics  for Prometheus
//
// A worker that is degraded is ready: its tasks run. On an address that others than this machine can reach, what tells more than a
// status needs the token; without a token it is not to be had there.
type Probe struct {
	Info  func() opscore.WorkerInfo // of the worker; its zero value means that it is still booting
	Token string                    // "" for none

	metrics *metrics
}

// NewProbe returns a probe for the worker that info describes.
func NewProbe(info func() opscore.WorkerInfo, token string) *Probe {
	return &Probe{Info: info, Token: token, metrics: newMetrics(info)}
}

// Observe counts an event: it is a hook for [opscore.Worker.OnEvent].
func (p *Probe) Observe(e opscore.Event) { p.metrics.observe(e) }

// Server returns a server for a listener on this address. Clients that are slow or say too much are cut off.
func (p *Probe) Server(at net.Addr) *http.Server {
	return &http.Server{
		Handler:           p.handler(onLoopback(at)),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
	}
}

func (p *Probe) handler(loopback bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { plain(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { p.ready(w, loopback || p.authorized(r)) })
	metrics := p.metrics.handler()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if !loopback && !p.authorized(r) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			plain(w, http.StatusUnauthorized, "metrics need the token of listen_token on an address that others can reach")
			return
		}
		metrics.ServeHTTP(w, r)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		// A page elsewhere may have let its own name lead to this machine.
		if loopback && !localName(r.Host) {
			plain(w, http.StatusMisdirectedRequest, "this address is for this machine only")
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// readiness is the body of /readyz.
type readiness struct {
	Ready  bool                `json:"ready"`
	State  opscore.WorkerState `json:"state"`
	Worker *opscore.ID         `json:"worker,omitempty"`
	Checks []opscore.Check     `json:"checks,omitempty"`
}

func (p *Probe) ready(w http.ResponseWriter, details bool) {
	info := p.Info()
	body := readiness{State: opscore.WorkerBooting}
	if info.State != "" {
		body.State = info.State
		body.Ready = info.Ready()
		if details {
			body.Worker, body.Checks = &info.ID, info.Report.Checks
		}
	}
	status := http.StatusOK
	if !body.Ready {
		status = http.StatusServiceUnavailable
	}
	doc, err := json.MarshalIndent(body, "", "  ")
	if err != nil {
		plain(w, http.StatusInternalServerError, "cannot describe the worker")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(doc, '\n')) // the client may have gone
}

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text + "\n"))
}

// authorized compares digests, so that the time it takes tells nothing about the token.
func (p *Probe) authorized(r *http.Request) bool {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	a, b := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(p.Token))
	return ok && p.Token != "" && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

func onLoopback(at net.Addr) bool {
	tcp, ok := at.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

func localName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.Trim(host, "[]")
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}
