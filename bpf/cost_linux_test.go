// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkSend is a write and the read of it over loopback, without TLS, so that the guards stand out. Where an
// instruction takes a nanosecond, it counts instructions:
//
//	go test -exec "vm exec -cpus 1 -accel tcg,thread=single -qemu-arg=-icount -qemu-arg=shift=0,sleep=off" \
//		-run '^$' -bench Send -benchtime 3000x ./bpf
func BenchmarkSend(b *testing.B) {
	if os.Getenv("OFFLOADD_KERNEL_SERIES") == "" {
		b.Skip("programs are loaded in a virtual machine only")
	}
	sizes := []int{100, 16384}
	for _, size := range sizes {
		b.Run(fmt.Sprintf("%d bytes, nothing loaded", size), func(b *testing.B) { benchmarkSend(b, size, func(int) error { return nil }) })
	}
	for _, form := range formsHere() {
		dir := "/sys/fs/bpf/offloadd-cost-" + string(form)
		if _, err := Load(Options{Dir: dir, Form: form}); err != nil {
			b.Fatal(err)
		}
		g, err := OpenGuard(dir)
		if err != nil {
			b.Fatal(err)
		}
		if err := admitProcess(g, os.Getpid(), Handshaker); err != nil {
			b.Fatal(err)
		}
		for name, manage := range map[string]func(fd int) error{
			"no cookie":   func(int) error { return nil },
			"not managed": func(fd int) error { return moveSocket(g, fd) },
			"pending":     func(fd int) error { return moveSocket(g, fd, toPending...) },
			"ready":       func(fd int) error { return moveSocket(g, fd, toReady...) },
		} {
			for _, size := range sizes {
				b.Run(fmt.Sprintf("%d bytes, %s, %s", size, form, name), func(b *testing.B) { benchmarkSend(b, size, manage) })
			}
		}
		g.Close()
		if err := Unload(dir); err != nil {
			b.Fatal(err)
		}
	}
}

// moveSocket asks for the cookie of a socket, and puts it into a phase.
func moveSocket(g *Guard, fd int, moves ...move) error {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	for _, do := range moves {
		err = errors.Join(err, do(g, cookie))
	}
	return err
}

// benchmarkSend sends records, as a socket that waits for its keys sends nothing else.
func benchmarkSend(b *testing.B, size int, manage func(fd int) error) {
	fd, peer, err := connectLoopback()
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	defer unix.Close(peer)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		b.Fatal(err)
	}
	if err := manage(fd); err != nil {
		b.Fatal(err)
	}
	out, in := record(23, size-5), make([]byte, size)
	for b.Loop() {
		if _, err := unix.Write(fd, out); err != nil {
			b.Fatal(err)
		}
		for n := 0; n < size; {
			m, err := unix.Read(peer, in)
			if err != nil {
				b.Fatal(err)
			}
			n += m
		}
	}
}
