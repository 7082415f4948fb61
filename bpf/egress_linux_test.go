// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These tests play a handshaker, which the guard lets send: the backstop judges what.

// record is one of TLS, with a body of so many bytes.
func record(kind byte, body int) []byte {
	return append([]byte{kind, 3, 3, byte(body >> 8), byte(body)}, bytes.Repeat([]byte{0xab}, body)...)
}

var handshake = record(22, 40)

func TestTheBackstop(t *testing.T) {
	series(t)
	g := loadGuard(t, "")
	if err := g.admitProcess(os.Getpid(), Handshaker); err != nil {
		t.Fatal(err)
	}
	stops := g.collectStops(t)
	t.Run("only records leave before the keys", func(t *testing.T) { g.letsOnlyRecordsOut(t, stops) })
	t.Run("what was held back stays when the keys come", g.goesOnHoldingBack)
	t.Run("no payload leaves after the end", g.letsNoPayloadOut)
	t.Run("the end of a connection leaves", g.letsSignalsOut)
	t.Run("headers do not hide the payload", g.looksBehindHeaders)
	t.Run("a packet is refused by the device", g.followsRefusals)
	t.Run("segments are lost, cut and sent again", g.followsSegments)
}

func (g *loadedGuard) letsOnlyRecordsOut(t *testing.T, stops *stopLog) {
	many := bytes.Repeat(handshake, 100)
	text := []byte("GET / HTTP/1.1\r\n\r\n")
	for name, test := range map[string]struct {
		writes [][]byte
		leave  int // bytes; the rest is held back
	}{
		"a record":                        {[][]byte{handshake}, 45},
		"an alert, and what goes for one": {[][]byte{record(21, 2), record(20, 1), record(23, 300)}, 7 + 6 + 305},
		"a record of nothing":             {[][]byte{record(22, 0), handshake}, 50},
		"the longest":                     {[][]byte{record(23, 16384+256)}, 5 + 16384 + 256},
		"64 KiB at once":                  {[][]byte{bytes.Repeat(record(22, 4091), 16)}, 16 * 4096},
		"many at once":                    {[][]byte{bytes.Repeat(record(22, 0), 8000)}, 40000},
		"cut everywhere":                  {cut(handshake), 45},
		"a header cut in two":             {[][]byte{append(slices.Clone(handshake), 22, 3), {3, 0}, {1, 0}}, 45 + 6},
		"the old version of a hello":      {[][]byte{{22, 3, 1, 0, 1, 0}, {22, 3, 2, 0, 1, 0}}, 12},

		"text":                          {[][]byte{text}, 0},
		"text after a record":           {[][]byte{handshake, text}, 45},
		"text behind a record":          {[][]byte{append(slices.Clone(handshake), text...)}, 0},
		"text behind a hundred records": {[][]byte{many, append(slices.Clone(many), text...)}, 4500},
		"a record after text":           {[][]byte{handshake, text, handshake}, 45},
		"type 19":                       {[][]byte{{19, 3, 3, 0, 1, 0}}, 0},
		"type 24":                       {[][]byte{{24, 3, 3, 0, 1, 0}}, 0},
		"version 2.3":                   {[][]byte{{22, 2, 3, 0, 1, 0}}, 0},
		"SSL 3.0":                       {[][]byte{{22, 3, 0, 0, 1, 0}}, 0},
		"version 3.4":                   {[][]byte{{22, 3, 4, 0, 1, 0}}, 0},
		"too long by one":               {[][]byte{record(23, 16384+257)}, 0},
		"a header that goes wrong late": {[][]byte{{22}, {3}, {3}, {255}, {255}}, 4},
	} {
		for _, address := range []string{"127.0.0.1", "::1"} {
			if address == "::1" && name != "64 KiB at once" && name != "text after a record" {
				continue
			}
			t.Run(name+" over "+address, func(t *testing.T) {
				w := g.newWire(t, address, toPending...)
				var all []byte
				for _, b := range test.writes {
					w.send(t, b)
					all = append(all, b...)
				}
				if got := w.received(t, test.leave); !bytes.Equal(got, all[:test.leave]) {
					t.Errorf("%d bytes left: %.60q; want %d", len(got), got, test.leave)
				}
				if n := w.unsent(t); n != len(all)-test.leave {
					t.Errorf("%d bytes are held back, want %d", n, len(all)-test.leave)
				}
				want := min(1, len(all)-test.leave)
				if n := stops.of(w.cookie, "packet_early", want); n != want {
					t.Errorf("%d events tell of it, want %d", n, want)
				}
			})
		}
	}
}

// cut cuts b into bytes.
func cut(b []byte) (all [][]byte) {
	for i := range b {
		all = append(all, b[i:i+1])
	}
	return all
}

// goesOnHoldingBack: TCP goes on trying, and READY lets everybody send.
func (g *loadedGuard) goesOnHoldingBack(t *testing.T) {
	text := []byte("in clear")
	for name, inject := range map[string]func(*testing.T, *wire){
		"a packet that was dropped": func(t *testing.T, w *wire) { w.send(t, text) },
		"bytes that TCP had not tried to send": func(t *testing.T, w *wire) {
			w.control(t, func(fd int) error { return unix.Sendto(fd, text, unix.MSG_MORE, nil) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := g.newWire(t, "127.0.0.1", toPending...)
			w.send(t, handshake)
			inject(t, w)
			g.put(t, w.cookie, (*Guard).Ready)
			w.send(t, handshake)
			if got := w.received(t, len(handshake)); !bytes.Equal(got, handshake) {
				t.Errorf("received %q", got)
			}
			if n := w.unsent(t); n != len(text)+len(handshake) {
				t.Errorf("%d bytes are held back", n)
			}
		})
	}
	t.Run("records are let go", func(t *testing.T) {
		w := g.newWire(t, "127.0.0.1", toPending...)
		w.send(t, handshake)
		w.control(t, func(fd int) error { return unix.Sendto(fd, handshake, unix.MSG_MORE, nil) })
		g.put(t, w.cookie, (*Guard).Ready)
		w.send(t, handshake) // of the record layer, from here on
		w.send(t, text)      // which nobody judges
		want := append(bytes.Repeat(handshake, 3), text...)
		if got := w.received(t, len(want)); !bytes.Equal(got, want) {
			t.Errorf("received %q", got)
		}
	})
}

// letsNoPayloadOut: also not what was written before.
func (g *loadedGuard) letsNoPayloadOut(t *testing.T) {
	w := g.newWire(t, "127.0.0.1", toReady...)
	w.control(t, func(fd int) error { return unix.Sendto(fd, handshake, unix.MSG_MORE, nil) })
	g.put(t, w.cookie, (*Guard).Ended)
	w.control(t, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) })
	if got := w.received(t, 0); len(got) != 0 || w.unsent(t) != len(handshake) {
		t.Errorf("received %q", got)
	}
}

func (g *loadedGuard) letsSignalsOut(t *testing.T) {
	for name, moves := range map[string][]move{"pending": toPending, "ready": toReady, "ended": toEnded} {
		t.Run("FIN, "+name, func(t *testing.T) {
			w := g.newWire(t, "127.0.0.1", moves...)
			if err := w.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			w.peer.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := w.peer.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("the peer got %v", err)
			}
		})
		t.Run("RST, "+name, func(t *testing.T) {
			w := g.newWire(t, "127.0.0.1", moves...)
			w.SetLinger(0)
			w.Close()
			w.peer.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := w.peer.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the peer got %v", err)
			}
		})
		t.Run("ACK, "+name, func(t *testing.T) {
			w := g.newWire(t, "127.0.0.1", moves...)
			if _, err := w.peer.Write(handshake); err != nil {
				t.Fatal(err)
			}
			// The peer's queue empties by acknowledgements only.
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				n := -1
				(&wire{TCPConn: w.peer}).control(t, func(fd int) (err error) { n, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ); return err })
				if n == 0 {
					break
				}
				if time.Now().After(end) {
					t.Fatal("nothing is acknowledged")
				}
			}
		})
	}
}

// looksBehindHeaders that a holder can put before the payload.
func (g *loadedGuard) looksBehindHeaders(t *testing.T) {
	text := []byte("in clear")
	t.Run("IPv4 options", func(t *testing.T) {
		w := g.newWire(t, "127.0.0.1", toPending...)
		w.control(t, func(fd int) error {
			return unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, "\x01\x01\x01\x01\x01\x01\x01\x01") // no operation
		})
		w.send(t, handshake)
		w.send(t, text)
		if got := w.received(t, len(handshake)); !bytes.Equal(got, handshake) {
			t.Errorf("received %q", got)
		}
	})
	t.Run("IPv6 options", func(t *testing.T) {
		w := g.newWire(t, "::1", toPending...)
		before := g.counted(t, "packet_unreadable")
		w.control(t, func(fd int) error {
			return unix.SetsockoptString(fd, unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, "\x00\x00\x01\x04\x00\x00\x00\x00") // padding
		})
		w.send(t, text)
		if got := w.received(t, 0); len(got) != 0 {
			t.Errorf("received %q", got)
		}
		if g.counted(t, "packet_unreadable") == before {
			t.Error("the packet is not counted")
		}
	})
	t.Run("a SYN with data", func(t *testing.T) {
		setting(t, "/proc/sys/net/ipv4/tcp_fastopen", fmt.Sprint(0x207)) // without cookies, at both ends
		for name, test := range map[string]struct{ first, want []byte }{
			"records": {handshake, append(slices.Clone(handshake), handshake...)},
			"text":    {text, nil},
		} {
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			// Without this TCP would go on trying to send what was dropped.
			if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
				t.Fatal(err)
			}
			cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
			if err != nil {
				t.Fatal(err)
			}
			g.put(t, cookie, toPending...)
			to := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: l.Addr().(*net.TCPAddr).Port}
			// A SYN that was dropped is sent again, without data.
			if err := unix.Sendto(fd, test.first, unix.MSG_FASTOPEN, to); err != nil {
				t.Fatal(err)
			}
			if err := unix.Sendto(fd, handshake, 0, nil); err != nil {
				t.Fatal(err)
			}
			peer, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			w := &wire{peer: peer.(*net.TCPConn)}
			if got := w.received(t, len(test.want)); !bytes.Equal(got, test.want) {
				t.Errorf("%s: received %q", name, got)
			}
			peer.Close()
		}
	})
}

// setting changes a sysctl for the time of a test.
func setting(t *testing.T, path, value string) {
	t.Helper()
	before, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, []byte(value), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(path, before, 0); err != nil {
			t.Error(err)
		}
	})
}
