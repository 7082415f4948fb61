// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// mustPair makes a connection with keys at both ends, and closes it with the test.
func mustPair(t *testing.T, suite testSuite, seq uint64) (client, server *tlsSocket) {
	t.Helper()
	listener, err := listenTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listener)
	client, server, err = tlsPair(listener, suite, seq)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(client.fd)
		unix.Close(server.fd)
	})
	return client, server
}

// TestMemoryIsBounded: connections that find no room in the map work, are listed, and are counted; those that have room
// are counted whole; and what does not fit into the ring is counted event by event.
func TestMemoryIsBounded(t *testing.T) {
	const room, connections = 100, 300 // two sockets each
	o := loaded(t, map[string]uint32{mapObserved: room, mapObservedEvents: 64 << 10})
	before, err := o.Sums()
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPlayground(1, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	var sockets []*tlsSocket
	for range connections {
		client, server, err := tlsPair(p.listener, testSuites[0], 0)
		if err != nil {
			t.Fatal(err)
		}
		sockets = append(sockets, client, server)
		if err := p.act(7, client, server); err != nil {
			t.Fatal(err)
		}
	}
	list, known := keyed(t, o), 0
	for _, c := range list {
		if c.Totals != nil {
			known++
		}
	}
	if len(list) != 2*connections || known != room {
		t.Errorf("%d sockets in the list, of %d there are totals; want %d and %d", len(list), known, 2*connections, room)
	}
	var wanted uint64
	for len(sockets) > 0 {
		if err := p.end(sockets[0], sockets[1]); err != nil {
			t.Fatal(err)
		}
		for _, s := range sockets[:2] {
			if slices.ContainsFunc(list, func(c Connection) bool { return c.Cookie == s.cookie && c.Totals != nil }) {
				wanted += 3 // both keys, and the end
				for _, n := range s.want.Errors {
					wanted += uint64(min(1, n))
				}
			}
		}
		sockets = sockets[2:]
	}
	after, err := o.Sums()
	if err != nil {
		t.Fatal(err)
	}
	if n := after.Unlisted - before.Unlisted; n != 2*connections-room {
		t.Errorf("%d without room, want %d", n, 2*connections-room)
	}
	if n := after.Sending.Bytes - before.Sending.Bytes; after.Connections-before.Connections != 2*connections || n < connections {
		t.Errorf("%d connections and %d bytes, want %d and at least a byte each", after.Connections-before.Connections, n, 2*connections)
	}
	// Nobody has read until now.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	read := uint64(0)
	if err := o.Events(ctx, func(Event) error { read++; return nil }); err != nil {
		t.Fatal(err)
	}
	dropped, err := o.Dropped()
	if err != nil {
		t.Fatal(err)
	}
	if dropped == 0 || read+dropped != wanted {
		t.Errorf("%d events read, %d dropped; want %d together", read, dropped, wanted)
	}
	// There is room again, and nothing more is lost.
	log := follow(t, o)
	mustPair(t, testSuites[0], 0)
	await(t, "four keys are told of", func() bool { return len(log.of(Installed)) == 4 })
	if again, _ := o.Dropped(); again != dropped {
		t.Errorf("%d events dropped with a reader, want %d", again, dropped)
	}
}

// callsAtTheSameTimeAreAllCounted: on several CPUs, on the same socket. What the kernel did not show is counted too.
func callsAtTheSameTimeAreAllCounted(t *testing.T, o *Observer) {
	log := follow(t, o)
	before, err := o.Sums()
	if err != nil {
		t.Fatal(err)
	}
	client, server := mustPair(t, testSuites[0], 5)
	const writers, each = 4, 500
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for sent := 0; sent < each; {
				switch _, err := unix.Write(client.fd, []byte("x")); err {
				case nil:
					sent++
				case unix.EINTR: // a signal of Go's scheduler
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	if err := server.receiveAll(writers*each, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	if err := client.close(Proper, false); err != nil {
		t.Fatal(err)
	}
	await(t, "the end is told of", func() bool { return len(log.of(Closed)) == 1 })
	got := log.of(Closed)[0].Connection.Totals.Sending
	after, err := o.Sums()
	if err != nil {
		t.Fatal(err)
	}
	missed := after.Missed - before.Missed
	t.Logf("%d calls missed", missed)
	// Each that succeeded is of one byte. One that was missed may as well be a read.
	if got.Calls < got.Bytes || got.Bytes+missed < writers*each || got.Bytes > writers*each {
		t.Errorf("%+v, and %d missed; want %d", got, missed, writers*each)
	}
	if got.Calls = writers * each; missed > 0 {
		got.Bytes = writers * each
	}
	if want := (Traffic{Bytes: writers * each, Records: writers * each, Calls: writers * each, Sequence: 5 + writers*each, Path: Software}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// noKeyIsRead: nothing that the observer gives to user space has a piece of a key in it, of any suite.
func noKeyIsRead(t *testing.T, o *Observer) {
	listener, err := listenTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listener)
	var secrets [][]byte
	for _, suite := range testSuites {
		client, server, err := tcpPair(listener)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(client)
		defer unix.Close(server)
		s, err := newTLSSocket(client, suite)
		if err != nil {
			t.Fatal(err)
		}
		for d := range directions {
			key := suite.key(0x0102030405060708)
			if err := s.install(d, key); err != nil {
				t.Fatal(err)
			}
			secrets = append(secrets, key[4:suite.size-8])
		}
		if err := s.send([]byte("hello"), 0); err != nil {
			t.Fatal(err)
		}
	}
	file, err := o.list()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	told, err := io.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	var cookie uint64
	var value []byte
	for entries := o.observed.Iterate(); entries.Next(&cookie, &value); {
		told = append(told, value...)
	}
	if n := bytes.Count(told, []byte{2, 3, 4, 5, 6, 7, 8}); n != 0 {
		t.Fatalf("the sequence number in the kernel's byte order, %d times: this test looks for keys in the wrong order", n)
	}
	if n := bytes.Count(told, []byte{8, 7, 6, 5, 4, 3, 2, 1}); n < len(secrets) {
		t.Errorf("the sequence number is there %d times, want at least %d: this test looks in the wrong place", n, len(secrets))
	}
	for _, secret := range secrets {
		for i := 0; i+4 <= len(secret); i++ {
			if bytes.Contains(told, secret[i:i+4]) {
				t.Errorf("four bytes of a key are told, at %d", i)
			}
		}
	}
}

// anAlarmComesBeforeAKeyIsSpent: in the kernel's own numbers, for each limit.
func anAlarmComesBeforeAKeyIsSpent(t *testing.T, o *Observer) {
	for _, c := range []struct {
		name  string
		suite testSuite
		seq   uint64
		limit uint64
		fires bool
	}{
		{"GCM, new", testSuites[0], 0, 0, false},
		{"GCM, before", testSuites[0], gcmRecords/5*4 - 10, gcmRecords, false},
		{"GCM, near", testSuites[1], gcmRecords/5*4 + 1, gcmRecords, true},
		{"GCM of TLS 1.2, past", testSuites[3], gcmRecords + 1, gcmRecords, true},
		{"ChaCha20 has no such limit", testSuites[2], 1 << 40, allRecords, false},
		{"ChaCha20, where numbers end", testSuites[2], allRecords/10*9 + 2, allRecords, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			listener, err := listenTCP()
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(listener)
			a, b, err := tcpPair(listener)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(a)
			defer unix.Close(b)
			s, err := newTLSSocket(a, c.suite)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(s.install(outward, c.suite.key(c.seq)), s.install(inward, c.suite.key(0))); err != nil {
				t.Fatal(err)
			}
			alarms := Alarms(keyed(t, o), 0.8)
			if !c.fires {
				if len(alarms) != 0 {
					t.Errorf("%+v, want none", alarms)
				}
				return
			}
			if len(alarms) != 1 || alarms[0].Cookie != s.cookie || !alarms[0].Sending || alarms[0].Sequence != c.seq || alarms[0].Limit != c.limit {
				t.Errorf("%+v, want one of socket %d at %d", alarms, s.cookie, c.seq)
			}
		})
	}
}

// aReceivedRecordAlarmsToo: a test's threshold is reached by a few records.
func aReceivedRecordAlarmsToo(t *testing.T, o *Observer) {
	client, server := mustPair(t, testSuites[0], 0)
	for range 20 {
		if err := errors.Join(client.send([]byte("x"), 0), server.receiveAll(1, make([]byte, 1))); err != nil {
			t.Fatal(err)
		}
	}
	alarms := Alarms(keyed(t, o), 20.0/gcmRecords)
	if len(alarms) != 2 {
		t.Fatalf("%+v, want both ends", alarms)
	}
	for _, a := range alarms {
		if a.Sending != (a.Cookie == client.cookie) || a.Sequence != 20 {
			t.Errorf("%+v", a)
		}
	}
}

// foreignSocketsAreListed: those of another program, which asks for no cookie.
func foreignSocketsAreListed(t *testing.T, o *Observer) {
	port := startOpenSSL(t)
	client := exec.Command("openssl", "s_client", "-connect", "127.0.0.1:"+port, "-quiet")
	input, err := client.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		input.Close()
		client.Process.Kill()
		client.Wait()
	}()
	if _, err := io.WriteString(input, "hello\n"); err != nil {
		t.Fatal(err)
	}
	var c Connection
	await(t, "openssl's socket is listed, and has received", func() bool {
		list := slices.DeleteFunc(keyed(t, o), func(c Connection) bool { return c.Local.String() != "127.0.0.1:"+port })
		if len(list) == 1 {
			c = list[0]
		}
		// Finished was received by the kernel too.
		return len(list) == 1 && c.Receiving.Sequence == 2 && c.Totals != nil && c.Totals.Receiving.Bytes == 16+6
	})
	if c.Cookie == 0 || c.Inode == 0 || c.Sending.Path != Software || c.Receiving.Path != Software || c.Totals.Receiving.Records != 2 {
		t.Errorf("%+v, %+v", c, c.Totals)
	}
}

// earlySocketsAreListed: one that had its keys before the observer came is not counted.
func earlySocketsAreListed(t *testing.T, o *Observer, early *ktlstest.Pair) {
	list := slices.DeleteFunc(keyed(t, o), func(c Connection) bool { return int(c.Local.Port()) != early.Port() })
	cookie, err := ktls.Cookie(early.Server)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Cookie != cookie || list[0].Totals != nil || CipherName(list[0].Cipher) != "CHACHA20_POLY1305" || VersionName(list[0].Version) != "TLS 1.3" {
		t.Errorf("%+v, want socket %d without totals", list, cookie)
	}
	early.Client.Close()
	early.Server.Close()
}

// itNeedsNoCapability: all that the daemon does with the observer, in a thread that has none.
func itNeedsNoCapability(t *testing.T, o *Observer) {
	client, _ := mustPair(t, testSuites[0], 0)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&head, &none[0]); err != nil {
			done <- err
			return
		}
		done <- useObserver(filepath.Dir(o.pins.dir), client)
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func useObserver(dir string, s *tlsSocket) error {
	o, err := OpenObserver(dir)
	if err != nil {
		return err
	}
	defer o.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	told := errors.New("told of an event")
	err = o.Events(ctx, func(e Event) error {
		if e.Cookie == s.cookie {
			return told
		}
		return nil
	})
	if !errors.Is(err, told) {
		return err
	}
	list, err := o.Connections()
	if err != nil || !slices.ContainsFunc(list, func(c Connection) bool { return c.Cookie == s.cookie }) {
		return fmt.Errorf("socket %d is not in a list of %d: %v", s.cookie, len(list), err)
	}
	totals, err := o.Totals(s.cookie)
	if err != nil || totals == nil {
		return fmt.Errorf("totals %v, %v", totals, err)
	}
	if none, err := o.Totals(1 << 60); none != nil || err != nil {
		return fmt.Errorf("totals of no socket: %v, %v", none, err)
	}
	sums, err := o.Sums()
	if err == nil && sums.Connections == 0 {
		err = errors.New("no connections in the sums")
	}
	return err
}
