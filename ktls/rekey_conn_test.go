// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// keepingConns returns both ends of a connection with their custody. It skips where the
// kernel cannot change keys.
func keepingConns(t *testing.T) (a, b *Conn) {
	t.Helper()
	fromClient, fromServer := make([]byte, 32), make([]byte, 32)
	rand.Read(fromClient)
	rand.Read(fromServer)
	return keepingConnsOf(t, fromClient, fromServer)
}

// keepingConnsOf is keepingConns with traffic secrets; a is the client.
func keepingConnsOf(t *testing.T, fromClient, fromServer []byte) (a, b *Conn) {
	t.Helper()
	err := tryRekey(optTX)
	lacks := errors.Is(err, ErrNotSupported) && os.Getenv("OFFLOADD_KERNEL_SERIES") != "7" // that one must
	if lacks || errors.Is(err, ErrNoTLS) && os.Getenv("OFFLOADD_VM_KERNEL") == "" {
		t.Skip(err)
	}
	ta, tb, err := loopback()
	if err != nil {
		t.Fatal(err)
	}
	state := func(role blob.Role, d blob.Direction, secret []byte, cookie uint64) *blob.State {
		s, err := blob.NewState13(probeSuite13, role, d, blob.NewSecret(bytes.Clone(secret)))
		if err != nil {
			t.Fatal(err)
		}
		s.Cookie = cookie
		return s
	}
	var conns []*Conn
	for _, end := range []struct {
		role        blob.Role
		read, write []byte
	}{{blob.Client, fromServer, fromClient}, {blob.Server, fromClient, fromServer}} {
		tcp := ta
		if end.role == blob.Server {
			tcp = tb
		}
		n, err := Cookie(tcp)
		if err != nil {
			t.Fatal(err)
		}
		custody, _, err := InstallKeeping(tcp, state(end.role, blob.Read, end.read, n), state(end.role, blob.Write, end.write, n))
		if err != nil {
			t.Fatal(err)
		}
		c, err := NewConnKeeping(tcp, custody)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			c.SetWriteDeadline(time.Now())
			c.Close()
		})
		conns = append(conns, c)
	}
	return conns[0], conns[1]
}

// TestTheRecordLimitChangesTheKey: by itself, however the data comes, and no key writes
// more records than it may.
func TestTheRecordLimitChangesTheKey(t *testing.T) {
	const limit = 40
	data := bytes.Repeat([]byte("0123456789abcdef"), 256<<10)
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for how, source := range map[string]func(t *testing.T) io.Reader{
		"Write": func(*testing.T) io.Reader { return struct{ io.Reader }{bytes.NewReader(data)} },
		"sendfile": func(t *testing.T) io.Reader {
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return f
		},
		"splice": func(t *testing.T) io.Reader {
			a, b, err := loopback()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { a.Close() })
			go func() {
				b.Write(data)
				b.Close()
			}()
			return a
		},
	} {
		t.Run(how, func(t *testing.T) {
			a, b := keepingConns(t)
			a.out.counter.limit = limit
			sent := make(chan error, 1)
			go func() {
				n, err := io.Copy(a, source(t))
				if n != int64(len(data)) {
					err = errors.Join(err, io.ErrShortWrite)
				}
				sent <- errors.Join(err, a.CloseWrite())
			}()
			got, err := io.ReadAll(struct{ io.Reader }{b})
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes arrived, %v", len(got), err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			least := uint32(len(data) / maxRecordContent / limit)
			if epoch := a.custody.writeEpoch; epoch < least || epoch != b.custody.readEpoch {
				t.Errorf("epochs %d and %d, want %d at least", epoch, b.custody.readEpoch, least)
			}
			records := -a.custody.sent.seq // of all keys but this
			if average := records / uint64(a.custody.writeEpoch); average > limit+1 {
				t.Errorf("%d records for each key", average)
			}
		})
	}
}

// TestAKeyThatWasNotSetEndsTheConnection: nothing more leaves the socket, no secret is
// left, and both ends know.
func TestAKeyThatWasNotSetEndsTheConnection(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, c *Custody){
		"a secret destroyed": func(_ *testing.T, c *Custody) {
			c.nextWrite.Destroy()
			c.nextRead.Destroy()
		},
		"the last epoch": func(_ *testing.T, c *Custody) { c.writeEpoch, c.readEpoch = 1<<32-1, 1<<32-1 },
		"another suite": func(_ *testing.T, c *Custody) { // the kernel's EINVAL
			c.suite = blob.TLS_CHACHA20_POLY1305_SHA256
		},
	} {
		t.Run("write, "+name, func(t *testing.T) {
			a, b := keepingConns(t)
			spoil(t, a.custody)
			if err := a.UpdateKey(false); !errors.Is(err, ErrRekey) {
				t.Errorf("UpdateKey: %v", err)
			}
			if n, err := a.Write([]byte("x")); n != 0 || !errors.Is(err, ErrRekey) {
				t.Errorf("Write: %d, %v", n, err)
			}
			if n, err := b.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("the peer read %d, %v", n, err)
			}
		})
		t.Run("read, "+name, func(t *testing.T) {
			a, b := keepingConns(t)
			spoil(t, a.custody)
			if err := b.UpdateKey(false); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Write([]byte("data")); err != nil {
				t.Fatal(err)
			}
			if n, err := a.Read(make([]byte, 10)); n != 0 || !errors.Is(err, ErrRekey) {
				t.Errorf("Read: %d, %v", n, err)
			}
			if n, err := a.Write([]byte("x")); n != 0 || !errors.Is(err, ErrRekey) {
				t.Errorf("Write: %d, %v", n, err)
			}
			var alert *AlertError
			if _, err := b.Read(make([]byte, 1)); !errors.As(err, &alert) || alert.Description != alertInternalError {
				t.Errorf("the peer read %v", err)
			}
			awaitShutdown(t, b)
		})
	}
}

// awaitShutdown waits until the other end of c was shut down.
func awaitShutdown(t *testing.T, c *Conn) {
	t.Helper()
	var state tcpStateCode
	for range 500 {
		err := control(c.tcp, func(fd int) (err error) {
			state, err = tcpState(fd)
			return err
		})
		if err != nil || state == stateCloseWait {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("the connection is in state %v", state)
}

// TestTheCountGoesOnWhereTheKeyIs: whoever wrote with it before.
func TestTheCountGoesOnWhereTheKeyIs(t *testing.T) {
	a, b := keepingConns(t)
	for range 3 {
		if err := carry(a, b); err != nil {
			t.Fatal(err)
		}
	}
	again, err := NewConnKeeping(a.tcp, a.custody)
	if err != nil {
		t.Fatal(err)
	}
	if again.out.counter.used != 3 {
		t.Errorf("%d records counted of 3", again.out.counter.used)
	}
}

// TestANewKeyIsReadBack, and is another one than before.
func TestANewKeyIsReadBack(t *testing.T) {
	lie := func(at int) func(fd, option, size int) ([]byte, error) {
		return func(fd, option, size int) ([]byte, error) {
			b, err := readKey(fd, option, size)
			b[at] ^= 1
			return b, err
		}
	}
	l := layouts[probeSuite13.AEAD()]
	for field, s := range map[string]span{"key": l.key, "iv": l.iv, "salt": l.salt, "rec_seq": l.seq, "version": infoVersion} {
		a, _ := keepingConns(t)
		err := control(a.tcp, func(fd int) error { return a.custody.advance(fd, optTX, lie(s.at+s.size-1), nil) })
		if !errors.Is(err, ErrMismatch) {
			t.Errorf("%s: %v", field, err)
		}
		if a.custody.nextWrite.Len() != 0 {
			t.Errorf("%s: a secret is left", field)
		}
	}
	fromClient, fromServer := make([]byte, 32), make([]byte, 32)
	rand.Read(fromClient)
	rand.Read(fromServer)
	a, _ := keepingConnsOf(t, fromClient, fromServer)
	secret := blob.NewSecret(fromClient) // of the key that is there
	a.custody.nextWrite = secret
	if err := control(a.tcp, func(fd int) error { return a.custody.advance(fd, optTX, readKey, nil) }); !errors.Is(err, blob.ErrState) {
		t.Errorf("the same key again: %v", err)
	}
	if !bytes.Equal(secret.Bytes(), make([]byte, 32)) {
		t.Error("the secret is left")
	}
}

// TestOldSecretsAreDestroyed: by the change of keys, and by Close.
func TestOldSecretsAreDestroyed(t *testing.T) {
	a, b := keepingConns(t)
	gone := func(when string, secrets ...blob.Secret) {
		t.Helper()
		for _, s := range secrets {
			if !bytes.Equal(s.Bytes(), make([]byte, 32)) {
				t.Errorf("%s: a secret is left", when)
			}
		}
	}
	old := []blob.Secret{a.custody.nextWrite, b.custody.nextRead}
	if err := a.UpdateKey(false); err != nil {
		t.Fatal(err)
	}
	if err := carry(a, b); err != nil {
		t.Fatal(err)
	}
	gone("KeyUpdate", old...)
	old = []blob.Secret{a.custody.nextWrite, a.custody.nextRead}
	if bytes.Equal(old[0].Bytes(), make([]byte, 32)) {
		t.Error("no next secret")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	gone("Close", old...)
}

// TestTheAnswerGoesBeforeTheNextRecord, also if a Write was waiting for room when the
// peer asked.
func TestTheAnswerGoesBeforeTheNextRecord(t *testing.T) {
	a, b := keepingConns(t)
	if err := errors.Join(a.tcp.SetWriteBuffer(16<<10), b.tcp.SetReadBuffer(16<<10)); err != nil {
		t.Fatal(err)
	}
	accepted := 0
	for m := 1; m > 0; accepted += m {
		a.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		var err error
		if m, err = a.Write(make([]byte, 1<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("the queue did not fill: %d, %v", m, err)
		}
	}
	a.SetWriteDeadline(time.Time{})
	written := make(chan error, 1)
	go func() {
		_, err := a.Write(make([]byte, 64<<10))
		written <- err
	}()
	time.Sleep(50 * time.Millisecond) // it waits now
	if err := b.UpdateKey(true); err != nil {
		t.Fatal(err)
	}
	if err := carry(b, a); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(b, make([]byte, accepted)); err != nil || b.custody.readEpoch != 0 {
		t.Fatalf("epoch %d after what was accepted before, %v", b.custody.readEpoch, err)
	}
	if _, err := io.ReadFull(b, make([]byte, 1)); err != nil || b.custody.readEpoch != 1 {
		t.Errorf("epoch %d of the next byte, %v", b.custody.readEpoch, err)
	}
	if _, err := io.ReadFull(b, make([]byte, 64<<10-1)); err != nil {
		t.Error(err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}
