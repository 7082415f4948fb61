// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A tlsSocket is one end of a connection, and what the test did with it. Go's network poller would make calls of its own,
// so these are blocking sockets.
type tlsSocket struct {
	fd     int
	cookie uint64
	cipher uint16
	start  [directions]uint64 // first sequence numbers
	keyed  [directions]bool
	// version12: the kernel changes no keys of TLS 1.2.
	version12 bool
	want      Totals
	// parts: calls that the kernel cut into several were made, so that their number is not known.
	parts bool
}

// include/uapi/linux/tls.h
const (
	solTLS        = 282
	setRecordType = 1
	optionTX      = 1
	optionRX      = 2
)

// A testSuite has the size of its struct tls12_crypto_info_*.
type testSuite struct {
	version, cipher uint16
	size            int
}

var testSuites = []testSuite{{0x0304, 51, 40}, {0x0304, 52, 56}, {0x0304, 54, 56}, {0x0303, 51, 40}}

// key is an option value with random secrets, which begins at sequence number seq.
func (s testSuite) key(seq uint64) []byte {
	b := make([]byte, s.size)
	rand.Read(b)
	binary.NativeEndian.PutUint16(b, s.version)
	binary.NativeEndian.PutUint16(b[2:], s.cipher)
	binary.BigEndian.PutUint64(b[s.size-8:], seq)
	return b
}

// A tcpPair is a connection of blocking sockets over loopback.
func tcpPair(listener int) (client, server int, err error) {
	address, err := unix.Getsockname(listener)
	if err != nil {
		return -1, -1, err
	}
	if client, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, -1, err
	}
	if err = unix.Connect(client, address); err == nil {
		server, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	}
	if err != nil {
		unix.Close(client)
		return -1, -1, err
	}
	patience := unix.NsecToTimeval((20 * time.Second).Nanoseconds())
	for _, fd := range []int{client, server} {
		err = errors.Join(err, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	}
	return client, server, err
}

func listenTCP() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 16)); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// newTLSSocket attaches the ULP. It asks for the cookie last, as a foreign program never does.
func newTLSSocket(fd int, suite testSuite) (*tlsSocket, error) {
	if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_ULP, "tls"); err != nil {
		return nil, os.NewSyscallError("TCP_ULP", err)
	}
	return &tlsSocket{fd: fd, cipher: suite.cipher, version12: suite.version == 0x0303}, nil
}

func (s *tlsSocket) install(d int, key []byte) error {
	option := map[int]int{outward: optionTX, inward: optionRX}[d]
	if err := unix.SetsockoptString(s.fd, solTLS, option, string(key)); err != nil {
		return os.NewSyscallError("TLS_TX or TLS_RX", err)
	}
	s.keyed[d], s.start[d] = true, binary.BigEndian.Uint64(key[len(key)-8:])
	var err error
	s.cookie, err = unix.GetsockoptUint64(s.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	return err
}

// tlsPair is a connection with keys at both ends, with random first sequence numbers.
func tlsPair(listener int, suite testSuite, seq uint64) (client, server *tlsSocket, err error) {
	a, b, err := tcpPair(listener)
	if err != nil {
		return nil, nil, err
	}
	client, err = newTLSSocket(a, suite)
	if err != nil {
		return nil, nil, err
	}
	if server, err = newTLSSocket(b, suite); err != nil {
		return nil, nil, err
	}
	there, back := suite.key(seq), suite.key(2*seq)
	return client, server, errors.Join(client.install(outward, there), client.install(inward, back),
		server.install(inward, there), server.install(outward, back))
}

// sequence asks the kernel. The value is the key, so it is dropped at once.
func (s *tlsSocket) sequence(d int) (uint64, error) {
	option := map[int]int{outward: optionTX, inward: optionRX}[d]
	size := 40
	if s.cipher != 51 {
		size = 56
	}
	value, length := make([]byte, size), uint32(size)
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), solTLS, uintptr(option),
		uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&length)), 0); errno != 0 {
		return 0, os.NewSyscallError("getsockopt", errno)
	}
	return binary.BigEndian.Uint64(value[size-8:]), nil
}

// traffic of a direction, to be counted.
func (s *tlsSocket) traffic(d int) *Traffic {
	if d == outward {
		return &s.want.Sending
	}
	return &s.want.Receiving
}

// count books a call.
func (s *tlsSocket) count(d, n int, err error) (int, error) {
	t := s.traffic(d)
	t.Calls++
	switch {
	case err == nil:
		t.Bytes += uint64(n)
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
	case errors.Is(err, unix.EBADMSG):
		s.want.Errors[ErrorBadMessage]++
	case errors.Is(err, unix.EIO):
		s.want.Errors[ErrorIO]++
	case errors.Is(err, unix.EMSGSIZE):
		s.want.Errors[ErrorMessageSize]++
	case errors.Is(err, unix.EINVAL):
		s.want.Errors[ErrorInvalid]++
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.ENOTCONN):
		s.want.Errors[ErrorReset]++
	case errors.Is(err, unix.EKEYEXPIRED):
		s.want.Errors[ErrorKeyExpired]++
	default:
		s.want.Errors[ErrorOther]++
	}
	return n, err
}

// send sends all of b with one call, and the last record open if more follows.
func (s *tlsSocket) send(b []byte, flags int) error {
	n, err := unix.SendmsgN(s.fd, b, nil, nil, flags|unix.MSG_NOSIGNAL)
	n, err = s.count(outward, n, err)
	switch {
	case errors.Is(err, unix.EINTR): // a signal of Go's scheduler
		return s.send(b, flags)
	case err == nil && n < len(b):
		err = fmt.Errorf("%d of %d bytes went", n, len(b))
	}
	return err
}

// sendControl sends a record of another type.
func (s *tlsSocket) sendControl(kind byte, b []byte) error {
	control := make([]byte, unix.CmsgSpace(1))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	h.Level, h.Type = solTLS, setRecordType
	h.SetLen(unix.CmsgLen(1))
	control[unix.CmsgLen(0)] = kind
	_, err := s.count(outward, 0, nil)
	n, err2 := unix.SendmsgN(s.fd, b, control, nil, unix.MSG_NOSIGNAL)
	s.want.Sending.Bytes += uint64(max(n, 0))
	return errors.Join(err, err2)
}

// receive makes one call.
func (s *tlsSocket) receive(b []byte, flags int) (int, error) {
	n, _, err := unix.Recvfrom(s.fd, b, flags)
	counted := n
	if flags&unix.MSG_PEEK != 0 {
		counted = 0
	}
	if _, err = s.count(inward, counted, err); errors.Is(err, unix.EINTR) {
		return s.receive(b, flags)
	}
	return n, err
}

// receiveControl reads a record of any type.
func (s *tlsSocket) receiveControl(b []byte) (int, error) {
	n, _, _, _, err := unix.Recvmsg(s.fd, b, make([]byte, unix.CmsgSpace(1)), 0)
	return s.count(inward, n, err)
}

// receiveAll reads so many bytes.
func (s *tlsSocket) receiveAll(n int, buffer []byte) error {
	for n > 0 {
		got, err := s.receive(buffer[:min(n, len(buffer))], 0)
		if err != nil {
			return err
		}
		if got == 0 {
			return errors.New("the stream ended early")
		}
		n -= got
	}
	return nil
}

// wait until more than n bytes have come from the wire, and writes down how many nobody will have read.
func (s *tlsSocket) wait(n int) error {
	for range 2000 {
		unread, err := unix.IoctlGetInt(s.fd, unix.SIOCINQ)
		if err != nil {
			return err
		}
		if s.want.Unread = uint32(unread); unread > n {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("%d bytes have come, want more than %d", s.want.Unread, n)
}

// close writes down what the kernel says before, and how the test ends it.
func (s *tlsSocket) close(end End, peerFirst bool) error {
	var errs []error
	for d := range directions {
		if !s.keyed[d] {
			continue
		}
		seq, err := s.sequence(d)
		errs = append(errs, err)
		t := s.traffic(d)
		t.Sequence, t.Path = seq, Software
		t.Records += seq - s.start[d]
	}
	s.want.End, s.want.PeerFirst = end, peerFirst
	return errors.Join(append(errs, unix.Close(s.fd))...)
}
