package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/server"
)

// minToken is the length of a token that cannot be guessed by trying.
const minToken = 16

func probeSettings() []setting {
	return []setting{
		{
			key: "listen", env: "OPSCORE_LISTEN",
			usage: "answer /healthz, /readyz and /metrics at `[HOST:]PORT`; without a host only to this machine (default: none)",
			parse: func(c *config, raw []string) (err error) {
				c.listen, err = listenAddress(raw[0])
				return err
			},
		},
		{
			key: "listen_token", env: "OPSCORE_LISTEN_TOKEN", redact: func(string) string { return "…" },
			usage: "give metrics to whoever has this `TOKEN`, where others than this machine can reach them",
			parse: func(c *config, raw []string) error {
				if c.token = raw[0]; len(c.token) < minToken {
					return fmt.Errorf("must have at least %d characters", minToken)
				}
				return nil
			},
		},
	}
}

// listenAddress reads where to listen: without a host only this machine can connect.
func listenAddress(text string) (string, error) {
	wrong := errors.New("a port is needed, such as 9191, or an address such as 127.0.0.1:9191")
	if _, err := strconv.Atoi(text); err == nil {
		text = ":" + text
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", wrong
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return "", wrong
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// listenAgain is how often a port is tried again that somebody else has.
const listenAgain = 5 * time.Second

// serveProbe answers for the worker until ctx ends. That it cannot is no reason not to work: it is said, and tried again.
func serveProbe(ctx context.Context, p *server.Probe, addr string, log *slog.Logger) {
	said := ""
	for ctx.Err() == nil {
		l, err := listen(ctx, addr)
		if err == nil {
			said = ""
			err = serveOn(ctx, p, l, log)
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			log.Warn("no /healthz, /readyz and /metrics for now", "listen", addr, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(listenAgain):
		}
	}
}

func serveOn(ctx context.Context, p *server.Probe, l net.Listener, log *slog.Logger) error {
	s := p.Server(l.Addr())
	s.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelDebug) // of clients that do not speak HTTP
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })       // probes are short: there is nothing to wait for
	defer stop()
	log.Info("listening", "healthz", "http://"+l.Addr().String()+"/healthz", "readyz", "/readyz", "metrics", "/metrics")
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// tellSystemd passes a state on to systemd, if that has started this process and wants to know.
func tellSystemd(state string, log *slog.Logger) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("cannot tell systemd", "error", err)
	}
}

// feedWatchdog tells systemd that the process lives, as often as its unit asks for, until ctx ends. A store that does not answer is no
// reason to be killed for: what shows that the process lives is that it can say how it is.
func feedWatchdog(ctx context.Context, info func() opscore.WorkerInfo, log *slog.Logger) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			info()
			tellSystemd(daemon.SdNotifyWatchdog, log)
		}
	}
}

// herald tells others how the worker is, each in its way: probes over HTTP, systemd, and whoever waits for the ready file.
type herald struct {
	worker atomic.Pointer[opscore.Worker] // nil before there is one
	probe  *server.Probe
	log    *slog.Logger
	out    *lineWriter
	file   *readyFileWriter

	mu    sync.Mutex // one announcement at a time
	ready opscore.ID // the worker that was announced
}

func newHerald(token string, log *slog.Logger, out *lineWriter, file *readyFileWriter) *herald {
	h := &herald{log: log, out: out, file: file}
	h.probe = server.NewProbe(h.info, token)
	return h
}

// info says how the worker is; the zero value before there is one.
func (h *herald) info() opscore.WorkerInfo {
	if w := h.worker.Load(); w != nil {
		return w.Info()
	}
	return opscore.WorkerInfo{}
}

// watch answers until ctx ends.
func (h *herald) watch(ctx context.Context, listen string) {
	var wg sync.WaitGroup
	if listen != "" {
		wg.Go(func() { serveProbe(ctx, h.probe, listen, h.log) })
	}
	wg.Go(func() { feedWatchdog(ctx, h.info, h.log) })
	wg.Wait()
}

// announce tells that the worker takes tasks, under the id that it has by now.
func (h *herald) announce() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	info := h.info()
	if err := h.file.write(info); err != nil {
		return err
	}
	h.ready = info.ID
	tellSystemd(daemon.SdNotifyReady+"\nSTATUS=worker "+info.ID.String()+" is ready", h.log)
	return nil
}

// outdated reports whether the worker was announced under another id: it has lost its lease since.
func (h *herald) outdated(id opscore.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ready != opscore.ID{} && h.ready != id
}

// observe is the worker's hook.
func (h *herald) observe(e opscore.Event) {
	h.probe.Observe(e)
	if e.Kind != opscore.EventWorker {
		return
	}
	switch state := opscore.WorkerState(e.Code); {
	case state == opscore.WorkerDraining:
		tellSystemd(daemon.SdNotifyStopping, h.log)
	case state == opscore.WorkerReady && h.outdated(e.Worker):
		if err := h.announce(); err != nil {
			h.log.Error("cannot tell the new id", "error", err)
		}
	}
}
