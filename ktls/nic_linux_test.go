// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// nicSuite is one that network devices take.
const nicSuite = blob.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256

// nicData is how much goes over the emulated device: some MB a second is all it does.
const nicData = 200_000

// transfer sends data both ways, one way from a file, and expects it to arrive.
func transfer(t testing.TB, p *ktlstest.Pair, size int) {
	t.Helper()
	data := randomBytes(size)
	for _, way := range []struct {
		name     string
		from, to *net.TCPConn
		source   io.Reader
	}{
		{"sendfile to the client", p.Server, p.Client, writeFile(t, data)},
		{"write to the server", p.Client, p.Server, bytes.NewReader(data)},
	} {
		from, to := newConn(t, way.from), newConn(t, way.to)
		arrived := make(chan error, 1)
		go func() {
			got := make([]byte, size)
			to.SetReadDeadline(time.Now().Add(30 * time.Second))
			n, err := io.ReadFull(to, got)
			if err == nil && !bytes.Equal(got, data) {
				err = errors.New("not what was sent")
			} else if err != nil {
				err = fmt.Errorf("after %d bytes: %w", n, err)
			}
			arrived <- err
		}()
		if n, err := io.Copy(from, way.source); err != nil || n != int64(size) {
			t.Fatalf("%s: sent %d bytes: %v", way.name, n, err)
		}
		if err := <-arrived; err != nil {
			t.Fatalf("%s: %v", way.name, err)
		}
	}
}

// TestTheDeviceDoesTheWork: the modes say so, the device's copies of the keys are the
// exported ones, and it was the device that encrypted and decrypted.
func TestTheDeviceDoesTheWork(t *testing.T) {
	n := ktlstest.NewNIC(t)
	for _, suite := range []blob.CipherSuite{nicSuite, blob.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384} {
		for _, network := range ktlstest.NICNetworks {
			t.Run(fmt.Sprintf("%v over %s", suite.AEAD(), network), func(t *testing.T) {
				p := n.NewPair(t, network)
				client, server := n.Install(t, suite, p)
				transfer(t, p, nicData)
				for _, end := range []struct {
					role string
					conn *net.TCPConn
					ktlstest.NICInstalled
				}{{"client", p.Client, client}, {"server", p.Server, server}} {
					if end.Info.TX != ktls.HW || end.Info.RX != ktls.HW || end.Info.Reason != "" {
						t.Errorf("%s: %v", end.role, end.Info)
					}
					read, write := n.KeysOf(t, end.conn)
					for _, key := range []struct {
						ktlstest.NICKey
						exported string
					}{{read, end.Read}, {write, end.Write}} {
						if !key.Held || key.Digest != key.exported {
							t.Errorf("%s: the key in the device is not the exported one: %+v", end.role, key.NICKey)
						}
						if key.Record < nicData>>14 || key.Packets < nicData/1500/2 {
							t.Errorf("%s: the device did not do the work: %+v", end.role, key.NICKey)
						}
						if key.AddedPID != os.Getpid() {
							t.Errorf("%s: added by %s, pid %d", end.role, key.AddedBy, key.AddedPID)
						}
					}
				}
			})
		}
	}
}

// TestWhatNoDeviceTakesIsSoftware: Linux does not even ask the device.
func TestWhatNoDeviceTakesIsSoftware(t *testing.T) {
	n := ktlstest.NewNIC(t)
	for _, c := range []struct {
		suite  blob.CipherSuite
		reason string
	}{
		{blob.TLS_AES_128_GCM_SHA256, "only TLS 1.2"},
		{blob.TLS_AES_256_GCM_SHA384, "only TLS 1.2"},
		{blob.TLS_CHACHA20_POLY1305_SHA256, "only TLS 1.2"},
		{blob.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, "only AES-GCM"},
	} {
		t.Run(c.suite.String(), func(t *testing.T) {
			p := n.NewPair(t, "tcp4")
			_, server := n.Install(t, c.suite, p)
			expectModes(t, server.Info, ktls.SW, ktls.SW, c.reason)
			transfer(t, p, 20_000)
		})
	}
	if events := n.Events(t); len(events) > 0 {
		t.Errorf("the device was asked: %+v", events)
	}
}

func expectModes(t testing.TB, info ktls.Info, tx, rx ktls.Mode, reason string) {
	t.Helper()
	if info.TX != tx || info.RX != rx || !strings.Contains(info.Reason, reason) {
		t.Errorf("%v; want tx %v, rx %v, a reason with %q", info, tx, rx, reason)
	}
}

// TestARefusalIsReported: the kernel falls back without a word, Install does not.
func TestARefusalIsReported(t *testing.T) {
	n := ktlstest.NewNIC(t)
	for _, c := range []struct {
		name      string
		direction blob.Direction
		why       syscall.Errno
		tx, rx    ktls.Mode
		reason    string
	}{
		{"of both keys", 0, syscall.EOPNOTSUPP, ktls.SW, ktls.SW, "it refused the key"},
		{"of the write key", blob.Write, syscall.ENOMEM, ktls.SW, ktls.HW, "stops sending for good"},
		{"of the read key", blob.Read, syscall.EBUSY, ktls.HW, ktls.SW, "it refused the key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := n.NewPair(t, "tcp4")
			before := len(n.Events(t))
			n.Refuse(t, c.direction, c.why, 4)
			_, server := n.Install(t, nicSuite, p)
			n.Refuse(t, 0, c.why, 0)
			expectModes(t, server.Info, c.tx, c.rx, c.reason)
			transfer(t, p, nicData/4)
			read, write := n.KeysOf(t, p.Server)
			if read.Held != (c.rx == ktls.HW) || write.Held != (c.tx == ktls.HW) {
				t.Errorf("in the device: %+v, %+v", read, write)
			}
			for _, e := range n.Events(t)[before:] {
				refused := c.direction == 0 || e.Direction == c.direction
				if refused != (e.Kind == "refuse") || refused && e.Err != c.why {
					t.Errorf("event %+v", e)
				}
			}
		})
	}
}

// TestAFullDeviceIsReported: connections beyond the device's table are in software,
// and the place of a closed one is taken by the next.
func TestAFullDeviceIsReported(t *testing.T) {
	n := ktlstest.NewNIC(t)
	n.Limit(t, 4) // two directions at both ends of one connection
	first, second := n.NewPair(t, "tcp4"), n.NewPair(t, "tcp6")
	client, server := n.Install(t, nicSuite, first)
	expectModes(t, client.Info, ktls.HW, ktls.HW, "")
	expectModes(t, server.Info, ktls.HW, ktls.HW, "")
	client, server = n.Install(t, nicSuite, second)
	expectModes(t, client.Info, ktls.SW, ktls.SW, "it refused the key")
	expectModes(t, server.Info, ktls.SW, ktls.SW, "it refused the key")
	for _, e := range n.Events(t) {
		if e.Kind == "refuse" && e.Err != syscall.ENOSPC {
			t.Errorf("event %+v", e)
		}
	}
	transfer(t, first, 20_000)
	transfer(t, second, 20_000)
	first.Client.Close()
	first.Server.Close()
	waitHeld(t, n, 0)
	_, server = n.Install(t, nicSuite, n.NewPair(t, "tcp4"))
	expectModes(t, server.Info, ktls.HW, ktls.HW, "")
}

// waitHeld waits until the devices hold so many keys: the write key goes with the last
// packet, from a worker of the kernel's.
func waitHeld(t testing.TB, n *ktlstest.NIC, want int) {
	t.Helper()
	held := 0
	for range 500 {
		held = 0
		for _, k := range n.Keys(t) {
			if k.Held {
				held++
			}
		}
		if held == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the devices hold %d keys, want %d", held, want)
}

// TestTheDevicesCopyOfAKeyDoesTheWork changes that copy and nothing else.
func TestTheDevicesCopyOfAKeyDoesTheWork(t *testing.T) {
	n := ktlstest.NewNIC(t)
	t.Run("so with a spoiled write key the peer cannot decrypt", func(t *testing.T) {
		p := n.NewPair(t, "tcp4")
		_, server := n.Install(t, nicSuite, p)
		_, write := n.KeysOf(t, p.Server)
		n.Spoil(t, write.ID)
		if _, spoiled := n.KeysOf(t, p.Server); spoiled.Digest == server.Write || !spoiled.Held {
			t.Errorf("the key was not spoiled: %+v", spoiled)
		}
		exchange(t, p.Client, p.Server)
		expectBadMessage(t, p.Server, p.Client)
	})
	t.Run("so with a spoiled read key only the kernel can decrypt", func(t *testing.T) {
		p := n.NewPair(t, "tcp4")
		n.Install(t, nicSuite, p)
		exchange(t, p.Client, p.Server)
		before, _ := n.KeysOf(t, p.Server)
		n.Spoil(t, before.ID)
		// A record in one packet: of a longer one the device would pass on the beginning before it sees the tag.
		exchange(t, p.Client, p.Server)
		after, _ := n.KeysOf(t, p.Server)
		if before.Packets == 0 || after.Packets != before.Packets || after.Bypassed <= before.Bypassed {
			t.Errorf("before: %+v, after: %+v", before, after)
		}
	})
}

// expectBadMessage writes a record at one end that cannot be decrypted at the other.
func expectBadMessage(t testing.TB, from, to net.Conn) {
	t.Helper()
	if _, err := from.Write([]byte("a record")); err != nil {
		t.Fatal(err)
	}
	to.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := to.Read(make([]byte, 100)); n > 0 || !errors.Is(err, syscall.EBADMSG) {
		t.Errorf("read %d bytes, %v; want %v", n, err, syscall.EBADMSG)
	}
}

// TestAProgramCanRunAtThePeer: ktlstest promises it for tests with real clients.
func TestAProgramCanRunAtThePeer(t *testing.T) {
	ktlstest.NewNIC(t)
	out, err := exec.Command("ip", "netns", "exec", ktlstest.PeerNamespace, "ip", "-brief", "address").CombinedOutput()
	for _, want := range []string{"tlsnic1", "192.0.2.2", "2001:db8::2"} {
		if err != nil || !bytes.Contains(out, []byte(want)) {
			t.Errorf("no %s: %v: %s", want, err, out)
		}
	}
	if _, err := net.InterfaceByName("tlsnic1"); err == nil {
		t.Error("the peer's device is at home")
	}
}

// deviceKeys returns the keys of both ends.
func deviceKeys(t testing.TB, n *ktlstest.NIC, p *ktlstest.Pair) []ktlstest.NICKey {
	t.Helper()
	clientRead, clientWrite := n.KeysOf(t, p.Client)
	serverRead, serverWrite := n.KeysOf(t, p.Server)
	return []ktlstest.NICKey{clientRead, clientWrite, serverRead, serverWrite}
}

// TestAKeyGoesFromTheDeviceWithTheLastDescriptor, and not before, and once.
func TestAKeyGoesFromTheDeviceWithTheLastDescriptor(t *testing.T) {
	n := ktlstest.NewNIC(t)
	p := n.NewPair(t, "tcp4")
	_, server := n.Install(t, nicSuite, p)
	read, write := n.KeysOf(t, p.Server)
	second, err := p.Server.File()
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	p.Server.Close()
	kept, err := net.FileConn(second)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	second.Close()
	exchange(t, kept, p.Client)
	exchange(t, p.Client, kept)
	time.Sleep(100 * time.Millisecond) // a delete from a worker would take 20
	for _, key := range []ktlstest.NICKey{read, write} {
		if events := n.EventsOf(t, key.ID); len(events) != 1 || events[0].Kind != "add" {
			t.Errorf("with a descriptor left: %+v", events)
		}
	}
	if r, w := n.KeysOf(t, p.Client); !r.Held || !w.Held {
		t.Errorf("the client's: %+v, %+v", r, w)
	}
	if r, w := n.KeysOf(t, kept.(*net.TCPConn)); !r.Held || !w.Held || r.Digest != server.Read || w.Digest != server.Write {
		t.Errorf("with a descriptor left: %+v, %+v", r, w)
	}
	kept.Close()
	p.Client.Close()
	waitHeld(t, n, 0)
	time.Sleep(100 * time.Millisecond)
	for _, key := range n.Keys(t) {
		events := n.EventsOf(t, key.ID)
		if len(events) != 2 || events[1].Kind != "del" || events[1].Err != 0 {
			t.Errorf("after the last close: %+v", events)
		}
		if key.Direction == blob.Read && key.DeletedPID != os.Getpid() {
			t.Errorf("a read key goes with close, but: %+v", key)
		}
	}
}

// TestADeviceThatGoesDownLosesItsKeys: the connection goes on with the kernel's own
// copy, and the kernel goes on saying HW, as Info warns.
func TestADeviceThatGoesDownLosesItsKeys(t *testing.T) {
	n := ktlstest.NewNIC(t)
	p := n.NewPair(t, "tcp4")
	n.Install(t, nicSuite, p)
	transfer(t, p, 20_000)
	n.SetLink(t, false)
	for _, key := range deviceKeys(t, n, p)[2:] {
		if events := n.EventsOf(t, key.ID); key.Held || events[len(events)-1].Kind != "del" {
			t.Errorf("after the link went down: %+v, %+v", key, events)
		}
	}
	n.SetLink(t, true)
	transfer(t, p, 20_000)
	if info, err := ktls.InfoOf(p.Server); err != nil || info.TX != ktls.HW || info.RX != ktls.HW {
		t.Errorf("%v, %v: then Info need not warn any more", info, err)
	}
	if client := deviceKeys(t, n, p)[:2]; !client[0].Held || !client[1].Held {
		t.Errorf("the other end: %+v", client)
	}
	p.Server.Close()
	p.Client.Close()
	waitHeld(t, n, 0)
	for _, key := range n.Keys(t) {
		if events := n.EventsOf(t, key.ID); events[len(events)-1].Kind != "del" || events[len(events)-2].Kind == "del" {
			t.Errorf("deleted twice: %+v", events)
		}
	}
}
