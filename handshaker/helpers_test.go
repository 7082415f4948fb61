// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// certificates of the tests: one authority, servers a.test and b.test with ECDSA and
// a.test with RSA, and a client.
type certificates struct {
	roots                       *x509.CertPool
	rootDER                     []byte
	ecdsaA, ecdsaB, rsa, client tls.Certificate
	stranger                    tls.Certificate // signed by itself
}

var certs = sync.OnceValue(func() *certificates {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	var serial int64
	issue := func(key crypto.Signer, name string, parent *tls.Certificate) tls.Certificate {
		serial++
		t := &x509.Certificate{
			SerialNumber: big.NewInt(serial),
			Subject:      pkix.Name{CommonName: name},
			NotBefore:    time.Now().Add(-time.Hour),
			NotAfter:     time.Now().Add(time.Hour),
			DNSNames:     []string{name},
			KeyUsage:     x509.KeyUsageDigitalSignature,
			ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		signer, issuer := key, t
		if parent != nil {
			signer, issuer = parent.PrivateKey.(crypto.Signer), parent.Leaf
		} else {
			t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
			t.ExtKeyUsage = nil
		}
		der, err := x509.CreateCertificate(rand.Reader, t, issuer, key.Public(), signer)
		must(err)
		leaf, err := x509.ParseCertificate(der)
		must(err)
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	}
	ec := func() crypto.Signer {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		return k
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	root := issue(ec(), "root", nil)
	c := certificates{roots: x509.NewCertPool(), rootDER: root.Certificate[0]}
	c.roots.AddCert(root.Leaf)
	c.ecdsaA = issue(ec(), "a.test", &root)
	c.ecdsaB = issue(ec(), "b.test", &root)
	c.rsa = issue(rsaKey, "a.test", &root)
	c.client = issue(ec(), "client", &root)
	c.stranger = issue(ec(), "stranger", nil)
	return &c
})

func serverTLS() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{certs().ecdsaA}} }
func clientTLS() *tls.Config { return &tls.Config{RootCAs: certs().roots, ServerName: "a.test"} }

// template returns a minimal template for a role.
func template(role blob.Role) *tls.Config {
	if role == blob.Server {
		return serverTLS()
	}
	return clientTLS()
}

func otherRole(r blob.Role) blob.Role { return blob.Client + blob.Server - r }

// tcpPair returns both ends of a loopback connection.
func tcpPair(t testing.TB) (*net.TCPConn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	for _, c := range []net.Conn{a, b} {
		c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

func tlsConn(role blob.Role, conn net.Conn, c *tls.Config) *tls.Conn {
	if role == blob.Server {
		return tls.Server(conn, c)
	}
	return tls.Client(conn, c)
}

// meeting is a hand-over and its crypto/tls peer.
type meeting struct {
	*testing.T
	h       *handshake
	session *Session
	conn    net.Conn
	peer    *tls.Conn
}

// meet lets a handshake and a crypto/tls peer meet over TCP; both must succeed.
func meet(t *testing.T, role blob.Role, config *Config, peerConfig *tls.Config) *meeting {
	t.Helper()
	ours, theirs := tcpPair(t)
	m := &meeting{T: t, conn: ours, peer: tlsConn(otherRole(role), theirs, peerConfig)}
	var err error
	if m.h, err = newHandshake(role, ours, config); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- m.peer.Handshake() }()
	if m.session, err = m.h.run(testContext(t)); err != nil {
		t.Fatalf("%v: %v (peer: %v)", role, err, <-done)
	}
	if err := <-done; err != nil {
		t.Fatalf("peer: %v", err)
	}
	checkLogDestroyed(t, m.h)
	ours.SetDeadline(time.Now().Add(20 * time.Second))
	return m
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func contextWithTimeout(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}
