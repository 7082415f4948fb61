// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A toolchain is a root directory with a compiler and all that it calls. Its programs run in there, so what they make
// does not depend on the host.
//
// The one for modules serves all kernels. The programs of Debian's kernel packages run in it too: those of the newest
// kernel want a newer C library than the host may have. Headers of kernels lie below it, in kernels/<release>, as they
// must be within the same root.
type toolchain struct{ root string }

// toolchainName names the toolchain for modules by its packages.
var toolchainName = nameToolchain(toolchainPackages)

func nameToolchain(packages []string) string {
	return "toolchain-1-" + shortHash(userlandSuite+strings.Join(packages, " "))
}

// toolchain makes sure that the one of these packages is cached. The compiler's package comes first. The caller holds
// the lock.
func (f *fetcher) toolchain(ctx context.Context, packages []string) (*toolchain, error) {
	name := nameToolchain(packages)
	tools := &toolchain{root: f.cache.path(name)}
	if f.cache.has(name) {
		return tools, nil
	}
	err := f.withLists(ctx, func() error {
		f.progress.step("toolchain (%s)", strings.Join(packages, ", "))
		return f.cache.build(name, func(dir string) error {
			if err := f.unpackPackages(ctx, dir, packages); err != nil {
				return err
			}
			return completeToolchain(dir)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("fetch a toolchain: %w", err)
	}
	f.progress.done(packages[0] + " " + f.packageVersion(name, packages[0]))
	return tools, nil
}

// completeToolchain makes what a base system and the packages' own scripts would have made, and where to mount.
func completeToolchain(root string) error {
	for _, name := range []string{"usr/lib64", "dev", "proc", "tmp", "build"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64",
		"usr/bin/awk": "mawk", "dev/fd": "/proc/self/fd"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(root, "dev/null"), nil, 0o644)
}

// enterRoot mounts what compilers need and runs "$@" in the root directory that comes first. It runs in name spaces of
// its own, so nothing is left mounted, and nothing running, however it ends.
const enterRoot = `mount --bind /dev/null "$1/dev/null" && mount -t proc proc "$1/proc" && exec chroot "$@"`

// run executes a program of the toolchain. Its output belongs into the error only.
func (t *toolchain) run(ctx context.Context, program string, arguments ...string) error {
	if os.Geteuid() != 0 {
		return errors.New("the compiler runs in a root directory of its own, and for chroot this must be root")
	}
	command := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "--pid", "--fork", "--kill-child",
		"sh", "-c", enterRoot, "sh", t.root, program}, arguments...)...)
	command.Env = []string{"PATH=" + guestSearch, "LC_ALL=C"}
	output, err := command.CombinedOutput()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s: %w:\n%s", program, err, output)
	}
	return nil
}

// headersOf are the packages from which modules of a kernel are built, all of the kernel's own version.
func headersOf(k *kernel, shown []stanza) ([]string, error) {
	name := "linux-headers-" + k.Release
	for _, one := range shown {
		if one["Package"] != name || one["Version"] != k.Version {
			continue
		}
		packages := []string{name + "=" + k.Version}
		for dependency := range strings.SplitSeq(one["Depends"], ", ") {
			needed, _, _ := strings.Cut(dependency, " ")
			if strings.HasPrefix(needed, "linux-headers-") || strings.HasPrefix(needed, "linux-kbuild-") {
				packages = append(packages, needed+"="+k.Version)
			}
		}
		return packages, nil
	}
	return nil, fmt.Errorf("the mirror does not have %s=%s, without which no module for kernel %s can be built; "+
		"for a newer kernel, run: go run ./test/vm fetch", name, k.Version, k.Release)
}

// headers makes sure that the headers of a kernel are in the toolchain, and returns the directory to build with, as
// seen in there. The caller holds the lock.
func (f *fetcher) headers(ctx context.Context, tools *toolchain, k *kernel) (string, error) {
	inside := filepath.Join("/kernels", k.Release)
	place := filepath.Join(inside, "usr/src/linux-headers-"+k.Release)
	name := filepath.Join(toolchainName, inside)
	if f.cache.has(name) {
		return place, nil
	}
	err := f.withLists(ctx, func() error {
		f.progress.step("headers of kernel %s", k.Release)
		return f.cache.build(name, func(dir string) error { return f.unpackHeaders(ctx, k, dir, inside) })
	})
	if err != nil {
		return "", fmt.Errorf("fetch headers of kernel %s, which only --module needs: %w", k.Release, err)
	}
	f.progress.done(k.Version)
	return place, nil
}

// unpackHeaders fills a directory that is seen in the toolchain as inside.
func (f *fetcher) unpackHeaders(ctx context.Context, k *kernel, dir, inside string) error {
	shown, err := f.apt.show(ctx, "linux-headers-"+k.Release)
	if err != nil {
		return err
	}
	packages, err := headersOf(k, shown)
	if err != nil {
		return err
	}
	if err := f.apt.download(ctx, dir, packages); err != nil {
		return err
	}
	if err := unpackDebs(ctx, dir, dir); err != nil {
		return err
	}
	return moveMakefile(filepath.Join(dir, "usr/src/linux-headers-"+k.Release, "Makefile"), inside)
}

// withLists fetches with the package lists that we have and, as versions vanish from the mirror, once more with new
// ones. The caller holds the lock.
func (f *fetcher) withLists(ctx context.Context, fetch func() error) error {
	if _, err := f.kernelIndex(ctx, !f.haveLists()); err != nil {
		return err
	}
	err := fetch()
	if err == nil || ctx.Err() != nil {
		return err
	}
	if _, renewErr := f.kernelIndex(ctx, true); renewErr != nil {
		return errors.Join(err, renewErr)
	}
	return fetch()
}

// moveMakefile corrects the absolute paths in the Makefile of the headers, which lie below another directory now.
func moveMakefile(file, below string) error {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the package has no %s; Debian may have moved it", filepath.Base(file))
	}
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(strings.ReplaceAll(string(text), "/usr/src/", below+"/usr/src/")), 0o644)
}
