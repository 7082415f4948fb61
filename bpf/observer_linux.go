// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// An Observer reads what the observer's programs write. It needs no capability, only that the pins may be opened. It may
// be used by several goroutines at a time.
type Observer struct {
	pins                pins
	observed, sums, raw *ebpf.Map
}

// OpenObserver opens what LoadObserver pinned below dir. Empty: DefaultDir. It fails with ErrNotLoaded if there is none.
func OpenObserver(dir string) (*Observer, error) {
	o := &Observer{pins: observerPins(dir)}
	for _, m := range []struct {
		name string
		into **ebpf.Map
		size int
	}{
		{mapObserved, &o.observed, binary.Size(rawConnection{})},
		{mapObservedSums, &o.sums, binary.Size(rawSums{})},
		{mapObservedEvents, &o.raw, 0},
	} {
		opened, err := ebpf.LoadPinnedMap(o.pins.mapPin(m.name), nil)
		if err != nil {
			o.Close()
			return nil, o.notLoaded(err)
		}
		if *m.into = opened; int(opened.ValueSize()) != m.size {
			o.Close()
			return nil, fmt.Errorf("map %s is of another version of offloadd: run \"offloadd bpf load\" of this one", m.name)
		}
	}
	list, err := o.list()
	if err != nil {
		o.Close()
		return nil, o.notLoaded(err)
	}
	list.Close()
	return o, nil
}

// notLoaded: with the maps there and the iterator not, Load could not attach it.
func (o *Observer) notLoaded(err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if there, _ := o.pins.loaded(); there {
		return fmt.Errorf("%w: the observer is off, and \"offloadd bpf status\" says why (%v)", ErrNotLoaded, err)
	}
	return ErrNotLoaded
}

// Close ends Events too.
func (o *Observer) Close() error {
	var errs []error
	for _, m := range []*ebpf.Map{o.observed, o.sums, o.raw} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// list opens a run of the iterator.
func (o *Observer) list() (*os.File, error) { return os.Open(o.pins.linkPin(listProgram().pin())) }

// Connections lists all kernel TLS sockets of the caller's network namespace that are connected. Sockets of other
// programs are among them. A socket that TCP has ended is not, though its descriptor may be open.
func (o *Observer) Connections() ([]Connection, error) {
	file, err := o.list()
	if err != nil {
		return nil, o.notLoaded(err)
	}
	defer file.Close()
	boot, err := bootTime()
	if err != nil {
		return nil, err
	}
	var list []Connection
	from := bufio.NewReaderSize(file, 64<<10)
	for buffer := make([]byte, binary.Size(rawListed{})); ; {
		_, err := io.ReadFull(from, buffer)
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list kernel TLS sockets: %w", err)
		}
		var raw rawListed
		if _, err := binary.Decode(buffer, binary.NativeEndian, &raw); err != nil {
			return nil, err
		}
		c := raw.connection()
		if c.Totals, err = o.totals(c.Cookie, boot); err != nil {
			return nil, err
		}
		list = append(list, c)
	}
}

// Totals are what a live connection did, or nil if it is not known. A call that is under way is not in them.
func (o *Observer) Totals(cookie uint64) (*Totals, error) {
	boot, err := bootTime()
	if err != nil {
		return nil, err
	}
	return o.totals(cookie, boot)
}

func (o *Observer) totals(cookie uint64, boot time.Time) (*Totals, error) {
	var raw rawConnection
	err := o.observed.Lookup(cookie, &raw)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("totals of socket %d: %w", cookie, err)
	}
	return raw.totals(boot), nil
}

// Sums are those of all connections since the observer was loaded, of all network namespaces.
type Sums struct {
	Connections        uint64
	Sending, Receiving DirectionSums
	Errors             [errorKinds]uint64
	Failures           uint64
	Ends               [ends]uint64
	// Unlisted connections found no room, so they have no totals, and their records are not in the sums.
	Unlisted uint64
	// Dropped are the events that found no room.
	Dropped uint64
	// Missed are the calls that the kernel did not show to the observer. It runs a program once at a time on a CPU: who
	// calls while another task was preempted within the program is not seen. So where the kernel preempts itself (as from
	// Linux 7 on by default), and that many processes call at once, bytes, calls and errors are at least those counted.
	// Records and sequence numbers are exact all the same, as they are the kernel's own.
	Missed uint64
}

// DirectionSums are those of one direction.
type DirectionSums struct {
	Software, Device      uint64 // keys that were installed
	Rekeys                uint64
	Bytes, Records, Calls uint64
}

// Sums reads them.
func (o *Observer) Sums() (Sums, error) {
	var cpus []rawSums
	if err := o.sums.Lookup(uint32(0), &cpus); err != nil {
		return Sums{}, fmt.Errorf("sums of the observer: %w", err)
	}
	var s Sums
	for i := range cpus {
		s.add(&cpus[i])
	}
	missed, err := o.missed()
	s.Missed = missed
	return s, err
}

// missed is the sum over the observer's programs.
func (o *Observer) missed() (n uint64, err error) {
	pinned, err := filepath.Glob(o.pins.programPin("observe_*"))
	for _, path := range pinned {
		program, err := ebpf.LoadPinnedProgram(path, nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue // replaced or unloaded just now
		}
		if err != nil {
			return 0, fmt.Errorf("calls that were missed: %w", err)
		}
		stats, err := program.Stats()
		program.Close()
		if err != nil {
			return 0, fmt.Errorf("calls that were missed: %w", err)
		}
		n += stats.RecursionMisses
	}
	return n, err
}

func (s *Sums) add(r *rawSums) {
	s.Connections += r.Connections
	for d, sum := range []*DirectionSums{&s.Sending, &s.Receiving} {
		sum.Software += r.Installs[d][0]
		sum.Device += r.Installs[d][1]
		sum.Rekeys += r.Rekeys[d]
		sum.Bytes += r.Bytes[d]
		sum.Records += r.Records[d]
		sum.Calls += r.Calls[d]
	}
	for i, n := range r.Errors {
		s.Errors[i] += n
	}
	s.Failures += r.Failures
	for i, n := range r.Ends {
		s.Ends[i] += n
	}
	s.Unlisted += r.Unlisted
	s.Dropped += r.Lost
}

// Dropped is how many events found no room since the observer was loaded. While nobody reads them, all that come after
// the first few thousand are dropped.
func (o *Observer) Dropped() (uint64, error) {
	s, err := o.Sums()
	return s.Dropped, err
}

// bootTime is what CLOCK_BOOTTIME counts from.
func bootTime() (time.Time, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return time.Time{}, os.NewSyscallError("clock_gettime", err)
	}
	return time.Now().Add(-time.Duration(now.Nano())), nil
}

// An Event is something that happened to a connection.
type Event struct {
	Kind   EventKind
	Time   time.Time
	Cookie uint64
	// Sending, or else receiving: the key of Installed and Rekeyed, the call of Failed.
	Sending bool
	// Error of Failed. Layer: the record layer gave up; else a call returned it, for the first time of its kind.
	Error unix.Errno
	Layer bool
	// Connection has no TCP counters, inode and uid.
	Connection Connection
}

// Events calls fn for each event until ctx ends, fn fails, or the observer is closed. Each event goes to one reader only,
// so there should be one.
func (o *Observer) Events(ctx context.Context, fn func(Event) error) error {
	reader, err := ringbuf.NewReader(o.raw)
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	defer reader.Close()
	stop := context.AfterFunc(ctx, func() { reader.Close() })
	defer stop()
	boot, err := bootTime()
	if err != nil {
		return err
	}
	var record ringbuf.Record
	for {
		if err := reader.ReadInto(&record); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("read events: %w", err)
		}
		var raw rawEvent
		if _, err := binary.Decode(record.RawSample, binary.NativeEndian, &raw); err != nil {
			return fmt.Errorf("an event of %d bytes: %w", len(record.RawSample), err)
		}
		if err := fn(raw.event(boot)); err != nil {
			return err
		}
	}
}

func (r *rawEvent) event(boot time.Time) Event {
	c := &r.Connection
	totals := c.totals(boot)
	e := Event{
		Kind: EventKind(r.Kind), Time: boot.Add(time.Duration(r.Time)), Cookie: r.Cookie, Sending: r.Direction == outward,
		Error: unix.Errno(-r.Error), Layer: r.Layer != 0,
		Connection: Connection{Cookie: r.Cookie, Version: c.Version, Cipher: c.Cipher, Totals: totals,
			Sending:   Key{totals.Sending.Path, totals.Sending.Sequence},
			Receiving: Key{totals.Receiving.Path, totals.Receiving.Sequence}},
	}
	e.Connection.Local, e.Connection.Peer = c.Address.ports()
	return e
}
