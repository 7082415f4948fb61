// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// collectFacts echoes, and returns what the application is told of each connection.
func (d *testDaemon) collectFacts() <-chan *blob.Facts {
	out := make(chan *blob.Facts, 16)
	d.serveApplication(func(c net.Conn) {
		out <- c.(*ktls.Conn).NetConn().(*handoff.Socket).Facts
		echo(c)
	})
	return out
}

func TestTheApplicationIsToldWhatWasAgreed(t *testing.T) {
	requireDaemon(t)
	id := sharedIdentity(t)
	d := startDaemon(t, id, daemonOptions{listener: fmt.Sprintf("client_auth = \"verify\"\nclient_ca = %q", id.caPath)})
	facts := d.collectFacts()
	for _, c := range []struct {
		name   string
		change func(*tls.Config)
		check  func(*blob.Facts) bool
	}{
		{"hybrid post-quantum group by default", func(*tls.Config) {},
			func(f *blob.Facts) bool {
				return f.Group == uint16(tls.X25519MLKEM768) && f.Version == blob.TLS13 && len(f.PeerCertificates) == 0
			}},
		{"classical group", func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP256} },
			func(f *blob.Facts) bool { return f.Group == uint16(tls.CurveP256) }},
		{"ALPN", func(c *tls.Config) { c.NextProtos = []string{"other", "test"} },
			func(f *blob.Facts) bool { return f.ALPN == "test" }},
		{"server name", func(c *tls.Config) { c.ServerName = "other.test" },
			func(f *blob.Facts) bool { return f.ServerName == "other.test" }},
		{"TLS 1.2", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 },
			func(f *blob.Facts) bool { return f.Version == blob.TLS12 && f.Role == blob.Server }},
		{"client certificate", func(c *tls.Config) { c.Certificates = []tls.Certificate{id.client} },
			func(f *blob.Facts) bool {
				return f.PeerVerified && len(f.PeerCertificates) == 1 && bytes.Equal(f.PeerCertificates[0], id.client.Certificate[0])
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := d.clientConfig()
			c.change(config)
			conn, err := d.dial(config)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if f := <-facts; !c.check(f) {
				t.Errorf("facts %+v", f)
			}
			if err := echoOnce(conn); err != nil {
				t.Error(err)
			}
		})
	}
	// And the kernel opens records in its buffer, where it does that right.
	sound := ktls.TryNoPad() == nil
	if e := d.wait("installed"); e["no_pad"] != sound {
		t.Errorf("no_pad is %v, want %v: %v", e["no_pad"], sound, e)
	}
}

func TestAPeerThatIsNotWelcomeGetsAnAlert(t *testing.T) {
	requireDaemon(t)
	id := sharedIdentity(t)
	stranger := issue(t, "stranger", newECDSA(t), nil, nil)
	for _, c := range []struct {
		name, listener string
		change         func(*tls.Config)
		want           string
	}{
		{"no common ALPN", "", func(c *tls.Config) { c.NextProtos = []string{"nothing"} }, "no application protocol"},
		{"too old", `min_version = "1.3"`, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "protocol version"},
		{"no client certificate", `client_auth = "require"`, func(*tls.Config) {}, "certificate required"},
		{"a client certificate of nobody", fmt.Sprintf("client_auth = \"require-and-verify\"\nclient_ca = %q", id.caPath),
			func(c *tls.Config) {
				c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &stranger, nil }
			}, "unknown certificate authority"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := startDaemon(t, id, daemonOptions{listener: c.listener})
			d.serveApplication(echo)
			config := d.clientConfig()
			c.change(config)
			conn, err := d.dial(config)
			if err == nil { // in TLS 1.3 a client is done before the server looks at its certificate
				err = echoOnce(conn)
				conn.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an alert %q", err, c.want)
			}
			d.waitText("connection ended", "handshake")
		})
	}
}

// TestTheAlertReachesAPeerThatGoesOnSending: what the peer sent behind its Finished
// lies unread when the daemon ends the connection, and must not turn the end into a
// reset.
func TestTheAlertReachesAPeerThatGoesOnSending(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{listener: `client_auth = "require"`})
	d.serveApplication(echo)
	c, err := d.dial(d.clientConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		if _, err := c.Write([]byte("more")); err != nil {
			t.Fatalf("write: %v\n%s", err, d.log.dump())
		}
		time.Sleep(50 * time.Millisecond)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("got %v, want an alert", err)
	}
}

// TestAnUnmodifiedHTTPServerServesFiles: keep-alive and closing, ranges, files of
// awkward sizes, to Go's client.
func TestAnUnmodifiedHTTPServerServesFiles(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{})
	dir := t.TempDir()
	files := map[string][]byte{}
	for _, size := range []int{0, 1, 16383, 16384, 16385, 1 << 20, 5<<20 + 7} {
		name := fmt.Sprint(size)
		files[name] = bytes.Repeat([]byte(name+"-"), size/(len(name)+1)+1)[:size]
		if err := os.WriteFile(filepath.Join(dir, name), files[name], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l, err := handoff.Listen(d.socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(dir))}
	go server.Serve(ktls.NewListener(l))
	defer server.Close()
	for _, keepAlive := range []bool{true, false} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: d.clientConfig(), DisableKeepAlives: !keepAlive}, Timeout: time.Minute}
		for name, want := range files {
			r, err := client.Get("https://" + d.address + "/" + name)
			if err != nil {
				t.Fatalf("%v\n%s", err, d.log.dump())
			}
			got, err := io.ReadAll(r.Body)
			r.Body.Close()
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, keep-alive %v: %d bytes, %v; want %d", name, keepAlive, len(got), err, len(want))
			}
		}
		client.CloseIdleConnections()
	}
}

// TestAWorkerHasNoPrivilege looks at a worker from outside.
func TestAWorkerHasNoPrivilege(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1"})
	pid := d.wait("worker ready").number("worker_pid")
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		status[name] = strings.Join(strings.Fields(value), " ")
	}
	for name, want := range map[string]string{
		"Uid": "60601 60601 60601 60601", "Gid": "60601 60601 60601 60601", "Groups": "", "NoNewPrivs": "1",
		"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
	} {
		if status[name] != want {
			t.Errorf("%s is %q, want %q", name, status[name], want)
		}
	}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, task := range tasks {
		if text, err := os.ReadFile(task); err == nil && !strings.Contains(string(text), "NoNewPrivs:\t1") {
			t.Errorf("%s lacks no_new_privs", task)
		}
	}
	// The files of a process that is not dumpable belong to root (proc(5)).
	for who, p := range map[string]int64{"worker": pid, "daemon": int64(d.cmd.Process.Pid)} {
		info, err := os.Stat(fmt.Sprintf("/proc/%d/mem", p))
		if err != nil {
			t.Fatal(err)
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 {
			t.Errorf("the %s's memory belongs to uid %d", who, uid)
		}
		limits, _ := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p))
		if !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 0") {
			t.Errorf("the %s may dump core:\n%s", who, limits)
		}
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range strings.Split(strings.Trim(string(environ), "\x00"), "\x00") {
		name, _, _ := strings.Cut(v, "=")
		if !strings.HasPrefix(name, "OFFLOADD_TEST_") && !strings.HasPrefix(name, "GO") && name != "" {
			t.Errorf("the worker sees %s", name)
		}
	}
}

// TestManyConnectionsAtOnce: everybody gets its own bytes, workers come and go
// meanwhile, and nothing is left afterwards.
func TestManyConnectionsAtOnce(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 2\nworker_connections = 20\nhandshake_timeout = \"60s\""})
	d.serveApplication(echo)
	capture := ktlstest.StartCapture(t, d.port())
	before := 0
	for round := range 2 {
		var all sync.WaitGroup
		for range 60 {
			all.Go(func() {
				c, err := d.dial(d.clientConfig())
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				for range 3 {
					if err := echoOnce(c); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		if n := d.settledDescriptors(); round == 0 {
			before = n
		} else if n > before+2 { // a retired worker may still be there
			t.Errorf("the daemon has %d descriptors, %d before", n, before)
		}
	}
	capture.AssertNoPlaintext(t, marker)
	waitStat(t, "kernel TLS sockets", func(s ktls.Stats) uint64 { return s.CurrTxSw + s.CurrRxSw })
}

// waitStat waits until a counter is 0.
func waitStat(t *testing.T, what string, value func(ktls.Stats) uint64) {
	t.Helper()
	var n uint64
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		s, err := ktls.ReadStats()
		if err != nil {
			t.Fatal(err)
		}
		if n = value(s); n == 0 {
			return
		}
	}
	t.Errorf("%d %s are left", n, what)
}

// TestServeSaysWhatIsWrongAtTheStart: nothing half started, and a reason.
func TestServeSaysWhatIsWrongAtTheStart(t *testing.T) {
	requireDaemon(t)
	id := sharedIdentity(t)
	dir := openDir(t)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	others := filepath.Join(dir, "others.key")
	if err := errors.Join(os.WriteFile(others, nil, 0o600), os.Chown(others, 60777, 60777)); err != nil {
		t.Fatal(err)
	}
	good := map[string]string{
		"--listen": "127.0.0.1:0", "--certificate": id.dir + "/ecdsa.pem", "--key": id.dir + "/ecdsa.key",
		"--application": filepath.Join(dir, "app.sock"), "--worker-user": "60601", "--workers": "1",
		"--control": filepath.Join(dir, "control.sock"),
	}
	for _, c := range []struct {
		name, flag, value string
		code              int
		want              string
	}{
		{"no certificate file", "--certificate", "/nowhere.pem", exitFailed, "/nowhere.pem: no such file"},
		{"key of another certificate", "--key", id.dir + "/rsa.key", exitFailed, "did not get ready"},
		{"key of somebody else", "--key", others, exitFailed, "chown root " + others},
		{"no user", "--worker-user", "nosuchuser", exitMachine, "useradd"},
		{"root as worker", "--worker-user", "0", exitUsage, "without rights"},
		{"busy address", "--listen", busy.Addr().String(), exitFailed, "address already in use"},
		{"socket in no directory", "--application", "/nowhere/app.sock", exitFailed, "no such file or directory"},
		{"file in the way", "--application", id.caPath, exitFailed, "is no socket"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var args []string
			for flag, value := range good {
				if flag == c.flag {
					value = c.value
				}
				args = append(args, flag, value)
			}
			code, stderr := serveFails(t, envLacks+"=", args...)
			if code != c.code || !strings.Contains(stderr, c.want) {
				t.Errorf("exit %d, %s; want exit %d and %q", code, stderr, c.code, c.want)
			}
			if _, err := os.Stat(good["--application"]); err == nil {
				t.Error("the application socket is left")
			}
		})
	}
}

// serveFails runs serve, which gives up capabilities and so needs a process of its own,
// to its early end.
func serveFails(t *testing.T, variable string, args ...string) (code int, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(testContext(t), "/proc/self/exe", append([]string{"serve"}, args...)...)
	cmd.Env = append(os.Environ(), envRole+"=1", variable)
	var b bytes.Buffer
	cmd.Stderr = &b
	if err := cmd.Run(); err == nil {
		t.Error("serve ends without an error")
	}
	return cmd.ProcessState.ExitCode(), b.String()
}

// TestServeWantsEverySuite: a client chooses among all, so one that the kernel lacks
// would end its connections.
func TestServeWantsEverySuite(t *testing.T) {
	requireDaemon(t)
	ktlstest.TakeModule(t, "chacha20poly1305")
	code, stderr := serveFails(t, "", "--listen", "127.0.0.1:0", "--certificate", "c", "--key", "k", "--worker-user", "60601")
	if code != exitMachine || !strings.Contains(stderr, "ChaCha20-Poly1305") || !strings.Contains(stderr, "chacha20poly1305 module") {
		t.Errorf("serve: exit %d, %s", code, stderr)
	}
	code, out, _ := call("", "check", "--worker-user", "60601")
	if code != exitMachine || !strings.Contains(out, "MISSING TLS 1.3 ChaCha20-Poly1305") {
		t.Errorf("check: exit %d\n%s", code, out)
	}
}
