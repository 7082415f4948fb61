// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"
)

// A playground makes connections with random traffic. What is random follows from its seed.
type playground struct {
	random   *rand.Rand
	listener int
	file     *os.File // to send
	pipe     [2]int
	buffer   []byte
	// rekeys: the kernel takes a second key; noRekey: it does not.
	rekeys, noRekey bool
}

const maxSend = 30_000

func newPlayground(seed uint64, dir string) (*playground, error) {
	p := &playground{random: rand.New(rand.NewPCG(seed, 0)), buffer: make([]byte, 64<<10)}
	var err error
	if p.listener, err = listenTCP(); err != nil {
		return nil, err
	}
	if p.file, err = os.CreateTemp(dir, ""); err != nil {
		return nil, err
	}
	if _, err := p.file.Write(make([]byte, maxSend)); err != nil {
		return nil, err
	}
	return p, unix.Pipe2(p.pipe[:], unix.O_CLOEXEC)
}

func (p *playground) close() {
	unix.Close(p.listener)
	p.file.Close()
	unix.Close(p.pipe[0])
	unix.Close(p.pipe[1])
}

// connection makes one, uses it and does not close it.
func (p *playground) connection() (client, server *tlsSocket, err error) {
	client, server, err = tlsPair(p.listener, testSuites[p.random.IntN(len(testSuites))], p.random.Uint64N(1000))
	for range p.random.IntN(5) {
		if err != nil {
			break
		}
		from, to := client, server
		if p.random.IntN(2) == 0 {
			from, to = to, from
		}
		err = p.act(p.random.IntN(8), from, to)
	}
	return client, server, err
}

// act makes something happen from one end to the other, which then has read all.
func (p *playground) act(kind int, from, to *tlsSocket) error {
	n := 1 + p.random.IntN(maxSend)
	b := p.buffer[:n]
	read := p.buffer[:1+p.random.IntN(len(p.buffer)-1)]
	switch kind {
	case 0:
		return errors.Join(from.send(b, 0), to.receiveAll(n, read))
	case 1: // one record, or a few, of two calls
		return errors.Join(from.send(b, unix.MSG_MORE), from.send(b[:1], 0), to.receiveAll(n+1, read))
	case 2:
		return errors.Join(p.sendFile(from, n), to.receiveAll(n, read))
	case 3: // a peek opens records, and takes nothing
		_, err := to.receive(read, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if !errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("peek before anything came: %v", err)
		}
		err = from.send(b, 0)
		_, peeked := to.receive(read, unix.MSG_PEEK)
		return errors.Join(err, peeked, to.receiveAll(n, read))
	case 4:
		n = 1 + n%16_000
		return errors.Join(from.send(b[:n], 0), p.splice(to, n))
	case 5: // a plain read meets a record that is no data
		if err := from.sendControl(22, []byte{4, 0, 0, 0}); err != nil {
			return err
		}
		if _, err := to.receive(read, 0); !errors.Is(err, unix.EIO) {
			return fmt.Errorf("a plain read of a control record: %v", err)
		}
		// Whole: the rest of a control record would meet the next plain read.
		_, err := to.receiveControl(p.buffer)
		return err
	case 6:
		return p.rekey(from, to)
	}
	return errors.Join(from.send(b[:1], 0), to.receiveAll(1, read))
}

func (p *playground) sendFile(s *tlsSocket, n int) error {
	s.parts = true
	for offset := int64(0); offset < int64(n); {
		sent, err := unix.Sendfile(s.fd, int(p.file.Fd()), &offset, n-int(offset))
		s.want.Sending.Bytes += uint64(max(sent, 0))
		if err != nil {
			return err
		}
	}
	return nil
}

// splice takes n bytes out of a socket, with the pipe always empty before.
func (p *playground) splice(s *tlsSocket, n int) error {
	for n > 0 {
		got, err := unix.Splice(s.fd, nil, p.pipe[1], nil, n, 0)
		if _, err = s.count(inward, int(got), err); err != nil {
			return err
		}
		if _, err := unix.Read(p.pipe[0], p.buffer); err != nil {
			return err
		}
		n -= int(got)
	}
	return nil
}

// rekey sets new keys of one direction, where the kernel can.
func (p *playground) rekey(from, to *tlsSocket) error {
	for _, suite := range testSuites {
		if suite.cipher != from.cipher || suite.version != 0x0304 || from.version12 {
			continue
		}
		key := suite.key(p.random.Uint64N(1000))
		old, err := from.sequence(outward)
		if err != nil {
			return err
		}
		start := from.start[outward]
		if err := from.install(outward, key); errors.Is(err, unix.EBUSY) {
			p.noRekey = true
			return nil
		} else if err != nil {
			return err
		}
		p.rekeys = true
		from.want.Sending.Records += old - start
		from.want.Sending.Rekeys++
		if old, err = to.sequence(inward); err != nil {
			return err
		}
		start = to.start[inward]
		to.want.Receiving.Records += old - start
		to.want.Receiving.Rekeys++
		return to.install(inward, key)
	}
	return nil
}

// end closes both ends in a random way, and says how.
func (p *playground) end(client, server *tlsSocket) error {
	first, second := client, server
	if p.random.IntN(2) == 0 {
		first, second = second, first
	}
	switch p.random.IntN(5) {
	case 0: // SO_LINGER 0
		err := unix.SetsockoptLinger(first.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		return errors.Join(err, first.close(Aborted, false), p.meetsReset(second))
	case 1: // closed with unread data
		n := 1 + p.random.IntN(1000)
		err := errors.Join(second.send(p.buffer[:n], 0), first.wait(n))
		return errors.Join(err, first.close(Unread, false), p.meetsReset(second))
	case 2: // a record that was read in part, of which TCP has nothing left
		first.want.UnreadRecords = 1
		if err := second.send(p.buffer[:100], 0); err != nil {
			return err
		}
		return errors.Join(first.receiveAll(1, p.buffer[:1]), first.close(Proper, false), p.meetsEnd(second, true))
	case 3: // each half by itself: the one that began has seen both FINs when it closes
		err := unix.Shutdown(first.fd, unix.SHUT_WR)
		if got, err := second.receive(p.buffer, 0); got != 0 || err != nil {
			return fmt.Errorf("%d bytes, %v; want the end", got, err)
		}
		err = errors.Join(err, second.close(Proper, true))
		got, err2 := first.receive(p.buffer, 0)
		if got != 0 {
			err2 = fmt.Errorf("%d bytes, want the end", got)
		}
		return errors.Join(err, err2, first.close(Proper, false))
	}
	return errors.Join(first.close(Proper, false), p.meetsEnd(second, true))
}

func (p *playground) meetsReset(s *tlsSocket) error {
	if got, err := s.receive(p.buffer, 0); !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("%d bytes, %v; want a reset", got, err)
	}
	return s.close(Reset, false)
}

func (p *playground) meetsEnd(s *tlsSocket, peerFirst bool) error {
	if got, err := s.receive(p.buffer, 0); got != 0 || err != nil {
		return fmt.Errorf("%d bytes, %v; want the end", got, err)
	}
	return s.close(Proper, peerFirst)
}

// forged makes a connection whose peer has no key and sends what is no record of it.
func (p *playground) forged() (*tlsSocket, error) {
	client, server, err := tcpPair(p.listener)
	if err != nil {
		return nil, err
	}
	suite := testSuites[0]
	s, err := newTLSSocket(server, suite)
	if err != nil {
		return nil, err
	}
	if err := s.install(inward, suite.key(7)); err != nil {
		return nil, err
	}
	record := append([]byte{23, 3, 3, 0, 100}, make([]byte, 100)...)
	if _, err := unix.Write(client, record); err != nil {
		return nil, err
	}
	if _, err := s.receive(p.buffer, 0); !errors.Is(err, unix.EBADMSG) {
		return nil, fmt.Errorf("a forged record: %v", err)
	}
	s.want.Failures, s.want.Failure = 1, unix.EBADMSG
	return s, errors.Join(s.wait(len(record)-1), s.close(Unread, false), unix.Close(client))
}
