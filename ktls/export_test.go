// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// kept is an end of a connection with what Export needs.
type kept struct {
	tcp     *net.TCPConn
	conn    *ktls.Conn
	custody *ktls.Custody
}

// newKept returns both ends of an installed pair, the first with custody.
func newKept(t testing.TB, suite blob.CipherSuite) (*kept, *ktls.Conn) {
	t.Helper()
	ktlstest.Require(t)
	p := ktlstest.NewPair(t)
	client, server := ktlstest.NewStates(t, suite, p)
	if _, err := ktls.Install(p.Server, server.Read, server.Write); err != nil {
		t.Fatal(err)
	}
	custody, _, err := ktls.InstallKeeping(p.Client, client.Read, client.Write)
	if err != nil {
		t.Fatal(err)
	}
	return &kept{p.Client, newConn(t, p.Client), custody}, newConn(t, p.Server)
}

func export(k *kept) (ktlstest.States, error) { return exportWithin(k, 5*time.Second) }

func exportWithin(k *kept, limit time.Duration) (ktlstest.States, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	read, write, err := k.conn.Export(ctx, k.custody)
	return ktlstest.States{Read: read, Write: write}, err
}

func mustExport(t testing.TB, k *kept) ktlstest.States {
	t.Helper()
	s, err := export(k)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestALiveConnectionMovesInExactlyItsState: for each suite, what is exported is what
// the kernel holds, adopting it changes nothing there, and both directions go on.
func TestALiveConnectionMovesInExactlyItsState(t *testing.T) {
	for _, suite := range blob.CipherSuites() {
		t.Run(suite.String(), func(t *testing.T) {
			k, peer := newKept(t, suite)
			for round := range 3 {
				exchange(t, k.conn, peer)
				exchange(t, peer, k.conn)
				s := mustExport(t, k)
				if s.Read.Seq != uint64(round+1) || s.Write.Seq != uint64(round+1) {
					t.Errorf("round %d: exported %v and %v", round, s.Read, s.Write)
				}
				rx, tx := ktlstest.CryptoInfo(s.Read), ktlstest.CryptoInfo(s.Write)
				custody, info, err := ktls.Adopt(k.tcp, s.Read, s.Write)
				if err != nil || info.TX != ktls.SW {
					t.Fatal(info, err)
				}
				if !destroyed(s.Read, s.Write) {
					t.Error("a state survived")
				}
				if !bytes.Equal(rx, kernelState(t, k.tcp, optRX, len(rx))) || !bytes.Equal(tx, kernelState(t, k.tcp, optTX, len(tx))) {
					t.Error("the kernel's state is not the exported one")
				}
				k = &kept{k.tcp, newConn(t, k.tcp), custody}
			}
			exchange(t, k.conn, peer)
			exchange(t, peer, k.conn)
		})
	}
}

// TestExportNamesWhatIsNotQuiet: and the connection goes on afterwards.
func TestExportNamesWhatIsNotQuiet(t *testing.T) {
	for _, c := range []struct {
		name    string
		disturb func(t *testing.T, k *kept, peer *ktls.Conn) (calm func())
		want    string
	}{
		{"a record read in part", func(t *testing.T, k *kept, peer *ktls.Conn) func() {
			mustWrite(t, peer, "half and half")
			mustRead(t, k.conn, "half")
			return func() { mustRead(t, k.conn, " and half") }
		}, "in part"},
		{"a record that was looked at", func(t *testing.T, k *kept, peer *ktls.Conn) func() {
			mustWrite(t, peer, "looked at")
			waitReadable(t, k.tcp)
			if n, err := peekRecord(t, k.tcp); n == 0 || err != nil {
				t.Fatal(n, err)
			}
			return func() { mustRead(t, k.conn, "looked at") }
		}, "in part"},
		{"a handshake message in part", func(t *testing.T, k *kept, peer *ktls.Conn) func() {
			sendRecord(t, peer.NetConn().(*net.TCPConn), 22, []byte{4, 0, 0})
			waitReadable(t, k.tcp)
			k.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			k.conn.Read(make([]byte, 10))
			k.conn.SetReadDeadline(time.Time{})
			return nil
		}, "arrived in part"},
		{"a Read under way", func(t *testing.T, k *kept, peer *ktls.Conn) func() {
			read := make(chan struct{})
			go func() {
				defer close(read)
				k.conn.Read(make([]byte, 1))
			}()
			time.Sleep(50 * time.Millisecond)
			return func() {
				mustWrite(t, peer, ".")
				<-read
			}
		}, "a Read is under way"},
		{"the write side closed", func(t *testing.T, k *kept, _ *ktls.Conn) func() {
			if err := k.conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			return nil
		}, "write side is closed"},
		{"the end read", func(t *testing.T, k *kept, peer *ktls.Conn) func() {
			peer.CloseWrite()
			if _, err := k.conn.Read(make([]byte, 1)); err != io.EOF {
				t.Fatal(err)
			}
			return nil
		}, "read side has ended"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, peer := newKept(t, suite13)
			calm := c.disturb(t, k, peer)
			_, err := export(k)
			var notQuiet *ktls.NotQuietError
			if !errors.As(err, &notQuiet) || !strings.Contains(notQuiet.What, c.want) {
				t.Fatalf("%v, want a NotQuietError that says %q", err, c.want)
			}
			if calm == nil {
				return
			}
			calm()
			exchange(t, k.conn, peer)
			mustExport(t, k)
		})
	}
}

// TestWhatNobodyHasReadMovesWithTheSocket: whole records, a part of one, an alert.
func TestWhatNobodyHasReadMovesWithTheSocket(t *testing.T) {
	k, peer := newKept(t, suite13)
	mustWrite(t, peer, "read")
	mustRead(t, k.conn, "read")
	mustWrite(t, peer, "first")
	mustWrite(t, peer, "second")
	if err := peer.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	waitReadable(t, k.tcp)
	s := mustExport(t, k)
	if s.Read.Seq != 1 {
		t.Errorf("exported %v", s.Read)
	}
	if _, _, err := ktls.Adopt(k.tcp, s.Read, s.Write); err != nil {
		t.Fatal(err)
	}
	again := newConn(t, k.tcp)
	if got, err := io.ReadAll(again); err != nil || string(got) != "firstsecond" {
		t.Errorf("the new owner read %q, %v", got, err)
	}
	exchange(t, again, peer)
}

// TestExportWaitsUntilTCPHasAllRecords: what a slow peer leaves queued in kernel TLS
// is waited for, and named if it does not drain.
func TestExportWaitsUntilTCPHasAllRecords(t *testing.T) {
	ktlstest.Require(t)
	waited := 0
	defer func() {
		// On a busy machine TCP may take whole records all the time; not with each suite.
		if waited == 0 && !givesWholeRecords() && !t.Failed() {
			t.Error("TCP had taken all records each time: nothing was waited for")
		}
	}()
	for _, suite := range []blob.CipherSuite{suite13, suite12, blob.TLS_CHACHA20_POLY1305_SHA256} {
		t.Run(suite.String(), func(t *testing.T) {
			k, peer := newKept(t, suite)
			// A record does not fit into the send buffer, so TCP takes a part of it.
			if err := errors.Join(k.tcp.SetWriteBuffer(4<<10), peer.NetConn().(*net.TCPConn).SetReadBuffer(4<<10)); err != nil {
				t.Fatal(err)
			}
			var sent, arrived []byte
			s, err := ktlstest.States{}, error(nil)
			// It may end just where TCP has taken all. Then the peer makes room.
			for last := 9; ; last-- {
				sent = append(sent, fillMore(t, k.conn)...)
				if s, err = exportWithin(k, 100*time.Millisecond); err != nil || givesWholeRecords() || last == 0 {
					break
				}
				k.custody, _, err = ktls.Adopt(k.tcp, s.Read, s.Write)
				if err != nil {
					t.Fatal(err)
				}
				k.conn = newConn(t, k.tcp)
				some := make([]byte, (len(sent)-len(arrived))/2)
				if _, err := io.ReadFull(peer, some); err != nil {
					t.Fatal(err)
				}
				arrived = append(arrived, some...)
			}
			var notQuiet *ktls.NotQuietError
			if err != nil {
				waited++
				if !errors.As(err, &notQuiet) || !strings.Contains(notQuiet.What, "not with TCP yet") {
					t.Fatalf("%v with %d bytes written to a peer that does not read", err, len(sent))
				}
			}
			received := make(chan error, 1)
			go func() {
				rest := make([]byte, len(sent)-len(arrived))
				_, err := io.ReadFull(peer, rest)
				if err == nil && !bytes.Equal(append(arrived, rest...), sent) {
					err = errors.New("other bytes arrived")
				}
				received <- err
			}()
			if notQuiet != nil {
				s = mustExport(t, k)
			}
			if err := <-received; err != nil {
				t.Error(err)
			}
			custody, _, err := ktls.Adopt(k.tcp, s.Read, s.Write)
			if err != nil {
				t.Fatal(err)
			}
			k = &kept{k.tcp, newConn(t, k.tcp), custody}
			exchange(t, k.conn, peer)
			exchange(t, peer, k.conn)
		})
	}
}

// givesWholeRecords: Linux 6.1 gives TCP whole records, whatever the size of its buffer.
func givesWholeRecords() bool { return os.Getenv("OFFLOADD_KERNEL_SERIES") == "6.1" }

// TestReadingWhatIsLeftMakesItQuiet, however much is behind it.
func TestReadingWhatIsLeftMakesItQuiet(t *testing.T) {
	for _, suite := range []blob.CipherSuite{suite13, suite12, blob.TLS_CHACHA20_POLY1305_SHA256} {
		t.Run(suite.String(), func(t *testing.T) {
			k, peer := newKept(t, suite)
			record := bytes.Repeat([]byte("0123456789"), 1000)
			for range 3 {
				mustWrite(t, peer, string(record))
			}
			mustRead(t, k.conn, string(record)+"01234")
			_, err := export(k)
			var notQuiet *ktls.NotQuietError
			if !errors.As(err, &notQuiet) || notQuiet.Unread != len(record)-5 {
				t.Fatalf("%v, %+v; want %d bytes unread", err, notQuiet, len(record)-5)
			}
			mustRead(t, k.conn, string(record[5:]))
			s := mustExport(t, k)
			if s.Read.Seq != 2 {
				t.Errorf("exported %v", s.Read)
			}
			if _, _, err := ktls.Adopt(k.tcp, s.Read, s.Write); err != nil {
				t.Fatal(err)
			}
			mustRead(t, newConn(t, k.tcp), string(record))
		})
	}
}

func TestWhatWasExportedIsNobodysConnection(t *testing.T) {
	k, peer := newKept(t, suite13)
	exchange(t, k.conn, peer)
	s := mustExport(t, k)
	defer s.Destroy()
	if _, err := k.conn.Write([]byte("x")); !errors.Is(err, ktls.ErrMoved) {
		t.Errorf("Write: %v", err)
	}
	if _, err := k.conn.Read(make([]byte, 1)); !errors.Is(err, ktls.ErrMoved) {
		t.Errorf("Read: %v", err)
	}
	if _, err := export(k); !errors.Is(err, ktls.ErrMoved) {
		t.Errorf("Export: %v", err)
	}
	capture := ktlstest.StartCapture(t, k.tcp.RemoteAddr().(*net.TCPAddr).Port)
	file, err := k.tcp.File() // as it lives on in the other process
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := k.conn.Close(); err != nil {
		t.Error(err)
	}
	time.Sleep(5 * time.Millisecond)
	streams, err := capture.Streams()
	for _, s := range streams {
		if len(s.Data) > 0 {
			t.Errorf("%d bytes went over the wire", len(s.Data))
		}
	}
	if err != nil {
		t.Error(err)
	}
}

func TestWhatArrivesAfterTheExportIsTheNewOwners(t *testing.T) {
	k, peer := newKept(t, suite13)
	s := mustExport(t, k)
	file, err := k.tcp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	mustWrite(t, peer, "meanwhile")
	waitReadable(t, k.tcp)
	if err := k.conn.Close(); err != nil {
		t.Error(err)
	}
	c, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := ktls.Adopt(c.(*net.TCPConn), s.Read, s.Write); err != nil {
		t.Fatal(err)
	}
	mustRead(t, newConn(t, c.(*net.TCPConn)), "meanwhile")
}

// TestWritesBehindTheBackAreNoticed: the account of bytes does not fit.
func TestWritesBehindTheBackAreNoticed(t *testing.T) {
	k, peer := newKept(t, suite13)
	exchange(t, k.conn, peer)
	if _, err := k.tcp.Write([]byte("past the Conn")); err != nil {
		t.Fatal(err)
	}
	if _, err := export(k); err == nil {
		t.Error("exported")
	}
}

// TestAdoptRefusesAnyOtherState: what the kernel holds must be what was exported, and
// whatever is refused goes on as it was.
func TestAdoptRefusesAnyOtherState(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, k *kept, peer *ktls.Conn, s *ktlstest.States)
		want   error
	}{
		{"a lower write number", func(_ *testing.T, _ *kept, _ *ktls.Conn, s *ktlstest.States) { s.Write.Seq-- }, ktls.ErrMismatch},
		{"a higher write number", func(_ *testing.T, _ *kept, _ *ktls.Conn, s *ktlstest.States) { s.Write.Seq++ }, ktls.ErrMismatch},
		{"another read number", func(_ *testing.T, _ *kept, _ *ktls.Conn, s *ktlstest.States) { s.Read.Seq++ }, ktls.ErrMismatch},
		{"another key", func(_ *testing.T, _ *kept, _ *ktls.Conn, s *ktlstest.States) { s.Write.Key.Bytes()[3] ^= 1 }, ktls.ErrMismatch},
		{"another IV", func(_ *testing.T, _ *kept, _ *ktls.Conn, s *ktlstest.States) { s.Read.IV.Bytes()[3] ^= 1 }, ktls.ErrMismatch},
		{"another suite", func(_ *testing.T, _ *kept, _ *ktls.Conn, s *ktlstest.States) {
			s.Read.Suite, s.Write.Suite = blob.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, blob.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
			s.Read.Version, s.Write.Version = blob.TLS12, blob.TLS12
		}, blob.ErrState},
		{"another socket", func(_ *testing.T, _ *kept, _ *ktls.Conn, s *ktlstest.States) { s.Read.Cookie++; s.Write.Cookie++ }, blob.ErrCookie},
		{"a direction missing", func(_ *testing.T, _ *kept, _ *ktls.Conn, s *ktlstest.States) { s.Write = nil }, blob.ErrState},
		{"swapped directions", func(_ *testing.T, _ *kept, _ *ktls.Conn, s *ktlstest.States) { s.Read, s.Write = s.Write, s.Read }, blob.ErrDirection},
		{"a device that has nothing", func(_ *testing.T, _ *kept, _ *ktls.Conn, s *ktlstest.States) {
			digest := s.Write.KeyDigest()
			s.Write.Key, s.Write.IV, s.Write.Held = blob.Secret{}, blob.Secret{}, blob.Held{Device: "lo", Digest: digest}
		}, ktls.ErrNotHeld},
		{"a reference to another key", func(_ *testing.T, _ *kept, _ *ktls.Conn, s *ktlstest.States) {
			s.Write.Key, s.Write.IV, s.Write.Held = blob.Secret{}, blob.Secret{}, blob.Held{Device: "lo", Digest: blob.KeyDigest{1}}
		}, ktls.ErrMismatch},
		{"written to meanwhile", func(t *testing.T, k *kept, peer *ktls.Conn, _ *ktlstest.States) {
			if _, err := k.tcp.Write([]byte("surplus")); err != nil {
				t.Fatal(err)
			}
			mustRead(t, peer, "surplus")
		}, ktls.ErrMismatch},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, peer := newKept(t, suite13)
			exchange(t, k.conn, peer)
			exchange(t, peer, k.conn)
			s := mustExport(t, k)
			c.change(t, k, peer, &s)
			before := kernelState(t, k.tcp, optTX, 40)
			if _, _, err := ktls.Adopt(k.tcp, s.Read, s.Write); !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if !bytes.Equal(before, kernelState(t, k.tcp, optTX, 40)) {
				t.Error("the kernel's state changed")
			}
			again := newConn(t, k.tcp)
			exchange(t, again, peer)
			exchange(t, peer, again)
		})
	}
	t.Run("a socket without keys", func(t *testing.T) {
		ktlstest.Require(t)
		p := ktlstest.NewPair(t)
		s, _ := ktlstest.NewStates(t, suite13, p)
		if err := ktls.Attach(p.Client); err != nil {
			t.Fatal(err)
		}
		if _, _, err := ktls.Adopt(p.Client, s.Read, s.Write); !errors.Is(err, ktls.ErrNoKeys) {
			t.Error(err)
		}
	})
}

// TestAReferenceIsNotInstalled: it has no key, and installing is not what it is for.
func TestAReferenceIsNotInstalled(t *testing.T) {
	p := ktlstest.NewPair(t)
	s, _ := ktlstest.NewStates(t, suite12, p)
	digest := s.Read.KeyDigest()
	s.Read.Key, s.Read.IV, s.Read.Held = blob.Secret{}, blob.Secret{}, blob.Held{Device: "eth0", Digest: digest}
	if _, err := ktls.Install(p.Client, s.Read, s.Write); !errors.Is(err, ktls.ErrHeld) {
		t.Error(err)
	}
}

func TestSecretsEndWithTheirCustody(t *testing.T) {
	ktlstest.Require(t)
	p := ktlstest.NewPair(t)
	s, other := ktlstest.NewStates(t, suite13, p)
	next := []blob.Secret{s.Read.NextSecret, s.Write.NextSecret}
	if _, err := ktls.Install(p.Client, s.Read, s.Write); err != nil {
		t.Fatal(err)
	}
	for _, n := range next {
		if !bytes.Equal(n.Bytes(), make([]byte, 32)) {
			t.Error("Install left a traffic secret")
		}
	}
	next = []blob.Secret{other.Read.NextSecret, other.Write.NextSecret}
	custody, _, err := ktls.InstallKeeping(p.Server, other.Read, other.Write)
	if err != nil {
		t.Fatal(err)
	}
	secret := bytes.Clone(next[0].Bytes())
	attendant, err := ktls.NewAttendant(p.Server, custody, blob.TLS13, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q", "%Z"} {
		text := fmt.Sprintf(verb+verb, custody, attendant)
		if bytes.Contains([]byte(text), secret) || bytes.Contains([]byte(text), []byte(fmt.Sprintf("%x", secret))) {
			t.Errorf("%s prints the secret", verb)
		}
	}
	if bytes.Equal(next[0].Bytes(), secret) { // else the kernel changes no keys, and nothing was kept
		checkParkedHides(t, attendant, secret)
	}
	custody.Destroy()
	for _, n := range next {
		if !bytes.Equal(n.Bytes(), make([]byte, 32)) {
			t.Error("Destroy left a traffic secret")
		}
	}
}

func mustWrite(t testing.TB, w io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t testing.TB, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}
