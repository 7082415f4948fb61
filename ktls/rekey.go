// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// NewConnKeeping is NewConn for who has custody of the connection. Such a Conn follows
// the KeyUpdates of the peer (RFC 8446, Section 4.6.3), changes its own key before the
// AEAD's limit, and by UpdateKey, where the kernel can: Linux 6.14 and later. Elsewhere
// a KeyUpdate is ErrKeyUpdate as without custody.
//
// The custody is the Conn's from now on, until Export or Release gave the connection
// away; Close destroys it.
//
// Of a record that ends with a KeyUpdate, behind a session ticket say, the kernel sees
// only the first byte and does not wait for a key. It opens nothing behind it, though,
// before the record was read, and Read changes the key before it asks for more. Whoever
// reads from the socket past the Conn breaks that.
func NewConnKeeping(c *net.TCPConn, custody *Custody) (*Conn, error) {
	conn, err := NewConn(c)
	if err != nil {
		return nil, err
	}
	if custody == nil {
		return nil, fmt.Errorf("%w: no custody of the connection", blob.ErrState)
	}
	if err := control(c, func(fd int) error { return conn.keep(fd, custody) }); err != nil {
		return nil, err
	}
	return conn, nil
}

func (c *Conn) keep(fd int, custody *Custody) (err error) {
	if err := checkSocket(fd, custody.cookie); err != nil {
		return err
	}
	// The key may have been in use before.
	if c.out.counter.used, err = nextRecord(fd, optTX, custody.suite); err != nil {
		return err
	}
	if c.version == blob.TLS13 {
		err := canRekey(fd)
		if err != nil && !errors.Is(err, ErrNotSupported) {
			return err
		}
		c.in.control.follows = err == nil
	}
	c.custody = custody
	return nil
}

// canRekey asks whether the kernel changes the keys of this socket, by the header of a
// key of no version: one that does not says EBUSY before it looks at the value, and one
// that does EINVAL before it changes anything (net/tls/tls_main.c,
// do_tls_setsockopt_conf).
func canRekey(fd int) error {
	for _, option := range []int{optRX, optTX} {
		switch err := setKey(fd, option, make([]byte, infoHeaderSize)); {
		case errors.Is(err, syscall.EINVAL):
		case errors.Is(err, syscall.EBUSY):
			return fmt.Errorf("%w: it takes one key for %s", ErrNotSupported, optionName(option))
		case err == nil:
			return fmt.Errorf("%s: the kernel took a key that is none", optionName(option))
		default:
			return explain(opSetKey, "ask whether keys can change", err)
		}
	}
	return nil
}

// canUpdate says that both keys can change. It is settled before the first Read.
func (c *Conn) canUpdate() bool { return c.in.control.follows }

// UpdateKey changes the key that we write with, and, with requestPeer, asks the peer to
// change its own. It waits for a Write that is under way, and for the peer to make room
// for one record. Peers bound how often they take that without data in between
// (crypto/tls 16 times), or in a second (GnuTLS seven times). An error before the KeyUpdate went out, a deadline for
// instance, has changed nothing.
func (c *Conn) UpdateKey(requestPeer bool) error {
	c.out.Lock()
	defer c.out.Unlock()
	if _, err := c.mayWrite(0, 0); err != nil {
		return err
	}
	switch {
	case c.version != blob.TLS13:
		return fmt.Errorf("%w: %v has no KeyUpdate", ErrNoUpdate, c.version)
	case c.custody == nil && c.ask == nil:
		return fmt.Errorf("%w: this Conn has no custody of it, see NewConnKeeping", ErrNoUpdate)
	case !c.canUpdate():
		return fmt.Errorf("%w: %w", ErrNoUpdate, ErrNotSupported)
	}
	if c.custody == nil {
		return c.askForWriteKey(blob.Question{Update: true, Request: requestPeer})
	}
	request := updateNotRequested // which answers, if the peer has asked
	if requestPeer {
		request = updateRequested
	}
	return c.changeWriteKey(request, c.sendMessage)
}

// changeWriteKey sends a KeyUpdate and sets the next key. The caller holds the write
// lock all the while, so that no other record follows under the old key.
func (c *Conn) changeWriteKey(request uint8, send func(p, oob []byte) (int, error)) error {
	// A request that comes from here on may be a new one, and gets an answer of its own.
	answers := request == updateNotRequested && c.out.owed.Swap(false)
	message := []byte{messageKeyUpdate, 0, 0, 1, request}
	n, err := send(message, setRecordType(recordHandshake))
	c.out.counter.add(n, 0)
	if n == 0 && err != nil {
		if answers {
			c.out.owed.Store(true)
		}
		if errors.Is(err, syscall.EAGAIN) {
			return err
		}
		return c.writeError(err)
	}
	if n != len(message) {
		err = fmt.Errorf("the kernel took %d bytes of a KeyUpdate (%v)", n, err)
	} else {
		err = control(c.tcp, func(fd int) error { return c.custody.advance(fd, optTX, readKey, nil) })
	}
	if err != nil {
		// Nothing may be sent any more, an alert neither: under which key?
		end := &ending{fmt.Errorf("%w: %w", ErrRekey, err), alertCloseNotify}
		c.out.broken.CompareAndSwap(nil, end)
		_ = Shutdown(c.tcp) // an error means that there is no connection
		return end.err
	}
	c.out.counter.renew()
	return nil
}

// answerNow sends the KeyUpdate that the peer asked for, if it did, as soon as the
// kernel takes it.
func (c *Conn) answerNow(ctx context.Context) error {
	for c.out.owed.Load() && c.custody != nil {
		err := c.changeWriteKey(updateNotRequested, c.sendNow)
		if err == nil || !errors.Is(err, syscall.EAGAIN) {
			return err
		}
		select {
		case <-ctx.Done():
			return &NotQuietError{What: fmt.Sprintf("the peer makes no room for the KeyUpdate it asked for (%v)", context.Cause(ctx))}
		case <-time.After(quietPoll):
		}
	}
	return nil
}

// followUpdate changes the key that we read with, if a record ended with a KeyUpdate.
// The caller holds the read lock, and has read nothing behind that record.
//
// The answer, if the peer wants one, goes before our next data: however often it asks
// until then, it gets one (RFC 8446, Section 4.6.3).
func (c *Conn) followUpdate() *ending {
	u := c.in.control.update
	if u == nil {
		return nil
	}
	c.in.control.update = nil
	if end := c.in.control.countUpdate(u, !c.out.owed.Load()); end != nil {
		return end
	}
	if c.custody == nil {
		return c.askForReadKey(u.requested)
	}
	if err := control(c.tcp, func(fd int) error { return c.custody.advance(fd, optRX, readKey, nil) }); err != nil {
		return &ending{fmt.Errorf("%w: %w", ErrRekey, err), alertInternalError}
	}
	if u.requested {
		c.out.owed.Store(true)
	}
	return nil
}

// advance changes the key of one direction to that of the next epoch, which must be
// another one, and destroys the secret that it comes from. Before that enter, if it is
// not nil, is told the new state. The key that was there is
// useless already: on an error, and if the kernel then holds anything but the new one,
// the connection is over.
func (custody *Custody) advance(fd, option int, readBack func(fd, option, size int) ([]byte, error), enter func(*blob.State) error) error {
	h := custody.half(option)
	next := &blob.State{
		Role: custody.role, Direction: h.direction, Version: custody.suite.Version(), Suite: custody.suite,
		Epoch: *h.epoch, Cookie: custody.cookie, NextSecret: moveSecret(h.next),
	}
	defer next.Destroy()
	if err := next.Update(); err != nil {
		return err
	}
	if err := next.Validate(); err != nil {
		return err
	}
	want := encodeCryptoInfo(next)
	defer clear(want)
	old, err := readKey(fd, option, len(want))
	if err != nil {
		return explain(opAskKey, "ask for the key before", err)
	}
	defer clear(old)
	aead := custody.suite.AEAD()
	if sameKey(want, old, aead) {
		return fmt.Errorf("%w: the next key is the one before", blob.ErrState)
	}
	if enter != nil {
		if err := enter(next); err != nil {
			return err
		}
	}
	if err := setKey(fd, option, want); err != nil {
		return explain(opSetKey, "set "+optionName(option), err)
	}
	if err := compareKey(fd, option, want, aead, readBack); err != nil {
		return err
	}
	*h.next, *h.epoch = moveSecret(&next.NextSecret), next.Epoch
	// Records are counted from where custody was taken, whatever key they had.
	h.at.seq -= binary.BigEndian.Uint64(layouts[aead].seq.of(old))
	return nil
}
