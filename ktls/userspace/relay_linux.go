// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// PlainPair returns the two ends of a unix stream for [Relay]: ours, and the one for who
// speaks no TLS, in this process or in another.
//
// A byte in our queue makes the end of the stream say how the connection ended: the kernel
// answers the close of a unix socket with unread data by ECONNRESET at the other end, and
// by an end of file without (net/unix/af_unix.c, unix_release_sock). It goes in first, by
// the other end, and from then on Relay leaves one byte there of what it has read, until
// the peer has sent close_notify. So a peer, or anybody on the path, who ends the connection
// otherwise, and a relay that dies, do not look like the end of the data.
func PlainPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "relay"), os.NewFile(uintptr(fds[1]), "plain")
	defer near.Close()
	if _, err = unix.Write(fds[1], []byte{0}); err != nil {
		err = os.NewSyscallError("write", err)
	} else if c, e := net.FileConn(near); e != nil {
		err = e
	} else {
		return c.(*net.UnixConn), far, nil
	}
	far.Close()
	return nil, nil, err
}

// relayBuffer is what one direction carries at a time in bytes: four records.
const relayBuffer = 4 * maxContent

// errGone: who had the other end of the stream has closed it.
var errGone = errors.New("the plain end was closed")

// Relay carries data between a TLS connection and our end of a PlainPair until both
// directions have ended, and closes both. What the other end sees and does:
//
//   - An end of file is the peer's close_notify, and nothing else.
//   - ECONNRESET, behind all data that came before, is any other end. It is told once, as
//     by any socket; then comes an end of file.
//   - shutdown(SHUT_WR) sends close_notify; the other direction goes on.
//   - close sends what was written, and close_notify, and ends the connection.
//
// It returns nil if the peer sent close_notify or the other end was closed before, and else
// what Read or Write of the connection returned.
func Relay(c Layer, plain *net.UnixConn) error {
	defer c.Close()
	defer plain.Close()
	raw, err := plain.SyscallConn()
	if err != nil {
		return err
	}
	// half is closed when the application has ended its direction, up sent when it is gone
	// or cannot be heard any more.
	half, up := make(chan struct{}), make(chan error, 1)
	go func() {
		err := relayUp(c, raw)
		if err == nil {
			close(half)
			err = awaitGone(raw)
		}
		if !errors.Is(err, errGone) {
			plain.Close() // with a byte unread
		}
		c.Close() // wakes relayDown
		up <- err
	}()
	down := relayDown(c, plain)
	switch {
	case down == nil:
		select {
		case <-half:
		case err := <-up: // gone, or so it looks where both directions have ended
			up <- err
		}
		_ = raw.Control(func(fd uintptr) { _ = take(int(fd), make([]byte, 1)) })
		plain.Close()
	case !errors.Is(down, errGone):
		plain.Close() // with a byte unread
	}
	// Else what the application wrote before it was gone is still on its way.
	err = <-up
	if down == nil || errors.Is(err, errGone) {
		return nil
	}
	if errors.Is(down, net.ErrClosed) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return down
}

// relayDown carries what the peer sends. Its end is nil at close_notify.
func relayDown(c Layer, plain *net.UnixConn) error {
	buffer := make([]byte, relayBuffer)
	defer clear(buffer)
	for {
		n, err := c.Read(buffer)
		if n > 0 {
			if _, err := plain.Write(buffer[:n]); errors.Is(err, unix.EPIPE) {
				return errGone
			} else if err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			// It fails if nobody is there to see it.
			_ = plain.CloseWrite()
			return nil
		case err != nil:
			return err
		}
	}
}

// relayUp carries what the application writes. It looks at what has come, sends that, and
// then takes it but for the last byte: the byte at the head of the queue has always been
// sent. It returns nil when the application has ended its direction.
func relayUp(c Layer, raw syscall.RawConn) error {
	buffer := make([]byte, relayBuffer+1)
	defer clear(buffer)
	for {
		n, state := 0, plainOpen
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, state, failed = look(int(fd), buffer)
			return n > 1 || state != plainOpen || failed != nil
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		if n > 1 {
			if _, err := c.Write(buffer[1:n]); err != nil {
				return err
			}
			err := raw.Control(func(fd uintptr) { failed = take(int(fd), buffer[:n-1]) })
			if err = errors.Join(err, failed); err != nil {
				return err
			}
			continue
		}
		if state == plainGone {
			return errGone
		}
		return c.CloseWrite()
	}
}

// awaitGone waits until the application has closed its end.
func awaitGone(raw syscall.RawConn) error {
	err := raw.Read(func(fd uintptr) bool {
		_, state, err := look(int(fd), make([]byte, 1))
		return state == plainGone || err != nil
	})
	if err == nil {
		err = errGone
	}
	return err
}

// plainState is what the application can still do.
type plainState uint8

const (
	plainOpen plainState = iota
	plainHalf            // it writes no more
	plainGone
)

// look returns what is in the queue, and leaves it there. The state is from before, so
// that with another than plainOpen nothing is missing.
func look(fd int, b []byte) (int, plainState, error) {
	ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
	if _, err := uninterrupted(func() (int, error) { return unix.Poll(ready, 0) }); err != nil {
		return 0, plainOpen, os.NewSyscallError("poll", err)
	}
	state := plainOpen
	switch {
	case ready[0].Revents&unix.POLLHUP != 0:
		state = plainGone
	case ready[0].Revents&unix.POLLRDHUP != 0:
		state = plainHalf
	}
	n, err := uninterrupted(func() (int, error) {
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return n, err
	})
	return n, state, os.NewSyscallError("recvfrom", err)
}

// take takes what look has shown.
func take(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := uninterrupted(func() (int, error) {
			n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
			return n, err
		})
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		if n == 0 {
			return io.ErrUnexpectedEOF // what was there is gone: somebody else reads
		}
		b = b[n:]
	}
	return nil
}

// uninterrupted repeats a system call that a signal interrupted, as often as a signal can
// be expected to.
func uninterrupted(call func() (int, error)) (n int, err error) {
	for range 1000 {
		if n, err = call(); err != unix.EINTR {
			break
		}
	}
	return max(n, 0), err
}
