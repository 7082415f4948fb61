// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
)

// Open opens the ledger at path for the daemon's start with this instance, and
// makes file and directory if there are none.
func Open(path string, instance blob.Instance, log *slog.Logger) (*Ledger, error) {
	wrap := func(err error) error { return fmt.Errorf("ledger %s: %w", path, err) }
	h, err := thisBoot()
	if err != nil {
		return nil, wrap(err)
	}
	d, err := openDisk(path)
	if err != nil {
		return nil, wrap(err)
	}
	l := &Ledger{store: d, header: h, instance: instance, alive: liveSockets, now: time.Now, log: log}
	err = l.open()
	if errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("%w; keys that it no longer names may be installed in sockets that live: end the applications, then remove the file", err)
	}
	if err != nil {
		d.close()
		return nil, wrap(err)
	}
	return l, nil
}

// disk is the file, and beside it one that is locked: the ledger itself is replaced
// now and then, and a lock goes with the replaced file.
type disk struct {
	path       string
	file, lock *os.File
}

const openFlags = os.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK // with NONBLOCK, opening a FIFO does not wait

func openDisk(path string) (*disk, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := own(os.Stat(dir)); err != nil {
		return nil, fmt.Errorf("directory %s: %w", dir, err)
	}
	lock, err := os.OpenFile(path+".lock", openFlags|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	d := &disk{path: path, lock: lock}
	// The lock ends with this process, however it ends: descriptors are close-on-exec.
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%w; stop it, or give this one a ledger of its own (--ledger)", ErrHeld)
		return nil, errors.Join(err, d.close())
	} else if err != nil {
		return nil, errors.Join(fmt.Errorf("lock: %w", err), d.close())
	}
	return d, nil
}

// own checks that nobody else may change what info describes.
func own(info os.FileInfo, err error) error {
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if owner != 0 && owner != uint32(os.Geteuid()) || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%w: mode %v, owner %d; others must not be able to write to it", ErrForeign, info.Mode(), owner)
	}
	return nil
}

func (d *disk) load() ([]byte, error) {
	file, err := os.OpenFile(d.path, openFlags, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d.file = file
	info, err := file.Stat()
	if err := own(info, err); err != nil {
		return nil, err
	}
	const most = headerSize + (maxRecords+1)*recordSize
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("%w: mode %v, %d bytes, at most %d are possible", ErrCorrupt, info.Mode(), info.Size(), most)
	}
	b := make([]byte, info.Size())
	_, err = io.ReadFull(file, b)
	return b, err
}

func (d *disk) write(b []byte, at int64) error {
	_, err := d.file.WriteAt(b, at)
	return err
}

func (d *disk) truncate(size int64) error { return d.file.Truncate(size) }

// replace writes a file beside and renames it. Whoever dies before the rename leaves
// the old file whole; what lies beside is overwritten by the next.
func (d *disk) replace(b []byte) error {
	beside := d.path + ".new"
	if err := os.Remove(beside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	file, err := os.OpenFile(beside, openFlags|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = file.Write(b); err == nil {
		err = os.Rename(beside, d.path)
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	if d.file != nil {
		d.file.Close()
	}
	d.file = file
	return nil
}

func (d *disk) close() error {
	var err error
	if d.file != nil {
		err = d.file.Close()
	}
	return errors.Join(err, d.lock.Close())
}
