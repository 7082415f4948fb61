// SPDX-License-Identifier: Apache-2.0

package userspace_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/userspace"
)

// tls13Suites are those that know a KeyUpdate.
var tls13Suites = aeadSuites[:3]

// TestKeysChangeUnderLoad: both ends at once, no byte is lost, and none comes twice.
func TestKeysChangeUnderLoad(t *testing.T) {
	const pieces, size = 60, 20_000
	for _, suite := range tls13Suites {
		t.Run(suite.String(), func(t *testing.T) {
			a, b := newConns(t, suite)
			var wg sync.WaitGroup
			for _, d := range [][2]*userspace.Conn{{a, b}, {b, a}} {
				sent, got := sha256.New(), sha256.New()
				done := make(chan struct{})
				wg.Go(func() {
					defer close(done)
					block := randomBytes(size)
					for i := range pieces {
						block[i]++
						sent.Write(block)
						if err := d[0].UpdateKey(i%4 == 3); err != nil {
							t.Error(err)
						}
						if _, err := d[0].Write(block); err != nil {
							t.Error(err)
						}
					}
					d[0].CloseWrite()
				})
				wg.Go(func() {
					n, err := io.Copy(got, struct{ io.Reader }{d[1]})
					<-done
					if n != pieces*size || err != nil || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
						t.Errorf("%d bytes of %d, or others, %v", n, pieces*size, err)
					}
				})
			}
			wg.Wait()
		})
	}
}

// TestAPeerChangesItsKeyBetweenAnyRecords, in one record behind a ticket and in two
// records as well.
func TestAPeerChangesItsKeyBetweenAnyRecords(t *testing.T) {
	for _, suite := range tls13Suites {
		conn, theirs := newPeer(t, suite)
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		for i, change := range []func(){
			func() { theirs.sendUpdate(t, 0) },
			func() { theirs.send(t, 22, append(ticket(9), 24, 0, 0, 1, 0)); update(t, theirs.write) },
			func() {
				theirs.send(t, 22, []byte{24, 0})
				theirs.send(t, 22, []byte{0, 1, 0})
				update(t, theirs.write)
			},
			func() { theirs.sendUpdate(t, 0); theirs.sendUpdate(t, 0) },
		} {
			theirs.send(t, 23, []byte("old "))
			change()
			theirs.send(t, 23, []byte("new"))
			got := make([]byte, 7)
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != "old new" {
				t.Fatalf("%v, change %d: %q, %v", suite, i, got, err)
			}
		}
	}
}

// TestARequestIsAnsweredOnceBeforeTheNextData, however often it came.
func TestARequestIsAnsweredOnceBeforeTheNextData(t *testing.T) {
	conn, theirs := newPeer(t, suite13)
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	for range 3 {
		for range 10 {
			theirs.sendUpdate(t, 1)
		}
		theirs.send(t, 23, []byte("x"))
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("one"))
		conn.Write([]byte("two"))
		kind, content, err := theirs.receive()
		if kind != 22 || !bytes.Equal(content, []byte{24, 0, 0, 1, 0}) || err != nil {
			t.Fatalf("type %d, %x, %v", kind, content, err)
		}
		update(t, theirs.read)
		for _, want := range []string{"one", "two"} {
			if kind, content, err := theirs.receive(); kind != 23 || string(content) != want || err != nil {
				t.Fatalf("type %d, %q, %v, want %q", kind, content, err, want)
			}
		}
	}
}

// TestUpdateKeyAnswersARequest: one KeyUpdate of ours is enough for both.
func TestUpdateKeyAnswersARequest(t *testing.T) {
	conn, theirs := newPeer(t, suite13)
	theirs.sendUpdate(t, 1)
	theirs.send(t, 23, []byte("x"))
	conn.Read(make([]byte, 1))
	if err := conn.UpdateKey(false); err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("data"))
	if kind, content, err := theirs.receive(); kind != 22 || !bytes.Equal(content, []byte{24, 0, 0, 1, 0}) || err != nil {
		t.Fatalf("type %d, %x, %v", kind, content, err)
	}
	update(t, theirs.read)
	if kind, content, err := theirs.receive(); kind != 23 || string(content) != "data" || err != nil {
		t.Errorf("type %d, %q, %v", kind, content, err)
	}
}

// TestStormsOfKeyUpdatesEnd: of a peer that does nothing else.
func TestStormsOfKeyUpdatesEnd(t *testing.T) {
	for name, c := range map[string]struct {
		request byte
		taken   int
	}{"that tell": {0, 1024}, "that ask": {1, 32}} {
		t.Run(name, func(t *testing.T) {
			conn, theirs := newPeer(t, suite13)
			go func() {
				for range c.taken {
					theirs.Write(theirs.seal(22, []byte{24, 0, 0, 1, c.request}))
					theirs.write.Update()
				}
				theirs.Write(theirs.seal(23, []byte("x"))) // it may go on so
				for range c.taken + 1 {
					theirs.Write(theirs.seal(22, []byte{24, 0, 0, 1, c.request}))
					theirs.write.Update()
				}
			}()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			p := make([]byte, 10)
			if n, err := conn.Read(p); n != 1 || err != nil {
				t.Fatalf("after %d: %d, %v", c.taken, n, err)
			}
			if n, err := conn.Read(p); n != 0 || !errors.Is(err, ktls.ErrProtocol) {
				t.Errorf("%d, %v", n, err)
			}
			expectAlert(t, theirs, 10)
		})
	}
}

func TestTLS12HasNoKeyUpdate(t *testing.T) {
	conn, theirs := newPeer(t, suite12)
	if err := conn.UpdateKey(true); !errors.Is(err, ktls.ErrNoUpdate) {
		t.Error(err)
	}
	conn.Write([]byte("goes on"))
	theirs.receiveData(t, 7)
}

// TestADeadlineChangesNoKey: UpdateKey that found no room has changed nothing.
func TestADeadlineChangesNoKey(t *testing.T) {
	p := smallPair(t, suite13)
	conn, theirs := newConn(t, p.Client, p.client), &peer{Conn: p.Server, read: p.server.Read, write: p.server.Write}
	sent := fill(t, conn)
	for _, limit := range []time.Duration{-time.Second, 50 * time.Millisecond} {
		conn.SetWriteDeadline(time.Now().Add(limit))
		if err := conn.UpdateKey(false); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("within %v: %v", limit, err)
		}
	}
	conn.SetWriteDeadline(time.Time{})
	go func() {
		conn.UpdateKey(false)
		conn.Write([]byte("x"))
	}()
	if got := theirs.receiveData(t, len(sent)); !bytes.Equal(got, sent) || theirs.read.Epoch != 0 {
		t.Errorf("epoch %d, or other bytes", theirs.read.Epoch)
	}
	if got := theirs.receiveData(t, 1); string(got) != "x" || theirs.read.Epoch != 1 {
		t.Errorf("%q in epoch %d", got, theirs.read.Epoch)
	}
}

// TestAnAnswerThatFindsNoRoomIsStillOwed.
func TestAnAnswerThatFindsNoRoomIsStillOwed(t *testing.T) {
	p := smallPair(t, suite13)
	conn, theirs := newConn(t, p.Client, p.client), &peer{Conn: p.Server, read: p.server.Read, write: p.server.Write}
	sent := fill(t, conn)
	theirs.sendUpdate(t, 1)
	theirs.send(t, 23, []byte("x"))
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	conn.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := conn.Write([]byte("late")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d, %v", n, err)
	}
	conn.SetWriteDeadline(time.Time{})
	go conn.Write([]byte("more"))
	theirs.receiveData(t, len(sent))
	if got := theirs.receiveData(t, 4); string(got) != "more" || theirs.read.Epoch != 1 {
		t.Errorf("%q in epoch %d", got, theirs.read.Epoch)
	}
}

// TestNoKeyPassesItsLimit: TLS 1.3 changes the key, TLS 1.2 writes no more.
func TestNoKeyPassesItsLimit(t *testing.T) {
	limit := ktls.RecordLimit(blob.AES128GCM)
	at := func(suite blob.CipherSuite) (*userspace.Conn, *peer) {
		t.Helper()
		p := newStates(t, suite)
		p.client.Write.Seq, p.server.Read.Seq = limit-2, limit-2
		return newConn(t, p.Client, p.client), &peer{Conn: p.Server, read: p.server.Read, write: p.server.Write}
	}
	t.Run("TLS 1.3", func(t *testing.T) {
		conn, theirs := at(suite13)
		data := randomBytes(5 * 16384)
		go conn.Write(data)
		if got := theirs.receiveData(t, len(data)); !bytes.Equal(got, data) || theirs.read.Epoch != 1 || theirs.read.Seq != 3 {
			t.Errorf("epoch %d, record %d, or other bytes", theirs.read.Epoch, theirs.read.Seq)
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		conn, theirs := at(suite12)
		n, err := conn.Write(make([]byte, 5*16384))
		if n != 2*16384 || !errors.Is(err, ktls.ErrRecordLimit) {
			t.Errorf("%d, %v", n, err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Errorf("close_notify: %v", err)
		}
		theirs.receiveData(t, n)
		if kind, content, err := theirs.receive(); kind != 21 || !bytes.Equal(content, []byte{1, 0}) || err != nil {
			t.Errorf("type %d, %x, %v", kind, content, err)
		}
	})
}

// TestAKeyThatCannotChangeEndsTheConnection: both connections have used up their epochs.
func TestAKeyThatCannotChangeEndsTheConnection(t *testing.T) {
	last := func() (*userspace.Conn, *peer) {
		p := newStates(t, suite13)
		for _, s := range []*blob.State{p.client.Read, p.client.Write, p.server.Read, p.server.Write} {
			s.Epoch = 1<<32 - 1
		}
		return newConn(t, p.Client, p.client), &peer{Conn: p.Server, read: p.server.Read, write: p.server.Write}
	}
	conn, theirs := last()
	theirs.send(t, 22, []byte{24, 0, 0, 1, 0})
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, ktls.ErrRekey) {
		t.Errorf("read: %v", err)
	}
	expectAlert(t, theirs, 80)
	conn, theirs = last()
	if err := conn.UpdateKey(false); !errors.Is(err, ktls.ErrRekey) {
		t.Errorf("update: %v", err)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, ktls.ErrRekey) {
		t.Errorf("write: %v", err)
	}
	theirs.receive() // the KeyUpdate
	if kind, _, err := theirs.receive(); err != io.EOF {
		t.Errorf("behind it: type %d, %v", kind, err)
	}
}
