// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// bodySize is that of test bodies: no multiple of a record, and more than the pattern's period.
const bodySize = 1<<20 + 12345

// TestEveryPathCarriesEveryDiscipline: all bytes are compared. Without kernel TLS, those
// paths are left to machines that have it, and there the others are left out.
func TestEveryPathCarriesEveryDiscipline(t *testing.T) {
	for _, path := range Paths {
		if path == Handed || elsewhere(path) { // the first by the daemon's tests
			continue
		}
		t.Run(string(path), func(t *testing.T) {
			address, log := startServer(t, path)
			disciplines(t, address, layerFor(path))
			if path == KTLSSendfile {
				disciplines(t, address, LayerKTLS)
			}
			if got := log.String(); got != "" {
				t.Errorf("the server complains: %s", got)
			}
		})
	}
}

// TestEveryProxyCarriesEveryDiscipline, and says nothing.
func TestEveryProxyCarriesEveryDiscipline(t *testing.T) {
	for _, path := range ProxyPaths {
		if elsewhere(path) {
			continue
		}
		t.Run(string(path), func(t *testing.T) {
			target, _ := startServer(t, PlainSendfile)
			address, log := startProxy(t, path, target)
			disciplines(t, address, layerFor(path))
			if got := log.String(); got != "" {
				t.Errorf("the proxy complains: %s", got)
			}
		})
	}
}

// elsewhere says that a path needs no virtual machine, and has its tests outside.
func elsewhere(path Path) bool { return ktlstest.InVM() && !path.Kernel() }

func disciplines(t *testing.T, address, layer string) {
	t.Helper()
	r := mustRun(t, options(address, layer, func(o *Options) { o.Download, o.Bytes, o.Streams = true, bodySize, 2 }))
	checkMoved(t, r, 0, 2*bodySize, 2)
	checkRecords(t, r, layer)
	r = mustRun(t, options(address, layer, func(o *Options) { o.Bytes = bodySize }))
	checkMoved(t, r, bodySize, 0, 1)
	r = mustRun(t, options(address, layer, func(o *Options) { o.Bidir, o.Bytes = true, bodySize }))
	checkMoved(t, r, bodySize, bodySize, 2)
	for _, size := range []int64{0, 1, small + 1, maxEcho} {
		r = mustRun(t, options(address, layer, func(o *Options) { o.Small, o.Count = size, 3 }))
		checkMoved(t, r, 3*size, 3*size, 3)
		checkLatency(t, r, 3)
	}
	r = mustRun(t, options(address, layer, func(o *Options) { o.Small, o.Count, o.Get, o.Streams = 777, 5, true, 2 }))
	checkMoved(t, r, 0, 2*5*777, 10)
	r = mustRun(t, options(address, layer, func(o *Options) { o.Small, o.Count, o.NoKeepAlive = 5, 3, true }))
	checkMoved(t, r, 15, 15, 3)
	r = mustRun(t, options(address, layer, func(o *Options) { o.Handshakes, o.Streams, o.Resumed = 6, 2, layer != LayerNone }))
	checkLatency(t, r, 6)
	if layer != LayerNone && r.TLSResumed != 6 {
		t.Errorf("%d handshakes were resumed, want 6", r.TLSResumed)
	}
}

// checkRecords: crypto/tls counts at least what the bodies need.
func checkRecords(t *testing.T, r *Result, layer string) {
	t.Helper()
	if layer != LayerCryptoTLS {
		if r.Records != nil || r.RecordsWhy == "" {
			t.Errorf("records %+v, %q", r.Records, r.RecordsWhy)
		}
		return
	}
	least := int64(2 * (bodySize / maxContent))
	if r.Records == nil || r.Records.Received < least || r.Records.Received > 3*least || r.Records.Sent != 2 {
		t.Errorf("records %+v, want about %d received and 2 sent", r.Records, least)
	}
}

// TestWhoDiscardsCountsBodies, of any server's record layer, and with a time limit.
func TestWhoDiscardsCountsBodies(t *testing.T) {
	for _, path := range []Path{CryptoTLS, Userspace, KTLSSendfile, BareWrite} {
		if elsewhere(path) {
			continue
		}
		t.Run(string(path), func(t *testing.T) {
			address, _ := startServer(t, path)
			discard := func(o *Options) { o.Download, o.Bytes, o.Streams, o.Verify = true, bodySize, 2, false }
			r := mustRun(t, options(address, LayerDiscard, discard))
			checkMoved(t, r, 0, 2*bodySize, 2)
			r = mustRun(t, options(address, LayerDiscard, func(o *Options) { discard(o); o.Bytes, o.Time = 0, 500*time.Millisecond }))
			if r.BytesReceived < r.Requests*o1MiB || r.Seconds < 0.4 || r.Seconds > 20 {
				t.Errorf("%d bytes in %f s by %d requests", r.BytesReceived, r.Seconds, r.Requests)
			}
		})
	}
}

const o1MiB = 1 << 20

// TestTheTimeIsKept: what is under way then is cut, and counted so far.
func TestTheTimeIsKept(t *testing.T) {
	path, layer := CryptoTLS, LayerCryptoTLS
	if ktlstest.InVM() {
		path, layer = KTLSSendfile, LayerKTLS
	}
	address, log := startServer(t, path)
	for name, change := range map[string]func(*Options){
		"download": func(o *Options) { o.Download, o.RequestSize = true, 1<<40 },
		"upload":   func(o *Options) { o.RequestSize = 1 << 40 },
		"both":     func(o *Options) { o.Bidir = true },
		"messages": func(o *Options) { o.Small = 10 },
	} {
		t.Run(name, func(t *testing.T) {
			var told []Interval
			r := mustRunAny(t, options(address, layer, func(o *Options) {
				o.Time, o.Interval, o.Verify = 600*time.Millisecond, 150*time.Millisecond, false
				o.OnInterval = func(i Interval) { told = append(told, i) }
				change(o)
			}))
			if r.Seconds < 0.6 || r.Seconds > 20 || r.BytesSent+r.BytesReceived == 0 {
				t.Errorf("%f seconds, %d bytes sent, %d received", r.Seconds, r.BytesSent, r.BytesReceived)
			}
			checkIntervals(t, r, told)
		})
	}
	if got := log.String(); got != "" {
		t.Errorf("the server complains of clients whose time was up: %s", got)
	}
}

// mustRunAny is mustRun for who may not have completed a request.
func mustRunAny(t *testing.T, o Options) *Result {
	t.Helper()
	r, err := runClient(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// checkIntervals: without gaps they add up to the whole.
func checkIntervals(t *testing.T, r *Result, told []Interval) {
	t.Helper()
	var sent, received, requests int64
	at := 0.0
	for n, i := range r.Intervals {
		if i.Start != at || i.End <= i.Start || n >= len(told) || told[n] != i {
			t.Errorf("interval %d: %+v after %f, told %+v", n, i, at, told)
		}
		at = i.End
		sent, received, requests = sent+i.BytesSent, received+i.BytesReceived, requests+i.Requests
	}
	if len(r.Intervals) < 2 || sent != r.BytesSent || received != r.BytesReceived || requests != r.Requests {
		t.Errorf("%d intervals with %d and %d bytes, %d requests; in all %d, %d, %d", len(r.Intervals), sent, received, requests,
			r.BytesSent, r.BytesReceived, r.Requests)
	}
}

// TestWhoCancelsGetsNoResult.
func TestWhoCancelsGetsNoResult(t *testing.T) {
	address, _ := startServer(t, CryptoTLS)
	client, err := NewClient(options(address, LayerCryptoTLS, func(o *Options) { o.Download, o.Time, o.Verify = true, time.Hour, false }))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if r, err := client.Run(ctx); !errors.Is(err, context.DeadlineExceeded) || r != nil {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestIdleConnectionsAreHeld until they are released, and cost little.
func TestIdleConnectionsAreHeld(t *testing.T) {
	for _, path := range []Path{PlainWrite, CryptoTLS, KTLSWrite} {
		if elsewhere(path) {
			continue
		}
		t.Run(string(path), func(t *testing.T) {
			address, log := startServer(t, path)
			client, err := NewClient(options(address, layerFor(path), func(o *Options) { o.Idle, o.Streams = 50, 4 }))
			if err != nil {
				t.Fatal(err)
			}
			u, err := client.openUsage(t.Context())
			if err != nil || u.server == nil {
				t.Fatalf("usage: %v, %+v", err, u)
			}
			defer u.close()
			release, opened := newReleaser(), make(chan int, 1)
			ended := make(chan error, 1)
			go func() { ended <- client.HoldIdle(t.Context(), func(n int) { opened <- n }, release) }()
			if n := <-opened; n != 50 {
				t.Errorf("%d connections", n)
			}
			if usage, err := u.ask(); err != nil || usage.Connections != 51 || usage.Failed != 0 {
				t.Errorf("while they are held: %+v, %v", usage, err)
			}
			close(release)
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if got := log.String(); got != "" {
				t.Errorf("the server complains: %s", got)
			}
		})
	}
}

// releaser is a Reader that blocks until it is closed.
type releaser chan struct{}

func newReleaser() releaser { return make(releaser) }

func (r releaser) Read([]byte) (int, error) {
	<-r
	return 0, context.Canceled
}

func TestWhatCannotBeIsSaid(t *testing.T) {
	server, _ := startServer(t, CryptoTLS)
	plain, _ := startServer(t, PlainWrite)
	download := func(o *Options) { o.Download, o.Bytes, o.Verify = true, 1000, false }
	for _, c := range []struct {
		name   string
		o      Options
		want   string
		wanted error
	}{
		{"nobody there", options("127.0.0.1:1", LayerCryptoTLS, download), `"offloadd bench server"`, syscall.ECONNREFUSED},
		{"TLS to one without", options(plain, LayerCryptoTLS, download), "--tls none", nil},
		{"no TLS to one with", options(server, LayerNone, download), "--tls none", nil},
	} {
		_, err := runClient(c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) || c.wanted != nil && !errors.Is(err, c.wanted) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if ktlstest.InVM() {
		return
	}
	if _, err := runClient(options(server, LayerKTLS, download)); err != nil && !strings.Contains(err.Error(), "modprobe tls") {
		t.Errorf("a client without kernel TLS: %v", err)
	}
}

// TestAnotherSuiteThanChosenIsAnError: no figure is told of a suite that was not meant.
func TestAnotherSuiteThanChosenIsAnError(t *testing.T) {
	for suite, good := range map[string]uint16{"aes128": tls.TLS_AES_128_GCM_SHA256, "aes256": tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		"chacha20": tls.TLS_CHACHA20_POLY1305_SHA256, "": tls.TLS_AES_256_GCM_SHA384} {
		if err := (Choice{Suite: suite}).check(good); err != nil {
			t.Errorf("%s: %v", suite, err)
		}
		if err := (Choice{Suite: suite}).check(tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA); (err != nil) != (suite != "") {
			t.Errorf("%s and a suite that is none of ours: %v", suite, err)
		}
	}
	if elsewhere(CryptoTLS) {
		return
	}
	address, _ := startServer(t, CryptoTLS)
	chacha := func(o *Options) { o.Bytes, o.Version, o.Suite = 100, "1.2", "chacha20" }
	if r := mustRun(t, options(address, LayerCryptoTLS, chacha)); r.Version != "TLS 1.2" || !strings.Contains(r.Suite, "CHACHA20") {
		t.Errorf("asked for ChaCha20 in TLS 1.2, got %s and %s", r.Version, r.Suite)
	}
	// In TLS 1.3 that takes a process without AES, which this one is not.
	_, err := runClient(options(address, LayerCryptoTLS, func(o *Options) { chacha(o); o.Version = "1.3" }))
	if err == nil || !strings.Contains(err.Error(), "not chacha20") {
		t.Errorf("asked for ChaCha20 in TLS 1.3: %v", err)
	}
}

func TestOptionsThatDoNotGoTogetherAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"no amount":          func(o *Options) { o.Download = true },
		"time and amount":    func(o *Options) { o.Time, o.Bytes = 1, 1 },
		"no record layer":    func(o *Options) { o.Layer, o.Bytes = "ssl", 1 },
		"no streams":         func(o *Options) { o.Streams, o.Bytes = 0, 1 },
		"discard an upload":  func(o *Options) { o.Layer, o.Bytes, o.Verify = LayerDiscard, 1, false },
		"verify what is not": func(o *Options) { o.Layer, o.Bytes, o.Download = LayerDiscard, 1, true },
		"too large an echo":  func(o *Options) { o.Small, o.Count = maxEcho+1, 1 },
		"resume without TLS": func(o *Options) { o.Layer, o.Handshakes, o.Resumed = LayerNone, 1, true },
		"AES-256 in TLS 1.3": func(o *Options) { o.Bytes, o.Suite = 1, "aes256" },
		"no such suite":      func(o *Options) { o.Bytes, o.Suite = 1, "rc4" },
		"no such version":    func(o *Options) { o.Bytes, o.Version = 1, "1.1" },
		"no such group":      func(o *Options) { o.Bytes, o.Group = 1, "p521" },
		"hybrid in TLS 1.2":  func(o *Options) { o.Bytes, o.Version, o.Group = 1, "1.2", "mlkem" },
		"writes of nothing":  func(o *Options) { o.Bytes, o.WriteSize = 1, 0 },
		"no address":         func(o *Options) { o.Bytes, o.Address = 1, "localhost" },
	} {
		var usage *UsageError
		if _, err := NewClient(options("127.0.0.1:1", LayerCryptoTLS, change)); !errors.As(err, &usage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
