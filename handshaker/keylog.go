// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"cmp"
	"crypto/subtle"
	"encoding/hex"
	"fmt"

	"github.com/offloadd/offloadd/blob"
)

// keyLog takes the key log lines of one connection
// (draft-ietf-tls-keylogfile, Section 2) and keeps the secrets of application data.
// It lives in memory only, and no longer than the handshake.
type keyLog struct {
	random [32]byte // the client random that every line names
	lines  int
	err    error // the first one: crypto/tls passes on its text only

	client, server blob.Secret // TLS 1.3: traffic secrets of epoch 0
	master         blob.Secret // TLS 1.2
}

// Write takes one line, as crypto/tls writes it, and then overwrites it with zeros.
//
// io.Writer says not to modify the argument. Here it is safe and the point of it:
// crypto/tls formats each line into a buffer of its own, does not look at it again,
// and without this the secret would lie on the heap in hexadecimal.
func (l *keyLog) Write(line []byte) (int, error) {
	defer clear(line)
	if err := l.add(line); err != nil {
		l.err = cmp.Or(l.err, err)
		return 0, err
	}
	return len(line), nil
}

func (l *keyLog) add(line []byte) error {
	fields := bytes.Split(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
	if len(fields) != 3 {
		return fmt.Errorf("%w: key log line of %d fields", ErrLocal, len(fields))
	}
	var random [32]byte
	if len(fields[1]) != hex.EncodedLen(len(random)) {
		return fmt.Errorf("%w: key log line without client random", ErrLocal)
	}
	if _, err := hex.Decode(random[:], fields[1]); err != nil {
		return fmt.Errorf("%w: key log line without client random", ErrLocal)
	}
	if l.lines++; l.lines > 1 && random != l.random {
		return fmt.Errorf("%w: key log lines of two connections", ErrLocal)
	}
	l.random = random

	var dst *blob.Secret
	switch string(fields[0]) {
	case "CLIENT_TRAFFIC_SECRET_0":
		dst = &l.client
	case "SERVER_TRAFFIC_SECRET_0":
		dst = &l.server
	case "CLIENT_RANDOM":
		dst = &l.master
	default:
		return nil // handshake and exporter secrets are of no use to anyone here
	}
	if dst.Len() != 0 {
		return fmt.Errorf("%w: two key log lines %s", ErrLocal, fields[0])
	}
	return decodeSecret(dst, fields[2])
}

func decodeSecret(dst *blob.Secret, digits []byte) error {
	b := make([]byte, hex.DecodedLen(len(digits)))
	if _, err := hex.Decode(b, digits); err != nil || len(b) == 0 {
		clear(b)
		// Without %w: the error of package hex quotes a byte of the secret.
		return fmt.Errorf("%w: key log line without secret", ErrLocal)
	}
	*dst = blob.NewSecret(b)
	return nil
}

// checkRandom compares the client random of the lines with the one on the wire.
func (l *keyLog) checkRandom(wire []byte) error {
	if subtle.ConstantTimeCompare(l.random[:], wire) != 1 {
		return fmt.Errorf("%w: the key log is of another connection than the wire", ErrLocal)
	}
	return nil
}

// destroy overwrites what was not taken.
func (l *keyLog) destroy() {
	l.client.Destroy()
	l.server.Destroy()
	l.master.Destroy()
}
