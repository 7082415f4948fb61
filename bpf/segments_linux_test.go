// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"os/exec"
	"testing"
	"time"
)

// followsSegments: on a network that loses, doubles and reorders packets of 1500 bytes, neither random records in random
// pieces nor handshakes with a long chain of certificates have one of their packets dropped by the backstop.
func (g *loadedGuard) followsSegments(t *testing.T) {
	badNetwork(t)
	before := g.counted(t, "packet_early") + g.counted(t, "packet_unreadable")
	for _, address := range []string{"127.0.0.1", "::1"} {
		t.Run("records over "+address, func(t *testing.T) { g.carriesRecords(t, address) })
		t.Run("handshakes over "+address, func(t *testing.T) { g.carriesHandshakes(t, address) })
	}
	if n := g.counted(t, "packet_early") + g.counted(t, "packet_unreadable") - before; n != 0 {
		t.Errorf("%d packets were dropped", n)
	}
}

// badNetwork makes loopback one for the time of a test.
func badNetwork(t *testing.T) {
	t.Helper()
	run(t, "ip", "link", "set", "lo", "mtu", "1500")
	t.Cleanup(func() { run(t, "ip", "link", "set", "lo", "mtu", "65536") })
	run(t, "tc", "qdisc", "add", "dev", "lo", "root", "netem", "limit", "20", "delay", "1ms", "loss", "5%", "duplicate", "5%", "reorder", "25%")
	t.Cleanup(func() { run(t, "tc", "qdisc", "del", "dev", "lo", "root") })
}

func run(t *testing.T, command ...string) {
	t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", command, err, out)
	}
}

// followsRefusals of the device: TCP is told that a packet did not leave, which the backstop has seen, and sends it once
// more with what was written since. What follows is judged as what it is.
func (g *loadedGuard) followsRefusals(t *testing.T) {
	w := g.newWire(t, "127.0.0.1", toPending...)
	run(t, "tc", "qdisc", "add", "dev", "lo", "root", "pfifo", "limit", "0")
	w.send(t, handshake)
	held := w.unsent(t)
	w.send(t, handshake)
	run(t, "tc", "qdisc", "del", "dev", "lo", "root")
	if held != len(handshake) {
		t.Errorf("%d bytes did not leave, want %d", held, len(handshake))
	}
	want := append(bytes.Clone(handshake), handshake...)
	if got := w.received(t, len(want)); !bytes.Equal(got, want) {
		t.Errorf("received %q", got)
	}
	w.send(t, []byte("in clear"))
	if got := w.received(t, 0); len(got) != 0 {
		t.Errorf("received %q", got)
	}
}

func (g *loadedGuard) carriesRecords(t *testing.T, address string) {
	random := mathrand.New(mathrand.NewPCG(1, 2))
	var stream []byte
	for len(stream) < 300<<10 {
		stream = append(stream, record(byte(20+random.IntN(4)), random.IntN(1<<random.IntN(15)))...)
	}
	w := g.newWire(t, address, toPending...)
	w.SetDeadline(time.Now().Add(30 * time.Second))
	sent := make(chan error, 1)
	go func() {
		for left := stream; len(left) > 0; {
			n, err := w.Write(left[:min(len(left), 1+random.IntN(1<<random.IntN(16)))])
			if err != nil {
				sent <- err
				return
			}
			left = left[n:]
		}
		sent <- w.CloseWrite()
	}()
	w.peer.SetReadDeadline(time.Now().Add(30 * time.Second))
	got, err := io.ReadAll(w.peer)
	if err := errors.Join(err, <-sent); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got, stream) {
		t.Errorf("received %d bytes, want %d", len(got), len(stream))
	}
}

// carriesHandshakes of servers that become READY, and goes on with what their record layer sends then.
func (g *loadedGuard) carriesHandshakes(t *testing.T, address string) {
	chain := longChain(t)
	data := bytes.Repeat([]byte("application data "), 5000)
	for range 2 {
		w := g.newWire(t, address, toPending...)
		w.SetDeadline(time.Now().Add(30 * time.Second))
		server := tls.Server(w.TCPConn, &tls.Config{Certificates: []tls.Certificate{chain}})
		sent := make(chan error, 1)
		go func() {
			if err := server.Handshake(); err != nil {
				sent <- err
				return
			}
			err := g.Ready(w.cookie)
			_, err2 := server.Write(data)
			sent <- errors.Join(err, err2, server.CloseWrite())
		}()
		w.peer.SetDeadline(time.Now().Add(30 * time.Second))
		client := tls.Client(w.peer, &tls.Config{InsecureSkipVerify: true})
		got, err := io.ReadAll(client)
		if err := errors.Join(err, <-sent); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) || len(client.ConnectionState().PeerCertificates) != len(chain.Certificate) {
			t.Errorf("received %d bytes", len(got))
		}
	}
}

// longChain is a certificate followed by others, of more than two records.
func longChain(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	padding := pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, 4000)}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), ExtraExtensions: []pkix.Extension{padding}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	chain := tls.Certificate{PrivateKey: key}
	for range 10 {
		chain.Certificate = append(chain.Certificate, der)
	}
	return chain
}
