// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Watch watches until it is finished.
type Watch struct {
	table   *table
	trace   *trace
	packets *packets
	stop    chan struct{}
	stopped chan struct{}
	failure error
}

// pause is the time between two rounds, which cost milliseconds in an emulated machine.
// Packets and events wait in the kernel.
const pause = 100 * time.Millisecond

// Start begins to watch this machine's loopback and all other interfaces of this
// network namespace. It needs root, tracefs and the TLS module, and tries on a
// connection of its own whether it sees what it must.
func Start() (*Watch, error) {
	w := &Watch{table: newTable(), stop: make(chan struct{}), stopped: make(chan struct{})}
	var err error
	if w.packets, err = openPackets(); err != nil {
		return nil, fmt.Errorf("watch packets: %w", err)
	}
	if w.trace, err = startTrace(w.table); err != nil {
		w.packets.close()
		return nil, fmt.Errorf("watch the kernel's TLS module: %w", err)
	}
	if err := w.tryItself(); err != nil {
		w.trace.close()
		w.packets.close()
		return nil, fmt.Errorf("watch kernel TLS: a trial on a connection of its own failed: %w", err)
	}
	go w.follow()
	return w, nil
}

// Finish ends watching. Whoever used TLS should have closed its connections.
func (w *Watch) Finish() *Report {
	time.Sleep(settleRounds * pause)
	close(w.stop)
	<-w.stopped
	r := w.table.finish()
	r.Failures = append(r.Failures, w.failure, w.trace.missed(), w.trace.close())
	r.Dropped = w.packets.drops
	w.packets.close()
	r.Failures = slices.DeleteFunc(r.Failures, func(err error) bool { return err == nil })
	return r
}

func (w *Watch) follow() {
	defer close(w.stopped)
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for w.failure == nil {
		select {
		case <-w.stop:
			w.failure = w.round()
			return
		case <-ticker.C:
			w.failure = w.round()
		}
	}
}

// round reads the trace when it knows which packets it will take: then the calls that
// came before them are there.
func (w *Watch) round() error {
	n := w.packets.ready()
	if err := w.trace.read(); err != nil {
		return err
	}
	w.table.placeAll()
	if err := w.packets.read(n, w.table.packet); err != nil {
		return err
	}
	w.table.round()
	return nil
}

// tryItself makes a connection with keys, and forgets it when it was seen.
func (w *Watch) tryItself() error {
	c, err := newTrial()
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.talk(); err != nil {
		return err
	}
	for range 100 {
		if err := w.round(); err != nil {
			return err
		}
		if s := w.table.byPorts[c.ports]; len(s) == 1 && s[0].judge.opened == 1 {
			break
		}
		time.Sleep(pause)
	}
	s := w.table.byPorts[c.ports]
	switch l := w.table.ledger; {
	case l.installed != 2 || len(l.keys) != 1:
		return fmt.Errorf("it saw %d keys installed, not 2", l.installed)
	case len(l.violations) > 0:
		return errors.New(l.violations[0].String())
	case len(s) != 1 || s[0].judge.opened != 1:
		return errors.New("it did not open a record")
	case w.trace.lastNet == 0:
		return errors.New("it did not see a network namespace")
	}
	fresh := newTable()
	fresh.net = w.trace.lastNet
	*w.table = *fresh
	return nil
}
