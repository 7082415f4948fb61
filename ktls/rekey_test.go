// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// newKeepers returns both ends of an installed pair, each with its custody.
func newKeepers(t testing.TB, suite blob.CipherSuite) (client, server *kept) {
	t.Helper()
	ktlstest.Require(t)
	p := ktlstest.NewPair(t)
	c, s := ktlstest.NewStates(t, suite, p)
	return keep(t, p.Client, c), keep(t, p.Server, s)
}

func keep(t testing.TB, tcp *net.TCPConn, s ktlstest.States) *kept {
	t.Helper()
	custody, _, err := ktls.InstallKeeping(tcp, s.Read, s.Write)
	if err != nil {
		t.Fatal(err)
	}
	return &kept{tcp, keeping(t, tcp, custody), custody}
}

func keeping(t testing.TB, tcp *net.TCPConn, custody *ktls.Custody) *ktls.Conn {
	t.Helper()
	c, err := ktls.NewConnKeeping(tcp, custody)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.SetWriteDeadline(time.Now())
		c.Close()
	})
	return c
}

// requireRekey skips the test on kernels that take one key per direction.
func requireRekey(t testing.TB) {
	t.Helper()
	k, _ := newKeepers(t, suite13)
	err := k.conn.UpdateKey(false)
	if ktlstest.CanRekey() != (err == nil) {
		t.Fatalf("KeyUpdate: %v", err)
	}
	if errors.Is(err, ktls.ErrNotSupported) {
		t.Skip(err)
	}
}

// checkEpochs exports the connection and compares its epochs; it goes on afterwards.
func checkEpochs(t testing.TB, k *kept, read, write uint32) {
	t.Helper()
	s := mustExport(t, k)
	if s.Read.Epoch != read || s.Write.Epoch != write {
		t.Errorf("epochs %d and %d, want %d and %d", s.Read.Epoch, s.Write.Epoch, read, write)
	}
	rx, tx := ktlstest.CryptoInfo(s.Read), ktlstest.CryptoInfo(s.Write)
	if !bytes.Equal(rx, kernelState(t, k.tcp, optRX, len(rx))) || !bytes.Equal(tx, kernelState(t, k.tcp, optTX, len(tx))) {
		t.Error("the kernel's state is not the exported one")
	}
	custody, _, err := ktls.Adopt(k.tcp, s.Read, s.Write)
	if err != nil {
		t.Fatal(err)
	}
	*k = kept{k.tcp, keeping(t, k.tcp, custody), custody}
}

// TestKeysChangeInBothDirections: for each suite, with and without a request, several
// in a row, and both ends at once.
func TestKeysChangeInBothDirections(t *testing.T) {
	requireRekey(t)
	for _, suite := range blob.CipherSuites() {
		if suite.Version() != blob.TLS13 {
			continue
		}
		t.Run(suite.String(), func(t *testing.T) {
			a, b := newKeepers(t, suite)
			both := func() {
				t.Helper()
				exchange(t, a.conn, b.conn)
				exchange(t, b.conn, a.conn)
			}
			update := func(k *kept, request bool) {
				t.Helper()
				if err := k.conn.UpdateKey(request); err != nil {
					t.Fatal(err)
				}
			}
			both()
			update(a, false)
			both()
			checkEpochs(t, a, 0, 1)
			checkEpochs(t, b, 1, 0)
			update(a, true)
			both()
			checkEpochs(t, a, 1, 2)
			checkEpochs(t, b, 2, 1)
			for range 5 {
				update(b, false)
			}
			both()
			checkEpochs(t, b, 2, 6)
			// Requests that cross are answered by both: two generations each.
			update(a, true)
			update(b, true)
			both()
			both()
			checkEpochs(t, a, 8, 4)
			checkEpochs(t, b, 4, 8)
			// A silent end answers once.
			for range 20 {
				update(a, true)
			}
			exchange(t, a.conn, b.conn)
			both()
			checkEpochs(t, a, 9, 24)
			checkEpochs(t, b, 24, 9)
		})
	}
}

// TestAnExportAnswersFirst: the next owner is not told what the peer asked for.
func TestAnExportAnswersFirst(t *testing.T) {
	requireRekey(t)
	a, b := newKeepers(t, suite13)
	if err := a.conn.UpdateKey(true); err != nil {
		t.Fatal(err)
	}
	exchange(t, a.conn, b.conn)
	var notQuiet *ktls.NotQuietError
	if err := regain(b); !errors.As(err, &notQuiet) {
		t.Errorf("given up with an answer owed: %v", err)
	}
	checkEpochs(t, b, 1, 1)
	exchange(t, b.conn, a.conn)
	checkEpochs(t, a, 1, 1)
}

// TestAThousandKeyUpdatesInARow, as many as are taken without data in between.
func TestAThousandKeyUpdatesInARow(t *testing.T) {
	requireRekey(t)
	a, b := newKeepers(t, suite13)
	for range 1024 {
		if err := a.conn.UpdateKey(false); err != nil {
			t.Fatal(err)
		}
	}
	exchange(t, a.conn, b.conn)
	exchange(t, b.conn, a.conn)
	checkEpochs(t, b, 1024, 0)
	checkEpochs(t, a, 0, 1024)
}

// checkEndsWith reads b to its end, which must be the error, and a the alert.
func checkEndsWith(t testing.TB, a, b *kept, want error, alert uint8) {
	t.Helper()
	b.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := b.conn.Read(make([]byte, 100)); n != 0 || !errors.Is(err, want) {
		t.Errorf("read %d bytes, %v; want %v", n, err, want)
	}
	a.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := a.conn.Read(make([]byte, 1))
	var got *ktls.AlertError
	if !errors.As(err, &got) || got.Description != alert {
		t.Errorf("the peer read %v, want alert %d", err, alert)
	}
}

// TestAStormOfRequestsIsCutOff, and what is none is not: requests with data, or with
// answers, in between.
func TestAStormOfRequestsIsCutOff(t *testing.T) {
	requireRekey(t)
	a, b := newKeepers(t, suite13)
	ask := func(n int) {
		t.Helper()
		for range n {
			if err := a.conn.UpdateKey(true); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 3 {
		ask(32)
		exchange(t, a.conn, b.conn)
	}
	exchange(t, b.conn, a.conn)
	for range 3 {
		ask(31)
		readMessages(t, b)
		exchange(t, b.conn, a.conn)
	}
	checkEpochs(t, b, 3*32+3*31, 4)
	ask(33)
	checkEndsWith(t, a, b, ktls.ErrProtocol, 10)
}

// readMessages reads all that has arrived, none of which is data.
func readMessages(t testing.TB, k *kept) {
	t.Helper()
	for queued := 1; queued > 0; {
		k.conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := k.conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		queued = receiveQueue(t, k.tcp)
	}
	k.conn.SetReadDeadline(time.Time{})
}

// TestKeyUpdatesOfABarePeer: how a peer may and may not cut and mix its messages. It
// changes its key behind the record that is marked.
func TestKeyUpdatesOfABarePeer(t *testing.T) {
	requireRekey(t)
	for _, c := range []struct {
		name    string
		records [][]byte
		want    error // nil: what follows under the next key is read
		alert   uint8
	}{
		{"alone", [][]byte{keyUpdate}, nil, 0},
		{"behind a ticket", [][]byte{append(ticket(5), keyUpdate...)}, nil, 0},
		{"behind a large ticket", [][]byte{ticket(20000)[:16000], append(ticket(20000)[16000:], keyUpdate...)}, nil, 0},
		{"begun behind a ticket", [][]byte{append(ticket(5), keyUpdate[:3]...), keyUpdate[3:]}, nil, 0},
		{"before a ticket", [][]byte{append(bytes.Clone(keyUpdate), ticket(5)...)}, ktls.ErrProtocol, 10},
		{"twice", [][]byte{append(bytes.Clone(keyUpdate), keyUpdate...)}, ktls.ErrProtocol, 10},
		{"of two bytes", [][]byte{{24, 0, 0, 2, 0, 0}}, ktls.ErrProtocol, 50},
		{"of no sense", [][]byte{{24, 0, 0, 1, 2}}, ktls.ErrProtocol, 47},
		// The kernel takes the first byte for a KeyUpdate, and opens no more without a key.
		{"in two records", [][]byte{keyUpdate[:2], keyUpdate[2:]}, ktls.ErrKeyUpdate, 80},
	} {
		for _, size := range []int{1, 4096} {
			t.Run(fmt.Sprintf("%s, buffer of %d", c.name, size), func(t *testing.T) {
				p := ktlstest.NewPair(t)
				client, server := ktlstest.NewStates(t, suite13, p)
				k := keep(t, p.Client, client)
				next := nextState(t, server.Write)
				ktls.Install(p.Server, server.Read, server.Write)
				sendRecord(t, p.Server, 23, []byte("before"))
				for _, content := range c.records {
					sendRecord(t, p.Server, 22, content)
				}
				if err := setKernelKey(t, p.Server, optTX, ktlstest.CryptoInfo(next)); err != nil {
					t.Fatal(err)
				}
				for range 3 {
					sendRecord(t, p.Server, 23, []byte("after"))
				}
				if c.want == nil {
					k.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
					got := make([]byte, len("beforeafterafterafter"))
					for n := 0; n < len(got); {
						m, err := k.conn.Read(got[n:min(n+size, len(got))])
						if err != nil {
							t.Fatalf("behind %q: %v", got[:n], err)
						}
						n += m
					}
					if string(got) != "beforeafterafterafter" {
						t.Errorf("read %q", got)
					}
					return
				}
				checkControl(t, k.conn, size, c.want)
				kind, content, err := receiveRecord(t, p.Server)
				if kind != 21 || !bytes.Equal(content, []byte{2, c.alert}) {
					t.Errorf("the peer got type %d, %v, %v", kind, content, err)
				}
			})
		}
	}
}

// nextState is the state behind a KeyUpdate. It leaves s as it is.
func nextState(t testing.TB, s *blob.State) *blob.State {
	t.Helper()
	next := &blob.State{Role: s.Role, Direction: s.Direction, Version: s.Version, Suite: s.Suite, Epoch: s.Epoch,
		Cookie: s.Cookie, NextSecret: blob.NewSecret(bytes.Clone(s.NextSecret.Bytes()))}
	if err := next.Update(); err != nil {
		t.Fatal(err)
	}
	return next
}
