// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// userlandName names the guest's programs by their packages and by what is done to them.
var userlandName = "userland-1-" + shortHash(fmt.Sprint(userlandSuite, guestPackages, userlandTrimmed,
	userlandFiles, userlandLinks))

// userlandFiles are the files a base system would have. Tests may run as the user offloadd, the daemon's own.
var userlandFiles = map[string]string{
	"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n" +
		"offloadd:x:990:990:offloadd:/nonexistent:/usr/sbin/nologin\n" +
		"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"etc/group":         "root:x:0:\noffloadd:x:990:\nnogroup:x:65534:\n",
	"etc/hosts":         "127.0.0.1 localhost\n::1 localhost\n",
	"etc/hostname":      guestHostname + "\n",
	"etc/resolv.conf":   "",
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}

var userlandLinks = map[string]string{
	"bin":      "usr/bin",
	"sbin":     "usr/sbin",
	"lib":      "usr/lib",
	"lib64":    "usr/lib64",
	"etc/mtab": "/proc/self/mounts",
}

// A userland is the unpacked packages, kept in memory while the image is made.
type userland struct {
	files map[string]cpioFile
	data  map[string][]byte
}

// buildUserland caches userland.cpio, and the list of its paths. The caller holds the lock.
func (f *fetcher) buildUserland(ctx context.Context) error {
	if f.cache.has(userlandName) {
		return nil
	}
	f.progress.step("guest userland (%s)", strings.Join(guestPackages, ", "))
	err := f.cache.build(userlandName, func(dir string) error {
		debs := filepath.Join(dir, "debs")
		if err := f.apt.install(ctx, debs, guestPackages); err != nil {
			return err
		}
		image := &userland{files: map[string]cpioFile{}, data: map[string][]byte{}}
		if err := readDebs(ctx, debs, image.add); err != nil {
			return err
		}
		if err := image.complete(ctx, dir); err != nil {
			return err
		}
		if err := writeJSON(filepath.Join(dir, "packages.json"), debVersions(debs)); err != nil {
			return err
		}
		if err := writeJSON(filepath.Join(dir, "paths.json"), image.paths()); err != nil {
			return err
		}
		if err := writeArchive(filepath.Join(dir, "userland.cpio"), image.write); err != nil {
			return err
		}
		return os.RemoveAll(debs)
	})
	if err != nil {
		return fmt.Errorf("fetch guest userland: %w", err)
	}
	f.progress.done("openssl " + f.packageVersion(userlandName, "openssl"))
	return nil
}

// add takes one file of a package.
func (u *userland) add(name string, header *tar.Header, body io.Reader) error {
	if name == "" || slices.ContainsFunc(userlandTrimmed, func(prefix string) bool {
		return strings.HasPrefix(name+"/", prefix)
	}) {
		return nil
	}
	file := cpioFile{path: name, uid: header.Uid, gid: header.Gid, mode: uint32(header.Mode) & 0o7777}
	switch header.Typeflag {
	case tar.TypeDir:
		file.mode |= unix.S_IFDIR
	case tar.TypeSymlink:
		file.mode |= unix.S_IFLNK
		u.data[name] = []byte(header.Linkname)
	case tar.TypeLink:
		target := mergedUsr(header.Linkname)
		file.mode, u.data[name] = u.files[target].mode, u.data[target]
	case tar.TypeReg:
		file.mode |= unix.S_IFREG
		data, err := io.ReadAll(body)
		if err != nil {
			return err
		}
		u.data[name] = data
	default:
		return fmt.Errorf("%s: files of type %q are not handled", name, header.Typeflag)
	}
	u.files[name] = file
	return nil
}

// complete adds what a base system and the packages' own scripts would have made.
func (u *userland) complete(ctx context.Context, dir string) error {
	for name, content := range userlandFiles {
		u.files[name], u.data[name] = cpioFile{path: name, mode: unix.S_IFREG | 0o644}, []byte(content)
	}
	for name, target := range userlandLinks {
		u.link(name, target)
	}
	applets, err := u.busyboxApplets(ctx, dir)
	if err != nil {
		return err
	}
	for _, applet := range applets {
		// A package's own program is preferred, wherever it lies.
		name := path.Base(applet)
		if _, taken := u.files["usr/bin/"+name]; taken {
			continue
		}
		if _, taken := u.files["usr/sbin/"+name]; !taken {
			u.link(mergedUsr(applet), "/usr/bin/busybox")
		}
	}
	return nil
}

func (u *userland) link(name, target string) {
	u.files[name], u.data[name] = cpioFile{path: name, mode: unix.S_IFLNK | 0o777}, []byte(target)
}

// busyboxApplets asks busybox itself, which is static and so runs here.
func (u *userland) busyboxApplets(ctx context.Context, dir string) ([]string, error) {
	program := filepath.Join(dir, "busybox")
	if err := os.WriteFile(program, u.data["usr/bin/busybox"], 0o755); err != nil {
		return nil, err
	}
	defer os.Remove(program)
	output, err := exec.CommandContext(ctx, program, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("ask busybox for its applets: %w%s", err, stderrOf(err))
	}
	return strings.Fields(string(output)), nil
}

func (u *userland) paths() []string { return slices.Sorted(maps.Keys(u.files)) }

func (u *userland) write(archive *cpioWriter) error {
	for _, name := range u.paths() {
		file := u.files[name]
		file.size, file.body = int64(len(u.data[name])), strings.NewReader(string(u.data[name]))
		if err := archive.write(file); err != nil {
			return err
		}
	}
	return nil
}

// A pathList is the sorted paths of the userland.
type pathList []string

// has says whether the guest has this absolute path by itself.
func (p pathList) has(name string) bool {
	_, found := slices.BinarySearch(p, mergedUsr(name))
	return found
}
