// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A cpioWriter writes an initramfs: the "newc" format, as the kernel's initramfs-buffer-format.rst describes it. The
// kernel unpacks several archives written one after the other, so a run adds its files to images made before.
//
// We write it ourselves because the kernel needs parent directories before their contents, and the libraries leave
// that to their callers, which is most of the work.
type cpioWriter struct {
	out   io.Writer
	size  int64
	inode uint32
	seen  map[string]bool // directories already written
}

// A cpioFile is one entry. Its path has no leading slash.
type cpioFile struct {
	path     string
	mode     uint32 // with the file type, as in stat(2)
	uid, gid int
	size     int64
	body     io.Reader // size bytes; for a symbolic link, its target
}

const cpioTrailer = "TRAILER!!!"

func newCPIOWriter(out io.Writer) *cpioWriter {
	return &cpioWriter{out: out, seen: map[string]bool{".": true, "": true, "/": true}}
}

func (c *cpioWriter) writeString(name string, perm uint32, content string) error {
	return c.write(cpioFile{path: name, mode: unix.S_IFREG | perm, size: int64(len(content)),
		body: strings.NewReader(content)})
}

func (c *cpioWriter) writeLink(name, target string) error {
	return c.write(cpioFile{path: name, mode: unix.S_IFLNK | 0o777, size: int64(len(target)),
		body: strings.NewReader(target)})
}

func (c *cpioWriter) writeDir(name string) error {
	return c.write(cpioFile{path: name, mode: unix.S_IFDIR | 0o755})
}

// writeHostFile copies one file, directory (without its contents) or link of the host. Other kinds are left out.
func (c *cpioWriter) writeHostFile(name, hostPath string, info fs.FileInfo) error {
	perm := uint32(info.Mode().Perm())
	switch {
	case info.IsDir():
		return c.write(cpioFile{path: name, mode: unix.S_IFDIR | perm})
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(hostPath)
		if err != nil {
			return err
		}
		return c.writeLink(name, target)
	case info.Mode().IsRegular():
		file, err := os.Open(hostPath)
		if err != nil {
			return err
		}
		defer file.Close()
		return c.write(cpioFile{path: name, mode: unix.S_IFREG | perm, size: info.Size(), body: file})
	}
	return nil
}

// writeTree copies a file or a directory of the host with all it holds.
func (c *cpioWriter) writeTree(name, hostPath string) error {
	return filepath.WalkDir(hostPath, func(at string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if at == hostPath && info.Mode()&fs.ModeSymlink != 0 {
			// What was named is meant, not the link to it.
			if at, err = filepath.EvalSymlinks(at); err != nil {
				return err
			}
			return c.writeTree(name, at)
		}
		return c.writeHostFile(path.Join(name, strings.TrimPrefix(at, hostPath)), at, info)
	})
}

func (c *cpioWriter) write(file cpioFile) error {
	file.path = strings.TrimPrefix(path.Clean("/"+file.path), "/")
	if file.mode&unix.S_IFMT == unix.S_IFDIR {
		if c.seen[file.path] {
			return nil
		}
		c.seen[file.path] = true
	}
	if parent := path.Dir(file.path); !c.seen[parent] {
		if err := c.writeDir(parent); err != nil {
			return err
		}
	}
	return c.writeEntry(file)
}

func (c *cpioWriter) writeEntry(file cpioFile) error {
	if file.size > 1<<32-1 {
		return fmt.Errorf("%s: %d bytes are more than an initramfs entry can hold (4 GiB)", file.path, file.size)
	}
	c.inode++
	header := "070701"
	for _, field := range []uint32{c.inode, file.mode, uint32(file.uid), uint32(file.gid), 1, 0, uint32(file.size),
		0, 0, 0, 0, uint32(len(file.path) + 1), 0} {
		header += fmt.Sprintf("%08x", field)
	}
	if err := c.emit(strings.NewReader(header+file.path+"\x00"), int64(len(header)+len(file.path)+1)); err != nil {
		return err
	}
	if file.size == 0 {
		return nil
	}
	if err := c.emit(file.body, file.size); err != nil {
		return fmt.Errorf("%s: %w", file.path, err)
	}
	return nil
}

// emit copies exactly size bytes and pads to the four bytes every part of the format is aligned to.
func (c *cpioWriter) emit(body io.Reader, size int64) error {
	if _, err := io.CopyN(c.out, body, size); err != nil {
		return err
	}
	c.size += size
	return c.pad(4)
}

func (c *cpioWriter) pad(align int64) error {
	missing := (align - c.size%align) % align
	_, err := c.out.Write(make([]byte, missing))
	c.size += missing
	return err
}

// close writes the trailer. Another archive may follow.
func (c *cpioWriter) close() error {
	if err := c.writeEntry(cpioFile{path: cpioTrailer}); err != nil {
		return err
	}
	return c.pad(512)
}
