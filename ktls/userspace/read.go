// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/offloadd/offloadd/ktls"
)

// input is the reading half of a Conn.
type input struct {
	sync.Mutex
	err   error // the final error
	key   *key
	rules *ktls.Rules
	wire  wire
	// content is what was opened and not read, in the buffer of wire.
	content []byte
}

// Read reads application data.
func (c *Conn) Read(p []byte) (int, error) {
	c.in.Lock()
	defer c.in.Unlock()
	if len(p) == 0 {
		return 0, c.in.err
	}
	for c.in.err == nil {
		if c.closed() {
			return 0, c.opError("read", net.ErrClosed)
		}
		if len(c.in.content) > 0 {
			n := copy(p, c.in.content)
			clear(c.in.content[:n])
			c.in.content = c.in.content[n:]
			return n, nil
		}
		if err := c.readRecord(); err != nil {
			return 0, err
		}
	}
	return 0, c.in.err
}

// readRecord opens the next record. It returns the errors of the socket; what TLS ends
// with is c.in.err.
func (c *Conn) readRecord() error {
	record, end, err := c.in.wire.next(c.tcp, c.in.key)
	if err != nil {
		return c.readError(err)
	}
	var contentType uint8
	var content []byte
	if end == nil {
		contentType, content, end = c.in.key.open(record)
	}
	switch {
	case end != nil:
	case contentType == recordData:
		if end = c.in.rules.Data(); end == nil {
			c.in.content = content
			return nil
		}
	default:
		end = c.takeControl(contentType, content)
	}
	clear(content)
	if end != nil {
		c.endRead(end)
	}
	return nil
}

// takeControl takes a record that is not data. The answer to a KeyUpdate, if the peer
// wants one, goes before our next data: however often it asks until then, it gets one
// (RFC 8446, Section 4.6.3).
func (c *Conn) takeControl(contentType uint8, content []byte) *ktls.Ending {
	updated, requested, end := c.in.rules.Control(contentType, content, c.out.owed.Load())
	if end != nil || !updated {
		return end
	}
	if err := c.in.key.update(); err != nil {
		return &ktls.Ending{Err: fmt.Errorf("%w: %w", ktls.ErrRekey, err), Alert: alertInternalError}
	}
	if requested {
		c.out.owed.Store(true)
	}
	return nil
}

// endRead makes an ending final. Whatever is not a clean end ends writing as well,
// with an alert if the peer does not know yet.
func (c *Conn) endRead(end *ktls.Ending) {
	c.in.err = end.Err
	if !errors.Is(end.Err, io.EOF) {
		c.abort(end)
	}
	if errors.Is(end.Err, ktls.ErrRekey) {
		_ = ktls.Shutdown(c.tcp) // an error means that there is no connection
	}
}

// readError turns an error of the socket into what Read returns.
func (c *Conn) readError(err error) error {
	if err == io.ErrUnexpectedEOF {
		// Writing may go on: the peer may have closed its half and no more.
		c.in.err = err
		return err
	}
	err = c.opError("read", err)
	if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, net.ErrClosed) {
		c.endRead(&ktls.Ending{Err: err, Alert: alertCloseNotify})
	}
	return err
}
