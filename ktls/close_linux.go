// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// maxDrain bounds in bytes what Close reads and drops.
const maxDrain = 1 << 20

// flush sends close_notify and returns when TCP has everything that was accepted.
//
// The kernel queues records of a non-blocking sender that TCP has no room for, and
// drops them in close(). A *blocking* send first pushes all that is queued
// (net/tls/tls_sw.c, tls_push_record and tls_tx_records). So the descriptor is made
// blocking for this one send. It reports success even if it was cut short, so a
// timeout of the socket would look like success: instead a watchdog shuts the socket
// down, and remembers that it did.
//
// If CloseWrite sent close_notify before, the peer gets a second one, which it
// ignores like all that follows the first (RFC 8446, Section 6.1).
func (c *Conn) flush(deadline time.Time) error {
	var err error
	if closed := c.raw.Control(func(fd uintptr) { err = flush(int(fd), deadline) }); closed != nil {
		err = closed
	}
	if err != nil && !errors.Is(err, ErrUndelivered) {
		err = c.opError("close", err)
	}
	return err
}

func flush(fd int, deadline time.Time) error {
	restore, err := makeBlocking(fd)
	if err != nil {
		return err
	}
	defer restore()
	// A peer that has closed answers the close_notify itself with a reset. If its TCP
	// had acknowledged everything before, nothing was lost.
	queued, queueErr := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	acknowledged := queueErr == nil && queued == 0
	late := watch(fd, deadline)
	_, err = sendOnce(fd, []byte{alertLevelWarning, alertCloseNotify}, setRecordType(recordAlert), 0)
	switch {
	case late():
		return ErrUndelivered
	case err != nil && acknowledged && isReset(err):
		return nil
	case err != nil:
		return err
	}
	// The send may have failed behind the close_notify it accepted.
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 && !(acknowledged && isReset(unix.Errno(errno))) {
		return fmt.Errorf("%w: %w", ErrUndelivered, os.NewSyscallError("sendmsg", unix.Errno(errno)))
	}
	return nil
}

func isReset(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

// watch shuts the socket down at the deadline. The function it returns ends the
// watch and reports whether that happened.
func watch(fd int, deadline time.Time) (late func() bool) {
	var fired atomic.Bool
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		select {
		case <-timer.C:
			fired.Store(true)
			_ = shutdownBoth(fd)
		case <-stop:
		}
	}()
	return func() bool {
		close(stop)
		<-stopped
		return fired.Load()
	}
}

// makeBlocking prepares descriptor and thread for a blocking send. No signal may
// interrupt it: before Linux 6.12.105 that breaks the connection. Go's own signals
// can wait, as the thread does nothing else. Reads are not affected: they all say
// MSG_DONTWAIT.
func makeBlocking(fd int) (restore func(), err error) {
	runtime.LockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	undo := []func(){runtime.UnlockOSThread}
	restore = func() {
		for i := len(undo) - 1; i >= 0; i-- {
			undo[i]()
		}
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		restore()
		return nil, os.NewSyscallError("rt_sigprocmask", err)
	}
	undo = append(undo, func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil) })
	// A timeout that somebody set would end the send early, and say success.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{}); err != nil {
		restore()
		return nil, os.NewSyscallError("setsockopt SO_SNDTIMEO", err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		restore()
		return nil, os.NewSyscallError("fcntl", err)
	}
	undo = append(undo, func() { _ = unix.SetNonblock(fd, true) })
	return restore, nil
}

// drain drops what has arrived and nobody read: TCP answers a close with unread
// data by a reset, which would take the data that we just handed over with it. A
// session ticket is enough for that.
func (c *Conn) drain() {
	_ = c.raw.Control(func(fd uintptr) {
		if n, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ); err != nil || n == 0 {
			return
		}
		p, oob := make([]byte, maxRecordContent), make([]byte, cmsgRoom)
		for dropped := 0; dropped < maxDrain; {
			n, contentType, whole, err := receiveRecord(int(fd), p, oob)
			if err != nil || contentType == 0 {
				break
			}
			if contentType != recordData && c.in.err == nil {
				// Behind a KeyUpdate is more to drop.
				c.takeControl(contentType, p[:n], whole)
			}
			dropped += n + 1
		}
		clear(p)
	})
}
