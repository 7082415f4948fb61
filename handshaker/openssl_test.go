// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// openssl returns the path of the program. Without it the test is skipped, except in
// a VM that is supposed to have it.
func openssl(t *testing.T) string {
	path, err := exec.LookPath("openssl")
	switch {
	case err == nil:
		return path
	case os.Getenv("OFFLOADD_VM_KERNEL") != "":
		t.Fatal("openssl is missing in the VM")
	}
	t.Skip("openssl is not installed")
	return ""
}

// pemFiles writes the certificates for OpenSSL.
func pemFiles(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	write := func(name, kind string, der []byte) {
		b := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("root.pem", "CERTIFICATE", certs().rootDER)
	for name, c := range map[string]tls.Certificate{"ecdsa": certs().ecdsaA, "rsa": certs().rsa,
		"client": certs().client, "stranger": certs().stranger} {
		key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		write(name+".pem", "CERTIFICATE", c.Certificate[0])
		write(name+".key", "PRIVATE KEY", key)
	}
	return dir
}

// process is an OpenSSL at work.
type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	mu    sync.Mutex
	out   bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// waitFor waits until OpenSSL has printed something.
func (p *process) waitFor(t *testing.T, s string) {
	t.Helper()
	for range 1000 {
		if strings.Contains(p.String(), s) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("openssl did not print %q but:\n%s", s, p)
}

func startOpenSSL(t *testing.T, dir string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(openssl(t), args...)}
	p.cmd.Dir = dir
	p.cmd.Stdout, p.cmd.Stderr = p, p
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	return p
}

// sServer starts an s_server that sends every line back reversed.
func sServer(t *testing.T, args ...string) (addr string) {
	t.Helper()
	dir := pemFiles(t)
	p := startOpenSSL(t, dir, append([]string{"s_server", "-accept", "127.0.0.1:0", "-rev",
		"-cert", "ecdsa.pem", "-key", "ecdsa.key", "-dcert", "rsa.pem", "-dkey", "rsa.key", "-CAfile", "root.pem"}, args...)...)
	p.waitFor(t, "ACCEPT ")
	s := bufio.NewScanner(strings.NewReader(p.String()))
	for s.Scan() {
		if a, ok := strings.CutPrefix(s.Text(), "ACCEPT "); ok {
			return a
		}
	}
	t.Fatal("no address")
	return ""
}

// toSServer connects a Client and returns it with its session.
func toSServer(t *testing.T, addr string, config *Config) (*handshake, *Session, net.Conn, error) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	h, err := newHandshake(blob.Client, conn, config)
	if err != nil {
		t.Fatal(err)
	}
	s, err := h.run(testContext(t))
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return h, s, conn, err
}

// reverse checks that an s_server answers.
func reverse(t *testing.T, conn net.Conn, s *Session) {
	t.Helper()
	l := newRecordLayer(conn, s)
	for i := range 3 {
		line := fmt.Sprintf("line %d", i)
		l.send(23, []byte(line+"\n"))
		got, err := l.receiveData(len(line) + 1)
		if want := fmt.Sprintf("%d enil\n", i); err != nil || string(got) != want {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

// fromSClient lets an s_client connect to a Server.
func fromSClient(t *testing.T, config *tls.Config, input string, args ...string) (*handshake, *Session, net.Conn, *process, error) {
	t.Helper()
	dir := pemFiles(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := startOpenSSL(t, dir, append([]string{"s_client", "-connect", l.Addr().String(),
		"-servername", "a.test", "-CAfile", "root.pem"}, args...)...)
	io.WriteString(p.stdin, input)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	h, err := newHandshake(blob.Server, conn, &Config{TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	s, err := h.run(testContext(t))
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return h, s, conn, p, err
}

// talk exchanges data with an s_client which was started with the given input.
func talk(t *testing.T, conn net.Conn, s *Session, p *process, input string) {
	t.Helper()
	l := newRecordLayer(conn, s)
	if got, err := l.receiveData(len(input)); err != nil || string(got) != input {
		t.Fatalf("got %q, %v\n%s", got, err, p)
	}
	for i := range 3 {
		line := fmt.Sprintf("line %d of the server\n", i)
		l.send(23, []byte(line))
		p.waitFor(t, line)
		io.WriteString(p.stdin, line)
		if got, err := l.receiveData(len(line)); err != nil || string(got) != line {
			t.Fatalf("got %q, %v\n%s", got, err, p)
		}
	}
}

// suiteArgs makes OpenSSL offer or accept one suite only.
func suiteArgs(suite blob.CipherSuite) []string {
	if suite.Version() == blob.TLS13 {
		return []string{"-tls1_3", "-ciphersuites", suite.String()}
	}
	name := strings.TrimPrefix(strings.TrimSuffix(suite.String(), "_SHA256"), "TLS_")
	name = strings.NewReplacer("_WITH_", "-", "AES_128_GCM", "AES128-GCM-SHA256", "AES_256_GCM_SHA384", "AES256-GCM-SHA384",
		"CHACHA20_POLY1305", "CHACHA20-POLY1305").Replace(name)
	return []string{"-tls1_2", "-cipher", strings.ReplaceAll(name, "_", "-")}
}

func TestOpenSSLGoesOnWithEverySuite(t *testing.T) {
	server := serverTLS()
	server.Certificates = append(server.Certificates, certs().rsa)
	for _, suite := range blob.CipherSuites() {
		t.Run(suite.String(), func(t *testing.T) {
			t.Parallel()
			_, s, conn, err := toSServer(t, sServer(t, suiteArgs(suite)...), &Config{TLS: clientTLS(), TicketWait: longWait})
			if err != nil || s.Facts.Suite != suite {
				t.Fatal(s, err)
			}
			reverse(t, conn, s)
			_, s, conn, p, err := fromSClient(t, server, "early\n", suiteArgs(suite)...)
			if err != nil || s.Facts.Suite != suite {
				t.Fatal(s, err, p)
			}
			talk(t, conn, s, p, "early\n")
		})
	}
}

func TestOpenSSLsTicketsAreCounted(t *testing.T) {
	for n := range uint64(3) {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			addr := sServer(t, "-num_tickets", fmt.Sprint(n))
			wait := longWait
			if n == 0 {
				wait = 50 * time.Millisecond
			}
			cache := &countingCache{}
			config := &Config{TLS: clientTLS(), TicketWait: wait}
			config.TLS.ClientSessionCache = cache
			for range 5 { // a busy machine may tear them apart
				_, s, conn, err := toSServer(t, addr, config)
				if err != nil {
					t.Fatal(err)
				}
				reverse(t, conn, s)
				conn.Close()
				if s.Read.Seq == n && cache.puts == int(n) {
					return
				}
				t.Logf("%v, %d tickets", s, cache.puts)
				cache.puts = 0
			}
			t.Error("never as many as were sent")
		})
	}
}

func TestHelloRetryRequest(t *testing.T) {
	h, s, conn, err := toSServer(t, sServer(t, "-groups", "P-384"), &Config{TLS: clientTLS()})
	if err != nil || !h.tls.ConnectionState().HelloRetryRequest || s.Facts.Group != uint16(tls.CurveP384) {
		t.Fatal(s, err)
	}
	reverse(t, conn, s)

	server := serverTLS()
	server.CurvePreferences = []tls.CurveID{tls.X25519}
	h, s, conn, p, err := fromSClient(t, server, "early\n", "-groups", "P-256:X25519")
	if err != nil || !h.tls.ConnectionState().HelloRetryRequest || s.Facts.Group != uint16(tls.X25519) {
		t.Fatal(s, err, p)
	}
	talk(t, conn, s, p, "early\n")
}

func TestOpenSSLResumes(t *testing.T) {
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			addr := sServer(t, version)
			config := &Config{TLS: clientTLS(), TicketWait: longWait}
			config.TLS.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			for i := range 3 {
				_, s, conn, err := toSServer(t, addr, config)
				if err != nil || s.Facts.Resumed != (i > 0) {
					t.Fatalf("connection %d: %v, %v", i, s, err)
				}
				reverse(t, conn, s)
				conn.Close() // s_server -rev serves one at a time
			}

			server := serverTLS()
			file := filepath.Join(t.TempDir(), "session")
			for i := range 3 {
				args := []string{version, "-sess_out", file}
				if i > 0 {
					args = append(args, "-sess_in", file)
				}
				_, s, conn, p, err := fromSClient(t, server, "early\n", args...)
				if err != nil || s.Facts.Resumed != (i > 0) {
					t.Fatalf("connection %d: %v, %v", i, s, err)
				}
				talk(t, conn, s, p, "early\n")
				p.stdin.Close()
				p.cmd.Wait()
			}
		})
	}
}

func TestOpenSSLClientCertificates(t *testing.T) {
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		for _, tt := range []struct {
			cert string
			auth tls.ClientAuthType
			ok   bool
		}{
			{"client", tls.RequireAndVerifyClientCert, true},
			{"client", tls.RequestClientCert, true},
			{"stranger", tls.RequireAnyClientCert, true},
			{"stranger", tls.RequireAndVerifyClientCert, false},
			{"", tls.RequestClientCert, true},
			{"", tls.RequireAnyClientCert, false},
		} {
			t.Run(fmt.Sprintf("%s %v %s", version, tt.auth, tt.cert), func(t *testing.T) {
				t.Parallel()
				server := serverTLS()
				server.ClientAuth, server.ClientCAs = tt.auth, certs().roots
				args := []string{version}
				if tt.cert != "" {
					args = append(args, "-cert", tt.cert+".pem", "-key", tt.cert+".key")
				}
				_, s, conn, p, err := fromSClient(t, server, "early\n", args...)
				if !tt.ok {
					if s != nil || !errors.Is(err, ErrHandshake) {
						t.Error(s, err)
					}
					p.waitFor(t, "alert")
					return
				}
				if err != nil || (len(s.Facts.PeerCertificates) > 0) != (tt.cert != "") {
					t.Fatal(s, err, p)
				}
				talk(t, conn, s, p, "early\n")
			})
		}
		t.Run(version+" asked by s_server", func(t *testing.T) {
			t.Parallel()
			addr := sServer(t, version, "-Verify", "1", "-verify_return_error")
			config := &Config{TLS: clientTLS(), TicketWait: longWait}
			config.TLS.Certificates = []tls.Certificate{certs().client}
			_, s, conn, err := toSServer(t, addr, config)
			if err != nil {
				t.Fatal(err)
			}
			reverse(t, conn, s)
		})
	}
}

func TestOpenSSLALPN(t *testing.T) {
	server := serverTLS()
	server.NextProtos = []string{"offloadd/1"}
	_, s, conn, p, err := fromSClient(t, server, "early\n", "-alpn", "h2,offloadd/1")
	if err != nil || s.Facts.ALPN != "offloadd/1" {
		t.Fatal(s, err)
	}
	talk(t, conn, s, p, "early\n")
	if _, s, _, _, err := fromSClient(t, server, "", "-alpn", "h2"); s != nil || !errors.Is(err, ErrHandshake) {
		t.Error(s, err)
	}
	config := &Config{TLS: clientTLS()}
	config.TLS.NextProtos = []string{"h2", "offloadd/1"}
	_, s, _, err = toSServer(t, sServer(t, "-alpn", "offloadd/1"), config)
	if err != nil || s.Facts.ALPN != "offloadd/1" {
		t.Error(s, err)
	}
}

func TestOpenSSLsKeyUpdateFindsTheKeysInPlace(t *testing.T) {
	_, s, conn, p, err := fromSClient(t, serverTLS(), "early\n", "-tls1_3")
	if err != nil {
		t.Fatal(err)
	}
	talk(t, conn, s, p, "early\n")
	io.WriteString(p.stdin, "k\n") // a KeyUpdate
	l := newRecordLayer(conn, s)
	l.read.seq += 4
	if typ, body, err := l.receive(); err != nil || typ != 22 || body[0] != 24 {
		t.Errorf("type %d, %x, %v", typ, body, err)
	}
}
