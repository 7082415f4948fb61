// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

const suite13 = blob.TLS_AES_128_GCM_SHA256

// TestTheKernelHoldsExactlyTheExportedState is the central claim: suite × version ×
// role × direction × sequence number.
func TestTheKernelHoldsExactlyTheExportedState(t *testing.T) {
	ktlstest.Require(t)
	for _, suite := range blob.CipherSuites() {
		for _, seq := range []uint64{0, 1, 5, 1 << 40} {
			t.Run(fmt.Sprintf("%v at %d", suite, seq), func(t *testing.T) {
				p := ktlstest.NewPair(t)
				client, server := ktlstest.NewStates(t, suite, p)
				client.Write.Seq, server.Read.Seq = seq, seq
				client.Read.Seq, server.Write.Seq = seq+3, seq+3
				for _, end := range []struct {
					role   string
					conn   *net.TCPConn
					states ktlstest.States
				}{{"client", p.Client, client}, {"server", p.Server, server}} {
					rx, tx := ktlstest.CryptoInfo(end.states.Read), ktlstest.CryptoInfo(end.states.Write)
					info, err := ktls.Install(end.conn, end.states.Read, end.states.Write)
					if err != nil {
						t.Fatal(err)
					}
					if got := kernelState(t, end.conn, optRX, len(rx)); !bytes.Equal(got, rx) {
						t.Errorf("%s: the kernel's TLS_RX differs from the exported state", end.role)
					}
					if got := kernelState(t, end.conn, optTX, len(tx)); !bytes.Equal(got, tx) {
						t.Errorf("%s: the kernel's TLS_TX differs from the exported state", end.role)
					}
					if info.Version != suite.Version() || info.AEAD != suite.AEAD() || info.TX != ktls.SW || info.RX != ktls.SW {
						t.Errorf("%s: info %v", end.role, info)
					}
				}
				exchange(t, p.Client, p.Server)
				exchange(t, p.Server, p.Client)
			})
		}
	}
}

// exchange writes a record at one end and expects its content at the other.
func exchange(t testing.TB, from, to net.Conn) {
	t.Helper()
	const message = "the next record"
	if _, err := from.Write([]byte(message)); err != nil {
		t.Fatal(err)
	}
	to.SetReadDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, len(message))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != message {
		t.Fatalf("%q, %v", got, err)
	}
	to.SetReadDeadline(time.Time{})
}

func destroyed(s ...*blob.State) bool {
	for _, s := range s {
		for _, b := range [][]byte{s.Key.Bytes(), s.IV.Bytes(), s.NextSecret.Bytes()} {
			if !bytes.Equal(b, make([]byte, len(b))) {
				return false
			}
		}
	}
	return true
}

func TestInstallConsumesBothStates(t *testing.T) {
	t.Run("on success", func(t *testing.T) {
		ktlstest.Require(t)
		p := ktlstest.NewPair(t)
		client, _ := ktlstest.NewStates(t, suite13, p)
		if _, err := ktls.Install(p.Client, client.Read, client.Write); err != nil {
			t.Fatal(err)
		}
		if !destroyed(client.Read, client.Write) {
			t.Error("a state survived")
		}
	})
	t.Run("on failure", func(t *testing.T) {
		p := ktlstest.NewPair(t)
		client, _ := ktlstest.NewStates(t, suite13, p)
		if _, err := ktls.Install(p.Client, client.Write, client.Read); err == nil {
			t.Fatal("swapped states were installed")
		}
		if !destroyed(client.Read, client.Write) {
			t.Error("a state survived")
		}
	})
	t.Run("when the socket is closed", func(t *testing.T) {
		p := ktlstest.NewPair(t)
		client, _ := ktlstest.NewStates(t, suite13, p)
		p.Client.Close()
		if _, err := ktls.Install(p.Client, client.Read, client.Write); !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		if !destroyed(client.Read, client.Write) {
			t.Error("a state survived")
		}
	})
}

// refusals are wrong in one way each.
var refusals = []struct {
	name    string
	prepare func(t *testing.T, p *ktlstest.Pair, s *ktlstest.States)
	want    error
}{
	{"no write state", func(_ *testing.T, _ *ktlstest.Pair, s *ktlstest.States) { s.Write = nil }, blob.ErrState},
	{"no read state", func(_ *testing.T, _ *ktlstest.Pair, s *ktlstest.States) { s.Read = nil }, blob.ErrState},
	{"a destroyed state", func(_ *testing.T, _ *ktlstest.Pair, s *ktlstest.States) { s.Read.Destroy() }, blob.ErrState},
	{"swapped directions", func(_ *testing.T, _ *ktlstest.Pair, s *ktlstest.States) { s.Read, s.Write = s.Write, s.Read }, blob.ErrDirection},
	{"two read states", func(_ *testing.T, _ *ktlstest.Pair, s *ktlstest.States) { s.Write = s.Read }, blob.ErrDirection},
	{"one key for both directions", func(_ *testing.T, _ *ktlstest.Pair, s *ktlstest.States) {
		copy(s.Write.Key.Bytes(), s.Read.Key.Bytes())
	}, blob.ErrState},
	{"two roles", func(_ *testing.T, _ *ktlstest.Pair, s *ktlstest.States) { s.Read.Role = blob.Server }, blob.ErrDirection},
	{"two suites", func(t *testing.T, p *ktlstest.Pair, s *ktlstest.States) {
		other, _ := ktlstest.NewStates(t, blob.TLS_CHACHA20_POLY1305_SHA256, p)
		s.Write = other.Write
	}, blob.ErrState},
	{"two versions", func(t *testing.T, p *ktlstest.Pair, s *ktlstest.States) {
		other, _ := ktlstest.NewStates(t, blob.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, p)
		s.Write = other.Write
	}, blob.ErrState},
	{"two sockets", func(_ *testing.T, _ *ktlstest.Pair, s *ktlstest.States) { s.Write.Cookie++ }, blob.ErrCookie},
	{"another socket's states", func(t *testing.T, p *ktlstest.Pair, s *ktlstest.States) {
		ktlstest.Bind(t, p.Server, *s)
	}, blob.ErrCookie},
	{"used up sequence numbers", func(_ *testing.T, _ *ktlstest.Pair, s *ktlstest.States) { s.Read.Seq = 1<<64 - 1 }, blob.ErrState},
	{"a connection the peer has reset", func(t *testing.T, p *ktlstest.Pair, _ *ktlstest.States) {
		p.Server.SetLinger(0)
		p.Server.Close()
		waitState(t, p.Client, tcpClose)
	}, ktls.ErrPeerClosed},
	{"a connection we have closed", func(t *testing.T, p *ktlstest.Pair, _ *ktlstest.States) {
		p.Client.CloseWrite()
		waitState(t, p.Client, tcpFinWait2)
	}, ktls.ErrPeerClosed},
}

var marker = []byte("MARKER: this must never be seen on the wire")

func TestInstallRefuses(t *testing.T) {
	ktlstest.Require(t)
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			p := ktlstest.NewPair(t)
			s, _ := ktlstest.NewStates(t, suite13, p)
			r.prepare(t, p, &s)
			before := tcpState(t, p.Client)
			if _, err := ktls.Install(p.Client, s.Read, s.Write); !errors.Is(err, r.want) {
				t.Fatalf("%v, want %v", err, r.want)
			}
			if after := tcpState(t, p.Client); after != before {
				t.Errorf("without the ULP the socket is the caller's, and went from state %d to %d", before, after)
			}
		})
		t.Run(r.name+" after Attach, and shuts down", func(t *testing.T) {
			p := ktlstest.NewPair(t)
			capture := ktlstest.StartCapture(t, p.Port())
			if err := ktls.Attach(p.Client); err != nil {
				t.Fatal(err)
			}
			s, _ := ktlstest.NewStates(t, suite13, p)
			r.prepare(t, p, &s)
			if _, err := ktls.Install(p.Client, s.Read, s.Write); !errors.Is(err, r.want) {
				t.Fatalf("%v, want %v", err, r.want)
			}
			assertMute(t, p.Client, capture)
		})
	}
}

// assertMute checks that nothing leaves the socket any more.
func assertMute(t *testing.T, c *net.TCPConn, capture *ktlstest.Capture) {
	t.Helper()
	if n, err := c.Write(marker); err == nil {
		t.Errorf("a write of %d bytes succeeded after a failed Install", n)
	}
	time.Sleep(5 * time.Millisecond)
	capture.AssertNoPlaintext(t, marker)
	streams, _ := capture.Streams()
	for _, s := range streams {
		if len(s.Data) > 0 {
			t.Errorf("%d bytes went over the wire", len(s.Data))
		}
	}
}

func TestAPeerThatClosedItsWriteSideEarly(t *testing.T) {
	ktlstest.Require(t)
	t.Run("is refused without the ULP", func(t *testing.T) {
		p := ktlstest.NewPair(t)
		p.Server.CloseWrite()
		waitState(t, p.Client, tcpCloseWait)
		if err := ktls.Attach(p.Client); !errors.Is(err, ktls.ErrPeerClosed) {
			t.Errorf("Attach: %v", err)
		}
		s, _ := ktlstest.NewStates(t, suite13, p)
		if _, err := ktls.Install(p.Client, s.Read, s.Write); !errors.Is(err, ktls.ErrPeerClosed) {
			t.Errorf("Install: %v", err)
		}
	})
	t.Run("is served with the ULP attached before", func(t *testing.T) {
		p := ktlstest.NewPair(t)
		if err := errors.Join(ktls.Attach(p.Client), ktls.Attach(p.Server)); err != nil {
			t.Fatal(err)
		}
		client, server := ktlstest.NewStates(t, suite13, p)
		if _, err := ktls.Install(p.Server, server.Read, server.Write); err != nil {
			t.Fatal(err)
		}
		p.Server.CloseWrite()
		waitState(t, p.Client, tcpCloseWait)
		if _, err := ktls.Install(p.Client, client.Read, client.Write); err != nil {
			t.Fatal(err)
		}
		exchange(t, p.Client, p.Server)
	})
}

func TestASocketWithKeysIsLeftAsItIs(t *testing.T) {
	ktlstest.Require(t)
	setup := func(t *testing.T) (*ktlstest.Pair, ktlstest.States) {
		p := ktlstest.NewPair(t)
		client, server := ktlstest.NewStates(t, suite13, p)
		again := ktlstest.States{Read: clone(client.Read), Write: clone(client.Write)}
		for _, end := range []struct {
			conn   *net.TCPConn
			states ktlstest.States
		}{{p.Client, client}, {p.Server, server}} {
			if _, err := ktls.Install(end.conn, end.states.Read, end.states.Write); err != nil {
				t.Fatal(err)
			}
		}
		exchange(t, p.Client, p.Server)
		return p, again
	}
	check := func(t *testing.T, p *ktlstest.Pair, s ktlstest.States, want error) {
		t.Helper()
		before := kernelState(t, p.Client, optTX, 40)
		if _, err := ktls.Install(p.Client, s.Read, s.Write); !errors.Is(err, want) {
			t.Fatalf("%v, want %v", err, want)
		}
		if !bytes.Equal(before, kernelState(t, p.Client, optTX, 40)) {
			t.Error("the kernel's state changed")
		}
		exchange(t, p.Client, p.Server)
		exchange(t, p.Server, p.Client)
	}
	t.Run("other keys", func(t *testing.T) {
		p, _ := setup(t)
		other, _ := ktlstest.NewStates(t, suite13, p)
		check(t, p, other, ktls.ErrInstalled)
	})
	t.Run("the same keys at the same number", func(t *testing.T) {
		p, again := setup(t)
		again.Write.Seq = 1
		check(t, p, again, ktls.ErrInstalled)
	})
	t.Run("the same keys at a lower number", func(t *testing.T) {
		p, again := setup(t)
		check(t, p, again, ktls.ErrRewind)
	})
	t.Run("another socket's states", func(t *testing.T) {
		p, again := setup(t)
		again.Read.Cookie++
		again.Write.Cookie++
		check(t, p, again, blob.ErrCookie)
	})
}

// clone makes what the product never has: a second copy of a state.
func clone(s *blob.State) *blob.State {
	c := *s
	for _, secret := range []*blob.Secret{&c.Key, &c.IV, &c.NextSecret} {
		*secret = blob.NewSecret(append([]byte(nil), secret.Bytes()...))
	}
	return &c
}

func TestAHalfInstalledSocketThatWouldSendClearTextIsShutDown(t *testing.T) {
	ktlstest.Require(t)
	p := ktlstest.NewPair(t)
	capture := ktlstest.StartCapture(t, p.Port())
	if err := ktls.Attach(p.Client); err != nil {
		t.Fatal(err)
	}
	s, _ := ktlstest.NewStates(t, suite13, p)
	if err := setKernelKey(t, p.Client, optRX, ktlstest.CryptoInfo(s.Read)); err != nil {
		t.Fatal(err)
	}
	if _, err := ktls.Install(p.Client, s.Read, s.Write); !errors.Is(err, ktls.ErrInstalled) {
		t.Fatal(err)
	}
	assertMute(t, p.Client, capture)
}

func TestOtherSocketsAreRefused(t *testing.T) {
	p := ktlstest.NewPair(t)
	t.Run("Multipath TCP", func(t *testing.T) {
		c := mptcpSocket(t)
		if err := ktls.Attach(c); !errors.Is(err, ktls.ErrMPTCP) {
			t.Errorf("Attach: %v", err)
		}
		s, _ := ktlstest.NewStates(t, suite13, p)
		ktlstest.Bind(t, c, s)
		if _, err := ktls.Install(c, s.Read, s.Write); !errors.Is(err, ktls.ErrMPTCP) {
			t.Errorf("Install: %v", err)
		}
	})
	t.Run("UDP", func(t *testing.T) {
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, _ := ktlstest.NewStates(t, suite13, p)
		ktlstest.Bind(t, c, s)
		if _, err := ktls.Install(c, s.Read, s.Write); !errors.Is(err, ktls.ErrNotTCP) {
			t.Error(err)
		}
		if _, err := ktls.InfoOf(c); !errors.Is(err, ktls.ErrNotTCP) {
			t.Error(err)
		}
	})
	t.Run("without keys, as a Conn", func(t *testing.T) {
		if _, err := ktls.NewConn(p.Client); !errors.Is(err, ktls.ErrNoKeys) {
			t.Error(err)
		}
	})
	t.Run("without a write key, as a Conn", func(t *testing.T) {
		ktlstest.Require(t)
		p := ktlstest.NewPair(t)
		if err := ktls.Attach(p.Client); err != nil {
			t.Fatal(err)
		}
		s, _ := ktlstest.NewStates(t, suite13, p)
		if err := setKernelKey(t, p.Client, optRX, ktlstest.CryptoInfo(s.Read)); err != nil {
			t.Fatal(err)
		}
		if _, err := ktls.NewConn(p.Client); !errors.Is(err, ktls.ErrNoKeys) {
			t.Error(err)
		}
		info, err := ktls.InfoOf(p.Client)
		if err != nil || info.TX != ktls.Base || info.RX != ktls.SW {
			t.Errorf("%v, %v", info, err)
		}
	})
}

func TestAttachTwiceIsNoError(t *testing.T) {
	ktlstest.Require(t)
	p := ktlstest.NewPair(t)
	for range 2 {
		if err := ktls.Attach(p.Client); err != nil {
			t.Error(err)
		}
	}
	if err := attachOther(t, p.Client, "espintcp"); err == nil {
		t.Error("two ULPs on one socket")
	}
}

func TestWithoutTheModule(t *testing.T) {
	if ktlstest.InVM() {
		ktlstest.Require(t)
		t.Skip("this kernel has the module")
	}
	p := ktlstest.NewPair(t)
	if err := ktls.Attach(p.Client); err == nil {
		t.Skip("this kernel has the module")
	} else if !errors.Is(err, ktls.ErrNoTLS) {
		t.Error(err)
	}
	s, _ := ktlstest.NewStates(t, suite13, p)
	if _, err := ktls.Install(p.Client, s.Read, s.Write); !errors.Is(err, ktls.ErrNoTLS) {
		t.Error(err)
	}
	if got := tcpState(t, p.Client); got != tcpEstablished {
		t.Errorf("the socket is in state %d", got)
	}
}

// TestNothingButRecordsGoesOverTheWire sends a marker both ways and looks for it in a capture.
func TestNothingButRecordsGoesOverTheWire(t *testing.T) {
	ktlstest.Require(t)
	for _, suite := range blob.CipherSuites() {
		t.Run(suite.String(), func(t *testing.T) {
			p := ktlstest.NewPair(t)
			capture := ktlstest.StartCapture(t, p.Port())
			ktlstest.InstallPair(t, suite, p)
			long := bytes.Repeat(marker, 1000)
			for _, d := range [][2]*net.TCPConn{{p.Client, p.Server}, {p.Server, p.Client}} {
				if _, err := d[0].Write(long); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(long))
				if _, err := io.ReadFull(d[1], got); err != nil || !bytes.Equal(got, long) {
					t.Fatal("not what was sent", err)
				}
			}
			capture.AssertNoPlaintext(t, marker)
			streams, err := capture.Streams()
			if err != nil || len(streams) != 2 || len(streams[0].Data) <= len(long) || len(streams[1].Data) <= len(long) {
				t.Errorf("the capture missed something: %d streams, %v", len(streams), err)
			}
		})
	}
}
