// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// attended is a socket that comes with somebody to ask.
type attended struct {
	*net.TCPConn
	attendant *ktls.Attendant
	mu        sync.Mutex
	questions int
}

func (a *attended) NetConn() net.Conn { return a.TCPConn }

func (a *attended) TLSAsk(q blob.Question) (blob.Answer, error) {
	if !a.mu.TryLock() {
		return blob.Answer{}, errors.New("two questions at a time")
	}
	defer a.mu.Unlock()
	a.questions++
	answer, _ := a.attendant.Answer(a.TCPConn, q)
	return answer, nil
}

func newAttended(t testing.TB, k *kept) (*ktls.Conn, *attended) {
	t.Helper()
	a := &attended{TCPConn: k.tcp, attendant: newPlain(t, k, nil).attendant}
	c, err := ktls.NewConn(a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.SetWriteDeadline(time.Now())
		c.Close()
	})
	return c, a
}

// TestAConnAsksWhoHasItsCustody: under load both ways, with KeyUpdates of both ends.
func TestAConnAsksWhoHasItsCustody(t *testing.T) {
	requireRekey(t)
	const pieces, size = 40, 100_000
	peer, k := newKeepers(t, suite13)
	c, a := newAttended(t, k)
	var wg sync.WaitGroup
	for _, d := range [][2]*ktls.Conn{{peer.conn, c}, {c, peer.conn}} {
		var sent, got bytes.Buffer
		var both sync.WaitGroup
		both.Add(2)
		wg.Go(func() {
			defer both.Done()
			if err := updateEvery(d[0], size, pieces, &sent); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			defer both.Done()
			if _, err := io.Copy(&got, struct{ io.Reader }{d[1]}); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			both.Wait()
			if !bytes.Equal(sent.Bytes(), got.Bytes()) {
				t.Errorf("%d bytes arrived of %d, or others", got.Len(), sent.Len())
			}
		})
	}
	wg.Wait()
	if read, write := a.attendant.Epochs(); read < pieces || write < pieces {
		t.Errorf("epochs %d and %d", read, write)
	}
}

// TestAConnHasAnswersSentForIt: before its next record; and what must go first waits for
// the peer to make room.
func TestAConnHasAnswersSentForIt(t *testing.T) {
	requireRekey(t)
	peer, k := newKeepers(t, suite13)
	c, a := newAttended(t, k)
	if err := peer.conn.UpdateKey(true); err != nil {
		t.Fatal(err)
	}
	exchange(t, peer.conn, c)
	if _, write := a.attendant.Epochs(); write != 0 {
		t.Error("the answer went without data behind it")
	}
	exchange(t, c, peer.conn)
	if _, write := a.attendant.Epochs(); write != 1 {
		t.Errorf("write epoch %d, want 1", write)
	}
	written := fillUp(t, c)
	if err := c.UpdateKey(false); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("with no room: %v", err)
	}
	c.SetWriteDeadline(time.Now().Add(20 * time.Second))
	updated := make(chan error, 1)
	go func() { updated <- c.UpdateKey(false) }()
	select {
	case err := <-updated:
		t.Fatalf("it does not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	peer.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.CopyN(io.Discard, struct{ io.Reader }{peer.conn}, int64(written)); err != nil {
		t.Fatal(err)
	}
	if err := <-updated; err != nil {
		t.Error(err)
	}
	exchange(t, c, peer.conn)
	if _, write := a.attendant.Epochs(); write != 2 {
		t.Errorf("write epoch %d, want 2", write)
	}
}

// TestAConnWhoseKeysCannotChangeSaysSo: on an older kernel; and where nobody answers.
func TestAConnWhoseKeysCannotChangeSaysSo(t *testing.T) {
	ktlstest.Require(t)
	if ktlstest.CanRekey() {
		t.Skip("the kernel changes keys")
	}
	pair := ktlstest.NewPair(t)
	client, server := ktlstest.NewStates(t, suite13, pair)
	if _, err := ktls.Install(pair.Server, server.Read, server.Write); err != nil {
		t.Fatal(err)
	}
	custody, _, err := ktls.InstallKeeping(pair.Client, client.Read, client.Write)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := newAttended(t, &kept{pair.Client, nil, custody})
	if err := c.UpdateKey(false); !errors.Is(err, ktls.ErrNoUpdate) {
		t.Errorf("%v, want ErrNoUpdate", err)
	}
	exchange(t, c, pair.Server)
	sendRecord(t, pair.Server, 22, keyUpdate)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ktls.ErrKeyUpdate) {
		t.Errorf("%v, want ErrKeyUpdate", err)
	}
	if kind, content, err := receiveRecord(t, pair.Server); kind != 21 || !bytes.Equal(content, []byte{2, 80}) {
		t.Errorf("the peer got type %d, %v, %v", kind, content, err)
	}
}
