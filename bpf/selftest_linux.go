// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ErrSilent: a guard is attached and does not act.
var ErrSilent = errors.New("it is attached, but the kernel does not run it")

// Options of unix.SOL_TLS (include/uapi/linux/tls.h).
const (
	tlsTX = 1
	tlsRX = 2
)

// A keyAttempt is what the key guard denies on a managed socket, tried on one that is not connected. Without a guard the
// kernel has another answer than EPERM.
type keyAttempt struct {
	name string
	try  func(fd int) error
}

var keyAttempts = []keyAttempt{
	{"getsockopt(TLS_TX)", func(fd int) error { _, err := unix.GetsockoptInt(fd, unix.SOL_TLS, tlsTX); return err }},
	{"setsockopt(TLS_RX)", func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_TLS, tlsRX, 0) }},
	{"connect(AF_UNSPEC)", connectNowhere},
	{"listen", func(fd int) error { return unix.Listen(fd, 1) }},
}

// connectNowhere disconnects. Package unix has no address of no family.
func connectNowhere(fd int) error {
	var address unix.RawSockaddr
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&address)), unsafe.Sizeof(address))
	if errno != 0 {
		return errno
	}
	return nil
}

// testKeyGuard tries everything on a socket of its own, and that the socket is forgotten when it is closed.
func testKeyGuard(sockets *ebpf.Map) error {
	err := tryKeyGuard(sockets, keyAttempts)
	if err == nil {
		err = tryForgetting(sockets)
	}
	if err != nil {
		return fmt.Errorf("self-test of the key guard: %w", err)
	}
	return nil
}

// freePatience is how long the kernel may take to free a socket that was closed.
const freePatience = 2 * time.Second

func tryForgetting(sockets *ebpf.Map) error {
	cookie, err := closedSocket(sockets)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(freePatience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if err := sockets.Lookup(cookie, new(managed)); errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
	}
	_ = sockets.Delete(cookie)
	return fmt.Errorf("a socket is still managed %v after it was closed: %w", freePatience, ErrSilent)
}

// closedSocket returns the cookie of one that was closed while it was managed.
func closedSocket(sockets *ebpf.Map) (uint64, error) {
	fd, cookie, err := newSocket()
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := sockets.Put(cookie, managed{Phase: pending, Flags: flagProbe}); err != nil {
		return 0, fmt.Errorf("make a socket managed: %w", err)
	}
	return cookie, nil
}

func newSocket() (fd int, cookie uint64, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, 0, fmt.Errorf("make a socket: %w", err)
	}
	if cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil {
		unix.Close(fd)
		return -1, 0, fmt.Errorf("ask for a socket's cookie: %w", err)
	}
	return fd, cookie, nil
}

func tryKeyGuard(sockets *ebpf.Map, attempts []keyAttempt) error {
	fd, cookie, err := newSocket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// Something else may deny it too, and then the guard is not what is tested.
	if err := keyAttempts[0].try(fd); errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%s on a socket that is not managed: %w; which security module or filter forbids that?", keyAttempts[0].name, err)
	}
	if err := sockets.Put(cookie, managed{Phase: pending, Flags: flagProbe}); err != nil {
		return fmt.Errorf("make a socket managed: %w", err)
	}
	defer func() { _ = sockets.Delete(cookie) }() // key_free may have, or may not be attached
	for _, attempt := range attempts {
		if err := attempt.try(fd); !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%s of a managed socket was answered with %v: %w (active security modules: %s)",
				attempt.name, answer(err), ErrSilent, securityModules())
		}
	}
	return nil
}

func answer(err error) string {
	if err == nil {
		return "success"
	}
	return err.Error()
}

// nobodyMayAttach: the Yama module, in its strictest mode, denies to all what the shield denies (Documentation/
// admin-guide/LSM/Yama.rst). What the shield does cannot be seen then, and does not matter.
func nobodyMayAttach() bool {
	text, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	return err == nil && strings.TrimSpace(string(text)) == "3"
}

// testShield tries to take a descriptor from a process that is shielded. That process is this program, stopped at its
// very first instruction, as a tracer's child is, and killed there.
func testShield(tasks *ebpf.Map) error {
	if nobodyMayAttach() {
		return nil
	}
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	pidfd := -1
	process, err := os.StartProcess("/proc/self/exe", []string{"self-test"}, &os.ProcAttr{
		Sys: &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL, PidFD: &pidfd}})
	if err != nil {
		return fmt.Errorf("self-test of the process shield: start a process to protect: %w", err)
	}
	defer func() {
		_ = process.Kill()
		_, _ = process.Wait()
		unix.Close(pidfd)
	}()
	if err := tryShield(tasks, pidfd); err != nil {
		return fmt.Errorf("self-test of the process shield: %w", err)
	}
	return nil
}

func tryShield(tasks *ebpf.Map, pidfd int) error {
	if err := tasks.Put(uint32(pidfd), uint32(0)); err != nil {
		return fmt.Errorf("give a process no role: %w", err)
	}
	if err := takeDescriptor(pidfd); err != nil {
		return fmt.Errorf("take a descriptor from a process that is not shielded: %w; which security module or filter forbids that?", err)
	}
	if err := tasks.Put(uint32(pidfd), uint32(Shielded|probed)); err != nil {
		return fmt.Errorf("shield a process: %w", err)
	}
	if err := takeDescriptor(pidfd); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("taking a descriptor from a shielded process was answered with %v: %w (active security modules: %s)",
			answer(err), ErrSilent, securityModules())
	}
	return nil
}

// anyDescriptor is one that the process need not have. That it has not, the kernel says after it has asked.
const anyDescriptor = 1 << 20

func takeDescriptor(pidfd int) error {
	fd, err := unix.PidfdGetfd(pidfd, anyDescriptor, 0)
	if err == nil {
		unix.Close(fd)
	}
	if errors.Is(err, unix.EBADF) {
		return nil
	}
	return err
}
