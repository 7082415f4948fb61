// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// openSocket reads the cookie of a TCP socket. Any other kind of socket, MPTCP among
// them, cannot have kernel TLS and counts as none.
func openSocket(raw syscall.RawConn) (socket, error) {
	s := socket{raw: raw}
	var protocol int
	var err error
	ctlErr := raw.Control(func(fd uintptr) {
		protocol, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL)
		if err == nil && protocol == unix.IPPROTO_TCP {
			s.cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
		}
	})
	switch {
	case ctlErr != nil:
		return socket{}, fmt.Errorf("%w: reach the socket: %w", ErrLocal, ctlErr)
	case errors.Is(err, unix.ENOTSOCK):
		return socket{}, nil
	case err != nil:
		return socket{}, fmt.Errorf("%w: read SO_PROTOCOL and SO_COOKIE: %w", ErrLocal, err)
	case protocol != unix.IPPROTO_TCP:
		return socket{}, nil
	}
	return s, nil
}

// peek copies what the socket has received into buf and leaves it there. It returns
// when enough says so, at the end of the stream, and at the read deadline with an
// error; without wait at once.
//
// The runtime's poller wakes it at every arrival, not as long as there is something,
// so waiting for the rest of a record does not spin.
func (s socket) peek(buf []byte, wait bool, enough func([]byte) bool) (n int, err error) {
	rawErr := s.raw.Read(func(fd uintptr) bool {
		for {
			n, _, err = unix.Recvfrom(int(fd), buf, unix.MSG_PEEK|unix.MSG_DONTWAIT)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				n, err = 0, nil
				return !wait
			case err != nil, n == 0:
				return true
			}
			return !wait || enough(buf[:n])
		}
	})
	return max(n, 0), errors.Join(rawErr, err)
}
