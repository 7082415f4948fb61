// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// Those of the kernel's selftests that change keys, by plain calls. What package ktls
// makes of it is in rekey_test.go.

var selftestUpdate = []byte{24, 0, 0, 1, 0}

// update sends a KeyUpdate and sets the next key to send with, which it returns.
func (w *wire) update() []byte {
	w.t.Helper()
	w.works(w.sendType(22, selftestUpdate, 0))
	next := w.newKey()
	w.works(setKey(w.tx, optTX, next))
	return next
}

// follow takes the KeyUpdate and sets the next key to read with.
func (w *wire) follow(next []byte) {
	w.t.Helper()
	w.wantsType(22, selftestUpdate, 0)
	w.works(setKey(w.rx, optRX, next))
}

func selftestRekey(w *wire) {
	w.send([]byte("before"), 0)
	w.wants([]byte("before"), 20, 0)
	next := w.update()
	w.send([]byte("after"), 0)
	w.failsToRead(unix.EIO)
	w.wantsType(22, selftestUpdate, 0)
	for _, flags := range []int{0, unix.MSG_DONTWAIT} {
		_, err := w.recv(20, flags)
		w.fails(err, unix.EKEYEXPIRED)
	}
	w.works(setKey(w.rx, optRX, next))
	w.wants([]byte("after"), 20, 0)
}

// otherHead is a key with another version and cipher type.
func otherHead(info []byte, version, cipher uint16, size int) []byte {
	other := append(bytes.Clone(info), make([]byte, 16)...)[:size]
	binary.NativeEndian.PutUint16(other, version)
	binary.NativeEndian.PutUint16(other[2:], cipher)
	return other
}

func selftestRekeyFail(w *wire) {
	w.send([]byte("before"), 0)
	w.wants([]byte("before"), 20, 0)
	next := w.update()
	version, cipher := uint16(0x304), binary.NativeEndian.Uint16(w.info[2:])
	w.fails(setKey(w.tx, optTX, otherHead(next, 0x303, cipher, len(next))), unix.EINVAL)
	w.fails(setKey(w.rx, optRX, otherHead(next, 0x303, cipher, len(next))), unix.EINVAL)
	other := uint16(52) // AES-256-GCM
	if cipher == other {
		other = 54 // ChaCha20-Poly1305
	}
	w.fails(setKey(w.tx, optTX, otherHead(next, version, other, 56)), unix.EINVAL)
	w.send([]byte("after"), 0)
	w.follow(next)
	w.wants([]byte("after"), 20, 0)
}

// selftestRekeyRefused: TLS 1.2 has no KeyUpdate, and its keys do not change.
func selftestRekeyRefused(w *wire) {
	w.fails(setKey(w.tx, optTX, w.newKey()), unix.EBUSY)
	w.fails(setKey(w.rx, optRX, w.newKey()), unix.EBUSY)
	w.send([]byte("as before"), 0)
	w.wants([]byte("as before"), 20, 0)
}

func selftestRekeyRX(w *wire) {
	next := w.newKey()
	w.works(setKey(w.tx, optTX, next))
	w.works(setKey(w.rx, optRX, next))
	w.send([]byte("at once"), 0)
	w.wants([]byte("at once"), 20, 0)
}

func selftestRekeyPeek(w *wire) {
	w.send([]byte("before"), 0)
	next := w.update()
	w.wants([]byte("before"), 20, unix.MSG_PEEK)
	w.wants([]byte("before"), 20, 0)
	_, err := w.recv(20, unix.MSG_PEEK)
	w.fails(err, unix.EIO)
	w.wantsType(22, selftestUpdate, unix.MSG_PEEK)
	w.follow(next)
}

func selftestSpliceRekey(w *wire) {
	want := randomBytes(fullRecord / 2)
	w.send(want, 0)
	next := w.update()
	w.send(want, 0)
	r, in := pipes(w.t)
	w.mustSplice(w.rx, in, fullRecord, 0, len(want))
	w.wantsFromPipe(r, want)
	w.failsToSplice(unix.EINVAL)
	w.wantsType(22, selftestUpdate, unix.MSG_PEEK)
	w.wantsType(22, selftestUpdate, 0)
	w.failsToSplice(unix.EKEYEXPIRED)
	w.works(setKey(w.rx, optRX, next))
	w.mustSplice(w.rx, in, fullRecord, 0, len(want))
	w.wantsFromPipe(r, want)
}

func selftestRekeyPeekSplice(w *wire) {
	w.send([]byte("before"), 0)
	w.update()
	w.wants([]byte("before"), 20, unix.MSG_PEEK)
	r, in := pipes(w.t)
	w.mustSplice(w.rx, in, fullRecord, 0, len("before"))
	w.wantsFromPipe(r, []byte("before"))
}

func selftestRekeyGetsockopt(w *wire) {
	next := w.update()
	w.follow(next)
	for fd, option := range map[int]int{w.tx: optTX, w.rx: optRX} {
		if got, err := rawOption(fd, option, len(next)); got != string(next) || err != nil {
			w.t.Errorf("option %d is not the new key, %v", option, err)
		}
	}
}

// selftestRekeyPollPending: what came behind a KeyUpdate is not readable until the key is
// there, and then wakes who waits.
func selftestRekeyPollPending(w *wire) {
	next := w.update()
	w.wantsType(22, selftestUpdate, 0)
	w.send([]byte("after"), 0)
	if w.readable() {
		w.t.Error("readable without a key")
	}
	w.wakesPoll(func() { w.works(setKey(w.rx, optRX, next)) })
	w.wants([]byte("after"), 20, 0)
}

func selftestRekeyPollDelay(w *wire) {
	next := w.update()
	w.wantsType(22, selftestUpdate, 0)
	w.wakesPoll(func() {
		w.works(setKey(w.rx, optRX, next))
		time.Sleep(50 * time.Millisecond)
		w.send([]byte("after"), 0)
	})
	w.wants([]byte("after"), 20, 0)
}

// wakesPoll: what f does wakes a poll that waits already.
func (w *wire) wakesPoll(f func()) {
	w.t.Helper()
	woken := make(chan bool, 1)
	go func() {
		fds := []unix.PollFd{{Fd: int32(w.rx), Events: unix.POLLIN}}
		n, err := restarted(func() (int, error) { return unix.Poll(fds, 5000) })
		woken <- n == 1 && err == nil
	}()
	time.Sleep(50 * time.Millisecond)
	f()
	if !<-woken {
		w.t.Error("poll was not woken")
	}
}
