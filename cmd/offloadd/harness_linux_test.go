// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/bpf"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// The test binary is also offloadd: serve, its workers and the demo's application
// run from it, and die at a step if a test says so.
const (
	envRole     = "OFFLOADD_TEST_ROLE"      // set: be offloadd
	envSteps    = "OFFLOADD_TEST_STEPS"     // the file of testSteps
	envRogue    = "OFFLOADD_TEST_ROGUE"     // workers break the protocol: see rogue_linux_test.go
	envAttempt  = "OFFLOADD_TEST_ATTEMPT"   // a worker tries this: see confinement_linux_test.go
	envGuard    = "OFFLOADD_TEST_GUARD"     // a kernel series on which all tests run under the BPF guards
	envLeaveOut = "OFFLOADD_TEST_LEAVE_OUT" // parts of the confinement to do without, with commas
)

const bpfTestLoaded = "OFFLOADD_TEST_GUARD_LOADED"

func TestMain(m *testing.M) {
	if os.Getenv(envRole) == "" {
		if err := underGuard(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(exitFailed)
		}
		os.Exit(m.Run())
	}
	// A daemon that has begun anew lacks it already.
	if os.Getenv(envShielded) != strconv.Itoa(os.Getpid()) {
		if err := pretendToLack(os.Getenv(envLacks)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(exitFailed)
		}
	}
	env := &environment{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, reached: func(step) {}, exec: syscall.Exec}
	env.leaveOut = strings.Split(os.Getenv(envLeaveOut), ",")
	for _, name := range []string{envRole, envSteps, envRogue, envLeaveOut} {
		if v := os.Getenv(name); v != "" {
			env.workerEnv = append(env.workerEnv, name+"="+v)
		}
	}
	var steps testSteps
	if path := os.Getenv(envSteps); path != "" {
		var err error
		if steps, err = openTestSteps(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(exitFailed)
		}
		env.reached = steps.reach
	}
	if name := os.Getenv(envAttempt); name != "" {
		os.Exit(prisonerProcess(env, name))
	}
	if kind := os.Getenv(envRogue); kind != "" && os.Args[1] == "handshake" {
		os.Exit(rogueWorker(env, steps, kind))
	}
	os.Exit(run(env, os.Args[1:]))
}

// guardedKernel says that the daemons of all tests find guards, which is so on the kernel
// series that envGuard names.
func guardedKernel() bool {
	series := os.Getenv(envGuard)
	return series != "" && series == os.Getenv("OFFLOADD_KERNEL_SERIES")
}

// underGuard loads the guards for all tests. Tests may ask for keys of the sockets that
// they get as an application.
func underGuard() error {
	if !guardedKernel() || os.Getenv(bpfTestLoaded) != "" {
		return nil
	}
	if _, err := bpf.Load(bpf.Options{}); err != nil {
		return err
	}
	os.Setenv(bpfTestLoaded, "1") // for tests that are processes of their own
	return guardedSelf(bpf.DefaultDir)
}

// openDir makes a directory that workers can write to as well.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "offloadd-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// identity is a certificate authority with a server and a client certificate.
type identity struct {
	roots         *x509.CertPool
	client        tls.Certificate
	dir           string // ca.pem, ecdsa.pem, ecdsa.key, rsa.pem, rsa.key, other.pem, other.key
	caPath        string
	serverForTest []tls.Certificate // ECDSA and RSA
}

func newIdentity(t testing.TB) *identity {
	t.Helper()
	id := &identity{roots: x509.NewCertPool(), dir: openDir(t)}
	id.caPath = filepath.Join(id.dir, "ca.pem")
	caKey := newECDSA(t)
	ca := issue(t, "authority", caKey, nil, nil)
	id.roots.AddCert(ca.Leaf)
	writePEM(t, id.caPath, "CERTIFICATE", ca.Certificate[0])
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]struct {
		host string
		key  crypto.Signer
	}{"ecdsa": {"localhost", newECDSA(t)}, "rsa": {"localhost", rsaKey}, "other": {"other.test", newECDSA(t)}} {
		c := issue(t, s.host, s.key, ca.Leaf, caKey)
		writePEM(t, filepath.Join(id.dir, name+".pem"), "CERTIFICATE", c.Certificate[0])
		der, err := x509.MarshalPKCS8PrivateKey(s.key)
		if err != nil {
			t.Fatal(err)
		}
		writePEM(t, filepath.Join(id.dir, name+".key"), "PRIVATE KEY", der)
		if s.host == "localhost" {
			id.serverForTest = append(id.serverForTest, c)
		}
	}
	id.client = issue(t, "client", newECDSA(t), ca.Leaf, caKey)
	return id
}

func newECDSA(t testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func issue(t testing.TB, host string, key crypto.Signer, parent *x509.Certificate, parentKey crypto.Signer) tls.Certificate {
	t.Helper()
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if parent == nil {
		parent, parentKey = c, key
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// testDaemon is a serve child.
type testDaemon struct {
	t       testing.TB
	cmd     *exec.Cmd
	log     *serveLog
	address string
	socket  string // of its applications
	control string
	steps   testSteps
	exited  chan struct{}
	id      *identity
}

type daemonOptions struct {
	rogue    string
	leaveOut string // for envLeaveOut
	lacks    string // for envLacks
	address  string // to listen on; 127.0.0.1:0 if empty
	socket   string // of the applications
	settings string // TOML, top level
	listener string // TOML, of the listener
	ledger   string // path; a new one if empty
}

// startDaemon starts serve with one listener, and ends it with the test.
func startDaemon(t testing.TB, id *identity, o daemonOptions) *testDaemon {
	t.Helper()
	dir := openDir(t)
	steps, stepsPath := newTestSteps(t, dir)
	d := &testDaemon{t: t, socket: filepath.Join(dir, "app.sock"), control: filepath.Join(dir, "control.sock"), steps: steps, exited: make(chan struct{}), id: id}
	if o.socket != "" {
		d.socket = o.socket
	}
	if o.ledger == "" {
		o.ledger = filepath.Join(dir, "run", "ledger")
	}
	config := filepath.Join(dir, "offloadd.toml")
	text := strings.NewReplacer("LEDGER", o.ledger, "CONTROL", d.control, "SETTINGS", o.settings, "ADDRESS", cmp.Or(o.address, "127.0.0.1:0"),
		"SOCKET", d.socket, "LISTENER", o.listener, "IDENTITY", id.dir).Replace(`worker_user = "60601"
ledger = "LEDGER"
control = "CONTROL"
SETTINGS
[[listener]]
name = "test"
address = "ADDRESS"
application = "SOCKET"
alpn = ["http/1.1", "test"]
LISTENER
[[listener.certificate]]
chain = "IDENTITY/ecdsa.pem"
key = "IDENTITY/ecdsa.key"
[[listener.certificate]]
chain = "IDENTITY/rsa.pem"
key = "IDENTITY/rsa.key"
[[listener.certificate]]
chain = "IDENTITY/other.pem"
key = "IDENTITY/other.key"
`)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d.cmd = exec.Command("/proc/self/exe", "serve", "--log", "json", "-c", config)
	d.cmd.Env = append(os.Environ(), envRole+"=1", envSteps+"="+stepsPath, envRogue+"="+o.rogue, envLeaveOut+"="+o.leaveOut, envLacks+"="+o.lacks)
	pipe, err := d.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.log = newServeLog(pipe)
	go func() {
		d.cmd.Process.Wait()
		close(d.exited)
	}()
	t.Cleanup(func() { d.stop() })
	d.address = d.wait("listening").text("address")
	d.wait("ready")
	return d
}

// stop ends the daemon in order and reports its log if the test failed.
func (d *testDaemon) stop() {
	d.cmd.Process.Signal(unix.SIGCONT)
	d.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-d.exited:
	case <-time.After(30 * time.Second):
		d.t.Error("the daemon does not end")
		d.cmd.Process.Kill()
		<-d.exited
	}
	if d.t.Failed() {
		d.t.Logf("the daemon's log:\n%s", d.log.dump())
	}
}

func (l *serveLog) dump() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, e := range l.entries {
		fmt.Fprintln(&b, e)
	}
	return b.String() + strings.Join(l.other, "\n")
}

// nth returns the nth entry with this message, or nil.
func (l *serveLog) nth(message string, nth int) logEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if e.text("msg") == message {
			if nth--; nth == 0 {
				return e
			}
		}
	}
	return nil
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// wait returns the first log entry with this message.
func (d *testDaemon) wait(message string) logEntry {
	d.t.Helper()
	return d.waitFor(message, 1)
}

// waitFor returns the nth log entry with this message.
func (d *testDaemon) waitFor(message string, nth int) logEntry {
	d.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if e := d.log.nth(message, nth); e != nil {
			return e
		}
	}
	d.t.Fatalf("the daemon does not say %q %d times\n%s", message, nth, d.log.dump())
	return nil
}

// waitText waits for an entry with this message whose error contains text.
func (d *testDaemon) waitText(message, text string) logEntry {
	d.t.Helper()
	e, err := d.log.wait(testContext(d.t), message, func(e logEntry) bool { return strings.Contains(e.text("error"), text) })
	if err != nil {
		d.t.Fatalf("no %q with %q: %v\n%s", message, text, err, d.log.dump())
	}
	return e
}

// waitStep waits until somebody has reached a step.
func (d *testDaemon) waitStep(s step) {
	d.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if d.steps.at(s).reached.Load() != 0 {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("step %q is not reached\n%s", s, d.log.dump())
		}
	}
}

func (d *testDaemon) port() int {
	port, _ := strconv.Atoi(portOf(d.address))
	return port
}

// serveApplication handles the daemon's connections in this process.
func (d *testDaemon) serveApplication(handle func(net.Conn)) {
	d.t.Helper()
	l, err := handoff.Listen(d.socket, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { l.Close() })
	conns := ktls.NewListener(l)
	go func() {
		for {
			c, err := conns.Accept()
			if err != nil {
				return
			}
			go handle(c)
		}
	}()
}

// marker is application data that must never be seen on a wire.
var marker = []byte("MARKER-of-application-data-that-no-wire-may-show")

// echo answers each message with marker and the message.
func echo(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(append(bytes.Clone(marker), buf[:n]...)); err != nil {
			return
		}
	}
}

func (d *testDaemon) clientConfig() *tls.Config {
	return &tls.Config{RootCAs: d.id.roots, ServerName: "localhost"}
}

// dial completes a handshake with the daemon.
func (d *testDaemon) dial(config *tls.Config) (*tls.Conn, error) {
	dialer := &net.Dialer{Timeout: 30 * time.Second}
	return tls.DialWithDialer(dialer, "tcp", d.address, config)
}

// mustEcho makes one connection and uses it.
func (d *testDaemon) mustEcho() *tls.Conn {
	d.t.Helper()
	c, err := d.dial(d.clientConfig())
	if err != nil {
		d.t.Fatalf("%v\n%s", err, d.log.dump())
	}
	d.t.Cleanup(func() { c.Close() })
	if err := echoOnce(c); err != nil {
		d.t.Fatalf("%v\n%s", err, d.log.dump())
	}
	return c
}

// echoOnce sends a message to echo and checks the answer.
func echoOnce(c net.Conn) error {
	c.SetDeadline(time.Now().Add(30 * time.Second))
	defer c.SetDeadline(time.Time{})
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	want := append(bytes.Clone(marker), "hello"...)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("read the echo: %w", err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("echo %q, want %q", got, want)
	}
	return nil
}

// requireDaemon skips where serve cannot run.
func requireDaemon(t testing.TB) {
	t.Helper()
	ktlstest.Require(t)
	if os.Geteuid() != 0 {
		t.Skip("serve needs root")
	}
}

// testIdentity is made once: keys are slow to make in an emulated machine.
var testIdentity = struct {
	sync.Mutex
	id *identity
}{}

func sharedIdentity(t testing.TB) *identity {
	testIdentity.Lock()
	defer testIdentity.Unlock()
	if testIdentity.id == nil {
		id := newIdentity(t)
		// The directory outlives this test; the next test process makes its own.
		keep := id.dir + "-kept"
		if err := os.Rename(id.dir, keep); err != nil {
			t.Fatal(err)
		}
		id.dir, id.caPath = keep, filepath.Join(keep, "ca.pem")
		testIdentity.id = id
	}
	return testIdentity.id
}

// tlsClient wraps a connection to the daemon.
func tlsClient(d *testDaemon, c net.Conn) *tls.Conn { return tls.Client(c, d.clientConfig()) }
