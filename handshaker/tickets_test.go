// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// countingCache counts the tickets it gets.
type countingCache struct{ puts int }

func (c *countingCache) Put(string, *tls.ClientSessionState)        { c.puts++ }
func (c *countingCache) Get(string) (*tls.ClientSessionState, bool) { return nil, false }

// newTicket is a NewSessionTicket message of TLS 1.3 (RFC 8446, Section 4.6.1).
func newTicket(lifetime time.Duration, label int) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(lifetime/time.Second))
	b = append(b, 1, 2, 3, 4, 1, 9)
	b = binary.BigEndian.AppendUint16(b, uint16(label))
	b = append(b, make([]byte, label)...)
	return helloMessage(msgNewSessionTicket, append(b, 0, 0))
}

const longWait = 3 * time.Second

// afterHandshake lets a Client meet a server that does what the script says, with
// real keys, as soon as the handshake is over on its side; over is closed when the
// client is done.
func afterHandshake(t *testing.T, config *Config, script func(l *recordLayer, over <-chan struct{})) (*handshake, *Session, net.Conn, error) {
	t.Helper()
	ours, theirs := tcpPair(t)
	server := serverTLS()
	server.SessionTicketsDisabled = true
	done, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		s, err := Server(testContext(t), theirs, &Config{TLS: server})
		if err != nil {
			return // the client has more to say about it
		}
		theirs.SetDeadline(time.Now().Add(20 * time.Second))
		script(newRecordLayer(theirs, s), over)
	}()
	h, err := newHandshake(blob.Client, ours, config)
	if err != nil {
		t.Fatal(err)
	}
	s, err := h.run(testContext(t))
	close(over)
	<-done
	ours.SetDeadline(time.Now().Add(20 * time.Second))
	return h, s, ours, err
}

func TestTicketsAreTakenAndNothingElse(t *testing.T) {
	ticket := newTicket(time.Hour, 100)
	data, update, alert := []byte("data"), helloMessage(24, []byte{0}), []byte{1, 0}
	type records = []content
	for _, tt := range []struct {
		name       string
		records    records
		seq        uint64
		tickets    int
		left       records
		returnsNow bool // and does not wait for more
	}{
		{"none", nil, 0, 0, nil, false},
		{"one", records{{22, ticket}}, 1, 1, nil, true},
		{"three", records{{22, ticket}, {22, ticket}, {22, ticket}}, 3, 3, nil, true},
		{"two in one record", records{{22, slices.Concat(ticket, ticket)}}, 1, 2, nil, true},
		{"a long one", records{{22, newTicket(time.Hour, 16000)}}, 1, 1, nil, true},
		{"before data", records{{22, ticket}, {23, data}, {22, ticket}}, 1, 1, records{{23, data}, {22, ticket}}, true},
		{"behind data", records{{23, data}, {22, ticket}}, 0, 0, records{{23, data}, {22, ticket}}, true},
		{"before a KeyUpdate", records{{22, ticket}, {22, update}}, 1, 1, records{{22, update}}, true},
		{"with a KeyUpdate", records{{22, slices.Concat(ticket, update)}}, 0, 0, records{{22, slices.Concat(ticket, update)}}, true},
		{"before an alert", records{{22, ticket}, {21, alert}}, 1, 1, records{{21, alert}}, true},
		{"in two records", records{{22, ticket[:50]}, {22, ticket[50:]}}, 0, 0, records{{22, ticket[:50]}, {22, ticket[50:]}}, true},
		{"too many", slices.Repeat(records{{22, ticket}}, 18), 16, 16, slices.Repeat(records{{22, ticket}}, 2), true},
	} {
		for _, cached := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, cached %v", tt.name, cached), func(t *testing.T) {
				t.Parallel()
				cache := &countingCache{}
				config := &Config{TLS: clientTLS(), TicketWait: longWait}
				if cached {
					config.TLS.ClientSessionCache = cache
				}
				if !tt.returnsNow {
					config.TicketWait = 50 * time.Millisecond
				}
				began := time.Now()
				_, s, conn, err := afterHandshake(t, config, func(l *recordLayer, over <-chan struct{}) {
					var b []byte
					for _, r := range tt.records {
						b = append(b, l.write.seal(r.typ, r.body)...)
					}
					l.conn.Write(b)
				})
				if err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); (took < config.TicketWait) != tt.returnsNow {
					t.Errorf("took %v", took)
				}
				if s.Read.Seq != tt.seq || s.Write.Seq != 0 || cached && cache.puts != tt.tickets {
					t.Errorf("sequence numbers %d and %d, %d tickets", s.Read.Seq, s.Write.Seq, cache.puts)
				}
				l := newRecordLayer(conn, s)
				for i, want := range tt.left {
					if typ, body, err := l.receive(); err != nil || typ != want.typ || !bytes.Equal(body, want.body) {
						t.Fatalf("left %d: type %d, %v", i, typ, err)
					}
				}
			})
		}
	}
}

func TestTicketsThatComeTogetherAreTakenTogether(t *testing.T) {
	const tries = 5 // a busy machine may tear them apart
	for try := range tries {
		config := &Config{TLS: clientTLS(), TicketWait: longWait}
		_, s, _, err := afterHandshake(t, config, func(l *recordLayer, over <-chan struct{}) {
			time.Sleep(50 * time.Millisecond) // a round trip
			for range 2 {
				l.send(22, newTicket(time.Hour, 100))
				time.Sleep(3 * time.Millisecond)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if s.Read.Seq == 2 {
			return
		}
		t.Logf("try %d: %d tickets", try, s.Read.Seq)
	}
	t.Error("never")
}

func TestWithoutWaitingOnlyTicketsThatAreThereAreTaken(t *testing.T) {
	config := &Config{TLS: clientTLS()}
	_, s, conn, err := afterHandshake(t, config, func(l *recordLayer, over <-chan struct{}) {
		<-over
		l.send(22, newTicket(time.Hour, 100))
	})
	if err != nil || s.Read.Seq != 0 {
		t.Fatal(s, err)
	}
	if typ, _, err := newRecordLayer(conn, s).receive(); typ != 22 || err != nil {
		t.Error(typ, err)
	}
}

func TestATicketInPiecesIsTakenWhenItIsWhole(t *testing.T) {
	for _, cut := range []int{1, 4, 5, 6, 60} {
		_, s, _, err := afterHandshake(t, &Config{TLS: clientTLS(), TicketWait: longWait}, func(l *recordLayer, over <-chan struct{}) {
			r := l.write.seal(22, newTicket(time.Hour, 100))
			l.conn.Write(r[:cut])
			time.Sleep(20 * time.Millisecond)
			l.conn.Write(r[cut:])
		})
		if err != nil || s.Read.Seq != 1 {
			t.Errorf("cut at %d: %v, %v", cut, s, err)
		}
	}
}

func TestWhatIsNotAWholeGoodRecordStays(t *testing.T) {
	good := testRecord(0)
	for name, b := range map[string][]byte{
		"half a header":   {23, 3},
		"half a record":   {23, 3, 3, 0, 100, 1, 2, 3},
		"does not open":   slices.Concat([]byte{23, 3, 3, 0, 40}, make([]byte, 40)),
		"too short":       {23, 3, 3, 0, 1, 1},
		"too long":        {23, 3, 3, 0xff, 0xff, 1, 1},
		"plaintext alert": {21, 3, 3, 0, 2, 2, 40},
		"empty":           good,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, s, conn, err := afterHandshake(t, &Config{TLS: clientTLS(), TicketWait: 50 * time.Millisecond}, func(l *recordLayer, over <-chan struct{}) {
				l.conn.Write(b)
				l.conn.(*net.TCPConn).CloseWrite()
			})
			if err != nil || s.Read.Seq != 0 {
				t.Fatal(s, err)
			}
			if left, err := io.ReadAll(conn); err != nil || !bytes.Equal(left, b) {
				t.Errorf("left: %x, %v", left, err)
			}
		})
	}
}

func TestARecordThatCannotBecomeWholeIsNotWaitedFor(t *testing.T) {
	began := time.Now()
	_, s, _, err := afterHandshake(t, &Config{TLS: clientTLS(), TicketWait: longWait}, func(l *recordLayer, over <-chan struct{}) {
		l.conn.Write([]byte{23, 3, 3, 0xff, 0xff, 1})
	})
	if err != nil || s == nil || time.Since(began) > longWait/2 {
		t.Errorf("%v, %v after %v", s, err, time.Since(began))
	}
}

func TestThePeersEndIsNotWaitedOut(t *testing.T) {
	began := time.Now()
	_, s, _, err := afterHandshake(t, &Config{TLS: clientTLS(), TicketWait: longWait}, func(l *recordLayer, over <-chan struct{}) {
		l.conn.(*net.TCPConn).CloseWrite()
	})
	if err != nil || s == nil || time.Since(began) > longWait/2 {
		t.Errorf("%v, %v after %v", s, err, time.Since(began))
	}
}

func TestABadTicketFails(t *testing.T) {
	config := &Config{TLS: clientTLS(), TicketWait: longWait}
	config.TLS.ClientSessionCache = &countingCache{}
	h, s, _, err := afterHandshake(t, config, func(l *recordLayer, over <-chan struct{}) {
		l.send(22, newTicket(10*24*time.Hour, 100)) // 7 days are allowed
		l.receive()
	})
	if s != nil || !errors.Is(err, ErrHandshake) {
		t.Fatal(s, err)
	}
	checkDestroyed(t, h)
}

func TestTheEndOfAContextEndsTheWaitForTickets(t *testing.T) {
	t.Parallel()
	ours, theirs := tcpPair(t)
	server := serverTLS()
	server.SessionTicketsDisabled = true
	go tls.Server(theirs, server).Handshake()
	h, err := newHandshake(blob.Client, ours, &Config{TLS: clientTLS(), TicketWait: longWait})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := contextWithTimeout(time.Second)
	defer cancel()
	began := time.Now()
	if s, err := h.run(ctx); s != nil || !errors.Is(err, ctx.Err()) || time.Since(began) > longWait-time.Second/2 {
		t.Errorf("%v, %v after %v", s, err, time.Since(began))
	}
	checkDestroyed(t, h)
}

// liarConn gives other bytes than its socket has.
type liarConn struct {
	net.Conn
	lies *bool
}

func (c liarConn) NetConn() net.Conn { return c.Conn }
func (c liarConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if *c.lies {
		p[0] ^= 1
	}
	return n, err
}

func TestAConnThatIsNotItsSocketIsNoticed(t *testing.T) {
	ours, theirs := tcpPair(t)
	go tls.Server(theirs, serverTLS()).Handshake()
	client := clientTLS()
	client.ClientSessionCache = &countingCache{}
	lies := false
	h, err := newHandshake(blob.Client, liarConn{ours, &lies}, &Config{TLS: client, TicketWait: longWait})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.shake(testContext(t)); err != nil {
		t.Fatal(err)
	}
	lies = true
	if err := errors.Join(h.derive(), h.count()); err != nil {
		t.Fatal(err)
	}
	if err := h.takeTickets(testContext(t)); !errors.Is(err, ErrLocal) {
		t.Error(err)
	}
}
