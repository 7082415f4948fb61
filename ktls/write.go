// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
)

// maxWrite bounds in bytes one system call, so that the record limit is checked
// often enough and Close need not wait long for the lock.
const maxWrite = 1 << 20

// output is the writing half of a Conn.
type output struct {
	sync.Mutex
	counter recordCounter
	// closeNotified: CloseWrite, Close or a fatal alert went out.
	closeNotified bool
	// owed: the peer asked for a KeyUpdate. The reader sets it, without the lock.
	owed atomic.Bool
	// broken is set, without the lock, once the connection is of no more use.
	broken atomic.Pointer[ending]
}

// Write writes application data. What it accepted is encrypted and may still be
// in the kernel: only Close says whether it was handed to TCP.
func (c *Conn) Write(p []byte) (n int, err error) {
	c.out.Lock()
	defer c.out.Unlock()
	for {
		chunk, err := c.mayWrite(len(p)-n, 0)
		if err != nil || n == len(p) {
			return n, err
		}
		m, err := c.send(p[n : n+min(chunk, maxWrite)])
		c.out.counter.add(m, 0)
		n += m
		if err != nil && !errors.Is(err, errUpdateFirst) {
			return n, c.writeError(err)
		}
	}
}

// mayWrite returns how many of n bytes, in so many fragments, the next system call
// may write. It changes the key before, if that is due.
func (c *Conn) mayWrite(n, fragments int) (int, error) {
	if end := c.out.broken.Load(); end != nil {
		return 0, end.err
	}
	switch {
	case c.closed():
		return 0, c.opError("write", net.ErrClosed)
	case c.out.closeNotified:
		// The kernel would report success and send nothing after a shutdown.
		return 0, c.opError("write", ErrClosedWrite)
	case n == 0:
		return 0, nil
	}
	allowed := c.out.counter.allow(n, fragments)
	if allowed == 0 && c.canUpdate() || c.out.owed.Load() {
		if err := c.renewWriteKey(allowed == 0); err != nil {
			return 0, err
		}
		allowed = c.out.counter.allow(n, fragments)
	}
	if allowed == 0 {
		return 0, ErrRecordLimit
	}
	return allowed, nil
}

// waiter calls a function until it returns true, each time when a socket is ready.
type waiter func(func(fd uintptr) bool) error

// errUpdateFirst: nothing was written, since a KeyUpdate must go before. mayWrite sends
// it.
var errUpdateFirst = errors.New("a KeyUpdate must go first")

// waitToWrite is the waiter for data: what the peer asks for while we wait for it to
// make room goes before the next record.
func (c *Conn) waitToWrite(f func(fd uintptr) bool) error {
	first := false
	err := c.raw.Write(func(fd uintptr) bool {
		first = c.out.owed.Load()
		return first || f(fd)
	})
	if err == nil && first {
		return errUpdateFirst
	}
	return err
}

// writeError makes every error final but a deadline.
func (c *Conn) writeError(err error) error {
	err = c.opError("write", err)
	if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, net.ErrClosed) {
		c.out.broken.CompareAndSwap(nil, &ending{err, alertCloseNotify})
	}
	return err
}

// abort ends writing because reading ended badly. The alert is sent if it can be
// sent at once: a writer that waits for the peer holds the lock, and an alert
// behind its data would come too late anyway.
func (c *Conn) abort(end *ending) {
	if !c.out.broken.CompareAndSwap(nil, end) || end.alert == alertCloseNotify {
		return
	}
	if !c.out.TryLock() {
		return
	}
	defer c.out.Unlock()
	if !c.out.closeNotified {
		c.out.closeNotified = true
		c.tryAlert(alertLevelFatal, end.alert)
	}
}

// CloseWrite sends close_notify: the peer reads an end of file, and we may still
// read. Like that of crypto/tls it sends no FIN.
func (c *Conn) CloseWrite() error {
	c.out.Lock()
	defer c.out.Unlock()
	if c.out.closeNotified && !c.closed() {
		return nil
	}
	if _, err := c.mayWrite(0, 0); err != nil {
		return err
	}
	if err := c.sendAlert(alertLevelWarning, alertCloseNotify); err != nil {
		return c.writeError(err)
	}
	c.out.closeNotified = true
	return nil
}
