// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/offloadd/offloadd/blob"
)

var (
	// ErrMalformed: the bytes are no message, or not of the shape of its type.
	ErrMalformed = errors.New("malformed message")
	// ErrTooLarge: longer than MaxMessage, or than a field's limit.
	ErrTooLarge = errors.New("message too large")
	// ErrDescriptor: no descriptor where one belongs, more than one, one where none
	// belongs, or not a socket.
	ErrDescriptor = errors.New("wrong descriptors with message")
	// ErrCookie: the descriptor is not the socket that the message speaks of.
	ErrCookie = errors.New("descriptor is another socket")
	// ErrPeer: the sender is not the process that was expected.
	ErrPeer = errors.New("message from another process")
)

// MaxMessage bounds a message in bytes. It leaves room for a long certificate
// chain, and fits the default send buffer of a unix socket.
const MaxMessage = 128 << 10

// Type says what a message is for.
type Type uint8

// The messages, in the order of a connection's life.
const (
	// Setup tells a worker how to work. Daemon to worker, first.
	Setup Type = iota + 1
	// Ready introduces the worker's Sealer. Worker to daemon, first.
	Ready
	// Handshake hands a fresh TCP connection to a worker. Daemon to worker.
	Handshake
	// Established returns it with both keys, sealed. Worker to daemon.
	Established
	// Failed says that there will be no Established. Worker to daemon.
	Failed
	// Drain asks a worker to finish what it has and to exit. Daemon to worker.
	Drain
	// Connection gives a connection with installed keys to the application. Daemon to
	// application.
	Connection
	// Moved gives a live connection to another process, with both states sealed as they
	// are: they are to be compared with the kernel's, and never installed.
	Moved
	// Returned gives a live connection back, with the account of its use. Application to
	// daemon.
	Returned
	// Taken answers it: the connection is the daemon's again, or not. Daemon to
	// application.
	Taken
	// Asked is a blob.Question about a connection. Application to daemon.
	Asked
	// Answered is the blob.Answer. Daemon to application.
	Answered
	// Relayed gives a connection whose records are made by a relay: the descriptor is a unix
	// stream that carries what is in them. Relay to daemon, daemon to application.
	Relayed
)

func (t Type) String() string {
	if int(t) < len(shapes) && shapes[t].name != "" {
		return shapes[t].name
	}
	return fmt.Sprintf("message type %d", uint8(t))
}

// shape is what a message of one type must have, and all it may have.
type shape struct {
	name       string
	descriptor bool // exactly one, and with it the cookie
	cookie     bool // a cookie without a descriptor
	blobs      bool // both
	facts      bool
	body       int // longest body in bytes
}

var shapes = [...]shape{
	Setup:       {name: "setup", body: 64 << 10},
	Ready:       {name: "ready", body: 4 << 10},
	Handshake:   {name: "handshake", descriptor: true, body: 256},
	Established: {name: "established", descriptor: true, blobs: true, facts: true, body: 256},
	Failed:      {name: "failed", cookie: true, body: 1 << 10},
	Drain:       {name: "drain"},
	Connection:  {name: "connection", descriptor: true, facts: true},
	Moved:       {name: "moved", descriptor: true, blobs: true, facts: true, body: 256},
	Returned:    {name: "returned", descriptor: true, body: accountSize},
	Taken:       {name: "taken", cookie: true, body: 1 << 10},
	Asked:       {name: "asked", descriptor: true, body: questionSize},
	Answered:    {name: "answered", cookie: true, body: 1 << 10},
	Relayed:     {name: "relayed", descriptor: true, facts: true, body: connectionSize},
}

// Message is one message. Which fields are used depends on the type.
type Message struct {
	Type Type
	// Cookie is SO_COOKIE of the connection; with Relayed, that of the unix stream.
	Cookie      uint64
	Read, Write blob.Blob
	Facts       *blob.Facts
	// Body is for the two ends to agree on; this package does not look into it.
	Body []byte
}

const (
	protocolVersion = 1
	headSize        = 22
)

// encode writes the message (PROTOCOL.md, section 2), or says what is wrong with it.
func (m *Message) encode() ([]byte, error) {
	var facts []byte
	if m.Facts != nil {
		var err error
		if facts, err = encodeFacts(m.Facts); err != nil {
			return nil, err
		}
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	size := headSize + len(m.Read) + len(m.Write) + len(facts) + len(m.Body)
	if size > MaxMessage {
		return nil, fmt.Errorf("%w: %v message of %d bytes, at most %d", ErrTooLarge, m.Type, size, MaxMessage)
	}
	b := make([]byte, 0, size)
	b = append(b, protocolVersion, byte(m.Type))
	b = binary.BigEndian.AppendUint64(b, m.Cookie)
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Read)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Write)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(facts)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.Body)))
	b = append(b, m.Read...)
	b = append(b, m.Write...)
	b = append(b, facts...)
	return append(b, m.Body...), nil
}

// decode reads what encode wrote; nothing else decodes. The message keeps parts of b.
func decode(b []byte) (*Message, error) {
	if len(b) < headSize {
		return nil, fmt.Errorf("%w: %d bytes, the head alone has %d", ErrMalformed, len(b), headSize)
	}
	if b[0] != protocolVersion {
		return nil, fmt.Errorf("%w: protocol version %d, this build speaks %d", ErrMalformed, b[0], protocolVersion)
	}
	m := &Message{Type: Type(b[1]), Cookie: binary.BigEndian.Uint64(b[2:])}
	sizes := []uint64{
		uint64(binary.BigEndian.Uint16(b[10:])), uint64(binary.BigEndian.Uint16(b[12:])),
		uint64(binary.BigEndian.Uint32(b[14:])), uint64(binary.BigEndian.Uint32(b[18:])),
	}
	rest := b[headSize:]
	if sum := sizes[0] + sizes[1] + sizes[2] + sizes[3]; sum != uint64(len(rest)) {
		return nil, fmt.Errorf("%w: %d bytes behind the head, which says %d", ErrMalformed, len(rest), sum)
	}
	next := func(n uint64) []byte {
		if n == 0 {
			return nil
		}
		part := rest[:n:n]
		rest = rest[n:]
		return part
	}
	m.Read, m.Write = next(sizes[0]), next(sizes[1])
	if facts := next(sizes[2]); facts != nil {
		var err error
		if m.Facts, err = decodeFacts(facts); err != nil {
			return nil, err
		}
	}
	m.Body = next(sizes[3])
	if err := m.check(); err != nil {
		return nil, err
	}
	return m, nil
}

// check compares the message with the shape of its type.
func (m *Message) check() error {
	if m.Type == 0 || int(m.Type) >= len(shapes) {
		return fmt.Errorf("%w: unknown %v", ErrMalformed, m.Type)
	}
	s := shapes[m.Type]
	bad := func(what string) error { return fmt.Errorf("%w: %v with %s", ErrMalformed, m.Type, what) }
	switch {
	case (m.Cookie != 0) != (s.cookie || s.descriptor):
		return bad(has(m.Cookie != 0, "cookie"))
	case (len(m.Read) != 0) != s.blobs || (len(m.Write) != 0) != s.blobs:
		return bad(has(!s.blobs, "both blobs"))
	case len(m.Read) > blob.MaxSize || len(m.Write) > blob.MaxSize:
		return fmt.Errorf("%w: blobs of %d and %d bytes, at most %d", ErrTooLarge, len(m.Read), len(m.Write), blob.MaxSize)
	case (m.Facts != nil) != s.facts:
		return bad(has(m.Facts != nil, "facts"))
	case len(m.Body) > s.body:
		return fmt.Errorf("%w: %v with a body of %d bytes, at most %d", ErrTooLarge, m.Type, len(m.Body), s.body)
	case !m.bodySize():
		return bad(fmt.Sprintf("a body of %d bytes", len(m.Body)))
	}
	return nil
}

// bodySize reports whether the body has a size that its type can have.
func (m *Message) bodySize() bool {
	switch n := len(m.Body); m.Type {
	case Returned:
		return n == accountSize
	case Taken:
		return n == 0 || n > unreadSize
	case Asked:
		return n == questionSize
	case Answered:
		return n >= answerSize
	case Relayed:
		return n == connectionSize
	}
	return true
}

func has(yes bool, what string) string {
	if yes {
		return "a surplus of " + what
	}
	return "no " + what
}
