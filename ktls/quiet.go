// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// quietPoll is the pause between two looks at a queue that drains by itself.
const quietPoll = time.Millisecond

var errAccount = errors.New("more or other bytes went through the socket than its owner says it read and wrote")

// Account is what one owner of a connection read and wrote, in bytes of content, of
// whatever type the records are. It begins at zero with each owner.
type Account struct{ Read, Written uint64 }

// quiet proves that the connection is at a quiet point, and then runs at in it: TCP
// has all that the owner wrote, in records, and no record was read in part. It waits
// for the first until ctx ends. What is not quiet is a *NotQuietError.
func (custody *Custody) quiet(ctx context.Context, c syscall.Conn, a Account, at func(fd int) error) error {
	if custody == nil {
		return fmt.Errorf("%w: no custody of the connection", blob.ErrState)
	}
	if err := custody.awaitSent(ctx, c, a.Written); err != nil {
		return err
	}
	return control(c, func(fd int) error {
		if err := custody.nothingInPart(fd, a.Read); err != nil {
			return err
		}
		return at(fd)
	})
}

// awaitSent waits until TCP has every byte that was written, in records. The kernel
// does not tell what it has queued beyond TCP, but bytes do not get lost: those that
// TCP was given are the content that was written and the overhead of its records.
func (custody *Custody) awaitSent(ctx context.Context, c syscall.Conn, written uint64) error {
	for {
		var missing uint64
		err := control(c, func(fd int) (err error) {
			missing, err = custody.missingFromTCP(fd, written)
			return err
		})
		if err != nil || missing == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return &NotQuietError{What: fmt.Sprintf("%d bytes of records are not with TCP yet (%v)", missing, context.Cause(ctx))}
		case <-time.After(quietPoll):
		}
	}
}

// missingFromTCP returns how many bytes of records TCP has not been given.
func (custody *Custody) missingFromTCP(fd int, written uint64) (uint64, error) {
	if err := checkSocket(fd, custody.cookie); err != nil {
		return 0, err
	}
	seq, err := nextRecord(fd, optTX, custody.suite)
	if err != nil {
		return 0, err
	}
	given, err := givenToTCP(fd)
	if err != nil {
		return 0, err
	}
	records, sent := seq-custody.sent.seq, given-custody.sent.tcp
	want := written + records*recordOverhead(custody.suite)
	if sent > want {
		return 0, errAccount
	}
	return want - sent, nil
}

// nothingInPart proves that TLS holds nothing that was decrypted and not read, by the
// same kind of account: what it took from TCP is the content that was read and the
// overhead of its records. If the peer pads its records, or a part of one was taken
// early, there is more, and the proof is that there is nothing at all to read.
func (custody *Custody) nothingInPart(fd int, read uint64) error {
	seq, err := nextRecord(fd, optRX, custody.suite)
	if err != nil {
		return err
	}
	taken, err := takenFromTCP(fd)
	if err != nil {
		return err
	}
	records := seq - custody.received.seq
	unread := taken - custody.received.tcp - read - records*recordOverhead(custody.suite)
	if unread == 0 {
		return nil
	}
	err = nothingToRead(fd)
	var notQuiet *NotQuietError
	if errors.As(err, &notQuiet) && unread <= maxRecordContent {
		notQuiet.Unread = int(unread)
	}
	return err
}

// recordOverhead is what a record adds to its content in bytes: header, explicit
// nonce, content type, tag (RFC 8446, Section 5.2; RFC 5288, Section 3; RFC 7905,
// Section 2). The kernel does not pad.
func recordOverhead(s blob.CipherSuite) uint64 {
	switch {
	case s.Version() == blob.TLS13:
		return 5 + 1 + 16
	case s.AEAD() == blob.ChaCha20Poly1305:
		return 5 + 16
	}
	return 5 + 8 + 16
}
