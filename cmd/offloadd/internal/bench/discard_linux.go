// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"io"
	"net"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// discardMost is what one call drops at most, in bytes.
const discardMost = 1 << 20

// nowhere is never written: it only tells the kernel a size.
var nowhere = make([]byte, discardMost)

// discard has the kernel drop the next n bytes that TCP receives, uncopied, and counts
// them. It returns how many there were before the end of the stream.
func discard(tcp *net.TCPConn, n int64, count *atomic.Int64) (int64, error) {
	dropped := int64(0)
	for dropped < n {
		m, err := discardSome(tcp, n-dropped)
		if err != nil {
			return dropped, err
		}
		dropped += int64(m)
		count.Add(int64(m))
	}
	return dropped, nil
}

// discardSome drops what has come (MSG_TRUNC, tcp(7)), at most so much.
func discardSome(tcp *net.TCPConn, most int64) (n int, err error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, err
	}
	waited := raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), nowhere[:min(most, discardMost)], unix.MSG_TRUNC)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	switch {
	case waited != nil:
		return 0, waited
	case err != nil:
		return 0, os.NewSyscallError("recvfrom", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}
