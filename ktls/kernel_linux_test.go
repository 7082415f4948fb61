// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"encoding/binary"
	"net"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/ktls/ktlstest"
)

const (
	optTX = 1
	optRX = 2
)

func withFD(t testing.TB, c syscall.Conn, f func(fd int)) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { f(int(fd)) }); err != nil {
		t.Fatal(err)
	}
}

// kernelState returns what the kernel holds for one direction.
func kernelState(t testing.TB, c syscall.Conn, option, size int) []byte {
	t.Helper()
	b := make([]byte, size)
	n := uint32(size)
	withFD(t, c, func(fd int) {
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_TLS, uintptr(option),
			uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
		if errno != 0 {
			t.Fatalf("getsockopt: %v", errno)
		}
	})
	return b[:n]
}

// setKernelKey is a setsockopt without any of the checks of Install.
func setKernelKey(t testing.TB, c syscall.Conn, option int, info []byte) (err error) {
	t.Helper()
	withFD(t, c, func(fd int) { err = unix.SetsockoptString(fd, unix.SOL_TLS, option, string(info)) })
	return err
}

// typeMessage is the control message that gives a record its type.
func typeMessage(contentType byte) ([]byte, error) {
	h := unix.Cmsghdr{Level: unix.SOL_TLS, Type: 1}
	h.SetLen(unix.CmsgLen(1))
	oob, err := binary.Append(nil, binary.NativeEndian, h)
	if err != nil {
		return nil, err
	}
	oob = append(oob, make([]byte, unix.CmsgSpace(1)-len(oob))...)
	oob[unix.CmsgLen(0)] = contentType
	return oob, nil
}

// sendRecord sends a record of any type through the kernel, waiting for room.
func sendRecord(t testing.TB, c *net.TCPConn, contentType byte, content []byte) {
	t.Helper()
	oob, err := typeMessage(contentType)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendmsg(int(fd), content, oob, nil, unix.MSG_DONTWAIT)
		return sent != unix.EAGAIN
	})
	if err != nil || sent != nil {
		t.Fatalf("send a record of type %d: %v, %v", contentType, err, sent)
	}
}

// receiveRecord takes a record of any type from the kernel; type 0 is the end of the
// stream.
func receiveRecord(t testing.TB, c *net.TCPConn) (byte, []byte, error) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	p, oob := make([]byte, 20000), make([]byte, 64)
	var n, oobn int
	var received error
	err = raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, received = unix.Recvmsg(int(fd), p, oob, unix.MSG_DONTWAIT)
		return received != unix.EAGAIN
	})
	if err == nil {
		err = received
	}
	if err != nil || oobn == 0 {
		return 0, nil, err
	}
	return oob[unix.CmsgLen(0)], p[:n], nil
}

// attachOther puts another ULP than "tls" on the socket, if the kernel has one.
func attachOther(t testing.TB, c syscall.Conn, name string) (err error) {
	t.Helper()
	withFD(t, c, func(fd int) { err = unix.SetsockoptString(fd, unix.SOL_TCP, unix.TCP_ULP, name) })
	return err
}

// tcpState returns the kernel's number of the TCP state.
func tcpState(t testing.TB, c syscall.Conn) (state uint8) {
	t.Helper()
	withFD(t, c, func(fd int) {
		info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
		if err != nil {
			t.Fatal(err)
		}
		state = info.State
	})
	return state
}

const (
	tcpEstablished = 1
	tcpFinWait2    = 5
	tcpClose       = 7
	tcpCloseWait   = 8
)

func waitState(t testing.TB, c syscall.Conn, want uint8) {
	t.Helper()
	for range 500 {
		if tcpState(t, c) == want {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("TCP state %d, want %d", tcpState(t, c), want)
}

// mptcpSocket returns one end of a Multipath TCP connection.
func mptcpSocket(t testing.TB) *net.TCPConn {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var d net.Dialer
	d.SetMultipathTCP(true)
	c, err := d.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if ok, err := c.(*net.TCPConn).MultipathTCP(); err != nil || !ok {
		if ktlstest.InVM() {
			t.Fatalf("the kernels of the tests have Multipath TCP, but this connection is none: %v", err)
		}
		t.Skip("no Multipath TCP here")
	}
	return c.(*net.TCPConn)
}

// receiveQueue returns how many bytes of records have arrived and were not read.
func receiveQueue(t testing.TB, c *net.TCPConn) (queued int) {
	t.Helper()
	withFD(t, c, func(fd int) { queued, _ = unix.IoctlGetInt(fd, unix.SIOCINQ) })
	return queued
}

// waitReadable waits until something has arrived.
func waitReadable(t testing.TB, c *net.TCPConn) {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); time.Sleep(time.Millisecond) {
		if receiveQueue(t, c) > 0 {
			return
		}
	}
	t.Fatal("nothing arrives")
}

// peekRecord looks at what comes next, which decrypts it.
func peekRecord(t testing.TB, c *net.TCPConn) (n int, err error) {
	t.Helper()
	withFD(t, c, func(fd int) {
		n, _, _, _, err = unix.Recvmsg(fd, make([]byte, 4), make([]byte, 64), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	return n, err
}
