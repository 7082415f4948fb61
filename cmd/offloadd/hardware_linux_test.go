// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

const heldSuite = blob.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256

// hardware is a connection whose keys a device holds: ours is the server's end.
type hardware struct {
	*mover
	nic               *ktlstest.NIC
	cookie            uint64
	client            *tls.Conn
	readKey, writeKey ktlstest.NICKey // as they were at the import
	material          []byte
}

// newHardware completes a handshake over the emulated device and installs its keys.
func newHardware(t *testing.T, network string) *hardware {
	t.Helper()
	ktlstest.Require(t)
	h := &hardware{mover: &mover{t: t}, nic: ktlstest.NewNIC(t)}
	id := sharedIdentity(t)
	p := h.nic.NewPair(t, network)
	config := &tls.Config{RootCAs: id.roots, ServerName: "localhost"}
	only(t, heldSuite, config)
	h.client = tls.Client(p.Client, config)
	h.client.SetDeadline(time.Now().Add(2 * time.Minute))
	handshake := make(chan error, 1)
	go func() { handshake <- h.client.Handshake() }()
	session, err := offloadServer(p.Server, &tls.Config{Certificates: id.serverForTest})
	if err := errors.Join(err, <-handshake); err != nil {
		t.Fatal(err)
	}
	h.tcp, h.cookie, h.facts, h.material = p.Server, session.Read.Cookie, session.Facts, bytes.Clone(session.Write.Key.Bytes())
	var info ktls.Info
	h.custody, info, err = ktls.InstallKeeping(p.Server, session.Read, session.Write)
	h.take(err)
	if info.TX != ktls.HW || info.RX != ktls.HW {
		t.Fatalf("not in hardware: %v", info)
	}
	h.readKey, h.writeKey = h.nic.KeysOfCookie(t, h.cookie)
	h.stillHeld("after the import")
	return h
}

// stillHeld checks with the device's own table that it has the very keys of the
// import, and that nobody has ever deleted one.
func (h *hardware) stillHeld(when string) {
	h.t.Helper()
	read, write := h.nic.KeysOfCookie(h.t, h.cookie)
	for _, k := range []struct{ now, then ktlstest.NICKey }{{read, h.readKey}, {write, h.writeKey}} {
		if !k.now.Held || k.now.ID != k.then.ID || k.now.Digest != k.then.Digest || k.now.ID == 0 {
			h.t.Errorf("%s: the device's %v key is %+v, was %+v", when, k.then.Direction, k.now, k.then)
		}
		for _, e := range h.nic.EventsOf(h.t, k.then.ID) {
			if e.Kind == "del" {
				h.t.Errorf("%s: the device's %v key was deleted: %+v", when, k.then.Direction, e)
			}
		}
	}
}

// deletedOnce waits until both keys are gone, and checks that each went once.
func (h *hardware) deletedOnce() {
	h.t.Helper()
	for _, id := range []int{h.readKey.ID, h.writeKey.ID} {
		deleted := 0
		for end := time.Now().Add(20 * time.Second); deleted == 0 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			for _, e := range h.nic.EventsOf(h.t, id) {
				if e.Kind == "del" {
					deleted++
				}
			}
		}
		if deleted != 1 {
			h.t.Errorf("key %d was deleted %d times after the last close, want once", id, deleted)
		}
	}
}

// transfer sends so many bytes to whoever echoes, and compares.
func (h *hardware) transfer(size int) {
	h.t.Helper()
	data := make([]byte, size)
	rand.Read(data)
	sent := make(chan error, 1)
	go func() {
		_, err := h.client.Write(data)
		sent <- err
	}()
	got := make([]byte, size)
	if _, err := io.ReadFull(h.client, got); err != nil || !bytes.Equal(got, data) {
		h.t.Fatalf("other bytes came back, or none: %v", err)
	}
	if err := <-sent; err != nil {
		h.t.Fatal(err)
	}
}

// echoHere echoes so many bytes in this process.
func (h *hardware) echoHere(size int) (done chan error) {
	done = make(chan error, 1)
	go func() {
		n, err := io.CopyN(h.conn, struct{ io.Reader }{h.conn}, int64(size))
		if err == nil && n != int64(size) {
			err = io.ErrShortWrite
		}
		done <- err
	}()
	return done
}

// TestAKeyHeldInHardwareIsNeverDestroyed: exporting it yields a name, importing
// compares, destroying drops the name, and neither the exit nor the crash of whoever
// exported it reaches the key. Only the last close of the socket ends it, once.
func TestAKeyHeldInHardwareIsNeverDestroyed(t *testing.T) {
	for _, network := range ktlstest.NICNetworks {
		t.Run(network, func(t *testing.T) {
			h := newHardware(t, network)
			done := h.echoHere(50_000)
			h.transfer(50_000)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			h.stillHeld("after use")
			h.exportDestroyAndAdopt()

			// Another process gets it, uses it, and gives it back.
			ours, theirs := channelFiles(t)
			child := startMover(t, sharedIdentity(t), heldSuite, theirs)
			theirs.Close()
			var err error
			if h.channel, err = handoff.FileConn(ours); err != nil {
				t.Fatal(err)
			}
			h.meet()
			if !h.moveNow() {
				t.Fatal("the connection is not quiet")
			}
			h.transfer(bytesPerMove)
			if !h.adopt() {
				t.Fatalf("the other process ended:\n%s", child.output)
			}
			h.stillHeld("after another process had it")

			// The exporter crashes.
			child.cmd.Process.Signal(unix.SIGKILL)
			child.cmd.Wait()
			h.stillHeld("after the crash of the exporter")
			done = h.echoHere(20_000)
			h.transfer(20_000)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			h.stillHeld("before the last close")

			h.client.Close()
			h.conn.Close()
			h.deletedOnce()
		})
	}
}

// exportDestroyAndAdopt looks at what an export of a held key is made of.
func (h *hardware) exportDestroyAndAdopt() {
	h.t.Helper()
	read, write, err := h.conn.Export(testContext(h.t), h.custody)
	if err != nil {
		h.t.Fatal(err)
	}
	h.stillHeld("after the export")
	for _, s := range []*blob.State{read, write} {
		if s.Kind() != blob.KindReference || s.Held.Device != "tlsnic0" || s.Key.Len() != 0 || s.IV.Len() != 0 {
			h.t.Errorf("exported %v", s)
		}
	}
	copies := []*blob.State{copyState(read), copyState(write)}
	wrong := []*blob.State{copyState(read), copyState(write)}
	read.Destroy()
	write.Destroy()
	h.stillHeld("after its handle was destroyed")

	wrong[1].Seq++
	if _, _, err := ktls.Adopt(h.tcp, wrong[0], wrong[1]); !errors.Is(err, ktls.ErrMismatch) {
		h.t.Errorf("a reference at another sequence number: %v", err)
	}
	if _, err := ktls.Install(h.tcp, copyState(copies[0]), copyState(copies[1])); !errors.Is(err, ktls.ErrHeld) {
		h.t.Errorf("installing a reference: %v", err)
	}
	h.stillHeld("after imports that were refused")
	var info ktls.Info
	h.custody, info, err = ktls.Adopt(h.tcp, copies[0], copies[1])
	h.take(err)
	if info.TX != ktls.HW || info.RX != ktls.HW {
		h.t.Errorf("adopted as %v", info)
	}
	h.stillHeld("after the import")
}

// startOverNIC starts a daemon on the device and makes one connection to it.
func startOverNIC(t *testing.T, nic *ktlstest.NIC) (*testDaemon, *tls.Conn) {
	t.Helper()
	d := startDaemon(t, sharedIdentity(t), daemonOptions{address: nic.Host("tcp4") + ":0", settings: "workers = 1\nworker_connections = 1"})
	d.serveApplication(echo)
	config := d.clientConfig()
	only(t, heldSuite, config)
	var client *tls.Conn
	var err error
	nic.AtPeer(t, func() { client, err = d.dial(config) })
	if err != nil {
		t.Fatalf("%v\n%s", err, d.log.dump())
	}
	t.Cleanup(func() { client.Close() })
	if err := echoOnce(client); err != nil {
		t.Fatal(err)
	}
	return d, client
}

// TestALostLinkIsNoticed, although the kernel goes on saying "device".
func TestALostLinkIsNoticed(t *testing.T) {
	requireDaemon(t)
	nic := ktlstest.NewNIC(t)
	d, client := startOverNIC(t, nic)
	inDevice := func(e custody.Entry) bool {
		return e.Read.Place == custody.Device && e.Write.Place == custody.Device && e.Read.Device == "tlsnic0"
	}
	s := d.waitStatus("one in the device", func(s statusJSONOf) bool { return s.Daemon.Totals.Device == 1 && len(s.Connections) == 1 })
	if e := s.Connections[0]; !inDevice(e) || e.Degraded() {
		t.Errorf("before: %+v", e)
	}
	link, err := netlink.LinkByName("tlsnic0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	s = d.waitStatus("one degraded", func(s statusJSONOf) bool { return s.Daemon.Totals.Degraded == 1 })
	for _, k := range []custody.Key{s.Connections[0].Read, s.Connections[0].Write} {
		if k.Degraded == nil || !strings.Contains(k.Degraded.Reason, "tlsnic0") {
			t.Errorf("after: %+v", k)
		}
	}
	d.wait("custody degraded")
	if read, write := nic.KeysOfCookie(t, s.Connections[0].Socket); read.Held || write.Held {
		t.Error("the device holds the keys still, so there was nothing to notice")
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	if err := echoOnce(client); err != nil {
		t.Errorf("in software, with the kernel's copy: %v", err)
	}
	if e := d.status().Connections[0]; !e.Degraded() {
		t.Errorf("the keys did not go back, and the mark is gone: %+v", e)
	}
}

// TestAKeyOfOneDirectionInADeviceIsNoticed: Linux stops sending for good on such a
// connection when the link goes down.
func TestAKeyOfOneDirectionInADeviceIsNoticed(t *testing.T) {
	requireDaemon(t)
	nic := ktlstest.NewNIC(t)
	nic.Refuse(t, blob.Write, unix.ENOSPC, 1)
	d, _ := startOverNIC(t, nic)
	s := d.waitStatus("one degraded", func(s statusJSONOf) bool { return s.Daemon.Totals.Degraded == 1 })
	if e := s.Connections[0]; s.Daemon.Totals.Mixed != 1 || e.Read.Place != custody.Device || e.Write.Place != custody.Software {
		t.Errorf("%+v, %+v", e, s.Daemon.Totals)
	}
}

// TestAHeldKeyOutlivesDaemonAndWorker: reload, restart and replacement of what made
// the connection do not reach it.
func TestAHeldKeyOutlivesDaemonAndWorker(t *testing.T) {
	requireDaemon(t)
	nic := ktlstest.NewNIC(t)
	d, client := startOverNIC(t, nic)
	installed := d.wait("installed")
	if installed.text("tx") != "hw" || installed.text("rx") != "hw" {
		t.Fatalf("not in hardware: %v", installed)
	}
	h := &hardware{mover: &mover{t: t}, nic: nic, cookie: uint64(installed.number("socket"))}
	h.readKey, h.writeKey = nic.KeysOfCookie(t, h.cookie)
	h.stillHeld("after the import")
	d.waitFor("worker left", 1)
	h.stillHeld("after its worker was replaced")
	d.stop()
	h.stillHeld("after the daemon has ended")
	if err := echoOnce(client); err != nil {
		t.Error(err)
	}
	next := startDaemon(t, sharedIdentity(t), daemonOptions{address: nic.Host("tcp4") + ":0", settings: "workers = 1"})
	h.stillHeld("after the next daemon has started")
	next.stop()
	if err := echoOnce(client); err != nil {
		t.Error(err)
	}
	client.Close()
	h.deletedOnce()
}

// TestAReferenceBlobCarriesNoKey: what goes over the channel for a held key holds no
// key byte, even for who can open it.
func TestAReferenceBlobCarriesNoKey(t *testing.T) {
	h := newHardware(t, "tcp4")
	key, err := blob.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	sealer, setup, err := blob.NewSealer(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	opener, err := key.NewOpener(setup)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	read, write, err := h.conn.Export(ctx, h.custody)
	if err != nil {
		t.Fatal(err)
	}
	read.Destroy()
	b, err := sealer.Seal(write, time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if header, err := blob.Inspect(b); err != nil || header.Kind != blob.KindReference {
		t.Errorf("%v, %v", header, err)
	}
	got, err := opener.Open(b, blob.Binding{Cookie: h.cookie, Role: blob.Server, Direction: blob.Write, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if got.Key.Len() != 0 || bytes.Contains(got.Held.Digest[:], h.material[:8]) {
		t.Errorf("opened %v", got)
	}
	h.stillHeld("after the blob was opened")
}
