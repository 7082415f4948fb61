// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/offloadd/offloadd/blob"
)

// connectionSize is the size in bytes of the body of Relayed: a cookie.
const connectionSize = 8

// NewRelayed is the message that gives away plain, the end of a unix stream with this
// cookie; connection is the cookie of the TCP connection behind it.
func NewRelayed(plain, connection uint64, facts *blob.Facts) *Message {
	return &Message{Type: Relayed, Cookie: plain, Facts: facts, Body: binary.BigEndian.AppendUint64(nil, connection)}
}

// Relays returns the cookie of the TCP connection behind a Relayed message.
func (m *Message) Relays() uint64 {
	if len(m.Body) != connectionSize {
		return 0
	}
	return binary.BigEndian.Uint64(m.Body)
}

// Plain is a connection whose records another process makes, as the kernel cannot: what
// is written to it leaves encrypted, and what is read from it was. It is a unix stream,
// and only an end of file means that the peer sent close_notify (PROTOCOL.md, section 9).
//
// There is nothing to ask about it, and it is not given back to the daemon: its keys
// stay in that process. Who has it passes it on as any descriptor.
type Plain struct {
	*net.UnixConn
	Facts *blob.Facts
	// Connection is SO_COOKIE of the TCP connection.
	Connection uint64

	truncated atomic.Bool
}

// TLSFacts returns the facts of the handshake.
func (p *Plain) TLSFacts() *blob.Facts { return p.Facts }

// RelayedTLS says that no keys are below, for who looks for them.
func (p *Plain) RelayedTLS() {}

// Read reads application data. Any end but close_notify is io.ErrUnexpectedEOF.
func (p *Plain) Read(b []byte) (int, error) {
	n, err := p.UnixConn.Read(b)
	if errors.Is(err, syscall.ECONNRESET) {
		// So the kernel tells of a relay that ended with a byte unread
		// (net/unix/af_unix.c, unix_release_sock). It does so once.
		p.truncated.Store(true)
	}
	if err != nil && p.truncated.Load() {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func newPlain(m *Message, file *os.File) (*Plain, error) {
	c, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrDescriptor, err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok || u.LocalAddr().Network() != "unix" {
		c.Close()
		return nil, fmt.Errorf("%w: a %T, %v", ErrDescriptor, c, c.LocalAddr().Network())
	}
	return &Plain{UnixConn: u, Facts: m.Facts, Connection: m.Relays()}, nil
}
