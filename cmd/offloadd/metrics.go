// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/userspace"
)

// metrics counts what the daemon does, whether anybody asks for it or not. No label
// has a value for each connection or peer, so their number is bounded.
type metrics struct {
	registry   *prometheus.Registry
	installs   *prometheus.CounterVec
	failures   *prometheus.CounterVec
	handshakes prometheus.Histogram
	handoffs   prometheus.Histogram
	alarms     prometheus.Counter
	events     *prometheus.CounterVec
	answers    *prometheus.CounterVec
	relays     *prometheus.CounterVec
}

const metricsPrefix = "offloadd_"

// keyLabels are those of a connection's keys.
var keyLabels = []string{"version", "suite", "read", "write"}

func newMetrics() *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricsPrefix + name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: metricsPrefix + name, Help: help, Buckets: buckets})
	}
	m := &metrics{
		registry:   prometheus.NewRegistry(),
		installs:   counter("installs_total", "Connections whose keys were installed into the kernel.", keyLabels...),
		failures:   counter("failures_total", "Connections that ended before an application had them, by the last step that was reached.", "step"),
		handshakes: histogram("handshake_duration_seconds", "Time from the offer to a worker until its keys were opened.", prometheus.ExponentialBuckets(0.001, 2, 14)),
		handoffs:   histogram("handoff_duration_seconds", "Time until an application had a socket whose keys are installed.", prometheus.ExponentialBuckets(0.00005, 4, 10)),
		alarms:     prometheus.NewCounter(prometheus.CounterOpts{Name: metricsPrefix + "key_alarms_total", Help: "Keys of this network namespace that came near the number of records that they may protect."}),
		events:     counter("observer_events_total", "Events of the observer that the daemon read, by kind.", "kind"),
		answers:    counter("answers_total", "Questions of applications about their connections, by the verdict.", "verdict"),
		relays:     counter("relayed_total", "Connections whose records a relay makes, by why the kernel does not.", "version", "suite", "reason"),
	}
	m.registry.MustRegister(m.installs, m.failures, m.handshakes, m.handoffs, m.alarms, m.events, m.answers, m.relays,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// installed counts a connection with keys.
func (m *metrics) installed(facts *blob.Facts, info ktls.Info) {
	m.installs.WithLabelValues(facts.Version.String(), facts.Suite.String(), modeLabel(info.RX), modeLabel(info.TX)).Inc()
}

func modeLabel(m ktls.Mode) string {
	switch m {
	case ktls.SW:
		return "software"
	case ktls.HW:
		return "device"
	}
	return "unknown"
}

func (m *metrics) failed(at step) {
	m.failures.WithLabelValues(strings.ReplaceAll(string(at), " ", "_")).Inc()
}

// relayed counts a connection that the kernel does not have.
func (m *metrics) relayed(facts *blob.Facts, reason error) {
	m.relays.WithLabelValues(facts.Version.String(), facts.Suite.String(), reasonLabel(reason)).Inc()
}

func reasonLabel(reason error) string {
	for _, r := range []struct {
		err   error
		label string
	}{
		{userspace.ErrPolicy, "policy"},
		{ktls.ErrNoTLS, "no_kernel_tls"},
		{ktls.ErrSuite, "suite"},
		{ktls.ErrNotSupported, "key_updates"},
		{ktls.ErrPeerClosed, "peer_closed"},
	} {
		if errors.Is(reason, r.err) {
			return r.label
		}
	}
	return "other"
}

// answered counts the answer to a question.
func (m *metrics) answered(a blob.Answer) {
	m.answers.WithLabelValues(strings.ReplaceAll(a.Verdict.String(), " ", "_")).Inc()
}

// Bounds of what asks for metrics.
const (
	maxMetricsClients = 8
	metricsTimeout    = 10 * time.Second
	maxMetricsHeader  = 8 << 10
)

// metricsServer answers GET /metrics.
type metricsServer struct {
	listener net.Listener
	http     *http.Server
}

// listenMetrics opens the address: host:port, or the path of a unix socket.
func listenMetrics(address string, m *metrics, log *slog.Logger) (*metricsServer, error) {
	listener, err := listenForMetrics(address)
	if err != nil {
		return nil, fmt.Errorf("metrics = %q: %w", address, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 2,
	}))
	return &metricsServer{
		listener: netutil.LimitListener(listener, maxMetricsClients),
		http: &http.Server{
			Handler: mux, ReadTimeout: metricsTimeout, WriteTimeout: metricsTimeout, IdleTimeout: time.Minute,
			MaxHeaderBytes: maxMetricsHeader, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
	}, nil
}

func listenForMetrics(address string) (net.Listener, error) {
	if !filepath.IsAbs(address) {
		return net.Listen("tcp", address)
	}
	// What an earlier start has left. A socket that is in use, or a file, is not removed.
	if c, err := net.Dial("unix", address); err == nil {
		c.Close()
		return nil, errors.New("another process listens there")
	}
	if about, err := os.Lstat(address); err == nil && about.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(address); err != nil {
			return nil, err
		}
	}
	listener, err := net.Listen("unix", address)
	if err != nil {
		return nil, err
	}
	// As on loopback, any local user may ask. The directory's mode says who gets there.
	if err := os.Chmod(address, 0o666); err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}

// run serves until close.
func (s *metricsServer) run(log *slog.Logger) {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		log.Error("metrics are not served any more", "error", err)
	}
}

// close ends it at once: who asks now asks again.
func (s *metricsServer) close() { s.http.Close() }

// startMetrics listens, if the configuration wants it, and counts in any case.
func (d *daemon) startMetrics() (end func(), err error) {
	d.metrics.registry.MustRegister(&daemonCollector{d})
	if d.config.Metrics == "" {
		return func() {}, nil
	}
	server, err := listenMetrics(d.config.Metrics, d.metrics, d.log)
	if err != nil {
		return nil, err
	}
	d.log.Info("metrics", "address", server.listener.Addr().String())
	go server.run(d.log)
	return server.close, nil
}
