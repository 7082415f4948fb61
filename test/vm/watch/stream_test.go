// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	mathrand "math/rand/v2"
	"net/netip"
	"testing"
)

// packet makes an IP packet with a TCP segment.
func packet(f flow, seq uint32, flags byte, payload []byte) []byte {
	tcp := binary.BigEndian.AppendUint16(nil, f.src.Port())
	tcp = binary.BigEndian.AppendUint16(tcp, f.dst.Port())
	tcp = binary.BigEndian.AppendUint32(tcp, seq)
	tcp = append(tcp, 0, 0, 0, 0, 6<<4, flags, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1) // with options
	tcp = append(tcp, payload...)
	if f.src.Addr().Is4() {
		ip := []byte{4<<4 | 5, 0, 0, 0, 0, 0, 0, 0, 64, protocolTCP, 0, 0}
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(tcp)))
		return append(append(append(ip, f.src.Addr().AsSlice()...), f.dst.Addr().AsSlice()...), tcp...)
	}
	ip := []byte{6 << 4, 0, 0, 0, 0, 0, protocolTCP, 64}
	binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
	return append(append(append(ip, f.src.Addr().AsSlice()...), f.dst.Addr().AsSlice()...), tcp...)
}

const (
	flagFIN, flagSYN, flagRST = 1, 2, 4
)

var flows = []flow{
	{netip.MustParseAddrPort("127.0.0.1:1000"), netip.MustParseAddrPort("127.0.0.1:2000")},
	{netip.MustParseAddrPort("[::1]:1000"), netip.MustParseAddrPort("[::1]:2000")},
}

// TestStreamsArePutInOrder: whatever comes early, twice, or in part, and with sequence
// numbers that wrap.
func TestStreamsArePutInOrder(t *testing.T) {
	data := make([]byte, 1<<16)
	rand.Read(data)
	const begin = 1<<32 - 1<<15
	for _, f := range flows {
		var pieces [][2]int
		for at := 0; at < len(data); {
			n := min(1+mathrand.IntN(3000), len(data)-at)
			pieces = append(pieces, [2]int{max(0, at-mathrand.IntN(100)), at + n})
			at += n
		}
		pieces = append(pieces, pieces[:len(pieces)/2]...)
		mathrand.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		table := newTable()
		table.packet(packet(f, begin, flagSYN, nil))
		fin := uint32(begin) + 1 + uint32(len(data))
		table.packet(packet(f, fin, flagFIN, nil))
		for _, p := range pieces {
			if table.flows[f].ended() {
				break
			}
			table.packet(append(packet(f, begin+1+uint32(p[0]), 0, data[p[0]:p[1]]), 0, 0)) // padded, as by Ethernet
		}
		s := table.flows[f]
		if !bytes.Equal(s.ready, data) || !s.ended() || len(s.early) != 0 || s.earlySize != 0 {
			t.Errorf("%v: %d bytes in order, %d waiting (%d)", f, len(s.ready), len(s.early), s.earlySize)
		}
	}
}

func TestAStreamWithAHoleIsNotJudged(t *testing.T) {
	w := newWriter(t, suites[0])
	for name, last := range map[string][]byte{
		"in the middle": packet(flows[0], 150, 0, []byte("x")),
		"at the end":    packet(flows[0], 150, flagFIN, nil),
	} {
		table := newTable()
		table.packet(packet(flows[0], 99, flagSYN, nil))
		for _, option := range []int{0, optionTX} {
			c := &call{socket: socket{ports: flows[0].ports(), writeSeq: 100}, option: option, value: w.info(0)}
			if err := table.call(c); err != nil {
				t.Fatal(err)
			}
		}
		table.packet(last)
		table.round()
		r := table.finish()
		if r.Judged != 0 || r.NotJudged[reasonLost] != 1 || len(r.Violations) != 0 {
			t.Errorf("%s: %v", name, r)
		}
	}
}

// TestCallsMeetTheirStream: a call that comes before its packets, one of an older
// connection with the same ports, one in another network namespace, one of a device.
func TestCallsMeetTheirStream(t *testing.T) {
	w := newWriter(t, suites[0])
	table := newTable()
	table.net = 7
	call := func(net uint64, seq uint32, device bool) {
		t.Helper()
		at := socket{net: net, ports: flows[0].ports(), writeSeq: seq}
		for _, c := range []*call{{socket: at}, {socket: at, option: optionTX, value: w.info(0), device: device}} {
			if err := table.call(c); err != nil {
				t.Fatal(err)
			}
		}
	}
	call(7, 100, false)
	table.round()
	table.packet(packet(flows[0], 99, flagSYN, nil))
	table.packet(packet(flows[0], 100, 0, w.seal(0, text)))
	table.round()
	table.packet(packet(flows[0], 130, flagRST, nil))
	w = newWriter(t, suites[0])
	table.packet(packet(flows[0], 1<<31, flagSYN, nil))
	table.packet(packet(flows[0], 1<<31+1, 0, w.seal(0, text)))
	call(7, 1<<31+1, false)
	table.round()
	w = newWriter(t, suites[0])
	table.packet(packet(flows[0], 1<<30, flagSYN, nil))
	table.packet(packet(flows[0], 1<<30+1, 0, []byte("in clear, as a packet socket sees it")))
	call(7, 1<<30+1, true)
	w = newWriter(t, suites[0])
	call(8, 100, false)
	table.round()
	r := table.finish()
	if r.Judged != 2 || r.Opened != 2 || len(r.NotJudged) != 2 || r.Keys != 4 || r.Err() != nil {
		t.Errorf("%v, %v", r, r.Err())
	}
}

// TestConnectionsAreCountedOnce: also those that use ports again, and those with the
// ULP at one end. A connection that was refused does not stay.
func TestConnectionsAreCountedOnce(t *testing.T) {
	table := newTable()
	there, back := flows[0], flows[0].reversed()
	attach := func(f flow, seq uint32) {
		if err := table.call(&call{socket: socket{ports: f.ports(), writeSeq: seq}}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint32(3) {
		table.packet(packet(there, i<<30+99, flagSYN, nil))
		table.packet(packet(back, i<<30+899, flagSYN, nil))
		attach(back, i<<30+900)
		if i > 0 {
			attach(there, i<<30+100)
		}
		table.round()
	}
	table.packet(packet(flows[1], 99, flagSYN, nil))
	table.packet(packet(flows[1].reversed(), 0, flagRST, nil))
	table.packet(packet(back, 899, flagRST, nil)) // of the first connection, late
	for range settleRounds + 1 {
		table.round()
	}
	if table.flows[flows[1]] != nil {
		t.Error("a connection that was refused is kept")
	}
	if table.flows[there].finished {
		t.Error("a reset of an older connection ended the newest")
	}
	if r := table.finish(); r.Connections != 3 || r.Keyless != 5 {
		t.Errorf("%v", r)
	}
}

// TestAStreamThatGoesOnAfterItsEnd is said not to be judged.
func TestAStreamThatGoesOnAfterItsEnd(t *testing.T) {
	table := newTable()
	table.packet(packet(flows[0], 99, flagSYN, nil))
	if err := table.call(&call{socket: socket{ports: flows[0].ports(), writeSeq: 100}}); err != nil {
		t.Fatal(err)
	}
	table.packet(packet(flows[0], 100, flagRST, nil))
	for range settleRounds + 1 {
		table.round()
	}
	table.packet(packet(flows[0], 100, 0, text))
	if r := table.finish(); len(r.NotJudged) != 1 {
		t.Errorf("%v", r)
	}
}

// TestAnOlderConnectionWithTheSamePorts is not taken for the newest.
func TestAnOlderConnectionWithTheSamePorts(t *testing.T) {
	table := newTable()
	for _, begin := range []uint32{5000, 9000} {
		table.packet(packet(flows[0], begin-1, flagSYN, nil))
	}
	for _, begin := range []uint32{5000, 9000} {
		if s := table.find(socket{ports: flows[0].ports(), writeSeq: begin}); s == nil || s.begin != begin {
			t.Errorf("not the connection that begins at %d", begin)
		}
	}
}

func TestTooManyLostAreAFailure(t *testing.T) {
	r := &Report{Judged: 100}
	for n := range 10 {
		if failed := r.Err() != nil; failed != (n > 7) {
			t.Errorf("%d lost of 100: %v", n, r.Err())
		}
		r.skip(reasonLost)
	}
}
