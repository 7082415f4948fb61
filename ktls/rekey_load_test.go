// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// updateEvery writes, and updates the key before each piece of so many bytes. Every
// fourth time it asks the peer for the same.
func updateEvery(c *ktls.Conn, size int, pieces int, sum io.Writer) error {
	block := randomBytes(size)
	for i := range pieces {
		block[i%size]++
		sum.Write(block)
		if err := c.UpdateKey(i%4 == 3); err != nil {
			return fmt.Errorf("piece %d: %w", i, err)
		}
		if _, err := c.Write(block); err != nil {
			return fmt.Errorf("piece %d: %w", i, err)
		}
	}
	return c.CloseWrite()
}

// volume is how many MiB a transfer has: more, if the environment says so ("make
// test-long").
func volume(t testing.TB, usual int) int {
	text := os.Getenv("OFFLOADD_TEST_VOLUME")
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestKeysChangeUnderLoad: both ends at once, no byte is lost, and none comes twice.
func TestKeysChangeUnderLoad(t *testing.T) {
	requireRekey(t)
	pieces := volume(t, 64)
	a, b := newKeepers(t, suite13)
	var wg sync.WaitGroup
	for _, d := range [][2]*kept{{a, b}, {b, a}} {
		sent, got := sha256.New(), sha256.New()
		var left sync.WaitGroup
		left.Add(2)
		wg.Go(func() {
			defer left.Done()
			if err := updateEvery(d[0].conn, 1<<20, pieces, sent); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			defer left.Done()
			if n, err := io.Copy(got, struct{ io.Reader }{d[1].conn}); n != int64(pieces)<<20 || err != nil {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
		wg.Go(func() {
			left.Wait()
			if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
				t.Error("other bytes arrived")
			}
		})
	}
	wg.Wait()
}

// TestKeysChangeWithinOneCopy: a sendfile or a splice goes on while the receiver asks
// for another key every now and then.
func TestKeysChangeWithinOneCopy(t *testing.T) {
	requireRekey(t)
	data := randomBytes(8 << 20)
	for name, send := range map[string]func(t *testing.T, c *ktls.Conn) (int64, error){
		"Write":    func(t *testing.T, c *ktls.Conn) (int64, error) { n, err := c.Write(data); return int64(n), err },
		"sendfile": func(t *testing.T, c *ktls.Conn) (int64, error) { return io.Copy(c, writeFile(t, data)) },
		"splice": func(t *testing.T, c *ktls.Conn) (int64, error) {
			p := ktlstest.NewPair(t)
			go func() {
				p.Client.Write(data)
				p.Client.Close()
			}()
			return io.Copy(c, p.Server)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newKeepers(t, suite13)
			// Small buffers, so that a sender is not far ahead of the requests.
			if err := errors.Join(a.tcp.SetWriteBuffer(128<<10), b.tcp.SetReadBuffer(128<<10)); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				if n, err := send(t, a.conn); n != int64(len(data)) || err != nil {
					t.Errorf("%d bytes sent, %v", n, err)
				}
				if err := a.conn.CloseWrite(); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() { // requests are seen by reading
				if n, err := a.conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Errorf("%d bytes, %v", n, err)
				}
			})
			got := make([]byte, len(data))
			for part := range slices.Chunk(got, 300_000) {
				if _, err := io.ReadFull(b.conn, part); err != nil {
					t.Fatal(err)
				}
				if err := b.conn.UpdateKey(true); err != nil {
					t.Fatal(err)
				}
			}
			if n, err := b.conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("%d bytes more, %v", n, err)
			}
			b.conn.CloseWrite()
			wg.Wait()
			if !bytes.Equal(got, data) {
				t.Error("other bytes arrived")
			}
			if n := writeEpoch(t, a); n < 3 {
				t.Errorf("the sender changed its key %d times", n)
			}
		})
	}
}

// writeEpoch is what custody tells of itself.
func writeEpoch(t testing.TB, k *kept) (n int) {
	t.Helper()
	text := k.custody.String()
	n, err := strconv.Atoi(text[strings.LastIndexByte(text, ' ')+1:])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSpliceOutGoesOnOverKeyUpdates(t *testing.T) {
	requireRekey(t)
	a, b := newKeepers(t, suite13)
	data := randomBytes(4 << 20)
	p := ktlstest.NewPair(t)
	got := readAsync(p.Client)
	spliced := make(chan error, 1)
	go func() {
		n, err := io.Copy(p.Server, b.conn)
		if n != int64(len(data)) {
			err = fmt.Errorf("%d bytes, %w", n, err)
		}
		p.Server.Close()
		spliced <- err
	}()
	for part := range slices.Chunk(data, 100_000) {
		if _, err := a.conn.Write(part); err != nil {
			t.Fatal(err)
		}
		if err := a.conn.UpdateKey(true); err != nil {
			t.Fatal(err)
		}
	}
	a.conn.CloseWrite()
	if err := <-spliced; err != nil {
		t.Error(err)
	}
	if out, err := got(); err != nil || !bytes.Equal(out, data) {
		t.Errorf("%d bytes came out, %v", len(out), err)
	}
	exchange(t, b.conn, a.conn)
}

// TestDeadlinesAndKeyUpdates: a KeyUpdate for which there is no room in time changes
// nothing, and a reader meanwhile follows those of the peer.
func TestDeadlinesAndKeyUpdates(t *testing.T) {
	requireRekey(t)
	a, b := newKeepers(t, suite13)
	a.conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	data := randomBytes(16 << 20)
	n, err := a.conn.Write(data)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(n, err)
	}
	if err := a.conn.UpdateKey(true); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a KeyUpdate of which the deadline is over: %v", err)
	}
	if err := b.conn.UpdateKey(true); err != nil {
		t.Fatal(err)
	}
	exchange(t, b.conn, a.conn)
	a.conn.SetWriteDeadline(time.Time{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if m, err := a.conn.Write(data[n:]); m != len(data)-n || err != nil {
			t.Errorf("the rest: %d, %v", m, err)
		}
	})
	got := make([]byte, len(data))
	if _, err := io.ReadFull(b.conn, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("what arrived is not what was written: %v", err)
	}
	wg.Wait()
	checkEpochs(t, a, 1, 1)
	checkEpochs(t, b, 1, 1)
}

// TestCloseWithinKeyUpdates: whatever is under way, Close ends it, and the peer reads
// all that was written, and close_notify.
func TestCloseWithinKeyUpdates(t *testing.T) {
	requireRekey(t)
	for range 10 {
		a, b := newKeepers(t, suite13)
		got := readAsync(b.conn)
		written := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				n, err := a.conn.Write(make([]byte, 1000))
				written += n
				if err == nil {
					err = a.conn.UpdateKey(false)
				}
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		}()
		time.Sleep(20 * time.Millisecond)
		if err := a.conn.Close(); err != nil {
			t.Error(err)
		}
		<-done
		if data, err := got(); len(data) != written || err != nil {
			t.Errorf("%d bytes of %d arrived, %v", len(data), written, err)
		}
		if err := a.conn.UpdateKey(false); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

// TestCloseReadsOverKeyUpdates: unread data behind one would turn the close into a
// reset, which takes what was written last with it.
func TestCloseReadsOverKeyUpdates(t *testing.T) {
	requireRekey(t)
	a, b := newKeepers(t, suite13)
	for range 3 {
		mustWrite(t, b.conn, "nobody reads this")
		if err := b.conn.UpdateKey(false); err != nil {
			t.Fatal(err)
		}
	}
	mustWrite(t, b.conn, "nor this")
	mustWrite(t, a.conn, "the last words")
	if err := a.conn.Close(); err != nil {
		t.Fatal(err)
	}
	waitState(t, b.tcp, tcpCloseWait) // and not reset
	if got, err := readAsync(b.conn)(); string(got) != "the last words" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// TestWithoutCustodyOrKernelKeysStay: a KeyUpdate of the peer is the end, and what came
// before it is read.
func TestWithoutCustodyOrKernelKeysStay(t *testing.T) {
	ktlstest.Require(t)
	for _, c := range []struct {
		name  string
		suite blob.CipherSuite
		conn  func(a *kept) *ktls.Conn
		stay  bool
		want  error
		alert byte
	}{
		{"NewConn", suite13, func(a *kept) *ktls.Conn { return newConn(t, a.tcp) }, true, ktls.ErrKeyUpdate, 80},
		{"custody", suite13, func(a *kept) *ktls.Conn { return a.conn }, !ktlstest.CanRekey(), ktls.ErrKeyUpdate, 80},
		{"custody in TLS 1.2", suite12, func(a *kept) *ktls.Conn { return a.conn }, true, ktls.ErrProtocol, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := newKeepers(t, c.suite)
			conn := c.conn(a)
			exchange(t, conn, b.conn)
			if err := conn.UpdateKey(true); errors.Is(err, ktls.ErrNoUpdate) != c.stay {
				t.Errorf("UpdateKey: %v", err)
			}
			exchange(t, conn, b.conn)
			if !c.stay {
				return
			}
			mustWrite(t, b.conn, "before")
			sendRecord(t, b.tcp, 22, keyUpdate)
			mustRead(t, conn, "before")
			checkEndsWith(t, b, &kept{conn: conn}, c.want, c.alert)
			b.tcp.Close() // a close_notify would go under the key that was ended
		})
	}
}

func TestAnotherCustodyIsRefused(t *testing.T) {
	ktlstest.Require(t)
	a, b := newKeepers(t, suite13)
	if _, err := ktls.NewConnKeeping(a.tcp, b.custody); !errors.Is(err, blob.ErrCookie) {
		t.Error(err)
	}
	if _, err := ktls.NewConnKeeping(a.tcp, nil); !errors.Is(err, blob.ErrState) {
		t.Error(err)
	}
	if _, _, err := a.conn.Export(t.Context(), b.custody); !errors.Is(err, blob.ErrState) {
		t.Error(err)
	}
}
