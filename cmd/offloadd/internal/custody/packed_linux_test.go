// SPDX-License-Identifier: Apache-2.0

package custody

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"
)

func TestARecordIsUnpackedAsItWasPacked(t *testing.T) {
	now := time.Unix(1700000000, 123456789)
	over := now.Add(time.Hour)
	hand := Hand{Role: "worker", PID: 1<<22 - 1, UID: 4294967294, ID: "0123", Time: now}
	key := Key{Place: Software, Since: now, Epoch: 7, Reason: "why", Hands: []Hand{hand, {Role: "application", Time: over}}}
	for _, c := range []struct {
		name   string
		change func(*record)
	}{
		{"as it is", func(*record) {}},
		{"over", func(r *record) { r.Condition, r.Over = Revoked, &over }},
		{"closed and lent", func(r *record) { r.Condition, r.Over, r.lent = Closed, &over, true }},
		{"in a device, and degraded", func(r *record) {
			r.device = 7
			r.Read.Place, r.Read.Device, r.Read.Degraded = Device, "eth0", &Degradation{now, "it went down"}
		}},
		{"not known where", func(r *record) { r.Write.Place = Unknown }},
		{"keys that went different ways", func(r *record) { r.Write.Hands = []Hand{hand} }},
		{"keys of nobody", func(r *record) { r.Read.Hands, r.Write.Hands = []Hand{}, []Hand{} }},
		{"what was agreed", func(r *record) { r.ALPN, r.ServerName, r.Resumed = "h2", "example.test", true }},
	} {
		for _, addresses := range [][2]string{{"192.0.2.1:443", "198.51.100.2:65535"}, {"[2001:db8::1]:443", "[fe80::2]:1"}} {
			t.Run(c.name+", "+addresses[0], func(t *testing.T) {
				local, peer := netip.MustParseAddrPort(addresses[0]), netip.MustParseAddrPort(addresses[1])
				r := &record{
					Entry: Entry{Socket: 1 << 40, Condition: Live, Listener: "web", Local: local, Peer: peer, Version: "TLS 1.3", Suite: "suite", Accepted: now, Read: key, Write: key},
					id:    newSocketID(local, peer, 3), added: over,
				}
				c.change(r)
				want := *r
				if got := r.pack().unpack(); !reflect.DeepEqual(*got, want) {
					t.Errorf("%+v\nwas packed as\n%+v", want, *got)
				}
			})
		}
	}
}

// keptNumber is what is kept of a connection, and where.
type keptNumber struct{ n, destroyed int }

func (k *keptNumber) Destroy() { k.destroyed++ }

func TestRepackingChangesNoRecord(t *testing.T) {
	table := NewTable(100, slog.New(slog.DiscardHandler))
	now := time.Unix(1700000000, 0)
	var want []Entry
	for i := range 20 {
		local, peer := netip.MustParseAddrPort("192.0.2.1:443"), netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), uint16(i+1))
		hands := []Hand{{Role: "worker", PID: i, Time: now}, {Role: "daemon", ID: fmt.Sprint(i), Time: now}}
		key := Key{Place: Software, Since: now, Hands: hands[:1+i%2]}
		e := Entry{Socket: uint64(i), Condition: Live, Listener: "web", Local: local, Peer: peer, Accepted: now, Read: key, Write: key}
		if i%3 == 0 {
			e.Write.Hands = hands
		}
		table.put(&record{Entry: e, id: newSocketID(local, peer, 0), added: now})
		if i%4 != 0 {
			table.Keep(e.Socket, &keptNumber{n: i})
		}
		want = append(want, e)
	}
	if _, err := table.Borrow(5); err != nil {
		t.Fatal(err)
	}
	moved := 0
	for range 2 {
		table.Repack(func(most int) func(Kept) Kept {
			if most != len(want) {
				t.Errorf("%d at most, want %d", most, len(want))
			}
			return func(k Kept) Kept { moved++; return &keptNumber{n: k.(*keptNumber).n} }
		})
		// One that is changed must not change its neighbours.
		table.Pass(7, Hand{Role: "application", Time: now})
		for _, k := range want[7].keys() {
			k.Hands = append(slices.Clone(k.Hands), Hand{Role: "application", Time: now})
		}
		for i, e := range want {
			if got, ok := table.Get(e.Socket); !ok || !reflect.DeepEqual(got, e) {
				t.Errorf("%d is %+v,\nwas %+v", i, got, e)
			}
			k, err := table.Borrow(e.Socket)
			switch {
			case i == 5 && !errors.Is(err, ErrLent), i%4 == 0 && !errors.Is(err, ErrNotKept):
				t.Error(i, err)
			case i != 5 && i%4 != 0:
				if err != nil || k.(*keptNumber).n != i {
					t.Errorf("%d keeps %v, %v", i, k, err)
				}
				table.Keep(e.Socket, k)
			}
		}
	}
	if moved != 2*14 {
		t.Errorf("%d moves", moved)
	}
}

func TestAV4MappedAddressIsUnpackedAsIPv4(t *testing.T) {
	id := newSocketID(netip.MustParseAddrPort("[::ffff:192.0.2.1]:443"), netip.MustParseAddrPort("[::ffff:192.0.2.2]:5"), 0)
	if local, peer := id.addresses(); local.String() != "192.0.2.1:443" || peer.String() != "192.0.2.2:5" {
		t.Error(local, peer)
	}
}
