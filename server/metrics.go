package server

import (
	"cmp"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/opscore/opscore"
)

// metrics are what Prometheus reads: counts of events, and what the worker says of itself at that moment.
type metrics struct {
	registry *prometheus.Registry
	started  *prometheus.CounterVec
	finished *prometheus.CounterVec
	waited   *prometheus.HistogramVec
	took     *prometheus.HistogramVec
}

// seconds are the buckets of the histograms: from a millisecond to an hour.
var seconds = []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 30, 60, 300, 900, 3600}

func newMetrics(info func() opscore.WorkerInfo) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		started: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "opscore_attempts_started_total", Help: "Attempts that this worker has started.",
		}, []string{"queue", "actor"}),
		finished: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "opscore_attempts_finished_total",
			Help: "Attempts of this worker whose outcome is recorded: completed, or the code of why not; late ones changed nothing any more.",
		}, []string{"queue", "actor", "outcome"}),
		waited: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "opscore_attempt_wait_seconds", Help: "From when a task was due to when its attempt started.", Buckets: seconds,
		}, []string{"queue"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "opscore_attempt_duration_seconds", Help: "How long attempts took.", Buckets: seconds,
		}, []string{"queue", "actor"}),
	}
	m.registry.MustRegister(m.started, m.finished, m.waited, m.took, worker(info),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

func (m *metrics) observe(e opscore.Event) {
	switch e.Kind {
	case opscore.EventStarted:
		m.started.WithLabelValues(e.Queue, e.Actor).Inc()
		m.waited.WithLabelValues(e.Queue).Observe(e.Duration.Seconds())
	case opscore.EventFinished, opscore.EventLate:
		outcome := cmp.Or(string(e.Code), string(opscore.Completed))
		if e.Kind == opscore.EventLate {
			outcome = string(opscore.EventLate)
		}
		m.finished.WithLabelValues(e.Queue, e.Actor, outcome).Inc()
		m.took.WithLabelValues(e.Queue, e.Actor).Observe(e.Duration.Seconds())
	default: // what clients and keepers do is not this worker's
	}
}

// worker collects what a worker says of itself.
type worker func() opscore.WorkerInfo

var (
	descBuild   = desc("build_info", "The worker's build; always 1.", "build", "go")
	descReady   = desc("worker_ready", "1 if the worker is ready, else 0.")
	descSlots   = desc("slots", "Tasks that the worker runs at a time, at most.")
	descRunning = desc("tasks_running", "Tasks that it runs.")
	descCheck   = desc("check", "0 if the check is well, 1 if it is degraded, 2 if it has failed.", "check")
	descDropped = desc("log_lines_dropped_total", "Log lines that could not be written, or that nobody read fast enough.")
	descSkew    = desc("clock_skew_seconds", "The worker's clock less the store's.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("opscore_"+name, help, labels, nil)
}

// Describe implements [prometheus.Collector].
func (w worker) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descBuild, descReady, descSlots, descRunning, descCheck, descDropped, descSkew} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (w worker) Collect(ch chan<- prometheus.Metric) {
	info := w()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	isReady := 0.0
	if info.Ready() {
		isReady = 1
	}
	gauge(descReady, isReady)
	if info.State == "" {
		return
	}
	gauge(descBuild, 1, info.Build, runtime.Version())
	gauge(descSlots, float64(info.Slots))
	gauge(descRunning, float64(info.Report.Running))
	gauge(descSkew, time.Duration(info.Report.Skew).Seconds())
	ch <- prometheus.MustNewConstMetric(descDropped, prometheus.CounterValue, float64(info.Report.LogDropped))
	levels := map[opscore.CheckState]float64{opscore.CheckOK: 0, opscore.CheckDegraded: 1, opscore.CheckFailed: 2}
	for _, c := range info.Report.Checks {
		gauge(descCheck, levels[c.State], c.Name)
	}
}
