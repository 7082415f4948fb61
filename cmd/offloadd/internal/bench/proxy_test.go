// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"
)

// dialProxy connects as a client that can close one half.
func dialProxy(t *testing.T, address string, path Path) (halfCloser, *net.TCPConn) {
	t.Helper()
	dialed, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialed.Close() })
	dialed.SetDeadline(time.Now().Add(10 * time.Second))
	tcp := dialed.(*net.TCPConn)
	if path.plain() {
		return tcp, tcp
	}
	c := tls.Client(tcp, &tls.Config{InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return c, tcp
}

// TestAProxyPassesEndsOn, of each direction by itself: the target answers only when the client
// has said that this was all.
func TestAProxyPassesEndsOn(t *testing.T) {
	for _, path := range ProxyPaths {
		if elsewhere(path) {
			continue
		}
		t.Run(string(path), func(t *testing.T) {
			target := answering(t, false, func(conn net.Conn) {
				all, err := io.ReadAll(conn)
				if err != nil {
					all = []byte("error: " + err.Error())
				}
				conn.Write(append(all, all...))
				conn.(*net.TCPConn).CloseWrite()
			})
			address, log := startProxy(t, path, target)
			client, _ := dialProxy(t, address, path)
			sent := newPattern(1<<20).at(0, 300_000)
			if _, err := client.Write(sent); err != nil {
				t.Fatal(err)
			}
			if err := client.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(client)
			if err != nil || !bytes.Equal(got, append(bytes.Clone(sent), sent...)) {
				t.Errorf("%d bytes came back, want %d, %v: %.60q", len(got), 2*len(sent), err, got)
			}
			if log.String() != "" {
				t.Errorf("the proxy complains: %s", log)
			}
		})
	}
}

// TestAProxyPassesNoPartForTheWhole: an upload that is cut reaches the target as a reset. (For
// crypto/tls a FIN without close_notify is an end, and so it is for a proxy with that.)
func TestAProxyPassesNoPartForTheWhole(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan error, 1)
	target := answering(t, false, func(conn net.Conn) {
		if _, err := io.ReadFull(conn, make([]byte, 1)); err == nil {
			close(begun)
		}
		_, err := io.Copy(io.Discard, conn)
		ended <- err
	})
	address, _ := startProxy(t, "ktls", target)
	client, tcp := dialProxy(t, address, "ktls")
	if _, err := client.Write(make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-begun: // a FIN before the keys are in would end the connection already there
	case <-time.After(20 * time.Second):
		t.Fatal("nothing reaches the target")
	}
	tcp.Close() // FIN, and no close_notify
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the target takes it for complete")
		}
	case <-time.After(20 * time.Second):
		t.Error("the target is not told")
	}
}
