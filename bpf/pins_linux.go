// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// pins are the directories below which everything is kept alive. All is root's: who may open the maps may say what is
// managed.
type pins struct {
	dir string
}

const dirMode = 0o700

// Directories. A link is pinned in next first, and then moved over the one that it replaces.
func (p pins) mapPin(name string) string  { return filepath.Join(p.dir, "maps", name) }
func (p pins) linkPin(name string) string { return filepath.Join(p.dir, "links", name) }
func (p pins) nextPin(name string) string { return filepath.Join(p.dir, "next", name) }

func (p pins) programPin(name string) string { return filepath.Join(p.dir, "programs", name) }

// lock lets one process at a time load or unload, by a lock on the directory above ours, which stays. The kernel drops
// it with the process.
func (p pins) lock() (unlock func(), err error) {
	parent := filepath.Dir(p.dir)
	var stat unix.Statfs_t
	if err := unix.Statfs(parent, &stat); err != nil || int64(stat.Type) != unix.BPF_FS_MAGIC {
		if err == nil {
			err = errors.New("it is not in a BPF file system")
		}
		return nil, &UnavailableError{"pin below " + p.dir, err, "run: mount -t bpf bpf /sys/fs/bpf"}
	}
	file, err := os.Open(parent)
	if err != nil {
		return nil, privilege("open "+parent, err)
	}
	if err := flock(file); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", parent, err)
	}
	return func() { file.Close() }, nil
}

// flock retries when a signal to the Go runtime interrupts the wait.
func flock(file *os.File) error {
	for {
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// make makes the directories, and takes from others what they should not have.
func (p pins) make() error {
	for _, dir := range []string{p.dir, filepath.Join(p.dir, "maps"), filepath.Join(p.dir, "links"), filepath.Join(p.dir, "next"), filepath.Join(p.dir, "programs")} {
		if err := os.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
			return privilege("make "+dir, err)
		}
		if err := errors.Join(os.Chown(dir, 0, 0), os.Chmod(dir, dirMode)); err != nil {
			return privilege("own "+dir, err)
		}
	}
	return nil
}

// loaded says whether there is anything.
func (p pins) loaded() (bool, error) {
	_, err := os.Stat(p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, privilege("look into "+p.dir, err)
}

// links are the names of all pinned links.
func (p pins) links() (names []string, err error) {
	entries, err := os.ReadDir(filepath.Join(p.dir, "links"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names, err
}

// remove removes everything, and with it every program: nothing else holds them.
func (p pins) remove() error { return os.RemoveAll(p.dir) }

// emptyNext removes what a load that was killed left before it was in its place.
func (p pins) emptyNext() error {
	entries, err := os.ReadDir(filepath.Join(p.dir, "next"))
	errs := []error{err}
	for _, entry := range entries {
		errs = append(errs, os.Remove(p.nextPin(entry.Name())))
	}
	return errors.Join(errs...)
}

// privilege turns a refusal of the kernel into one that says what is needed.
func privilege(what string, err error) error {
	if err == nil {
		return nil
	}
	// The verifier's answer to a program that it does not accept is EACCES, too, and no privilege helps.
	rejected := (*ebpf.VerifierError)(nil)
	isRejected := errors.As(err, &rejected)
	if lockdown() == "confidentiality" && (isRejected || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EINVAL)) {
		return &UnavailableError{what, err, "either this is not root with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN, or lockdown=confidentiality forbids it: " +
			"it allows no program that reads kernel memory by address"}
	}
	if isRejected || !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return &UnavailableError{what, err, "it needs root with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN"}
}
