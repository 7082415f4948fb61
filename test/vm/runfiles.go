// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// runFiles are the files that go into the guest for one run, and those that come back.
type runFiles struct {
	put      []filePair
	dirs     []string // to be made in the guest
	tree     string   // the working directory, packed within limits
	get      []filePair
	received map[int]bool // numbers of get that arrived

	archive *io.PipeWriter // to the goroutine that unpacks what comes back
	done    chan error
}

type filePair struct {
	host, guest string
	optional    bool
}

// A working directory is packed for its testdata. These bound what a mistake can cost, like running in a home.
const (
	treeFileLimit = 16 << 20
	treeLimit     = 128 << 20
)

// initrd is everything the kernel unpacks, in memory: the cached images and then this run's files. Archives simply
// follow each other; uncompressed ones are unpacked fastest by an emulated CPU.
func (m *machine) initrd() (*os.File, error) {
	fd, err := unix.MemfdCreate("initrd", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the initramfs: %w", err)
	}
	file := os.NewFile(uintptr(fd), "initrd")
	if err := m.fillInitrd(file); err != nil {
		file.Close()
		return nil, fmt.Errorf("make the initramfs: %w", err)
	}
	return file, nil
}

func (m *machine) fillInitrd(out io.Writer) error {
	parts := []string{filepath.Join(m.images.userland, "userland.cpio"), m.images.kernel.modulesArchive()}
	for _, module := range m.spec.Modules {
		if moduleName(module) == tlsModule {
			parts = append(parts, m.images.kernel.tlsArchive())
		}
	}
	for _, part := range parts {
		file, err := os.Open(part)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, file)
		file.Close()
		if err != nil {
			return err
		}
	}
	archive := newCPIOWriter(out)
	if err := m.packRun(archive); err != nil {
		return err
	}
	return archive.close()
}

// packRun adds this program as init, the task, and the run's files.
func (m *machine) packRun(archive *cpioWriter) error {
	// By its link, as the file may be gone: go run removes it when it is interrupted.
	if err := archive.writeTree(guestInitPath, "/proc/self/exe"); err != nil {
		return err
	}
	spec, err := json.Marshal(m.spec)
	if err != nil {
		return err
	}
	if err := archive.writeString(guestSpecPath, 0o600, string(spec)); err != nil {
		return err
	}
	return m.files.pack(archive)
}

func (r *runFiles) pack(archive *cpioWriter) error {
	for _, dir := range r.dirs {
		if err := archive.writeDir(dir); err != nil {
			return err
		}
	}
	if r.tree != "" {
		if err := packTree(archive, r.tree); err != nil {
			return err
		}
	}
	for _, file := range r.put {
		if err := archive.writeTree(file.guest, file.host); err != nil {
			return err
		}
	}
	return nil
}

// packTree copies a working directory, without version control, and without files that are no test's data.
func packTree(archive *cpioWriter, root string) error {
	packed := int64(0)
	return filepath.WalkDir(root, func(at string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && entry.Name() == ".git" {
			return filepath.SkipDir
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) || (err == nil && info.Mode().IsRegular() && info.Size() > treeFileLimit) {
			return nil
		}
		if err != nil {
			return err
		}
		if packed += info.Size(); packed > treeLimit {
			return fmt.Errorf("the working directory %s holds more than %d MiB; start in a smaller one, or use --no-dir",
				root, treeLimit>>20)
		}
		return archive.writeHostFile(at, at, info)
	})
}

// receive takes a piece of the archive that comes back.
func (r *runFiles) receive(piece []byte) error {
	if r.archive == nil {
		reader, writer := io.Pipe()
		r.archive, r.done, r.received = writer, make(chan error, 1), map[int]bool{}
		go func() {
			err := readTar(reader, r.unpack)
			if err == nil {
				_, err = io.Copy(io.Discard, reader) // the padding at the end
			}
			reader.CloseWithError(err)
			r.done <- err
		}()
	}
	_, err := r.archive.Write(piece)
	return err
}

// unpack writes one file. Its name begins with the number of the wanted path. The guest is not trusted to stay below
// it.
func (r *runFiles) unpack(header *tar.Header, body io.Reader) error {
	first, rest, _ := strings.Cut(strings.TrimSuffix(header.Name, "/"), "/")
	number, err := strconv.Atoi(first)
	if err != nil || number < 0 || number >= len(r.get) || (rest != "" && !filepath.IsLocal(rest)) {
		return fmt.Errorf("the guest sent a file named %q, which was not asked for", header.Name)
	}
	r.received[number] = true
	place := filepath.Join(r.get[number].host, rest)
	if header.Typeflag == tar.TypeDir {
		return os.MkdirAll(place, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(place, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, fs.FileMode(header.Mode).Perm())
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.Copy(file, body); err != nil {
		return err
	}
	return file.Close()
}

// finishGets waits until all is written, and complains about what did not come.
func (r *runFiles) finishGets() error {
	if r.archive != nil {
		r.archive.Close()
		if err := <-r.done; err != nil {
			return fmt.Errorf("fetch files from the guest: %w", err)
		}
	}
	var missing []error
	for number, file := range r.get {
		if !r.received[number] && !file.optional {
			missing = append(missing, fmt.Errorf("--get %s: the guest has no such file", file.guest))
		}
	}
	return errors.Join(missing...)
}

// wanted are the guest's paths of get.
func (r *runFiles) wanted() (paths []string) {
	for _, file := range r.get {
		paths = append(paths, file.guest)
	}
	return paths
}

// parsePair reads FROM[:TO]. The guest's path must be absolute; without one it is the host's.
func parsePut(value string) (filePair, error) {
	host, guest, found := strings.Cut(value, ":")
	host, err := filepath.Abs(host)
	if err != nil {
		return filePair{}, err
	}
	if !found {
		guest = host
	}
	if !filepath.IsAbs(guest) {
		return filePair{}, fmt.Errorf("--file %s: the guest's path must be absolute", value)
	}
	if !fileExists(host) {
		return filePair{}, fmt.Errorf("--file %s: no such file on the host", value)
	}
	return filePair{host: host, guest: guest}, nil
}

// parseGet reads GUESTPATH:HOSTPATH.
func parseGet(value string) (filePair, error) {
	guest, host, found := strings.Cut(value, ":")
	if !found || !filepath.IsAbs(guest) || host == "" {
		return filePair{}, fmt.Errorf("--get %s: want GUESTPATH:HOSTPATH, the guest's absolute", value)
	}
	host, err := filepath.Abs(host)
	return filePair{host: host, guest: guest}, err
}
