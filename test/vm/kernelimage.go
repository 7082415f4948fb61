// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// kernelFormat names the way kernels are cached, with the lists of modules in it, so that a change builds them anew.
var kernelFormat = "1-" + shortHash(fmt.Sprint(loadedModules, loadableModules))

// buildKernel downloads a kernel and caches its image and an initramfs with the wanted modules.
func (f *fetcher) buildKernel(ctx context.Context, k *kernel) error {
	name := filepath.Join("kernels", kernelFormat, k.Release)
	k.dir = f.cache.path(name)
	if f.cache.has(name, "kernel.json") {
		_, err := readJSON(filepath.Join(k.dir, "kernel.json"), k)
		return err
	}
	if err := f.buildHostTools(ctx); err != nil { // for xz
		return err
	}
	f.progress.step("kernel %s", k.Release)
	err := f.cache.build(name, func(dir string) error {
		debs := filepath.Join(dir, "debs")
		if err := f.downloadKernel(ctx, k, debs); err != nil {
			return err
		}
		if err := f.unpackKernel(ctx, k, debs, dir); err != nil {
			return err
		}
		if err := os.RemoveAll(debs); err != nil {
			return err
		}
		return writeJSON(filepath.Join(dir, "kernel.json"), k)
	})
	if err != nil {
		return fmt.Errorf("fetch kernel %s: %w", k.Release, err)
	}
	f.progress.done(k.Version)
	return nil
}

// downloadKernel gets the image package and those that were split from it (from 7.3 on: binary, modules, base). Their
// other dependencies, which make an initramfs on a real system, are not needed.
func (f *fetcher) downloadKernel(ctx context.Context, k *kernel, dir string) error {
	known, err := f.apt.show(ctx, k.Package)
	if err != nil {
		return err
	}
	packages := []string{k.Package + "=" + k.Version}
	for _, one := range known {
		if one["Version"] != k.Version {
			continue
		}
		for _, name := range one.pinnedDependencies() {
			packages = append(packages, name+"="+k.Version)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return f.apt.download(ctx, dir, packages)
}

// unpackKernel writes vmlinuz and modules.cpio.
func (f *fetcher) unpackKernel(ctx context.Context, k *kernel, debs, dir string) error {
	set := &moduleSet{files: map[string]*moduleFile{}, builtin: map[string]bool{}}
	set.expand = func(file *moduleFile) error { return f.expandModule(ctx, file) }
	var vmlinuz []byte
	err := readDebs(ctx, debs, func(name string, header *tar.Header, body io.Reader) error {
		if header.Typeflag != tar.TypeReg {
			return nil
		}
		var err error
		base := path.Base(name)
		switch {
		case base == "vmlinuz-"+k.Release, name == "usr/lib/modules/"+k.Release+"/vmlinuz":
			vmlinuz, err = io.ReadAll(body)
		case strings.HasSuffix(base, ".ko"), strings.HasSuffix(base, ".ko.xz"):
			file := &moduleFile{path: strings.TrimSuffix(strings.TrimPrefix(name, "usr/lib/modules/"+k.Release+"/"), ".xz")}
			file.packed, err = io.ReadAll(body)
			set.files[moduleName(base)] = file
		case base == "modules.builtin":
			var list []byte
			list, err = io.ReadAll(body)
			set.builtin = parseBuiltin(string(list))
		}
		return err
	})
	if err != nil {
		return err
	}
	if vmlinuz == nil || len(set.files) == 0 {
		return fmt.Errorf("the packages of %s hold no image or no modules; Debian may have split them again", k.Package)
	}
	if err := os.WriteFile(filepath.Join(dir, "vmlinuz"), vmlinuz, 0o644); err != nil {
		return err
	}
	return k.writeModules(set, filepath.Join(dir, "modules.cpio"), filepath.Join(dir, "tls.cpio"))
}

// writeModules packs the modules, the TLS one into an archive of its own, and sets k.Modules.
func (k *kernel) writeModules(set *moduleSet, file, tlsFile string) error {
	load, err := set.order(k.Release, loadedModules)
	if err != nil {
		return err
	}
	all, err := set.order(k.Release, slices.Concat(loadedModules, optional(loadableModules)))
	if err != nil {
		return err
	}
	root := "usr/lib/modules/" + k.Release
	for _, name := range load {
		k.Modules = append(k.Modules, "/"+root+"/"+set.files[name].path)
	}
	withoutTLS := slices.DeleteFunc(slices.Clone(all), func(name string) bool { return name == tlsModule })
	if err := set.writeArchive(file, root, withoutTLS, withoutTLS); err != nil {
		return err
	}
	return set.writeArchive(tlsFile, root, []string{tlsModule}, all)
}

// optional makes a list that no series need have in full.
func optional(modules []module) []module {
	modules = slices.Clone(modules)
	for i := range modules {
		modules[i].optional = true
	}
	return modules
}

// writeArchive packs some modules, and the tables for all that are listed. A later archive replaces an earlier one's
// tables, so the one with the TLS module lists everything and the other knows nothing of it.
func (s *moduleSet) writeArchive(file, root string, packed, listed []string) error {
	dependencies, err := s.dependencyFile(listed)
	if err != nil {
		return err
	}
	return writeArchive(file, func(archive *cpioWriter) error {
		for _, name := range packed {
			if err := archive.writeString(root+"/"+s.files[name].path, 0o644, string(s.files[name].image)); err != nil {
				return err
			}
		}
		for name, content := range map[string]string{
			"modules.dep":     dependencies,
			"modules.alias":   s.aliasFile(listed),
			"modules.builtin": builtinFile(s.builtin),
		} {
			if err := archive.writeString(root+"/"+name, 0o644, content); err != nil {
				return err
			}
		}
		return nil
	})
}

// expandModule decompresses a module with the cached xz, and reads its modinfo.
func (f *fetcher) expandModule(ctx context.Context, file *moduleFile) error {
	file.image = file.packed
	if bytes.HasPrefix(file.packed, []byte("\xfd7zXZ")) {
		command, err := f.hostTool(ctx, "usr/bin/xz", "--decompress", "--stdout")
		if err != nil {
			return err
		}
		command.Stdin = bytes.NewReader(file.packed)
		if file.image, err = command.Output(); err != nil {
			return fmt.Errorf("xz: %w%s", err, stderrOf(err))
		}
	}
	return file.modinfo()
}

// writeArchive makes one initramfs file.
func writeArchive(file string, fill func(*cpioWriter) error) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	archive := newCPIOWriter(out)
	if err := fill(archive); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(file), err)
	}
	if err := archive.close(); err != nil {
		return err
	}
	return out.Close()
}

// hostTool is a program of the host packages, run with the libraries and the loader it came with: nothing is installed
// into the system, and the host's C library may be older.
func (f *fetcher) hostTool(ctx context.Context, program string, arguments ...string) (*exec.Cmd, error) {
	root, err := f.hostRoot()
	if err != nil {
		return nil, err
	}
	libraries := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	command := exec.CommandContext(ctx, filepath.Join(libraries, "ld-linux-x86-64.so.2"),
		append([]string{"--library-path", libraries, filepath.Join(root, program)}, arguments...)...)
	return command, nil
}
