// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// benchReady starts "bench server" or "bench proxy" and returns where it is.
func benchReady(t *testing.T, args ...string) (*runningProgram, string) {
	t.Helper()
	p := startProgram(t, openDir(t), append([]string{"/proc/self/exe", "bench"}, args...))
	p.wait("ready ")
	begin := p.out.seen
	p.wait("\n")
	return p, p.out.text()[begin : p.out.seen-1]
}

// benchJSON runs "bench client --json" and returns the object that is all it prints.
func benchJSON(t *testing.T, args ...string) map[string]any {
	t.Helper()
	code, out, stderr := call("", append([]string{"bench", "client", "--json"}, args...)...)
	if code != exitOK || stderr != "" {
		t.Fatalf("bench client %v: exit %d, %s", args, code, stderr)
	}
	var result map[string]any
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		t.Fatalf("bench client %v prints no JSON object: %v\n%s", args, err, out)
	}
	return result
}

// benchKeys are those of every result.
var benchKeys = []string{"address", "bits_per_second", "bytes_received", "bytes_sent", "client", "intervals", "mode", "per_second",
	"records", "requests", "schema", "seconds", "server", "streams", "suite", "tls", "tls_resumed", "verified", "version"}

// spentKeys are those of what a process used.
var spentKeys = []string{"cpu_us_per_gib", "rss_bytes", "syscalls", "syscalls_per_mib", "system_us", "user_us"}

func checkKeys(t *testing.T, what string, object any, want []string) {
	t.Helper()
	got, _ := object.(map[string]any)
	keys := slices.Collect(maps.Keys(got))
	for _, key := range want {
		if !slices.Contains(keys, key) {
			t.Errorf("%s has no %q: %v", what, key, got)
		}
	}
}

// TestBenchPrintsWhatProgramsRead: with --json, of each discipline.
func TestBenchPrintsWhatProgramsRead(t *testing.T) {
	_, address := benchReady(t, "server", "--path", "tls", "--tls-version", "1.3")
	for mode, args := range map[string][]string{
		"download": {"-R", "-n", "100k", "--verify"}, "upload": {"-n", "100k"}, "bidir": {"--bidir", "-n", "100K"},
		"small": {"--small", "10", "--count", "5"}, "handshakes": {"--handshakes", "3", "--groups", "x25519"},
	} {
		r := benchJSON(t, append(args, address)...)
		checkKeys(t, mode, r, benchKeys)
		checkKeys(t, mode+": client", r["client"], spentKeys)
		checkKeys(t, mode+": server", r["server"], append(spentKeys, "path"))
		if r["mode"] != mode || r["schema"] != 1.0 || r["address"] != address || r["version"] != "TLS 1.3" || r["tls"] != "crypto-tls" ||
			!strings.HasPrefix(r["suite"].(string), "TLS_") || r["verified"] != (mode == "download") {
			t.Errorf("%s: %v", mode, r)
		}
		if latency, ok := r["latency_us"]; ok != (mode == "small" || mode == "handshakes") {
			t.Errorf("%s has latencies: %v", mode, latency)
		} else if ok {
			checkKeys(t, mode+": latency_us", latency, []string{"count", "min", "mean", "p50", "p90", "p99", "p99.9", "max"})
		}
		if server := r["server"].(map[string]any); ktlstest.InVM() && server["syscalls"] == nil || server["syscalls"] == nil && server["syscalls_why"] == nil {
			t.Errorf("%s: system calls were not counted: %v", mode, server)
		}
	}
	if r := benchJSON(t, "-n", "10", "--no-usage", address); r["server"] != nil || r["client"] != nil || r["server_why"] != "not asked" {
		t.Errorf("with --no-usage: %v", r)
	}
}

// TestBenchTellsPeople, and offers a suite that needs the program to start anew.
func TestBenchTellsPeople(t *testing.T) {
	if ktlstest.InVM() {
		t.Skip("that takes no kernel TLS, and is tested outside")
	}
	_, address := benchReady(t, "server", "--path", "tls", "--suite", "chacha20", "--tls-version", "1.3")
	code, out, stderr := call("", "bench", "client", address, "-R", "-t", "300ms", "-i", "0.1", "-P", "2")
	for _, want := range []string{"SECONDS", "0.00 -", "TLS_CHACHA20_POLY1305_SHA256, client crypto-tls, 2 streams", "Mbit/s\n", "server  "} {
		if want = strings.Replace(want, "Mbit/s\n", "bit/s\n", 1); !strings.Contains(out, want) {
			t.Errorf("exit %d, %s, no %q in\n%s", code, stderr, want, out)
		}
	}
	code, out, stderr = call("", "bench", "client", address, "--small", "1", "--count", "10")
	if code != exitOK || !strings.Contains(out, "CPU EACH") || !strings.Contains(out, "µs median") {
		t.Errorf("exit %d, %s\n%s", code, stderr, out)
	}
	// The input of call ends at once, and so does the holding.
	if code, out, stderr = call("", "bench", "client", address, "--idle", "5"); code != exitOK || out != "idle 5\n" {
		t.Errorf("exit %d, %s, %s", code, stderr, out)
	}
}

// TestBenchProxyIsBetween: what is asked of it comes from the target.
func TestBenchProxyIsBetween(t *testing.T) {
	if ktlstest.InVM() {
		t.Skip("that takes no kernel TLS, and is tested outside")
	}
	_, target := benchReady(t, "server", "--path", "plain-sendfile")
	_, address := benchReady(t, "proxy", "--path", "tls", "--target", target)
	r := benchJSON(t, "-R", "-n", "1M", "--verify", address)
	if server, ok := r["server"].(map[string]any); !ok || server["path"] != "plain-sendfile" || r["version"] == "" {
		t.Errorf("%v", r)
	}
}

// TestBenchOfHandedConnections: the daemon makes them, and the server has them without a key.
func TestBenchOfHandedConnections(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{})
	p, where := benchReady(t, "server", "--path", "handed", "--application", d.socket)
	if where != d.socket {
		t.Errorf("ready %s, want %s", where, d.socket)
	}
	for _, args := range [][]string{{"-R", "-n", "2M"}, {"-n", "2M", "--tls", "ktls"}, {"--small", "20000", "--count", "5"}} {
		r := benchJSON(t, append(args, "--verify", d.address)...)
		if server, ok := r["server"].(map[string]any); !ok || server["path"] != "handed" {
			t.Errorf("%v: %v", args, r)
		}
	}
	p.stop()
	if strings.Contains(p.out.text(), "WARN") {
		t.Errorf("the server complains: %s", p.out.text())
	}
}

// TestBenchHandoverTellsEachStep of connections that really were handed over.
func TestBenchHandoverTellsEachStep(t *testing.T) {
	requireDaemon(t)
	cmd := exec.CommandContext(testContext(t), "/proc/self/exe", "bench", "handover", "--count", "4", "--resumed", "-P", "2", "--json")
	cmd.Env = append(os.Environ(), envRole+"=1")
	out, err := cmd.Output()
	var r map[string]any
	if err != nil || json.Unmarshal(out, &r) != nil {
		t.Fatalf("%v: %s", err, out)
	}
	steps, _ := r["steps"].(map[string]any)
	all := map[string]any{"accept_to_installed_us": r["accept_to_installed_us"], "accept_to_application_us": r["accept_to_application_us"],
		"connect_to_first_byte_us": r["connect_to_first_byte_us"]}
	for _, name := range []string{"handshake_us", "seal_us", "open_us", "enter_us", "install_us", "read_back_us"} {
		all[name] = steps[name]
	}
	p50 := map[string]float64{}
	for name, of := range all {
		l, _ := of.(map[string]any)
		if l["count"] != 4.0 || l["max"].(float64) <= 0 {
			t.Errorf("%s: %v", name, of)
		}
		p50[name], _ = l["p50"].(float64)
	}
	if r["tls_resumed"] != 4.0 || p50["accept_to_installed_us"] < p50["handshake_us"] || p50["accept_to_application_us"] < p50["accept_to_installed_us"] ||
		p50["connect_to_first_byte_us"] < p50["handshake_us"] {
		t.Errorf("%s", out)
	}
}
