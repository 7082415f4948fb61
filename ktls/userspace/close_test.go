// SPDX-License-Identifier: Apache-2.0

package userspace_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/userspace"
)

// fill writes until TCP takes no more, and returns what was accepted.
func fill(t *testing.T, c *userspace.Conn) []byte {
	t.Helper()
	data := pattern(16 << 20)
	at := 0
	for {
		c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := c.Write(data[at:])
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("the queue did not fill: %d, %v", at+n, err)
		}
		if n == 0 {
			break
		}
		at += n
	}
	c.SetWriteDeadline(time.Time{})
	return data[:at]
}

// smallPair is a pair whose peer is slow to make room.
func smallPair(t *testing.T, suite blob.CipherSuite) *pair {
	t.Helper()
	p := newStates(t, suite)
	if err := errors.Join(p.Client.SetWriteBuffer(16<<10), p.Server.SetReadBuffer(16<<10)); err != nil {
		t.Fatal(err)
	}
	return p
}

func smallBuffers(t *testing.T, suite blob.CipherSuite) (client, server *userspace.Conn) {
	t.Helper()
	p := smallPair(t, suite)
	return newConn(t, p.Client, p.client), newConn(t, p.Server, p.server)
}

func TestCloseLosesNothing(t *testing.T) {
	for name, half := range map[string]bool{"at once": false, "after CloseWrite": true} {
		t.Run(name, func(t *testing.T) {
			for _, suite := range []blob.CipherSuite{suite13, suite12} {
				client, server := smallBuffers(t, suite)
				sent := fill(t, client)
				closed := make(chan error, 1)
				go func() {
					if half {
						if err := client.CloseWrite(); err != nil {
							t.Error(err)
						}
					}
					closed <- client.Close()
				}()
				time.Sleep(50 * time.Millisecond)
				got, err := io.ReadAll(server)
				if !bytes.Equal(got, sent) || err != nil {
					t.Errorf("%v: %d of %d accepted bytes arrived, or others, %v", suite, len(got), len(sent), err)
				}
				if err := <-closed; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestCloseDoesNotWaitForADeadPeer(t *testing.T) {
	for _, c := range []struct {
		name  string
		limit time.Duration
		set   bool
	}{
		{"until the write deadline", 400 * time.Millisecond, true},
		{"until a write deadline in the past", -time.Hour, true},
		{"for five seconds", 5 * time.Second, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			client, _ := smallBuffers(t, suite13)
			fill(t, client)
			if c.set {
				client.SetWriteDeadline(time.Now().Add(c.limit))
			}
			start := time.Now()
			if err := client.Close(); !errors.Is(err, ktls.ErrUndelivered) {
				t.Error(err)
			}
			if took := time.Since(start); took > max(c.limit, 0)+2*time.Second || took < c.limit {
				t.Errorf("Close took %v", took)
			}
		})
	}
}

// TestAWriteDeadlineInThePastLeavesTimeForCloseNotify, if the peer reads.
func TestAWriteDeadlineInThePastLeavesTimeForCloseNotify(t *testing.T) {
	conn, theirs := newPeer(t, suite13)
	conn.SetWriteDeadline(time.Now().Add(-time.Hour))
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if kind, content, err := theirs.receive(); kind != 21 || !bytes.Equal(content, []byte{1, 0}) || err != nil {
		t.Errorf("type %d, %x, %v", kind, content, err)
	}
}

// TestNoAlertWithinARecord: where a record went out in part, nothing but the rest of it
// may follow.
func TestNoAlertWithinARecord(t *testing.T) {
	p := smallPair(t, suite13)
	same := &peer{write: clone(p.client.Write)}
	conn, theirs := newConn(t, p.Client, p.client), p.Server
	var want []byte
	for content := range slices.Chunk(fill(t, conn), 16384) {
		want = append(want, same.seal(23, content)...)
	}
	got := make([]byte, len(want)-16406)
	if _, err := io.ReadFull(theirs, got); err != nil { // which makes room
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	theirs.Write(make([]byte, 30))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, ktls.ErrRecord) {
		t.Fatal(err)
	}
	go conn.Close()
	rest, err := io.ReadAll(theirs)
	if got = append(got, rest...); err != nil || len(got) == len(want) || !bytes.HasPrefix(want, got) {
		t.Errorf("the peer got %d bytes, whose records have %d, %v", len(got), len(want), err)
	}
}

// TestNothingComesBehindCloseNotify: an alert for what the peer then does wrong neither.
func TestNothingComesBehindCloseNotify(t *testing.T) {
	conn, theirs := newPeer(t, suite13)
	conn.CloseWrite()
	theirs.Write(make([]byte, 30))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, ktls.ErrRecord) {
		t.Fatal(err)
	}
	conn.Close()
	if kind, content, err := theirs.receive(); kind != 21 || !bytes.Equal(content, []byte{1, 0}) || err != nil {
		t.Errorf("type %d, %x, %v", kind, content, err)
	}
	if kind, _, err := theirs.receive(); err != io.EOF {
		t.Errorf("behind it: type %d, %v", kind, err)
	}
}

// TestUnreadRecordsDoNotResetTheConnection: TCP answers a close with unread data by
// a reset, and a client that only writes never reads the server's ticket.
func TestUnreadRecordsDoNotResetTheConnection(t *testing.T) {
	p := newStates(t, suite13)
	if err := p.Server.SetReadBuffer(16 << 10); err != nil {
		t.Fatal(err)
	}
	client := newConn(t, p.Client, p.client)
	theirs := &peer{Conn: p.Server, read: p.server.Read, write: p.server.Write}
	theirs.send(t, 22, ticket(100))
	sent := make([]byte, 256<<10)
	if _, err := client.Write(sent); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	theirs.receiveData(t, len(sent))
	if kind, content, err := theirs.receive(); kind != 21 || !bytes.Equal(content, []byte{1, 0}) || err != nil {
		t.Errorf("type %d, %x, %v", kind, content, err)
	}
	if _, _, err := theirs.receive(); err != io.EOF {
		t.Error(err)
	}
}

// TestCloseOnAResetConnection: nothing is lost if the peer had all, and something is if
// it had not.
func TestCloseOnAResetConnection(t *testing.T) {
	t.Run("all was acknowledged", func(t *testing.T) {
		conn, theirs := newPeer(t, suite13)
		conn.Write([]byte("text"))
		theirs.receiveData(t, 4)
		theirs.Conn.(*net.TCPConn).SetLinger(0)
		theirs.Close()
		time.Sleep(50 * time.Millisecond)
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("records were pending", func(t *testing.T) {
		client, server := smallBuffers(t, suite13)
		fill(t, client)
		server.NetConn().(*net.TCPConn).SetLinger(0)
		server.NetConn().Close()
		time.Sleep(50 * time.Millisecond)
		if err := client.Close(); err == nil {
			t.Error("Close says that all was delivered")
		}
	})
}

// TestCloseLeavesNoSecret: what the next epochs would come from is overwritten.
func TestCloseLeavesNoSecret(t *testing.T) {
	p := newStates(t, suite13)
	secrets := []blob.Secret{p.client.Read.NextSecret, p.client.Write.NextSecret}
	newConn(t, p.Client, p.client).Close()
	for _, secret := range secrets {
		if !bytes.Equal(secret.Bytes(), make([]byte, secret.Len())) {
			t.Error("a secret was not destroyed")
		}
	}
}
