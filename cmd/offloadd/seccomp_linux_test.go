// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// seccompData is struct seccomp_data (include/uapi/linux/seccomp.h).
type seccompData struct {
	number    uint32
	arch      uint32
	arguments [6]uint64
}

// encode gives each word to the interpreter, which reads as from the network, in the
// order that the kernel has on this machine: the lower word first.
func (d seccompData) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, d.number)
	b = binary.BigEndian.AppendUint32(b, d.arch)
	b = append(b, make([]byte, 8)...) // instruction pointer
	for _, a := range d.arguments {
		b = binary.BigEndian.AppendUint32(b, uint32(a))
		b = binary.BigEndian.AppendUint32(b, uint32(a>>32))
	}
	return b
}

// TestTheFilterDecidesByNumberArchitectureAndArguments: what the processes of other
// tests cannot try, down to upper halves of arguments.
func TestTheFilterDecidesByNumberArchitectureAndArguments(t *testing.T) {
	raw, err := assembleFilter(workerConfinement().syscalls)
	if err != nil {
		t.Fatal(err)
	}
	program, complete := bpf.Disassemble(raw)
	if !complete {
		t.Fatal("the filter has unknown instructions")
	}
	filter, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	const kill, allow = unix.SECCOMP_RET_KILL_PROCESS, unix.SECCOMP_RET_ALLOW
	eperm, enosys := unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM), unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS)
	arguments := func(a ...uint64) (out [6]uint64) { copy(out[:], a); return out }
	const high = 1 << 32 // in the upper half of an argument
	for _, c := range []struct {
		name      string
		number    uint32
		arguments [6]uint64
		want      uint32
	}{
		{"read", unix.SYS_READ, arguments(), allow},
		{"open", unix.SYS_OPEN, arguments(), eperm},
		{"openat", unix.SYS_OPENAT, arguments(), eperm},
		{"openat2", unix.SYS_OPENAT2, arguments(), kill},
		{"clone3", unix.SYS_CLONE3, arguments(), enosys},
		{"a thread", unix.SYS_CLONE, arguments(threadFlags), allow},
		{"a thread and more", unix.SYS_CLONE, arguments(threadFlags | unix.CLONE_NEWNS), kill},
		{"no thread", unix.SYS_CLONE, arguments(threadFlags &^ unix.CLONE_THREAD), kill},
		{"a thread with high flags", unix.SYS_CLONE, arguments(threadFlags | high), kill},
		{"memory", unix.SYS_MMAP, arguments(0, 4096, unix.PROT_READ|unix.PROT_WRITE), allow},
		{"executable memory", unix.SYS_MMAP, arguments(0, 4096, unix.PROT_EXEC), kill},
		{"executable memory too", unix.SYS_MPROTECT, arguments(0, 4096, unix.PROT_READ|unix.PROT_EXEC|high), kill},
		{"pkey_mprotect", unix.SYS_PKEY_MPROTECT, arguments(), kill},
		{"an option of the socket", unix.SYS_GETSOCKOPT, arguments(9, unix.SOL_SOCKET, unix.SO_COOKIE), allow},
		{"a key", unix.SYS_GETSOCKOPT, arguments(9, unix.SOL_TLS, 1), kill},
		{"a high level", unix.SYS_GETSOCKOPT, arguments(9, unix.SOL_SOCKET|high), kill},
		{"no delay", unix.SYS_SETSOCKOPT, arguments(9, unix.IPPROTO_TCP, unix.TCP_NODELAY), allow},
		{"the ULP", unix.SYS_SETSOCKOPT, arguments(9, unix.IPPROTO_TCP, unix.TCP_ULP), kill},
		{"a socket's option by its number in TCP", unix.SYS_SETSOCKOPT, arguments(9, unix.SOL_SOCKET, unix.TCP_NODELAY), kill},
		{"a signal to another process", unix.SYS_TGKILL, arguments(1, 1, 9), kill},
		{"a signal to nobody in particular", unix.SYS_TKILL, arguments(1, 9), kill},
		{"a duplicate", unix.SYS_FCNTL, arguments(9, unix.F_DUPFD_CLOEXEC), allow},
		{"a lease", unix.SYS_FCNTL, arguments(9, unix.F_SETLEASE), kill},
		// Arguments that are numbers of calls.
		{"a level that is the number of futex", unix.SYS_GETSOCKOPT, arguments(9, unix.SYS_FUTEX), kill},
		{"a protection that is the number of stat", unix.SYS_MMAP, arguments(0, 4096, unix.SYS_STAT), kill},
		{"a process that is the number of exit", unix.SYS_TGKILL, arguments(unix.SYS_EXIT, 1, 9), kill},
		{"an unused number", 1023, arguments(), kill},
		{"the highest number", 0x3fffffff, arguments(), kill},
		{"sendto", unix.SYS_SENDTO, arguments(), kill},
		{"Landlock", unix.SYS_LANDLOCK_RESTRICT_SELF, arguments(), kill},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, call := range []struct {
				kind string
				data seccompData
				want uint32
			}{
				{"x86-64", seccompData{c.number, unix.AUDIT_ARCH_X86_64, c.arguments}, c.want},
				{"x32", seccompData{c.number | 0x40000000, unix.AUDIT_ARCH_X86_64, c.arguments}, kill},
				{"i386", seccompData{c.number, unix.AUDIT_ARCH_I386, c.arguments}, kill},
				{"arm64", seccompData{c.number, unix.AUDIT_ARCH_AARCH64, c.arguments}, kill},
			} {
				got, err := filter.Run(call.data.encode())
				if err != nil {
					t.Fatal(err)
				}
				// The interpreter returns an int, the kernel's actions are 32 bits.
				if uint32(got) != call.want {
					t.Errorf("%s: %#x, want %#x", call.kind, uint32(got), call.want)
				}
			}
		})
	}
}
