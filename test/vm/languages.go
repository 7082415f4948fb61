// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Compilers and interpreters come on a disk of their own. In the initramfs their hundreds of megabytes would be copied
// at each boot; of a disk only what is used is read.

// languagesName names the disk by its packages and by what is done to them.
var languagesName = "languages-1-" + shortHash(fmt.Sprint(userlandSuite, languagePackages, languagesTrimmed, languageLinks))

// languageLinks are those that the packages' own scripts would have made (update-alternatives).
var languageLinks = map[string]string{
	"usr/bin/java":  "../lib/jvm/java-21-openjdk-amd64/bin/java",
	"usr/bin/javac": "../lib/jvm/java-21-openjdk-amd64/bin/javac",
}

const (
	languagesDisk  = "disk.squashfs"
	languagesID    = "offloadd-languages" // the serial number of the disk; 20 bytes at most
	languagesMount = "/languages"         // in the guest
)

// languages makes sure that the disk is cached, and returns its image.
func (f *fetcher) languages(ctx context.Context) (string, error) {
	image := f.cache.path(languagesName, languagesDisk)
	if f.cache.has(languagesName) {
		return image, nil
	}
	unlock, err := f.cache.lock(f.progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	if f.cache.has(languagesName) {
		return image, nil
	}
	err = f.withLists(ctx, func() error {
		f.progress.step("languages (%s)", strings.Join(languagePackages, ", "))
		return f.cache.build(languagesName, func(dir string) error { return f.buildLanguages(ctx, dir) })
	})
	if err != nil {
		return "", fmt.Errorf("make the disk of --languages: %w", err)
	}
	f.progress.done("python3 " + f.packageVersion(languagesName, "python3"))
	return image, nil
}

// buildLanguages unpacks the packages into a root directory, in which their own mksquashfs makes the image. It is not
// compressed: reading is cheap, and an emulated CPU decompresses slowly.
func (f *fetcher) buildLanguages(ctx context.Context, dir string) error {
	root := filepath.Join(dir, "root")
	tools := &toolchain{root: root}
	if err := f.unpackPackages(ctx, root, languagePackages); err != nil {
		return err
	}
	if err := completeToolchain(root); err != nil {
		return err
	}
	for link, target := range languageLinks {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			return err
		}
	}
	// An archive of loaded classes, which halves the start of each virtual machine of Java.
	if err := tools.run(ctx, "java", "-Xshare:dump"); err != nil {
		return err
	}
	for _, name := range languagesTrimmed {
		if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
			return err
		}
	}
	if err := tools.run(ctx, "mksquashfs", "/usr", "/etc", "/build/"+languagesDisk, "-keep-as-directory", "-all-root",
		"-no-progress", "-noI", "-noD", "-noF", "-noX"); err != nil {
		return err
	}
	return errors.Join(
		os.Rename(filepath.Join(root, "packages.json"), filepath.Join(dir, "packages.json")),
		os.Rename(filepath.Join(root, "build", languagesDisk), filepath.Join(dir, languagesDisk)),
		os.RemoveAll(root))
}

// addLanguages attaches the disk.
func (m *machine) addLanguages(image string) {
	m.spec.Languages = true
	m.hw.disks = append(m.hw.disks, disk{image: image, serial: languagesID})
}

// mountLanguages lays the disk below /usr, so that programs are where they belong. What the guest has already is
// preferred. Nobody writes to /usr from then on.
func mountLanguages() error {
	if err := mountDisk(languagesID, languagesMount); err != nil {
		return err
	}
	if err := unix.Mount("overlay", "/usr", "overlay", unix.MS_RDONLY, "lowerdir=/usr:"+languagesMount+"/usr"); err != nil {
		return fmt.Errorf("mount the disk's programs on /usr: %w", err)
	}
	return linkMissing(languagesMount+"/etc", "/etc")
}

// linkMissing makes a link in one directory for each entry of the other that it lacks.
func linkMissing(from, into string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		err := os.Symlink(filepath.Join(from, entry.Name()), filepath.Join(into, entry.Name()))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}
