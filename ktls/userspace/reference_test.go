// SPDX-License-Identifier: Apache-2.0

package userspace_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// layer is what ktls.Conn and userspace.Conn have in common.
type layer interface {
	net.Conn
	CloseWrite() error
	UpdateKey(requestPeer bool) error
}

// scene is one connection on the stage of a script.
type scene struct {
	t     *testing.T
	layer layer
	peer  *peer
	// log is what the application saw.
	log []string
}

func (s *scene) note(format string, args ...any) { s.log = append(s.log, fmt.Sprintf(format, args...)) }

// step is one operation of the application or its peer.
type step struct {
	name string
	do   func(s *scene)
}

// className names an error by what a program can tell.
func className(err error) string {
	var alert *ktls.AlertError
	if errors.As(err, &alert) {
		return alert.Error()
	}
	for _, class := range []error{io.EOF, io.ErrUnexpectedEOF, ktls.ErrRecord, ktls.ErrProtocol, ktls.ErrRecordLimit,
		ktls.ErrClosedWrite, ktls.ErrNoUpdate, ktls.ErrUndelivered, net.ErrClosed} {
		if errors.Is(err, class) {
			return class.Error()
		}
	}
	return fmt.Sprint(err)
}

// script is a sequence of steps that goes one way whatever is below the application.
type script struct {
	*rand.Rand
	version blob.Version
	rekey   bool
	steps   []step
	unread  int
	halfway bool // CloseWrite was called
}

func (c *script) add(name string, do func(s *scene)) { c.steps = append(c.steps, step{name, do}) }

// bytes are some that do not depend on who runs the script.
func (c *script) bytes(most int) []byte {
	n := c.IntN(most + 1)
	if c.IntN(4) == 0 {
		n = most
	}
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.NativeEndian.AppendUint64(b, c.Uint64())
	}
	return b[:n]
}

func newScript(seed uint64, version blob.Version, rekey bool) *script {
	c := &script{Rand: rand.New(rand.NewPCG(seed, uint64(version))), version: version, rekey: rekey}
	for range 5 + c.IntN(30) {
		c.any()
	}
	c.end()
	return c
}

// any adds a step that leaves the connection alive, as far as the peer's messages do not
// become too many.
func (c *script) any() {
	kinds := 6
	if c.version == blob.TLS13 && c.rekey {
		kinds = 8
	}
	switch c.IntN(kinds) {
	case 0, 1:
		data, padding := c.bytes(16384), c.IntN(2)*c.IntN(300)
		padding = min(padding, 16384-len(data))
		c.unread += len(data)
		c.add(fmt.Sprintf("the peer sends %d bytes, padded by %d", len(data), padding), func(s *scene) {
			s.peer.padding = padding
			s.peer.send(s.t, 23, data)
			s.peer.padding = 0
		})
	case 2:
		n := c.IntN(c.unread + 1)
		c.unread -= n
		c.add(fmt.Sprintf("read %d", n), func(s *scene) {
			p := make([]byte, n)
			m, err := io.ReadFull(s.layer, p)
			s.note("read %d bytes, %x, %v", m, sha256.Sum256(p[:m]), className(err))
		})
	case 3:
		data := c.bytes(50000)
		c.add(fmt.Sprintf("write %d", len(data)), func(s *scene) {
			n, err := s.layer.Write(data)
			s.note("wrote %d, %v", n, className(err))
		})
	case 4:
		kind, content := byte(22), ticket(c.IntN(500)+1)
		if c.version == blob.TLS12 {
			content = []byte{0, 0, 0, 0}
		}
		if c.IntN(4) == 0 {
			kind, content = 21, []byte{1, 90}
		}
		c.add(fmt.Sprintf("the peer sends type %d, %d bytes", kind, len(content)), func(s *scene) { s.peer.send(s.t, kind, content) })
	case 5:
		if c.IntN(8) > 0 {
			return
		}
		c.halfway = true
		c.add("close_notify", func(s *scene) { s.note("close write: %v", className(s.layer.CloseWrite())) })
	case 6:
		request := byte(c.IntN(2))
		c.add(fmt.Sprintf("the peer sends a KeyUpdate %d", request), func(s *scene) { s.peer.sendUpdate(s.t, request) })
	case 7:
		request := c.IntN(2) == 0
		c.add(fmt.Sprintf("KeyUpdate %v", request), func(s *scene) { s.note("update: %v", className(s.layer.UpdateKey(request))) })
	}
}

// end adds how the peer ends the connection, and what the application sees of it.
func (c *script) end() {
	ends := []step{
		{"close_notify of the peer", func(s *scene) { s.peer.send(s.t, 21, []byte{1, 0}) }},
		{"a fatal alert", func(s *scene) { s.peer.send(s.t, 21, []byte{2, 51}) }},
		{"a FIN", func(*scene) {}},
		{"a FIN within a record", func(s *scene) { b := s.peer.seal(23, []byte("lost")); s.peer.Write(b[:len(b)-1]) }},
		{"a forged record", func(s *scene) { b := s.peer.seal(23, []byte("lost")); b[len(b)-3] ^= 8; s.peer.Write(b) }},
		// The kernel looks at a header when it has the explicit nonce as well.
		{"a record too short", func(s *scene) { s.peer.Write(append([]byte{23, 3, 3, 0, 3}, make([]byte, 30)...)) }},
		{"a record too long", func(s *scene) { s.peer.Write(append([]byte{23, 3, 3, 0x48, 1}, make([]byte, 30)...)) }},
		{"no TLS", func(s *scene) { s.peer.Write([]byte("220 mail ESMTP\r\n")) }},
		{"an alert of three bytes", func(s *scene) { s.peer.send(s.t, 21, []byte{1, 0, 0}) }},
		{"a ClientHello", func(s *scene) { s.peer.send(s.t, 22, []byte{1, 0, 0, 1, 0}) }},
		{"a message that data interrupts", func(s *scene) {
			s.peer.send(s.t, 22, []byte{4, 0, 0})
			s.peer.send(s.t, 23, []byte("data"))
		}},
	}
	if c.version == blob.TLS13 && c.rekey {
		ends = append(ends, step{"a record under the old key", func(s *scene) {
			s.peer.send(s.t, 22, []byte{24, 0, 0, 1, 0})
			s.peer.send(s.t, 23, []byte("old"))
		}})
	}
	c.steps = append(c.steps, ends[c.IntN(len(ends))])
	c.add("FIN of the peer", func(s *scene) { s.peer.Conn.(*net.TCPConn).CloseWrite() })
	c.add("read to the end", func(s *scene) {
		got, err := io.ReadAll(struct{ io.Reader }{s.layer})
		if err == nil {
			err = io.EOF
		}
		s.note("the rest, %d bytes, %x, %v", len(got), sha256.Sum256(got), className(err))
		_, err = s.layer.Write([]byte("after the end"))
		s.note("write: %v", className(err))
		s.note("close write: %v", className(s.layer.CloseWrite()))
	})
}

// run returns what the application saw, and the bytes that went to the peer.
func (c *script) run(t *testing.T, tcp *net.TCPConn, l layer, theirs *peer) (log []string, wire []byte) {
	t.Helper()
	l.SetDeadline(time.Now().Add(20 * time.Second))
	s := &scene{t: t, layer: l, peer: theirs}
	done := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(theirs.Conn)
		done <- b
	}()
	for _, step := range c.steps {
		step.do(s)
	}
	// Close of ktls.Conn sends another close_notify: the end comes without it.
	tcp.CloseWrite()
	return s.log, <-done
}

// seeds returns those of this run: random ones, which are in the log, or the one that
// OFFLOADD_TEST_SEED names.
func seeds(t *testing.T, n int) (list []uint64) {
	t.Helper()
	if s := os.Getenv("OFFLOADD_TEST_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return []uint64{seed}
	}
	first := rand.Uint64() >> 8
	t.Logf("seeds %d to %d", first, first+uint64(n)-1)
	for i := range uint64(n) {
		list = append(list, first+i)
	}
	return list
}

// TestTheKernelDoesTheSame: one script through the kernel's record layer and through this
// one. The application sees the same bytes and errors, and the wire the same records, byte
// for byte.
func TestTheKernelDoesTheSame(t *testing.T) {
	ktlstest.Require(t)
	for _, suite := range aeadSuites {
		t.Run(suite.String(), func(t *testing.T) {
			for _, seed := range seeds(t, 16) {
				c := newScript(seed, suite.Version(), ktlstest.CanRekey())
				p, q := newStates(t, suite), newStates(t, suite)
				q.client, q.server = sameStates(t, q.Client, p.client), sameStates(t, q.Server, p.server)
				log, wire := c.run(t, p.Client, newConn(t, p.Client, p.client), &peer{Conn: p.Server, read: p.server.Read, write: p.server.Write})
				kernelLog, kernelWire := c.run(t, q.Client, inKernel(t, q.Client, q.client), &peer{Conn: q.Server, read: q.server.Read, write: q.server.Write})
				compareRuns(t, seed, c, log, kernelLog, wire, kernelWire)
				p.Client.Close()
				p.Server.Close()
				q.Client.Close()
				q.Server.Close()
			}
		})
	}
}

// TestAScriptSaysTheSameTwice: what the test above compares depends on the script alone.
func TestAScriptSaysTheSameTwice(t *testing.T) {
	for _, suite := range []blob.CipherSuite{suite13, suite12} {
		for _, seed := range seeds(t, 10) {
			c := newScript(seed, suite.Version(), true)
			p, q := newStates(t, suite), newStates(t, suite)
			q.client, q.server = sameStates(t, q.Client, p.client), sameStates(t, q.Server, p.server)
			log, wire := c.run(t, p.Client, newConn(t, p.Client, p.client), &peer{Conn: p.Server, read: p.server.Read, write: p.server.Write})
			again, wireAgain := c.run(t, q.Client, newConn(t, q.Client, q.client), &peer{Conn: q.Server, read: q.server.Read, write: q.server.Write})
			compareRuns(t, seed, c, log, again, wire, wireAgain)
		}
	}
}

// sameStates makes what the product never has: the same keys for another socket.
func sameStates(t *testing.T, tcp *net.TCPConn, s ktlstest.States) ktlstest.States {
	t.Helper()
	same := ktlstest.States{Read: clone(s.Read), Write: clone(s.Write)}
	ktlstest.Bind(t, tcp, same)
	return same
}

func inKernel(t *testing.T, tcp *net.TCPConn, s ktlstest.States) layer {
	t.Helper()
	custody, _, err := ktls.InstallKeeping(tcp, s.Read, s.Write)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := ktls.NewConnKeeping(tcp, custody)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func compareRuns(t *testing.T, seed uint64, c *script, log, kernelLog []string, wire, kernelWire []byte) {
	t.Helper()
	for i := range max(len(log), len(kernelLog)) {
		if i == len(log) || i == len(kernelLog) || log[i] != kernelLog[i] {
			t.Errorf("seed %d, from answer %d on: %q; the kernel's are %q", seed, i, log[i:], kernelLog[i:])
			break
		}
	}
	if !bytes.Equal(wire, kernelWire) {
		at := 0
		for at < min(len(wire), len(kernelWire)) && wire[at] == kernelWire[at] {
			at++
		}
		t.Errorf("seed %d: the wire had %d bytes, the kernel's %d, and they differ at byte %d", seed, len(wire), len(kernelWire), at)
	}
	if t.Failed() {
		for _, step := range c.steps {
			t.Log(step.name)
		}
		t.FailNow()
	}
}
