// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// fill writes until the kernel takes no more, and returns what it took.
func fill(t *testing.T, c *ktls.Conn) []byte {
	t.Helper()
	data := fillMore(t, c)
	if len(data) == 0 {
		t.Fatal("the queue took nothing")
	}
	return data
}

// fillMore is fill for a queue that may be full.
func fillMore(t *testing.T, c *ktls.Conn) []byte {
	t.Helper()
	data := make([]byte, 8<<20)
	for i := range data {
		data[i] = byte(i >> 8)
	}
	c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := c.Write(data)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the queue did not fill: %d, %v", n, err)
	}
	c.SetWriteDeadline(time.Time{})
	return data[:n]
}

// smallBuffers makes a pair whose peer is slow to make room.
func smallBuffers(t *testing.T, suite blob.CipherSuite, size int) (*ktls.Conn, *ktls.Conn) {
	t.Helper()
	ktlstest.Require(t)
	p := ktlstest.NewPair(t)
	if err := errors.Join(p.Client.SetWriteBuffer(size), p.Server.SetReadBuffer(size)); err != nil {
		t.Fatal(err)
	}
	ktlstest.InstallPair(t, suite, p)
	return newConn(t, p.Client), newConn(t, p.Server)
}

func TestCloseLosesNothing(t *testing.T) {
	for _, c := range []struct {
		name   string
		suite  blob.CipherSuite
		buffer int
		half   bool // CloseWrite before
	}{
		{"TLS 1.3, small buffers", suite13, 16 << 10, false},
		{"TLS 1.2, small buffers", suite12, 16 << 10, false},
		{"TLS 1.3, large buffers", suite13, 512 << 10, false},
		{"TLS 1.3, after CloseWrite", suite13, 16 << 10, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, server := smallBuffers(t, c.suite, c.buffer)
			sent := fill(t, client)
			closed := make(chan error, 1)
			go func() {
				if c.half {
					if err := client.CloseWrite(); err != nil {
						t.Error(err)
					}
				}
				closed <- client.Close()
			}()
			time.Sleep(100 * time.Millisecond)
			got := slowly(t, server)
			if !bytes.Equal(got, sent) {
				t.Errorf("%d of %d accepted bytes arrived", len(got), len(sent))
			}
			if err := <-closed; err != nil {
				t.Error(err)
			}
		})
	}
}

// slowly reads everything, with a pause now and then.
func slowly(t *testing.T, c *ktls.Conn) []byte {
	t.Helper()
	var got []byte
	p := make([]byte, 5000)
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	for i := 0; ; i++ {
		n, err := c.Read(p)
		got = append(got, p[:n]...)
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Errorf("after %d bytes: %v", len(got), err)
			return got
		}
		if i%16 == 0 && i < 640 {
			time.Sleep(5 * time.Millisecond)
		}
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
			client, _ := smallBuffers(t, suite13, 16<<10)
			fill(t, client)
			if c.set {
				client.SetWriteDeadline(time.Now().Add(c.limit))
			}
			start := time.Now()
			if err := client.Close(); !errors.Is(err, ktls.ErrUndelivered) {
				t.Error(err)
			}
			if took := time.Since(start); took > max(c.limit, 0)+2*time.Second {
				t.Errorf("Close took %v", took)
			}
		})
	}
}

// TestATricklingPeerCannotHoldClose reads a little often, so that each wait in the
// kernel is short and their sum is not.
func TestATricklingPeerCannotHoldClose(t *testing.T) {
	client, server := smallBuffers(t, suite13, 256<<10)
	fill(t, client)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		p := make([]byte, 2000)
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				server.Read(p)
			}
		}
	}()
	client.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	start := time.Now()
	if err := client.Close(); err != nil && !errors.Is(err, ktls.ErrUndelivered) {
		t.Error(err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("Close took %v", took)
	}
}

// TestUnreadRecordsDoNotResetTheConnection: TCP answers a close with unread data by
// a reset, and a client that only writes never reads the server's ticket.
func TestUnreadRecordsDoNotResetTheConnection(t *testing.T) {
	ktlstest.Require(t)
	p := ktlstest.NewPair(t)
	if err := p.Server.SetReadBuffer(16 << 10); err != nil {
		t.Fatal(err)
	}
	ktlstest.InstallPair(t, suite13, p)
	client, server := newConn(t, p.Client), newConn(t, p.Server)
	sendRecord(t, p.Server, 22, ticket(100))
	sent := make([]byte, 256<<10)
	if _, err := client.Write(sent); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if got := slowly(t, server); len(got) != len(sent) {
		t.Errorf("%d of %d bytes arrived", len(got), len(sent))
	}
}

// TestReadAfterCloseIsNoEndOfTheStream: Close drops what was unread, close_notify with it.
// Who still reads must not take that for all of the stream.
func TestReadAfterCloseIsNoEndOfTheStream(t *testing.T) {
	client, server := newConns(t, suite13)
	mustWrite(t, server, "what nobody reads")
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	waitState(t, client.NetConn().(*net.TCPConn), tcpCloseWait)
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if n, err := client.Read(make([]byte, 100)); n != 0 || !errors.Is(err, net.ErrClosed) {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
}

func TestCloseAfterThePeerIsGone(t *testing.T) {
	ktlstest.Require(t)
	p := ktlstest.Installed(t, suite13)
	client := newConn(t, p.Client)
	p.Server.SetLinger(0)
	p.Server.Close()
	waitState(t, p.Client, tcpClose)
	start := time.Now()
	_ = client.Close()
	if took := time.Since(start); took > time.Second {
		t.Errorf("Close took %v", took)
	}
}
