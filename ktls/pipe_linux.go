// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"os"
	"runtime"
	"sync"
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
	slots   int
	cleanup runtime.Cleanup
}

// pipes are empty ones. A slot takes 40 bytes of kernel memory, 10 KiB a pipe, so a
// connection has one only while there is data, and an idle one costs nothing.
var pipes sync.Pool

// takePipe returns an empty pipe of at least pipeSizeMin bytes, or errNoSplice if the
// user's share of pipe buffers is used up.
func takePipe() (*pipe, error) {
	if p, ok := pipes.Get().(*pipe); ok {
		return p, nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, errNoSplice
	}
	p := &pipe{read: fds[0], write: fds[1]}
	// The pool forgets what was not used for a while.
	p.cleanup = runtime.AddCleanup(p, closePipe, fds)
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

func closePipe(fds [2]int) {
	unix.Close(fds[0])
	unix.Close(fds[1])
}

func (p *pipe) close() {
	p.cleanup.Stop()
	closePipe([2]int{p.read, p.write})
}

// spliceOnce moves up to n bytes without waiting.
func spliceOnce(from, to, n int) (int, error) {
	m, err := uninterrupted(func() (int, error) {
		m, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		return int(m), err
	})
	return m, os.NewSyscallError("splice", err)
}

// A lease is of a pipe, held only while there is data.
type lease struct {
	p *pipe
	// n bytes are in the pipe.
	n int
}

// fill waits until there is data, takes a pipe for it, and calls move to put it in.
// The wait ends when move returns anything but EAGAIN; waited says why it ended before.
func (l *lease) fill(from waiter, move func(fd int, p *pipe) (int, error)) (waited, err error) {
	waited = from(func(fd uintptr) bool {
		if l.p == nil {
			if l.p, err = takePipe(); err != nil {
				return true
			}
		}
		l.n, err = move(int(fd), l.p)
		if l.n == 0 && errors.Is(err, unix.EAGAIN) {
			l.giveBack()
			return false
		}
		return true
	})
	return waited, err
}

// giveBack gives a pipe back that is empty, and closes another.
func (l *lease) giveBack() {
	switch {
	case l.p == nil:
	case l.n == 0:
		pipes.Put(l.p)
	default:
		l.p.close()
	}
	*l = lease{}
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
