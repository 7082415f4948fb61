// SPDX-License-Identifier: Apache-2.0

package custody

import (
	"net/netip"
	"reflect"
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

func TestAV4MappedAddressIsUnpackedAsIPv4(t *testing.T) {
	id := newSocketID(netip.MustParseAddrPort("[::ffff:192.0.2.1]:443"), netip.MustParseAddrPort("[::ffff:192.0.2.2]:5"), 0)
	if local, peer := id.addresses(); local.String() != "192.0.2.1:443" || peer.String() != "192.0.2.2:5" {
		t.Error(local, peer)
	}
}
