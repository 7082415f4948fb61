// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/handshaker"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// TestTheKernelHoldsExactlyWhatTheHandshakeLeft: for each suite, role and
// direction, with and without tickets, resumed or not, with data of the peer right
// behind its Finished or not, the kernel's state equals the exported one, and the
// next record each way is accepted.
func TestTheKernelHoldsExactlyWhatTheHandshakeLeft(t *testing.T) {
	ktlstest.Require(t)
	id := sharedIdentity(t)
	for _, suite := range blob.CipherSuites() {
		for _, tickets := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v/tickets=%v", suite, tickets), func(t *testing.T) {
				serverConfig := &tls.Config{Certificates: id.serverForTest, SessionTicketsDisabled: !tickets}
				clientConfig := &tls.Config{RootCAs: id.roots, ServerName: "localhost"}
				only(t, suite, serverConfig)
				only(t, suite, clientConfig)
				// The second round of each role resumes, where there are tickets.
				for round := range 2 {
					resumed := tickets && round == 1
					for _, early := range []bool{false, true} {
						if !resumed {
							clientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(4)
						}
						serverState(t, serverConfig, clientConfig, resumed, early)
					}
				}
				clientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(4)
				for round := range 2 {
					clientState(t, serverConfig, clientConfig, tickets && round == 1)
				}
			})
		}
	}
}

// serverState offloads the server's end. With early, the client's first record
// arrives in one segment with its Finished, where the version allows that.
func serverState(t *testing.T, serverConfig, clientConfig *tls.Config, resumed, early bool) {
	t.Helper()
	p := ktlstest.NewPair(t)
	corked := &corkedConn{Conn: p.Client}
	client := tls.Client(corked, clientConfig)
	earlyBehindFinished := early && (clientConfig.MaxVersion == tls.VersionTLS13 || resumed)
	handshake := make(chan error, 1)
	go func() {
		corked.corkAfterRead = earlyBehindFinished
		err := client.Handshake()
		if err == nil && early {
			_, err = client.Write([]byte("early"))
		}
		handshake <- errors.Join(err, corked.flush())
	}()
	session, err := offloadServer(p.Server, serverConfig)
	if err := errors.Join(err, <-handshake); err != nil {
		t.Fatal(err)
	}
	if session.Facts.Resumed != resumed {
		t.Errorf("resumed: %v, want %v", session.Facts.Resumed, resumed)
	}
	conn := installExactly(t, p.Server, session)
	if early {
		expectRead(t, conn, "early")
	}
	pingPong(t, conn, client)
}

func offloadServer(tcp *net.TCPConn, config *tls.Config) (*handshaker.Session, error) {
	if err := ktls.Attach(tcp); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return handshaker.Server(ctx, tcp, &handshaker.Config{TLS: config})
}

// clientState offloads the client's end.
func clientState(t *testing.T, serverConfig, clientConfig *tls.Config, resumed bool) {
	t.Helper()
	p := ktlstest.NewPair(t)
	server := tls.Server(p.Server, serverConfig)
	handshake := make(chan error, 1)
	go func() { handshake <- server.Handshake() }()
	session, err := offloadClient(p.Client, clientConfig, 100*time.Millisecond)
	if err := errors.Join(err, <-handshake); err != nil {
		t.Fatal(err)
	}
	if session.Facts.Resumed != resumed {
		t.Errorf("resumed: %v, want %v", session.Facts.Resumed, resumed)
	}
	pingPong(t, installExactly(t, p.Client, session), server)
}

func offloadClient(tcp *net.TCPConn, config *tls.Config, ticketWait time.Duration) (*handshaker.Session, error) {
	if err := ktls.Attach(tcp); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return handshaker.Client(ctx, tcp, &handshaker.Config{TLS: config, TicketWait: ticketWait})
}

// installExactly installs both states and compares what getsockopt then returns.
func installExactly(t *testing.T, tcp *net.TCPConn, session *handshaker.Session) *ktls.Conn {
	t.Helper()
	wantRX, wantTX := ktlstest.CryptoInfo(session.Read), ktlstest.CryptoInfo(session.Write)
	description := session.String()
	if _, err := ktls.Install(tcp, session.Read, session.Write); err != nil {
		t.Fatal(err)
	}
	if got := cryptoInfoOf(t, tcp, optionRX, len(wantRX)); !bytes.Equal(got, wantRX) {
		t.Errorf("%s:\nthe kernel's read state is %x\nexported was             %x", description, got, wantRX)
	}
	if got := cryptoInfoOf(t, tcp, optionTX, len(wantTX)); !bytes.Equal(got, wantTX) {
		t.Errorf("%s:\nthe kernel's write state is %x\nexported was              %x", description, got, wantTX)
	}
	if !bytes.Equal(make([]byte, session.Read.Key.Len()), session.Read.Key.Bytes()) {
		t.Error("Install left the key")
	}
	conn, err := ktls.NewConn(tcp)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// TLS_TX and TLS_RX of include/uapi/linux/tls.h.
const (
	optionTX = 1
	optionRX = 2
)

// cryptoInfoOf reads a direction's whole state from the kernel, key included.
func cryptoInfoOf(t testing.TB, c syscall.Conn, option, size int) []byte {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, size)
	n := uint32(size)
	var errno unix.Errno
	raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_TLS, uintptr(option),
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)), 0)
	})
	if errno != 0 {
		t.Fatalf("getsockopt: %v", errno)
	}
	return buf[:n]
}

func expectRead(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

// pingPong sends records both ways and ends both ways.
func pingPong(t *testing.T, a *ktls.Conn, b *tls.Conn) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	a.SetDeadline(deadline)
	b.SetDeadline(deadline)
	for i := range 3 {
		ping, pong := fmt.Sprintf("ping %d", i), fmt.Sprintf("pong %d", i)
		if _, err := io.WriteString(a, ping); err != nil {
			t.Fatal(err)
		}
		expectRead(t, b, ping)
		if _, err := io.WriteString(b, pong); err != nil {
			t.Fatal(err)
		}
		expectRead(t, a, pong)
	}
	if err := a.CloseWrite(); err != nil {
		t.Error(err)
	}
	if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("peer read %d, %v; want EOF", n, err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if n, err := a.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read %d, %v; want EOF", n, err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// corkedConn holds back what is written after the first read until flush, so that
// the last flight of a handshake and what follows leave as one segment.
type corkedConn struct {
	net.Conn
	corkAfterRead bool
	corked        bool
	held          []byte
}

func (c *corkedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.corked = c.corkAfterRead
	return n, err
}

func (c *corkedConn) Write(p []byte) (int, error) {
	if c.corked {
		c.held = append(c.held, p...)
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *corkedConn) flush() error {
	c.corkAfterRead, c.corked = false, false
	_, err := c.Conn.Write(c.held)
	c.held = nil
	return err
}

// TestTicketsAreCountedOrPassedOver: OpenSSL sends 0, 1 or 2 tickets behind its
// Finished. Those that the handshake took are in the sequence number, and those that
// it left reach the kernel and are no data.
func TestTicketsAreCountedOrPassedOver(t *testing.T) {
	ktlstest.Require(t)
	id := sharedIdentity(t)
	for _, tickets := range []int{0, 1, 2} {
		for _, wait := range []time.Duration{0, 2 * time.Second} {
			t.Run(fmt.Sprintf("%d tickets, wait %v", tickets, wait), func(t *testing.T) {
				address := freeAddress(t)
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, "openssl", "s_server", "-quiet", "-naccept", "1", "-accept", address, "-tls1_3",
					"-num_tickets", fmt.Sprint(tickets), "-cert", id.dir+"/ecdsa.pem", "-key", id.dir+"/ecdsa.key")
				err := pipeTransfer(cmd, func(stdin io.Writer, stdout io.Reader) error {
					tcp := dialRetry(t, address)
					session, err := offloadClient(tcp, &tls.Config{RootCAs: id.roots, ServerName: "localhost"}, wait)
					if err != nil {
						return err
					}
					// On a busy machine a second ticket may come too late to be waited for.
					seq := session.Read.Seq
					if wait > 0 && seq < uint64(min(tickets, 1)) || seq > uint64(tickets) {
						t.Errorf("read sequence number %d after %d tickets", seq, tickets)
					}
					conn := installExactly(t, tcp, session)
					defer conn.Close()
					conn.SetDeadline(time.Now().Add(30 * time.Second))
					if _, err := io.WriteString(conn, "up"); err != nil {
						return err
					}
					expectRead(t, stdout, "up")
					if _, err := io.WriteString(stdin, "down"); err != nil {
						return err
					}
					expectRead(t, conn, "down")
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestResumptionWorksAcrossWorkers: a ticket of one worker is good for the next.
func TestResumptionWorksAcrossWorkers(t *testing.T) {
	requireDaemon(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1\nworker_connections = 1"})
			d.serveApplication(echo)
			config := d.clientConfig()
			config.MinVersion, config.MaxVersion = version, version
			config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			for i := range 3 {
				c, err := d.dial(config)
				if err != nil {
					t.Fatal(err)
				}
				if err := echoOnce(c); err != nil {
					t.Fatal(err)
				}
				if resumed := c.ConnectionState().DidResume; resumed != (i > 0) {
					t.Errorf("connection %d resumed: %v", i+1, resumed)
				}
				c.Close()
			}
			pids := map[int64]bool{}
			for i := range 3 {
				pids[d.waitFor("installed", i+1).number("worker_pid")] = true
			}
			if len(pids) != 3 {
				t.Errorf("the 3 connections had workers %v", pids)
			}
		})
	}
}
