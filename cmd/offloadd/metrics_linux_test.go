// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/offloadd/offloadd/bpf"
)

// loadObserver loads into a directory of the test's own.
func loadObserver(t *testing.T) (dir string, observer *bpf.Observer) {
	t.Helper()
	dir = "/sys/fs/bpf/offloadd-command-test"
	r, err := bpf.LoadObserver(bpf.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bpf.Unload(dir); err != nil {
			t.Error(err)
		}
	})
	if off := r.Off(); len(off) > 0 {
		t.Errorf("off: %+v", off)
	}
	if observer, err = bpf.OpenObserver(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { observer.Close() })
	return dir, observer
}

// scrape asks for metrics as Prometheus does, and has its parser read the answer.
func scrape(t *testing.T, path string) map[string]*dto.MetricFamily {
	t.Helper()
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	answer, err := client.Get("http://offloadd/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v: %s", answer.Status, err, text)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, metricsPrefix) {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	return families
}

// values are those of a family, by labels: "name=value,...".
func values(families map[string]*dto.MetricFamily, name string) map[string]float64 {
	all := make(map[string]float64)
	for _, m := range families[metricsPrefix+name].GetMetric() {
		var labels []string
		for _, l := range m.GetLabel() {
			labels = append(labels, l.GetName()+"="+l.GetValue())
		}
		slices.Sort(labels)
		n := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		all[strings.Join(labels, ",")] = n
	}
	return all
}

// TestMetricsSayWhatWasDone: each number of the daemon is that of the connections the
// test made, and each of the observer is the observer's.
func TestMetricsSayWhatWasDone(t *testing.T) {
	requireDaemon(t)
	bpfDir, observer := loadObserver(t)
	path := filepath.Join(openDir(t), "metrics.sock")
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: fmt.Sprintf("metrics = %q\nbpf_dir = %q", path, bpfDir)})
	d.serveApplication(echo)
	var clients []*tls.Conn
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS13, tls.VersionTLS12} {
		config := d.clientConfig()
		config.MaxVersion, config.CipherSuites = version, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}
		c, err := d.dial(config)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := echoOnce(c); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	suite := tls.CipherSuiteName(clients[0].ConnectionState().CipherSuite)
	stranger, err := net.Dial("tcp", d.address)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(stranger, "GET / HTTP/1.1\r\n\r\n")
	io.Copy(io.Discard, stranger) // until the daemon ends it
	stranger.Close()
	d.wait("connection ended")
	if code, _, stderr := call("", "revoke", "--control", d.control, "--bpf-dir", bpfDir, fmt.Sprint(d.wait("installed")["socket"])); code != exitOK {
		t.Fatalf("revoke: %d, %s", code, stderr)
	}
	checkStatus(t, d, fmt.Sprint(d.log.nth("installed", 2)["socket"]))
	checkTop(t, d, bpfDir, fmt.Sprint(d.log.nth("installed", 2)["socket"]))
	clients[2].Close()
	in13 := "read=software,suite=" + suite + ",version=TLS 1.3,write=software"
	in12 := "read=software,suite=TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,version=TLS 1.2,write=software"
	want := map[string]map[string]float64{
		"installs_total":             {in13: 2, in12: 1},
		"failures_total":             {"step=offered": 1},
		"handshake_duration_seconds": {"": 3},
		"handoff_duration_seconds":   {"": 3},
		"connections":                {in13: 1},
		"connections_degraded":       {"": 0},
		"connections_over":           {"": 0},
		"ended_total":                {"": 2},
		"revoked_total":              {"": 1},
		"degraded_total":             {"": 0},
		"unrecorded_total":           {"": 0},
		"replays_total":              {"": 0},

		"key_updates_total":            {"direction=received": 0, "direction=sent": 0},
		"key_updates_unfollowed_total": {"": 0},

		"key_alarms_total": {"": 0},
		"keys_near_limit":  {"": 0},
		"observer_sockets": {"managed=true": 1, "managed=false": 0},
	}
	var families map[string]*dto.MetricFamily
	var sums bpf.Sums
	var wrong string
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		families = scrape(t, path)
		if sums, err = observer.Sums(); err != nil {
			t.Fatal(err)
		}
		maps.Copy(want, observerValues(&sums))
		if wrong = differences(families, want); wrong == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(wrong)
		}
	}
	if sums.Receiving.Bytes < 3*5 || sums.Connections < 3 || values(families, "observer_events_total")["kind=installed"] < 6 {
		t.Errorf("the observer saw little: %+v, %v", sums, values(families, "observer_events_total"))
	}
	for name := range families {
		if ours, ok := strings.CutPrefix(name, metricsPrefix); ok && !slices.Contains(metricNames(), ours) {
			t.Errorf("%s is in no list", name)
		}
	}
	for name := range want {
		if !slices.Contains(metricNames(), name) {
			t.Errorf("%s is in no list", name)
		}
	}
}

// checkStatus: one echo went over the connection, and its numbers are in each form of status.
func checkStatus(t *testing.T, d *testDaemon, socket string) {
	t.Helper()
	sent := len(marker) + len("hello")
	code, out, stderr := call("", "status", "--control", d.control)
	lines := strings.Split(out, "\n")
	row := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, socket+" ") })
	if code != exitOK || row < 0 {
		t.Fatalf("status exits with %d: %s%s", code, out, stderr)
	}
	if fields := strings.Fields(lines[row]); !strings.HasSuffix(lines[0], "OUT  IN  ERRORS") || !slices.Equal(fields[len(fields)-3:], []string{fmt.Sprint(sent), "5", "0"}) {
		t.Errorf("want %d, 5 and 0 at the end of:\n%s\n%s", sent, lines[0], lines[row])
	}
	_, out, _ = call("", "status", "--control", d.control, socket)
	if !strings.Contains(out, fmt.Sprintf("%d bytes in 1 records, next number 1", sent)) || !strings.Contains(out, "5 bytes in 1 records, next number 1") {
		t.Errorf("%s", out)
	}
	_, out, _ = call("", "status", "--control", d.control, "--json")
	var told struct {
		Connections []struct {
			Socket  uint64   `json:"socket"`
			Traffic *traffic `json:"traffic"`
		} `json:"connections"`
	}
	if err := json.Unmarshal([]byte(out), &told); err != nil {
		t.Fatal(err)
	}
	for _, c := range told.Connections {
		if fmt.Sprint(c.Socket) == socket && (c.Traffic == nil || c.Traffic.Sent != trafficDirection{uint64(sent), 1, 1, 0} || c.Traffic.Received != trafficDirection{5, 1, 1, 0}) {
			t.Errorf("%+v", c.Traffic)
		}
	}
}

// checkTop: the same numbers in the JSON of top, with who has the socket.
func checkTop(t *testing.T, d *testDaemon, bpfDir, socket string) {
	t.Helper()
	code, out, stderr := call("", "top", "--count", "1", "--dir", bpfDir, "--control", d.control)
	var s topSample
	if err := json.Unmarshal([]byte(out), &s); err != nil || code != exitOK {
		t.Fatalf("top exits with %d, %v: %s%s", code, err, out, stderr)
	}
	row := slices.IndexFunc(s.Sockets, func(r topRow) bool { return fmt.Sprint(r.Socket) == socket })
	if row < 0 || s.Daemon.PID != d.cmd.Process.Pid {
		t.Fatalf("socket %s of daemon %d is not in %s", socket, d.cmd.Process.Pid, out)
	}
	if r := s.Sockets[row]; r.Foreign || r.Listener != "test" || r.Application != os.Getpid() || r.Sent.Bytes != uint64(len(marker)+5) ||
		r.Received.Records != 1 || r.Received.Sequence != 1 || r.Sent.Path != "software" || r.Version != "TLS 1.3" {
		t.Errorf("%+v", r)
	}
}

// observerValues are the metrics of sums.
func observerValues(s *bpf.Sums) map[string]map[string]float64 {
	both := func(of func(*bpf.DirectionSums) uint64) map[string]float64 {
		return map[string]float64{"direction=sent": float64(of(&s.Sending)), "direction=received": float64(of(&s.Receiving))}
	}
	v := map[string]map[string]float64{
		"observer_connections_total":          {"": float64(s.Connections)},
		"observer_failures_total":             {"": float64(s.Failures)},
		"observer_connections_unlisted_total": {"": float64(s.Unlisted)},
		"observer_events_dropped_total":       {"": float64(s.Dropped)},
		"observer_calls_missed_total":         {"": float64(s.Missed)},
		"observer_bytes_total":                both(func(d *bpf.DirectionSums) uint64 { return d.Bytes }),
		"observer_records_total":              both(func(d *bpf.DirectionSums) uint64 { return d.Records }),
		"observer_calls_total":                both(func(d *bpf.DirectionSums) uint64 { return d.Calls }),
		"observer_rekeys_total":               both(func(d *bpf.DirectionSums) uint64 { return d.Rekeys }),
		"observer_keys_total": {
			"direction=sent,path=software": float64(s.Sending.Software), "direction=sent,path=device": float64(s.Sending.Device),
			"direction=received,path=software": float64(s.Receiving.Software), "direction=received,path=device": float64(s.Receiving.Device)},
		"observer_errors_total": {}, "observer_ends_total": {},
	}
	for kind, n := range s.Errors {
		v["observer_errors_total"]["error="+bpf.ErrorNames[kind]] = float64(n)
	}
	for end, n := range s.Ends {
		if bpf.End(end) != bpf.Live {
			v["observer_ends_total"]["end="+bpf.EndNames[end]] = float64(n)
		}
	}
	return v
}

func differences(families map[string]*dto.MetricFamily, want map[string]map[string]float64) string {
	var wrong []string
	for name, w := range want {
		if got := values(families, name); !maps.Equal(got, w) {
			wrong = append(wrong, fmt.Sprintf("%s is %v, want %v", name, got, w))
		}
	}
	slices.Sort(wrong)
	return strings.Join(wrong, "\n")
}

// metricNames are those of all metrics.
func metricNames() []string {
	return append(slices.Collect(maps.Keys(observerValues(&bpf.Sums{}))), "installs_total", "failures_total", "handshake_duration_seconds",
		"handoff_duration_seconds", "connections", "connections_degraded", "connections_over", "ended_total", "revoked_total", "degraded_total",
		"unrecorded_total", "replays_total", "key_alarms_total", "keys_near_limit", "observer_sockets", "observer_events_total", "guard_stopped_total",
		"key_updates_total", "key_updates_unfollowed_total", "answers_total")
}

func TestTheREADMENamesEachMetric(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repositoryRoot(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range metricNames() {
		if !strings.Contains(string(text), "`"+metricsPrefix+name+"`") {
			t.Errorf("the README does not name %s%s", metricsPrefix, name)
		}
	}
}

// TestAMetricsAddressIsChecked: all interfaces are named, and nobody else is pushed aside.
func TestAMetricsAddressIsChecked(t *testing.T) {
	for address, ok := range map[string]bool{
		"": true, "127.0.0.1:9464": true, "[::1]:9464": true, "localhost:9464": true, "/run/offloadd/metrics.sock": true,
		":9464": false, "9464": false, "127.0.0.1": false, "metrics.sock": false, "/" + strings.Repeat("x", 100): false,
	} {
		if validMetrics(address) != ok {
			t.Errorf("%q: %v, want %v", address, !ok, ok)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := listenForMetrics(file); err == nil {
		l.Close()
		t.Error("a file was replaced by a socket")
	}
	path := filepath.Join(t.TempDir(), "socket")
	first, err := listenForMetrics(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenForMetrics(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second listener: %v", err)
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false)
	first.Close()
	again, err := listenForMetrics(path)
	if err != nil {
		t.Fatalf("what an earlier start left: %v", err)
	}
	again.Close()
}
