// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	_ "unsafe" // for linkname

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/handshaker"
	"github.com/offloadd/offloadd/ktls"
)

// crypto/tls lets nobody choose TLS 1.3 suites; this process, a test, does.
//
//go:linkname suites13 crypto/tls.defaultCipherSuitesTLS13
var suites13 []uint16

//go:linkname suites13NoAES crypto/tls.defaultCipherSuitesTLS13NoAES
var suites13NoAES []uint16

// only makes this process offer and accept one suite.
func only(t testing.TB, suite blob.CipherSuite, c *tls.Config) {
	c.MinVersion, c.MaxVersion = uint16(suite.Version()), uint16(suite.Version())
	c.CipherSuites = []uint16{uint16(suite)}
	if suite.Version() == blob.TLS13 {
		old, oldNoAES := suites13, suites13NoAES
		suites13, suites13NoAES = c.CipherSuites, c.CipherSuites
		t.Cleanup(func() { suites13, suites13NoAES = old, oldNoAES })
	}
}

// opensslSuite returns the arguments that make openssl s_client and s_server use
// one suite.
func opensslSuite(suite blob.CipherSuite) []string {
	if suite.Version() == blob.TLS13 {
		return []string{"-tls1_3", "-ciphersuites", suite.String()}
	}
	name := strings.NewReplacer("TLS_", "", "_WITH_", "-", "AES_128_GCM", "AES128-GCM", "AES_256_GCM", "AES256-GCM",
		"CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305", "_", "-").Replace(suite.String())
	return []string{"-tls1_2", "-cipher", name}
}

// transferSize is what each direction carries, in bytes: enough for any buffer to fill and
// drain some times, on one kernel many times. Bytes are slow in an emulated machine.
var transferSize = map[bool]int{true: 24 << 20, false: 8 << 20}[slices.Contains([]string{"", "6.12"}, os.Getenv("OFFLOADD_KERNEL_SERIES"))]

// payload is random bytes, in memory and in a file. What arrives is compared byte by
// byte, which says more than equal SHA-256 sums and is ten times as fast in an
// emulated machine.
type payload struct {
	path string
	data []byte
}

func newPayload(t testing.TB) *payload {
	t.Helper()
	p := &payload{path: filepath.Join(openDir(t), "payload"), data: make([]byte, transferSize)}
	mathrand.NewChaCha8([32]byte{1}).Read(p.data)
	if err := os.WriteFile(p.path, p.data, 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

// send writes all of it, from the file.
func (p *payload) send(w io.Writer) error {
	f, err := os.Open(p.path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(w, io.LimitReader(f, int64(transferSize)))
	if err == nil && n != int64(transferSize) {
		err = fmt.Errorf("sent %d bytes of %d", n, transferSize)
	}
	return err
}

// receive reads as many bytes and compares.
func (p *payload) receive(r io.Reader) error {
	buf := make([]byte, 256<<10)
	for done := 0; done < transferSize; {
		n, err := r.Read(buf[:min(len(buf), transferSize-done)])
		if !bytes.Equal(buf[:n], p.data[done:done+n]) {
			return fmt.Errorf("the bytes from %d to %d differ", done, done+n)
		}
		if done += n; err != nil && done < transferSize {
			return fmt.Errorf("after %d bytes of %d: %w", done, transferSize, err)
		}
	}
	return nil
}

// drain reads to the end, which must come without another byte.
func drain(r io.Reader) error {
	n, err := io.Copy(io.Discard, r)
	if err == nil && n != 0 {
		err = fmt.Errorf("%d bytes too many", n)
	}
	return err
}

// both sends and receives at once.
func (p *payload) both(w io.Writer, r io.Reader) error {
	sent := make(chan error, 1)
	go func() { sent <- p.send(w) }()
	err := p.receive(r)
	return errors.Join(err, <-sent)
}

// TestEverySuiteAsServer takes the whole way: peer, daemon, worker, blobs, kernel,
// application, 64 MiB in each direction at once, sendfile in one.
func TestEverySuiteAsServer(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{})
	p := newPayload(t)
	outcome := make(chan error, 1)
	d.serveApplication(func(c net.Conn) {
		err := p.both(c, c)
		outcome <- errors.Join(err, c.Close())
	})
	peers := map[string]func(*testing.T, blob.CipherSuite) error{
		"OpenSSL": func(t *testing.T, suite blob.CipherSuite) error { return d.opensslTransfers(p, suite) },
		"Go": func(t *testing.T, suite blob.CipherSuite) error {
			config := d.clientConfig()
			only(t, suite, config)
			c, err := d.dial(config)
			if err != nil {
				return err
			}
			defer c.Close()
			return errors.Join(p.both(c, c), drain(c))
		},
	}
	for _, suite := range blob.CipherSuites() {
		for peer, transfer := range peers {
			t.Run(fmt.Sprintf("%v/%s", suite, peer), func(t *testing.T) {
				expectKernelTLS(t, 1, func() {
					if err := transfer(t, suite); err != nil {
						t.Errorf("peer: %v\n%s", err, d.log.dump())
					}
					select {
					case err := <-outcome:
						if err != nil {
							t.Errorf("application: %v", err)
						}
					case <-time.After(time.Minute):
						t.Fatalf("the application is not done\n%s", d.log.dump())
					}
				})
			})
		}
	}
}

// TestPaddedRecordsArriveWhole: where the kernel expects none, it opens each of them twice.
func TestPaddedRecordsArriveWhole(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1"})
	p := newPayload(t)
	done := make(chan error, 1)
	d.serveApplication(func(c net.Conn) { done <- errors.Join(p.both(c, c), c.Close()) })
	before, err := ktls.ReadStats()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.opensslTransfers(p, blob.TLS_AES_128_GCM_SHA256, "-record_padding", "1000", "-max_send_frag", "9700"), <-done); err != nil {
		t.Errorf("%v\n%s", err, d.log.dump())
	}
	after, err := ktls.ReadStats()
	if err != nil {
		t.Fatal(err)
	}
	if n := after.RxNoPadViolation - before.RxNoPadViolation; n < 500 {
		t.Errorf("%d padded records came: this test shows nothing", n)
	}
}

// expectKernelTLS checks the kernel's counters around f: n sockets more in each
// direction, and no record that did not authenticate.
func expectKernelTLS(t *testing.T, n uint64, f func()) {
	t.Helper()
	before, err := ktls.ReadStats()
	if err != nil {
		t.Fatal(err)
	}
	f()
	after, err := ktls.ReadStats()
	if err != nil {
		t.Fatal(err)
	}
	if after.TxSw-before.TxSw != n || after.RxSw-before.RxSw != n || after.DecryptError != before.DecryptError {
		t.Errorf("TlsTxSw +%d, TlsRxSw +%d, TlsDecryptError +%d; want +%d, +%d, +0",
			after.TxSw-before.TxSw, after.RxSw-before.RxSw, after.DecryptError-before.DecryptError, n, n)
	}
}

func (d *testDaemon) opensslTransfers(p *payload, suite blob.CipherSuite, more ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", append([]string{"s_client", "-quiet", "-verify_quiet", "-verify_return_error",
		"-connect", d.address, "-servername", "localhost", "-CAfile", d.id.caPath}, append(opensslSuite(suite), more...)...)...)
	return pipeTransfer(cmd, func(stdin io.Writer, stdout io.Reader) error { return p.both(stdin, stdout) })
}

// pipeTransfer runs a program and talks to it; at the end its input is closed.
func pipeTransfer(cmd *exec.Cmd, talk func(stdin io.Writer, stdout io.Reader) error) error {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = talk(stdin, stdout)
	stdin.Close()
	if err != nil {
		cmd.Process.Kill()
	}
	io.Copy(io.Discard, stdout)
	if werr := cmd.Wait(); err == nil && werr != nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", cmd.Args[1], err, stderr.Bytes())
	}
	return nil
}

// TestEverySuiteAsClient has the keys of a client cross through blobs and a
// channel, as those of a server do.
func TestEverySuiteAsClient(t *testing.T) {
	requireDaemon(t)
	id := sharedIdentity(t)
	p := newPayload(t)
	for _, suite := range blob.CipherSuites() {
		t.Run(suite.String()+"/OpenSSL", func(t *testing.T) {
			expectKernelTLS(t, 1, func() { clientAgainstOpenSSL(t, id, p, suite) })
		})
		t.Run(suite.String()+"/Go", func(t *testing.T) {
			expectKernelTLS(t, 1, func() { clientAgainstGo(t, id, p, suite) })
		})
	}
}

func clientAgainstOpenSSL(t *testing.T, id *identity, p *payload, suite blob.CipherSuite) {
	key := "ecdsa"
	if strings.Contains(suite.String(), "_RSA_") {
		key = "rsa"
	}
	address := freeAddress(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", append([]string{"s_server", "-quiet", "-naccept", "1", "-accept", address,
		"-cert", id.dir + "/" + key + ".pem", "-key", id.dir + "/" + key + ".key"}, opensslSuite(suite)...)...)
	err := pipeTransfer(cmd, func(stdin io.Writer, stdout io.Reader) error {
		c, err := offloadedClient(dialRetry(t, address), id, &tls.Config{})
		if err != nil {
			return err
		}
		defer c.Close()
		ours := make(chan error, 1)
		go func() { ours <- p.both(c, c) }()
		err = p.both(stdin, stdout)
		return errors.Join(err, <-ours)
	})
	if err != nil {
		t.Error(err)
	}
}

func clientAgainstGo(t *testing.T, id *identity, p *payload, suite blob.CipherSuite) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	config := &tls.Config{Certificates: id.serverForTest}
	only(t, suite, config)
	server := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			server <- err
			return
		}
		defer c.Close()
		s := tls.Server(c, config)
		server <- errors.Join(p.both(s, s), drain(s))
	}()
	c, err := offloadedClient(dialRetry(t, l.Addr().String()), id, &tls.Config{})
	if err == nil {
		err = errors.Join(p.both(c, c), c.Close())
	}
	if err := errors.Join(err, <-server); err != nil {
		t.Error(err)
	}
}

// offloadedClient completes a handshake, moves each key through a blob of its own
// over a channel, and installs both.
func offloadedClient(tcp *net.TCPConn, id *identity, config *tls.Config) (*ktls.Conn, error) {
	config.RootCAs, config.ServerName = id.roots, "localhost"
	if err := ktls.Attach(tcp); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	session, err := handshaker.Client(ctx, tcp, &handshaker.Config{TLS: config, TicketWait: 20 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	read, write, err := throughBlobs(session, tcp)
	if err != nil {
		return nil, err
	}
	if _, err := ktls.Install(tcp, read, write); err != nil {
		return nil, err
	}
	return ktls.NewConn(tcp)
}

// throughBlobs seals, sends, receives and opens both states.
func throughBlobs(session *handshaker.Session, tcp *net.TCPConn) (read, write *blob.State, err error) {
	key, err := blob.GenerateKey()
	if err != nil {
		return nil, nil, err
	}
	sealer, setup, err := blob.NewSealer(key.Public())
	if err != nil {
		return nil, nil, err
	}
	opener, err := key.NewOpener(setup)
	if err != nil {
		return nil, nil, err
	}
	from, file, err := handoff.Pair()
	if err != nil {
		return nil, nil, err
	}
	defer from.Close()
	to, err := handoff.FileConn(file)
	if err != nil {
		return nil, nil, err
	}
	defer to.Close()
	m := &handoff.Message{Type: handoff.Established, Cookie: session.Read.Cookie, Facts: &session.Facts}
	expiry := time.Now().Add(time.Minute)
	if m.Read, err = sealer.Seal(session.Read, expiry); err != nil {
		return nil, nil, err
	}
	if m.Write, err = sealer.Seal(session.Write, expiry); err != nil {
		return nil, nil, err
	}
	if err := from.Send(m, tcp); err != nil {
		return nil, nil, err
	}
	got, sock, err := to.Receive()
	if err != nil {
		return nil, nil, err
	}
	defer sock.Close()
	want := blob.Binding{Cookie: got.Cookie, Role: blob.Client, Direction: blob.Read, Now: time.Now()}
	if read, err = opener.Open(got.Read, want); err != nil {
		return nil, nil, err
	}
	want.Direction = blob.Write
	write, err = opener.Open(got.Write, want)
	return read, write, err
}

// freeAddress returns a loopback address where nobody listens.
func freeAddress(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// dialRetry connects to a server that is about to listen.
func dialRetry(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return c.(*net.TCPConn)
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
