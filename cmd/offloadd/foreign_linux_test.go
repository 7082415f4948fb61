// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/offloadd/offloadd/ktls"
)

// foreignServers use kernel TLS by themselves, by OpenSSL.
var foreignServers = []struct {
	program string
	start   func(t *testing.T, id *identity, dir string, port int) *exec.Cmd
}{
	{"nginx", startNginx},
	{"openssl", func(_ *testing.T, id *identity, dir string, port int) *exec.Cmd {
		cmd := exec.Command("openssl", "s_server", "-quiet", "-ktls", "-sendfile", "-WWW", "-accept", fmt.Sprintf("127.0.0.1:%d", port),
			"-cert", id.dir+"/ecdsa.pem", "-key", id.dir+"/ecdsa.key")
		cmd.Dir = dir
		return cmd
	}},
}

// foreignFile is what they serve: so much that it fits into TCP's buffers, since s_server
// closes at once behind it, and the kernel may drop then what TCP has not taken.
const foreignFile = 1 << 20

// TestOtherProgramsKeepTheirKernelTLS: beside a guarded daemon, servers that put their
// own keys into the kernel serve as ever, and their sockets are nobody's business.
func TestOtherProgramsKeepTheirKernelTLS(t *testing.T) {
	requireDaemon(t)
	guards := loadGuards(t)
	id := sharedIdentity(t)
	d := startDaemon(t, id, daemonOptions{settings: guardedBy(guards)})
	d.serveApplication(echo)
	guarded := d.mustEcho()
	content := make([]byte, foreignFile)
	mathrand.NewChaCha8([32]byte{4}).Read(content)
	dir := openDir(t)
	if err := os.WriteFile(filepath.Join(dir, "file.bin"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, server := range foreignServers {
		t.Run(server.program, func(t *testing.T) {
			if _, err := exec.LookPath(server.program); err != nil {
				t.Fatal(err) // the virtual machines have it
			}
			port := freePort(t)
			cmd := server.start(t, id, dir, port)
			var output bytes.Buffer
			cmd.Stdout, cmd.Stderr = &output, &output
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				cmd.Process.Kill()
				cmd.Wait()
				if t.Failed() {
					t.Logf("%s said:\n%s", server.program, output.String())
				}
			}()
			before := mustStats(t)
			conn := dialForeign(t, id, port)
			defer conn.Close()
			// What it holds can be had, as without us.
			if err := askKeysOf(conn.LocalAddr().(*net.TCPAddr).Port); err != nil {
				t.Errorf("the keys of %s: %v", server.program, err)
			}
			fmt.Fprint(conn, "GET /file.bin HTTP/1.0\r\n\r\n")
			rest, err := io.ReadAll(conn)
			if len(rest) < foreignFile || sha256.Sum256(rest[len(rest)-foreignFile:]) != sha256.Sum256(content) {
				t.Errorf("%d bytes, %v, and another SHA-256", len(rest), err)
			}
			if after := mustStats(t); after.TxSw == before.TxSw {
				t.Errorf("%s did not use kernel TLS: %+v", server.program, after)
			}
		})
	}
	if err := echoOnce(guarded); err != nil {
		t.Errorf("the guarded connection: %v", err)
	}
}

func startNginx(t *testing.T, id *identity, dir string, port int) *exec.Cmd {
	t.Helper()
	config := strings.NewReplacer("DIR", dir, "IDENTITY", id.dir, "PORT", strconv.Itoa(port)).Replace(`
daemon off;
master_process off;
user root;
pid DIR/nginx.pid;
error_log stderr;
events {}
http {
	access_log off;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	sendfile on;
	server {
		listen 127.0.0.1:PORT ssl;
		root DIR;
		ssl_certificate IDENTITY/ecdsa.pem;
		ssl_certificate_key IDENTITY/ecdsa.key;
		ssl_conf_command Options KTLS;
	}
}
`)
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	return exec.Command("nginx", "-e", "stderr", "-p", dir, "-c", path)
}

// freePort is one that nobody listens on now.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func mustStats(t *testing.T) ktls.Stats {
	t.Helper()
	s, err := ktls.ReadStats()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// dialForeign connects as soon as the server listens. TLS 1.2 is what OpenSSL leaves to
// the kernel in both directions.
func dialForeign(t *testing.T, id *identity, port int) *tls.Conn {
	t.Helper()
	config := &tls.Config{RootCAs: id.roots, ServerName: "localhost", MaxVersion: tls.VersionTLS12,
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			conn.SetDeadline(time.Now().Add(time.Minute))
			return conn.(*tls.Conn)
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// askKeysOf asks for the keys of the socket that is connected to a local port.
func askKeysOf(port int) error {
	found := errors.New("nobody holds the other end")
	err := eachHolder(func(uint64) bool { return true }, func(_ uint64, sock *os.File, _ holder) {
		c, err := net.FileConn(sock)
		if err != nil {
			return
		}
		defer c.Close()
		if tcp, ok := c.(*net.TCPConn); ok && tcp.RemoteAddr() != nil && tcp.RemoteAddr().(*net.TCPAddr).Port == port {
			found = askKeys(tcp)
		}
	})
	return errors.Join(err, found)
}
