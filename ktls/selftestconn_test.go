// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// Those of the kernel's selftests that a Conn can express.

// ends are both ends of a connection as Conns.
type ends struct {
	t          *testing.T
	send, recv *ktls.Conn
}

func newEnds(t *testing.T, suite blob.CipherSuite) *ends {
	t.Helper()
	p := ktlstest.Installed(t, suite)
	e := &ends{t, newConn(t, p.Client), newConn(t, p.Server)}
	e.recv.SetReadDeadline(time.Now().Add(20 * time.Second))
	return e
}

// reads reads exactly want, by pieces of at most so many bytes.
func (e *ends) reads(want []byte, piece int) {
	e.t.Helper()
	got := make([]byte, len(want))
	for at := 0; at < len(got); {
		n, err := e.recv.Read(got[at:min(at+piece, len(got))])
		if err != nil {
			e.t.Fatal(at, err)
		}
		at += n
	}
	if !bytes.Equal(got, want) {
		e.t.Fatal("other bytes arrived")
	}
}

func selftestSendfile(e *ends) {
	want := randomBytes(300_000)
	f := writeFile(e.t, want)
	result := readAsync(e.recv)
	if n, err := io.Copy(e.send, f); n != int64(len(want)) || err != nil {
		e.t.Error(n, err)
	}
	e.send.CloseWrite()
	if got, err := result(); !bytes.Equal(got, want) || err != nil {
		e.t.Errorf("%d bytes of %d arrived, %v", len(got), len(want), err)
	}
}

func selftestSendThenSendfile(e *ends) {
	mustWrite(e.t, e.send, "before")
	mustRead(e.t, e.recv, "before")
	selftestSendfile(e)
}

func selftestMultiChunkSendfile(e *ends) {
	for _, c := range [][2]int{{4096, 8192}, {4096, 4097}, {8192, 10240}, {12288, 14288}, {15360, 15660}, {1000, 13288}, {200, 15460}} {
		chunk, size := c[0], c[1]
		want := randomBytes(size)
		f := writeFile(e.t, want)
		for left := size; left > 0; left -= chunk {
			n := int64(min(chunk, left))
			if m, err := io.CopyN(e.send, f, n); m != n || err != nil {
				e.t.Fatal(m, err)
			}
		}
		e.reads(want, len(want))
	}
}

func selftestRecvMax(e *ends) {
	want := randomBytes(fullRecord)
	mustWrite(e.t, e.send, string(want))
	e.reads(want, len(want))
}

func selftestRecvSmall(e *ends) {
	mustWrite(e.t, e.send, "small")
	mustRead(e.t, e.recv, "small")
}

func selftestSendmsgLarge(e *ends) {
	want := randomBytes(1 << 20)
	go e.send.Write(want)
	e.reads(want, fullRecord)
}

func selftestSingleSendMultipleRecv(e *ends) {
	want := randomBytes(2 * fullRecord)
	mustWrite(e.t, e.send, string(want))
	e.reads(want, fullRecord)
}

func selftestNonAlign(e *ends) {
	mustWrite(e.t, e.send, "fifteen letters")
	p := make([]byte, 10)
	for _, want := range []string{"fifteen le", "tters"} {
		if n, err := e.recv.Read(p); string(p[:n]) != want || err != nil {
			e.t.Errorf("%q, %v", p[:n], err)
		}
	}
}

func selftestMultipleSendSingleRecv(e *ends) {
	mustWrite(e.t, e.send, "0123456789")
	mustWrite(e.t, e.send, "abcdefghij")
	mustRead(e.t, e.recv, "0123456789abcdefghij")
}

func selftestRecvPartial(e *ends) {
	mustWrite(e.t, e.send, "first second")
	mustRead(e.t, e.recv, "first ")
	mustRead(e.t, e.recv, "second")
}

func selftestRecvNonblock(e *ends) {
	for range 2 {
		e.recv.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if n, err := e.recv.Read(make([]byte, 100)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			e.t.Error(n, err)
		}
	}
}

func selftestBidir(e *ends) {
	exchange(e.t, e.send, e.recv)
	exchange(e.t, e.recv, e.send)
}

func selftestBlocking(e *ends) {
	want := randomBytes(100_000)
	go e.send.Write(want)
	e.reads(want, fullRecord)
}

func selftestNonblocking(e *ends) {
	if err := e.send.NetConn().(*net.TCPConn).SetWriteBuffer(100); err != nil {
		e.t.Fatal(err)
	}
	selftestBlocking(e)
}

func selftestPollWait(e *ends) {
	time.AfterFunc(30*time.Millisecond, func() { e.send.Write([]byte("late")) })
	mustRead(e.t, e.recv, "late")
}

func selftestShutdown(e *ends) {
	exchange(e.t, e.send, e.recv)
	for _, c := range []*ktls.Conn{e.send, e.recv} {
		if err := c.Close(); err != nil {
			e.t.Error(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			e.t.Error(err)
		}
	}
}

// aeadOf is what a state protects records with, in user space.
func aeadOf(s *blob.State) (cipher.AEAD, error) {
	if s.Suite.AEAD() == blob.ChaCha20Poly1305 {
		return chacha20poly1305.New(s.Key.Bytes())
	}
	block, err := aes.NewCipher(s.Key.Bytes())
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// sealed is a record as a peer in user space makes it (RFC 8446, Section 5.2; RFC 5288,
// Section 3; RFC 7905, Section 2). Unlike the kernel it makes empty ones too.
func sealed(s *blob.State, seq uint64, kind byte, content []byte) ([]byte, error) {
	aead, err := aeadOf(s)
	if err != nil {
		return nil, err
	}
	number := binary.BigEndian.AppendUint64(nil, seq)
	nonce, explicit := bytes.Clone(s.IV.Bytes()), []byte(nil)
	if s.Version == blob.TLS12 && s.Suite.AEAD() != blob.ChaCha20Poly1305 {
		nonce, explicit = append(nonce[:4], number...), number
	} else {
		for i, b := range number {
			nonce[4+i] ^= b
		}
	}
	if s.Version == blob.TLS12 {
		header := []byte{kind, 3, 3}
		aad := binary.BigEndian.AppendUint16(append(bytes.Clone(number), header...), uint16(len(content)))
		record := binary.BigEndian.AppendUint16(header, uint16(len(explicit)+len(content)+aead.Overhead()))
		return aead.Seal(append(record, explicit...), nonce, content, aad), nil
	}
	inner := append(bytes.Clone(content), kind)
	header := binary.BigEndian.AppendUint16([]byte{23, 3, 3}, uint16(len(inner)+aead.Overhead()))
	return aead.Seal(header, nonce, inner, bytes.Clone(header)), nil
}

// sealedPiece is a record, and what it brings Read: its content, or the end.
type sealedPiece struct {
	kind byte
	text string
}

// selftestZeroLen: empty records of data are nothing, others are the end of a Conn.
func selftestZeroLen(records ...sealedPiece) func(t *testing.T, suite blob.CipherSuite) {
	return func(t *testing.T, suite blob.CipherSuite) {
		p := ktlstest.NewPair(t)
		client, server := ktlstest.NewStates(t, suite, p)
		var wire []byte
		want, ends := "", error(nil)
		for i, r := range records {
			record, err := sealed(client.Write, uint64(i), r.kind, []byte(r.text))
			if err != nil {
				t.Fatal(err)
			}
			wire = append(wire, record...)
			if r.kind != 23 {
				ends = ktls.ErrProtocol
			}
			if ends == nil {
				want += r.text
			}
		}
		if _, err := ktls.Install(p.Server, server.Read, server.Write); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Client.Write(wire); err != nil {
			t.Fatal(err)
		}
		conn := newConn(t, p.Server)
		conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if ends == nil {
			ends = os.ErrDeadlineExceeded // there is no more
		}
		if got, err := io.ReadAll(conn); string(got) != want || !errors.Is(err, ends) {
			t.Errorf("read %q, want %q; %v, want %v", got, want, err, ends)
		}
	}
}
