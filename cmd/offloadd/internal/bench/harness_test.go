// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"crypto/tls"

	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// logged is a log that several goroutines write.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func testConfig(t testing.TB) *tls.Config {
	t.Helper()
	config, err := ServerConfig("", "", Choice{}, true)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// served runs a Serve until the test ends, and returns its address and log.
func served(t testing.TB, serve func(context.Context, net.Listener, *slog.Logger) error) (string, *logged) {
	t.Helper()
	l, err := Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := &logged{}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, l, slog.New(slog.NewTextHandler(log, nil))) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("it does not end")
		}
		if t.Failed() {
			t.Logf("it said: %s", log)
		}
	})
	return l.Addr().String(), log
}

// startServer starts a server on a path. It skips the test where the kernel lacks TLS.
func startServer(t testing.TB, path Path) (string, *logged) {
	t.Helper()
	if path.Kernel() {
		ktlstest.Require(t)
	}
	return served(t, func(ctx context.Context, l net.Listener, log *slog.Logger) error {
		s, err := NewServer(path, testConfig(t), 64<<10, log)
		if err != nil {
			return err
		}
		return s.Serve(ctx, l)
	})
}

func startProxy(t testing.TB, path Path, target string) (string, *logged) {
	t.Helper()
	if path.Kernel() {
		ktlstest.Require(t)
	}
	return served(t, func(ctx context.Context, l net.Listener, log *slog.Logger) error {
		return (&Proxy{Path: path, TLS: testConfig(t), Target: target, Log: log}).Serve(ctx, l)
	})
}

// layerFor is a client's record layer that goes with a path.
func layerFor(path Path) string {
	if path.plain() {
		return LayerNone
	}
	return LayerCryptoTLS
}

// options are those of a client that verifies all.
func options(address, layer string, change func(*Options)) Options {
	o := Options{Address: address, Layer: layer, Streams: 1, Small: -1, RequestSize: 1 << 20, WriteSize: 64 << 10, Verify: true}
	if change != nil {
		change(&o)
	}
	return o
}

func runClient(o Options) (*Result, error) {
	client, err := NewClient(o)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return client.Run(ctx)
}

func mustRun(t testing.TB, o Options) *Result {
	t.Helper()
	r, err := runClient(o)
	if err != nil {
		t.Fatalf("%s of %s by a client with %s: %v", o.mode(), o.Address, o.Layer, err)
	}
	if r.Mode != o.mode() || r.Seconds <= 0 || r.Requests <= 0 {
		t.Fatalf("mode %s, %f seconds, %d requests", r.Mode, r.Seconds, r.Requests)
	}
	return r
}

func checkMoved(t testing.TB, r *Result, sent, received, requests int64) {
	t.Helper()
	if r.BytesSent != sent || r.BytesReceived != received || r.Requests != requests {
		t.Errorf("%s: %d bytes sent, %d received, %d requests; want %d, %d, %d", r.Mode,
			r.BytesSent, r.BytesReceived, r.Requests, sent, received, requests)
	}
	if want := 8 * float64(sent+received) / r.Seconds; r.BitsPerSecond < want*0.99 || r.BitsPerSecond > want*1.01 {
		t.Errorf("%s: %f bit/s, want %f", r.Mode, r.BitsPerSecond, want)
	}
	if r.Server == nil || r.Client == nil {
		t.Fatalf("%s: nobody told what was used: %s", r.Mode, r.ServerWhy)
	}
}

// checkLatency: percentiles rise.
func checkLatency(t testing.TB, r *Result, n int) {
	t.Helper()
	l := r.Latency
	if l == nil || l.Count != n || l.Min <= 0 || l.Min > l.P50 || l.P50 > l.P90 || l.P90 > l.P99 || l.P99 > l.P999 || l.P999 > l.Max {
		t.Errorf("latencies of %d: %+v", n, l)
	}
}
