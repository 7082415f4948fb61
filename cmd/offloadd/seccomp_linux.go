// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Why not a library: github.com/elastic/go-seccomp-bpf v1.6.0 is the one in pure Go, and
// where a condition on an argument does not hold it compares that argument, and not the
// number of the call, with the calls that follow in the list. So getsockopt of the level
// 202 passes where futex, number 202, is allowed. It also lets x32 calls off with
// ENOSYS, and takes a thread that could not be reached for success.

// rule decides what becomes of a system call, if all conditions hold. Of the rules
// in a list the first that fits decides.
type rule struct {
	number     uint32
	conditions []condition
	action     uint32 // SECCOMP_RET_...
}

// condition holds if the argument, under the mask, is the value.
type condition struct {
	argument    uint32
	mask, value uint64
}

func is(argument uint32, value uint64) condition { return condition{argument, ^uint64(0), value} }

func hasNone(argument uint32, bits uint64) condition { return condition{argument, bits, 0} }

// allow lets calls pass whatever their arguments are.
func allow(numbers ...uint32) []rule { return rules(unix.SECCOMP_RET_ALLOW, numbers) }

// allowIf lets a call pass if all conditions hold.
func allowIf(number uint32, conditions ...condition) []rule {
	return []rule{{number, conditions, unix.SECCOMP_RET_ALLOW}}
}

// refuse answers calls with an error, and lets the process go on.
func refuse(errno unix.Errno, numbers ...uint32) []rule {
	return rules(unix.SECCOMP_RET_ERRNO|uint32(errno), numbers)
}

func rules(action uint32, numbers []uint32) (out []rule) {
	for _, n := range numbers {
		out = append(out, rule{n, nil, action})
	}
	return out
}

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h) on this architecture.
const (
	numberOffset    = 0
	archOffset      = 4
	argumentsOffset = 16
)

// assembleFilter makes a program of a list. What no rule fits ends the process, and so
// does every call that is not of x86-64: i386 has numbers of its own, and x32 has the
// architecture of x86-64 and bit 30 in the number (arch/x86/include/uapi/asm/unistd.h).
func assembleFilter(list []rule) ([]bpf.RawInstruction, error) {
	const x32Bit = 0x40000000
	kill := bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS}
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: archOffset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AUDIT_ARCH_X86_64, SkipTrue: 1},
		kill,
		bpf.LoadAbsolute{Off: numberOffset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: x32Bit, SkipFalse: 1},
		kill,
	}
	for _, r := range list {
		program = append(program, r.assemble()...)
	}
	return bpf.Assemble(append(program, kill))
}

// assemble expects the number of the call in the accumulator and leaves it there, where
// the rule does not fit.
func (r rule) assemble() []bpf.Instruction {
	var body []bpf.Instruction
	var jumps []int // in body, to its last instruction
	for _, c := range r.conditions {
		for half := range uint32(2) { // the lower first
			mask, value := uint32(c.mask>>(32*half)), uint32(c.value>>(32*half))
			body = append(body, bpf.LoadAbsolute{Off: argumentsOffset + 8*c.argument + 4*half, Size: 4}, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask})
			jumps = append(jumps, len(body))
			body = append(body, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: value})
		}
	}
	body = append(body, bpf.RetConstant{Val: r.action})
	if len(jumps) > 0 {
		body = append(body, bpf.LoadAbsolute{Off: numberOffset, Size: 4})
	}
	for _, at := range jumps {
		jump := body[at].(bpf.JumpIf)
		jump.SkipTrue = uint8(len(body) - 1 - at - 1)
		body[at] = jump
	}
	// Six conditions make 38 instructions, which a jump can skip.
	return append([]bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: r.number, SkipTrue: uint8(len(body))}}, body...)
}

// loadFilter puts the list over all threads at once, for good. For a thread that cannot
// be reached the kernel returns its id, which is no errno, but with TSYNC_ESRCH.
func loadFilter(list []rule) error {
	raw, err := assembleFilter(list)
	if err != nil {
		return fmt.Errorf("seccomp filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("seccomp filter: %w", errno)
	}
	return nil
}

// seccompReady reports why the kernel cannot enforce a filter.
func seccompReady() error {
	for _, action := range []uint32{unix.SECCOMP_RET_KILL_PROCESS, unix.SECCOMP_RET_ERRNO} {
		_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
		switch {
		case errno == unix.ENOSYS || errno == unix.EINVAL:
			return errors.New("this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)")
		case errno != 0:
			return fmt.Errorf("seccomp has no action %#x: %w", action, errno)
		}
	}
	return nil
}
