// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"crypto/tls"
	"math"
	"slices"
	"time"
)

// Schema is the version of Result as JSON. It changes when a field changes its meaning.
const Schema = 1

// Result is what a client found.
type Result struct {
	Schema  int    `json:"schema"`
	Mode    string `json:"mode"` // download, upload, bidir, small or handshakes
	Address string `json:"address"`
	TLS     string `json:"tls"`     // the client's record layer
	Version string `json:"version"` // "" without TLS
	Suite   string `json:"suite"`
	Streams int    `json:"streams"`
	// Seconds are from the first request, or with handshakes the first connect, to the last byte.
	Seconds       float64 `json:"seconds"`
	BytesSent     int64   `json:"bytes_sent"`     // of bodies
	BytesReceived int64   `json:"bytes_received"` // of bodies
	BitsPerSecond float64 `json:"bits_per_second"`
	Verified      bool    `json:"verified"` // every body was compared

	Client    *Spent `json:"client"` // nil if nobody was to ask
	Server    *Spent `json:"server"` // nil if it is not ours
	ServerWhy string `json:"server_why,omitempty"`

	Latency    *Latency `json:"latency_us,omitempty"`
	Requests   int64    `json:"requests"`
	PerSecond  float64  `json:"per_second"`
	TLSResumed int64    `json:"tls_resumed"` // handshakes by a ticket

	Records    *Records   `json:"records"`
	RecordsWhy string     `json:"records_why,omitempty"`
	Intervals  []Interval `json:"intervals"`
}

// Records are those of TLS, of any type, behind the handshake.
type Records struct {
	Sent     int64 `json:"sent"`
	Received int64 `json:"received"`
}

// Spent is what a process used meanwhile.
type Spent struct {
	UserUS         int64    `json:"user_us"`
	SystemUS       int64    `json:"system_us"`
	CPUUSPerGiB    *float64 `json:"cpu_us_per_gib"` // nil if no bodies were moved
	Syscalls       *int64   `json:"syscalls"`
	SyscallsWhy    string   `json:"syscalls_why,omitempty"`
	SyscallsPerMiB *float64 `json:"syscalls_per_mib"`
	Path           Path     `json:"path,omitempty"`
	RSSBytes       int64    `json:"rss_bytes"` // at the end
	Connections    int64    `json:"connections,omitempty"`
}

// Interval is what was moved from one look to the next, in seconds since the start.
type Interval struct {
	Start         float64 `json:"start"`
	End           float64 `json:"end"`
	BytesSent     int64   `json:"bytes_sent"`
	BytesReceived int64   `json:"bytes_received"`
	BitsPerSecond float64 `json:"bits_per_second"`
	Requests      int64   `json:"requests"`
}

// Latency are percentiles in microseconds.
type Latency struct {
	Count int     `json:"count"`
	Min   float64 `json:"min"`
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p99.9"`
	Max   float64 `json:"max"`
}

// NewLatency sorts times. It returns nil for none. A percentile is one of the times: the
// lowest that so many per cent do not exceed.
func NewLatency(times []time.Duration) *Latency {
	if len(times) == 0 {
		return nil
	}
	slices.Sort(times)
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
	at := func(q float64) float64 {
		return us(times[max(0, int(math.Ceil(q*float64(len(times))))-1)])
	}
	sum := 0.0
	for _, t := range times {
		sum += us(t)
	}
	return &Latency{Count: len(times), Min: us(times[0]), Mean: sum / float64(len(times)),
		P50: at(0.5), P90: at(0.9), P99: at(0.99), P999: at(0.999), Max: us(times[len(times)-1])}
}

// spentBetween is the difference of two answers of one process.
func spentBetween(before, after Usage, bytes int64) *Spent {
	s := &Spent{
		UserUS: after.UserUS - before.UserUS, SystemUS: after.SystemUS - before.SystemUS,
		SyscallsWhy: after.SyscallsWhy, Path: after.Path, RSSBytes: after.RSSBytes, Connections: after.Connections,
	}
	if bytes > 0 {
		perGiB := float64(s.UserUS+s.SystemUS) / (float64(bytes) / (1 << 30))
		s.CPUUSPerGiB = &perGiB
	}
	if before.Syscalls != nil && after.Syscalls != nil {
		n := *after.Syscalls - *before.Syscalls
		s.Syscalls = &n
		if bytes > 0 {
			perMiB := float64(n) / (float64(bytes) / (1 << 20))
			s.SyscallsPerMiB = &perMiB
		}
	}
	return s
}

func bitsPerSecond(bytes int64, t time.Duration) float64 {
	if t <= 0 {
		return 0
	}
	return 8 * float64(bytes) / t.Seconds()
}

func (r *Result) agreed(a agreed) {
	if a.version != 0 {
		r.Version, r.Suite = tls.VersionName(a.version), tls.CipherSuiteName(a.suite)
	}
}
