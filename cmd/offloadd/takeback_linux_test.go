// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
	"github.com/offloadd/offloadd/ktls"
)

// returnAfter is how many bytes an application echoes before it gives the connection
// back.
const returnAfter = 300 << 10

// TestALiveConnectionMovesThroughTheDaemon: between two processes that echo it, in the
// middle of a transfer; no byte is lost, and status shows each hand.
func TestALiveConnectionMovesThroughTheDaemon(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1"})
	pids := []int64{startReturner(t, d), startReturner(t, d)}
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			config := d.clientConfig()
			config.MinVersion, config.MaxVersion = version, version
			client, err := d.dial(config)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			client.SetDeadline(time.Now().Add(2 * time.Minute))
			data := make([]byte, moveTransfer)
			mathrand.NewChaCha8([32]byte{3}).Read(data)
			sent := make(chan error, 1)
			go func() {
				_, err := client.Write(data)
				sent <- err
			}()
			got := make([]byte, len(data))
			n, err := io.ReadFull(client, got)
			if err := errors.Join(err, <-sent); err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
				t.Fatalf("%d bytes of %d came back, and may differ: %v\n%s", n, len(data), err, d.log.dump())
			}
			checkReturnedHands(t, d, pids)
		})
	}
}

// checkReturnedHands finds, for the one live connection, at least ten moves from one
// application to the other.
func checkReturnedHands(t *testing.T, d *testDaemon, pids []int64) {
	t.Helper()
	s := d.waitStatus("one live", func(s statusJSONOf) bool { return s.Daemon.Totals.Live == 1 })
	e := s.Connections[0]
	var applications []int64
	for i, h := range e.Write.Hands {
		if h.Role == "application" {
			applications = append(applications, int64(h.PID))
			if before := e.Write.Hands[i-1]; before.Role != "daemon" || before.PID != d.cmd.Process.Pid {
				t.Errorf("application %d has it from %+v", h.PID, before)
			}
		}
	}
	if len(applications) < moves+1 || len(e.Read.Hands) != len(e.Write.Hands) {
		t.Errorf("%d applications had it, want more than %d", len(applications), moves)
	}
	for i, pid := range applications {
		if !slices.Contains(pids, pid) || i > 0 && pid == applications[i-1] {
			t.Errorf("hands: %v", applications)
		}
	}
}

// startReturner starts the process and waits until it is connected.
func startReturner(t *testing.T, d *testDaemon) (pid int64) {
	t.Helper()
	n := d.log.count("application connected")
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestReturnerProcess$")
	cmd.Env = append(os.Environ(), "OFFLOADD_TEST_RETURNER="+d.socket)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	d.waitFor("application connected", n+1)
	return int64(cmd.Process.Pid)
}

// TestReturnerProcess is an application that echoes connections, and gives each back
// time and again.
func TestReturnerProcess(t *testing.T) {
	path := os.Getenv("OFFLOADD_TEST_RETURNER")
	if path == "" {
		return
	}
	l, err := handoff.Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if err := echoAndReturn(l, c.(*handoff.Socket)); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}()
	}
}

func echoAndReturn(l *handoff.Listener, sock *handoff.Socket) error {
	defer sock.Close()
	c, err := ktls.NewConn(sock)
	if err != nil {
		return err
	}
	for n := int64(returnAfter); ; {
		if _, err := io.CopyN(struct{ io.Writer }{c}, struct{ io.Reader }{c}, n); errors.Is(err, io.EOF) {
			return c.Close()
		} else if err != nil {
			return err
		}
		err := giveBack(l, sock, c)
		var refused *handoff.NotTakenError
		if !errors.As(err, &refused) {
			return errors.Join(err, c.Close())
		}
		// With nothing to tell, some more of the stream.
		if n = int64(refused.Unread); n == 0 {
			n = 10000
		}
	}
}

func giveBack(l *handoff.Listener, sock *handoff.Socket, c *ktls.Conn) error {
	return c.Release(func(a ktls.Account) error { return l.Return(sock, a.Read, a.Written) })
}

// listenAndAccept makes this process an application with one connection.
func listenAndAccept(t *testing.T, d *testDaemon) (*handoff.Listener, *handoff.Socket, *ktls.Conn, *tls.Conn) {
	t.Helper()
	l, err := handoff.Listen(d.socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	client, err := d.dial(d.clientConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	client.SetDeadline(time.Now().Add(time.Minute))
	sock, c := mustAccept(t, l)
	return l, sock, c, client
}

func mustAccept(t *testing.T, l net.Listener) (*handoff.Socket, *ktls.Conn) {
	t.Helper()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	sock := accepted.(*handoff.Socket)
	c, err := ktls.NewConn(sock)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	return sock, c
}

// pass sends a message from one end to the other.
func pass(t *testing.T, from io.Writer, to io.Reader, message string) {
	t.Helper()
	got := make([]byte, len(message))
	if _, err := io.WriteString(from, message); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(to, got); err != nil || string(got) != message {
		t.Fatalf("%q, %v; want %q", got, err, message)
	}
}

// TestAConnectionThatIsNotQuietStaysWithItsApplication: it hears why, and that reading
// so many bytes helps. As no other application is there, it gets the connection back.
func TestAConnectionThatIsNotQuietStaysWithItsApplication(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "application_timeout = \"1s\""})
	l, sock, c, client := listenAndAccept(t, d)
	pass(t, c, client, "hello")
	io.WriteString(client, "half and half")
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1200 * time.Millisecond) // the time of the delivery is over
	again := make(chan net.Conn, 1)
	go func() {
		next, _ := l.Accept()
		again <- next
	}()
	var refused *handoff.NotTakenError
	if err := giveBack(l, sock, c); !errors.As(err, &refused) || refused.Unread != len(" and half") || !strings.Contains(refused.Reason, "in part") {
		t.Fatalf("%+v, %v", refused, err)
	}
	if err := l.Return(sock, 0, 0); !errors.As(err, &refused) || !strings.Contains(refused.Reason, "more or other bytes") {
		t.Errorf("a wrong account: %v", err)
	}
	if _, err := io.ReadFull(c, make([]byte, refused.Unread+len(" and half"))); err != nil {
		t.Fatal(err)
	}
	pass(t, c, client, "it goes on")
	if err := giveBack(l, sock, c); err != nil {
		t.Fatal(err)
	}
	sock.Close()
	next := (<-again).(*handoff.Socket)
	defer next.Close()
	regained, err := ktls.NewConn(next)
	if err != nil || next.Cookie != sock.Cookie || next.Facts.ServerName != "localhost" {
		t.Fatalf("%+v, %v", next, err)
	}
	pass(t, regained, client, "from the next")
	pass(t, client, regained, "and to it")
	if n := len(d.status().Connections[0].Read.Hands); n != 5 {
		t.Errorf("%d hands, want worker, daemon, application, daemon, application", n)
	}
}

// TestADaemonThatEndsBeforeItAnswersHasNotTakenTheConnection: it goes on where it was.
// The next daemon does not know it.
func TestADaemonThatEndsBeforeItAnswersHasNotTakenTheConnection(t *testing.T) {
	requireDaemon(t)
	id := sharedIdentity(t)
	d := startDaemon(t, id, daemonOptions{})
	l, sock, c, client := listenAndAccept(t, d)
	pass(t, c, client, "hello")
	go l.Accept()
	if err := unix.Kill(d.cmd.Process.Pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	given := make(chan error, 1)
	go func() { given <- giveBack(l, sock, c) }()
	time.Sleep(100 * time.Millisecond)
	d.cmd.Process.Kill()
	if err := <-given; !errors.Is(err, handoff.ErrNoAnswer) {
		t.Fatalf("%v, want ErrNoAnswer", err)
	}
	pass(t, c, client, "it goes on")
	<-d.exited
	second := startDaemon(t, id, daemonOptions{socket: d.socket})
	second.wait("application connected")
	var refused *handoff.NotTakenError
	if err := giveBack(l, sock, c); !errors.As(err, &refused) || refused.Reason != custody.ErrNotKept.Error() {
		t.Errorf("the next daemon: %v", err)
	}
	pass(t, c, client, "still")
}

// TestAConnectionGoesToAnotherApplication: also when it would be the turn of the one
// that gave it back.
func TestAConnectionGoesToAnotherApplication(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{})
	first, sock, c, client := listenAndAccept(t, d)
	second, err := handoff.Listen(d.socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	d.waitFor("application connected", 2)
	go first.Accept()
	if err := giveBack(first, sock, c); err != nil {
		t.Fatal(err)
	}
	sock.Close()
	next, regained := mustAccept(t, second)
	defer next.Close()
	pass(t, regained, client, "from the other")
}
