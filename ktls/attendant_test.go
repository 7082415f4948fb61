// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// plain is a program that only knows read and write, and has somebody to ask.
type plain struct {
	tcp       *net.TCPConn
	attendant *ktls.Attendant
	enter     func(*blob.State) error
	answers   []blob.Answer
	read      uint64 // bytes
	written   uint64
}

// newPlain gives the custody of k to an attendant. The Conn of k is not used any more.
func newPlain(t testing.TB, k *kept, enter func(*blob.State) error) *plain {
	t.Helper()
	a, err := ktls.NewAttendant(k.tcp, k.custody, blob.TLS13, enter)
	if err != nil {
		t.Fatal(err)
	}
	return &plain{tcp: k.tcp, attendant: a, enter: enter}
}

// Read is read(2), and asks where that says EIO.
func (p *plain) Read(b []byte) (int, error) {
	for {
		n, err := p.tcp.Read(b)
		if !errors.Is(err, syscall.EIO) {
			p.read += uint64(n)
			return n, err
		}
		answer, err := p.ask(blob.Question{Met: true, Quiet: true})
		switch {
		case answer.Verdict == blob.GoOn:
		case answer.Verdict == blob.EndOfStream:
			return 0, io.EOF
		case err != nil:
			return 0, err
		default:
			return 0, &ktls.AlertError{Description: answer.Alert}
		}
	}
}

func (p *plain) ask(q blob.Question) (blob.Answer, error) {
	answer, err := p.attendant.Answer(p.tcp, q)
	if (answer.Verdict == blob.Ended) != (err != nil) {
		err = errors.Join(err, fmt.Errorf("the verdict is %v", answer.Verdict))
	}
	p.answers = append(p.answers, answer)
	// It rests between two questions, if it can.
	var parked ktls.Parked
	if p.attendant.Park(&parked) {
		p.attendant = parked.Attend(p.enter)
	}
	return answer, err
}

func (p *plain) Write(b []byte) (int, error) {
	n, err := p.tcp.Write(b)
	p.written += uint64(n)
	return n, err
}

// TestAPlainReaderIsToldWhatItMet: what ktls.Conn would make of it.
func TestAPlainReaderIsToldWhatItMet(t *testing.T) {
	for _, c := range controlCases() {
		for _, suite := range []blob.CipherSuite{suite13, suite12} {
			if c.version != 0 && c.version != suite.Version() {
				continue
			}
			t.Run(fmt.Sprintf("%s, %v", c.name, suite.Version()), func(t *testing.T) {
				ktlstest.Require(t)
				pair := ktlstest.Installed(t, suite)
				a, err := ktls.NewAttendant(pair.Client, nil, suite.Version(), nil)
				if err != nil {
					t.Fatal(err)
				}
				p := &plain{tcp: pair.Client, attendant: a}
				sendRecord(t, pair.Server, 23, []byte("before"))
				for _, r := range c.records {
					sendRecord(t, pair.Server, r.kind, r.content)
				}
				if c.want != ktls.ErrKeyUpdate {
					sendRecord(t, pair.Server, 23, []byte("after"))
				}
				p.checkEnd(t, c, pair.Server)
			})
		}
	}
}

// within says that what interrupts a message is application data, which a plain program
// reads without asking. It then learns of the violation only where records are counted,
// by who has custody.
func (c *controlCase) within() bool {
	return c.name == "data within an alert" || c.name == "data within a ticket"
}

func (p *plain) checkEnd(t *testing.T, c controlCase, peer *net.TCPConn) {
	t.Helper()
	p.tcp.SetReadDeadline(time.Now().Add(10 * time.Second))
	mustRead(t, p, "before")
	if c.within() {
		mustRead(t, p, "x")
		return
	}
	if c.want == nil {
		mustRead(t, p, "after")
		return
	}
	n, err := p.Read(make([]byte, 100))
	var alert *ktls.AlertError
	if errors.As(c.want, &alert) {
		var got *ktls.AlertError
		if !errors.As(err, &got) || *got != *alert {
			t.Errorf("%d bytes, %v; want %v", n, err, c.want)
		}
		return
	}
	if n != 0 || !errors.Is(err, c.want) {
		t.Fatalf("%d bytes, %v; want %v", n, err, c.want)
	}
	if c.alert != 0 {
		kind, content, err := receiveRecord(t, peer)
		if kind != 21 || !bytes.Equal(content, []byte{2, c.alert}) || p.answers[len(p.answers)-1].Alert != c.alert {
			t.Errorf("the peer got type %d, %v, %v", kind, content, err)
		}
		// The kernel says of a write after the shutdown that it succeeded.
		_, _ = p.tcp.Write([]byte("too late"))
		if kind, content, err := receiveRecord(t, peer); len(content) > 0 {
			t.Errorf("then the peer got type %d, %q, %v", kind, content, err)
		}
	}
}

// TestAPlainProgramFollowsKeyUpdates: with and without request, alone and behind a
// ticket, several in a row; each key is entered before it is set; and the account is
// right afterwards.
func TestAPlainProgramFollowsKeyUpdates(t *testing.T) {
	requireRekey(t)
	for _, suite := range blob.CipherSuites() {
		if suite.Version() != blob.TLS13 {
			continue
		}
		t.Run(suite.String(), func(t *testing.T) {
			peer, k := newKeepers(t, suite)
			var entered []string
			p := newPlain(t, k, func(s *blob.State) error {
				entered = append(entered, fmt.Sprintf("%v %d at %d", s.Direction, s.Epoch, s.Seq))
				return s.Validate()
			})
			p.tcp.SetDeadline(time.Now().Add(20 * time.Second))
			mustUpdate := func(request bool) {
				t.Helper()
				if err := peer.conn.UpdateKey(request); err != nil {
					t.Fatal(err)
				}
			}
			turn := func(text string) {
				t.Helper()
				mustWrite(t, peer.conn, text)
				mustRead(t, p, text)
				mustWrite(t, p, text)
				mustRead(t, peer.conn, text)
			}
			turn("no key yet")
			mustUpdate(false)
			turn("one")
			mustUpdate(true)
			turn("two, and one back")
			for range 5 {
				mustUpdate(true)
			}
			turn("seven, and one more back")
			if answer, err := p.ask(blob.Question{Quiet: true, Update: true, Request: true}); err != nil || answer != (blob.Answer{}) {
				t.Fatal(answer, err)
			}
			turn("three back, and the peer answers")
			want := []string{"read 1 at 0", "read 2 at 0", "write 1 at 0"}
			for i := range 5 {
				want = append(want, fmt.Sprintf("read %d at 0", 3+i))
			}
			want = append(want, "write 2 at 0", "write 3 at 0")
			if got := entered[:min(len(want), len(entered))]; !slices.Equal(got, want) {
				t.Errorf("entered %v, want %v", entered, want)
			}
			if read, write := p.attendant.Epochs(); read != 8 && read != 7 || write != 3 {
				t.Errorf("epochs %d and %d", read, write)
			}
			if _, err := p.attendant.Regain(t.Context(), p.tcp, ktls.Account{Read: p.read, Written: p.written}); err != nil {
				t.Error(err)
			}
			p.read, p.written = 0, 0
			mustUpdate(true)
			turn("after it was given back")
			mustWrite(t, peer.conn, "half and half")
			mustRead(t, p, "half")
			var notQuiet *ktls.NotQuietError
			if _, err := p.attendant.Regain(t.Context(), p.tcp, ktls.Account{Read: p.read, Written: p.written}); !errors.As(err, &notQuiet) || notQuiet.Unread != len(" and half") {
				t.Errorf("in the middle of a record: %v", err)
			}
			mustRead(t, p, " and half")
			if _, err := p.attendant.Regain(t.Context(), p.tcp, ktls.Account{Read: p.read, Written: p.written}); err != nil {
				t.Error(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if _, err := p.attendant.Regain(ctx, p.tcp, ktls.Account{Written: 1}); err == nil {
				t.Error("a wrong account was taken")
			}
		})
	}
}

// TestAKeyThatMayNotBeEnteredIsNotSet: and the connection is over.
func TestAKeyThatMayNotBeEnteredIsNotSet(t *testing.T) {
	requireRekey(t)
	errFull := errors.New("the ledger is full")
	for _, c := range []struct {
		name string
		act  func(t *testing.T, peer *kept, p *plain) (blob.Answer, error)
	}{
		{"read", func(t *testing.T, peer *kept, p *plain) (blob.Answer, error) {
			if err := peer.conn.UpdateKey(false); err != nil {
				t.Fatal(err)
			}
			_, err := p.Read(make([]byte, 1))
			return p.answers[0], err
		}},
		{"write", func(_ *testing.T, _ *kept, p *plain) (blob.Answer, error) {
			return p.ask(blob.Question{Quiet: true, Update: true})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			peer, k := newKeepers(t, suite13)
			p := newPlain(t, k, func(*blob.State) error { return errFull })
			answer, err := c.act(t, peer, p)
			if answer.Verdict != blob.Ended || !errors.Is(err, errFull) || !errors.Is(err, ktls.ErrRekey) {
				t.Fatalf("%+v, %v", answer, err)
			}
			if read, write := p.attendant.Epochs(); read != 0 || write != 0 {
				t.Errorf("epochs %d and %d", read, write)
			}
			peer.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.ReadAll(struct{ io.Reader }{peer.conn}); err == nil {
				t.Error("the peer sees a proper end")
			}
			if answer, err := p.ask(blob.Question{Quiet: true, Update: true}); err != nil || !answer.Refused {
				t.Errorf("afterwards: %+v, %v", answer, err)
			}
		})
	}
}

// TestAQuestionTakesNoData: whoever asks too early, or too often.
func TestAQuestionTakesNoData(t *testing.T) {
	peer, k := newKeepers(t, suite13)
	p := newPlain(t, k, nil)
	met := func() {
		t.Helper()
		if answer, err := p.ask(blob.Question{Met: true, Quiet: true}); err != nil || answer != (blob.Answer{}) {
			t.Fatal(answer, err)
		}
	}
	met()
	mustWrite(t, peer.conn, "some data")
	time.Sleep(20 * time.Millisecond)
	met()
	sendRecord(t, peer.tcp, 22, ticket(10))
	met()
	mustRead(t, p, "some data")
	met()
	mustWrite(t, peer.conn, "more")
	mustRead(t, p, "more")
}

// TestAQuestionAboutAnotherSocketDoesNothing.
func TestAQuestionAboutAnotherSocketDoesNothing(t *testing.T) {
	_, k := newKeepers(t, suite13)
	_, other := newKeepers(t, suite13)
	p := newPlain(t, k, nil)
	p.tcp = other.tcp
	if _, err := p.ask(blob.Question{Quiet: true, Update: true}); !errors.Is(err, blob.ErrCookie) {
		t.Errorf("%v, want ErrCookie", err)
	}
	p.tcp = k.tcp
	if _, err := p.ask(blob.Question{Update: true}); err == nil {
		t.Error("a question that contradicts itself was answered")
	}
}

// TestWhatIsOwedToAPeerThatIsGoneEndsTheConnection: it does not wait for room, and the
// error, which the socket tells once, is not lost.
func TestWhatIsOwedToAPeerThatIsGoneEndsTheConnection(t *testing.T) {
	requireRekey(t)
	gone := func(peer *kept) {
		t.Helper()
		if err := errors.Join(peer.tcp.SetLinger(0), peer.tcp.Close()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // the reset is under way
	}
	t.Run("plain", func(t *testing.T) {
		peer, k := newKeepers(t, suite13)
		p := newPlain(t, k, nil)
		sendRequest(t, peer)
		if answer, err := p.ask(blob.Question{Met: true}); err != nil || !answer.Owed {
			t.Fatal(answer, err)
		}
		gone(peer)
		if answer, err := p.ask(blob.Question{Quiet: true}); answer.Verdict != blob.Ended || !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("%+v, %v; want the end by a reset", answer, err)
		}
	})
	t.Run("plain, in the middle of reading", func(t *testing.T) {
		peer, k := newKeepers(t, suite13)
		p := newPlain(t, k, nil)
		sendRequest(t, peer)
		if answer, err := p.ask(blob.Question{Met: true}); err != nil || !answer.Owed {
			t.Fatal(answer, err)
		}
		gone(peer)
		if answer, err := p.ask(blob.Question{Met: true, Quiet: true}); err != nil || answer != (blob.Answer{}) {
			t.Errorf("%+v, %v; want to go on", answer, err)
		}
		p.tcp.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := p.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d bytes, %v; want the end", n, err)
		}
	})
	t.Run("Conn", func(t *testing.T) {
		peer, k := newKeepers(t, suite13)
		c, _ := newAttended(t, k)
		sendRequest(t, peer)
		mustWrite(t, peer.conn, "x")
		mustRead(t, c, "x")
		gone(peer)
		written := make(chan error, 1)
		go func() {
			_, err := c.Write([]byte("x"))
			written <- err
		}()
		select {
		case err := <-written:
			if !errors.Is(err, ktls.ErrRekey) {
				t.Errorf("%v, want ErrRekey", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Write waits for a peer that is gone")
		}
	})
}

// sendRequest sends a KeyUpdate that asks for one, and waits until it is there.
func sendRequest(t testing.TB, peer *kept) {
	t.Helper()
	if err := peer.conn.UpdateKey(true); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
}

// fillUp writes until the peer, which reads nothing, has made no more room for a while, and
// returns how many bytes that were.
func fillUp(t testing.TB, c net.Conn) (written int) {
	t.Helper()
	block := make([]byte, 64<<10)
	for range 1000 {
		c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := c.Write(block)
		if written += n; n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			return written
		}
	}
	t.Fatalf("there is room for %d bytes, and more", written)
	return 0
}

// TestWhatIsOwedWaitsForRoom: neither is the answerer blocked by a peer that does not
// read, nor does a record go under the old key once the KeyUpdate is out.
func TestWhatIsOwedWaitsForRoom(t *testing.T) {
	requireRekey(t)
	peer, k := newKeepers(t, suite13)
	p := newPlain(t, k, nil)
	p.written += uint64(fillUp(t, p.tcp))
	p.tcp.SetWriteDeadline(time.Time{})
	if answer, err := p.ask(blob.Question{Quiet: true, Update: true}); err != nil || !answer.Owed {
		t.Fatalf("with no room: %+v, %v", answer, err)
	}
	if err := peer.conn.UpdateKey(true); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, peer.conn, "x")
	mustRead(t, p, "x")
	if !p.answers[len(p.answers)-1].Owed {
		t.Error("nothing is owed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var notQuiet *ktls.NotQuietError
	if _, err := p.attendant.Regain(ctx, p.tcp, ktls.Account{Read: p.read, Written: p.written}); !errors.As(err, &notQuiet) {
		t.Errorf("given back: %v", err)
	}
	written := p.written
	peer.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.CopyN(io.Discard, struct{ io.Reader }{peer.conn}, int64(written)); err != nil {
		t.Fatal(err)
	}
	if answer, err := p.ask(blob.Question{Quiet: true}); err != nil || answer.Owed {
		t.Fatalf("with room: %+v, %v", answer, err)
	}
	mustWrite(t, p, "under the new key")
	mustRead(t, peer.conn, "under the new key")
	if read, write := p.attendant.Epochs(); read != 1 || write != 1 {
		t.Errorf("epochs %d and %d, want 1 and 1", read, write)
	}
}

// TestAPlainReaderIsNotDrownedInKeyUpdates: a thousand in a row are followed, and a
// storm is cut off.
func TestAPlainReaderIsNotDrownedInKeyUpdates(t *testing.T) {
	requireRekey(t)
	peer, k := newKeepers(t, suite13)
	p := newPlain(t, k, nil)
	p.tcp.SetReadDeadline(time.Now().Add(20 * time.Second))
	update := func(n int) {
		t.Helper()
		for range n {
			if err := peer.conn.UpdateKey(false); err != nil {
				t.Fatal(err)
			}
		}
	}
	update(1024)
	mustWrite(t, peer.conn, "data")
	mustRead(t, p, "data")
	update(1025)
	if _, err := p.Read(make([]byte, 1)); !errors.Is(err, ktls.ErrProtocol) {
		t.Errorf("%v, want ErrProtocol", err)
	}
	peer.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	var alert *ktls.AlertError
	if _, err := peer.conn.Read(make([]byte, 1)); !errors.As(err, &alert) || alert.Description != 10 {
		t.Errorf("the peer read %v, want alert 10", err)
	}
}

// TestKeyUpdatesWithDataInBetweenAreNoStorm: though the data is read past the attendant.
func TestKeyUpdatesWithDataInBetweenAreNoStorm(t *testing.T) {
	requireRekey(t)
	peer, k := newKeepers(t, suite13)
	p := newPlain(t, k, nil)
	p.tcp.SetReadDeadline(time.Now().Add(20 * time.Second))
	answer := blob.Answer{}
	// A question that is not quiet leaves the answers to the peer owed.
	round := func(requests int) (err error) {
		t.Helper()
		for range requests {
			if err := peer.conn.UpdateKey(true); err != nil {
				t.Fatal(err)
			}
		}
		mustWrite(t, peer.conn, "data")
		for {
			n, err := p.tcp.Read(make([]byte, 4))
			if err == nil && n == 4 {
				return nil
			}
			if !errors.Is(err, syscall.EIO) {
				return err
			}
			if answer, err = p.ask(blob.Question{Met: true}); err != nil {
				return err
			}
		}
	}
	for range 3 {
		if err := round(20); err != nil {
			t.Fatal(err)
		}
	}
	if !answer.Owed {
		t.Error("nothing is owed")
	}
	if err := round(33); !errors.Is(err, ktls.ErrProtocol) {
		t.Errorf("%v, want ErrProtocol", err)
	}
}
