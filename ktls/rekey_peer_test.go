// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/handshaker"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// newIdentity makes a certificate, and its files for other programs.
func newIdentity(t testing.TB) (cert tls.Certificate, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		file("cert.pem", "CERTIFICATE", der), file("key.pem", "PRIVATE KEY", pkcs8)
}

// keepSession shakes hands and keeps the custody.
func keepSession(t testing.TB, tcp *net.TCPConn, role blob.Role, config *tls.Config) *kept {
	t.Helper()
	shake := handshaker.Server
	if role == blob.Client {
		shake = handshaker.Client
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	session, err := shake(ctx, tcp, &handshaker.Config{TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	s := ktlstest.States{Read: session.Read, Write: session.Write}
	ktlstest.Bind(t, tcp, s)
	return keep(t, tcp, s)
}

func clientTLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true} // of nobody's identity
}

// TestKeyUpdatesWithCryptoTLS: it follows ours, and answers requests by itself.
func TestKeyUpdatesWithCryptoTLS(t *testing.T) {
	requireRekey(t)
	cert, _, _ := newIdentity(t)
	serverTLS := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}}
	const pieces, size = 40, 100_000
	for _, role := range []blob.Role{blob.Client, blob.Server} {
		t.Run(role.String(), func(t *testing.T) {
			p := ktlstest.NewPair(t)
			ours, config, peer := p.Client, clientTLS(), tls.Server(p.Server, serverTLS)
			if role == blob.Server {
				ours, config, peer = p.Server, serverTLS, tls.Client(p.Client, clientTLS())
			}
			go func() { // an echo
				io.Copy(peer, struct{ io.Reader }{peer})
				peer.CloseWrite()
			}()
			k := keepSession(t, ours, role, config)
			sent := randomBytes(pieces * size)
			var wg sync.WaitGroup
			wg.Go(func() {
				for i := range pieces {
					if err := k.conn.UpdateKey(i%2 == 0); err != nil {
						t.Error(err)
					}
					if _, err := k.conn.Write(sent[i*size:][:size]); err != nil {
						t.Error(err)
					}
				}
			})
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(k.conn, got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("other bytes came back, %v", err)
			}
			wg.Wait()
			checkEpochs(t, k, pieces/2, pieces)
			k.conn.CloseWrite()
			if n, err := k.conn.Read(got); n != 0 || err != io.EOF {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
	}
}

// openssl is a running s_client or s_server, or another such program.
type openssl struct {
	t     *testing.T
	stdin io.WriteCloser
	out   io.Reader
	seen  bytes.Buffer
}

func startOpenSSL(t *testing.T, args ...string) *openssl {
	t.Helper()
	return startPeer(t, "openssl", args...)
}

func startPeer(t *testing.T, program string, args ...string) *openssl {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil && !ktlstest.InVM() {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	cmd := exec.CommandContext(ctx, program, args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.SetReadDeadline(time.Now().Add(time.Minute))
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
		r.Close()
	})
	return &openssl{t: t, stdin: stdin, out: r}
}

// say writes a line to its standard input.
func (o *openssl) say(line string) {
	o.t.Helper()
	if _, err := io.WriteString(o.stdin, line+"\n"); err != nil {
		o.t.Fatal(err)
	}
}

// expect reads what it prints up to a text.
func (o *openssl) expect(text string) {
	o.t.Helper()
	var b [1]byte
	for !bytes.HasSuffix(o.seen.Bytes(), []byte(text)) {
		if _, err := o.out.Read(b[:]); err != nil {
			o.t.Fatalf("no %q in what it printed, %v: %s", text, err, o.seen.Bytes())
		}
		o.seen.WriteByte(b[0])
	}
}

// TestKeyUpdatesWithOpenSSL, by the commands k (without a request) and K (with one) of
// its s_client and s_server.
func TestKeyUpdatesWithOpenSSL(t *testing.T) {
	requireRekey(t)
	cert, certFile, keyFile := newIdentity(t)
	t.Run("s_client", func(t *testing.T) {
		l := ktlstest.Listen(t)
		o := startOpenSSL(t, "s_client", "-connect", l.Addr().String(), "-tls1_3", "-brief")
		tcp, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tcp.Close() })
		k := keepSession(t, tcp, blob.Server, &tls.Config{Certificates: []tls.Certificate{cert}})
		updateWithOpenSSL(t, k, o, func() { o.expect("KEYUPDATE") })
	})
	t.Run("s_server", func(t *testing.T) {
		l := ktlstest.Listen(t)
		address := l.Addr().String()
		l.Close()
		o := startOpenSSL(t, "s_server", "-accept", address, "-tls1_3", "-naccept", "1", "-cert", certFile, "-key", keyFile)
		o.expect("ACCEPT")
		var c net.Conn
		var err error
		for range 100 { // it says so before it listens
			if c, err = net.Dial("tcp", address); err == nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		k := keepSession(t, c.(*net.TCPConn), blob.Client, clientTLS())
		// Unlike s_client it sends the KeyUpdate at once, and what it prints is buffered.
		updateWithOpenSSL(t, k, o, func() { waitReadable(t, k.tcp) })
	})
}

// updateWithOpenSSL changes keys by turns. A command must be read before a line that is
// none comes: obeyed waits for that.
func updateWithOpenSSL(t *testing.T, k *kept, o *openssl, obeyed func()) {
	t.Helper()
	n := 0
	both := func() {
		t.Helper()
		n++
		up, down := fmt.Sprintf("up %d\n", n), fmt.Sprintf("down %d\n", n)
		if _, err := io.WriteString(o.stdin, up); err != nil {
			t.Fatal(err)
		}
		mustRead(t, k.conn, up)
		mustWrite(t, k.conn, down)
		o.expect(down)
	}
	command := func(name string) {
		t.Helper()
		o.say(name)
		obeyed()
	}
	both()
	command("k")
	both()
	checkEpochs(t, k, 1, 0)
	command("K")
	both()
	checkEpochs(t, k, 2, 1)
	if err := k.conn.UpdateKey(false); err != nil {
		t.Fatal(err)
	}
	both()
	checkEpochs(t, k, 2, 2)
	if err := k.conn.UpdateKey(true); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, k.conn, "asked\n")
	o.expect("asked\n")
	both()
	checkEpochs(t, k, 3, 3)
}
