// SPDX-License-Identifier: Apache-2.0

package ktlstest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
)

// NICKey is a row of the devices' key table. It stays when the key is destroyed.
type NICKey struct {
	ID        int
	Device    string
	Direction blob.Direction
	Held      bool   // else it is destroyed
	Digest    string // see NICDigest; of the key that the device holds or held
	Cookie    uint64 // of the socket
	Record    uint64 // number of the record that the device is at
	// Packets are those that the device encrypted or decrypted with its copy of the
	// key, Bypassed those that it left to the kernel.
	Packets, Bypassed int
	Resyncs           int
	AddedBy           string // what the kernel calls the process (comm)
	AddedPID          int
	DeletedBy         string
	DeletedPID        int
}

// NICEvent is a line of the devices' log.
type NICEvent struct {
	Time      time.Duration // of the monotonic clock
	Kind      string        // add, refuse, resync, spoil, lose, del
	ID        int           // of the key; 0 of one that was refused
	Device    string
	Direction blob.Direction
	Cookie    uint64
	Err       syscall.Errno // why a key was refused; 0 for none
	By        string
	PID       int
}

// NICDigest is the digest by which a device shows the key of s: the first half of
// SHA-256 over key and salt (the first four bytes of the IV, RFC 5288, Section 3).
func NICDigest(s *blob.State) string {
	material := append(append([]byte(nil), s.Key.Bytes()...), s.IV.Bytes()[:4]...)
	defer clear(material)
	sum := sha256.Sum256(material)
	return hex.EncodeToString(sum[:16])
}

// Keys returns the whole table, in the order in which keys were added.
func (n *NIC) Keys(t testing.TB) (keys []NICKey) {
	t.Helper()
	for _, r := range n.read(t, "keys") {
		keys = append(keys, NICKey{
			ID: r.number("id"), Device: r.text("device"), Direction: r.direction(), Held: r.text("state") == "held",
			Digest: r.text("digest"), Cookie: r.unsigned("cookie"), Record: r.unsigned("record"),
			Packets: r.number("packets"), Bypassed: r.number("bypassed"), Resyncs: r.number("resyncs"),
			AddedBy: r.text("added_by"), AddedPID: r.number("added_pid"),
			DeletedBy: r.text("deleted_by"), DeletedPID: r.number("deleted_pid"),
		})
		r.check(t)
	}
	return keys
}

// KeysOf returns the keys of one socket, found by its cookie. A direction that no
// device took has the ID 0.
func (n *NIC) KeysOf(t testing.TB, c syscall.Conn) (read, write NICKey) {
	t.Helper()
	cookie, err := ktls.Cookie(c)
	if err != nil {
		t.Fatal(err)
	}
	return n.KeysOfCookie(t, cookie)
}

// KeysOfCookie is KeysOf for a socket that this process does not hold any more.
func (n *NIC) KeysOfCookie(t testing.TB, cookie uint64) (read, write NICKey) {
	t.Helper()
	for _, k := range n.Keys(t) {
		if k.Cookie != cookie {
			continue
		}
		into := &read
		if k.Direction == blob.Write {
			into = &write
		}
		if into.ID != 0 {
			t.Errorf("the devices were given two keys to %v for socket %d", k.Direction, cookie)
		}
		*into = k
	}
	return read, write
}

// KeysOfDigest returns the keys with one digest: the write key of one end and the
// read key of the other have the same.
func (n *NIC) KeysOfDigest(t testing.TB, digest string) (keys []NICKey) {
	t.Helper()
	for _, k := range n.Keys(t) {
		if k.Digest == digest {
			keys = append(keys, k)
		}
	}
	return keys
}

// Events returns the log. If it is not complete the test fails.
func (n *NIC) Events(t testing.TB) (events []NICEvent) {
	t.Helper()
	for _, r := range n.read(t, "events") {
		events = append(events, NICEvent{
			Time: time.Duration(r.unsigned("time")), Kind: r.text("event"), ID: r.number("id"), Device: r.text("device"),
			Direction: r.direction(), Cookie: r.unsigned("cookie"), Err: syscall.Errno(-r.number("error")),
			By: r.text("by"), PID: r.number("pid"),
		})
		r.check(t)
	}
	return events
}

// EventsOf returns what happened to one key, in order.
func (n *NIC) EventsOf(t testing.TB, id int) (events []NICEvent) {
	t.Helper()
	for _, e := range n.Events(t) {
		if e.ID == id {
			events = append(events, e)
		}
	}
	return events
}

func (n *NIC) read(t testing.TB, name string) (rows []*nicRow) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(n.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		r := &nicRow{line: line, fields: map[string]string{}}
		for field := range strings.SplitSeq(strings.TrimSuffix(line, "\n"), "\t") {
			name, value, _ := strings.Cut(field, "=")
			r.fields[name] = value
		}
		rows = append(rows, r)
	}
	return rows
}

// nicRow is a line of name=value, and the first thing that is wrong with it.
type nicRow struct {
	line   string
	fields map[string]string
	err    error
}

func (r *nicRow) text(name string) string {
	value, ok := r.fields[name]
	if !ok && r.err == nil {
		r.err = fmt.Errorf("no %s in it", name)
	}
	return value
}

func (r *nicRow) number(name string) int {
	n, err := strconv.Atoi(r.text(name))
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%s: %w", name, err)
	}
	return n
}

func (r *nicRow) unsigned(name string) uint64 {
	n, err := strconv.ParseUint(r.text(name), 10, 64)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%s: %w", name, err)
	}
	return n
}

func (r *nicRow) direction() blob.Direction {
	switch name := r.text("direction"); name {
	case "rx":
		return blob.Read
	case "tx":
		return blob.Write
	default:
		if r.err == nil {
			r.err = fmt.Errorf("direction %q", name)
		}
		return 0
	}
}

func (r *nicRow) check(t testing.TB) {
	t.Helper()
	if r.err != nil {
		t.Fatalf("a line of %s: %v: %s", nicModule, r.err, r.line)
	}
}
