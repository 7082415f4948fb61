// SPDX-License-Identifier: Apache-2.0

package adversary

import (
	"bytes"
	"encoding/binary"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/tls.h.
const (
	tlsTX, tlsRX       = 1, 2
	tls13              = 0x0304
	cipherAES128GCM    = 51
	uringCmdGetsockopt = 2 // of include/uapi/linux/io_uring.h
	uringCmdSetsockopt = 3
)

// CryptoInfo is struct tls12_crypto_info_aes_gcm_128 of TLS 1.3: what a test installs, and what an attacker who was
// let through reads.
func CryptoInfo(key byte) []byte {
	l := layout{}.u16(tls13).u16(cipherAES128GCM)
	l = append(l, "iv iv iv"...)
	l = append(l, bytes.Repeat([]byte{key}, 16)...)
	l = append(l, "salt"...)
	return append(l, make([]byte, 8)...)
}

// Keys of the tests: the one in the socket, and the one an attacker would set.
const (
	TheKey    = 0x5a
	EvilKey   = 0x66
	keyOffset = 12 // of the key itself in CryptoInfo
)

// Attach gives a socket the ULP, and with a key, which is not 0, both keys.
func Attach(c syscall.Conn, key byte) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if failed = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_ULP, "tls"); failed != nil || key == 0 {
			return
		}
		for _, direction := range []int{tlsTX, tlsRX} {
			failed = errors.Join(failed, unix.SetsockoptString(int(fd), unix.SOL_TLS, direction, string(CryptoInfo(key))))
		}
	})
	return errors.Join(err, failed)
}

// route is a way to the socket options.
type route struct {
	name string
	get  func(t *target, level, name int, value []byte) (int, error) // the length
	set  func(t *target, level, name int, value []byte) error
}

func routes() []route {
	get := func(do func(t *target, args ...uintptr) (int, error)) func(*target, int, int, []byte) (int, error) {
		return func(t *target, level, name int, value []byte) (int, error) {
			length, into := t.take(4), t.take(len(value))
			copy(into, value)
			binary.NativeEndian.PutUint32(length, uint32(len(value)))
			_, err := do(t, uintptr(t.fd), uintptr(level), uintptr(name), address(into), address(length))
			copy(value, into)
			return int(binary.NativeEndian.Uint32(length)), err
		}
	}
	set := func(do func(t *target, args ...uintptr) (int, error)) func(*target, int, int, []byte) error {
		return func(t *target, level, name int, value []byte) error {
			_, err := do(t, uintptr(t.fd), uintptr(level), uintptr(name), t.put(value), uintptr(len(value)))
			return err
		}
	}
	native := func(number uintptr) func(*target, ...uintptr) (int, error) {
		return func(_ *target, args ...uintptr) (int, error) { return call(number, args...) }
	}
	i386 := func(number uintptr) func(*target, ...uintptr) (int, error) {
		return func(_ *target, args ...uintptr) (int, error) { return call32(number, args...) }
	}
	multiplexed := func(what uintptr) func(*target, ...uintptr) (int, error) {
		return func(t *target, args ...uintptr) (int, error) { return t.socketcall(what, args...) }
	}
	return []route{
		{"", get(native(unix.SYS_GETSOCKOPT)), set(native(unix.SYS_SETSOCKOPT))},
		{"i386 ", get(i386(getsockoptI386)), set(i386(setsockoptI386))},
		{"i386 socketcall ", get(multiplexed(socketcallGetsockopt)), set(multiplexed(socketcallSetsockopt))},
		{"io_uring ", uringGet, uringSet},
		{"io_uring worker ", nil, func(t *target, level, name int, value []byte) error {
			_, err := t.uringOption(uringCmdSetsockopt, sqeAsync, level, name, value)
			return err
		}},
	}
}

func uringGet(t *target, level, name int, value []byte) (int, error) {
	return t.uringOption(uringCmdGetsockopt, 0, level, name, value)
}

func uringSet(t *target, level, name int, value []byte) error {
	_, err := t.uringOption(uringCmdSetsockopt, 0, level, name, value)
	return err
}

func (t *target) uringOption(command uintptr, flags byte, level, name int, value []byte) (int, error) {
	r, err := t.newRing(0, false)
	if err != nil {
		return 0, err
	}
	return r.do(&sqe{op: opURingCmd, flags: flags, fd: t.fd, off: command, addr: uintptr(level) | uintptr(name)<<32,
		spliceIn: len(value), addr3: t.put(value)})
}

// State is what a way at keys needs to find in its socket.
type State int

const (
	WithKeys State = iota
	WithULP        // and no key
	Bare           // no ULP
)

func keyWays() (ways []*Way) {
	for _, r := range routes() {
		ways = append(ways, r.getters()...)
		ways = append(ways, r.setters()...)
	}
	return append(ways,
		&Way{Name: "getsockopt TLS_TX from a child process", Kind: Key, do: func(t *target) error {
			return t.again("getsockopt TLS_TX", nil)
		}},
		&Way{Name: "getsockopt TLS_TX from a new user namespace", Kind: Key, do: func(t *target) error {
			return t.again("getsockopt TLS_TX", newUserNamespace())
		}},
		&Way{Name: "getsockopt TLS_TX by a descriptor that was passed on", Kind: Key, do: func(t *target) (err error) {
			if t.fd, err = t.passOn(); err != nil {
				return err
			}
			return routes()[0].steal(t, tlsTX)
		}},
		&Way{Name: "connect AF_UNSPEC", Kind: Key, lacking: everywhere(unix.EOPNOTSUPP), do: func(t *target) error {
			_, err := call(unix.SYS_CONNECT, uintptr(t.fd), t.put(make([]byte, 16)), 16)
			return err
		}},
		&Way{Name: "listen", Kind: Key, lacking: everywhere(unix.EINVAL), do: func(t *target) error { return unix.Listen(t.fd, 1) }},
	)
}

// steal reads a key and checks that it is the one.
func (r *route) steal(t *target, direction int) error {
	value := make([]byte, len(CryptoInfo(0)))
	if _, err := r.get(t, unix.SOL_TLS, direction, value); err != nil {
		return err
	}
	if !bytes.Equal(value[keyOffset:keyOffset+16], CryptoInfo(TheKey)[keyOffset:keyOffset+16]) {
		return errors.New("not the key")
	}
	return nil
}

func (r *route) getters() []*Way {
	if r.get == nil {
		return nil
	}
	ways := []*Way{
		{Name: r.name + "getsockopt TLS_TX", do: func(t *target) error { return r.steal(t, tlsTX) }},
		{Name: r.name + "getsockopt TLS_RX", do: func(t *target) error { return r.steal(t, tlsRX) }},
		{Name: r.name + "getsockopt TCP_ZEROCOPY_RECEIVE", do: r.receive},
	}
	for _, w := range ways {
		w.Kind = Key
		if r.name == "io_uring " {
			w.lacks(unix.EOPNOTSUPP, "") // of SOL_SOCKET only, io_uring/cmd_net.c
		}
	}
	return ways
}

// receive takes ciphertext from below the record layer: struct tcp_zerocopy_receive with a buffer to copy to.
func (r *route) receive(t *target) error {
	buffer := t.take(4096)
	l := layout{}.u64(0).u32(0).u32(0).u32(0).u32(0).u64(address(buffer)).u32(uintptr(len(buffer))).u32(0)
	value := append(l, make([]byte, 24)...)
	if _, err := r.get(t, unix.IPPROTO_TCP, unix.TCP_ZEROCOPY_RECEIVE, value); err != nil {
		return err
	}
	if n := binary.NativeEndian.Uint32(value[32:]); n == 0 || n == uint32(len(buffer)) || buffer[0] == 0 {
		return errors.New("no bytes")
	}
	return nil
}

func (r *route) setters() []*Way {
	set := func(level, name int, value []byte) func(*target) error {
		return func(t *target) error { return r.set(t, level, name, value) }
	}
	one := layout{}.u32(1)
	ways := []*Way{
		(&Way{Name: r.name + "setsockopt TLS_TX over the key", do: set(unix.SOL_TLS, tlsTX, CryptoInfo(EvilKey))}).lacks(unix.EBUSY, "6.1", "6.12"),
		(&Way{Name: r.name + "setsockopt TLS_RX over the key", do: set(unix.SOL_TLS, tlsRX, CryptoInfo(EvilKey))}).lacks(unix.EBUSY, "6.1", "6.12"),
		{Name: r.name + "setsockopt TLS_TX", Needs: WithULP, do: set(unix.SOL_TLS, tlsTX, CryptoInfo(EvilKey))},
		{Name: r.name + "setsockopt TLS_RX", Needs: WithULP, do: set(unix.SOL_TLS, tlsRX, CryptoInfo(EvilKey))},
		{Name: r.name + "setsockopt TCP_ULP", Needs: Bare, do: set(unix.IPPROTO_TCP, unix.TCP_ULP, []byte("tls"))},
		{Name: r.name + "setsockopt TCP_REPAIR", do: set(unix.IPPROTO_TCP, unix.TCP_REPAIR, one), unprivileged: unix.EPERM},
	}
	for _, w := range ways {
		w.Kind = Key
		if r.name == "io_uring " || r.name == "io_uring worker " {
			w.lacks(unix.EOPNOTSUPP, "6.1")
		}
	}
	return ways
}
