// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// attachProgram attaches a program by its type.
func attachProgram(p *ebpf.Program, to ebpf.AttachType, cgroup string) (link.Link, error) {
	switch p.Type() {
	case ebpf.LSM:
		return link.AttachLSM(link.LSMOptions{Program: p})
	case ebpf.Tracing:
		if to == ebpf.AttachTraceIter {
			return link.AttachIter(link.IterOptions{Program: p})
		}
		return link.AttachTracing(link.TracingOptions{Program: p, AttachType: to})
	case ebpf.CGroupSKB:
		return link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: to, Program: p})
	}
	return nil, fmt.Errorf("programs of type %v are not provided for", p.Type())
}

func attachName(t ebpf.ProgramType, to ebpf.AttachType) string {
	switch {
	case t == ebpf.LSM:
		return string(FormLSM)
	case t == ebpf.CGroupSKB && to == ebpf.AttachCGroupInetEgress:
		return "cgroup egress"
	case t == ebpf.CGroupSKB:
		return "cgroup ingress"
	}
	switch to {
	case ebpf.AttachModifyReturn:
		return string(FormModifyReturn)
	case ebpf.AttachTraceFEntry:
		return "fentry"
	case ebpf.AttachTraceFExit:
		return "fexit"
	case ebpf.AttachTraceRawTp:
		return "tp_btf"
	case ebpf.AttachTraceIter:
		return "iter"
	}
	return fmt.Sprint(to)
}

// attached is the program behind a pinned link, as far as it matters for a comparison.
type attached struct {
	id   ebpf.ProgramID
	tag  string
	maps []ebpf.MapID
}

// pinnedProgram returns nil if nothing is pinned there.
func pinnedProgram(path string) (*attached, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer l.Close()
	about, err := l.Info()
	if err != nil {
		return nil, err
	}
	p, err := ebpf.NewProgramFromID(about.Program)
	if errors.Is(err, unix.EPERM) {
		return &attached{id: about.Program}, nil // that it is there is told to everybody, more to CAP_SYS_ADMIN only
	}
	if err != nil {
		return nil, err
	}
	defer p.Close()
	return describe(p)
}

func describe(p *ebpf.Program) (*attached, error) {
	info, err := p.Info()
	if err != nil {
		return nil, err
	}
	id, _ := info.ID()
	maps, _ := info.MapIDs()
	slices.Sort(maps)
	return &attached{id, info.Tag, maps}, nil
}

// is says whether a loaded program would do what the pinned one does: the same instructions, as the kernel sees them
// after relocation, on the same maps. That it is attached in the same way is in the pin's name.
func (a *attached) is(p *ebpf.Program) bool {
	if a == nil {
		return false
	}
	other, err := describe(p)
	return err == nil && a.tag == other.tag && slices.Equal(a.maps, other.maps)
}

// lockdown is what the kernel forbids root, or empty if it does not tell.
func lockdown() string {
	text, err := os.ReadFile("/sys/kernel/security/lockdown")
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(text), "[")
	chosen, _, _ := strings.Cut(rest, "]")
	return chosen
}

// requestModule has the kernel load the module of an upper layer protocol, as it does for whoever attaches one and may
// load modules. That the socket is not connected comes later. If it cannot, the programs that need it tell.
func requestModule(protocol string) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_ULP, protocol)
}
