// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/token"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/token/tokentest"
)

// These tests run real workers and a real signer, and so all of serve but what needs
// kernel TLS: the installation of the keys that come out.

// testSignerUID is the user of signers in tests; workers run as 60601.
const testSignerUID = 60604

// signingPool is the workers and the signer of a daemon.
type signingPool struct {
	t       *testing.T
	pool    *pool
	signers *signerKeeper
	log     *serveLog
	issuer  *issuer
	stop    func()
}

// issuer makes certificates for keys that others hold.
type issuer struct {
	dir   string
	ca    tls.Certificate
	key   crypto.Signer
	roots *x509.CertPool
}

// requireHost skips in a virtual machine: nothing here depends on the kernel, and RSA
// keys are slow to make there.
func requireHost(t *testing.T) {
	t.Helper()
	if os.Getenv("OFFLOADD_VM_KERNEL") != "" {
		t.Skip("runs on the host")
	}
	if os.Geteuid() != 0 {
		t.Skip("giving processes users of their own needs root")
	}
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{dir: openDir(t), key: newECDSA(t), roots: x509.NewCertPool()}
	i.ca = issue(t, "authority", i.key, nil, nil)
	i.roots.AddCert(i.ca.Leaf)
	writePEM(t, filepath.Join(i.dir, "ca.pem"), "CERTIFICATE", i.ca.Certificate[0])
	return i
}

// publicOnly is a key of which the test has the public part.
type publicOnly struct{ public crypto.PublicKey }

func (p publicOnly) Public() crypto.PublicKey { return p.public }
func (p publicOnly) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("the test does not have this key")
}

// chain writes a certificate for host and returns its path.
func (i *issuer) chain(t *testing.T, host string, public crypto.PublicKey) string {
	t.Helper()
	path := filepath.Join(i.dir, fmt.Sprintf("%s-%d.pem", host, time.Now().UnixNano()))
	writePEM(t, path, "CERTIFICATE", issue(t, host, publicOnly{public}, i.ca.Leaf, i.key).Certificate[0])
	return path
}

// file writes a certificate and its key in a file, as without tokens.
func (i *issuer) file(t *testing.T, host string) certificateConfig {
	t.Helper()
	key := newECDSA(t)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	c := certificateConfig{Chain: i.chain(t, host, key.Public()), Key: filepath.Join(i.dir, host+".key")}
	writePEM(t, c.Key, "PRIVATE KEY", der)
	return c
}

// trySigningPool starts signer and workers, or says why not.
func trySigningPool(t *testing.T, i *issuer, change func(*config), certificates ...certificateConfig) (*signingPool, error) {
	t.Helper()
	c := defaultConfig()
	c.Workers, c.WorkerUser, c.SignerUser = 1, "60601", fmt.Sprint(testSignerUID)
	c.Listeners = []listenerConfig{{Name: "web", Address: "127.0.0.1:0", Application: "/nowhere", Certificates: certificates, NoTickets: true}}
	c.Listeners[0].setDefaults()
	if change != nil {
		change(c)
	}
	if err := c.validate(); err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	log := slog.New(slog.NewJSONHandler(w, nil))
	env := &environment{stderr: w, reached: func(step) {}, workerEnv: []string{envRole + "=1", "GORACE=atexit_sleep_ms=0"}}
	key, err := blob.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	s := &signingPool{t: t, log: newServeLog(r), issuer: i}
	if s.signers, err = newSignerKeeper(c, 60601, env, log); err != nil {
		return nil, err
	}
	s.pool = newPool(c, 60601, 60601, key, s.signers, env, log)
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = sync.OnceFunc(func() { // in the order of serve
		cancel()
		drained, done := context.WithTimeout(context.Background(), 20*time.Second)
		defer done()
		s.pool.stop(drained)
		s.signers.stop()
		if t.Failed() {
			t.Log(s.log.dump())
		}
	})
	if err := s.signers.start(ctx); err != nil {
		cancel()
		return s, err
	}
	t.Cleanup(s.stop)
	return s, s.pool.start(ctx)
}

func startSigningPool(t *testing.T, i *issuer, change func(*config), certificates ...certificateConfig) *signingPool {
	t.Helper()
	s, err := trySigningPool(t, i, change, certificates...)
	if err != nil {
		if s != nil {
			t.Log(s.log.dump())
		}
		t.Fatal(err)
	}
	return s
}

// waitFor returns the nth log entry with this message.
func (s *signingPool) waitFor(message string, nth int) logEntry {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if e := s.log.nth(message, nth); e != nil {
			return e
		}
	}
	s.t.Fatalf("the log does not say %q %d times\n%s", message, nth, s.log.dump())
	return nil
}

// workersConnection is one TCP connection that a worker has.
type workersConnection struct {
	client net.Conn
	reply  <-chan reply
}

// offer connects and gives the server's end to a worker.
func (s *signingPool) offer() (*workersConnection, error) {
	s.t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		s.t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { client.Close() })
	client.SetDeadline(time.Now().Add(30 * time.Second))
	server, err := l.AcceptTCP()
	if err != nil {
		s.t.Fatal(err)
	}
	return s.give(client, server)
}

func (s *signingPool) give(client net.Conn, server *net.TCPConn) (*workersConnection, error) {
	s.t.Helper()
	defer server.Close()
	cookie, err := handoff.Cookie(server)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	listener := &listener{listenerConfig: &s.pool.config.Listeners[0]}
	_, replies, err := s.pool.offer(ctx, &connection{listener: listener, tcp: server, cookie: cookie})
	return &workersConnection{client, replies}, err
}

// handshake completes one as a client, and returns its end and what the worker says.
func (c *workersConnection) handshake(config *tls.Config) (tls.ConnectionState, error) {
	client := tls.Client(c.client, config)
	failed := client.Handshake()
	if failed != nil {
		c.client.Close()
	}
	r := <-c.reply
	r.destroy()
	if r.err != nil {
		return tls.ConnectionState{}, r.err
	}
	return client.ConnectionState(), failed
}

// connect is offer and handshake.
func (s *signingPool) connect(host string, version uint16, suites ...uint16) (tls.ConnectionState, error) {
	s.t.Helper()
	c, err := s.offer()
	if err != nil {
		return tls.ConnectionState{}, err
	}
	return c.handshake(&tls.Config{RootCAs: s.issuer.roots, ServerName: host, MinVersion: version, MaxVersion: version, CipherSuites: suites})
}

func (s *signingPool) mustConnect(host string, version uint16) {
	s.t.Helper()
	if _, err := s.connect(host, version); err != nil {
		s.t.Errorf("%s, %s: %v", host, tls.VersionName(version), err)
	}
}

// device is a token of a test with one key of each kind.
type device struct {
	name         string
	certificates []certificateConfig
	objects      func() string
}

// devices makes a TPM and a PKCS#11 token. Host names are the kinds of the keys.
func devices(t *testing.T, i *issuer) []device {
	t.Helper()
	tpm := tokentest.StartTPM(t)
	d := device{name: "TPM", objects: tpm.Objects}
	for _, k := range []struct {
		host string
		make func() (string, crypto.PublicKey)
	}{
		{"rsa.test", func() (string, crypto.PublicKey) { return tpm.Make(tokentest.RSA, "") }},
		{"p256.test", func() (string, crypto.PublicKey) { return tpm.Make(tokentest.P256, "") }},
		{"p384.test", func() (string, crypto.PublicKey) { return tpm.Make(tokentest.P384, "") }},
	} {
		reference, public := k.make()
		d.certificates = append(d.certificates, certificateConfig{i.chain(t, k.host, public), reference})
	}
	all := []device{d}
	if hasPKCS11(t) {
		all = append(all, pkcs11Device(t, i))
	}
	return all
}

// hasPKCS11 reports whether this build has it. The builds that must have it say so.
func hasPKCS11(t *testing.T) bool {
	t.Helper()
	r, err := token.Parse("pkcs11:token=t;object=o?module-path=/m")
	if err == nil {
		err = r.Supported()
	}
	if err != nil && os.Getenv(tokentest.EnvExpect) != "" {
		t.Error(err)
	}
	return err == nil
}

func pkcs11Device(t *testing.T, i *issuer) device {
	t.Helper()
	hsm := tokentest.NewSoftHSM(t, testSignerUID)
	hsm.MakeToken("web")
	pin := hsm.PINFile(tokentest.PIN)
	d := device{name: "PKCS#11", objects: hsm.Objects}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for n, k := range []struct {
		host string
		key  crypto.Signer
	}{{"rsa.test", rsaKey}, {"p256.test", newECDSA(t)}, {"p384.test", p384}} {
		hsm.Import("web", k.host, fmt.Sprintf("%02d", n), k.key)
		d.certificates = append(d.certificates, certificateConfig{i.chain(t, k.host, k.key.Public()), hsm.URI("token=web;object="+k.host, pin)})
	}
	return d
}

// TestHandshakesWithKeysInTokens: each kind of key, version and peer; through the
// replacement of workers, the death of the signer, and the end of all, the token keeps
// what it had.
func TestHandshakesWithKeysInTokens(t *testing.T) {
	requireHost(t)
	i := newIssuer(t)
	for _, d := range devices(t, i) {
		t.Run(d.name, func(t *testing.T) {
			before := d.objects()
			s := startSigningPool(t, i, func(c *config) { c.WorkerConnections = 4 }, d.certificates...)
			same := func(when string) {
				t.Helper()
				if after := d.objects(); after != before || after == "" {
					t.Errorf("objects before:\n%s%s:\n%s", before, when, after)
				}
			}
			signed := 0
			all := func() {
				for _, host := range []string{"rsa.test", "p256.test", "p384.test"} {
					for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
						s.mustConnect(host, version)
						signed++
					}
				}
			}
			all()
			s.waitFor("worker left", 1)
			same("after a worker")
			pid := int(s.waitFor("signer ready", 1).number("signer_pid"))
			if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err != nil || !strings.Contains(string(status), fmt.Sprintf("\nUid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d", testSignerUID)) || !strings.Contains(string(status), "\nNoNewPrivs:\t1") {
				t.Errorf("the signer is not what it should be: %v\n%s", err, status)
			}
			unix.Kill(pid, unix.SIGKILL)
			s.waitFor("signer died", 1)
			s.waitFor("signer ready", 2)
			same("after a signer was killed")
			signed = 0
			all()
			signed += s.openssl("rsa.test", "-tls1_2", "-sigalgs", "RSA+SHA256")
			signed += s.openssl("rsa.test", "-tls1_2", "-sigalgs", "RSA-PSS+SHA512")
			signed += s.openssl("rsa.test", "-tls1_3", "-sigalgs", "RSA-PSS+SHA384")
			signed += s.openssl("p256.test", "-tls1_3")
			signed += s.openssl("p384.test", "-tls1_2")
			s.stop()
			same("after the end")
			if left := s.waitFor("signer left", 1); left.number("signed") != int64(signed) || left.number("failed") != 0 || left.number("refused") != 0 {
				t.Errorf("the signer counts %v, want %d signatures", left, signed)
			}
		})
	}
}

// openssl connects with OpenSSL and returns 1.
func (s *signingPool) openssl(host string, args ...string) int {
	s.t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		s.t.Fatal(err)
	}
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		s.t.Fatal(err)
	}
	defer l.Close()
	replied := make(chan error, 1)
	go func() {
		server, err := l.AcceptTCP()
		if err != nil {
			replied <- err
			return
		}
		c, err := s.give(nil, server)
		if err == nil {
			r := <-c.reply
			r.destroy()
			err = r.err
		}
		replied <- err
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", append([]string{
		"s_client", "-connect", l.Addr().String(), "-servername", host, "-verify_hostname", host, "-CAfile", filepath.Join(s.issuer.dir, "ca.pem"), "-verify_return_error", "-brief"}, args...)...)
	out, _ := cmd.CombinedOutput() // the end comes without close_notify: nobody took the connection over
	if err := <-replied; err != nil || !strings.Contains(string(out), "Verification: OK") {
		s.t.Errorf("openssl %v: %v\n%s", args, err, out)
	}
	return 1
}
