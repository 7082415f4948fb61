// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// Those of the kernel's selftests that are about types of records, keys and errors.

// oddType is a type of record that TLS does not have.
const oddType = 100

func selftestCmsgMsgMore(w *wire) {
	w.fails(w.sendType(oddType, []byte("no"), unix.MSG_MORE), unix.EINVAL)
}

func selftestMsgMoreThenCmsg(w *wire) {
	w.send([]byte("data"), unix.MSG_MORE)
	w.wantsNone()
	w.works(w.sendType(oddType, []byte("odd"), 0))
	w.wants([]byte("data"), 20, 0)
	w.wantsType(oddType, []byte("odd"), unix.MSG_WAITALL)
}

func (w *wire) failsToRead(want unix.Errno) {
	w.t.Helper()
	_, err := w.recv(20, 0)
	w.fails(err, want)
}

func (w *wire) failsToSplice(want unix.Errno) {
	w.t.Helper()
	_, in := pipes(w.t)
	_, err := splice(w.rx, in, 20, 0)
	w.fails(err, want)
}

func selftestControlMsg(w *wire) {
	w.works(w.sendType(oddType, []byte("odd"), 0))
	w.failsToRead(unix.EIO)
	w.wantsType(oddType, []byte("odd"), unix.MSG_WAITALL|unix.MSG_PEEK)
	w.wantsType(oddType, []byte("odd"), unix.MSG_WAITALL)
}

func selftestSpliceCmsgToPipe(w *wire) {
	w.works(w.sendType(oddType, []byte("odd"), 0))
	w.failsToSplice(unix.EINVAL)
	w.failsToRead(unix.EIO)
	w.wantsType(oddType, []byte("odd"), unix.MSG_WAITALL)
}

func selftestSpliceDecCmsgToPipe(w *wire) {
	w.works(w.sendType(oddType, []byte("odd"), 0))
	w.failsToRead(unix.EIO)
	w.failsToSplice(unix.EINVAL)
	w.wantsType(oddType, []byte("odd"), unix.MSG_WAITALL)
}

func selftestControlMsgNomerge(w *wire) {
	w.works(w.sendType(oddType, []byte("1111"), 0))
	w.works(w.sendType(oddType, []byte("2222"), 0))
	w.wantsType(oddType, []byte("1111"), unix.MSG_PEEK)
	w.wantsType(oddType, []byte("1111"), unix.MSG_PEEK)
	w.wantsType(oddType, []byte("1111"), 0)
	w.wantsType(oddType, []byte("2222"), 0)
}

func selftestDataControlData(w *wire) {
	w.send([]byte("1111"), 0)
	w.works(w.sendType(oddType, []byte("2222"), 0))
	w.send([]byte("3333"), 0)
	w.wants([]byte("1111"), 20, unix.MSG_PEEK)
	w.wants([]byte("1111"), 20, unix.MSG_PEEK)
	w.wantsType(23, []byte("1111"), 0)
	w.wantsType(oddType, []byte("2222"), 0)
	w.wantsType(23, []byte("3333"), 0)
}

func selftestGetsockopt(w *wire) {
	for _, size := range []int{4, len(w.info)} { // the first is the head alone
		if got, err := rawOption(w.tx, optTX, size); got != string(w.info[:size]) || err != nil {
			w.t.Errorf("%d bytes of the key are others, %v", size, err)
		}
	}
	for _, size := range []int{3, len(w.info) - 1} {
		_, err := rawOption(w.tx, optTX, size)
		w.fails(err, unix.EINVAL)
	}
}

func selftestBadCipher(w *wire) {
	p := ktlstest.NewPair(w.t)
	if err := ktls.Attach(p.Client); err != nil {
		w.t.Fatal(err)
	}
	for _, c := range []struct{ version, cipher uint16 }{{200, 51}, {0x303, 50}, {0x303, 59}, {0x303, 10}, {0x303, 70}} {
		info := make([]byte, 40)
		binary.NativeEndian.PutUint16(info, c.version)
		binary.NativeEndian.PutUint16(info[2:], c.cipher)
		w.fails(setKernelKey(w.t, p.Client, optTX, info), unix.EINVAL)
	}
}

func selftestRecseqWrap(w *wire) {
	p := ktlstest.NewPair(w.t)
	if err := ktls.Attach(p.Client); err != nil {
		w.t.Fatal(err)
	}
	last := w.newKey()
	copy(last[len(last)-8:], bytes.Repeat([]byte{255}, 8))
	if err := setKernelKey(w.t, p.Client, optTX, last); err != nil {
		w.t.Fatal(err)
	}
	_, err := p.Client.Write([]byte("one too many"))
	w.fails(err, unix.EBADMSG)
}

func selftestNonEstablished(w *wire) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer unix.Close(fd)
	w.fails(unix.SetsockoptString(fd, unix.SOL_TCP, unix.TCP_ULP, "tls"), unix.ENOTCONN)
	w.fails(ktls.Attach(ktlstest.Listen(w.t)), ktls.ErrPeerClosed)
	w.fails(unix.SetsockoptString(w.tx, unix.SOL_TCP, unix.TCP_ULP, "tls"), unix.EEXIST)
}

func selftestNoPad(w *wire) {
	for _, on := range []int{1, 0} {
		if err := unix.SetsockoptInt(w.rx, unix.SOL_TLS, 4, on); err != nil {
			w.t.Fatal(err)
		}
		if got, err := unix.GetsockoptInt(w.rx, unix.SOL_TLS, 4); got != on || err != nil {
			w.t.Errorf("set %d, got %d, %v", on, got, err)
		}
	}
}

func selftestV6(t *testing.T, suite blob.CipherSuite) {
	l, err := net.ListenTCP("tcp6", &net.TCPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := ktlstest.Connect(t, l)
	ktlstest.InstallPair(t, suite, p)
	address := p.Client.LocalAddr().String()
	client, server := newConn(t, p.Client), newConn(t, p.Server)
	exchange(t, client, server)
	exchange(t, server, client)
	if now := client.LocalAddr().String(); now != address {
		t.Errorf("the address was %s, and is %s", address, now)
	}
}

// optMaxPayload is TLS_TX_MAX_PAYLOAD_LEN.
const optMaxPayload = 5

// relay has a receiver in the kernel, and makes the records that it gets.
type relay struct {
	t     *testing.T
	state *blob.State  // to write with
	seq   uint64       // of the next record
	raw   *net.TCPConn // what is written here arrives at to
	to    *net.TCPConn
}

func newRelay(t *testing.T, suite blob.CipherSuite) *relay {
	t.Helper()
	p := ktlstest.NewPair(t)
	client, server := ktlstest.NewStates(t, suite, p)
	if _, err := ktls.Install(p.Server, server.Read, server.Write); err != nil {
		t.Fatal(err)
	}
	return &relay{t: t, state: client.Write, raw: p.Client, to: p.Server}
}

// record makes the next record.
func (r *relay) record(kind byte, content []byte) []byte {
	r.t.Helper()
	record, err := sealed(r.state, r.seq, kind, content)
	if err != nil {
		r.t.Fatal(err)
	}
	r.seq++
	return record
}

func (r *relay) pass(b []byte) {
	r.t.Helper()
	if _, err := r.raw.Write(b); err != nil {
		r.t.Fatal(err)
	}
}

// maxPayload sets the limit of records.
func maxPayload(fd int, limit uint16) error {
	return unix.SetsockoptString(fd, unix.SOL_TLS, optMaxPayload, string(binary.NativeEndian.AppendUint16(nil, limit)))
}

func selftestTxMaxPayloadLen(t *testing.T, suite blob.CipherSuite) {
	p := ktlstest.NewPair(t)
	client, _ := ktlstest.NewStates(t, suite, p)
	if _, err := ktls.Install(p.Client, client.Read, client.Write); err != nil {
		t.Fatal(err)
	}
	var err error
	withFD(t, p.Client, func(fd int) { err = maxPayload(fd, 128) })
	if err == unix.ENOPROTOOPT && series() != "7" {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	const size, most = 1024, 128 + 24 // and what a record adds
	mustWrite(t, newConn(t, p.Client), string(randomBytes(size)))
	for range size / 128 {
		header := make([]byte, 5)
		if _, err := io.ReadFull(p.Server, header); err != nil {
			t.Fatal(err)
		}
		n := binary.BigEndian.Uint16(header[3:])
		if n <= 128 || n > most {
			t.Errorf("a record of %d bytes", n)
		}
		if _, err := io.CopyN(io.Discard, p.Server, int64(n)); err != nil {
			t.Fatal(err)
		}
	}
}

func selftestTxMaxPayloadLenOpenRec(w *wire) {
	if err := maxPayload(w.tx, 512); err == unix.ENOPROTOOPT && series() != "7" {
		return
	} else if err != nil {
		w.t.Fatal(err)
	}
	want := randomBytes(1024)
	w.send(want[:256], unix.MSG_MORE)
	w.fails(maxPayload(w.tx, 128), unix.EBUSY)
	w.send(want[256:], unix.MSG_EOR)
	w.wants(want, len(want), unix.MSG_WAITALL)
}

func selftestBadRec(r *relay) {
	r.pass(bytes.Repeat([]byte{0x55}, 64))
	conn := newConn(r.t, r.to)
	for range 2 { // the kernel says so once, and then waits for ever
		if _, err := conn.Read(make([]byte, 64)); !errors.Is(err, ktls.ErrRecord) {
			r.t.Error(err)
		}
	}
}

// breakLast passes records of which the last is broken, and expects the others to be read.
func (r *relay) breakLast(kinds ...byte) {
	r.t.Helper()
	var want []byte
	for i, kind := range kinds {
		content := randomBytes(64)
		record := r.record(kind, content)
		if i == len(kinds)-1 {
			record[len(record)-1]++
		} else {
			want = append(want, content...)
		}
		r.pass(record)
	}
	conn := newConn(r.t, r.to)
	got, err := io.ReadAll(conn)
	if !bytes.Equal(got, want) || !errors.Is(err, ktls.ErrRecord) {
		r.t.Errorf("read %d bytes of %d, %v", len(got), len(want), err)
	}
	if _, err := conn.Read(make([]byte, 64)); !errors.Is(err, ktls.ErrRecord) {
		r.t.Error(err)
	}
}

func selftestBadAuth(r *relay)        { r.breakLast(23) }
func selftestBadInLargeRead(r *relay) { r.breakLast(23, 23, 23) }
func selftestBadCmsg(r *relay)        { r.breakLast(23, oddType) }

// selftestPartialRecord: a Read is woken by the rest of a record, and not by a part.
func selftestPartialRecord(r *relay) {
	record := r.record(23, randomBytes(128))
	conn := newConn(r.t, r.to)
	conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	r.pass(record[:100])
	p := make([]byte, 256)
	if n, err := conn.Read(p); n != 0 || said(err) != "waits" {
		r.t.Fatal(n, err)
	}
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	time.AfterFunc(20*time.Millisecond, func() { r.raw.Write(record[100:]) })
	if n, err := conn.Read(p); n != 128 || err != nil {
		r.t.Fatal(n, err)
	}
}

// selftestPollPartialRecord is what poll says of that, since Linux 6.12.
func selftestPollPartialRecord(r *relay) {
	record := r.record(23, randomBytes(128))
	w := &wire{t: r.t, rx: plainFD(r.t, r.to)}
	r.pass(record[:100])
	if w.readable() && series() != "6.1" {
		r.t.Error("a part of a record is readable")
	}
	r.pass(record[100:])
	if !w.readable() {
		r.t.Error("a record is not readable")
	}
	if got, err := w.recv(256, 0); len(got) != 128 || err != nil {
		r.t.Errorf("%d bytes, %v", len(got), err)
	}
}

// selftestOOBPressure: urgent data makes the parser copy what it keeps, and no more is
// asked than that the kernel survives.
func selftestOOBPressure(r *relay) {
	fd := plainFD(r.t, r.raw)
	if err := unix.SetNonblock(fd, true); err != nil {
		r.t.Fatal(err)
	}
	urgent := func() { _, _ = unix.SendmsgN(fd, []byte("urgent"), nil, nil, unix.MSG_OOB) }
	urgent()
	_, _ = unix.SendmsgN(fd, randomBytes(1<<16), nil, nil, 0)
	for range 64 {
		urgent()
	}
	if _, err := newConn(r.t, r.to).Read(make([]byte, 100)); !errors.Is(err, ktls.ErrRecord) && said(err) != "waits" {
		r.t.Error(err)
	}
}
