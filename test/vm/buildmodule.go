// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// guestModuleDir is where modules that were built for the tests lie in the guest. They are not loaded: the test that
// wants one finds this path in OFFLOADD_TEST_MODULES.
const (
	guestModuleDir      = "/usr/lib/offloadd-vm/modules"
	guestModuleVariable = ourPrefix + "TEST_MODULES"
)

// buildFormat counts the ways modules were built, so that a change builds them anew.
const buildFormat = "1"

// A moduleSource is a directory with a Kbuild file, which makes a module of the directory's name.
type moduleSource struct {
	name   string
	files  map[string][]byte
	digest string
}

// readModuleSource reads what kbuild and the compiler read. A module that somebody built there by hand is not meant.
func readModuleSource(dir string) (*moduleSource, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	source := &moduleSource{name: filepath.Base(dir), files: map[string][]byte{}}
	entries, err := os.ReadDir(dir) // sorted, and so the digest is always the same
	if err != nil {
		return nil, fmt.Errorf("--module: %w", err)
	}
	sum := sha256.New()
	for _, entry := range entries {
		name := entry.Name()
		if name != "Kbuild" && path.Ext(name) != ".h" && path.Ext(name) != ".c" || strings.HasSuffix(name, ".mod.c") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("--module: %w", err)
		}
		source.files[name] = text
		fmt.Fprintf(sum, "%s %d\n%s", name, len(text), text)
	}
	if source.files["Kbuild"] == nil {
		return nil, fmt.Errorf("--module %s: no file named Kbuild in it, so it is not the source of a kernel module", dir)
	}
	source.digest = hex.EncodeToString(sum.Sum(nil)[:6])
	return source, nil
}

// modules builds the sources for one kernel and returns them as files for the guest.
func (f *fetcher) modules(ctx context.Context, k *kernel, dirs []string) (files []filePair, err error) {
	for _, dir := range dirs {
		source, err := readModuleSource(dir)
		if err != nil {
			return nil, err
		}
		built, err := f.module(ctx, k, source)
		if err != nil {
			return nil, err
		}
		files = append(files, filePair{host: built, guest: path.Join(guestModuleDir, source.name+".ko")})
	}
	return files, nil
}

// module returns the built module, from the cache if it is there: named by the kernel, the source and the toolchain.
func (f *fetcher) module(ctx context.Context, k *kernel, source *moduleSource) (string, error) {
	name := filepath.Join("modules", k.Release+"_"+k.Version, source.name+"-"+buildFormat+"-"+source.digest+shortHash(toolchainName))
	built := f.cache.path(name, source.name+".ko")
	if fileExists(built) {
		return built, nil
	}
	unlock, err := f.cache.lock(f.progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	if fileExists(built) {
		return built, nil
	}
	tools, err := f.toolchain(ctx, toolchainPackages)
	if err != nil {
		return "", fmt.Errorf("%w (only --module needs it)", err)
	}
	headers, err := f.headers(ctx, tools, k)
	if err != nil {
		return "", err
	}
	f.progress.step("module %s for kernel %s", source.name, k.Release)
	err = f.cache.build(name, func(dir string) error { return tools.build(ctx, source, headers, dir) })
	if err != nil {
		return "", fmt.Errorf("build module %s for kernel %s: %w", source.name, k.Release, err)
	}
	f.progress.done(source.digest)
	return built, nil
}

// build compiles the source and leaves the module in a directory.
func (t *toolchain) build(ctx context.Context, source *moduleSource, headers, into string) error {
	place, err := os.MkdirTemp(filepath.Join(t.root, "build"), source.name+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(place)
	for name, text := range source.files {
		if err := os.WriteFile(filepath.Join(place, name), text, 0o644); err != nil {
			return err
		}
	}
	inside := "/build/" + filepath.Base(place)
	// BTF would need pahole and the kernel's own; the compiler's name varies with the kernel's age; and the
	// architectures are asked of dpkg, which is not in the toolchain.
	if err := t.run(ctx, "make", "-C", headers, "M="+inside, "CC=gcc-14", "CONFIG_DEBUG_INFO_BTF_MODULES=",
		"DEB_BUILD_ARCH=amd64", "DEB_HOST_ARCH=amd64", "modules"); err != nil {
		return err
	}
	module, err := os.ReadFile(filepath.Join(place, source.name+".ko"))
	if err != nil {
		return errors.Join(errors.New("kbuild made no module of the directory's name"), err)
	}
	return os.WriteFile(filepath.Join(into, source.name+".ko"), module, 0o644)
}

// addModules puts built modules into the guest, and tells the command where.
func (m *machine) addModules(built []filePair) {
	if len(built) == 0 {
		return
	}
	m.files.put = append(m.files.put, built...)
	m.spec.Env = lastWins(append(m.spec.Env, guestModuleVariable+"="+guestModuleDir))
}
