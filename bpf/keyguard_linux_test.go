// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// TestGuards tries everything in each form that acts here. Each is loaded once.
func TestGuards(t *testing.T) {
	require(t)
	for _, form := range formsHere() {
		t.Run(string(form), func(t *testing.T) {
			g := load(t, form)
			for _, test := range []struct {
				name string
				run  func(*testing.T, *Guard)
			}{
				{"who holds a managed socket gets no key and sets none", getsNoKeyAndSetsNone},
				{"sockets that are not managed are left alone", leavesOthersAlone},
				{"a key holder is let through", letsKeyHoldersThrough},
				{"the guard is there in every phase", guardsEveryPhase},
				{"a socket is forgotten when it is freed", forgetsFreedSockets},
				{"stops are told", tellsOfStops},
				{"waiting for stops ends", endsWaiting},
				{"no process reaches into a shielded one", shieldsFromOthers},
				{"a shielded process sees its own memory", leavesOwnMemoryAlone},
				{"children of a shielded process are born shielded", shieldsChildren},
				{"the shield is kept over an exec", keepsTheShieldOverExec},
				{"shielding a process that is traced is an error", refusesTheTraced},
			} {
				t.Run(test.name, func(t *testing.T) { test.run(t, g) })
			}
		})
	}
}

const (
	root   = 0
	nobody = 65534
)

// guarded returns a pair with keys whose server end is managed, and that end for other processes.
func guarded(t *testing.T, g *Guard) (*ktlstest.Pair, *os.File) {
	t.Helper()
	p, file := foreign(t)
	cookie := cookieOf(t, p.Server)
	if err := errors.Join(g.Pending(cookie), g.Ready(cookie)); err != nil {
		t.Fatal(err)
	}
	return p, file
}

// foreign returns one that is not managed, as of any other program with kernel TLS of its own.
func foreign(t *testing.T) (*ktlstest.Pair, *os.File) {
	t.Helper()
	p := ktlstest.Installed(t, blob.TLS_AES_128_GCM_SHA256)
	file, err := p.Server.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return p, file
}

func cookieOf(t *testing.T, c *net.TCPConn) uint64 {
	t.Helper()
	cookie, err := ktls.Cookie(c)
	if err != nil {
		t.Fatal(err)
	}
	return cookie
}

// exchange proves that the connection goes on, both ways.
func exchange(t *testing.T, p *ktlstest.Pair) {
	t.Helper()
	for _, way := range [][2]*net.TCPConn{{p.Client, p.Server}, {p.Server, p.Client}} {
		message, got := bytes.Repeat([]byte("going on "), 2000), make([]byte, 18000)
		deadline := time.Now().Add(20 * time.Second)
		if err := errors.Join(way[0].SetDeadline(deadline), way[1].SetDeadline(deadline)); err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		go func() { _, err := way[0].Write(message); sent <- err }()
		_, err := io.ReadFull(way[1], got)
		if err := errors.Join(err, <-sent); err != nil || !bytes.Equal(got, message) {
			t.Fatalf("the connection does not go on: %v", err)
		}
	}
}

func attack(t *testing.T, uid uint32, held *os.File) map[string]string {
	t.Helper()
	answers := map[string]string{}
	start(t, "attacker", uid, []*os.File{held}).read(t, &answers)
	if len(answers) != len(attempts) {
		t.Fatalf("the attacker made %d attempts", len(answers))
	}
	return answers
}

func getsNoKeyAndSetsNone(t *testing.T, g *Guard) {
	p, held := guarded(t, g)
	before, err := g.Stopped()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]uint64{}
	for _, uid := range []uint32{root, nobody} {
		for name, got := range attack(t, uid, held) {
			if got != unix.EPERM.Error() {
				t.Errorf("uid %d: %s was answered with: %s", uid, name, got)
			}
		}
		for _, a := range attempts {
			want[a.reason]++
		}
		exchange(t, p)
	}
	after, err := g.Stopped()
	if err != nil {
		t.Fatal(err)
	}
	for reason, n := range after {
		if n-before[reason] != want[reason] {
			t.Errorf("%s was counted %d times, and happened %d times", reason, n-before[reason], want[reason])
		}
	}
}

// leavesOthersAlone is also what shows that the attempts are none that fail anyway.
func leavesOthersAlone(t *testing.T, g *Guard) {
	p, held := foreign(t)
	guarded(t, g)
	exchange(t, p)
	for _, a := range attempts[:2] {
		if err := a.try(int(held.Fd())); err != nil {
			t.Errorf("%s of this process: %v", a.name, err)
		}
	}
	for name, got := range attack(t, root, held) {
		if got == unix.EPERM.Error() {
			t.Errorf("%s was denied", name)
		}
	}
}

func letsKeyHoldersThrough(t *testing.T, g *Guard) {
	p, held := guarded(t, g)
	self := pidfdOf(t, os.Getpid())
	if _, err := getKey(int(held.Fd()), tlsTX); err != unix.EPERM {
		t.Errorf("without a role: %v", err)
	}
	for _, other := range []Role{Handshaker, Shielded, Handshaker | Shielded} {
		if err := g.Admit(self, other); err != nil {
			t.Fatal(err)
		}
		if _, err := getKey(int(held.Fd()), tlsTX); err != unix.EPERM {
			t.Errorf("with role %d: %v", other, err)
		}
	}
	if err := g.Admit(self, KeyHolder); err != nil {
		t.Fatal(err)
	}
	for _, direction := range []int{tlsTX, tlsRX} {
		key, err := getKey(int(held.Fd()), direction)
		if err != nil || bytes.Equal(key, make([]byte, len(key))) {
			t.Errorf("with the role: %x, %v", key, err)
		}
	}
	for name, got := range attack(t, root, held) {
		if got != unix.EPERM.Error() {
			t.Errorf("a child of the key holder has its role: %s was answered with: %s", name, got)
		}
	}
	if err := g.SelfTest(); err != nil {
		t.Errorf("the self-test of a key holder: %v", err)
	}
	exchange(t, p)
	if err := g.Admit(self, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := getKey(int(held.Fd()), tlsTX); err != unix.EPERM {
		t.Errorf("after the role was taken away: %v", err)
	}
}

// guardsEveryPhase: before the keys and after the end as well.
func guardsEveryPhase(t *testing.T, g *Guard) {
	p, held := foreign(t)
	cookie := cookieOf(t, p.Server)
	for _, enter := range []func(uint64) error{g.Pending, g.Ready, g.Ended} {
		if err := enter(cookie); err != nil {
			t.Fatal(err)
		}
		if _, err := getKey(int(held.Fd()), tlsTX); err != unix.EPERM {
			t.Errorf("got the key, %v", err)
		}
	}
}

func forgetsFreedSockets(t *testing.T, g *Guard) {
	p, held := guarded(t, g)
	cookie := cookieOf(t, p.Server)
	p.Server.Close()
	if !isManaged(t, g, cookie) {
		t.Error("forgotten while another descriptor is open")
	}
	held.Close()
	p.Client.Close()
	for deadline := time.Now().Add(20 * time.Second); isManaged(t, g, cookie); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not forgotten 20 s after the last descriptor was closed")
		}
	}
	for name, enter := range map[string]func(uint64) error{"ready": g.Ready, "ended": g.Ended} {
		if err := enter(cookie); !errors.Is(err, ErrNotManaged) {
			t.Errorf("%s for a socket that is gone: %v", name, err)
		}
	}
	if isManaged(t, g, cookie) {
		t.Error("it came back")
	}
	if err := g.Pending(0); err == nil {
		t.Error("a socket without a cookie is managed")
	}
}

func tellsOfStops(t *testing.T, g *Guard) {
	p, held := guarded(t, g)
	attacker := start(t, "attacker", nobody, []*os.File{held})
	attacker.read(t, &map[string]string{})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	done := errors.New("all were told")
	var told []Stop
	ctx, stop := context.WithCancelCause(ctx)
	err := g.Stops(ctx, func(s Stop) {
		if s.PID != uint32(attacker.Process.Pid) {
			return // of an earlier test
		}
		if told = append(told, s); len(told) == len(attempts) {
			stop(done)
		}
	})
	if !errors.Is(err, done) {
		t.Fatalf("%d stops, %v", len(told), err)
	}
	for i, s := range told {
		if s.Reason != attempts[i].reason || s.Socket != cookieOf(t, p.Server) ||
			s.UID != nobody || s.Command == "" || s.Time <= 0 || s.Target != 0 {
			t.Errorf("%s was told as %+v", attempts[i].name, s)
		}
	}
}

// endsWaiting: also when nothing is stopped.
func endsWaiting(t *testing.T, g *Guard) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- g.Stops(ctx, func(Stop) {}) }()
	select {
	case err := <-ended:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it goes on waiting")
	}
}

func isManaged(t *testing.T, g *Guard, cookie uint64) bool {
	t.Helper()
	var value managed
	err := g.sockets.Lookup(cookie, &value)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func pidfdOf(t *testing.T, pid int) int {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}
