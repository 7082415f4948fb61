// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrSkippable: the guards act, and can be outrun.
var ErrSkippable = errors.New("the kernel can be made to skip a guard in form fmod_ret, because it preempts itself: " +
	"boot with bpf in lsm=, or with preempt=voluntary")

// CanBeSkipped returns an error that wraps ErrSkippable if programs of the tracing types can be skipped on this kernel.
// It runs one at most once at a time on each CPU (kernel/bpf/trampoline.c, __bpf_prog_enter_recur), and a call that
// comes while another task is preempted inside the program goes on as if there were none. Programs of the security
// module are always run. It needs root: the kernel tells its preemption in debugfs, which need not be mounted. Where it
// does not tell, it is taken to preempt.
func CanBeSkipped() error {
	mode, err := preemption()
	if err != nil {
		return fmt.Errorf("%w (how it preempts cannot be told: %v)", ErrSkippable, err)
	}
	if mode == "none" || mode == "voluntary" {
		return nil
	}
	return fmt.Errorf("%w (it does so: %s)", ErrSkippable, mode)
}

// preemption is the mode: none, voluntary, full, lazy. A kernel that cannot change it tells by its version string.
func preemption() (string, error) {
	text, err := readDebug("sched/preempt")
	if errors.Is(err, os.ErrNotExist) {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return "", err
		}
		if strings.Contains(unix.ByteSliceToString(u.Version[:]), "PREEMPT") {
			return "full", nil
		}
		return "voluntary", nil
	}
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(text, "(")
	mode, _, found := strings.Cut(rest, ")")
	if !found {
		return "", fmt.Errorf("sched/preempt says %q", text)
	}
	return mode, nil
}

// readDebug reads a file of debugfs, by a mount of its own that nobody sees.
func readDebug(name string) (string, error) {
	system, err := unix.Fsopen("debugfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(system)
	if err := unix.FsconfigCreate(system); err != nil {
		return "", os.NewSyscallError("fsconfig", err)
	}
	mount, err := unix.Fsmount(system, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return "", os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: filepath.Join("debugfs", name), Err: err}
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, 256))
	return string(text), err
}

// markSkippable leaves a note of it for those who open the guards, and may not ask.
func (p pins) markSkippable(skippable bool) error {
	if !skippable {
		err := os.Remove(p.skippable())
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return err
	}
	if err := os.Mkdir(p.skippable(), dirMode); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

func (p pins) skippable() string { return filepath.Join(p.dir, "skippable") }
