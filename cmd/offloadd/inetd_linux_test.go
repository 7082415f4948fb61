// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
)

// startInetd runs a shell script for each connection of a daemon.
func startInetd(t *testing.T, d *testDaemon, script string, flags ...string) *runningProgram {
	t.Helper()
	command := append([]string{"/proc/self/exe", "inetd", "--application", d.socket}, flags...)
	p := startProgram(t, openDir(t), append(command, "--", "sh", "-c", script))
	d.wait("application connected")
	return p
}

// dialInetd connects, and bounds all that follows.
func dialInetd(t *testing.T, d *testDaemon, config *tls.Config) *tls.Conn {
	t.Helper()
	c, err := d.dial(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

func TestAProgramIsToldWhatWasAgreed(t *testing.T) {
	requireDaemon(t)
	id := sharedIdentity(t)
	d := startDaemon(t, id, daemonOptions{listener: fmt.Sprintf("client_auth = \"verify\"\nclient_ca = %q", id.caPath)})
	startInetd(t, d, "env | grep -E '^OFFLOADD_(ALPN|LOCAL|PEER|SERVER_NAME|SUITE|VERSION)' | sort; echo $OFFLOADD_COOKIE $OFFLOADD_PIPES >&2")
	config := d.clientConfig()
	config.NextProtos, config.Certificates, config.MaxVersion = []string{"test"}, []tls.Certificate{id.client}, tls.VersionTLS12
	c := dialInetd(t, d, config)
	got, err := io.ReadAll(c)
	state := c.ConnectionState()
	want := fmt.Sprintf("OFFLOADD_ALPN=test\nOFFLOADD_LOCAL=%v\nOFFLOADD_PEER=%v\nOFFLOADD_PEER_SHA256=%s\nOFFLOADD_PEER_VERIFIED=1\n"+
		"OFFLOADD_SERVER_NAME=localhost\nOFFLOADD_SUITE=%s\nOFFLOADD_VERSION=TLS 1.2\n",
		c.RemoteAddr(), c.LocalAddr(), fingerprint(id.client.Certificate[0]), tls.CipherSuiteName(state.CipherSuite))
	if err != nil || string(got) != want {
		t.Errorf("%v, the program was told\n%swant\n%s", err, got, want)
	}
}

// TestAProgramThatFailsHasNotSentAll: its peer gets no end of the stream.
func TestAProgramThatFailsHasNotSentAll(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{})
	p := startInetd(t, d, `echo part; read line; [ "$line" = good ]`)
	for word, want := range map[string]error{"good": nil, "bad": syscall.ECONNRESET} {
		c := dialInetd(t, d, d.clientConfig())
		got := make([]byte, 5)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "part\n" {
			t.Fatalf("%q, %v", got, err)
		}
		fmt.Fprintln(c, word)
		if _, err := io.ReadAll(c); !errors.Is(err, want) {
			t.Errorf("%s: the peer is told %v, want %v", word, err, want)
		}
	}
	p.wait("exit status 1")
}

// TestAProgramAsksInLines: what its read met, whether that was the end, and nonsense.
func TestAProgramAsksInLines(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{})
	p := startInetd(t, d, `ask() { echo "$1" >&4; read answer <&3; echo "$1: $answer"; }
		ask end; ask what; cat 2>/dev/null; ask met; ask end`)
	c := dialInetd(t, d, d.clientConfig())
	fmt.Fprintln(c, "hello")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if want := "end: cut\nwhat: unknown question\nhello\nmet: end\nend: end\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	p.wait("program ended")
}

// TestAQuestionLeavesAConnectionBlocking: the flag belongs to all who share the connection.
func TestAQuestionLeavesAConnectionBlocking(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{})
	l, err := handoff.Listen(d.socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	dialInetd(t, d, d.clientConfig())
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	file, err := c.(*handoff.Socket).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd := int(file.Fd()) // which makes it blocking
	answer, err := c.(*handoff.Socket).TLSAsk(blob.Question{Met: true, Quiet: true})
	if err != nil || answer.Verdict != blob.GoOn {
		t.Errorf("%+v, %v", answer, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("flags %#x, %v: a read that finds nothing would fail", flags, err)
	}
}

func TestNoMoreProgramsRunThanAreAllowed(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{})
	startInetd(t, d, `echo started; read line`, "--max", "1")
	first, second := dialInetd(t, d, d.clientConfig()), dialInetd(t, d, d.clientConfig())
	mustRead := func(c *tls.Conn) {
		t.Helper()
		got := make([]byte, 8)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "started\n" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	mustRead(first)
	second.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	if n, err := second.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a second program runs: %d, %v", n, err)
	}
	// A crypto/tls connection reads no more after a deadline. Its end shows that it had its turn.
	second.Close()
	third := dialInetd(t, d, d.clientConfig())
	fmt.Fprintln(first, "go")
	mustRead(third)
}

// TestWhatComesToInetdAtItsEndIsGivenBack: the program that runs may finish, and no new
// connection is lost.
func TestWhatComesToInetdAtItsEndIsGivenBack(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{})
	p := startInetd(t, d, `echo started; read line; echo "$line"`)
	c := dialInetd(t, d, d.clientConfig())
	if _, err := io.ReadFull(c, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	p.cmd.Process.Signal(unix.SIGTERM)
	p.wait("draining")
	d.serveApplication(echo)
	d.waitFor("application connected", 2)
	for range 3 { // they take turns
		d.mustEcho().Close()
	}
	fmt.Fprintln(c, "last")
	if got, err := io.ReadAll(c); err != nil || string(got) != "last\n" {
		t.Errorf("%q, %v", got, err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, p.out.text())
	}
	if text := p.out.text(); strings.Contains(text, "dropped") {
		t.Error(text)
	}
}

// TestProgramsThatDoNotEndAreKilled, behind the time to drain.
func TestProgramsThatDoNotEndAreKilled(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{})
	p := startInetd(t, d, `echo started; sleep 300 & wait`, "--drain", "100ms")
	c := dialInetd(t, d, d.clientConfig())
	if _, err := io.ReadFull(c, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	p.cmd.Process.Signal(unix.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, p.out.text())
	}
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer is told %v", err)
	}
}
