// SPDX-License-Identifier: Apache-2.0

package adversary

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// sockmapWays use what the kernel has to send on a socket without the holder of a descriptor doing so. No security
// module is asked there, so this is what the backstop at the network is for.
func sockmapWays() []*Way {
	return []*Way{{Name: "redirect by a sockmap", Kind: Send, Unseen: true, do: redirect, unprivileged: unix.EPERM}}
}

// redirect puts the target into a sockmap together with a socket of its own, all of whose messages go to the target.
func redirect(t *target) error {
	sockets, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockMap, KeySize: 4, ValueSize: 4, MaxEntries: 2})
	if err != nil {
		return errnoOf(err)
	}
	defer sockets.Close()
	verdict, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SkMsg, License: "GPL", Instructions: asm.Instructions{
		asm.LoadMapPtr(asm.R2, sockets.FD()),
		asm.Mov.Imm(asm.R3, 0), // the key
		asm.Mov.Imm(asm.R4, 0), // egress
		asm.FnMsgRedirectMap.Call(),
		asm.Return(),
	}})
	if err != nil {
		return errnoOf(err)
	}
	defer verdict.Close()
	attached := link.RawAttachProgramOptions{Target: sockets.FD(), Program: verdict, Attach: ebpf.AttachSkMsgVerdict}
	if err := link.RawAttachProgram(attached); err != nil {
		return err
	}
	own, err := loopbackPair()
	if err != nil {
		return err
	}
	for key, fd := range []int{t.fd, own} {
		if err := sockets.Put(uint32(key), uint32(fd)); err != nil {
			return err
		}
	}
	return t.all(unix.Write(own, t.text))
}

// loopbackPair connects two sockets and returns one. The other lives as long as the process.
func loopbackPair() (int, error) {
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, err
	}
	if err := unix.Listen(listener, 1); err != nil {
		return 0, err
	}
	name, err := unix.Getsockname(listener)
	if err != nil {
		return 0, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	return fd, unix.Connect(fd, name)
}
