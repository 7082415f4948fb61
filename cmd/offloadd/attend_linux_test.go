// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/handshaker"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// keepingClient is a client of the daemon that can change keys itself: crypto/tls sends
// no KeyUpdate of its own accord.
func keepingClient(t *testing.T, d *testDaemon) *ktls.Conn {
	t.Helper()
	tcp, custody := clientSession(t, d)
	c, err := ktls.NewConnKeeping(tcp, custody)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.SetWriteDeadline(time.Now())
		c.Close()
	})
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	return c
}

// clientSession shakes hands with the daemon and puts the keys into the kernel.
func clientSession(t *testing.T, d *testDaemon) (*net.TCPConn, *ktls.Custody) {
	t.Helper()
	var dialer net.Dialer
	dialer.SetMultipathTCP(false)
	conn, err := dialer.Dial("tcp", d.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	tcp := conn.(*net.TCPConn)
	custody, err := handshakeKeeping(testContext(t), tcp, d.clientConfig())
	if err != nil {
		t.Fatal(err)
	}
	return tcp, custody
}

// handshakeKeeping makes tcp a TLS 1.3 client whose keys are in the kernel.
func handshakeKeeping(ctx context.Context, tcp *net.TCPConn, config *tls.Config) (*ktls.Custody, error) {
	config.MinVersion = tls.VersionTLS13
	session, err := handshaker.Client(ctx, tcp, &handshaker.Config{TLS: config})
	if err != nil {
		return nil, err
	}
	cookie, err := ktls.Cookie(tcp)
	if err != nil {
		return nil, err
	}
	session.Read.Cookie, session.Write.Cookie = cookie, cookie
	custody, _, err := ktls.InstallKeeping(tcp, session.Read, session.Write)
	return custody, err
}

func requireRekey(t *testing.T) {
	t.Helper()
	requireDaemon(t)
	if !ktlstest.CanRekey() {
		t.Skip("this kernel does not change keys")
	}
}

// updatingCopy writes data in pieces, with a KeyUpdate before each, every fourth of which
// asks for one.
func updatingCopy(c *ktls.Conn, data []byte, pieces int) error {
	size := len(data) / pieces
	for i := range pieces {
		if err := c.UpdateKey(i%4 == 3); err != nil {
			return fmt.Errorf("piece %d: %w", i, err)
		}
		if _, err := c.Write(data[i*size:][:size]); err != nil {
			return fmt.Errorf("piece %d: %w", i, err)
		}
	}
	return c.CloseWrite()
}

// TestTheKeysOfADaemonsConnectionChange: under load both ways, by KeyUpdates of both ends;
// the application has no secret, status shows the epochs, and metrics count.
func TestTheKeysOfADaemonsConnectionChange(t *testing.T) {
	requireRekey(t)
	const pieces, size = 32, 256 << 10
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1"})
	l, err := handoff.Listen(d.socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client := keepingClient(t, d)
	_, server := mustAccept(t, l)
	server.SetDeadline(time.Now().Add(2 * time.Minute))
	data := make([]byte, pieces*size)
	mathrand.NewChaCha8([32]byte{5}).Read(data)
	var wg sync.WaitGroup
	for _, way := range [][2]*ktls.Conn{{client, server}, {server, client}} {
		wg.Go(func() {
			if err := updatingCopy(way[0], data, pieces); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			sum := sha256.New()
			if n, err := io.Copy(sum, struct{ io.Reader }{way[1]}); err != nil || n != int64(len(data)) ||
				[32]byte(sum.Sum(nil)) != sha256.Sum256(data) {
				t.Errorf("%d bytes of %d arrived, or others: %v", n, len(data), err)
			}
		})
	}
	wg.Wait()
	s := d.waitStatus("one live", func(s statusJSONOf) bool { return s.Daemon.Totals.Live == 1 })
	if e := s.Connections[0]; e.Read.Epoch < pieces || e.Write.Epoch < pieces {
		t.Errorf("status shows epochs %d and %d, want %d at least", e.Read.Epoch, e.Write.Epoch, pieces)
	} else if n := s.Daemon.Totals; n.ReadKeys != uint64(e.Read.Epoch) || n.WriteKeys != uint64(e.Write.Epoch) || n.Unfollowed != 0 {
		t.Errorf("status counts %d and %d keys, want %d and %d", n.ReadKeys, n.WriteKeys, e.Read.Epoch, e.Write.Epoch)
	}
	server.Close()
	client.Close()
}

// TestAConnectionMovesThroughTheDaemonBetweenKeyUpdates: what the daemon read and wrote
// is in the account.
func TestAConnectionMovesThroughTheDaemonBetweenKeyUpdates(t *testing.T) {
	requireRekey(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1"})
	startReturner(t, d)
	startReturner(t, d)
	client := keepingClient(t, d)
	data := make([]byte, 8<<20)
	mathrand.NewChaCha8([32]byte{6}).Read(data)
	sent := make(chan error, 1)
	go func() { sent <- updatingCopy(client, data, 16) }()
	got := make([]byte, len(data))
	n, err := io.ReadFull(client, got)
	if err := errors.Join(err, <-sent); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes of %d came back, and may differ: %v\n%s", n, len(data), err, d.log.dump())
	}
	if moved := d.log.count("connection taken back"); moved < 5 {
		t.Errorf("it was given back %d times", moved)
	}
}

// TestAnApplicationIsToldWhatItsReadMet: one that knows read and write only.
func TestAnApplicationIsToldWhatItsReadMet(t *testing.T) {
	requireDaemon(t)
	metrics := filepath.Join(openDir(t), "metrics.sock")
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: fmt.Sprintf("metrics = %q", metrics)})
	l, sock, _, client := listenAndAccept(t, d)
	met := blob.Question{Met: true, Quiet: true}
	got := make([]byte, 100)
	sock.SetDeadline(time.Now().Add(time.Minute))
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if answer, err := l.Ask(sock, met); err != nil || answer.Verdict != blob.GoOn {
		t.Errorf("with data to read: %+v, %v", answer, err)
	}
	if n, err := sock.Read(got); string(got[:n]) != "hello" {
		t.Errorf("%q, %v", got[:n], err)
	}
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := sock.Read(got); !errors.Is(err, syscall.EIO) {
		t.Errorf("%d bytes, %v; want EIO", n, err)
	}
	if answer, err := l.Ask(sock, met); err != nil || answer.Verdict != blob.EndOfStream {
		t.Errorf("%+v, %v; want the end of the stream", answer, err)
	}
	if _, err := sock.Write([]byte("bye")); err != nil {
		t.Fatal(err)
	}
	if n, err := client.Read(got); string(got[:n]) != "bye" {
		t.Errorf("%q, %v", got[:n], err)
	}
	if n := values(scrape(t, metrics), "answers_total"); n["verdict=go_on"] != 1 || n["verdict=end_of_stream"] != 1 || len(n) != 2 {
		t.Errorf("answers: %v", n)
	}
}

// sendHandshakeRecord sends a record that is a whole handshake message of a peer that
// does not change its key.
func sendHandshakeRecord(t *testing.T, c *net.TCPConn, message []byte) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	h := unix.Cmsghdr{Level: unix.SOL_TLS, Type: 1} // TLS_SET_RECORD_TYPE
	h.SetLen(unix.CmsgLen(1))
	oob, err := binary.Append(nil, binary.NativeEndian, h)
	if err != nil {
		t.Fatal(err)
	}
	oob = append(oob, make([]byte, unix.CmsgSpace(1)-len(oob))...)
	oob[unix.CmsgLen(0)] = 22
	var sent error
	raw.Control(func(fd uintptr) { sent = unix.Sendmsg(int(fd), message, oob, nil, 0) })
	if sent != nil {
		t.Fatal(sent)
	}
}

// TestAKeyUpdateThatNobodyCanFollowEndsTheConnection: on a kernel that cannot change
// keys; of a connection from before the daemon's start; and without a daemon. The peer is
// told, and nothing is damaged before.
func TestAKeyUpdateThatNobodyCanFollowEndsTheConnection(t *testing.T) {
	requireDaemon(t)
	id := sharedIdentity(t)
	for _, c := range []struct {
		name    string
		applies bool
		before  func(d *testDaemon) (next *testDaemon)
		want    error
	}{
		{"a kernel that cannot", !ktlstest.CanRekey(), func(d *testDaemon) *testDaemon { return d }, nil},
		{"the daemon was restarted", true, func(d *testDaemon) *testDaemon {
			d.cmd.Process.Kill()
			<-d.exited
			next := startDaemon(t, id, daemonOptions{socket: d.socket})
			next.wait("application connected")
			return next
		}, nil},
		{"there is no daemon", true, func(d *testDaemon) *testDaemon {
			d.cmd.Process.Kill()
			<-d.exited
			return nil
		}, handoff.ErrUnanswered},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !c.applies {
				t.Skip("this kernel changes keys")
			}
			d := startDaemon(t, id, daemonOptions{})
			l, err := handoff.Listen(d.socket, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			client, custody := clientSession(t, d)
			defer custody.Destroy()
			_, server := mustAccept(t, l)
			defer server.Close()
			if _, err := client.Write([]byte("before")); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 100)
			if n, err := server.Read(got); string(got[:n]) != "before" {
				t.Fatalf("%q, %v", got[:n], err)
			}
			go func() { // finds the next daemon
				for {
					if _, err := l.Accept(); err != nil {
						return
					}
				}
			}()
			next := c.before(d)
			sendHandshakeRecord(t, client, []byte{24, 0, 0, 1, 0})
			if n, err := server.Read(got); n != 0 || !errors.Is(err, ktls.ErrKeyUpdate) || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%d bytes, %v; want ErrKeyUpdate", n, err)
			}
			peer, err := ktls.NewConn(client)
			if err != nil {
				t.Fatal(err)
			}
			peer.SetReadDeadline(time.Now().Add(10 * time.Second))
			var alert *ktls.AlertError
			if _, err := peer.Read(got); !errors.As(err, &alert) || alert.Description != 80 {
				t.Errorf("the peer read %v, want internal_error", err)
			}
			if next != nil {
				next.waitStatus("one unfollowed", func(s statusJSONOf) bool { return s.Daemon.Totals.Unfollowed == 1 })
			}
		})
	}
}
