// SPDX-License-Identifier: Apache-2.0

package blob

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
)

// Sizes in bytes (FORMAT.md, sections 2 and 3).
const (
	HeaderSize = 68
	tagSize    = 16
	// MaxSize bounds every blob: header, the longest body, tag.
	MaxSize = HeaderSize + 32 + 12 + 8 + 48 + tagSize
)

const (
	magic         = "OPAQUEKB"
	formatVersion = 1
)

// Kind says what a blob holds.
type Kind uint8

// The two kinds of format version 1.
const (
	KindMaterial  Kind = 1 // the key itself moves
	KindReference Kind = 2 // the key stays in a device, and its name moves
)

func (k Kind) String() string {
	switch k {
	case KindMaterial:
		return "material"
	case KindReference:
		return "reference"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Instance names one start of one opening process.
type Instance [16]byte

func (i Instance) String() string { return hex.EncodeToString(i[:]) }

// SealerID names one Sealer.
type SealerID [8]byte

func (i SealerID) String() string { return hex.EncodeToString(i[:]) }

// Blob is a sealed State: an OPAQUEKEYBLOB. It is safe to send, and of no use
// anywhere but where it was sealed for; still it prints as its header only.
type Blob []byte

// String names the blob without its bytes.
func (b Blob) String() string {
	h, err := Inspect(b)
	if err != nil {
		return fmt.Sprintf("OPAQUEKEYBLOB of %d bytes (%v)", len(b), err)
	}
	return fmt.Sprintf("OPAQUEKEYBLOB of %d bytes: %v", len(b), h)
}

// Format writes String for every verb.
func (b Blob) Format(f fmt.State, _ rune) { io.WriteString(f, b.String()) }

// LogValue is String.
func (b Blob) LogValue() slog.Value { return slog.StringValue(b.String()) }

// Header is the public part of a blob. [Inspect] reads it without any key, and so
// it says what the blob claims; only opening proves it.
type Header struct {
	Kind      Kind
	Role      Role
	Direction Direction
	Version   Version
	Suite     CipherSuite
	Epoch     uint32
	// Index counts the blobs of one Sealer from 0.
	Index    uint32
	Instance Instance
	Sealer   SealerID
	Cookie   uint64
	// Expiry is the time from which on the blob is refused, to the millisecond.
	Expiry time.Time
}

func (h Header) String() string {
	return fmt.Sprintf("%v, %v %v key, %v, %v, epoch %d, index %d, instance %v, sealer %v, socket %d, expires %s",
		h.Kind, h.Role, h.Direction, h.Version, h.Suite, h.Epoch, h.Index, h.Instance, h.Sealer, h.Cookie,
		h.Expiry.UTC().Format(time.RFC3339Nano))
}

// append writes the header (FORMAT.md, section 2) for a body of bodySize bytes.
func (h *Header) append(b []byte, bodySize int) []byte {
	b = append(b, magic...)
	b = append(b, formatVersion, byte(h.Kind), byte(h.Role), byte(h.Direction))
	b = binary.BigEndian.AppendUint16(b, uint16(h.Version))
	b = binary.BigEndian.AppendUint16(b, uint16(h.Suite))
	b = binary.BigEndian.AppendUint32(b, h.Epoch)
	b = binary.BigEndian.AppendUint32(b, h.Index)
	b = append(b, h.Instance[:]...)
	b = append(b, h.Sealer[:]...)
	b = binary.BigEndian.AppendUint64(b, h.Cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(h.Expiry.UnixMilli()))
	return binary.BigEndian.AppendUint32(b, uint32(bodySize+tagSize))
}

// Inspect reads the public header of a blob, and checks everything about it that
// needs no key: [ErrMalformed] or [ErrVersion].
func Inspect(b []byte) (Header, error) {
	var h Header
	if len(b) < HeaderSize {
		return h, fmt.Errorf("%w: %d bytes, the header alone has %d", ErrMalformed, len(b), HeaderSize)
	}
	if string(b[:8]) != magic {
		return h, fmt.Errorf("%w: does not start with %q", ErrMalformed, magic)
	}
	if kind := Kind(b[9]); b[8] != formatVersion || kind != KindMaterial && kind != KindReference {
		return h, fmt.Errorf("%w: version %d, kind %d; this build knows version %d, kinds %d and %d",
			ErrVersion, b[8], b[9], formatVersion, KindMaterial, KindReference)
	}
	got := Header{
		Kind:      Kind(b[9]),
		Role:      Role(b[10]),
		Direction: Direction(b[11]),
		Version:   Version(binary.BigEndian.Uint16(b[12:])),
		Suite:     CipherSuite(binary.BigEndian.Uint16(b[14:])),
		Epoch:     binary.BigEndian.Uint32(b[16:]),
		Index:     binary.BigEndian.Uint32(b[20:]),
		Instance:  Instance(b[24:40]),
		Sealer:    SealerID(b[40:48]),
		Cookie:    binary.BigEndian.Uint64(b[48:]),
	}
	expiry := binary.BigEndian.Uint64(b[56:])
	size := binary.BigEndian.Uint32(b[64:])
	switch {
	case got.Role != Client && got.Role != Server, got.Direction != Read && got.Direction != Write:
		return h, fmt.Errorf("%w: %v, %v", ErrMalformed, got.Role, got.Direction)
	case !got.Suite.Known() || got.Version != got.Suite.Version():
		return h, fmt.Errorf("%w: %v with %v", ErrMalformed, got.Version, got.Suite)
	case got.Version == TLS12 && got.Epoch != 0:
		return h, fmt.Errorf("%w: epoch %d in TLS 1.2", ErrMalformed, got.Epoch)
	case got.Cookie == 0:
		return h, fmt.Errorf("%w: no socket", ErrMalformed)
	case expiry > maxExpiry:
		return h, fmt.Errorf("%w: expiry out of range", ErrMalformed)
	case int(size) != bodySize(got.Kind, got.Suite)+tagSize || len(b) != HeaderSize+int(size):
		return h, fmt.Errorf("%w: %d bytes behind the header, which says %d; %v of %v has %d",
			ErrMalformed, len(b)-HeaderSize, size, got.Kind, got.Suite, bodySize(got.Kind, got.Suite)+tagSize)
	}
	got.Expiry = time.UnixMilli(int64(expiry))
	return got, nil
}

// maxExpiry is the end of the year 9999 in Unix milliseconds, so that every
// expiry has a printable time.
const maxExpiry = 253402300799999

// Sizes in bytes of what a reference has in place of key and IV.
const (
	digestSize = 16
	deviceSize = maxDevice + 1
)

// bodySize is the length of a sealed State before encryption (FORMAT.md, section 3).
func bodySize(k Kind, c CipherSuite) int {
	if k == KindReference {
		return digestSize + deviceSize + 8 + c.secretSize()
	}
	return c.AEAD().KeySize() + c.IVSize() + 8 + c.secretSize()
}

// body writes what is not in the header of the State: key and IV, or what names them;
// sequence number, next secret.
func (s *State) body() []byte {
	// Room for the tag, so that sealing in place does not reallocate.
	b := make([]byte, 0, bodySize(s.Kind(), s.Suite)+tagSize)
	if s.Kind() == KindReference {
		b = append(b, s.Held.Digest[:]...)
		b = append(b, s.Held.Device...)
		b = append(b, make([]byte, deviceSize-len(s.Held.Device))...)
	} else {
		b = append(b, s.Key.Bytes()...)
		b = append(b, s.IV.Bytes()...)
	}
	b = binary.BigEndian.AppendUint64(b, s.Seq)
	return append(b, s.NextSecret.Bytes()...)
}

// stateOf reads back what body wrote; all else of the State is in the header. The
// caller destroys b.
func stateOf(h *Header, b []byte) (*State, error) {
	if len(b) != bodySize(h.Kind, h.Suite) {
		return nil, fmt.Errorf("%w: body of %d bytes, want %d", ErrState, len(b), bodySize(h.Kind, h.Suite))
	}
	next := func(n int) []byte {
		part := append([]byte(nil), b[:n]...)
		b = b[n:]
		return part
	}
	s := &State{
		Role: h.Role, Direction: h.Direction, Version: h.Version, Suite: h.Suite,
		Epoch: h.Epoch, Cookie: h.Cookie,
	}
	if h.Kind == KindReference {
		digest := KeyDigest(next(digestSize))
		device, padding, _ := strings.Cut(string(next(deviceSize)), "\x00")
		s.Held = Held{device, digest}
		if strings.Trim(padding, "\x00") != "" || s.Kind() != KindReference {
			return nil, fmt.Errorf("%w: device name of a reference", ErrState)
		}
	} else {
		s.Key, s.IV = NewSecret(next(h.Suite.AEAD().KeySize())), NewSecret(next(h.Suite.IVSize()))
	}
	s.Seq = binary.BigEndian.Uint64(next(8))
	s.NextSecret = NewSecret(next(len(b)))
	if err := s.Validate(); err != nil {
		s.Destroy()
		return nil, err
	}
	return s, nil
}
