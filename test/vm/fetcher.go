// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// A fetcher fills the cache: kernels, the guest's userland, and the programs that run on the host.
type fetcher struct {
	cache    *cache
	apt      *apt
	progress *progress
}

func newFetcher() (*fetcher, error) {
	cache, err := openCache()
	if err != nil {
		return nil, err
	}
	progress := newProgress()
	return &fetcher{
		cache:    cache,
		progress: progress,
		apt:      &apt{dir: cache.path("apt"), suites: suites, target: userlandSuite, progress: progress},
	}, nil
}

// images are all that a virtual machine is started from.
type images struct {
	kernel   *kernel
	userland string // a directory with userland.cpio and paths.json
}

// images makes sure everything for one kernel is cached.
func (f *fetcher) images(ctx context.Context, word string) (*images, error) {
	if err := f.base(ctx); err != nil {
		return nil, err
	}
	k, err := f.kernel(ctx, word)
	if err != nil {
		return nil, err
	}
	return &images{kernel: k, userland: f.cache.path(userlandName)}, nil
}

// base makes sure that what all kernels need is cached.
func (f *fetcher) base(ctx context.Context) error {
	if f.cache.has(hostName) && f.cache.has(userlandName) {
		return nil
	}
	unlock, err := f.cache.lock(f.progress)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := f.kernelIndex(ctx, !f.haveLists()); err != nil {
		return err
	}
	if err := f.buildHostTools(ctx); err != nil {
		return err
	}
	return f.buildUserland(ctx)
}

func (f *fetcher) haveLists() bool {
	lists, _ := filepath.Glob(f.cache.path("apt", "lists", "*Packages*")) // the pattern is sound
	return len(lists) > 0 && f.cache.has("apt", "apt.conf")
}

// hostName names the host's tools by their packages.
var hostName = "host-1-" + shortHash(userlandSuite+strings.Join(hostPackages, " "))

// buildHostTools unpacks QEMU and xz, with all their libraries, below the cache. The caller holds the lock.
func (f *fetcher) buildHostTools(ctx context.Context) error {
	if f.cache.has(hostName) {
		return nil
	}
	f.progress.step("host tools (%s)", strings.Join(hostPackages, ", "))
	err := f.cache.build(hostName, func(dir string) error { return f.unpackPackages(ctx, dir, hostPackages) })
	if err != nil {
		return fmt.Errorf("fetch host tools: %w", err)
	}
	f.progress.done(f.packageVersion(hostName, "qemu-system-x86"))
	return nil
}

// unpackPackages unpacks packages with all their dependencies, and lists them in packages.json.
func (f *fetcher) unpackPackages(ctx context.Context, dir string, packages []string) error {
	return unpackPackages(ctx, f.apt, dir, packages)
}

func unpackPackages(ctx context.Context, from *apt, dir string, packages []string) error {
	debs := filepath.Join(dir, "debs")
	if err := from.install(ctx, debs, packages); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, "packages.json"), debVersions(debs)); err != nil {
		return err
	}
	if err := unpackDebs(ctx, debs, dir); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(debs), os.RemoveAll(filepath.Join(dir, "usr/share/doc")),
		os.RemoveAll(filepath.Join(dir, "usr/share/locale")), os.RemoveAll(filepath.Join(dir, "usr/share/man")))
}

func (f *fetcher) hostRoot() (string, error) {
	if !f.cache.has(hostName) {
		return "", errors.New("the host's tools are not in the cache; run: go run ./test/vm fetch")
	}
	return f.cache.path(hostName), nil
}

// packageVersion looks a package up in the list that each image carries.
func (f *fetcher) packageVersion(image, name string) string {
	var packages []string
	if _, err := readJSON(f.cache.path(image, "packages.json"), &packages); err != nil {
		return err.Error()
	}
	for _, one := range packages {
		if version, found := strings.CutPrefix(one, name+" "); found {
			return version
		}
	}
	return "unknown version"
}

func shortHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:6])
}
