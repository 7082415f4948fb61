// SPDX-License-Identifier: Apache-2.0

package custody

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// linkLoss is an event that destroys the keys in a device.
type linkLoss struct {
	index int // of the interface
	name  string
	what  string // "went down", ...
	time  time.Time
	// certain: the keys are lost; else they may be.
	certain bool
	// port is the interface under a bond that it happened to; "" if it is the interface
	// itself.
	port string
}

// lossMemory is how long a loss is remembered, for connections whose keys are being
// installed meanwhile.
const lossMemory = time.Minute

// named are the sockets that one line of the log names.
const named = 16

// linkLost marks the connections with keys in a device that lost them.
func (t *Table) linkLost(loss linkLoss) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for index, old := range t.losses {
		if loss.time.Sub(old.time) > lossMemory {
			delete(t.losses, index)
		}
	}
	t.losses[loss.index] = loss
	var hit []*record
	for _, p := range t.records {
		if int(p.device) != loss.index {
			continue
		}
		if r := p.unpack(); r.Read.maybeIn() || r.Write.maybeIn() {
			hit = append(hit, r)
		}
	}
	slices.SortFunc(hit, func(a, b *record) int { return cmp.Compare(a.Socket, b.Socket) })
	t.degrade(hit, loss)
}

// maybeIn reports whether the key is in a device, as far as is known.
func (k *Key) maybeIn() bool { return k.Place == Device || k.Place == Unknown && k.Device != "" }

// degrade marks records, counts them and says so once. A key that is lost for certain
// has left the device, so a second loss finds it no more.
func (t *Table) degrade(hit []*record, loss linkLoss) {
	var sockets []uint64
	for _, r := range hit {
		if !r.Degraded() {
			t.totals.DegradedEver++
		}
		r.degrade(loss)
		t.put(r)
		if len(sockets) < named {
			sockets = append(sockets, r.Socket)
		}
	}
	if len(hit) > 0 {
		t.log.Warn("custody degraded", "device", loss.name, "reason", loss.reason(), "connections", len(hit), "sockets", sockets)
	}
}

// degrade moves the keys out of the device.
func (r *record) degrade(loss linkLoss) {
	if r.Write.Place == Software && r.Read.Place == Device {
		r.Write.Degraded = &Degradation{Since: loss.time,
			Reason: loss.event() + " while only the read key was there: Linux has stopped sending for good; revoke the connection"}
	}
	for _, k := range r.keys() {
		if !k.maybeIn() {
			continue
		}
		k.Place, k.Since, k.Reason = Unknown, loss.time, loss.reason()
		if loss.certain {
			k.Place = Software
		}
		k.Degraded = &Degradation{Since: loss.time, Reason: k.Reason}
	}
}

// event says what happened to which interface.
func (l linkLoss) event() string {
	if l.port != "" {
		return fmt.Sprintf("%s, a port of %s, %s", l.port, l.name, l.what)
	}
	return l.name + " " + l.what
}

func (l linkLoss) reason() string {
	switch {
	case l.port != "":
		// The kernel chose the port by a hash of the addresses (netdev_sk_get_lowest_dev).
		return l.event() + ": the key is lost if it was in that port, and then the kernel goes on in software"
	case !l.certain:
		return l.event() + ": then the key is lost, and the kernel goes on in software"
	}
	return l.event() + ": its key is lost, and the kernel goes on in software"
}

// checkHalfOffload marks what Linux 6.1 to 7 cannot survive: with the read key in a
// device and the write key in software, the connection stops sending for good when
// the device goes down.
func (r *record) checkHalfOffload() {
	if r.Write.Place == Software && r.Read.Place == Device {
		name := r.Read.Device
		if name == "" {
			name = "a device"
		}
		r.Write.Degraded = &Degradation{Since: r.added,
			Reason: fmt.Sprintf("only the read key is in %s: when that goes down, Linux stops sending for good", name)}
	}
}
