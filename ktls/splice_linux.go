// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"cmp"
	"errors"
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

// spliceFrom sends up to limit bytes from another socket. The error is io.EOF at
// the end of either, and errNoSplice if there is no pipe.
func (c *Conn) spliceFrom(source syscall.Conn, limit int64) (int64, error) {
	raw, err := source.SyscallConn()
	if err != nil {
		return 0, errNoSplice
	}
	var l lease
	defer l.giveBack()
	var sent int64
	for sent < limit {
		count := int(min(limit-sent, pipeSize))
		waited, err := l.fill(raw.Read, func(fd int, p *pipe) (int, error) { return spliceOnce(fd, p.write, count) })
		if err = cmp.Or(waited, err); err != nil {
			return sent, err
		}
		if l.n == 0 {
			break
		}
		m, err := c.sendPipe(l.p, l.n)
		l.n -= m
		sent += int64(m)
		if err != nil {
			return sent, err
		}
	}
	return sent, io.EOF
}

// sendPipe sends n bytes, all that is in the pipe.
func (c *Conn) sendPipe(p *pipe, n int) (int, error) {
	c.out.Lock()
	defer c.out.Unlock()
	sent := 0
	for sent < n {
		// Pieces of one byte are possible, and no more of them than slots.
		pieces := min(p.slots, n-sent)
		chunk, err := c.mayWrite(n-sent, pieces)
		if err != nil {
			return sent, err
		}
		m, err := p.moveOnce(c.waitToWrite, chunk)
		c.out.counter.add(m, pieces)
		sent += m
		if err != nil && !errors.Is(err, errUpdateFirst) {
			return sent, c.writeError(err)
		}
	}
	return sent, nil
}

// recordPieces is the most slots of a pipe that one record takes: the kernel splices
// one record at a time, in no more pieces than a socket buffer has fragments
// (net/core/skbuff.c, skb_splice_bits, MAX_SKB_FRAGS).
const recordPieces = 17

// errNoData: what comes next is not application data, or not a record.
var errNoData = errors.New("no application data to splice")

// spliceTo moves application data to a sink until close_notify. Linux 6.12 loses
// the rest of a record of which the pipe takes only a part, so the pipe always has
// room for the largest record, and is drained before more is asked for. The error is
// errNoSplice if there is no pipe.
func (c *Conn) spliceTo(w io.Writer, sink pipeSink) (int64, error) {
	var l lease
	defer l.giveBack()
	var total int64
	for {
		err := c.spliceRecords(&l)
		if l.n > 0 {
			m, err := sink(l.p, l.n)
			l.n -= m
			total += int64(m)
			if err != nil {
				return total, err
			}
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, errNoData) {
			return total, err
		}
		// Read takes the control record, and says what the kernel would not.
		m, err := c.readTo(w)
		total += m
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// readTo copies the data of one Read.
func (c *Conn) readTo(w io.Writer) (int64, error) {
	var l loan
	defer l.giveBack()
	n, err := c.readLoan(&l)
	if err != nil {
		return 0, err
	}
	n, err = w.Write(l.buffer[:n])
	return int64(n), err
}

// spliceRecords waits for data and moves as many records into the empty pipe as
// there are and as certainly fit.
func (c *Conn) spliceRecords(l *lease) error {
	c.in.Lock()
	defer c.in.Unlock()
	if c.in.err != nil {
		return errNoData
	}
	waited, err := l.fill(c.raw.Read, func(fd int, p *pipe) (n int, err error) {
		for range p.slots / recordPieces {
			m := 0
			m, err = spliceOnce(fd, p.write, maxRecordContent)
			n += m
			if m == 0 || err != nil {
				break
			}
		}
		return n, err
	})
	c.in.bytes += uint64(l.n)
	if waited != nil {
		return c.readError(waited)
	}
	if l.n > 0 {
		if end := c.in.control.data(); end != nil {
			c.endRead(end)
			// What is in the pipe came after it and is not delivered.
			l.giveBack()
			return c.in.err
		}
	}
	switch {
	case errors.Is(err, errNoSplice):
		return err
	case l.n > 0 && (err == nil || errors.Is(err, unix.EAGAIN)):
		return nil
	}
	return errNoData
}
