// SPDX-License-Identifier: Apache-2.0

package custody

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkBuffer holds some thousand link events.
const linkBuffer = 4 << 20

// listTries bounds the attempts at a list of links that change meanwhile.
const listTries = 10

// link is the last that is known of an interface.
type link struct {
	name   string
	up     bool // administratively (IFF_UP), which is what net/tls goes by; not the carrier
	master int  // of a bond's port, else 0
}

// links follows the interfaces of this network namespace.
type links struct {
	table *Table
	log   *slog.Logger
	known map[int]link
}

// WatchLinks marks connections in the table whose device loses their keys, from its
// return until ctx ends. Switching off a device's TLS features loses no key
// (ethtool -K, net/tls/tls_main.c), nor does losing its carrier, so neither is an
// alarm.
func WatchLinks(ctx context.Context, log *slog.Logger, table *Table) error {
	w := &links{table: table, log: log, known: make(map[int]link)}
	updates, stop, err := w.subscribe()
	if err != nil {
		return fmt.Errorf("custody: watch the network devices: %w", err)
	}
	go w.run(ctx, updates, stop)
	return nil
}

// subscribe begins to listen, and then looks at each interface once.
func (w *links) subscribe() (<-chan netlink.LinkUpdate, func(), error) {
	updates, done := make(chan netlink.LinkUpdate, 64), make(chan struct{})
	stop := func() {
		close(done)
		for range updates { // its sender must not be left waiting
		}
	}
	err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{
		ReceiveBufferSize: linkBuffer, ReceiveBufferForceSize: true,
		ErrorCallback: func(err error) {
			select {
			case <-done: // we closed it
			default:
				w.log.Warn("watching the network devices", "error", err)
			}
		},
	})
	if err != nil {
		return nil, nil, err
	}
	if err := w.list(); err != nil {
		stop()
		return nil, nil, err
	}
	return updates, stop, nil
}

// run follows the events. The channel is closed when the socket failed, which means
// that events are lost.
func (w *links) run(ctx context.Context, updates <-chan netlink.LinkUpdate, stop func()) {
	for {
		select {
		case <-ctx.Done():
			stop()
			return
		case u, ok := <-updates:
			if ok {
				w.update(&u)
				continue
			}
		}
		stop()
		var err error
		for updates, stop, err = w.subscribe(); err != nil; updates, stop, err = w.subscribe() {
			w.log.Error("cannot watch the network devices", "error", err, "retry_in", retryPause)
			if !sleep(ctx, retryPause) {
				return
			}
		}
		w.uncertain()
	}
}

// list compares with the interfaces as they are now.
func (w *links) list() error {
	all, err := netlink.LinkList()
	for tries := 1; errors.Is(err, netlink.ErrDumpInterrupted) && tries < listTries; tries++ {
		all, err = netlink.LinkList()
	}
	if err != nil {
		return err
	}
	present := make(map[int]bool, len(all))
	for _, l := range all {
		present[l.Attrs().Index] = true
		w.see(l)
	}
	for index := range w.known {
		if !present[index] {
			w.gone(index)
		}
	}
	return nil
}

func (w *links) update(u *netlink.LinkUpdate) {
	// Bridges speak of their ports in messages of the same type and another family.
	if u.IfInfomsg.Family != unix.AF_UNSPEC {
		return
	}
	if u.Header.Type == unix.RTM_DELLINK {
		w.gone(u.Link.Attrs().Index)
	} else {
		w.see(u.Link)
	}
}

// see takes note of an interface's state.
func (w *links) see(l netlink.Link) {
	a := l.Attrs()
	before, now := w.known[a.Index], link{name: a.Name, up: a.Flags&net.FlagUp != 0}
	if a.Slave != nil && a.Slave.SlaveType() == "bond" {
		now.master = a.MasterIndex
	}
	w.known[a.Index] = now
	if before.up && !now.up {
		// A port that is taken out of its bond goes down in the same act.
		w.lost(a.Index, before, "went down")
	} else if before.master != 0 && now.master != before.master {
		w.lostPort(before, "left it")
	}
}

// gone: unregistered, or moved to another network namespace.
func (w *links) gone(index int) {
	before, ok := w.known[index]
	if !ok {
		return
	}
	delete(w.known, index)
	w.lost(index, before, "was removed, or moved to another network namespace")
}

func (w *links) lost(index int, l link, what string) {
	w.table.linkLost(linkLoss{index: index, name: l.name, what: what, time: time.Now(), certain: true})
	if l.master != 0 {
		w.lostPort(l, what)
	}
}

// lostPort: a bond's connections have their keys in one of its ports.
func (w *links) lostPort(l link, what string) {
	w.table.linkLost(linkLoss{index: l.master, name: w.known[l.master].name, what: what, time: time.Now(), port: l.name})
}

// uncertain: events were lost. A device that is up now may have been down meanwhile.
func (w *links) uncertain() {
	for index, l := range w.known {
		if l.up {
			w.table.linkLost(linkLoss{index: index, name: l.name, what: "may have gone down, as events of links were lost", time: time.Now()})
		}
	}
}
