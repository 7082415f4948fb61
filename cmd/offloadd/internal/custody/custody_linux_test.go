// SPDX-License-Identifier: Apache-2.0

package custody

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// logBuffer is a log to look into.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) lines(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// watched returns a table that follows the kernel until the test ends.
func watched(t *testing.T, max int) (*Table, *logBuffer) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ktlstest.Require(t)
	log := &logBuffer{}
	table := NewTable(max, slog.New(slog.NewTextHandler(log, nil)))
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	if _, err := WatchSockets(ctx, table.log, table); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", log.b.String())
		}
	})
	return table, log
}

func software() Entry {
	return Entry{Listener: "test", Read: Key{Place: Software}, Write: Key{Place: Software}}
}

// add makes an entry of c's socket.
func add(t *testing.T, table *Table, c *net.TCPConn, e Entry) uint64 {
	t.Helper()
	if err := table.Add(c, e, time.Now()); err != nil {
		t.Fatal(err)
	}
	cookie, err := ktls.Cookie(c)
	if err != nil {
		t.Fatal(err)
	}
	return cookie
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (t *Table) condition(socket uint64) Condition {
	e, ok := t.Get(socket)
	if !ok {
		return "gone"
	}
	return e.Condition
}

// TestThousandsOfShortConnectionsLeaveNothing: entries end with their sockets,
// without a census, whoever closes first and how.
func TestThousandsOfShortConnectionsLeaveNothing(t *testing.T) {
	const each, workers = 1000, 2
	// Room for all, since the kernel's word may come late on a busy machine.
	table, log := watched(t, each*workers)
	var all sync.WaitGroup
	for w := range workers {
		l := ktlstest.Listen(t)
		all.Go(func() {
			for i := range each {
				client, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				server, err := l.AcceptTCP()
				if err != nil {
					t.Error(err)
					return
				}
				if err := ktls.Attach(server); err != nil {
					t.Error(err)
				}
				if err := table.Add(server, software(), time.Now()); err != nil {
					t.Error(err)
				}
				first, second := client, net.Conn(server)
				if (i+w)%2 == 0 {
					first, second = second, first
				}
				if i%3 == 0 {
					first.(*net.TCPConn).SetLinger(0) // a reset
				}
				first.Close()
				second.Close()
			}
		})
	}
	all.Wait()
	eventually(t, "no entry", func() bool { return table.Totals().Live == 0 && table.Totals().Over == 0 })
	if n := table.Totals(); n.Ended != each*workers || n.Unrecorded != 0 {
		t.Errorf("%+v, want %d ended", n, each*workers)
	}
	if log.lines("not heard") != 0 {
		t.Error("the ends were found by a census, not by the kernel's word")
	}
}

// TestAClosedConnectionStaysWhileItsSocketIsHeld: that is where its keys are.
func TestAClosedConnectionStaysWhileItsSocketIsHeld(t *testing.T) {
	table, _ := watched(t, 10)
	p := ktlstest.Installed(t, blob.TLS_AES_128_GCM_SHA256)
	socket := add(t, table, p.Server, software())
	live := ktlstest.Installed(t, blob.TLS_AES_128_GCM_SHA256)
	other := add(t, table, live.Server, software())

	reconcile := func(lost bool) {
		t.Helper()
		census, err := NewCensus()
		if err != nil {
			t.Fatal(err)
		}
		census.Lost = lost
		table.Reconciled(census)
	}
	reconcile(false)
	if c := table.condition(socket); c != Live {
		t.Errorf("%s, want live", c)
	}
	p.Client.SetLinger(0)
	p.Client.Close()
	eventually(t, "the reset arrives", func() bool {
		reconcile(false)
		return table.condition(socket) == Closed
	})
	if n := table.Totals(); n.Live != 1 || n.Over != 1 {
		t.Errorf("%+v, want one live and one over", n)
	}
	p.Server.Close()
	eventually(t, "the entry ends", func() bool { return table.condition(socket) == "gone" })

	// A dump can leave out what is there.
	table.Reconciled(&Census{Began: time.Now(), Lost: true})
	if c := table.condition(other); c != Live {
		t.Errorf("a live connection that a census left out is %s", c)
	}
	// After a loss, a socket that is in no table may have ended unheard.
	live.Client.SetLinger(0)
	live.Client.Close()
	eventually(t, "the reset arrives", func() bool {
		reconcile(true)
		return table.condition(other) == "gone"
	})
}

// TestLostWordIsMadeUpFor: when the kernel has no room for its messages, a census
// finds what has ended.
func TestLostWordIsMadeUpFor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ktlstest.Require(t)
	log := &logBuffer{}
	table := NewTable(1000, slog.New(slog.NewTextHandler(log, nil)))
	s := &sockets{log: table.log, listeners: []Listener{table}, buffer: make([]byte, 64<<10)}
	if err := s.subscribe(1); err != nil {
		t.Fatal(err)
	}
	const count = 200
	l := ktlstest.Listen(t)
	for range count {
		p := ktlstest.Connect(t, l)
		if err := ktls.Attach(p.Server); err != nil {
			t.Fatal(err)
		}
		add(t, table, p.Server, software())
		p.Client.Close()
		p.Server.Close()
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	context.AfterFunc(ctx, func() { s.file.Close() })
	go s.run(ctx)
	eventually(t, "all have ended", func() bool { return table.Totals().Ended == count })
	if log.lines("not heard") == 0 {
		t.Error("nothing was lost, so this test shows nothing")
	}
}

func TestAFullTableCountsWhatItCannotKeep(t *testing.T) {
	table, log := watched(t, 2)
	before, err := NewCensus()
	if err != nil {
		t.Fatal(err)
	}
	var sockets []uint64
	for i := range 4 {
		p := ktlstest.Installed(t, blob.TLS_AES_128_GCM_SHA256)
		err := table.Add(p.Server, software(), time.Now())
		if want := i >= 2; (err != nil) != want {
			t.Fatalf("connection %d: %v", i, err)
		}
		cookie, _ := ktls.Cookie(p.Server)
		sockets = append(sockets, cookie)
	}
	if n := table.Totals(); n.Live != 2 || n.Unrecorded != 2 {
		t.Errorf("%+v, want 2 live and 2 unrecorded", n)
	}
	if n := log.lines("table is full"); n != 1 {
		t.Errorf("said %d times that it is full, want once", n)
	}
	if outcome, err := table.Revoke(sockets[3]); outcome != NotThere || err != nil {
		t.Errorf("revoke of what is not recorded: %s, %v", outcome, err)
	}
	census, err := NewCensus()
	if err != nil {
		t.Fatal(err)
	}
	// Both ends of each connection have keys; two are ours.
	if n := table.Foreign(census); n != before.Keyed()+6 {
		t.Errorf("%d foreign sockets, want 6 beside the %d from before", n, before.Keyed())
	}
}

// keptThing counts how often it was destroyed.
type keptThing struct{ destroyed int }

func (k *keptThing) Destroy() { k.destroyed++ }

// TestWhatIsKeptIsLentToOneAtATime: and is destroyed with the connection, wherever it is
// then.
func TestWhatIsKeptIsLentToOneAtATime(t *testing.T) {
	ktlstest.Require(t)
	table := NewTable(10, slog.New(slog.DiscardHandler))
	p := ktlstest.Installed(t, blob.TLS_AES_128_GCM_SHA256)
	k := &keptThing{}
	socket := add(t, table, p.Server, software())
	if _, err := table.Borrow(socket); !errors.Is(err, ErrNotKept) {
		t.Errorf("nothing is kept: %v", err)
	}
	table.Keep(socket, k)
	got, err := table.Borrow(socket)
	if err != nil || got != Kept(k) {
		t.Fatal(got, err)
	}
	if _, err := table.Borrow(socket); !errors.Is(err, ErrLent) {
		t.Errorf("it is lent: %v", err)
	}
	table.Rekeyed(socket, 3, 1)
	table.Rekeyed(socket, 4, 1)
	if e, _ := table.Get(socket); e.Read.Epoch != 4 || e.Write.Epoch != 1 {
		t.Errorf("epochs %d and %d, want 4 and 1", e.Read.Epoch, e.Write.Epoch)
	}
	if n := table.Totals(); n.ReadKeys != 4 || n.WriteKeys != 1 {
		t.Errorf("%d and %d keys were changed, want 4 and 1", n.ReadKeys, n.WriteKeys)
	}
	table.Keep(socket, k)
	if _, err := table.Borrow(socket); err != nil {
		t.Error(err)
	}
	table.Destroyed(socket)
	if table.Keep(socket, k); k.destroyed != 1 {
		t.Errorf("destroyed %d times", k.destroyed)
	}
}
