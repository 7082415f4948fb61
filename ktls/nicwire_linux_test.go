// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

func TestTamperingIsNoticed(t *testing.T) {
	n := ktlstest.NewNIC(t)
	p := n.NewPair(t, "tcp6")
	n.Install(t, nicSuite, p)
	exchange(t, p.Server, p.Client)
	n.Tamper(t, 1)
	expectBadMessage(t, p.Server, p.Client)
}

// TestNothingIsLostOnABadWire: what is retransmitted or comes too early is encrypted
// and decrypted by the kernel, and the device goes on at a later record.
func TestNothingIsLostOnABadWire(t *testing.T) {
	n := ktlstest.NewNIC(t)
	for _, c := range []struct {
		name          string
		fault         func(testing.TB, int)
		retransmitted bool
	}{{"that loses packets", n.Drop, true}, {"that reorders packets", n.Reorder, false}} {
		t.Run(c.name, func(t *testing.T) {
			p := n.NewPair(t, "tcp4")
			n.Install(t, nicSuite, p)
			c.fault(t, 23)
			transfer(t, p, nicData)
			c.fault(t, 0)
			for _, key := range deviceKeys(t, n, p) {
				if key.Bypassed == 0 && (key.Direction == blob.Read || c.retransmitted) {
					t.Errorf("the wire was not that bad: %+v", key)
				}
			}
			expectResumption(t, n, p)
		})
	}
}

func TestADeviceThatLosesItsPlaceGoesOn(t *testing.T) {
	n := ktlstest.NewNIC(t)
	p := n.NewPair(t, "tcp6")
	n.Install(t, nicSuite, p)
	for _, key := range deviceKeys(t, n, p) {
		n.Lose(t, key.ID)
	}
	expectResumption(t, n, p)
	for _, key := range deviceKeys(t, n, p) {
		if key.Resyncs == 0 {
			t.Errorf("found its place by itself: %+v", key)
		}
	}
}

// expectResumption sends bursts of records until the device does the work again.
//
// The kernel tells a device that decrypts where the next record begins after a few
// records of which it decrypted nothing, then after twice as many, and so on. If more
// is queued at that moment it waits for the last queued record, and is right. If
// not, it gives the place of the record that it is reading, which has passed (6.1,
// 6.12 and 7.3, net/tls/tls_device.c, tls_device_core_ctrl_rx_resync).
func expectResumption(t testing.TB, n *ktlstest.NIC, p *ktlstest.Pair) {
	t.Helper()
	// Odd, as the kernel counts to powers of two, which must not always be a burst's last record.
	const burst = 7
	before := deviceKeys(t, n, p)
	for range 200 {
		for _, way := range [][2]net.Conn{{p.Client, p.Server}, {p.Server, p.Client}} {
			want := bytes.Repeat([]byte("a record"), burst)
			for record := range slices.Chunk(want, len(want)/burst) {
				if _, err := way[0].Write(record); err != nil {
					t.Fatal(err)
				}
			}
			got := make([]byte, len(want))
			way[1].SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.ReadFull(way[1], got); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%q, %v", got, err)
			}
		}
		resumed := true
		for i, key := range deviceKeys(t, n, p) {
			resumed = resumed && key.Packets > before[i].Packets
		}
		if resumed {
			return
		}
	}
	t.Errorf("the device did not go on: %+v, then %+v", before, deviceKeys(t, n, p))
}
