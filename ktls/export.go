// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// exportPoll is the pause between two looks at a queue that drains by itself.
const exportPoll = time.Millisecond

// Export takes the states of a live connection back from the kernel, so that another
// process can go on with it: it is to be given the states, in blobs, and the
// descriptor, and calls [Adopt]. A key in a network device stays there; its state only
// names it.
//
// That is possible at a quiet point only: no Write is under way, everything written has
// become records that TCP has, and no record was read in part. Records that nobody has
// begun to read do not matter, they move with the socket. Export waits for the peer to
// make room for what is queued, until ctx ends; for all else it does not wait. What is
// not quiet is named by a *NotQuietError, and then the connection goes on as before. A
// Read fills its buffer, wherever in a record that ends; the error tells how many bytes
// are left of it.
//
// After success the connection belongs to whoever gets the states: the Conn only
// serves NetConn and Close, which closes the descriptor and sends nothing, and custody
// is spent. Whoever writes to the socket by other means than this Conn makes the
// account fail, and with it Export.
func (c *Conn) Export(ctx context.Context, custody *Custody) (read, write *blob.State, err error) {
	if !c.out.TryLock() {
		return nil, nil, &NotQuietError{What: "a Write is under way"}
	}
	defer c.out.Unlock()
	if !c.in.TryLock() {
		return nil, nil, &NotQuietError{What: "a Read is under way"}
	}
	defer c.in.Unlock()
	if err := c.checkQuiet(); err != nil {
		return nil, nil, err
	}
	if err := c.awaitSent(ctx, custody); err != nil {
		return nil, nil, err
	}
	err = control(c.tcp, func(fd int) (err error) {
		if err = c.nothingInPart(fd, custody); err == nil {
			read, write, err = exportStates(fd, custody)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	c.out.broken.Store(&ending{ErrMoved, alertCloseNotify})
	c.in.err = ErrMoved
	return read, write, nil
}

// checkQuiet looks at what this Conn knows by itself.
func (c *Conn) checkQuiet() error {
	end := c.out.broken.Load()
	switch {
	case c.closed():
		return c.opError("export", net.ErrClosed)
	case end != nil:
		return end.err
	case c.out.closeNotified:
		return &NotQuietError{What: "the write side is closed"}
	case c.in.err != nil:
		return &NotQuietError{What: fmt.Sprintf("the read side has ended (%v)", c.in.err)}
	case len(c.in.control.handshake)+len(c.in.control.alert) > 0:
		return &NotQuietError{What: "a message of the peer has arrived in part"}
	}
	return nil
}

// awaitSent waits until TCP has every byte that was written, in records. The kernel
// does not tell what it has queued beyond TCP, but bytes do not get lost: those that
// TCP was given are the content that was written and the overhead of its records.
func (c *Conn) awaitSent(ctx context.Context, custody *Custody) error {
	if custody == nil {
		return fmt.Errorf("export: %w: no custody of the connection", blob.ErrState)
	}
	for {
		missing, err := c.missingFromTCP(custody)
		if err != nil || missing == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return &NotQuietError{What: fmt.Sprintf("%d bytes of records are not with TCP yet (%v)", missing, context.Cause(ctx))}
		case <-time.After(exportPoll):
		}
	}
}

var errAccount = errors.New("more or other bytes left the socket than this connection wrote")

// missingFromTCP returns how many bytes of records TCP has not been given.
func (c *Conn) missingFromTCP(custody *Custody) (missing uint64, err error) {
	err = control(c.tcp, func(fd int) error {
		if err := checkSocket(fd, custody.cookie); err != nil {
			return err
		}
		seq, err := nextRecord(fd, optTX, custody.suite)
		if err != nil {
			return err
		}
		given, err := givenToTCP(fd)
		if err != nil {
			return err
		}
		records, sent := seq-custody.sent.seq, given-custody.sent.tcp
		want := c.out.counter.bytes + records*recordOverhead(custody.suite)
		if sent > want {
			return fmt.Errorf("export: %w", errAccount)
		}
		missing = want - sent
		return nil
	})
	return missing, err
}

// nothingInPart proves that TLS holds nothing that was decrypted and not read, by the
// same kind of account: what it took from TCP is the content that was read and the
// overhead of its records. If the peer pads its records, or a part of one was taken
// early, there is more, and the proof is that there is nothing at all to read.
func (c *Conn) nothingInPart(fd int, custody *Custody) error {
	seq, err := nextRecord(fd, optRX, custody.suite)
	if err != nil {
		return err
	}
	taken, err := takenFromTCP(fd)
	if err != nil {
		return err
	}
	records := seq - custody.received.seq
	unread := taken - custody.received.tcp - c.in.bytes - records*recordOverhead(custody.suite)
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

// exportStates reads both directions out of the kernel.
func exportStates(fd int, custody *Custody) (read, write *blob.State, err error) {
	read = &blob.State{Direction: blob.Read, Epoch: custody.readEpoch}
	write = &blob.State{Direction: blob.Write, Epoch: custody.writeEpoch}
	for _, d := range []struct {
		option int
		state  *blob.State
	}{{optRX, read}, {optTX, write}} {
		d.state.Role, d.state.Version, d.state.Suite = custody.role, custody.suite.Version(), custody.suite
		d.state.Cookie = custody.cookie
		if err := exportState(fd, d.option, d.state); err != nil {
			read.Destroy()
			write.Destroy()
			return nil, nil, fmt.Errorf("export %s: %w", optionName(d.option), err)
		}
	}
	read.NextSecret, write.NextSecret = moveSecret(&custody.nextRead), moveSecret(&custody.nextWrite)
	return read, write, nil
}

// exportState fills in key, IV and sequence number, or where the key is held. What
// the state then encodes to must be what the kernel holds.
func exportState(fd, option int, s *blob.State) error {
	l := layouts[s.Suite.AEAD()]
	got, err := readKey(fd, option, l.size)
	if err != nil {
		return explain(opAskKey, "ask for the key", err)
	}
	defer clear(got)
	decodeCryptoInfo(got, s)
	want := encodeCryptoInfo(s)
	defer clear(want)
	if err := compareCryptoInfo(want, got, s.Suite.AEAD()); err != nil {
		return err
	}
	device, err := holdingDevice(fd, option)
	if err != nil || device == "" {
		return err
	}
	held := blob.Held{Device: device, Digest: s.KeyDigest()}
	s.Key.Destroy()
	s.IV.Destroy()
	s.Key, s.IV, s.Held = blob.Secret{}, blob.Secret{}, held
	return nil
}

// holdingDevice returns the network device that holds the key of a direction, "" if
// the kernel does it in software.
func holdingDevice(fd, option int) (string, error) {
	info := infoOf(fd)
	mode := info.TX
	if option == optRX {
		mode = info.RX
	}
	switch mode {
	case SW:
		return "", nil
	case HW:
		return routeDevice(fd)
	}
	return "", fmt.Errorf("where the key is held cannot be told: %s", info.Reason)
}
