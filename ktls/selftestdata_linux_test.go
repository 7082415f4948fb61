// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// Those of the kernel's selftests that are about data and need flags, vectors or pipes.

const fullRecord = 16384

func selftestMsgMore(w *wire) {
	w.send([]byte("one "), unix.MSG_MORE)
	w.wantsNone()
	w.send([]byte("two"), 0)
	w.wants([]byte("one two"), 7, unix.MSG_WAITALL)
}

func selftestMsgMoreUnsent(w *wire) {
	w.send([]byte("never"), unix.MSG_MORE)
	w.wantsNone()
}

func selftestMsgEOR(w *wire) {
	n, err := unix.SendmsgN(w.tx, []byte("record"), nil, nil, unix.MSG_EOR)
	if err == unix.EOPNOTSUPP && series() == "6.1" { // which knows it not yet
		return
	}
	if n != 6 || err != nil {
		w.t.Fatal(n, err)
	}
	w.wants([]byte("record"), 6, unix.MSG_WAITALL)
}

func (w *wire) sendVector(pieces [][]byte) {
	w.t.Helper()
	want := bytes.Join(pieces, nil)
	if n, err := unix.SendmsgBuffers(w.tx, pieces, nil, nil, 0); n != len(want) || err != nil {
		w.t.Fatalf("sent %d bytes of %d, %v", n, len(want), err)
	}
	w.wants(want, len(want), unix.MSG_WAITALL)
}

func selftestSendmsgFragmented(w *wire) {
	var pieces [][]byte
	for range 64 {
		pieces = append(pieces, randomBytes(13))
		w.sendVector(pieces)
	}
}

func selftestSendmsgMultiple(w *wire) {
	w.sendVector([][]byte{randomBytes(22), randomBytes(1), randomBytes(400), randomBytes(22), randomBytes(5)})
}

func selftestSendmsgMultipleStress(w *wire) {
	var pieces [][]byte
	for range 1024 {
		pieces = append(pieces, randomBytes(16))
	}
	w.sendVector(pieces)
}

func selftestRecvmsgMultiple(w *wire) {
	want := randomBytes(fullRecord)
	w.send(want, 0)
	pieces := make([][]byte, 1024)
	for i := range pieces {
		pieces[i] = make([]byte, 16)
	}
	n, _, _, _, err := unix.RecvmsgBuffers(w.rx, pieces, nil, 0)
	if n != len(want) || err != nil || !bytes.Equal(bytes.Join(pieces, nil), want) {
		w.t.Fatal(n, err)
	}
}

func selftestRecvPeek(w *wire) {
	w.send([]byte("look"), 0)
	w.wants([]byte("look"), 4, unix.MSG_PEEK)
	w.wants([]byte("look"), 4, 0)
}

func selftestRecvPeekMultiple(w *wire) {
	w.send([]byte("look"), 0)
	for range 100 {
		w.wants([]byte("look"), 4, unix.MSG_PEEK)
	}
	w.wants([]byte("look"), 4, 0)
}

func selftestRecvPeekMultipleRecords(w *wire) {
	w.send([]byte("first"), 0)
	w.send([]byte("second"), 0)
	w.wants([]byte("first"), 5, unix.MSG_PEEK|unix.MSG_WAITALL)
	w.wants([]byte("firstsecond"), 11, unix.MSG_WAITALL)
	w.send([]byte("first"), unix.MSG_MORE)
	w.send([]byte("second"), 0)
	w.wants([]byte("firstsecond"), 11, unix.MSG_PEEK|unix.MSG_WAITALL)
}

func selftestRecvPeekLargeBuf(w *wire) {
	w.send([]byte("first"), 0)
	w.send([]byte("second"), 0)
	w.wants([]byte("firstsecond"), 11, unix.MSG_PEEK|unix.MSG_WAITALL)
	w.wants([]byte("firstsecond"), 11, unix.MSG_WAITALL)
}

func selftestRecvLowat(w *wire) {
	all := []byte("0123456789abcde")
	w.send(all[:10], 0)
	w.send(all[10:], 0)
	if err := unix.SetsockoptInt(w.rx, unix.SOL_SOCKET, unix.SO_RCVLOWAT, 8); err != nil {
		w.t.Fatal(err)
	}
	w.wants(all[:1], 1, unix.MSG_WAITALL)
	w.wants(all[1:7], 6, unix.MSG_WAITALL)
	w.wants(all[7:], 10, 0)
}

func selftestRecvEfault(w *wire) {
	w.send([]byte("1111111111"), 0)
	w.send([]byte("2222222222"), 0)
	w.wants([]byte("1"), 1, 0)
	good := make([]byte, 12)
	n, err := recvIntoHole(w.rx, good)
	if err != nil || n < 9 || n > len(good) || string(good[:n]) != "111111111222"[:n] {
		w.t.Fatalf("%q, %v", good[:n], err)
	}
}

func selftestPollin(w *wire) {
	w.send([]byte("here"), 0)
	if !w.readable() {
		w.t.Error("not readable")
	}
	w.wants([]byte("here"), 4, unix.MSG_WAITALL)
	if w.readable() {
		w.t.Error("readable, and nothing is there")
	}
}

func selftestPollWaitSplit(w *wire) {
	w.send([]byte("in two parts"), 0)
	if !w.readable() {
		w.t.Error("not readable")
	}
	w.wants([]byte("in two"), 6, unix.MSG_WAITALL)
	if !w.readable() {
		w.t.Error("not readable, and half a record is left")
	}
	w.wants([]byte(" parts"), 10, 0)
}

// fillPipe writes p into a new pipe and returns its end to read from.
func (w *wire) fillPipe(p []byte) int {
	w.t.Helper()
	r, in := pipes(w.t)
	if n, err := unix.Write(in, p); n != len(p) || err != nil {
		w.t.Fatal(n, err)
	}
	return r
}

func (w *wire) mustSplice(from, to, n, flags, want int) {
	w.t.Helper()
	if got, err := splice(from, to, n, flags); got != want || err != nil {
		w.t.Fatalf("spliced %d bytes, want %d, %v", got, want, err)
	}
}

func (w *wire) wantsFromPipe(pipe int, want []byte) {
	w.t.Helper()
	got := make([]byte, len(want))
	for at := 0; at < len(got); {
		n, err := restarted(func() (int, error) { return unix.Read(pipe, got[at:]) })
		if n <= 0 {
			w.t.Fatal(n, err)
		}
		at += n
	}
	if !bytes.Equal(got, want) {
		w.t.Fatal("other bytes came out of the pipe")
	}
}

func selftestSpliceFromPipe(w *wire) {
	want := randomBytes(fullRecord)
	w.mustSplice(w.fillPipe(want), w.tx, len(want), 0, len(want))
	w.wants(want, len(want), unix.MSG_WAITALL)
}

func selftestSpliceFromPipe2(w *wire) {
	want := randomBytes(16000)
	w.mustSplice(w.fillPipe(want[:8000]), w.tx, 8000, 0, 8000)
	w.mustSplice(w.fillPipe(want[8000:]), w.tx, 8000, 0, 8000)
	w.wants(want, len(want), unix.MSG_WAITALL)
}

func selftestSpliceMore(w *wire) {
	const more = 32
	want := randomBytes(fullRecord)
	pipe := w.fillPipe(want)
	for range more {
		w.mustSplice(pipe, w.tx, 1, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MORE|unix.SPLICE_F_GIFT, 1)
	}
	w.mustSplice(pipe, w.tx, len(want)-more, 0, len(want)-more)
	w.wants(want, len(want), unix.MSG_WAITALL)
}

func selftestSendAndSplice(w *wire) {
	w.send([]byte("sent"), 0)
	w.wants([]byte("sent"), 4, unix.MSG_WAITALL)
	selftestSpliceFromPipe(w)
}

func selftestSpliceToPipe(w *wire) {
	want := randomBytes(fullRecord)
	w.send(want, 0)
	r, in := pipes(w.t)
	w.mustSplice(w.rx, in, len(want), 0, len(want))
	w.wantsFromPipe(r, want)
}

// selftestSpliceToPipeSmall: a pipe that takes only a part of a record. Linux 6.12 loses
// the rest, which is why Conn never does that; Probe knows.
func selftestSpliceToPipeSmall(w *wire) {
	features, err := ktls.Probe(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	want := randomBytes(fullRecord)
	w.send(want, 0)
	r, in := pipes(w.t)
	if _, err := unix.FcntlInt(uintptr(in), unix.F_SETPIPE_SZ, 4096); err != nil {
		w.t.Fatal(err)
	}
	var got []byte
	for len(got) < len(want) {
		n, err := splice(w.rx, in, len(want)-len(got), unix.SPLICE_F_NONBLOCK)
		if err != nil {
			break
		}
		p := make([]byte, n)
		if _, err := unix.Read(r, p); err != nil {
			w.t.Fatal(err)
		}
		got = append(got, p...)
	}
	if loses := !bytes.Equal(got, want); loses != (features.Err(ktls.FeatureSplice) != nil) {
		w.t.Errorf("%d bytes of %d came out, and Probe says %v", len(got), len(want), features.Err(ktls.FeatureSplice))
	}
}

func selftestRecvAndSplice(w *wire) {
	want := randomBytes(fullRecord)
	w.send(want, 0)
	w.wants(want[:len(want)/2], len(want)/2, unix.MSG_WAITALL)
	r, in := pipes(w.t)
	w.mustSplice(w.rx, in, len(want)/2, unix.SPLICE_F_NONBLOCK, len(want)/2)
	w.wantsFromPipe(r, want[len(want)/2:])
}

func selftestPeekAndSplice(w *wire) {
	const chunk = fullRecord / 4
	want := randomBytes(4 * chunk)
	for i := range 4 {
		w.send(want[i*chunk:][:chunk], 0)
	}
	w.wants(want[:chunk*5/2], chunk*5/2, unix.MSG_WAITALL|unix.MSG_PEEK)
	r, in := pipes(w.t)
	for left := len(want); left > 0; {
		n, err := splice(w.rx, in, left, 0)
		if err != nil || n == 0 {
			w.t.Fatal(n, err)
		}
		left -= n
	}
	w.wantsFromPipe(r, want)
}

func selftestSpliceShort(w *wire) {
	const pieces = 48
	r, in := pipes(w.t)
	if _, err := unix.FcntlInt(uintptr(in), unix.F_SETPIPE_SZ, (pieces+1)*4096); err != nil {
		w.t.Fatal(err)
	}
	want := append(bytes.Repeat([]byte("S"), pieces), bytes.Repeat([]byte("s"), 256)...)
	for i := range pieces {
		if _, err := unix.Vmsplice(in, []unix.Iovec{iovec(want[i : i+1])}, 0); err != nil {
			w.t.Fatal(err)
		}
	}
	if _, err := unix.Write(in, want[pieces:]); err != nil {
		w.t.Fatal(err)
	}
	w.mustSplice(r, w.tx, len(want)+4096, 0, len(want))
	w.wants(want, len(want), unix.MSG_WAITALL)
	w.wantsNone()
}

// selftestMultiproc has several threads read and write at once. Bytes may come in any
// order of records, and none may be missing or come twice.
func selftestMultiproc(readers, writers int, file bool) func(w *wire) {
	return func(w *wire) {
		const each = 240_000 // of all, a multiple of 10 and 12
		var wrote, read sync.WaitGroup
		for i := range writers {
			block := bytes.Repeat([]byte{byte(i)}, each/writers)
			source := -1
			if file {
				f := writeFile(w.t, block)
				source = int(f.Fd())
			}
			wrote.Go(func() {
				n, err := 0, error(nil)
				if file {
					n, err = restarted(func() (int, error) { return unix.Sendfile(w.tx, source, nil, len(block)) })
				} else {
					n, err = restarted(func() (int, error) { return unix.SendmsgN(w.tx, block, nil, nil, 0) })
				}
				if n != len(block) || err != nil {
					w.t.Errorf("sent %d bytes of %d, %v", n, len(block), err)
				}
			})
		}
		var mu sync.Mutex
		counts := make([]int, 256)
		for range readers {
			read.Go(func() {
				for p := make([]byte, 8001); ; {
					n, err := restarted(func() (int, error) { return unix.Read(w.rx, p) })
					if err != nil {
						w.t.Error(err)
					}
					if n <= 0 {
						return
					}
					mu.Lock()
					for _, b := range p[:n] {
						counts[b]++
					}
					mu.Unlock()
				}
			})
		}
		wrote.Wait()
		if err := unix.Shutdown(w.tx, unix.SHUT_WR); err != nil {
			w.t.Error(err)
		}
		read.Wait()
		for i := range writers {
			if counts[i] != each/writers {
				w.t.Errorf("%d bytes of writer %d arrived, of %d", counts[i], i, each/writers)
			}
		}
	}
}

func selftestShutdownUnsent(w *wire) {
	w.send([]byte("never"), unix.MSG_MORE)
	for _, fd := range []int{w.tx, w.rx} {
		if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
			w.t.Error(err)
		}
	}
	if got, err := w.recv(10, 0); len(got) != 0 || err != nil {
		w.t.Errorf("%q, %v", got, err)
	}
}

func selftestShutdownReuse(w *wire) {
	w.works(unix.Shutdown(w.tx, unix.SHUT_RDWR))
	w.works(unix.Shutdown(w.rx, unix.SHUT_RDWR))
	for range 400 { // until both FINs are acknowledged
		info, err := unix.GetsockoptTCPInfo(w.tx, unix.SOL_TCP, unix.TCP_INFO)
		w.works(err)
		if info.State == tcpClose {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	anywhere := &unix.SockaddrInet4{}
	w.works(unix.Bind(w.tx, anywhere))
	w.fails(unix.Listen(w.tx, 10), unix.EINVAL)
	w.fails(unix.Connect(w.tx, anywhere), unix.EISCONN)
}

func selftestDisconnect(w *wire) {
	w.send([]byte("here"), 0)
	if err := disconnect(w.rx); err != unix.EOPNOTSUPP {
		w.t.Errorf("connect to no address: %v", err)
	}
	w.wants([]byte("here"), 4, unix.MSG_WAITALL)
}

// selftestPrequeue: records that arrived before the key are opened with it.
func selftestPrequeue(t *testing.T, suite blob.CipherSuite) {
	p := ktlstest.NewPair(t)
	client, server := ktlstest.NewStates(t, suite, p)
	if _, err := ktls.Install(p.Client, client.Read, client.Write); err != nil {
		t.Fatal(err)
	}
	sender := newConn(t, p.Client)
	want := randomBytes(20000)
	if _, err := sender.Write(want); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if receiveQueue(t, p.Server) > len(want) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if _, err := ktls.Install(p.Server, server.Read, server.Write); err != nil {
		t.Fatal(err)
	}
	mustRead(t, newConn(t, p.Server), string(want))
}
