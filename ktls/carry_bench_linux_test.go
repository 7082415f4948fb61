// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// The benchmarks of what a proxy does measure the CPU time of the thread that carries,
// and not that of the ends. On a machine whose clock counts instructions it is a number
// of instructions.

const carried = 32 << 20

// threadTime is the CPU time of this thread in all.
func threadTime(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// benchmarkCarry runs carry for carried bytes, again and again.
func benchmarkCarry(b *testing.B, carry func() (int64, error)) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := threadTime(b)
	for b.Loop() {
		if n, err := carry(); n != carried || err != nil {
			b.Fatal(n, err)
		}
	}
	b.SetBytes(carried)
	b.ReportMetric(float64(threadTime(b)-start)/float64(b.N)/carried, "cpu-ns/B")
}

// discard takes what arrives at a socket without keys, and does not look at it.
func discard(b *testing.B, c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		p := make([]byte, 1<<20)
		n := 1
		for n > 0 {
			err := raw.Read(func(fd uintptr) bool {
				var err error
				n, _, err = unix.Recvfrom(int(fd), p, unix.MSG_TRUNC|unix.MSG_DONTWAIT)
				return err != unix.EAGAIN
			})
			if err != nil {
				return
			}
		}
	}()
}

// keyed returns a pair of which only the client has keys in the kernel.
func keyed(b *testing.B) (*ktlstest.Pair, *ktls.Conn) {
	ktlstest.Require(b)
	p := ktlstest.NewPair(b)
	client, server := ktlstest.NewStates(b, suite13, p)
	server.Destroy()
	if _, err := ktls.Install(p.Client, client.Read, client.Write); err != nil {
		b.Fatal(err)
	}
	return p, newConn(b, p.Client)
}

func BenchmarkCarryFromPlainToTLS(b *testing.B) {
	p, conn := keyed(b)
	discard(b, p.Server)
	plain := ktlstest.NewPair(b)
	f := writeFile(b, randomBytes(carried))
	send := make(chan struct{})
	go func() {
		for range send {
			f.Seek(0, io.SeekStart)
			io.Copy(plain.Server, f)
		}
	}()
	defer close(send)
	benchmarkCarry(b, func() (int64, error) {
		send <- struct{}{}
		return io.CopyN(conn, plain.Client, carried)
	})
}

func BenchmarkCarryFromTLSToPlain(b *testing.B) {
	for _, settings := range []ktls.Settings{{}, {NoPad: true}} {
		b.Run(fmt.Sprintf("%+v", settings), func(b *testing.B) { benchmarkCarryFromTLS(b, settings) })
	}
}

func benchmarkCarryFromTLS(b *testing.B, settings ktls.Settings) {
	client, server := newConnsWith(b, settings)
	plain := ktlstest.NewPair(b)
	discard(b, plain.Server)
	f := writeFile(b, randomBytes(carried))
	send := make(chan struct{})
	go func() {
		for range send {
			f.Seek(0, io.SeekStart)
			io.Copy(client, f)
			// WriteTo ends only at the end of the connection, or of its time.
			server.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		}
	}()
	defer close(send)
	benchmarkCarry(b, func() (int64, error) {
		server.SetReadDeadline(time.Time{})
		send <- struct{}{}
		n, err := server.WriteTo(plain.Client)
		if n == carried {
			err = nil
		}
		return n, err
	})
}
