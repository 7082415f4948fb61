// SPDX-License-Identifier: Apache-2.0

package custody

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

const (
	tlsTX = 1 // TLS_TX of include/uapi/linux/tls.h
	tlsRX = 2
)

// getKey returns what the kernel tells a holder of the socket about its key. The size
// must be the exact one of the cipher's struct.
func getKey(c *net.TCPConn, option, size int) (key []byte, err error) {
	key = make([]byte, size)
	err = onFD(c, func(fd int) error {
		n := uint32(size)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_TLS, uintptr(option),
			uintptr(unsafe.Pointer(&key[0])), uintptr(unsafe.Pointer(&n)), 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
	return key, err
}

// TestWhatRevocationLeavesBehind: after it no byte leaves a holder's socket, whatever
// the holder tries, with every privilege. It also writes down what the kernel keeps:
// the key can still be read from the dead socket, and is gone with its last descriptor.
func TestWhatRevocationLeavesBehind(t *testing.T) {
	watched(t, 1) // or skip
	features, err := ktls.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, suite := range []blob.CipherSuite{blob.TLS_AES_128_GCM_SHA256, blob.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384} {
		t.Run(suite.String(), func(t *testing.T) {
			table, _ := watched(t, 10)
			p := ktlstest.NewPair(t)
			capture := ktlstest.StartCapture(t, p.Port())
			client, server := ktlstest.NewStates(t, suite, p)
			size := len(ktlstest.CryptoInfo(server.Write))
			if _, err := ktls.Install(p.Client, client.Read, client.Write); err != nil {
				t.Fatal(err)
			}
			if _, err := ktls.Install(p.Server, server.Read, server.Write); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Server.Write([]byte("before")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(p.Client, make([]byte, 6)); err != nil {
				t.Fatal(err)
			}
			before, err := getKey(p.Server, tlsTX, size)
			if err != nil {
				t.Fatal(err)
			}
			socket := add(t, table, p.Server, software())
			if outcome, err := table.Revoke(socket); outcome != Ended || err != nil {
				t.Fatalf("%s, %v", outcome, err)
			}
			sent := sentBy(t, capture, p.Port())
			if sent == 0 {
				t.Fatal("the capture saw nothing")
			}
			if _, err := p.Client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the peer reads %v, want a reset", err)
			}
			if _, err := p.Server.Write([]byte("after")); !errors.Is(err, unix.ECONNABORTED) {
				t.Errorf("the holder's first call says %v, want ECONNABORTED", err)
			}
			// The truth that the documentation tells. Should a kernel change it, change that too.
			for range 2 {
				after, err := getKey(p.Server, tlsTX, size)
				if err != nil || !bytes.Equal(after, before) {
					t.Errorf("getsockopt(TLS_TX) on the dead socket: %v, the same: %v; the documentation says it can be read", err, bytes.Equal(after, before))
				}
			}
			rekeys := suite.Version() == blob.TLS13 && features.Err(ktls.FeatureRekeyTX) == nil
			for _, a := range append(attempts(t, p), attempts(t, p)...) {
				if err := a.try(); (err == nil) != (a.rekey && rekeys) {
					t.Errorf("%s on a revoked socket: %v; the kernel can rekey: %v", a.name, err, rekeys)
				}
			}
			time.Sleep(100 * time.Millisecond)
			if n := sentBy(t, capture, p.Port()); n != sent {
				t.Errorf("the revoked socket sent %d bytes", n-sent)
			}
			if c := table.condition(socket); c != Revoked {
				t.Errorf("%s, want revoked while the socket is held", c)
			}
			if outcome, err := table.Revoke(socket); outcome != NotThere || err != nil {
				t.Errorf("again: %s, %v", outcome, err)
			}
			p.Server.Close()
			eventually(t, "the entry ends", func() bool { return table.condition(socket) == "gone" })
			if n := table.Totals(); n.Revoked != 1 || n.Ended != 1 {
				t.Errorf("%+v, want one revoked and ended", n)
			}
		})
	}
}

// attempt is one thing that a holder might try.
type attempt struct {
	name  string
	rekey bool // works where the kernel can rekey, and sends nothing all the same
	try   func() error
}

// attempts try to send with the key that is left, or to bring the socket to life.
func attempts(t *testing.T, p *ktlstest.Pair) []attempt {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, bytes.Repeat([]byte("f"), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	on := func(f func(fd int) error) func() error { return func() error { return onFD(p.Server, f) } }
	_, next := ktlstest.NewStates(t, blob.TLS_AES_128_GCM_SHA256, p)
	readKey, writeKey := string(ktlstest.CryptoInfo(next.Read)), string(ktlstest.CryptoInfo(next.Write))
	peer := p.Client.LocalAddr().(*net.TCPAddr)
	address := &unix.SockaddrInet4{Port: peer.Port, Addr: [4]byte(peer.IP.To4())}
	send := func(flags int, to unix.Sockaddr) func() error {
		return on(func(fd int) error { return unix.Sendto(fd, []byte("x"), unix.MSG_NOSIGNAL|flags, to) })
	}
	return []attempt{
		{"write", false, on(func(fd int) error { _, err := unix.Write(fd, []byte("x")); return err })},
		{"send", false, send(0, nil)},
		{"MSG_MORE", false, send(unix.MSG_MORE, nil)},
		{"MSG_OOB", false, send(unix.MSG_OOB, nil)},
		{"fast open", false, send(unix.MSG_FASTOPEN, address)},
		{"sendfile", false, on(func(fd int) error {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			_, err = unix.Sendfile(fd, int(f.Fd()), nil, 4096)
			return err
		})},
		{"a new write key", true, on(func(fd int) error { return unix.SetsockoptString(fd, unix.SOL_TLS, tlsTX, writeKey) })},
		{"a new read key", true, on(func(fd int) error { return unix.SetsockoptString(fd, unix.SOL_TLS, tlsRX, readKey) })},
		{"write with it", false, send(0, nil)},
		{"connect", false, on(func(fd int) error { return unix.Connect(fd, address) })},
		{"disconnect", false, on(disconnect)},
		{"connect after it", false, on(func(fd int) error { return unix.Connect(fd, address) })},
		{"listen", false, on(func(fd int) error { return unix.Listen(fd, 1) })},
		{"TCP_REPAIR and connect", false, on(func(fd int) error { return repairAndConnect(fd, address) })},
	}
}

// sentBy counts the TCP payload that went out from a port.
func sentBy(t *testing.T, capture *ktlstest.Capture, port int) (n int) {
	t.Helper()
	streams, err := capture.Streams()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range streams {
		if int(s.Src.Port()) == port {
			n += len(s.Data)
		}
	}
	return n
}

// disconnect is connect(2) with AF_UNSPEC.
func disconnect(fd int) error {
	raw := [16]byte{}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&raw)), 16)
	if errno != 0 {
		return errno
	}
	return nil
}

// repairAndConnect tries what checkpoint/restore does to bring a socket to life
// without packets.
func repairAndConnect(fd int, to unix.Sockaddr) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
		return err
	}
	defer unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 0)
	if err := disconnect(fd); err == nil {
		return nil
	}
	return unix.Connect(fd, to)
}

// endedRecord returns what the table had of a connection that has ended.
func endedRecord(t *testing.T, table *Table, l *net.TCPListener) record {
	t.Helper()
	p := ktlstest.Connect(t, l)
	if err := ktls.Attach(p.Server); err != nil {
		t.Fatal(err)
	}
	old := add(t, table, p.Server, software())
	table.mu.Lock()
	kept := *table.record(old)
	table.mu.Unlock()
	p.Client.SetLinger(0)
	p.Client.Close()
	p.Server.Close()
	eventually(t, "the old one ends", func() bool { return table.condition(old) == "gone" })
	return kept
}

// TestRevocationHitsNoOtherSocket: the kernel compares the cookie, so a connection
// that has the addresses of an earlier one is safe.
func TestRevocationHitsNoOtherSocket(t *testing.T) {
	table, _ := watched(t, 10)
	l := ktlstest.Listen(t)
	var kept record
	var client net.Conn
	// The port may be one on which another connection of before waits for stray segments,
	// and then it cannot be bound.
	for tries := 0; client == nil; tries++ {
		var err error
		kept = endedRecord(t, table, l)
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(kept.Peer)}
		if client, err = d.Dial("tcp", l.Addr().String()); err != nil && (tries == 10 || !errors.Is(err, unix.EADDRINUSE)) {
			t.Fatal(err)
		}
	}
	old := kept.Socket
	defer client.Close()
	server, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := ktls.Attach(server); err != nil {
		t.Fatal(err)
	}
	// As if the old one's end were not yet known.
	table.mu.Lock()
	table.put(&kept)
	table.mu.Unlock()
	if outcome, err := table.Revoke(old); outcome != NotThere || err != nil {
		t.Errorf("%s, %v; want not there", outcome, err)
	}
	if err := destroy(kept.id, old); err == nil {
		t.Error("SOCK_DESTROY with an old cookie succeeds")
	}
	if _, err := client.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	server.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := server.Read(make([]byte, 1)); err != nil && !errors.Is(err, unix.EIO) {
		t.Errorf("the new connection was hit: %v", err)
	}
}

// TestRevocationFindsASocketThatMoved: an application may bind its socket to an
// interface, and then its addresses alone do not find it.
func TestRevocationFindsASocketThatMoved(t *testing.T) {
	table, _ := watched(t, 10)
	p := ktlstest.Installed(t, blob.TLS_AES_128_GCM_SHA256)
	socket := add(t, table, p.Server, software())
	if err := onFD(p.Server, func(fd int) error { return unix.BindToDevice(fd, "lo") }); err != nil {
		t.Fatal(err)
	}
	if outcome, err := table.Revoke(socket); outcome != Ended || err != nil {
		t.Errorf("%s, %v; want ended", outcome, err)
	}
}

// TestRevocationStopsWhatWasQueued: the application has closed its socket, and the
// kernel still has data for a peer that does not read. Kernels before Linux 6.11 kept
// such a socket for ever when it was aborted, and those that are tested here have the
// cure (net/ipv4/tcp.c, tcp_abort).
func TestRevocationStopsWhatWasQueued(t *testing.T) {
	table, _ := watched(t, 10)
	p := ktlstest.Installed(t, blob.TLS_AES_128_GCM_SHA256)
	socket := add(t, table, p.Server, software())
	p.Server.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	written := 0
	for {
		n, err := p.Server.Write(make([]byte, 1<<20))
		if written += n; err != nil {
			break
		}
	}
	p.Server.Close()
	if c := table.condition(socket); c != Live {
		t.Fatalf("%s, want live: the kernel still sends", c)
	}
	if outcome, err := table.Revoke(socket); outcome != Ended || err != nil {
		t.Errorf("%s, %v; want ended", outcome, err)
	}
	eventually(t, "the entry ends", func() bool { return table.condition(socket) == "gone" })
	if n, err := io.Copy(io.Discard, p.Client); !errors.Is(err, unix.ECONNRESET) || n >= int64(written) {
		t.Errorf("the peer read %d bytes of %d, and then %v; want a reset before the end", n, written, err)
	}
}

// TestWithoutTheCapabilityNothingIsTakenForEnded: before Linux 7 the kernel does not
// tell such a process what is TLS.
func TestWithoutTheCapabilityNothingIsTakenForEnded(t *testing.T) {
	table, _ := watched(t, 10)
	p := ktlstest.Installed(t, blob.TLS_AES_128_GCM_SHA256)
	socket := add(t, table, p.Server, software())
	outcomes, errs := make(chan Outcome, 1), make(chan error, 1)
	go func() {
		// Capabilities belong to this thread, which ends with the goroutine.
		runtime.LockOSThread()
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&head, &none[0]); err != nil {
			t.Error(err)
		}
		if census, err := NewCensus(); err == nil {
			table.Reconciled(census)
		}
		outcome, err := table.Revoke(socket)
		outcomes <- outcome
		errs <- err
	}()
	if outcome, err := <-outcomes, <-errs; outcome != Refused || err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("%s, %v; want refused for want of CAP_NET_ADMIN", outcome, err)
	}
	if c := table.condition(socket); c != Live {
		t.Errorf("%s, want live", c)
	}
}
