// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"context"
	"fmt"
	"net"

	"github.com/offloadd/offloadd/blob"
)

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
// is spent. A Conn of [NewConnKeeping] has it, and takes nil for its own; it answers
// before, if the peer has asked for a KeyUpdate. Whoever writes to the socket by other
// means than this Conn makes the account fail, and with it Export.
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
	if custody == nil {
		custody = c.custody
	} else if c.custody != nil && c.custody != custody {
		return nil, nil, fmt.Errorf("export: %w: the Conn keeps another custody", blob.ErrState)
	}
	if err := c.answerNow(ctx); err != nil {
		return nil, nil, err
	}
	err = custody.quiet(ctx, c.tcp, c.account(), func(fd int) (err error) {
		read, write, err = exportStates(fd, custody)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("export: %w", err)
	}
	c.moved()
	return read, write, nil
}

// moved leaves nothing to this Conn. The caller holds both locks.
func (c *Conn) moved() {
	c.out.broken.Store(&ending{ErrMoved, alertCloseNotify})
	c.in.err = ErrMoved
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
	case len(c.in.control.handshake)+len(c.in.control.alert) > 0 || c.in.control.update != nil:
		return &NotQuietError{What: "a message of the peer has arrived in part"}
	}
	return nil
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
