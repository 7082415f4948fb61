// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"crypto/rand"
	"errors"
	"fmt"
	"syscall"
)

// Erase overwrites both keys of a socket by random ones that nobody knows, so that
// whoever still holds the descriptor cannot ask the kernel for the real ones. It is for
// a connection that is over: shut it down before, as what is written afterwards would
// be nonsense to the peer.
//
// It takes a kernel that can change keys, and TLS 1.3; elsewhere the error wraps
// ErrNotSupported and the keys stay until the last descriptor is closed. A key in a
// device is never overwritten: the kernel offloads TLS 1.2 only, and would refuse.
func Erase(c syscall.Conn) error {
	return control(c, func(fd int) error {
		if err := checkTCP(fd); err != nil {
			return fmt.Errorf("erase TLS keys: %w", err)
		}
		for _, option := range []int{optTX, optRX} {
			if err := eraseKey(fd, option); err != nil {
				return fmt.Errorf("erase TLS keys: %s: %w", optionName(option), err)
			}
		}
		return nil
	})
}

// eraseKey overwrites one direction, if it has a key.
func eraseKey(fd, option int) error {
	header, err := keyHeader(fd, option)
	err = explain(opAskKey, "ask for the key", err)
	if errors.Is(err, ErrNoKeys) {
		return nil
	} else if err != nil {
		return err
	}
	version, aead := decodeHeader(header)
	if aead == 0 {
		return fmt.Errorf("%w: %v with an unknown cipher", ErrSuite, version)
	}
	nobodys := make([]byte, layouts[aead].size)
	rand.Read(nobodys) // never fails (crypto/rand)
	copy(nobodys, header)
	clear(layouts[aead].seq.of(nobodys))
	defer clear(nobodys)
	if err := setKey(fd, option, nobodys); errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("%w: it cannot change the keys of %v", ErrNotSupported, version)
	} else if err != nil {
		return explain(opSetKey, "set a key", err)
	}
	got, err := readKey(fd, option, len(nobodys))
	defer clear(got)
	if err != nil {
		return explain(opAskKey, "read it back", err)
	}
	return compareCryptoInfo(nobodys, got, aead)
}
