// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"os"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// loaded loads into a directory of the test's own, and opens the observer.
func loaded(t testing.TB, entries map[string]uint32) *Observer {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ktlstest.Require(t)
	dir := DefaultDir + "-observer-test"
	r, err := LoadObserver(Options{Dir: dir, entries: entries})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unload(dir); err != nil {
			t.Error(err)
		}
	})
	for _, p := range r.Off() {
		t.Errorf("%s at %s is off: %s", p.Name, p.Hook, p.Off)
	}
	o, err := OpenObserver(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return o
}

// TestObserver: loading takes longer than most of it.
func TestObserver(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ktlstest.Require(t)
	early := ktlstest.Installed(t, blob.TLS_CHACHA20_POLY1305_SHA256)
	o := loaded(t, nil)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *Observer)
	}{
		{"early sockets are listed", func(t *testing.T, o *Observer) { earlySocketsAreListed(t, o, early) }},
		{"it needs no capability", itNeedsNoCapability},
		{"foreign sockets are listed", foreignSocketsAreListed},
		{"no key is read", noKeyIsRead},
		{"an alarm comes before a key is spent", anAlarmComesBeforeAKeyIsSpent},
		{"a received record alarms too", aReceivedRecordAlarmsToo},
		{"calls at the same time are all counted", callsAtTheSameTimeAreAllCounted},
		{"numbers are those of the kernel", numbersAreThoseOfTheKernel},
	} {
		t.Run(c.name, func(t *testing.T) {
			// A socket is listed until TCP has ended it.
			await(t, "no socket is left of the test before", func() bool { return c.name == "early sockets are listed" || len(keyed(t, o)) == 0 })
			drain(t, o)
			c.run(t, o)
		})
	}
}

// drain takes what nobody has read.
func drain(t *testing.T, o *Observer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := o.Events(ctx, func(Event) error { return nil }); err != nil {
		t.Fatal(err)
	}
}

// eventLog collects all events.
type eventLog struct {
	mu   sync.Mutex
	list []Event
}

func follow(t *testing.T, o *Observer) *eventLog {
	t.Helper()
	l := &eventLog{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- o.Events(ctx, func(e Event) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.list = append(l.list, e)
			return nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l *eventLog) of(kind EventKind) (list []Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.list {
		if e.Kind == kind {
			list = append(list, e)
		}
	}
	return list
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// same compares what was observed of a socket with what was done. Of a time only the test knows that it was there.
func (s *tlsSocket) same(got *Totals) bool {
	if got == nil || got.Since.IsZero() {
		return false
	}
	a, b := *got, s.want
	a.Since = b.Since
	if s.parts {
		a.Sending.Calls = b.Sending.Calls
	}
	return reflect.DeepEqual(a, b)
}

// numbersAreThoseOfTheKernel: of thousands of connections with random traffic and ends, each number is what the
// calls returned, what getsockopt and inet_diag tell, and what the counters of the namespace grew by.
func numbersAreThoseOfTheKernel(t *testing.T, o *Observer) {
	events := follow(t, o)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	p, err := newPlayground(seed, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	stats, err := ktls.ReadStats()
	if err != nil {
		t.Fatal(err)
	}
	before, err := o.Sums()
	if err != nil {
		t.Fatal(err)
	}
	const connections, kept = 2000, 60
	var ended, live []*tlsSocket
	for i := range connections {
		if i%25 == 24 {
			s, err := p.forged()
			if err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			ended = append(ended, s)
			continue
		}
		client, server, err := p.connection()
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if i >= connections-kept {
			live = append(live, client, server)
			continue
		}
		if err := p.end(client, server); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		ended = append(ended, client, server)
	}
	checkLive(t, o, live)
	for len(live) > 0 {
		if err := p.end(live[0], live[1]); err != nil {
			t.Fatal(err)
		}
		ended, live = append(ended, live[:2]...), live[2:]
	}
	if t.Failed() {
		t.FailNow()
	}
	await(t, "an event for each end", func() bool { return len(events.of(Closed)) == len(ended) })
	checkClosed(t, events, ended)
	checkSums(t, o, &before, &stats, p, ended)
	checkEvents(t, events, ended)
	if dropped, err := o.Dropped(); dropped != 0 || err != nil {
		t.Errorf("%d events dropped, %v", dropped, err)
	}
	if list := keyed(t, o); len(list) != 0 {
		t.Errorf("%d connections are left", len(list))
	}
	var key uint64
	if o.observed.Iterate().Next(&key, new(rawConnection)) {
		t.Errorf("socket %d is left in the map", key)
	}
}

// keyed lists the sockets that have a key: that of ktlstest.Require has none.
func keyed(t *testing.T, o *Observer) []Connection {
	t.Helper()
	list, err := o.Connections()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(list, func(c Connection) bool { return c.Sending.Path == NoKey && c.Receiving.Path == NoKey })
}

// checkLive compares the list with the sockets' own numbers and with inet_diag.
func checkLive(t *testing.T, o *Observer, live []*tlsSocket) {
	t.Helper()
	for _, s := range live {
		await(t, "all is acknowledged", func() bool {
			waiting, err := unix.IoctlGetInt(s.fd, unix.SIOCOUTQ)
			return waiting == 0 && err == nil
		})
	}
	list := keyed(t, o)
	diag, err := netlink.SocketDiagTCPInfo(unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != len(live) {
		t.Errorf("%d sockets in the list, want %d", len(list), len(live))
	}
	for _, s := range live {
		i := slices.IndexFunc(list, func(c Connection) bool { return c.Cookie == s.cookie })
		if i < 0 {
			t.Errorf("socket %d is not in the list", s.cookie)
			continue
		}
		c := &list[i]
		sent, err1 := s.sequence(outward)
		received, err2 := s.sequence(inward)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if c.Sending != (Key{Software, sent}) || c.Receiving != (Key{Software, received}) {
			t.Errorf("socket %d: %+v and %+v, want %d and %d", s.cookie, c.Sending, c.Receiving, sent, received)
		}
		// What close would take from the kernel.
		want := *s
		for d, seq := range []uint64{sent, received} {
			traffic := want.traffic(d)
			traffic.Sequence, traffic.Path = seq, Software
			traffic.Records += seq - s.start[d]
		}
		if !want.same(c.Totals) {
			t.Errorf("socket %d: totals %+v, want %+v", s.cookie, c.Totals, want.want)
		}
		checkDiag(t, c, s, diag)
	}
}

func checkDiag(t *testing.T, c *Connection, s *tlsSocket, diag []*netlink.InetDiagTCPInfoResp) {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Fstat(s.fd, &stat); err != nil {
		t.Fatal(err)
	}
	for _, d := range diag {
		if uint64(d.InetDiagMsg.ID.Cookie[0])|uint64(d.InetDiagMsg.ID.Cookie[1])<<32 != c.Cookie {
			continue
		}
		i := d.TCPInfo
		if c.Sent != i.Bytes_sent || c.Acked != i.Bytes_acked || c.Received != i.Bytes_received || c.Retransmitted != i.Bytes_retrans {
			t.Errorf("socket %d: TCP %+v, inet_diag says %+v", c.Cookie, c, i)
		}
		if c.Inode != stat.Ino || uint32(c.Inode) != d.InetDiagMsg.INode || c.UID != d.InetDiagMsg.UID {
			t.Errorf("socket %d: inode %d, uid %d; want %d, %d", c.Cookie, c.Inode, c.UID, stat.Ino, d.InetDiagMsg.UID)
		}
		if c.Local.Port() != d.InetDiagMsg.ID.SourcePort || c.Peer.Port() != d.InetDiagMsg.ID.DestinationPort ||
			c.Local.Addr().String() != d.InetDiagMsg.ID.Source.String() || c.Peer.Addr().String() != d.InetDiagMsg.ID.Destination.String() {
			t.Errorf("socket %d: %v to %v, inet_diag says %+v", c.Cookie, c.Local, c.Peer, d.InetDiagMsg.ID)
		}
		return
	}
	t.Errorf("socket %d is not in inet_diag", c.Cookie)
}

func checkClosed(t *testing.T, events *eventLog, ended []*tlsSocket) {
	t.Helper()
	closed := make(map[uint64]Event)
	for _, e := range events.of(Closed) {
		closed[e.Cookie] = e
	}
	wrong := 0
	for _, s := range ended {
		if e := closed[s.cookie]; !s.same(e.Connection.Totals) {
			if wrong++; wrong < 5 {
				t.Errorf("socket %d: closed with\n%+v, want\n%+v", s.cookie, e.Connection.Totals, s.want)
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d sockets are wrong", wrong, len(ended))
	}
}

// checkSums compares with the sums over all sockets, and with /proc/net/tls_stat.
func checkSums(t *testing.T, o *Observer, before *Sums, stats *ktls.Stats, p *playground, ended []*tlsSocket) {
	t.Helper()
	now, err := o.Sums()
	if err != nil {
		t.Fatal(err)
	}
	after, err := ktls.ReadStats()
	if err != nil {
		t.Fatal(err)
	}
	want, calls := *before, true
	want.Missed = now.Missed
	for _, s := range ended {
		want.Connections++
		calls = calls && !s.parts
		for d, sum := range []*DirectionSums{&want.Sending, &want.Receiving} {
			traffic := s.traffic(d)
			if s.keyed[d] {
				sum.Software++
			}
			sum.Bytes += traffic.Bytes
			sum.Records += traffic.Records
			sum.Calls += traffic.Calls
			sum.Rekeys += uint64(traffic.Rekeys)
		}
		for kind, n := range s.want.Errors {
			want.Errors[kind] += uint64(n)
		}
		want.Failures += uint64(s.want.Failures)
		want.Ends[s.want.End]++
	}
	if !calls {
		want.Sending.Calls = now.Sending.Calls
	}
	if now != want {
		t.Errorf("sums\n%+v, want\n%+v", now, want)
	}
	for name, n := range map[string][2]uint64{
		"TlsTxSw":         {now.Sending.Software - before.Sending.Software, after.TxSw - stats.TxSw},
		"TlsRxSw":         {now.Receiving.Software - before.Receiving.Software, after.RxSw - stats.RxSw},
		"TlsDecryptError": {now.Errors[ErrorBadMessage] - before.Errors[ErrorBadMessage], after.DecryptError - stats.DecryptError},
		"TlsTxRekeyOk":    {now.Sending.Rekeys - before.Sending.Rekeys, after.TxRekeyOk - stats.TxRekeyOk},
		"TlsRxRekeyOk":    {now.Receiving.Rekeys - before.Receiving.Rekeys, after.RxRekeyOk - stats.RxRekeyOk},
	} {
		if n[0] != n[1] {
			t.Errorf("%s grew by %d, the observer saw %d", name, n[1], n[0])
		}
	}
	if p.rekeys == p.noRekey || p.rekeys != (now.Sending.Rekeys > before.Sending.Rekeys) {
		t.Errorf("the kernel takes new keys: %v, and not: %v; %d seen", p.rekeys, p.noRekey, now.Sending.Rekeys)
	}
}

// checkEvents counts the others.
func checkEvents(t *testing.T, events *eventLog, ended []*tlsSocket) {
	t.Helper()
	var installs, rekeys, errors, failures int
	for _, s := range ended {
		for d := range directions {
			if s.keyed[d] {
				installs++
			}
			rekeys += int(s.traffic(d).Rekeys)
		}
		for _, n := range s.want.Errors {
			errors += min(1, int(n))
		}
		failures += int(s.want.Failures)
	}
	var gotErrors, gotFailures int
	for _, e := range events.of(Failed) {
		if e.Layer {
			gotFailures++
		} else {
			gotErrors++
		}
	}
	if n := len(events.of(Installed)); n != installs {
		t.Errorf("%d keys installed, want %d", n, installs)
	}
	if n := len(events.of(Rekeyed)); n != rekeys {
		t.Errorf("%d rekeyed, want %d", n, rekeys)
	}
	if gotErrors != errors || gotFailures != failures {
		t.Errorf("%d errors and %d failures told, want %d and %d", gotErrors, gotFailures, errors, failures)
	}
}
