// SPDX-License-Identifier: Apache-2.0

package userspace_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/userspace"
)

// relayed returns the plain end of a connection, its peer, and what Relay returns.
func relayed(t *testing.T, p *pair) (*net.UnixConn, *peer, <-chan error) {
	t.Helper()
	conn, theirs := newConn(t, p.Client, p.client), &peer{Conn: p.Server, read: p.server.Read, write: p.server.Write}
	ours, file, err := userspace.PlainPair()
	if err != nil {
		t.Fatal(err)
	}
	plain, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	done, over := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(over)
		done <- userspace.Relay(conn, ours)
	}()
	plain.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() {
		plain.Close()
		theirs.Close()
		select {
		case <-over:
		case <-time.After(10 * time.Second):
			t.Error("Relay does not end")
		}
	})
	return plain.(*net.UnixConn), theirs, done
}

// ended expects Relay to end.
func ended(t *testing.T, done <-chan error, want error) {
	t.Helper()
	select {
	case err := <-done:
		if !errors.Is(err, want) {
			t.Errorf("Relay: %v, want %v", err, want)
		}
	case <-time.After(10 * time.Second):
		t.Error("Relay does not end")
	}
}

// received expects data at the peer.
func received(t *testing.T, theirs *peer, want string) {
	t.Helper()
	if got := theirs.receiveData(t, len(want)); string(got) != want {
		t.Errorf("the peer got %q, want %q", got, want)
	}
}

func expectCloseNotify(t *testing.T, theirs *peer) {
	t.Helper()
	if kind, content, err := theirs.receive(); kind != 21 || !bytes.Equal(content, []byte{1, 0}) || err != nil {
		t.Errorf("type %d, %x, %v, want close_notify", kind, content, err)
	}
}

// TestARelayCarriesEveryByte: both ways at once, in pieces of all sizes, across
// KeyUpdates, up to close_notify of both.
func TestARelayCarriesEveryByte(t *testing.T) {
	for _, suite := range aeadSuites {
		client, server := newConns(t, suite)
		ours, file, err := userspace.PlainPair()
		if err != nil {
			t.Fatal(err)
		}
		plain, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- userspace.Relay(server, ours) }()
		sent := pattern(1 << 20)
		for _, d := range []struct {
			w      io.Writer
			end    func() error
			update func(bool) error
		}{
			{client, client.CloseWrite, client.UpdateKey},
			{plain, plain.(*net.UnixConn).CloseWrite, server.UpdateKey},
		} {
			go func() {
				for rest, n, i := sent, 1, 0; len(rest) > 0; n, i = n*7%70001+1, i+1 {
					n = min(n, len(rest))
					if suite.Version() == blob.TLS13 && i%5 == 4 {
						d.update(i%2 == 0)
					}
					if _, err := d.w.Write(rest[:n]); err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
				d.end()
			}()
		}
		back := make(chan []byte, 1)
		go func() {
			b, err := io.ReadAll(client)
			if err != nil {
				t.Error(err)
			}
			back <- b
		}()
		if got, err := io.ReadAll(plain); !bytes.Equal(got, sent) || err != nil {
			t.Errorf("%v: %d bytes of %d arrived, or others, %v", suite, len(got), len(sent), err)
		}
		if got := <-back; !bytes.Equal(got, sent) {
			t.Errorf("%v: %d bytes of %d came back, or others", suite, len(got), len(sent))
		}
		ended(t, done, nil)
		plain.Close()
	}
}

// TestOnlyCloseNotifyIsAnEndOfFile: whatever else ends the connection resets the stream,
// behind the data that came before.
func TestOnlyCloseNotifyIsAnEndOfFile(t *testing.T) {
	for _, c := range []struct {
		name  string
		end   func(t *testing.T, p *peer)
		reset bool
		want  error
	}{
		{"close_notify", func(t *testing.T, p *peer) { p.send(t, 21, []byte{1, 0}) }, false, nil},
		{"a FIN", func(t *testing.T, p *peer) { p.Conn.(*net.TCPConn).CloseWrite() }, true, io.ErrUnexpectedEOF},
		{"a FIN within a record", func(t *testing.T, p *peer) {
			p.Write(p.seal(23, []byte("lost"))[:9])
			p.Conn.(*net.TCPConn).CloseWrite()
		}, true, io.ErrUnexpectedEOF},
		{"a forged record", func(t *testing.T, p *peer) { p.Write(append([]byte{23, 3, 3, 0, 30}, make([]byte, 30)...)) }, true, ktls.ErrRecord},
		{"an offence", func(t *testing.T, p *peer) { p.send(t, 22, []byte{1, 0, 0, 1, 0}) }, true, ktls.ErrProtocol},
		{"a reset", func(t *testing.T, p *peer) {
			time.Sleep(50 * time.Millisecond) // TCP drops what was not read before a reset
			p.Conn.(*net.TCPConn).SetLinger(0)
			p.Close()
		}, true, syscall.ECONNRESET},
	} {
		for _, writes := range []string{"", "something"} {
			t.Run(c.name+", the application wrote \""+writes+"\"", func(t *testing.T) {
				plain, theirs, done := relayed(t, newStates(t, suite13))
				plain.Write([]byte(writes))
				received(t, theirs, writes)
				theirs.send(t, 23, []byte("data"))
				c.end(t, theirs)
				got, err := io.ReadAll(plain)
				if string(got) != "data" || errors.Is(err, syscall.ECONNRESET) != c.reset || !c.reset && err != nil {
					t.Errorf("%q, %v", got, err)
				}
				if !c.reset {
					return
				}
				if _, err := plain.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
					t.Errorf("a write after it: %v", err)
				}
				ended(t, done, c.want)
			})
		}
	}
	t.Run("an alert", func(t *testing.T) {
		plain, theirs, done := relayed(t, newStates(t, suite13))
		theirs.send(t, 21, []byte{2, 40})
		if got, err := io.ReadAll(plain); len(got) > 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%q, %v", got, err)
		}
		var alert *ktls.AlertError
		if err := <-done; !errors.As(err, &alert) || alert.Description != 40 {
			t.Errorf("Relay: %v", err)
		}
	})
}

// TestAnApplicationEndsItsDirection: shutdown is close_notify, and the other goes on.
func TestAnApplicationEndsItsDirection(t *testing.T) {
	plain, theirs, done := relayed(t, newStates(t, suite13))
	plain.Write([]byte("request"))
	plain.CloseWrite()
	received(t, theirs, "request")
	expectCloseNotify(t, theirs)
	theirs.send(t, 23, []byte("response"))
	got := make([]byte, 8)
	if _, err := io.ReadFull(plain, got); err != nil || string(got) != "response" {
		t.Errorf("%q, %v", got, err)
	}
	theirs.send(t, 21, []byte{1, 0})
	if n, err := plain.Read(got); n != 0 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
	ended(t, done, nil)
	// The stream is over, and that is no reset.
	if n, err := plain.Read(got); n != 0 || err != io.EOF {
		t.Errorf("again: %d, %v", n, err)
	}
}

// TestAnApplicationThatClosesIsHeard: all that it wrote, and then close_notify and FIN,
// whether it read what had come or not.
func TestAnApplicationThatClosesIsHeard(t *testing.T) {
	for name, unread := range map[string]bool{"all was read": false, "something was not": true} {
		t.Run(name, func(t *testing.T) {
			plain, theirs, done := relayed(t, newStates(t, suite12))
			if unread {
				theirs.send(t, 23, []byte("for nobody"))
				time.Sleep(50 * time.Millisecond)
			}
			sent := pattern(300_000)
			go func() {
				plain.Write(sent)
				plain.Close()
			}()
			if got := theirs.receiveData(t, len(sent)); !bytes.Equal(got, sent) {
				t.Error("other bytes arrived")
			}
			expectCloseNotify(t, theirs)
			if _, _, err := theirs.receive(); err != io.EOF {
				t.Errorf("behind it: %v", err)
			}
			ended(t, done, nil)
		})
	}
	t.Run("something comes afterwards", func(t *testing.T) {
		plain, theirs, done := relayed(t, smallPair(t, suite13))
		sent := pattern(150_000)
		plain.Write(sent)
		plain.Close()
		theirs.send(t, 23, []byte("for nobody"))
		time.Sleep(50 * time.Millisecond)
		if got := theirs.receiveData(t, len(sent)); !bytes.Equal(got, sent) {
			t.Error("other bytes arrived")
		}
		expectCloseNotify(t, theirs)
		ended(t, done, nil)
	})
	t.Run("after its shutdown", func(t *testing.T) {
		plain, theirs, done := relayed(t, newStates(t, suite13))
		plain.CloseWrite()
		expectCloseNotify(t, theirs)
		plain.Close()
		if _, _, err := theirs.receive(); err != io.EOF {
			t.Errorf("behind it: %v", err)
		}
		ended(t, done, nil)
	})
}
