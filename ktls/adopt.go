// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/offloadd/offloadd/blob"
)

// Adopt takes over a live connection whose states another process has exported, and
// whose descriptor came with them. The keys are in the kernel, or in a device, and stay
// there: Adopt compares what the kernel holds with the states, and never sets a key,
// since a second setsockopt would take the sequence number back and use nonces twice.
// A socket that is in any other state than the exported one is refused, with
// ErrMismatch or ErrNotHeld, and left as it is.
//
// It consumes both states, whether it succeeds or not. Nobody may read from the socket
// or write to it meanwhile.
func Adopt(c syscall.Conn, read, write *blob.State) (*Custody, Info, error) {
	defer read.Destroy()
	defer write.Destroy()
	var custody *Custody
	var info Info
	err := control(c, func(fd int) error {
		if err := verifyStates(fd, read, write); err != nil {
			return fmt.Errorf("adopt TLS keys: %w", err)
		}
		m, err := marksOf(fd)
		if err != nil {
			return err
		}
		custody, info = takeCustody(read, write, m), infoOf(fd)
		return nil
	})
	return custody, info, err
}

func verifyStates(fd int, read, write *blob.State) error {
	if err := checkPair(read, write); err != nil {
		return err
	}
	if err := checkSocket(fd, read.Cookie); err != nil {
		return err
	}
	for _, d := range []struct {
		option int
		state  *blob.State
	}{{optRX, read}, {optTX, write}} {
		if err := verifyState(fd, d.option, d.state); err != nil {
			return fmt.Errorf("%s: %w", optionName(d.option), err)
		}
	}
	return nil
}

// verifyState compares one direction.
func verifyState(fd, option int, s *blob.State) error {
	l := layouts[s.Suite.AEAD()]
	got, err := readKey(fd, option, l.size)
	if err != nil {
		return explain(opAskKey, "ask for the key", err)
	}
	defer clear(got)
	if s.Kind() == blob.KindReference {
		return verifyHeld(fd, option, s, got)
	}
	want := encodeCryptoInfo(s)
	defer clear(want)
	return compareCryptoInfo(want, got, s.Suite.AEAD())
}

// verifyHeld compares a reference with the kernel's copy of the key, and with who does
// the work.
func verifyHeld(fd, option int, s *blob.State, got []byte) error {
	version, aead := decodeHeader(got)
	if version != s.Version || aead != s.Suite.AEAD() {
		return fmt.Errorf("%w in version or cipher_type", ErrMismatch)
	}
	kernel := &blob.State{Suite: s.Suite}
	decodeCryptoInfo(got, kernel)
	digest := kernel.KeyDigest()
	kernel.Destroy()
	if subtle.ConstantTimeCompare(digest[:], s.Held.Digest[:]) == 0 {
		return fmt.Errorf("%w in key", ErrMismatch)
	}
	if kernel.Seq != s.Seq {
		return fmt.Errorf("%w in rec_seq", ErrMismatch)
	}
	device, err := holdingDevice(fd, option)
	if err != nil {
		return err
	}
	if device != s.Held.Device {
		return fmt.Errorf("%w: %q, not %q", ErrNotHeld, device, s.Held.Device)
	}
	return nil
}

// decodeCryptoInfo reads key, IV and sequence number of an option value into s, as far
// as they are state: encodeCryptoInfo says what the rest must be.
func decodeCryptoInfo(b []byte, s *blob.State) {
	l := layouts[s.Suite.AEAD()]
	s.Key = blob.NewSecret(append([]byte(nil), l.key.of(b)...))
	iv := append([]byte(nil), l.salt.of(b)...)
	if s.Suite.IVSize() > l.salt.size {
		whole := make([]byte, 0, s.Suite.IVSize())
		whole = append(append(whole, iv...), l.iv.of(b)...)
		clear(iv)
		iv = whole
	}
	s.IV = blob.NewSecret(iv)
	s.Seq = binary.BigEndian.Uint64(l.seq.of(b))
}

// nextRecord returns the number of the next record of a direction.
func nextRecord(fd, option int, suite blob.CipherSuite) (uint64, error) {
	l := layouts[suite.AEAD()]
	b, err := readKey(fd, option, l.size)
	defer clear(b)
	if err != nil {
		return 0, explain(opAskKey, "ask for "+optionName(option), err)
	}
	return binary.BigEndian.Uint64(l.seq.of(b)), nil
}
