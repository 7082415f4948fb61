// SPDX-License-Identifier: Apache-2.0

package ktlstest

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/offloadd/offloadd/blob"
)

// Refuse has the devices take none of the next count keys of a direction; 0 means
// both directions.
func (n *NIC) Refuse(t testing.TB, d blob.Direction, why syscall.Errno, count int) {
	t.Helper()
	name := map[blob.Direction]string{0: "any", blob.Read: "rx", blob.Write: "tx"}[d]
	n.control(t, "refuse %s %d %d", name, uint(why), count)
}

// Limit has the devices hold no more than count keys at a time, both together; 0 is
// no limit.
func (n *NIC) Limit(t testing.TB, count int) { t.Helper(); n.control(t, "capacity %d", count) }

// Drop loses every nth packet with data on the wire, whichever way it goes; 0 none.
func (n *NIC) Drop(t testing.TB, nth int) { t.Helper(); n.control(t, "drop %d", nth) }

// Reorder has every nth packet with data overtaken by the next packet; 0 none.
func (n *NIC) Reorder(t testing.TB, nth int) { t.Helper(); n.control(t, "reorder %d", nth) }

// Tamper flips the last bit of the next count packets with data, on the wire.
func (n *NIC) Tamper(t testing.TB, count int) { t.Helper(); n.control(t, "tamper %d", count) }

// Spoil changes the device's copy of a key, and no other. The key's digest changes
// with it.
func (n *NIC) Spoil(t testing.TB, id int) { t.Helper(); n.control(t, "spoil %d", id) }

// Lose has the device forget where it is in the records of a key: from then on the
// kernel does its work, until it has told the device the beginning of a record.
func (n *NIC) Lose(t testing.TB, id int) { t.Helper(); n.control(t, "lose %d", id) }

// SetLink takes our end of the link down or up. The kernel takes the keys from a device
// that goes down; IPv4 connections go on when it is up again, in software.
func (n *NIC) SetLink(t testing.TB, up bool) {
	t.Helper()
	link, err := netlink.LinkByName(nicEnds[0].device)
	if err == nil && up {
		err = netlink.LinkSetUp(link)
	} else if err == nil {
		err = netlink.LinkSetDown(link)
	}
	if err != nil {
		t.Fatalf("%s up %v: %v", nicEnds[0].device, up, err)
	}
}

// control asks for a fault: test/vm/tlsnic/control.c has the list.
func (n *NIC) control(t testing.TB, format string, arguments ...any) {
	t.Helper()
	line := fmt.Sprintf(format, arguments...)
	if err := os.WriteFile(filepath.Join(n.dir, "control"), []byte(line), 0); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
}
