// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
)

// pair returns both ends of a channel, with a deadline so that nothing hangs.
func pair(t *testing.T) (*Conn, *Conn) {
	t.Helper()
	a, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	b, err := FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Conn{a, b} {
		c.SetDeadline(time.Now().Add(10 * time.Second))
		t.Cleanup(func() { c.Close() })
	}
	return a, b
}

// tcpPair returns a connected TCP pair on loopback.
func tcpPair(t *testing.T) (*net.TCPConn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client.(*net.TCPConn), server.(*net.TCPConn)
}

func mustCookie(t *testing.T, c *net.TCPConn) uint64 {
	t.Helper()
	cookie, err := Cookie(c)
	if err != nil || cookie == 0 {
		t.Fatalf("cookie %d, error %v", cookie, err)
	}
	return cookie
}

func testFacts() *blob.Facts {
	return &blob.Facts{
		Role: blob.Server, Version: blob.TLS13, Suite: blob.TLS_AES_128_GCM_SHA256, Group: 0x11ec, Resumed: true,
		ALPN: "http/1.1", ServerName: "example.net", PeerCertificates: [][]byte{{1, 2, 3}, {4}}, PeerVerified: true,
	}
}

func established(cookie uint64) *Message {
	return &Message{Type: Established, Cookie: cookie, Read: blob.Blob("read"), Write: blob.Blob("write"), Facts: testFacts(), Body: []byte("body")}
}

func TestAMessageArrivesWithItsDescriptor(t *testing.T) {
	a, b := pair(t)
	client, server := tcpPair(t)
	sent := established(mustCookie(t, server))
	if err := a.Send(sent, server); err != nil {
		t.Fatal(err)
	}
	server.Close()
	got, file, err := b.Receive()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if !reflect.DeepEqual(got, sent) {
		t.Errorf("got %+v\nsent %+v", got, sent)
	}
	if flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, error %v: not close-on-exec", flags, err)
	}
	if _, err := file.Write([]byte("alive")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(client, buf); err != nil || string(buf) != "alive" {
		t.Errorf("read %q, %v", buf, err)
	}
}

func TestAMessageOfTheWrongShapeIsNotSent(t *testing.T) {
	a, _ := pair(t)
	_, server := tcpPair(t)
	cookie := mustCookie(t, server)
	long := strings.Repeat("x", 256)
	for _, c := range []struct {
		name   string
		change func(*Message)
		sock   bool
		want   error
	}{
		{"no type", func(m *Message) { m.Type = 0 }, true, ErrMalformed},
		{"unknown type", func(m *Message) { m.Type = 200 }, true, ErrMalformed},
		{"one blob", func(m *Message) { m.Write = nil }, true, ErrMalformed},
		{"large blob", func(m *Message) { m.Read = make(blob.Blob, blob.MaxSize+1) }, true, ErrTooLarge},
		{"no facts", func(m *Message) { m.Facts = nil }, true, ErrMalformed},
		{"no cookie", func(m *Message) { m.Cookie = 0 }, true, ErrMalformed},
		{"other socket's cookie", func(m *Message) { m.Cookie++ }, true, ErrCookie},
		{"no descriptor", func(*Message) {}, false, ErrDescriptor},
		{"long body", func(m *Message) { m.Body = make([]byte, 257) }, true, ErrTooLarge},
		{"long ALPN", func(m *Message) { m.Facts.ALPN = long }, true, ErrTooLarge},
		{"long server name", func(m *Message) { m.Facts.ServerName = long }, true, ErrTooLarge},
		{"long chain", func(m *Message) { m.Facts.PeerCertificates = [][]byte{make([]byte, MaxMessage)} }, true, ErrTooLarge},
		{"many certificates", func(m *Message) { m.Facts.PeerCertificates = make([][]byte, 33) }, true, ErrTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := established(cookie)
			c.change(m)
			var err error
			if c.sock {
				err = a.Send(m, server)
			} else {
				err = a.Send(m, nil)
			}
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// sendRaw sends bytes and descriptors past Send's checks.
func sendRaw(t *testing.T, c *Conn, b []byte, fds ...int) {
	t.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.unix.WriteMsgUnix(b, oob, nil); err != nil {
		t.Fatal(err)
	}
}

func mustEncode(t testing.TB, m *Message) []byte {
	t.Helper()
	b, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestAReceiverTakesExactlyTheRightDescriptor(t *testing.T) {
	_, server := tcpPair(t)
	other, _ := tcpPair(t)
	cookie := mustCookie(t, server)
	fd, otherFD := descriptorOf(t, server), descriptorOf(t, other)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	good := mustEncode(t, established(cookie))
	drain := mustEncode(t, &Message{Type: Drain})
	for _, c := range []struct {
		name string
		b    []byte
		fds  []int
		want error
	}{
		{"none where one belongs", good, nil, ErrDescriptor},
		{"two", good, []int{fd, fd}, ErrDescriptor},
		{"three", good, []int{fd, fd, otherFD}, ErrDescriptor},
		{"twenty", good, manyTimes(fd, 20), ErrDescriptor},
		{"one where none belongs", drain, []int{fd}, ErrDescriptor},
		{"another socket", good, []int{otherFD}, ErrCookie},
		{"no socket at all", good, []int{int(null.Fd())}, ErrDescriptor},
		{"right one, no message", []byte{1}, []int{fd}, ErrMalformed},
		{"right one, too long", make([]byte, MaxMessage+1), []int{fd}, ErrTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := pair(t)
			before := openDescriptors(t)
			sendRaw(t, a, c.b, c.fds...)
			m, file, err := b.Receive()
			if !errors.Is(err, c.want) || m != nil || file != nil {
				t.Errorf("got %v, %v, %v; want error %v", m, file, err, c.want)
			}
			if after := openDescriptors(t); after != before {
				t.Errorf("%d descriptors open, %d before", after, before)
			}
		})
	}
}

func manyTimes(fd, n int) []int {
	fds := make([]int, n)
	for i := range fds {
		fds[i] = fd
	}
	return fds
}

func descriptorOf(t *testing.T, c *net.TCPConn) (fd int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(f uintptr) { fd = int(f) })
	return fd
}

func TestAMessageCutOrExtendedAnywhereIsRefused(t *testing.T) {
	good := mustEncode(t, established(7))
	for n := range len(good) {
		if m, err := decode(good[:n]); err == nil {
			t.Fatalf("cut to %d bytes: %+v", n, m)
		}
	}
	if m, err := decode(append(bytes.Clone(good), 0)); err == nil {
		t.Errorf("with a trailing byte: %+v", m)
	}
}

func TestOnlyTheExpectedProcessIsHeard(t *testing.T) {
	a, b := pair(t)
	me := Peer{os.Getpid(), uint32(os.Getuid()), uint32(os.Getgid())}
	if b.Peer() != me {
		t.Errorf("peer %v, want %v", b.Peer(), me)
	}
	b.Expect(me)
	if err := a.Send(&Message{Type: Drain}, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Receive(); err != nil {
		t.Errorf("from this process: %v", err)
	}
	for _, p := range []Peer{{me.PID + 1, me.UID, me.GID}, {me.PID, me.UID + 1, me.GID}} {
		b.Expect(p)
		if err := a.Send(&Message{Type: Drain}, nil); err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.Receive(); !errors.Is(err, ErrPeer) {
			t.Errorf("expecting %v: %v, want ErrPeer", p, err)
		}
	}
}

func TestTheEndOfTheOtherSideIsEOFAfterItsMessages(t *testing.T) {
	a, b := pair(t)
	if err := a.Send(&Message{Type: Drain}, nil); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if m, _, err := b.Receive(); err != nil || m.Type != Drain {
		t.Errorf("got %v, %v", m, err)
	}
	if _, _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want EOF", err)
	}
}

func TestAStreamSocketIsNoChannel(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	if _, err := FileConn(os.NewFile(uintptr(fds[0]), "stream")); err == nil {
		t.Error("took a stream socket")
	}
	null, _ := os.Open(os.DevNull)
	if _, err := FileConn(null); err == nil {
		t.Error("took a file")
	}
}

// daemonSocket listens like a daemon and returns its channels.
func daemonSocket(t *testing.T, path string) (*net.UnixListener, chan *Conn) {
	t.Helper()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	conns := make(chan *Conn, 4)
	go func() {
		for {
			u, err := l.AcceptUnix()
			if err != nil {
				return
			}
			if c, err := NewConn(u); err == nil {
				t.Cleanup(func() { c.Close() })
				conns <- c
			}
		}
	}()
	t.Cleanup(func() { l.Close() })
	return l, conns
}

func TestAListenerServesConnectionsAndOutlivesItsDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.sock")
	daemon, conns := daemonSocket(t, path)
	var log syncBuffer
	l, err := Listen(path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	deliver := func(c *Conn) {
		t.Helper()
		client, server := tcpPair(t)
		m := &Message{Type: Connection, Cookie: mustCookie(t, server), Facts: testFacts()}
		if err := c.Send(m, server); err != nil {
			t.Fatal(err)
		}
		server.Close()
		got, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		sock := got.(*Socket)
		if !reflect.DeepEqual(sock.Facts, m.Facts) || sock.Cookie != m.Cookie {
			t.Errorf("facts %+v, cookie %d", sock.Facts, sock.Cookie)
		}
		fmt.Fprint(got, "hello")
		got.Close()
		if b, err := io.ReadAll(client); err != nil || string(b) != "hello" {
			t.Errorf("client read %q, %v", b, err)
		}
	}
	first := <-conns
	deliver(first)
	if err := first.Send(&Message{Type: Drain}, nil); err != nil { // not for applications: refused, and goes on
		t.Fatal(err)
	}
	deliver(first)

	daemon.Close()
	first.Close()
	again := make(chan *Conn, 1)
	go func() {
		time.Sleep(100 * time.Millisecond)
		_, conns := daemonSocket(t, path)
		again <- <-conns
	}()
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	second := <-again
	client, server := tcpPair(t)
	defer client.Close()
	if err := second.Send(&Message{Type: Connection, Cookie: mustCookie(t, server), Facts: testFacts()}, server); err != nil {
		t.Fatal(err)
	}
	if err := <-accepted; err != nil {
		t.Errorf("accept from the second daemon: %v", err)
	}
	if s := log.String(); !strings.Contains(s, "lost the daemon") || !strings.Contains(s, "found the daemon again") {
		t.Errorf("the log does not tell: %s", s)
	}
}

func TestClosingAListenerEndsAccept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.sock")
	daemonSocket(t, path)
	l, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { _, err := l.Accept(); done <- err }()
	time.Sleep(20 * time.Millisecond)
	l.Close()
	select {
	case err := <-done:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want net.ErrClosed", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Accept still waits")
	}
}

func TestListenSaysWhenThereIsNoDaemon(t *testing.T) {
	if _, err := Listen(filepath.Join(t.TempDir(), "none.sock"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
}

// FuzzDecode: what decodes has exactly one encoding.
func FuzzDecode(f *testing.F) {
	f.Add(mustEncode(f, established(7)))
	f.Add(mustEncode(f, &Message{Type: Drain}))
	f.Add(mustEncode(f, &Message{Type: Setup, Body: []byte("{}")}))
	f.Add(mustEncode(f, &Message{Type: Connection, Cookie: 1, Facts: testFacts()}))
	f.Add(mustEncode(f, NewTaken(1, &NotTakenError{Reason: "busy", Unread: 5})))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			return
		}
		again, err := m.encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("re-encoded as % x, %v\nwas           % x", again, err, b)
		}
	})
}

// syncBuffer is a bytes.Buffer for two goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
