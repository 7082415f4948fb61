// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
)

// Alert levels (RFC 8446, Section 6).
const (
	alertLevelWarning uint8 = 1
	alertLevelFatal   uint8 = 2
)

// What a KeyUpdate is and says (RFC 8446, Section 4.6.3).
const (
	messageKeyUpdate   uint8 = 24
	updateNotRequested uint8 = 0
	updateRequested    uint8 = 1
)

// output is the writing half of a Conn.
type output struct {
	sync.Mutex
	key    *key
	limit  uint64 // of records under one key
	buffer []byte
	// pending is what TCP has not taken of the record in the buffer.
	pending []byte
	// closeNotified: CloseWrite, Close or a fatal alert went out.
	closeNotified bool
	// owed: the peer asked for a KeyUpdate. The reader sets it, without the lock.
	owed atomic.Bool
	// broken is set, without the lock, once the connection is of no more use.
	broken atomic.Pointer[ktls.Ending]
}

// Write writes application data. What it accepted is with TCP, but for the rest of a
// record after a deadline, which whatever writes next finishes, Close in the end.
func (c *Conn) Write(p []byte) (n int, err error) {
	c.out.Lock()
	defer c.out.Unlock()
	for {
		if err := c.mayWrite(len(p) - n); err != nil {
			return n, err
		}
		if n == len(p) {
			return n, c.writeError(c.flush())
		}
		m := min(len(p)-n, maxContent)
		sealed, err := c.send(recordData, p[n:n+m])
		if sealed {
			n += m
		}
		if err != nil {
			return n, c.writeError(err)
		}
	}
}

// mayWrite says whether n bytes may be written now. It changes the key before, if that is
// due.
func (c *Conn) mayWrite(n int) error {
	if end := c.out.broken.Load(); end != nil {
		return end.Err
	}
	switch {
	case c.closed():
		return c.opError("write", net.ErrClosed)
	case c.out.closeNotified:
		return c.opError("write", ktls.ErrClosedWrite)
	case n == 0:
		return nil
	}
	if c.out.key.state.Seq >= c.out.limit && c.version == blob.TLS13 || c.out.owed.Load() {
		if err := c.changeWriteKey(updateNotRequested); err != nil {
			return err
		}
	}
	if c.out.key.state.Seq >= c.out.limit {
		return ktls.ErrRecordLimit
	}
	return nil
}

// send writes a record, or none if the deadline has passed. sealed: it is under way,
// whatever the error.
func (c *Conn) send(contentType uint8, content []byte) (sealed bool, err error) {
	if c.expired() {
		return false, os.ErrDeadlineExceeded
	}
	return c.put(contentType, content)
}

// put writes a record behind what is pending.
func (c *Conn) put(contentType uint8, content []byte) (sealed bool, err error) {
	if err := c.flush(); err != nil {
		return false, err
	}
	if err := c.seal(contentType, content); err != nil {
		return false, err
	}
	return true, c.flush()
}

// seal makes a record the one that is pending.
func (c *Conn) seal(contentType uint8, content []byte) (err error) {
	overhead := c.out.key.overhead()
	if size := len(content) + overhead; size > len(c.out.buffer) {
		// Those who write little have a small buffer.
		c.out.buffer = make([]byte, min(max(size, 2*len(c.out.buffer)), maxContent+overhead))
	}
	c.out.pending, err = c.out.key.seal(c.out.buffer, contentType, content)
	return err
}

// flush gives TCP what is pending.
func (c *Conn) flush() error {
	if len(c.out.pending) == 0 {
		return nil
	}
	n, err := c.tcp.Write(c.out.pending)
	c.out.pending = c.out.pending[n:]
	return err
}

// writeError makes every error final but a deadline.
func (c *Conn) writeError(err error) error {
	if err == nil {
		return nil
	}
	err = c.opError("write", err)
	if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, net.ErrClosed) {
		c.out.broken.CompareAndSwap(nil, &ktls.Ending{Err: err, Alert: alertCloseNotify})
	}
	return err
}

// abort ends writing because reading ended badly. The alert is sent if it can be
// sent at once: a writer that waits for the peer holds the lock, and an alert
// behind its data would come too late anyway.
func (c *Conn) abort(end *ktls.Ending) {
	if !c.out.broken.CompareAndSwap(nil, end) || end.Alert == alertCloseNotify {
		return
	}
	if !c.out.TryLock() {
		return
	}
	defer c.out.Unlock()
	if c.out.closeNotified || len(c.out.pending) > 0 {
		return
	}
	c.out.closeNotified = true
	if c.seal(recordAlert, []byte{alertLevelFatal, end.Alert}) == nil {
		sendNow(c.tcp, c.out.pending)
		c.out.pending = nil
	}
}

// UpdateKey changes the key that we write with, and, with requestPeer, asks the peer to
// change its own. It waits for a Write that is under way, and for the peer to make room
// for what is pending. Peers bound how often they take that without data in between
// (crypto/tls 16 times). An error before the KeyUpdate was accepted, a deadline for
// instance, has changed nothing.
func (c *Conn) UpdateKey(requestPeer bool) error {
	c.out.Lock()
	defer c.out.Unlock()
	if err := c.mayWrite(0); err != nil {
		return err
	}
	if c.version != blob.TLS13 {
		return fmt.Errorf("%w: %v has no KeyUpdate", ktls.ErrNoUpdate, c.version)
	}
	request := updateNotRequested // which answers, if the peer has asked
	if requestPeer {
		request = updateRequested
	}
	return c.changeWriteKey(request)
}

// changeWriteKey sends a KeyUpdate and changes the key. The caller holds the write lock
// all the while, so that no other record follows under the old key.
func (c *Conn) changeWriteKey(request uint8) error {
	// A request that comes from here on may be a new one, and gets an answer of its own.
	answers := request == updateNotRequested && c.out.owed.Swap(false)
	sealed, err := c.send(recordHandshake, []byte{messageKeyUpdate, 0, 0, 1, request})
	if !sealed {
		if answers {
			c.out.owed.Store(true)
		}
		return c.writeError(err)
	}
	if err := c.out.key.update(); err != nil {
		// Nothing may be sent any more, an alert neither: under which key?
		end := &ktls.Ending{Err: fmt.Errorf("%w: %w", ktls.ErrRekey, err), Alert: alertCloseNotify}
		c.out.broken.CompareAndSwap(nil, end)
		_ = ktls.Shutdown(c.tcp) // an error means that there is no connection
		return end.Err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil // accepted: it goes before all that follows
	}
	return c.writeError(err)
}

// CloseWrite sends close_notify: the peer reads an end of file, and we may still
// read. Like that of crypto/tls it sends no FIN.
func (c *Conn) CloseWrite() error {
	c.out.Lock()
	defer c.out.Unlock()
	if c.out.closeNotified && !c.closed() {
		return c.writeError(c.flush())
	}
	if err := c.mayWrite(0); err != nil {
		return err
	}
	sealed, err := c.send(recordAlert, []byte{alertLevelWarning, alertCloseNotify})
	c.out.closeNotified = c.out.closeNotified || sealed
	return c.writeError(err)
}
