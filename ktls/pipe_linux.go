// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is what we ask for: /proc/sys/fs/pipe-max-size of an ordinary system.
	// pipeSizeMin will do.
	pipeSize    = 1 << 20
	pipeSizeMin = 256 << 10
)

// pipe is a pair of descriptors through which the kernel moves pages.
type pipe struct {
	read, write int
	// slots is how many pieces fit, whatever their size.
	slots int
}

// newPipe returns a pipe of at least pipeSizeMin bytes, or errNoSplice if the
// user's share of pipe buffers is used up.
func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, errNoSplice
	}
	p := &pipe{read: fds[0], write: fds[1]}
	if _, err := unix.FcntlInt(uintptr(p.write), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		_, _ = unix.FcntlInt(uintptr(p.write), unix.F_SETPIPE_SZ, pipeSizeMin)
	}
	size, err := unix.FcntlInt(uintptr(p.write), unix.F_GETPIPE_SZ, 0)
	if err != nil || size < pipeSizeMin {
		p.close()
		return nil, errNoSplice
	}
	p.slots = size / os.Getpagesize()
	return p, nil
}

func (p *pipe) close() {
	unix.Close(p.read)
	unix.Close(p.write)
}

// spliceOnce moves up to n bytes without waiting.
func spliceOnce(from, to, n int) (int, error) {
	m, err := uninterrupted(func() (int, error) {
		m, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		return int(m), err
	})
	return m, os.NewSyscallError("splice", err)
}

// moveIn waits until the socket has something and moves up to n bytes of it into
// the pipe; 0 is the end of the stream.
func (p *pipe) moveIn(from syscall.RawConn, n int) (m int, err error) {
	waited := from.Read(func(fd uintptr) bool {
		m, err = spliceOnce(int(fd), p.write, n)
		return !errors.Is(err, unix.EAGAIN)
	})
	if waited != nil {
		return 0, waited
	}
	return m, err
}

// moveOnce moves up to n bytes to the socket, as soon as it takes some.
func (p *pipe) moveOnce(wait waiter, n int) (m int, err error) {
	waited := wait(func(fd uintptr) bool {
		m, err = spliceOnce(p.read, int(fd), n)
		return !errors.Is(err, unix.EAGAIN)
	})
	if waited != nil {
		return 0, waited
	}
	return m, err
}

// moveOut moves n bytes, all that is in the pipe, to the socket.
func (p *pipe) moveOut(to syscall.RawConn, n int) (int, error) {
	moved := 0
	for moved < n {
		m, err := p.moveOnce(to.Write, n-moved)
		moved += m
		if err != nil {
			return moved, err
		}
	}
	return moved, nil
}
