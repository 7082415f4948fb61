// SPDX-License-Identifier: Apache-2.0

package adversary

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// memory is what the kernel is given pointers to. It lies below 4 GiB, for the 32-bit calls, does not move, and is
// never given back: some of the ways read it after they have returned.
type memory struct {
	bytes []byte
	used  int
}

const memorySize = 1 << 20

func newMemory() (*memory, error) {
	b, err := unix.Mmap(-1, 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_32BIT)
	return &memory{bytes: b}, err
}

// take returns n zeroed bytes, aligned to 64.
func (m *memory) take(n int) []byte {
	b := m.bytes[m.used : m.used+n : m.used+n]
	m.used += (n + 63) &^ 63
	return b
}

// put returns the address of a copy.
func (m *memory) put(b []byte) uintptr {
	c := m.take(len(b))
	copy(c, b)
	return address(c)
}

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// A layout builds a C structure from its fields, each of its own size.
type layout []byte

func (l layout) u16(v uint16) layout  { return binary.NativeEndian.AppendUint16(l, v) }
func (l layout) u32(v uintptr) layout { return binary.NativeEndian.AppendUint32(l, uint32(v)) }
func (l layout) u64(v uintptr) layout { return binary.NativeEndian.AppendUint64(l, uint64(v)) }

// word is a pointer or size_t, which differ between the two worlds.
func (l layout) word(v uintptr, compat bool) layout {
	if compat {
		return l.u32(v)
	}
	return l.u64(v)
}

// iovec is struct iovec of one part.
func (m *memory) iovec(b []byte, compat bool) uintptr {
	return m.put(layout{}.word(m.put(b), compat).word(uintptr(len(b)), compat))
}

// message is struct msghdr, or a vector of one struct mmsghdr, which begins with it.
func (m *memory) message(b []byte, compat bool) uintptr {
	l := layout{}.word(0, compat).u32(0)
	if !compat {
		l = l.u32(0) // padding
	}
	l = l.word(m.iovec(b, compat), compat).word(1, compat).word(0, compat).word(0, compat).u32(0)
	return m.put(append(l, make([]byte, 12)...)) // msg_len, and padding
}
