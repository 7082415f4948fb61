// SPDX-License-Identifier: Apache-2.0

package userspace_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/handshaker"
	"github.com/offloadd/offloadd/ktls/ktlstest"
	"github.com/offloadd/offloadd/ktls/userspace"
)

// identities are two certificates, of an ECDSA and of an RSA key.
var identities = sync.OnceValue(func() (certs []tls.Certificate) {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	for i, key := range []crypto.Signer{ec, rsaKey} {
		template := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)), NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		must(err)
		certs = append(certs, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
	}
	return certs
})

// tlsConfig is for one suite, as far as crypto/tls lets one choose.
func tlsConfig(suite blob.CipherSuite) *tls.Config {
	c := &tls.Config{
		Certificates: identities(), InsecureSkipVerify: true, // of nobody's identity
		MinVersion: uint16(suite.Version()), MaxVersion: uint16(suite.Version()),
	}
	if suite.Version() == blob.TLS12 {
		c.CipherSuites = []uint16{uint16(suite)}
	}
	return c
}

// shake completes a handshake and goes on in user space.
func shake(t *testing.T, tcp *net.TCPConn, role blob.Role, config *tls.Config) (*userspace.Conn, blob.Facts) {
	t.Helper()
	handshake := handshaker.Server
	if role == blob.Client {
		handshake = handshaker.Client
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	session, err := handshake(ctx, tcp, &handshaker.Config{TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	conn := newConn(t, tcp, ktlstest.States{Read: session.Read, Write: session.Write})
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	return conn, session.Facts
}

var bothRoles = []blob.Role{blob.Client, blob.Server}

// TestWithCryptoTLS, which follows our KeyUpdates, and answers requests by itself.
func TestWithCryptoTLS(t *testing.T) {
	const pieces, size = 20, 50_000
	for _, suite := range blob.CipherSuites() {
		for _, role := range bothRoles {
			if suite.Version() == blob.TLS13 && suite != suite13 {
				continue // of which it takes the first: the others are for OpenSSL
			}
			t.Run(fmt.Sprintf("%v, %v", suite, role), func(t *testing.T) {
				p := ktlstest.NewPair(t)
				ours, peer := p.Client, tls.Server(p.Server, tlsConfig(suite))
				if role == blob.Server {
					ours, peer = p.Server, tls.Client(p.Client, tlsConfig(suite))
				}
				go func() { // an echo
					io.Copy(peer, struct{ io.Reader }{peer})
					peer.CloseWrite()
				}()
				conn, facts := shake(t, ours, role, tlsConfig(suite))
				if suite.Version() == blob.TLS12 && facts.Suite != suite {
					t.Fatalf("%v, want %v", facts.Suite, suite)
				}
				sent := randomBytes(pieces * size)
				go func() {
					for i := range pieces {
						if suite.Version() == blob.TLS13 {
							if err := conn.UpdateKey(i%2 == 0); err != nil {
								t.Error(err)
							}
						}
						if _, err := conn.Write(sent[i*size:][:size]); err != nil {
							t.Error(err)
						}
					}
					conn.CloseWrite()
				}()
				if got, err := io.ReadAll(conn); !bytes.Equal(got, sent) || err != nil {
					t.Errorf("%d bytes of %d came back, or others, %v", len(got), len(sent), err)
				}
			})
		}
	}
}

// opensslSuite is the name that OpenSSL has for it, and the option it is given to.
func opensslSuite(s blob.CipherSuite) []string {
	if s.Version() == blob.TLS13 {
		return []string{"-tls1_3", "-ciphersuites", s.String()}
	}
	name := strings.NewReplacer("TLS_", "", "_WITH_", "-", "_", "-", "AES_128", "AES128", "AES_256", "AES256",
		"POLY1305_SHA256", "POLY1305").Replace(s.String())
	return []string{"-tls1_2", "-cipher", name}
}

// openssl starts one with a standard input that the test writes.
func openssl(t *testing.T, stdout io.Writer, args ...string) io.WriteCloser {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		if ktlstest.InVM() {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	cmd := exec.CommandContext(ctx, "openssl", args...)
	cmd.Stdout, cmd.Stderr = stdout, stdout
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
	})
	return stdin
}

// identityFiles are the certificates and keys for OpenSSL.
func identityFiles(t *testing.T) (args []string) {
	t.Helper()
	dir := t.TempDir()
	for i, options := range [][2]string{{"-cert", "-key"}, {"-dcert", "-dkey"}} {
		key, err := x509.MarshalPKCS8PrivateKey(identities()[i].PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		for j, block := range []*pem.Block{
			{Type: "CERTIFICATE", Bytes: identities()[i].Certificate[0]}, {Type: "PRIVATE KEY", Bytes: key},
		} {
			name := filepath.Join(dir, fmt.Sprint(i, j))
			if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, options[j], name)
		}
	}
	return args
}

// TestWithOpenSSLAsServer: it sends every line back reversed.
func TestWithOpenSSLAsServer(t *testing.T) {
	for _, suite := range blob.CipherSuites() {
		t.Run(suite.String(), func(t *testing.T) {
			t.Parallel() // it pauses for a second behind each KeyUpdate
			r, w := newOutput(t)
			openssl(t, w, append(append([]string{"s_server", "-accept", "127.0.0.1:0", "-rev"}, opensslSuite(suite)...), identityFiles(t)...)...)
			r.expect("ACCEPT ")
			c, err := net.Dial("tcp", r.line())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conn, facts := shake(t, c.(*net.TCPConn), blob.Client, tlsConfig(suite))
			if facts.Suite != suite {
				t.Fatalf("%v, want %v", facts.Suite, suite)
			}
			const lines, size = 60, 8000
			line := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i%26), byte('A' + i%23)}, size/2) }
			go func() {
				for i := range lines {
					if suite.Version() == blob.TLS13 && i%20 == 7 {
						if err := conn.UpdateKey(i == 7); err != nil {
							t.Error(err)
						}
					}
					conn.Write(append(line(i), '\n'))
				}
			}()
			got := make([]byte, size+1)
			for i := range lines {
				want := line(i)
				for at := range size / 2 {
					want[at], want[size-1-at] = want[size-1-at], want[at]
				}
				if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got[:size], want) {
					t.Fatalf("line %d is another, %v", i, err)
				}
			}
		})
	}
}

// TestWithOpenSSLAsClient: it sends what it reads and prints what it gets.
func TestWithOpenSSLAsClient(t *testing.T) {
	for _, suite := range blob.CipherSuites() {
		t.Run(suite.String(), func(t *testing.T) {
			l := ktlstest.Listen(t)
			r, w := newOutput(t)
			stdin := openssl(t, w, append([]string{"s_client", "-connect", l.Addr().String(), "-quiet", "-verify_quiet"}, opensslSuite(suite)...)...)
			tcp, err := l.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			defer tcp.Close()
			conn, facts := shake(t, tcp, blob.Server, tlsConfig(suite))
			if facts.Suite != suite {
				t.Fatalf("%v, want %v", facts.Suite, suite)
			}
			sent := randomBytes(300_000)
			go stdin.Write(sent)
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("other bytes came, %v", err)
			}
			go func() {
				conn.Write(sent)
				conn.Close()
			}()
			r.expect(string(sent))
		})
	}
}

// TestOpenSSLChangesItsKey, by its commands k, without a request, and K, with one.
func TestOpenSSLChangesItsKey(t *testing.T) {
	l := ktlstest.Listen(t)
	r, w := newOutput(t)
	stdin := openssl(t, w, "s_client", "-connect", l.Addr().String(), "-tls1_3", "-brief")
	tcp, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	conn, _ := shake(t, tcp, blob.Server, tlsConfig(suite13))
	for i, command := range []string{"k", "K", "k", "K"} {
		io.WriteString(stdin, command+"\n")
		r.expect("KEYUPDATE")
		up, down := fmt.Sprintf("up %d\n", i), fmt.Sprintf("down %d\n", i)
		io.WriteString(stdin, up)
		got := make([]byte, len(up))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != up {
			t.Fatalf("%q, %v", got, err)
		}
		conn.Write([]byte(down))
		r.expect(down)
	}
}

// output is what a process prints.
type output struct {
	t *testing.T
	r *os.File
	b bytes.Buffer
}

func newOutput(t *testing.T) (*output, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.SetReadDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return &output{t: t, r: r}, w
}

// expect reads what is printed up to a text, and takes it away.
func (o *output) expect(text string) {
	o.t.Helper()
	p := make([]byte, 64<<10)
	for {
		if at := bytes.Index(o.b.Bytes(), []byte(text)); at >= 0 {
			o.b.Next(at + len(text))
			return
		}
		n, err := o.r.Read(p)
		o.b.Write(p[:n])
		if err != nil {
			o.t.Fatalf("%d bytes were printed, without what was expected: %v", o.b.Len(), err)
		}
	}
}

// line reads the rest of a line.
func (o *output) line() string {
	o.t.Helper()
	for {
		if line, _, ok := strings.Cut(o.b.String(), "\n"); ok {
			return line
		}
		p := make([]byte, 1000)
		n, err := o.r.Read(p)
		o.b.Write(p[:n])
		if err != nil {
			o.t.Fatalf("no line behind %q: %v", o.b.String(), err)
		}
	}
}
