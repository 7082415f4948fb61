// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// TestGnuTLSAsAPeer: both ways, with KeyUpdates of either side where the kernel can, and
// its proper end.
func TestGnuTLSAsAPeer(t *testing.T) {
	ktlstest.Require(t)
	cert, certFile, keyFile := newIdentity(t)
	const priority = "NORMAL:-VERS-ALL:+VERS-TLS1.3"
	t.Run("gnutls-cli", func(t *testing.T) {
		l := ktlstest.Listen(t)
		g := startPeer(t, "gnutls-cli", "--insecure", "--inline-commands", "--priority", priority,
			"--port", strconv.Itoa(l.Addr().(*net.TCPAddr).Port), "127.0.0.1")
		l.SetDeadline(time.Now().Add(20 * time.Second))
		tcp, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tcp.Close() })
		k := keepSession(t, tcp, blob.Server, &tls.Config{Certificates: []tls.Certificate{cert}})
		g.expect("Handshake was completed")
		n := 0
		both := func() {
			t.Helper()
			n++
			g.say(fmt.Sprintf("up %d", n))
			mustRead(t, k.conn, fmt.Sprintf("up %d\n", n))
			mustWrite(t, k.conn, strings.Repeat("x", 20000)+fmt.Sprintf("down %d\n", n))
			g.expect(fmt.Sprintf("down %d\n", n))
		}
		both()
		if ktlstest.CanRekey() {
			for i, command := range []string{"^rekey1^", "^rekey^"} { // the second wants one of ours
				g.say(command)
				waitReadable(t, k.tcp)
				both()
				checkEpochs(t, k, uint32(i+1), uint32(i))
			}
			if err := k.conn.UpdateKey(true); err != nil {
				t.Fatal(err)
			}
			both()
			both()
			checkEpochs(t, k, 3, 2)
		}
		g.stdin.Close() // it sends close_notify
		if n, err := k.conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%d bytes, %v", n, err)
		}
		if err := k.conn.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("gnutls-serv", func(t *testing.T) {
		l := ktlstest.Listen(t)
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		startPeer(t, "gnutls-serv", "--echo", "--priority", priority, "--disable-client-cert", "--port", strconv.Itoa(port),
			"--x509certfile", certFile, "--x509keyfile", keyFile)
		var c net.Conn
		var err error
		for range 100 {
			if c, err = net.Dial("tcp", l.Addr().String()); err == nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		k := keepSession(t, c.(*net.TCPConn), blob.Client, clientTLS())
		// Its echo ends behind 32 KiB.
		const updates = 7 // it takes 8 in a second, and answers more with internal_error
		for i := range 20 {
			if i < updates && ktlstest.CanRekey() {
				if err := k.conn.UpdateKey(i%2 == 0); err != nil {
					t.Fatal(err)
				}
			}
			line := append(bytes.Repeat([]byte{byte('a' + i)}, 100*(i+1)), '\n')
			mustWrite(t, k.conn, string(line))
			mustRead(t, k.conn, string(line))
		}
		if ktlstest.CanRekey() {
			checkEpochs(t, k, updates/2+1, updates)
		}
		if err := k.conn.CloseWrite(); err != nil {
			t.Error(err)
		}
		k.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := k.conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}
