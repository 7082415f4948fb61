// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"net"

	"golang.org/x/sys/unix"
)

// maxDrain bounds in bytes what Close reads and drops.
const maxDrain = 1 << 20

// withFD runs f on the socket. That it is closed needs no error: then there is nothing to
// be done.
func withFD(tcp *net.TCPConn, f func(fd int)) {
	if raw, err := tcp.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}

// sendNow sends as much as TCP takes at once.
func sendNow(tcp *net.TCPConn, b []byte) {
	withFD(tcp, func(fd int) {
		_, _ = unix.SendmsgN(fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
}

// acknowledged reports whether the peer's TCP has acknowledged all that was sent.
func acknowledged(tcp *net.TCPConn) (all bool) {
	withFD(tcp, func(fd int) {
		queued, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		all = err == nil && queued == 0
	})
	return all
}

// drain drops what has arrived and nobody read: TCP answers a close with unread
// data by a reset, which would take the data that we just handed over with it. A
// session ticket is enough for that.
func drain(tcp *net.TCPConn) {
	withFD(tcp, func(fd int) {
		p := make([]byte, maxContent)
		for dropped := 0; dropped < maxDrain; {
			n, _, err := unix.Recvfrom(fd, p, unix.MSG_DONTWAIT)
			if err != nil || n <= 0 {
				break
			}
			dropped += n
		}
	})
}
