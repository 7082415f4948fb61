// SPDX-License-Identifier: Apache-2.0

package custody

import (
	"net/netip"
	"slices"
	"time"
	"unique"

	"golang.org/x/sys/unix"
)

// A table may have hundreds of thousands of connections, of which most are idle, so a
// record is kept packed: what many connections share is there once, and a time is a
// number.

// packed is a record.
type packed struct {
	id                    socketID
	condition             uint8
	lent                  bool
	device                int32
	socket                uint64
	agreed                unique.Handle[agreed]
	accepted, added, over int64 // nanoseconds of Unix; over is 0 if it is live
	read, write           packedKey
	kept                  Kept
}

// agreed is what was agreed on in a handshake, and by whom.
type agreed struct {
	listener, version, suite, alpn, serverName string
	resumed                                    bool
}

type packedKey struct {
	since          int64
	epoch          uint32
	place          uint8
	device, reason unique.Handle[string]
	degraded       *Degradation
	hands          []packedHand // of both keys the same one, if they are equal
}

type packedHand struct {
	time     int64
	pid      int32
	uid      uint32
	identity unique.Handle[identity]
}

type identity struct{ role, id string }

// The numbers of places and conditions are their indices; 0 is that of one not known here.
var (
	places     = [...]Place{Unknown, Software, Device, UserSpace}
	conditions = [...]Condition{Live, Closed, Revoked}
)

func (r *record) pack() *packed {
	p := &packed{
		id: r.id, condition: uint8(max(slices.Index(conditions[:], r.Condition), 0)), lent: r.lent, device: int32(r.device), socket: r.Socket,
		agreed:   unique.Make(agreed{r.Listener, r.Version, r.Suite, r.ALPN, r.ServerName, r.Resumed}),
		accepted: r.Accepted.UnixNano(), added: r.added.UnixNano(),
		read: r.Read.pack(), write: r.Write.pack(), kept: r.kept,
	}
	if r.Over != nil {
		p.over = r.Over.UnixNano()
	}
	if slices.Equal(p.read.hands, p.write.hands) {
		p.write.hands = p.read.hands
	}
	return p
}

func (p *packed) unpack() *record {
	a := p.agreed.Value()
	local, peer := p.id.addresses()
	r := &record{
		Entry: Entry{
			Socket: p.socket, Condition: conditions[p.condition], Listener: a.listener, Local: local, Peer: peer,
			Version: a.version, Suite: a.suite, Resumed: a.resumed, ALPN: a.alpn, ServerName: a.serverName,
			Accepted: time.Unix(0, p.accepted), Read: p.read.unpack(), Write: p.write.unpack(),
		},
		id: p.id, device: int(p.device), added: time.Unix(0, p.added), kept: p.kept, lent: p.lent,
	}
	if p.over != 0 {
		over := time.Unix(0, p.over)
		r.Over = &over
	}
	return r
}

// Repack moves all records together: what is left of those that came one after another,
// between what else was allocated and is garbage now, keeps hardly used memory occupied.
// For what is kept with them, begin is told how many there are at most, and returns what
// moves one.
func (t *Table) Repack(begin func(most int) func(Kept) Kept) {
	t.mu.Lock()
	defer t.mu.Unlock()
	count := 0
	for _, p := range t.records {
		count += len(p.read.hands) + len(p.write.hands)
	}
	all, hands := make([]packed, 0, len(t.records)), make([]packedHand, 0, count)
	together := func(h []packedHand) []packedHand {
		at := len(hands)
		hands = append(hands, h...)
		return hands[at:len(hands):len(hands)]
	}
	move := begin(len(t.records))
	for socket, p := range t.records {
		all = append(all, *p)
		q := &all[len(all)-1]
		q.read.hands = together(p.read.hands)
		q.write.hands = q.read.hands
		if !slices.Equal(p.read.hands, p.write.hands) {
			q.write.hands = together(p.write.hands)
		}
		if p.kept != nil {
			q.kept = move(p.kept)
		}
		t.records[socket] = q
	}
}

func (k *Key) pack() packedKey {
	hands := make([]packedHand, len(k.Hands))
	for i, h := range k.Hands {
		hands[i] = packedHand{h.Time.UnixNano(), int32(h.PID), h.UID, unique.Make(identity{h.Role, h.ID})}
	}
	return packedKey{k.Since.UnixNano(), k.Epoch, uint8(max(slices.Index(places[:], k.Place), 0)),
		unique.Make(k.Device), unique.Make(k.Reason), k.Degraded, hands}
}

func (p *packedKey) unpack() Key {
	hands := make([]Hand, len(p.hands))
	for i, h := range p.hands {
		who := h.identity.Value()
		hands[i] = Hand{who.role, int(h.pid), h.uid, who.id, time.Unix(0, h.time)}
	}
	return Key{places[p.place], time.Unix(0, p.since), p.device.Value(), p.epoch, p.reason.Value(), p.degraded, hands}
}

// addresses are those of the connection; v4-mapped ones as IPv4.
func (id *socketID) addresses() (local, peer netip.AddrPort) {
	read := func(port, host int) netip.AddrPort {
		b := id.raw[host:][:16]
		if id.family == unix.AF_INET {
			b = b[:4]
		}
		a, _ := netip.AddrFromSlice(b) // 4 or 16 bytes
		return unmapped(netip.AddrPortFrom(a, uint16(id.raw[port])<<8|uint16(id.raw[port+1])))
	}
	return read(idSrcPort, idSrc), read(idDstPort, idDst)
}
