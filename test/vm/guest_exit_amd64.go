// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// debugExitPort is where QEMU's isa-debug-exit device listens.
	debugExitPort = 0xf4
	// debugExitValue is what init writes there at the end. QEMU then exits with debugExitStatus. A kernel that panics
	// also ends QEMU, with status 0, so nothing but this number means that init ended the machine.
	debugExitValue  = 0x31
	debugExitStatus = debugExitValue<<1 | 1
)

// outb writes to an I/O port.
func outb(port uint16, value byte)

// lockedDown: then not even root may use I/O ports (LOCKDOWN_IOPORT in include/linux/security.h).
func lockedDown() bool {
	text, err := os.ReadFile("/sys/kernel/security/lockdown")
	return err == nil && !strings.Contains(string(text), "[none]")
}

// endMachine does not return if all is well. The permission is the thread's, so it must stay on this one.
func endMachine() error {
	runtime.LockOSThread()
	if lockedDown() {
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // with -no-reboot this ends QEMU; the host was told
	}
	if err := unix.Ioperm(debugExitPort, 1, 1); err != nil {
		return fmt.Errorf("ask for I/O port %#x: %w", debugExitPort, err)
	}
	outb(debugExitPort, debugExitValue)
	return fmt.Errorf("the machine has no device at I/O port %#x", debugExitPort)
}
