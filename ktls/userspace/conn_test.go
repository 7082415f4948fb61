// SPDX-License-Identifier: Apache-2.0

package userspace_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
	"github.com/offloadd/offloadd/ktls/userspace"
)

func TestBothDirectionsCarryEveryByte(t *testing.T) {
	const size = 256 << 10
	for _, suite := range blob.CipherSuites() {
		t.Run(suite.String(), func(t *testing.T) {
			client, server := newConns(t, suite)
			var wg sync.WaitGroup
			for _, d := range [][2]*userspace.Conn{{client, server}, {server, client}} {
				sent := randomBytes(size)
				wg.Go(func() {
					for rest, n := sent, 1; len(rest) > 0; n = n*7%40961 + 1 {
						n = min(n, len(rest))
						if m, err := d[0].Write(rest[:n]); m != n || err != nil {
							t.Errorf("%d bytes of %d, %v", m, n, err)
							return
						}
						rest = rest[n:]
					}
					if err := d[0].CloseWrite(); err != nil {
						t.Error(err)
					}
				})
				wg.Go(func() {
					got, err := io.ReadAll(d[1])
					if !bytes.Equal(got, sent) || err != nil {
						t.Errorf("%d bytes of %d, or others, %v", len(got), len(sent), err)
					}
				})
			}
			wg.Wait()
		})
	}
}

// TestAStateGoesOnFromItsRecord: a sequence number that is not zero, as after a
// handshake that wrote tickets.
func TestAStateGoesOnFromItsRecord(t *testing.T) {
	for _, suite := range aeadSuites {
		p := ktlstest.NewPair(t)
		client, server := ktlstest.NewStates(t, suite, p)
		const read, write = 1<<40 + 255, 77
		client.Read.Seq, server.Write.Seq = read, read
		client.Write.Seq, server.Read.Seq = write, write
		theirs := &peer{Conn: p.Server, read: server.Read, write: server.Write}
		conn := newConn(t, p.Client, client)
		theirs.send(t, 23, []byte("down"))
		got := make([]byte, 4)
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "down" {
			t.Errorf("%v: %q, %v", suite, got, err)
		}
		conn.Write([]byte("up"))
		if got := theirs.receiveData(t, 2); string(got) != "up" {
			t.Errorf("%v: %q", suite, got)
		}
	}
}

func TestNewConnRefusesStatesThatAreNotOfTheSocket(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(s *ktlstest.States)
		want   error
	}{
		{"another socket", func(s *ktlstest.States) { s.Read.Cookie++; s.Write.Cookie++ }, blob.ErrCookie},
		{"two sockets", func(s *ktlstest.States) { s.Read.Cookie++ }, blob.ErrCookie},
		{"the directions exchanged", func(s *ktlstest.States) { s.Read, s.Write = s.Write, s.Read }, blob.ErrDirection},
		{"one key", func(s *ktlstest.States) { copy(s.Read.Key.Bytes(), s.Write.Key.Bytes()) }, blob.ErrState},
		{"a destroyed key", func(s *ktlstest.States) { s.Write.Destroy() }, blob.ErrState},
		{"a key in a device", func(s *ktlstest.States) {
			s.Read.Held = blob.Held{Device: "eth0", Digest: blob.KeyDigest{1}}
			s.Read.Key, s.Read.IV = blob.Secret{}, blob.Secret{}
		}, ktls.ErrHeld},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := ktlstest.NewPair(t)
			s, _ := ktlstest.NewStates(t, suite13, p)
			secrets := []blob.Secret{s.Read.Key, s.Read.NextSecret, s.Write.Key, s.Write.NextSecret}
			c.change(&s)
			if c.want == ktls.ErrHeld {
				secrets = secrets[1:]
			}
			conn, err := userspace.NewConn(p.Client, s.Read, s.Write)
			if conn != nil || !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			for _, secret := range secrets {
				if !bytes.Equal(secret.Bytes(), make([]byte, secret.Len())) {
					t.Error("a secret was not destroyed")
				}
			}
		})
	}
	t.Run("no TCP", func(t *testing.T) {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		s, _ := ktlstest.NewStates(t, suite13, ktlstest.NewPair(t))
		if _, err := userspace.NewConn(a, s.Read, s.Write); !errors.Is(err, ktls.ErrNotTCP) {
			t.Error(err)
		}
	})
	t.Run("keys in the kernel", func(t *testing.T) {
		ktlstest.Require(t)
		p := ktlstest.Installed(t, suite13)
		s, _ := ktlstest.NewStates(t, suite13, p)
		if _, err := userspace.NewConn(p.Client, s.Read, s.Write); !errors.Is(err, ktls.ErrInstalled) {
			t.Error(err)
		}
	})
}

func TestNewConnLeavesNoKeyInTheStates(t *testing.T) {
	p := ktlstest.NewPair(t)
	s, _ := ktlstest.NewStates(t, suite13, p)
	secrets := []blob.Secret{s.Read.Key, s.Read.IV, s.Write.Key, s.Write.IV}
	newConn(t, p.Client, s)
	for _, secret := range secrets {
		if !bytes.Equal(secret.Bytes(), make([]byte, secret.Len())) {
			t.Error("a key was not destroyed")
		}
	}
	if s.Read.NextSecret.Len()+s.Write.NextSecret.Len() != 0 {
		t.Error("a state still has its next secret")
	}
}

// mptcpPair is a Multipath TCP connection, which the kernel's record layer refuses.
func mptcpPair(t *testing.T, suite blob.CipherSuite) *pair {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var d net.Dialer
	d.SetMultipathTCP(true)
	c, err := d.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); accepted.Close() })
	p := &ktlstest.Pair{Client: c.(*net.TCPConn), Server: accepted.(*net.TCPConn)}
	if ok, err := p.Client.MultipathTCP(); err != nil || !ok {
		if ktlstest.InVM() {
			t.Fatalf("this connection is not Multipath TCP: %v", err)
		}
		t.Skip("no Multipath TCP here")
	}
	ours, theirs := ktlstest.NewStates(t, suite, p)
	return &pair{p, ours, theirs}
}

func TestMultipathTCP(t *testing.T) {
	p := mptcpPair(t, suite13)
	prefer := &userspace.Chooser{Policy: userspace.Prefer}
	client, err := prefer.Open(p.Client, p.client.Read, p.client.Write)
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(client.Reason, ktls.ErrMPTCP) {
		t.Error(client.Reason)
	}
	server := newConn(t, p.Server, p.server)
	client.Write([]byte("one way"))
	client.Close()
	if got, err := io.ReadAll(server); string(got) != "one way" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestDeadlines(t *testing.T) {
	client, server := newConns(t, suite13)
	client.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := client.Read(make([]byte, 1))
	var timeout net.Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("read: %v", err)
	}
	client.SetReadDeadline(time.Time{})

	data := pattern(20 << 20)
	client.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := client.Write(data)
	if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 {
		t.Errorf("write: %d, %v", n, err)
	}
	client.SetWriteDeadline(time.Time{})
	go func() {
		client.Write([]byte("more"))
		client.CloseWrite()
	}()
	got, err := io.ReadAll(server)
	if want := append(data[:n:n], "more"...); !bytes.Equal(got, want) || err != nil {
		t.Errorf("%d bytes arrived of %d that were accepted, or others, %v", len(got), len(want), err)
	}
}

// TestADeadlineInThePastTakesNothing, though TCP has room.
func TestADeadlineInThePastTakesNothing(t *testing.T) {
	conn, theirs := newPeer(t, suite13)
	conn.SetWriteDeadline(time.Now().Add(-time.Second))
	if n, err := conn.Write([]byte("never")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %d, %v", n, err)
	}
	if err := conn.CloseWrite(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("close write: %v", err)
	}
	conn.SetWriteDeadline(time.Time{})
	conn.Write([]byte("first"))
	if got := theirs.receiveData(t, 5); string(got) != "first" {
		t.Errorf("%q", got)
	}
}

// TestReadDeadlinesLeaveRecordsWhole: the record comes a byte at a time, and a deadline
// between any two.
func TestReadDeadlinesLeaveRecordsWhole(t *testing.T) {
	conn, theirs := newPeer(t, suite13)
	got := make([]byte, 4)
	for i, b := range theirs.seal(23, []byte("slow")) {
		conn.SetReadDeadline(time.Now().Add(2 * time.Millisecond))
		if n, err := conn.Read(got); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("with %d bytes of the record: %d, %v", i, n, err)
		}
		theirs.Write([]byte{b})
	}
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "slow" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestHalfClose(t *testing.T) {
	client, server := newConns(t, suite13)
	for range 2 {
		if err := client.CloseWrite(); err != nil {
			t.Error(err)
		}
	}
	if _, err := client.Write([]byte("x")); !errors.Is(err, ktls.ErrClosedWrite) {
		t.Error(err)
	}
	if err := client.UpdateKey(false); !errors.Is(err, ktls.ErrClosedWrite) {
		t.Error(err)
	}
	if got, err := io.ReadAll(server); len(got) != 0 || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	server.Write([]byte("back"))
	got := make([]byte, 4)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "back" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAConcurrentCloseWakesReaderAndWriter(t *testing.T) {
	client, _ := newConns(t, suite13)
	data := make([]byte, 64<<20)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
	})
	wg.Go(func() {
		if _, err := client.Write(data); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write: %v", err)
		}
	})
	time.Sleep(300 * time.Millisecond)
	client.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	start := time.Now()
	if err := client.Close(); err != nil && !errors.Is(err, ktls.ErrUndelivered) {
		t.Errorf("close: %v", err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("Close took %v", took)
	}
	wg.Wait()
	if err := client.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
	_, read := client.Read(make([]byte, 1))
	_, written := client.Write([]byte("x"))
	for name, err := range map[string]error{
		"deadline": client.SetDeadline(time.Now()), "close write": client.CloseWrite(),
		"read": read, "write": written, "update": client.UpdateKey(false),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCopies: io.Copy in both directions, also of a file, for which package os looks for
// a socket to send it to past the Conn.
func TestCopies(t *testing.T) {
	client, server := newConns(t, suite13)
	data := pattern(1<<20 + 17)
	f, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Write(data)
	f.Seek(0, io.SeekStart)
	go func() {
		if n, err := io.Copy(client, f); n != int64(len(data)) || err != nil {
			t.Errorf("sent %d, %v", n, err)
		}
		client.CloseWrite()
	}()
	var got bytes.Buffer
	if n, err := io.Copy(struct{ io.Writer }{&got}, server); n != int64(len(data)) || err != nil || !bytes.Equal(got.Bytes(), data) {
		t.Errorf("%d bytes arrived of %d, or others, %v", n, len(data), err)
	}
}

// TestAConnPrintsNoKey looks for the keys under every verb.
func TestAConnPrintsNoKey(t *testing.T) {
	p := ktlstest.NewPair(t)
	s, _ := ktlstest.NewStates(t, suite13, p)
	var secrets [][]byte
	for _, secret := range []blob.Secret{s.Read.Key, s.Read.IV, s.Read.NextSecret, s.Write.Key, s.Write.IV, s.Write.NextSecret} {
		secrets = append(secrets, bytes.Clone(secret.Bytes()))
	}
	conn := newConn(t, p.Client, s)
	conn.Write([]byte("one record, so that there was a nonce"))
	holder := struct{ hidden *userspace.Conn }{conn}
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%d", "%s", "%Z"} {
		for _, value := range []any{conn, holder, &holder} {
			text := fmt.Sprintf(verb, value)
			for _, secret := range secrets {
				for _, form := range []string{"%x", "%v", "%d", "%s", "%#v"} {
					printed := fmt.Sprintf(form, secret)
					if form == "%v" || form == "%d" {
						printed = printed[1 : len(printed)-1]
					}
					if bytes.Contains([]byte(text), []byte(printed)) {
						t.Errorf("%s prints a secret: %s", verb, text)
					}
				}
			}
		}
	}
}

// TestRecordsCostNoAllocation: neither reading nor writing them.
func TestRecordsCostNoAllocation(t *testing.T) {
	for _, suite := range aeadSuites {
		client, server := newConns(t, suite)
		data, got := make([]byte, 40000), make([]byte, 40000)
		once := func() {
			if _, err := client.Write(data); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(server, got); err != nil {
				t.Fatal(err)
			}
		}
		once()
		if n := testing.AllocsPerRun(50, once); n > 0 {
			t.Errorf("%v: %v allocations for three records", suite, n)
		}
	}
}
