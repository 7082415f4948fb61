// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// start skips where there is no kernel TLS, which the runner promises.
func start(t *testing.T) *Watch {
	t.Helper()
	if os.Getenv("OFFLOADD_VM_KERNEL") == "" {
		t.Skip("needs a kernel with TLS: see test/vm")
	}
	w, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func canRekey() bool { return !strings.HasPrefix(os.Getenv("OFFLOADD_KERNEL_SERIES"), "6.") }

// must ends the program of a fault, which is a bug of the test.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// pair is a connection with the ULP at both ends.
func pair() *trial {
	c, err := newTrial()
	must(err)
	must(errors.Join(attachTLS(c.writer), attachTLS(c.reader)))
	return c
}

// keys installs a key at both ends.
func (c *trial) keys(w *writer, seq uint64) {
	must(errors.Join(setKey(c.reader, optionRX, w.info(seq)), setKey(c.writer, optionTX, w.info(seq))))
}

// carry sends bytes, and lets the other end receive them.
func (c *trial) carry(b []byte) {
	_, err := c.writer.Write(b)
	must(err)
	_, err = io.ReadFull(c.reader, make([]byte, len(b)))
	must(err)
}

// send sends bytes, which nobody receives.
func (c *trial) send(b []byte) {
	_, err := c.writer.Write(b)
	must(err)
}

// control sends a record of another type, and lets the other end receive it.
func (c *trial) control(kind byte, content []byte) {
	h := unix.Cmsghdr{Level: unix.SOL_TLS, Type: 1} // TLS_SET_RECORD_TYPE
	h.SetLen(unix.CmsgLen(1))
	oob, err := binary.Append(nil, binary.NativeEndian, h)
	must(err)
	oob = append(oob, make([]byte, unix.CmsgSpace(1)-len(oob))...)
	oob[unix.CmsgLen(0)] = kind
	raw, err := c.writer.SyscallConn()
	must(err)
	must(raw.Control(func(fd uintptr) { must(unix.Sendmsg(int(fd), content, oob, nil, 0)) }))
	raw, err = c.reader.SyscallConn()
	must(err)
	must(raw.Read(func(fd uintptr) bool {
		_, _, _, _, err = unix.Recvmsg(int(fd), content, oob, unix.MSG_DONTWAIT)
		return err != unix.EAGAIN
	}))
	must(err)
}

// inject puts bytes on the wire that the socket did not send, right behind those it
// did.
func (c *trial) inject(b []byte) {
	raw, err := c.writer.SyscallConn()
	must(err)
	seq := 0
	must(raw.Control(func(fd uintptr) {
		set := func(option, value int) { must(unix.SetsockoptInt(int(fd), unix.SOL_TCP, option, value)) }
		set(unix.TCP_REPAIR, 1)
		set(unix.TCP_REPAIR_QUEUE, 2) // TCP_SEND_QUEUE
		seq, err = unix.GetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_QUEUE_SEQ)
		set(unix.TCP_REPAIR, -1) // TCP_REPAIR_OFF_NO_WP
	}))
	must(err)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	must(err)
	defer unix.Close(fd)
	address := func(n uint16) netip.AddrPort { return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), n) }
	f := flow{address(c.ports.from), address(c.ports.to)}
	must(unix.Sendto(fd, packet(f, uint32(seq), 0, b), 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
}

// faults are planted one after the other while one watch runs; each returns a
// connection of its own.
var faults = []struct {
	name string
	// plant runs the fault. w has a key that nobody else has.
	plant func(w *writer) *trial
	want  []Kind
	// rekey: the fault needs a kernel that takes a second key.
	rekey bool
}{
	{"honest", func(w *writer) *trial {
		c := pair()
		c.keys(w, 0)
		c.carry(text)
		return c
	}, nil, false},
	{"honest with a handshake and a megabyte", func(w *writer) *trial {
		c := pair()
		c.carry(hello(100))
		c.carry(w.seal(0, text))
		c.keys(w, 1)
		for range 64 {
			c.carry(large)
		}
		return c
	}, nil, false},
	{"honest and reset", func(w *writer) *trial {
		c := pair()
		c.keys(w, 0)
		c.carry(text)
		must(c.writer.SetLinger(0))
		return c
	}, nil, false},
	{"an honest rekey", func(w *writer) *trial {
		c := pair()
		c.keys(w, 0)
		c.carry(text)
		next := w.another()
		c.keys(next, 0)
		c.carry(text)
		return c
	}, nil, true},
	{"an honest KeyUpdate", func(w *writer) *trial {
		c := pair()
		c.keys(w, 0)
		for range 5 {
			c.control(22, slices.Clone(update))
			w = w.another()
			c.keys(w, 0)
			c.carry(text)
		}
		return c
	}, nil, true},
	{"a record behind a KeyUpdate", func(w *writer) *trial {
		c := pair()
		c.keys(w, 0)
		c.control(22, slices.Clone(update))
		c.send(text)
		return c
	}, []Kind{Late}, true},
	{"an old key behind another one", func(w *writer) *trial {
		c := pair()
		c.keys(w, 0)
		c.carry(text)
		must(setKey(c.writer, optionTX, w.another().info(0)))
		c.send(text)
		must(setKey(c.writer, optionTX, w.info(1)))
		c.send(text)
		return c
	}, []Kind{SecondInstall, Gap}, true},
	{"the same key again", func(w *writer) *trial {
		c := pair()
		c.keys(w, 0)
		c.carry(text)
		must(setKey(c.writer, optionTX, w.info(0)))
		_, err := c.writer.Write(text)
		must(err)
		return c
	}, []Kind{SecondInstall, Repeat}, true},
	{"the same key to read with again", func(w *writer) *trial {
		c := pair()
		c.keys(w, 0)
		c.carry(text)
		must(setKey(c.reader, optionRX, w.info(0)))
		return c
	}, []Kind{SecondInstall}, true},
	{"a rekey that does not begin at 0", func(w *writer) *trial {
		c := pair()
		c.keys(w, 0)
		c.carry(text)
		must(setKey(c.writer, optionTX, w.another().info(5)))
		return c
	}, []Kind{Gap}, true},
	{"a key on two sockets", func(w *writer) *trial {
		first, c := pair(), pair()
		defer first.close()
		first.keys(w, 0)
		first.carry(text)
		must(setKey(c.writer, optionTX, w.info(0)))
		_, err := c.writer.Write(text)
		must(err)
		return c
	}, []Kind{SecondInstall, Repeat}, false},
	{"a byte in clear before the key", func(w *writer) *trial {
		c := pair()
		c.carry([]byte("x"))
		c.keys(w, 0)
		c.carry(text)
		return c
	}, []Kind{Clear}, false},
	{"a byte in clear and no key", func(*writer) *trial {
		c := pair()
		c.carry([]byte("x"))
		return c
	}, []Kind{Clear}, false},
	{"a byte in clear behind a key", func(w *writer) *trial {
		c := pair()
		c.keys(w, 0)
		c.carry(text)
		c.inject([]byte("x"))
		return c
	}, []Kind{Clear}, false},
	{"a forged record", func(w *writer) *trial {
		c := pair()
		c.keys(w, 0)
		c.carry(text)
		c.inject(w.another().seal(1, text))
		return c
	}, []Kind{Forged}, false},
	{"a number left out", func(w *writer) *trial {
		c := pair()
		c.keys(w, 0)
		c.carry(text)
		c.inject(w.seal(2, text))
		return c
	}, []Kind{Gap}, false},
	{"a number twice", func(w *writer) *trial {
		c := pair()
		c.keys(w, 0)
		c.carry(text)
		c.carry(text)
		c.inject(w.seal(1, text))
		return c
	}, []Kind{Repeat}, false},
	{"a number more than user space wrote", func(w *writer) *trial {
		c := pair()
		c.carry(hello(100))
		c.carry(w.seal(0, text))
		c.keys(w, 2)
		return c
	}, []Kind{Gap}, false},
	{"a number that user space had used", func(w *writer) *trial {
		c := pair()
		c.carry(hello(100))
		c.carry(w.seal(0, text))
		c.keys(w, 0)
		return c
	}, []Kind{Repeat}, false},
	{"announced", func(w *writer) *trial {
		c := pair()
		announce(Clear, c.ports.to)
		c.carry([]byte("x"))
		return c
	}, nil, false},
	{"announced and not done", func(w *writer) *trial {
		c := pair()
		announce(Clear, c.ports.from)
		return c
	}, []Kind{Missing}, false},
}

func announce(kind Kind, port uint16) {
	must(write(Instance+"/trace_marker", fmt.Sprintf("expect %s on port %d", kind, port)))
}

// another has another key of the same suite.
func (w *writer) another() *writer {
	var t testing.T // whose Fatal nobody would see
	return newWriter(&t, w.suite)
}

// TestTheWatchFindsPlantedFaults: each, in the kernel's own sockets, and nothing else.
func TestTheWatchFindsPlantedFaults(t *testing.T) {
	watch := start(t)
	want := map[ports][]Kind{}
	names := map[ports]string{}
	for _, suite := range []suite{{version13, 51}, {version12, 52}} {
		for _, f := range faults {
			if f.rekey && (!canRekey() || suite.version == version12) {
				continue
			}
			c := f.plant(newWriter(t, suite))
			defer c.close()
			want[c.ports], names[c.ports] = f.want, fmt.Sprintf("%v, %s", suite, f.name)
			if f.name == "honest and reset" {
				c.close()
			}
		}
	}
	r := watch.Finish()
	t.Log(r)
	got := map[ports][]Kind{}
	for _, v := range r.Violations {
		where := v.where
		for p := range want {
			if p.reversed() == where || v.Kind == Missing && p.has(where.from) {
				where = p
			}
		}
		got[where] = append(got[where], v.Kind)
	}
	for p, kinds := range want {
		if !slices.Equal(got[p], kinds) {
			t.Errorf("%s: found %v, want %v", names[p], got[p], kinds)
		}
		delete(got, p)
	}
	if len(got) > 0 || len(r.Failures) > 0 || len(r.NotJudged) > 0 {
		t.Errorf("and %v, %v, %v", got, r.Failures, r.NotJudged)
	}
}

// TestTheWatchSeesBothFamilies, and sockets that speak IPv4 by an IPv6 address.
func TestTheWatchSeesBothFamilies(t *testing.T) {
	watch := start(t)
	for _, address := range []string{"127.0.0.1", "::1", "::ffff:127.0.0.1"} {
		l, err := net.Listen("tcp", net.JoinHostPort("::", "0"))
		must(err)
		writer, err := net.Dial("tcp", net.JoinHostPort(address, fmt.Sprint(l.Addr().(*net.TCPAddr).Port)))
		must(err)
		defer writer.Close()
		reader, err := l.Accept()
		must(err)
		defer reader.Close()
		for _, c := range []net.Conn{writer, reader} {
			key := newWriter(t, suites[0]).info(0)
			must(errors.Join(attachTLS(c.(syscall.Conn)), setKey(c.(syscall.Conn), optionTX, key)))
			_, err = c.Write(text)
			must(err)
		}
		l.Close()
	}
	if r := watch.Finish(); r.Judged != 6 || r.Opened != 6 || r.Connections != 3 || r.Err() != nil {
		t.Errorf("%v, %v", r, r.Err())
	}
}

// TestFaultForTheRunner breaks a rule if the runner's test wants it to.
func TestFaultForTheRunner(t *testing.T) {
	if os.Getenv("OFFLOADD_TEST_FAULT") == "" {
		t.Skip("only for the runner's test")
	}
	c := pair()
	defer c.close()
	b := binary.BigEndian.AppendUint32(nil, 0)
	c.carry(b)
}
