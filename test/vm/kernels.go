// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A kernel is one version of Debian's, named by what `uname -r` says.
type kernel struct {
	Series  string   `json:"series"`  // 6.12
	Release string   `json:"release"` // 6.12.57+deb13-cloud-amd64
	Version string   `json:"version"` // 6.12.57-1, the package's
	Package string   `json:"package"` // linux-image-6.12.57+deb13-cloud-amd64
	Modules []string `json:"modules"` // paths in the guest, in the order of loading; set once it is cached

	dir string // in the cache
}

func (k *kernel) image() string          { return filepath.Join(k.dir, "vmlinuz") }
func (k *kernel) modulesArchive() string { return filepath.Join(k.dir, "modules.cpio") }
func (k *kernel) tlsArchive() string     { return filepath.Join(k.dir, "tls.cpio") }

// upstream is the version without Debian's revision.
func (k *kernel) upstream() string {
	_, upstream, _ := splitVersion(k.Version)
	return upstream
}

// matches says whether a person's word for a kernel means this one: a series or any dotted prefix of its version, or
// the exact release.
func (k *kernel) matches(word string) bool {
	return word == k.Release || word == k.Version || hasDottedPrefix(k.upstream(), word)
}

func hasDottedPrefix(version, prefix string) bool {
	return version == prefix || strings.HasPrefix(version, prefix+".")
}

// seriesOf is the longest known series the version belongs to, or its first two numbers.
func seriesOf(version string) string {
	best := ""
	for _, series := range kernelSeries {
		if hasDottedPrefix(version, series) && len(series) > len(best) {
			best = series
		}
	}
	if best == "" {
		parts := strings.SplitN(version, ".", 3)
		best = strings.Join(parts[:min(2, len(parts))], ".")
	}
	return best
}

// parseKernels reads the meta package's versions: each depends on the newest kernel of a suite.
func parseKernels(meta []stanza) (kernels []*kernel) {
	for _, one := range meta {
		for _, name := range one.pinnedDependencies() {
			release, found := strings.CutPrefix(name, "linux-image-")
			if !found {
				continue
			}
			k := &kernel{Release: release, Version: one["Version"], Package: name}
			k.Series = seriesOf(k.upstream())
			kernels = append(kernels, k)
		}
	}
	return sortKernels(kernels)
}

// sortKernels puts the newest first.
func sortKernels(kernels []*kernel) []*kernel {
	slices.SortStableFunc(kernels, func(a, b *kernel) int {
		return cmp.Or(compareVersions(b.Version, a.Version), strings.Compare(a.Release, b.Release))
	})
	return kernels
}

func pickKernel(kernels []*kernel, word string) *kernel {
	for _, k := range kernels { // newest first
		if k.matches(word) {
			return k
		}
	}
	return nil
}

// A kernelIndex is what the mirror offered last time we asked.
type kernelIndex struct {
	Read    time.Time // when the lists were fetched
	Tried   time.Time // when they were last asked for, also in vain
	Kernels []*kernel
}

const (
	// indexLife is how long "newest" may be out of date: tests should not wait for package lists each time.
	indexLife = 24 * time.Hour
	// indexRetry keeps a machine without a network from asking at every start.
	indexRetry = time.Hour
)

func (i *kernelIndex) fresh(now time.Time) bool {
	return now.Sub(i.Read) < indexLife || now.Sub(i.Tried) < indexRetry
}

// cachedKernels are the ones that can be booted without a network, newest first.
func (c *cache) cachedKernels() ([]*kernel, error) {
	files, err := filepath.Glob(c.path("kernels", kernelFormat, "*", "kernel.json"))
	if err != nil {
		return nil, err
	}
	var kernels []*kernel
	for _, file := range files {
		k := &kernel{dir: filepath.Dir(file)}
		if _, err := readJSON(file, k); err != nil {
			return nil, err
		}
		kernels = append(kernels, k)
	}
	return sortKernels(kernels), nil
}

// kernelIndex returns the index, renewed if it is old and the mirror can be reached. The caller holds the lock.
func (f *fetcher) kernelIndex(ctx context.Context, renew bool) (*kernelIndex, error) {
	path, index := f.cache.path("kernels.json"), &kernelIndex{}
	if _, err := readJSON(path, index); err != nil {
		return nil, err
	}
	if index.fresh(time.Now()) && !renew {
		return index, nil
	}
	updateErr := f.apt.update(ctx)
	meta, err := f.apt.show(ctx, kernelMetaPackage)
	index.Tried = time.Now()
	switch {
	case err != nil:
		return index, errors.Join(updateErr, err, writeJSON(path, index))
	case updateErr != nil:
		// What matters is whether there are kernels: one suite may be gone from the mirror, or the network from us.
		f.progress.warn("some package lists are old or missing: %v", updateErr)
	default:
		index.Read = index.Tried
	}
	index.Kernels = parseKernels(meta)
	return index, writeJSON(path, index)
}

// kernel finds the newest kernel that word means and makes sure it is cached. Without a network an older one will do.
func (f *fetcher) kernel(ctx context.Context, word string) (*kernel, error) {
	cached, err := f.cache.cachedKernels()
	if err != nil {
		return nil, err
	}
	have := pickKernel(cached, word)
	index := &kernelIndex{}
	if _, err := readJSON(f.cache.path("kernels.json"), index); err != nil {
		return nil, err
	}
	if have != nil && index.fresh(time.Now()) {
		if newest := pickKernel(index.Kernels, word); newest == nil || newest.Release == have.Release {
			return have, nil
		}
	}
	return f.fetchKernel(ctx, word, have)
}

func (f *fetcher) fetchKernel(ctx context.Context, word string, have *kernel) (*kernel, error) {
	unlock, err := f.cache.lock(f.progress)
	if err != nil {
		return nil, err
	}
	defer unlock()
	got, err := f.newestKernel(ctx, word)
	if err != nil && have != nil && ctx.Err() == nil {
		f.progress.warn("using the cached kernel %s, as the newest cannot be had: %v", have.Release, err)
		return have, nil
	}
	return got, err
}

// newestKernel asks the mirror twice, as versions vanish from it: once with the list we have, once with a new one.
func (f *fetcher) newestKernel(ctx context.Context, word string) (*kernel, error) {
	var failed error
	for _, renew := range []bool{false, true} {
		index, err := f.kernelIndex(ctx, renew)
		if err != nil {
			failed = err
			continue
		}
		newest := pickKernel(index.Kernels, word)
		if newest == nil {
			failed = fmt.Errorf("no kernel %q: the mirror has %s", word, describeKernels(index.Kernels))
			continue
		}
		if failed = f.buildKernel(ctx, newest); failed == nil {
			return newest, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

func describeKernels(kernels []*kernel) string {
	var names []string
	for _, k := range kernels {
		if !slices.Contains(names, k.upstream()) {
			names = append(names, k.upstream())
		}
	}
	return cmp.Or(strings.Join(names, ", "), "none")
}
