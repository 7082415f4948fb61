// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
)

// statusJSONOf is what "status --json" says.
type statusJSONOf struct {
	Connections []custody.Entry `json:"connections"`
	Daemon      controlSummary  `json:"daemon"`
}

func (d *testDaemon) status() statusJSONOf {
	d.t.Helper()
	code, out, stderr := call("", "status", "--json", "--control", d.control)
	var s statusJSONOf
	if err := json.Unmarshal([]byte(out), &s); code != exitOK || err != nil {
		d.t.Fatalf("status: exit %d, %v: %s", code, err, stderr)
	}
	return s
}

// waitStatus waits until the status is as it should be.
func (d *testDaemon) waitStatus(what string, ok func(statusJSONOf) bool) statusJSONOf {
	d.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		s := d.status()
		if ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("never %s: %+v", what, s)
		}
	}
}

// endless moves bytes both ways until an error, which it returns.
func endless(c net.Conn, each func()) (readErr, writeErr error) {
	var both sync.WaitGroup
	both.Go(func() {
		buffer := make([]byte, 64<<10)
		for readErr == nil {
			_, readErr = c.Read(buffer)
			each()
		}
	})
	both.Go(func() {
		buffer := make([]byte, 64<<10)
		for writeErr == nil {
			_, writeErr = c.Write(buffer)
		}
	})
	both.Wait()
	return readErr, writeErr
}

// holding is an application that answers echo, or moves bytes without end on
// connections whose client sends an 'e' first.
func (d *testDaemon) holding() <-chan [2]error {
	ended := make(chan [2]error, 8)
	d.serveApplication(func(c net.Conn) {
		first := make([]byte, 1)
		if _, err := io.ReadFull(c, first); err != nil || first[0] != 'e' {
			rest := make([]byte, 4)
			io.ReadFull(c, rest)
			c.Write(append(bytes.Clone(marker), append(first, rest...)...))
			echo(c)
			return
		}
		readErr, writeErr := endless(c, func() {})
		ended <- [2]error{readErr, writeErr}
		c.Close()
	})
	return ended
}

// TestStatusShowsATransferAndItsHands: while it runs.
func TestStatusShowsATransferAndItsHands(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1"})
	d.holding()
	config := d.clientConfig()
	config.NextProtos, config.MaxVersion = []string{"test"}, tls.VersionTLS12
	c, err := d.dial(config)
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("e"))
	moving := make(chan struct{}, 1)
	go endless(c, func() {
		select {
		case moving <- struct{}{}:
		default:
		}
	})
	<-moving
	installed, over := d.wait("installed"), d.wait("handed over")
	s := d.status()
	if len(s.Connections) != 1 || s.Daemon.Totals != (custody.Totals{Live: 1, Software: 1}) || s.Daemon.PID != d.cmd.Process.Pid {
		t.Fatalf("%+v", s)
	}
	e := s.Connections[0]
	if int64(e.Socket) != installed.number("socket") || e.Listener != "test" || e.Version != "TLS 1.2" || e.ALPN != "test" || e.ServerName != "localhost" ||
		e.Suite != installed.text("suite") || e.Peer.String() != installed.text("peer") || e.Local.String() != d.address || e.Resumed || e.Condition != custody.Live {
		t.Errorf("%+v", e)
	}
	instance := d.wait("ready").text("instance")
	for name, k := range map[string]custody.Key{"read": e.Read, "write": e.Write} {
		if k.Place != custody.Software || k.Reason == "" || k.Degraded != nil || k.Epoch != 0 || time.Since(k.Since) > time.Minute {
			t.Errorf("%s key %+v", name, k)
		}
		var hands []string
		for _, h := range k.Hands {
			hands = append(hands, fmt.Sprintf("%s %d %d %s", h.Role, h.PID, h.UID, h.ID))
		}
		want := []string{
			fmt.Sprintf("worker %d 60601 %s", installed.number("worker_pid"), installed.text("sealer")),
			fmt.Sprintf("daemon %d 0 %s", d.cmd.Process.Pid, instance),
			fmt.Sprintf("application %d 0 ", over.number("application_pid")),
		}
		if !slices.Equal(hands, want) {
			t.Errorf("%s key went through %q, want %q", name, hands, want)
		}
	}
	code, out, _ := call("", "status", "--control", d.control)
	if want := fmt.Sprintf("\n%d  ", e.Socket); code != exitOK || !strings.Contains(out, want) || !strings.Contains(out, "1 live: 0 in a device") {
		t.Errorf("exit %d:\n%s", code, out)
	}
	code, out, _ = call("", "status", "--control", d.control, fmt.Sprint(e.Socket))
	for _, want := range []string{fmt.Sprintf("held by     offloadd.test pid %d\n", os.Getpid()), "read key    kernel software", "write key   kernel software", "worker pid", "instance " + instance, "server name localhost", e.Write.Reason} {
		if code != exitOK || !strings.Contains(out, want) {
			t.Errorf("exit %d, no %q:\n%s", code, want, out)
		}
	}
	c.NetConn().Close()
	d.waitStatus("no connection", func(s statusJSONOf) bool {
		return len(s.Connections) == 0 && s.Daemon.Totals == custody.Totals{Ended: 1}
	})
}

// TestEntriesEndWithTheirConnections: those that were used, that nobody took, and
// that the peer left in the middle.
func TestEntriesEndWithTheirConnections(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 2\nhandshake_timeout = \"60s\"\napplication_timeout = \"1s\""})
	// Nobody takes it.
	if c, err := d.dial(d.clientConfig()); err != nil {
		t.Fatal(err)
	} else {
		io.Copy(io.Discard, c)
		c.Close()
	}
	d.waitText("connection ended", errNoApplication.Error())
	d.serveApplication(echo)
	const count = 40
	var all sync.WaitGroup
	for i := range count {
		all.Go(func() {
			c, err := d.dial(d.clientConfig())
			if err != nil {
				t.Error(err)
				return
			}
			if err := echoOnce(c); err != nil {
				t.Error(err)
			}
			if i%2 == 0 {
				c.NetConn().(*net.TCPConn).SetLinger(0)
				c.NetConn().Close()
			}
			c.Close()
		})
	}
	all.Wait()
	d.waitStatus("empty", func(s statusJSONOf) bool {
		return len(s.Connections) == 0 && s.Daemon.Totals == custody.Totals{Ended: count + 1}
	})
}

// TestRevokingEndsATransferBothWays: at both ends at once, and nobody else's.
func TestRevokingEndsATransferBothWays(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{})
	ended := d.holding()
	unhurt := d.mustEcho()
	c, err := d.dial(d.clientConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("e")); err != nil {
		t.Fatal(err)
	}
	moving, peer := make(chan struct{}, 1), make(chan [2]error, 1)
	go func() {
		readErr, writeErr := endless(c, func() {
			select {
			case moving <- struct{}{}:
			default:
			}
		})
		peer <- [2]error{readErr, writeErr}
	}()
	<-moving
	socket := fmt.Sprint(d.waitFor("installed", 2).number("socket"))
	code, out, stderr := call("", "revoke", "--control", d.control, socket)
	if code != exitOK || !strings.HasPrefix(out, socket+" ended") || !strings.HasSuffix(out, "\n1 ended, 0 not there, 0 refused\n") {
		t.Fatalf("exit %d: %s%s", code, out, stderr)
	}
	holder, far := within(t, ended), within(t, peer)
	// The kernel says it once, to whoever calls first.
	if !errors.Is(holder[0], unix.ECONNABORTED) && !errors.Is(holder[1], unix.ECONNABORTED) {
		t.Errorf("the holder gets %v and %v, want ECONNABORTED", holder[0], holder[1])
	}
	if !errors.Is(far[0], unix.ECONNRESET) && !errors.Is(far[1], unix.ECONNRESET) {
		t.Errorf("the peer gets %v and %v, want ECONNRESET", far[0], far[1])
	}
	if err := echoOnce(unhurt); err != nil {
		t.Errorf("another connection: %v", err)
	}
	d.waitStatus("one live, one revoked", func(s statusJSONOf) bool {
		return s.Daemon.Totals == custody.Totals{Live: 1, Software: 1, Ended: 1, Revoked: 1}
	})
	if e := d.wait("revocation"); e.number("by_pid") != int64(os.Getpid()) || e.text("outcome") != "ended" {
		t.Errorf("logged %v", e)
	}
	code, out, _ = call("", "revoke", "--control", d.control, "--json", socket)
	var report revokeReport
	if err := json.Unmarshal([]byte(out), &report); code != exitNone || err != nil || report.NotThere != 1 || report.Ended != 0 {
		t.Errorf("again: exit %d: %s", code, out)
	}
	for _, try := range []struct {
		args  []string
		code  int
		ended string
	}{
		{[]string{"--peer", "192.0.2.0/24"}, exitNone, "0 ended"},
		{[]string{"--peer", "127.0.0.0/8"}, exitOK, "1 ended"},
		{[]string{"--all"}, exitOK, "0 ended"},
	} {
		code, out, _ := call("", append([]string{"revoke", "--control", d.control}, try.args...)...)
		if code != try.code || !strings.Contains(out, try.ended) {
			t.Errorf("%v: exit %d: %s", try.args, code, out)
		}
	}
	if err := echoOnce(unhurt); err == nil {
		t.Error("a connection whose peer was revoked goes on")
	}
	d.waitStatus("empty", func(s statusJSONOf) bool { return s.Daemon.Totals == custody.Totals{Ended: 2, Revoked: 2} })
}

func within(t *testing.T, c <-chan [2]error) [2]error {
	t.Helper()
	select {
	case e := <-c:
		return e
	case <-time.After(30 * time.Second):
		t.Fatal("it goes on")
	}
	return [2]error{}
}

// TestRevokingReachesAStoppedApplication: which can do nothing about it, and finds
// the socket dead when it goes on.
func TestRevokingReachesAStoppedApplication(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{})
	pid := startEchoApplication(t, d)
	c := d.mustEcho()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(pid, unix.SIGCONT)
	if code, out, stderr := call("", "revoke", "--control", d.control, "--all"); code != exitOK || !strings.Contains(out, "1 ended") {
		t.Fatalf("exit %d: %s%s", code, out, stderr)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the peer gets %v, want ECONNRESET", err)
	}
	s := d.status()
	if s.Daemon.Totals != (custody.Totals{Over: 1, Revoked: 1}) || s.Connections[0].Condition != custody.Revoked || s.Connections[0].Over == nil {
		t.Errorf("while the application holds the dead socket: %+v", s)
	}
	if _, out, _ := call("", "status", "--control", d.control); !strings.Contains(out, "  revoked\n") || !strings.Contains(out, "1 over, with the dead socket still held") {
		t.Errorf("status:\n%s", out)
	}
	unix.Kill(pid, unix.SIGCONT)
	d.waitStatus("empty", func(s statusJSONOf) bool { return s.Daemon.Totals == custody.Totals{Ended: 1, Revoked: 1} })
}

// TestOnlyRootMayControl: by the mode of the socket, and where that is changed, by
// the process that connects.
func TestOnlyRootMayControl(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{})
	info, err := os.Stat(d.control)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v; want 0600", info.Mode(), err)
	}
	asUser := func() string {
		cmd := exec.Command("/proc/self/exe", "status", "--control", d.control)
		cmd.Env = append(os.Environ(), envRole+"=1")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := startUnprivileged(cmd, 60602, 60602); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Error("another user may ask")
		}
		return out.String()
	}
	if out := asUser(); !strings.Contains(out, "only root may") {
		t.Errorf("mode 0600: %s", out)
	}
	if err := os.Chmod(d.control, 0o666); err != nil {
		t.Fatal(err)
	}
	if out := asUser(); !strings.Contains(out, "uid 60602 may not control this daemon") || strings.Contains(out, "live") {
		t.Errorf("mode 0666: %s", out)
	}
	d.waitText("control client refused", "uid 60602")
	if code, _, stderr := call("", "status", "--control", d.control); code != exitOK {
		t.Errorf("root: exit %d: %s", code, stderr)
	}
}

// TestConnectionsOfAnEarlierDaemonAreCountedOnly: the table begins with the daemon.
func TestConnectionsOfAnEarlierDaemonAreCountedOnly(t *testing.T) {
	requireDaemon(t)
	id := sharedIdentity(t)
	first := startDaemon(t, id, daemonOptions{})
	first.serveApplication(echo)
	c := first.mustEcho()
	if s := first.status(); s.Daemon.Foreign != 0 || s.Daemon.Totals.Live != 1 {
		t.Errorf("%+v", s)
	}
	socket := first.wait("installed").number("socket")
	first.stop()
	if _, err := os.Stat(first.control); err == nil {
		t.Error("the control socket is left")
	}
	second := startDaemon(t, id, daemonOptions{})
	if n := second.wait("kernel TLS sockets from before this start are not in the custody table").number("sockets"); n != 1 {
		t.Errorf("%d sockets from before, want 1", n)
	}
	code, out, _ := call("", "status", "--control", second.control)
	if code != exitOK || !strings.Contains(out, "0 live") || !strings.Contains(out, "1 more kernel TLS sockets are of other programs, or from before this start") {
		t.Errorf("exit %d:\n%s", code, out)
	}
	// Nor can it end what it did not make.
	if code, out, _ := call("", "revoke", "--control", second.control, fmt.Sprint(socket)); code != exitNone || !strings.Contains(out, "not there") {
		t.Errorf("exit %d: %s", code, out)
	}
	if err := echoOnce(c); err != nil {
		t.Errorf("the connection did not outlive its daemon: %v", err)
	}
}

// TestTwoDaemonsDoNotShareAControlSocket: the second does not start.
func TestTwoDaemonsDoNotShareAControlSocket(t *testing.T) {
	requireDaemon(t)
	id := sharedIdentity(t)
	d := startDaemon(t, id, daemonOptions{})
	code, stderr := serveFails(t, "", "--listen", "127.0.0.1:0", "--certificate", id.dir+"/ecdsa.pem", "--key", id.dir+"/ecdsa.key",
		"--worker-user", "60601", "--application", d.socket+"2", "--control", d.control)
	if code != exitFailed || !strings.Contains(stderr, "control socket") || !strings.Contains(stderr, "another daemon listens there") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if code, _, _ := call("", "status", "--control", d.control); code != exitOK {
		t.Error("the first one's control socket is broken")
	}
}
