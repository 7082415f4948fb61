// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/userspace"
)

// kernelChangesKeys asks the kernel.
func kernelChangesKeys(t testing.TB) bool {
	t.Helper()
	err := ktls.TryRekey()
	if err != nil && !errors.Is(err, ktls.ErrNotSupported) {
		t.Fatal(err)
	}
	return err == nil
}

// TestThePolicySaysWhichConnectionsAreRelayed, and why.
func TestThePolicySaysWhichConnectionsAreRelayed(t *testing.T) {
	requireDaemon(t)
	rekeys := kernelChangesKeys(t)
	for _, c := range []struct {
		name, listener string
		version        uint16
		reason         string // "": the kernel has it
		label          string
	}{
		{"never, TLS 1.3", `kernel_tls = "never"`, tls.VersionTLS13, userspace.ErrPolicy.Error(), "policy"},
		{"never, TLS 1.2", `kernel_tls = "never"`, tls.VersionTLS12, userspace.ErrPolicy.Error(), "policy"},
		{"prefer", `kernel_tls = "prefer"`, tls.VersionTLS13, "", ""},
		{"prefer what can change keys, TLS 1.3", "kernel_tls = \"prefer\"\nfollow_key_updates = true", tls.VersionTLS13, "changing keys", "key_updates"},
		{"prefer what can change keys, TLS 1.2", "kernel_tls = \"prefer\"\nfollow_key_updates = true", tls.VersionTLS12, "", ""},
		{"require", `kernel_tls = "require"`, tls.VersionTLS13, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.label == "key_updates" && rekeys {
				c.reason, c.label = "", ""
			}
			metrics := openDir(t) + "/metrics.sock"
			d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: fmt.Sprintf("workers = 1\nmetrics = %q", metrics), listener: c.listener})
			accepted := make(chan net.Conn, 1)
			d.serveApplication(func(conn net.Conn) { accepted <- conn; echo(conn) })
			config := d.clientConfig()
			config.MaxVersion = c.version
			conn, err := d.dial(config)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := echoOnce(conn); err != nil {
				t.Fatal(err)
			}
			e := d.status().Connections[0]
			plain, relayed := (<-accepted).(*handoff.Plain)
			if relayed != (c.reason != "") {
				t.Errorf("relayed: %v, want %v", relayed, !relayed)
			}
			if !relayed {
				d.wait("installed")
				if e.Read.Place != custody.Software || d.log.nth("relay ready", 1) != nil {
					t.Errorf("%+v", e)
				}
				return
			}
			if plain.Connection != e.Socket || plain.Facts.Version != blob.Version(c.version) {
				t.Errorf("%d, %+v; %+v", plain.Connection, plain.Facts, e)
			}
			checkRelayedShown(t, d, e, c.reason)
			got := scrape(t, metrics)
			if !hasLabel(got["offloadd_relayed_total"], "reason", c.label) || !hasLabel(got["offloadd_connections"], "read", "user_space") {
				t.Errorf("metrics: %v, %v", got["offloadd_relayed_total"], got["offloadd_connections"])
			}
		})
	}
}

// hasLabel says whether a metric is there with this value of a label.
func hasLabel(f *dto.MetricFamily, name, value string) bool {
	for _, m := range f.GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == name && l.GetValue() == value {
				return true
			}
		}
	}
	return false
}

// checkRelayedShown checks where an operator sees that a connection is relayed, and why.
func checkRelayedShown(t *testing.T, d *testDaemon, e custody.Entry, reason string) {
	t.Helper()
	for _, k := range []custody.Key{e.Read, e.Write} {
		var roles []string
		for _, h := range k.Hands {
			roles = append(roles, h.Role)
		}
		if k.Place != custody.UserSpace || !strings.Contains(k.Reason, reason) || !slices.Equal(roles, []string{"worker", "daemon", "relay", "application"}) {
			t.Errorf("key: %+v", k)
		}
	}
	if l := d.wait("relayed"); !strings.Contains(l.text("path_reason"), reason) || l.text("path") != "user space" {
		t.Errorf("log: %v", l)
	}
	if _, out, _ := call("", "status", "--control", d.control); !strings.Contains(out, "1 in user space") || !strings.Contains(out, "user space  ") {
		t.Errorf("status:\n%s", out)
	}
	if _, out, _ := call("", "status", "--control", d.control, fmt.Sprint(e.Socket)); !strings.Contains(out, reason) {
		t.Errorf("status of one:\n%s", out)
	}
}

func TestWithoutKernelTLSAListenerThatOnlyPrefersItGoesOn(t *testing.T) {
	if kernelReady() == nil {
		if os.Getenv("OFFLOADD_EXPECT_NO_TLS") != "" {
			t.Fatal("this kernel has TLS")
		}
		t.Skip("this kernel has TLS")
	}
	if os.Geteuid() != 0 {
		t.Skip("serve needs root")
	}
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1", listener: `kernel_tls = "prefer"`})
	d.serveApplication(echo)
	conn := d.mustEcho()
	checkRelayedShown(t, d, d.status().Connections[0], ktls.ErrNoTLS.Error())
	conn.Close()
	d.waitStatus("empty", func(s statusJSONOf) bool { return s.Daemon.Totals == custody.Totals{Ended: 1} })
}

// relaying starts a daemon that relays all, and returns what its application accepts.
func relaying(t *testing.T, settings string) (*testDaemon, <-chan *handoff.Plain) {
	t.Helper()
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1\n" + settings, listener: `kernel_tls = "never"`})
	accepted := make(chan *handoff.Plain, 8)
	d.serveApplication(func(c net.Conn) {
		c.SetDeadline(time.Now().Add(30 * time.Second))
		accepted <- c.(*handoff.Plain)
	})
	return d, accepted
}

// dialRelayed returns both ends of a connection.
func dialRelayed(t *testing.T, d *testDaemon, accepted <-chan *handoff.Plain) (*tls.Conn, *handoff.Plain) {
	t.Helper()
	c, err := d.dial(d.clientConfig())
	if err != nil {
		t.Fatalf("%v\n%s", err, d.log.dump())
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	var plain *handoff.Plain
	select {
	case plain = <-accepted:
	case <-time.After(30 * time.Second):
		t.Fatalf("no application got the connection\n%s", d.log.dump())
	}
	t.Cleanup(func() { plain.Close() })
	if _, err := io.ReadFull(plain, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	return c, plain
}

func TestOnlyCloseNotifyIsTheEndOfARelayedStream(t *testing.T) {
	d, accepted := relaying(t, "")
	for name, c := range map[string]struct {
		end  func(c *tls.Conn) error
		want error
	}{
		"close_notify": {(*tls.Conn).CloseWrite, io.EOF},
		"a FIN":        {func(c *tls.Conn) error { return c.NetConn().(*net.TCPConn).CloseWrite() }, io.ErrUnexpectedEOF},
		"a reset": {func(c *tls.Conn) error {
			return errors.Join(c.NetConn().(*net.TCPConn).SetLinger(0), c.NetConn().Close())
		}, io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			client, plain := dialRelayed(t, d, accepted)
			if err := c.end(client); err != nil {
				t.Fatal(err)
			}
			for range 2 { // it stays so
				if n, err := plain.Read(make([]byte, 1)); n != 0 || err != c.want {
					t.Errorf("read: %d, %v, want %v", n, err, c.want)
				}
			}
		})
	}
	t.Run("ours", func(t *testing.T) {
		client, plain := dialRelayed(t, d, accepted)
		if _, err := plain.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		plain.Close()
		if got, err := io.ReadAll(client); string(got) != "last words" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
}

func TestEveryByteIsRelayed(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1", listener: `kernel_tls = "never"`})
	p := newPayload(t)
	done := make(chan error, 8)
	d.serveApplication(func(c net.Conn) {
		defer c.Close()
		done <- p.both(c, c)
	})
	for _, suite := range []blob.CipherSuite{blob.TLS_AES_128_GCM_SHA256, blob.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256} {
		t.Run(suite.String(), func(t *testing.T) {
			if err := errors.Join(d.opensslTransfers(p, suite), <-done); err != nil {
				t.Errorf("%v\n%s", err, d.log.dump())
			}
		})
	}
}

// TestARelayFollowsKeyUpdates, on every kernel.
func TestARelayFollowsKeyUpdates(t *testing.T) {
	d, accepted := relaying(t, "")
	tcp, err := net.Dial("tcp", d.address)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	session, err := offloadClient(tcp.(*net.TCPConn), d.clientConfig(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	client, err := userspace.NewConn(tcp, session.Read, session.Write)
	if err != nil {
		t.Fatal(err)
	}
	client.SetDeadline(time.Now().Add(30 * time.Second))
	plain := <-accepted
	defer plain.Close()
	for i := range 20 {
		if err := client.UpdateKey(true); err != nil {
			t.Fatal(i, err)
		}
		for _, way := range []struct {
			w io.Writer
			r io.Reader
		}{{client, plain}, {plain, client}} {
			text := fmt.Sprint("message ", i)
			if _, err := io.WriteString(way.w, text); err != nil {
				t.Fatal(i, err)
			}
			got := make([]byte, len(text))
			if _, err := io.ReadFull(way.r, got); err != nil || string(got) != text {
				t.Fatal(i, string(got), err)
			}
		}
	}
}

func TestRevokingARelayedConnectionEndsBothEnds(t *testing.T) {
	d, accepted := relaying(t, "")
	client, plain := dialRelayed(t, d, accepted)
	if code, out, stderr := call("", "revoke", "--control", d.control, fmt.Sprint(plain.Connection)); code != exitOK || !strings.Contains(out, "ended") {
		t.Fatalf("exit %d: %s%s", code, out, stderr)
	}
	if n, err := plain.Read(make([]byte, 1)); n != 0 || err != io.ErrUnexpectedEOF {
		t.Errorf("the application reads %d, %v", n, err)
	}
	if n, err := client.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the client reads %d, %v", n, err)
	}
	d.waitStatus("empty", func(s statusJSONOf) bool { return s.Daemon.Totals == custody.Totals{Ended: 1, Revoked: 1} })
}

// TestWhatOnlyTheKernelCanDoIsRefusedForARelayedConnection: to give it back, and to ask.
func TestWhatOnlyTheKernelCanDoIsRefusedForARelayedConnection(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1", listener: `kernel_tls = "never"`})
	channel, err := handoff.Dial(d.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer channel.Close()
	client, err := d.dial(d.clientConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	channel.SetDeadline(time.Now().Add(30 * time.Second))
	m, file, err := channel.Receive()
	if err != nil || m.Type != handoff.Relayed {
		t.Fatal(m, err)
	}
	defer file.Close()
	for _, try := range []*handoff.Message{
		{Type: handoff.Returned, Cookie: m.Cookie, Body: make([]byte, 16)},
		{Type: handoff.Asked, Cookie: m.Cookie, Body: []byte{1}},
	} {
		if err := channel.Send(try, file); err != nil {
			t.Fatal(err)
		}
		answer, _, err := channel.Receive()
		if err != nil || !strings.Contains(string(answer.Body), "made by a relay") {
			t.Errorf("%v: %+v, %v", try.Type, answer, err)
		}
	}
	// It goes on.
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := file.Read(make([]byte, 8)); n != 1 || err != nil {
		t.Error(n, err)
	}
}

func TestARelayThatIsKilledEndsItsConnectionsAndNoOthers(t *testing.T) {
	d, accepted := relaying(t, "")
	client, plain := dialRelayed(t, d, accepted)
	pid := int(d.wait("relayed").number("relay_pid"))
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if n, err := plain.Read(make([]byte, 1)); n != 0 || err != io.ErrUnexpectedEOF {
		t.Errorf("the application reads %d, %v", n, err)
	}
	if n, err := client.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the client reads %d, %v", n, err)
	}
	d.wait("relay died; the connections it had are ended")
	dialRelayed(t, d, accepted)
	if next := int(d.waitFor("relayed", 2).number("relay_pid")); next == pid {
		t.Error("the relay is the one that was killed")
	}
}

// TestARelayEndsWithItsLastConnection: it takes no more than a worker, and the daemon's end
// is not its own.
func TestARelayEndsWithItsLastConnection(t *testing.T) {
	d, accepted := relaying(t, "worker_connections = 1")
	client, plain := dialRelayed(t, d, accepted)
	dialRelayed(t, d, accepted)
	first, second := d.waitFor("relayed", 1).number("relay_pid"), d.waitFor("relayed", 2).number("relay_pid")
	if first == second {
		t.Error("a relay took more connections than a worker may")
	}
	d.stop()
	for _, text := range []string{"after", "the daemon"} {
		if _, err := client.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(plain, make([]byte, len(text))); err != nil {
			t.Fatal(err)
		}
	}
	plain.Close()
	if _, err := io.ReadAll(client); err != nil {
		t.Error(err)
	}
	client.Close()
	for until := time.Now().Add(20 * time.Second); syscall.Kill(int(first), 0) == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the relay stays when its last connection has ended")
		}
	}
}

// TestNoConnectionIsLostWhenRelaysAreReplaced: many at once, each relay for three.
func TestNoConnectionIsLostWhenRelaysAreReplaced(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 2\nworker_connections = 3", listener: `kernel_tls = "never"`})
	d.serveApplication(echo)
	const connections = 24
	failed := make(chan error, connections)
	for range connections {
		go func() {
			c, err := d.dial(d.clientConfig())
			if err == nil {
				err = echoOnce(c)
				c.Close()
			}
			failed <- err
		}()
	}
	for range connections {
		if err := <-failed; err != nil {
			t.Errorf("%v\n%s", err, d.log.dump())
		}
	}
	d.waitStatus("empty", func(s statusJSONOf) bool { return s.Daemon.Totals == custody.Totals{Ended: connections} })
	d.waitFor("relay left", connections/3-1) // the last one waits for more
}
