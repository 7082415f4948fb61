// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"
)

// closeAct is how a connection ends.
type closeAct string

const (
	peerNotifies    closeAct = "the peer sends close_notify"
	peerFINs        closeAct = "the peer sends a FIN alone"
	peerResets      closeAct = "the peer resets"
	weClose         closeAct = "we close"
	weCloseWrite    closeAct = "we close for writing"
	goodbyeClose    closeAct = "we send close_notify and close"
	goodbyeShutdown closeAct = "we send close_notify and shut down"
)

// closeState is what is under way when it does.
type closeState string

const (
	idle          closeState = "idle"
	dataUnread    closeState = "data unread"
	dataQueued    closeState = "data queued"
	blockedWriter closeState = "blocked writer"
	slowPeer      closeState = "slow peer"
	deadPeer      closeState = "dead peer"
	deadPeerFull  closeState = "dead peer, data queued"
)

var closeStates = []closeState{idle, dataUnread, dataQueued, blockedWriter, slowPeer, deadPeer, deadPeerFull}

// outcome is how a cell of the table ends, in words of said and of collect.
type outcome struct {
	read  string // what reads say, at the end
	write string // the Write that was under way, else one of a byte afterwards
	close string // Close, and CloseWrite before it
	peer  string // how much of what was accepted the peer has got, and how it ends there
}

// lost is what becomes of a byte that was accepted, and cannot arrive.
const lost = ", and is lost"

const (
	unreadSize  = 20000
	unreadTaken = 1000 // of it, before
	blockedSize = 600_000
	slowSize    = 200_000
	deadSize    = 5000
	// closePatience bounds what must happen.
	closePatience = 20 * time.Second
)

// closeScript is one cell under way.
type closeScript struct {
	act    closeAct
	state  closeState
	ours   ourEnd
	peer   *tls.Conn // a client in user space
	theirs *watchedTCP

	accepted int // bytes that our writes said they took
	unread   int
	writing  chan written // the Write that is under way, nil if none is
	got      chan collected
	slowly   chan struct{} // closed when the slow peer is in the middle
}

type written struct {
	n   int
	err error
}

// collected is what a peer read, and how that ended.
type collected struct {
	n   int
	end string
}

// watchedTCP is the peer's socket, which notes a FIN: to the Read of crypto/tls it is the
// same as close_notify, if it comes between records.
type watchedTCP struct {
	*net.TCPConn
	fin atomic.Bool
}

func (w *watchedTCP) Read(p []byte) (int, error) {
	n, err := w.TCPConn.Read(p)
	if err == io.EOF {
		w.fin.Store(true)
	}
	return n, err
}

// endOf says what the end of reading came from.
func (w *watchedTCP) endOf(err error) string {
	switch what := said(err); {
	case what == "unexpected EOF", what == "EOF" && w.fin.Load():
		return "a FIN alone"
	case what == "EOF":
		return "close_notify"
	case what == "waits":
		return "no end"
	default:
		return "a " + what
	}
}

// run plays the cell to its end.
func (s *closeScript) run() (outcome, error) {
	defer func() {
		s.theirs.SetLinger(0) // wakes whoever still waits
		s.theirs.Close()
	}()
	if s.state.dead() {
		s.ours.hurry()
	}
	if err := s.prepare(); err != nil {
		return outcome{}, fmt.Errorf("prepare: %w", err)
	}
	switch s.act {
	case peerNotifies, peerFINs, peerResets:
		return s.peerEnds()
	case weCloseWrite, goodbyeShutdown:
		return s.weCloseWrite()
	}
	return s.weClose()
}

// prepare brings about the state.
func (s *closeScript) prepare() (err error) {
	switch s.state {
	case dataUnread:
		if _, err := s.peer.Write(make([]byte, unreadSize)); err != nil {
			return err
		}
		s.unread = unreadSize - unreadTaken
		if err := s.ours.take(unreadTaken); err != nil {
			return err
		}
		s.accepted, err = s.ours.fill()
	case dataQueued:
		s.accepted, err = s.ours.fill()
	case blockedWriter:
		s.write(blockedSize)
		for until := time.Now().Add(closePatience); s.ours.room(quietTime / 8); {
			if time.Now().After(until) {
				return errors.New("the writer is not blocked")
			}
		}
	case slowPeer:
		s.collect()
		s.write(slowSize)
		select {
		case <-s.slowly:
		case <-time.After(closePatience):
			return errors.New("the slow peer gets nothing")
		}
	case deadPeer:
		if err := deafen(s.theirs); err != nil {
			return err
		}
		s.accepted, err = s.ours.write(make([]byte, deadSize))
	case deadPeerFull:
		if err := deafen(s.theirs); err != nil {
			return err
		}
		s.accepted, err = s.ours.fill()
	}
	return err
}

func (s closeState) dead() bool { return s == deadPeer || s == deadPeerFull }

// write begins a Write.
func (s *closeScript) write(n int) {
	s.writing = make(chan written, 1)
	go func() {
		n, err := s.ours.write(make([]byte, n))
		s.writing <- written{n, err}
	}()
}

// writeByte writes a byte if there is room for it.
func (s *closeScript) writeByte() (n int, what string) {
	patience := closePatience
	if s.state.dead() {
		patience = quietTime
	}
	if !s.ours.room(patience) {
		return 0, "waits"
	}
	n, err := s.ours.write([]byte("x"))
	return n, said(err)
}

// written waits for the Write that is under way, or writes a byte if none is.
func (s *closeScript) written() string {
	if s.writing == nil {
		n, what := s.writeByte()
		s.accepted += n
		return what
	}
	select {
	case w := <-s.writing:
		s.writing = nil
		s.accepted += w.n
		return said(w.err)
	case <-time.After(closePatience):
		return "hangs"
	}
}

// collect has the peer read to the end.
func (s *closeScript) collect() {
	if s.got != nil {
		return
	}
	s.got, s.slowly = make(chan collected, 1), make(chan struct{})
	go func() {
		patience := closePatience
		if s.state.dead() {
			patience = quietTime
		}
		s.peer.SetReadDeadline(time.Now().Add(patience))
		c := collected{}
		for p, signaled := make([]byte, 4000), false; ; {
			n, err := s.peer.Read(p)
			c.n += n
			if !signaled && c.n > slowSize/6 {
				close(s.slowly)
				signaled = true
			}
			if err != nil {
				c.end = s.theirs.endOf(err)
				break
			}
			if s.state == slowPeer {
				time.Sleep(5 * time.Millisecond)
			}
		}
		s.got <- c
	}()
}

// collected says what the peer got.
func (s *closeScript) collected() string {
	var c collected
	select {
	case c = <-s.got:
	case <-time.After(2 * closePatience):
		return "the peer reads for ever"
	}
	share := "all"
	switch {
	case c.n > s.accepted:
		share = fmt.Sprintf("%d bytes too many", c.n-s.accepted)
	case c.n == 0 && s.accepted > 0:
		share = "nothing"
	case c.n < s.accepted:
		share = "a part"
	}
	return share + ", " + c.end
}

// readAll reads to the end and checks that nothing of what was unread is missing.
func (s *closeScript) readAll(more int) string {
	n, what := s.ours.read()
	if n != s.unread+more {
		return what + ", and data is missing"
	}
	return what
}

// peerEnds: it does so in midst of the state, we read what there is, and close.
func (s *closeScript) peerEnds() (o outcome, err error) {
	switch s.act {
	case peerNotifies:
		err = s.peer.CloseWrite()
	case peerFINs:
		err = s.theirs.CloseWrite()
	case peerResets:
		s.theirs.SetLinger(0)
		err = s.theirs.Close()
	}
	if err != nil {
		return o, err
	}
	time.Sleep(quietTime / 4)
	o.read = s.readAll(0)
	if s.act != peerResets {
		s.collect()
	}
	o.write = s.written()
	o.close = said(s.ours.close())
	if s.act != peerResets {
		o.peer = s.collected()
		return o, nil
	}
	o.peer = "gone"
	if o.write == "ok" {
		o.write += lost
	}
	return o, nil
}

// soon waits for a call that may wait for the peer, which begins to read meanwhile.
func (s *closeScript) soon(call func() error) string {
	done := make(chan error, 1)
	go func() { done <- call() }()
	time.Sleep(quietTime / 4)
	s.collect()
	select {
	case err := <-done:
		return said(err)
	case <-time.After(closePatience):
		return "hangs"
	}
}

func (s *closeScript) weClose() (o outcome, err error) {
	if s.state == slowPeer {
		if what := s.written(); what != "ok" {
			return o, errors.New("write: " + what)
		}
		o.write = "ok"
	}
	o.close = s.soon(s.ours.close)
	if _, ok := s.ours.(*plainEnd); ok {
		// The number of the descriptor may be another's by now.
		o.read = "-"
		if s.writing != nil {
			o.write = s.written()
		} else if o.write == "" {
			o.write = "-"
		}
	} else {
		_, o.read = s.ours.read()
		if o.write == "" {
			o.write = s.written()
		}
	}
	o.peer = s.collected()
	return o, nil
}

// weCloseWrite: the peer answers what it then reads, and ends as well.
func (s *closeScript) weCloseWrite() (o outcome, err error) {
	const reply = "reply"
	if s.state == slowPeer {
		if what := s.written(); what != "ok" {
			return o, errors.New("write: " + what)
		}
	}
	o.close = s.soon(s.ours.closeWrite)
	if s.writing != nil {
		o.write = s.written()
	} else if n, what := s.writeByte(); n > 0 {
		o.write = what + lost // nothing may follow close_notify or a FIN
	} else {
		o.write = what
	}
	o.peer = s.collected()
	if o.write == "ok" && !strings.HasPrefix(o.peer, "all") {
		o.write += lost
	}
	more := 0
	if !s.state.dead() {
		_, err := io.WriteString(s.peer, reply)
		if err = errors.Join(err, s.peer.CloseWrite()); err != nil {
			return o, fmt.Errorf("reply: %w", err)
		}
		more = len(reply)
	}
	o.read = s.readAll(more)
	o.close += ", " + said(s.ours.close())
	return o, nil
}
