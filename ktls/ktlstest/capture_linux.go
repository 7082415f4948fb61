// SPDX-License-Identifier: Apache-2.0

package ktlstest

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxCapture bounds in bytes what a Capture keeps of all streams together.
	maxCapture = 256 << 20
	// captureBuffer is the receive buffer of the packet socket in bytes.
	captureBuffer = 64 << 20
	maxPacket     = 128 << 10
)

// Capture records what goes over loopback from and to one TCP port. It sees what the
// network sees: with keys in a network device it would not be the same.
type Capture struct {
	port uint16
	fd   int
	done chan struct{}

	mu      sync.Mutex
	buffer  []byte
	streams map[flow]*stream
	order   []*stream
	size    int
	err     error
}

// StartCapture begins to record; the test's end ends it. It needs CAP_NET_RAW,
// without which the test is skipped, or fails under the VM runner.
func StartCapture(t testing.TB, port int) *Capture {
	t.Helper()
	fd, err := packetSocket()
	if err != nil {
		skipOrFail(t, "capture", err)
	}
	c := &Capture{
		port: uint16(port), fd: fd, done: make(chan struct{}),
		buffer: make([]byte, maxPacket), streams: make(map[flow]*stream),
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		c.follow()
	}()
	t.Cleanup(func() {
		close(c.done)
		<-stopped
		unix.Close(fd)
	})
	return c
}

// packetSocket returns a socket that sees all IP packets on loopback, from the IP
// header on.
func packetSocket() (int, error) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return -1, err
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket AF_PACKET", err)
	}
	// More than net.core.rmem_max needs CAP_NET_ADMIN; drops are noticed in any case.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: lo.Index}); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

// follow empties the socket until the end of the test.
func (c *Capture) follow() {
	for {
		select {
		case <-c.done:
			return
		default:
		}
		ready := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(ready, 20); err != nil && err != unix.EINTR {
			time.Sleep(10 * time.Millisecond)
		}
		c.mu.Lock()
		c.drain()
		c.mu.Unlock()
	}
}

// drain takes what is in the socket now. A packet that was delivered over loopback
// has been in the packet socket before.
func (c *Capture) drain() {
	for c.err == nil {
		n, from, err := unix.Recvfrom(c.fd, c.buffer, unix.MSG_TRUNC)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			c.err = os.NewSyscallError("recvfrom", err)
			return
		}
		// On loopback each packet is seen leaving and arriving.
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if n > len(c.buffer) {
			c.err = errors.New("a packet was longer than the capture's buffer")
			return
		}
		c.packet(c.buffer[:n])
	}
	if stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil && stats.Drops > 0 {
		c.err = errors.New("the capture lost packets")
	}
}

// packet files one IP packet.
func (c *Capture) packet(b []byte) {
	segment, ok := parseSegment(b)
	if !ok || segment.flow.srcPort != c.port && segment.flow.dstPort != c.port {
		return
	}
	s := c.streams[segment.flow]
	if segment.syn {
		// The first byte has the number after that of the SYN.
		segment.seq++
	}
	if s == nil || segment.syn && s.begin != segment.seq {
		s = &stream{flow: segment.flow, begin: segment.seq, next: segment.seq}
		c.streams[segment.flow] = s
		c.order = append(c.order, s)
	}
	if c.size += len(segment.payload); c.size > maxCapture {
		c.err = errors.New("the capture is full")
		return
	}
	s.add(segment.seq, segment.payload)
}
