// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"
)

// answering serves connections one after another: what f does with each, over TLS if asked.
func answering(t *testing.T, withTLS bool, f func(net.Conn)) string {
	t.Helper()
	address, _ := served(t, func(ctx context.Context, l net.Listener, _ *slog.Logger) error {
		stop := context.AfterFunc(ctx, func() { l.Close() })
		defer stop()
		config := testConfig(t)
		for {
			conn, err := l.Accept()
			if err != nil {
				return nil
			}
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			if withTLS {
				conn = tls.Server(conn, config)
			}
			go func() {
				defer conn.Close()
				f(conn)
			}()
		}
	})
	return address
}

// TestABodyThatIsCutIsAnError, also where nobody deciphers it.
func TestABodyThatIsCutIsAnError(t *testing.T) {
	for _, layer := range []string{LayerNone, LayerCryptoTLS, LayerDiscard} {
		address := answering(t, layer != LayerNone, func(conn net.Conn) {
			conn.Read(make([]byte, 1000))
			conn.Write(appendHead(nil, 200, 100_000, true))
			conn.Write(make([]byte, 99_999))
		})
		_, err := runClient(options(address, layer, func(o *Options) { o.Download, o.Bytes, o.Verify, o.NoUsage = true, 100_000, false, true }))
		if layer == LayerDiscard { // the handshake's tickets make up for a byte, but not for records
			address = answering(t, true, func(conn net.Conn) {
				conn.Read(make([]byte, 1000))
				conn.Write(make([]byte, 60_000))
			})
			_, err = runClient(options(address, layer, func(o *Options) { o.Download, o.Bytes, o.Verify, o.NoUsage = true, 100_000, false, true }))
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", layer, err)
		}
	}
}

// TestContentThatIsWrongIsAnError: one bit, in any direction.
func TestContentThatIsWrongIsAnError(t *testing.T) {
	address := answering(t, false, func(conn net.Conn) {
		p := newPattern(maxEcho)
		r := reader{conn: conn}
		for {
			h, err := r.head()
			if err != nil {
				return
			}
			method, _, _ := h.target()
			switch string(method) {
			case "GET":
				body := append([]byte(nil), p.at(0, 1000)...)
				body[999] ^= 1
				conn.Write(append(appendHead(nil, 200, 1000, false), body...))
			case "PUT":
				body := []byte(`{"bytes":1000,"sha256":"00"}`)
				r.drain(h.length, func([]byte) {})
				conn.Write(append(appendHead(nil, 200, int64(len(body)), false), body...))
			default:
				body, _ := r.body(int(h.length))
				body[0] ^= 1
				conn.Write(append(appendHead(nil, 200, h.length, false), body...))
			}
		}
	})
	for name, change := range map[string]func(*Options){
		"download": func(o *Options) { o.Download, o.Bytes = true, 1000 },
		"upload":   func(o *Options) { o.Bytes = 1000 },
		"echo":     func(o *Options) { o.Small, o.Count = 10, 1 },
	} {
		o := options(address, LayerNone, func(o *Options) { change(o); o.NoUsage = true })
		if _, err := runClient(o); err == nil || !strings.Contains(err.Error(), "SHA-256") && !strings.Contains(err.Error(), "differs") {
			t.Errorf("%s: %v", name, err)
		}
		o.Verify = false
		if _, err := runClient(o); err != nil {
			t.Errorf("%s that is not verified: %v", name, err)
		}
	}
}

// TestResumptionThatFailsIsAnError: full handshakes do not pass for resumed ones.
func TestResumptionThatFailsIsAnError(t *testing.T) {
	address, _ := served(t, func(ctx context.Context, l net.Listener, log *slog.Logger) error {
		config, err := ServerConfig("", "", Choice{}, false)
		if err != nil {
			return err
		}
		s, err := NewServer(CryptoTLS, config, 1000, log)
		if err != nil {
			return err
		}
		return s.Serve(ctx, l)
	})
	_, err := runClient(options(address, LayerCryptoTLS, func(o *Options) { o.Handshakes, o.Resumed = 3, true }))
	if err == nil || !strings.Contains(err.Error(), "0 of 3 handshakes") {
		t.Errorf("%v", err)
	}
}

// TestAForeignServerIsMeasuredWithoutUsage.
func TestAForeignServerIsMeasuredWithoutUsage(t *testing.T) {
	address := answering(t, true, func(conn net.Conn) {
		r := reader{conn: conn}
		for {
			h, err := r.head()
			if err != nil {
				return
			}
			if _, path, _ := h.target(); string(path) != "/5" {
				io.WriteString(conn, "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone")
				continue
			}
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nServer: other\r\nContent-Length: 5\r\n\r\nhello")
		}
	})
	r := mustRun(t, options(address, LayerCryptoTLS, func(o *Options) { o.Small, o.Get, o.Count, o.Verify = 5, true, 3, false }))
	if r.Server != nil || r.Client == nil || !strings.Contains(r.ServerWhy, "404") {
		t.Errorf("%+v, %q", r.Server, r.ServerWhy)
	}
	mustRun(t, options(address, LayerCryptoTLS, func(o *Options) { o.Handshakes = 2 })) // that it has no /1 does no harm
	if _, err := runClient(options(address, LayerCryptoTLS, func(o *Options) { o.Download, o.Bytes = true, 6 })); err == nil || !strings.Contains(err.Error(), "answers 404") {
		t.Errorf("a file that is not there: %v", err)
	}
}
