// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// input is the reading half of a Conn.
type input struct {
	sync.Mutex
	err     error // the final error
	control controlReader
	receive func(fd uintptr) bool
	call    receiveCall
	bytes   uint64 // content of records of any type that was read
}

// receiveCall is one recvmsg: what goes in and what comes out. It lives in the
// Conn so that a Read allocates nothing for it.
type receiveCall struct {
	buffer []byte
	// loan is where the buffer comes from, or nil.
	loan *loan
	n    int
	// contentType is that of the record, 0 at the end of the TCP stream.
	contentType uint8
	whole       bool
	err         error
}

// Read reads application data.
func (c *Conn) Read(p []byte) (int, error) {
	c.in.Lock()
	defer c.in.Unlock()
	if len(p) == 0 {
		return 0, c.in.err
	}
	return c.read(receiveCall{buffer: p})
}

// readLoan is Read into a buffer that is borrowed when there is data.
func (c *Conn) readLoan(l *loan) (int, error) {
	c.in.Lock()
	defer c.in.Unlock()
	return c.read(receiveCall{loan: l})
}

// read is Read under the lock. It uses the buffer for control records too.
func (c *Conn) read(to receiveCall) (int, error) {
	for c.in.err == nil {
		got, err := c.receive(to)
		switch {
		case err != nil:
			return 0, c.readError(err)
		case got.contentType == 0:
			c.in.err = io.ErrUnexpectedEOF
		case got.contentType == recordData:
			if end := c.in.control.data(); end != nil {
				c.endRead(end)
			} else if got.n > 0 {
				return got.n, nil
			}
		default:
			c.takeControl(got.contentType, got.buffer[:got.n], got.whole)
			clear(got.buffer[:got.n])
		}
	}
	return 0, c.in.err
}

// takeControl takes a piece of a record that is not data.
func (c *Conn) takeControl(contentType uint8, piece []byte, whole bool) {
	end := c.in.control.control(contentType, piece)
	if end == nil && whole {
		end = c.followUpdate()
	}
	if end == nil {
		return
	}
	c.endRead(end)
	if errors.Is(end.err, ErrRekey) {
		_ = Shutdown(c.tcp) // an error means that there is no connection
	}
}

// receive waits for a piece of one record.
func (c *Conn) receive(to receiveCall) (receiveCall, error) {
	c.in.call = to
	err := c.raw.Read(c.in.receive)
	got := c.in.call
	c.in.call = receiveCall{}
	if err == nil {
		err = got.err
	}
	c.in.bytes += uint64(got.n)
	return got, err
}

// endRead makes an ending final. Whatever is not a clean end ends writing as well,
// with an alert if the peer does not know yet.
func (c *Conn) endRead(end *ending) {
	c.in.err = end.err
	if !errors.Is(end.err, io.EOF) {
		c.abort(end)
	}
}

// recordErrors says what the kernel means when it cannot open a record (net/tls/tls_sw.c,
// tls_rx_msg_size and tls_decrypt_sg). It reports some of them only once and then
// waits for ever, so each is final. EKEYEXPIRED is what it says behind a KeyUpdate until
// there is a key, and behind what it takes for one: it looks at the first byte of a
// record only, which may belong to a message that began in the record before.
var recordErrors = map[syscall.Errno]ending{
	syscall.EBADMSG:     {fmt.Errorf("%w: it did not authenticate, or is too short", ErrRecord), alertBadRecordMAC},
	syscall.EMSGSIZE:    {fmt.Errorf("%w: it is too long", ErrRecord), alertRecordOverflow},
	syscall.EINVAL:      {fmt.Errorf("%w: its header is not that of TLS", ErrRecord), alertDecodeError},
	syscall.EKEYEXPIRED: {ErrKeyUpdate, alertInternalError},
}

// readError turns an error of the socket into what Read returns.
func (c *Conn) readError(err error) error {
	var end *ending
	if errors.As(err, &end) {
		c.endRead(end)
		return c.in.err
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		if end, ok := recordErrors[errno]; ok {
			c.endRead(&end)
			return c.in.err
		}
	}
	err = c.opError("read", err)
	if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, net.ErrClosed) {
		// A reset is told once; the kernel then lets every write succeed and sends
		// nothing.
		c.endRead(&ending{err, alertCloseNotify})
	}
	return err
}
