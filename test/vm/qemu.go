// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// hardware is the machine that QEMU emulates.
type hardware struct {
	accel  string // an -accel value of QEMU
	memory int    // MiB
	cpus   int
	append string   // more words for the kernel's command line
	extra  []string // more arguments for QEMU; they come last, so they win
	disks  []disk
	// bootPatience is how long it may take until the command starts.
	bootPatience time.Duration
}

// defaultBootPatience: an emulated boot takes 5 s, and 30 on a busy machine.
const defaultBootPatience = 90 * time.Second

// Descriptors of the QEMU process.
const (
	consoleFD = 3 + iota
	portFD
	initrdFD
)

// kernelParameters: the console gets warnings and worse (a WARN is one), a panic reboots, which ends QEMU. The
// self-tests of the ciphers are left out, as they are a third of all instructions until the command starts. The time
// stamp counter of an emulated CPU is sound, but the kernel's watchdog often thinks otherwise, and then reads the HPET
// for each clock_gettime: QEMU's big lock is taken for it, and machines have been seen to spin on that without end. The
// timer need not be checked either: on a busy host the check is over before the first interrupt, and the kernel panics
// ("IO-APIC + timer doesn't work").
const kernelParameters = "console=ttyS0 panic=-1 loglevel=5 printk.devkmsg=on cryptomgr.notests=1 tsc=reliable no_timer_check " +
	"rdinit=" + guestInitPath

// qemu returns the command that boots the kernel. It does not outlive us.
func (f *fetcher) qemu(ctx context.Context, k *kernel, h hardware, files ...*os.File) (*exec.Cmd, error) {
	root, err := f.hostRoot()
	if err != nil {
		return nil, err
	}
	arguments := []string{"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"}
	for _, data := range []string{"usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"} {
		arguments = append(arguments, "-L", filepath.Join(root, data))
	}
	arguments = append(arguments, h.arguments()...)
	arguments = append(arguments,
		"-kernel", k.image(),
		"-initrd", fmt.Sprintf("/dev/fd/%d", initrdFD),
		"-append", strings.TrimSpace(kernelParameters+" "+h.append),
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", consoleFD),
		"-serial", "chardev:console",
		"-device", "virtio-serial-pci",
		"-chardev", fmt.Sprintf("socket,id=port,fd=%d", portFD),
		"-device", "virtserialport,chardev=port,name="+guestPortName,
		"-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=4", debugExitPort),
	)
	for _, one := range h.disks {
		arguments = append(arguments, one.arguments()...)
	}
	command, err := f.hostTool(ctx, "usr/bin/qemu-system-x86_64", append(arguments, h.extra...)...)
	if err != nil {
		return nil, err
	}
	command.ExtraFiles = files
	// An own process group: a ^C of the terminal reaches us, and we decide. The death signal covers our being killed;
	// it is sent when the thread that started QEMU ends, which is the main one, locked in main.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return command, nil
}

// tcgCPU leaves out what makes a guest copy and clear memory by "rep movsb" and "rep stosb", which TCG emulates byte
// by byte: without them transfers and boots take four fifths of the time.
const tcgCPU = "max,-erms,-fsrm"

func (h hardware) arguments() []string {
	cpu := tcgCPU
	if h.accel == accelKVM {
		cpu = "max"
	}
	arguments := []string{
		"-machine", "q35",
		"-accel", h.accel,
		"-cpu", cpu,
		"-smp", strconv.Itoa(h.cpus),
		"-m", strconv.Itoa(h.memory),
	}
	if h.accel == accelInstructions {
		arguments = append(arguments, "-icount", instructionClock)
	}
	return arguments
}

const (
	accelTCG = "tcg,thread=multi"
	accelKVM = "kvm"
	// accelInstructions goes with instructionClock: the instructions of several CPUs cannot be counted by one clock.
	accelInstructions = "tcg,thread=single"
)

// instructionClock makes the guest's clock count instructions, one a nanosecond. Time in which the guest waits is
// skipped.
const instructionClock = "shift=0,sleep=off"

// countInstructions makes the machine one whose clock counts instructions.
func (h *hardware) countInstructions() { h.accel, h.cpus = accelInstructions, 1 }
