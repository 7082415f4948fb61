// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The programs that we are compared with come on a disk, as root directories to be entered by chroot: one of the
// guest's own release, and one of the release that has HAProxy with kernel TLS. Each has the libraries it was built for.

// peersName names the disk by its packages and by what is done to them.
var peersName = "peers-1-" + shortHash(fmt.Sprint(userlandSuite, peerPackages, newPeerPackages, newPeerSuites, peersTrimmed))

const (
	peersDisk   = "disk.squashfs"
	peersID     = "offloadd-peers"
	peersMount  = "/peers" // in the guest
	stableRoot  = "stable"
	newPeerRoot = "experimental"
	newPeerApt  = "apt-experimental"
)

// A peerList is what the disk holds.
type peerList struct {
	Packages map[string][]string `json:"packages"` // of each root, "name version"
	Missing  []string            `json:"missing"`  // what could not be had, and why
}

// peers makes sure that the disk is cached, and returns its image.
func (f *fetcher) peers(ctx context.Context) (string, error) {
	image := f.cache.path(peersName, peersDisk)
	if f.cache.has(peersName) {
		return image, nil
	}
	unlock, err := f.cache.lock(f.progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	if f.cache.has(peersName) {
		return image, nil
	}
	err = f.withLists(ctx, func() error {
		f.progress.step("peers (%s)", strings.Join(peerPackages, ", "))
		return f.cache.build(peersName, func(dir string) error { return f.buildPeers(ctx, dir) })
	})
	if err != nil {
		return "", fmt.Errorf("make the disk of --peers: %w", err)
	}
	f.progress.done("nginx " + f.packageVersion(peersName, "nginx"))
	return image, nil
}

// peerList is what the cached disk holds.
func (f *fetcher) peerList() (*peerList, error) {
	list := &peerList{}
	found, err := readJSON(f.cache.path(peersName, "peers.json"), list)
	if err == nil && !found {
		err = errors.New("the disk of --peers has no list of its packages; remove " + f.cache.path(peersName))
	}
	return list, err
}

// buildPeers unpacks both roots below the first, whose mksquashfs then makes the image of them.
func (f *fetcher) buildPeers(ctx context.Context, dir string) error {
	tools := &toolchain{root: filepath.Join(dir, "tools")}
	if err := f.unpackPackages(ctx, tools.root, []string{"mawk", "squashfs-tools"}); err != nil {
		return err
	}
	if err := completeToolchain(tools.root); err != nil {
		return err
	}
	image := filepath.Join(tools.root, "image")
	list := &peerList{Packages: map[string][]string{}}
	stable := filepath.Join(image, stableRoot)
	if err := f.unpackPackages(ctx, stable, peerPackages); err != nil {
		return err
	}
	if err := finishPeerRoot(stable, stableRoot, list); err != nil {
		return err
	}
	experimental := filepath.Join(image, newPeerRoot)
	if err := f.unpackNewPeers(ctx, experimental); err != nil {
		// Experimental comes and goes. The rest is worth measuring without it, if the report says so.
		f.progress.warn("no %s: %v", strings.Join(newPeerPackages, ", "), err)
		list.Missing = append(list.Missing, fmt.Sprintf("%s: %v; to try again, remove %s", strings.Join(newPeerPackages, ", "),
			err, f.cache.path(peersName)))
		if err := os.RemoveAll(experimental); err != nil {
			return err
		}
	} else if err := finishPeerRoot(experimental, newPeerRoot, list); err != nil {
		return err
	}
	if err := tools.run(ctx, "mksquashfs", "/image", "/build/"+peersDisk, "-all-root", "-no-progress", "-noI", "-noD", "-noF",
		"-noX"); err != nil {
		return err
	}
	return errors.Join(
		writeJSON(filepath.Join(dir, "peers.json"), list),
		writeJSON(filepath.Join(dir, "packages.json"), list.Packages[stableRoot]),
		os.Rename(filepath.Join(tools.root, "build", peersDisk), filepath.Join(dir, peersDisk)),
		os.RemoveAll(tools.root))
}

// unpackNewPeers has an apt state of its own, with lists fetched now: what is unstable has changed since.
func (f *fetcher) unpackNewPeers(ctx context.Context, root string) error {
	from := &apt{dir: f.cache.path(newPeerApt), suites: newPeerSuites, target: newPeerSuites[0].name, progress: f.progress}
	if err := from.update(ctx); err != nil {
		return err
	}
	return unpackPackages(ctx, from, root, newPeerPackages)
}

// finishPeerRoot makes what a base system and the packages' own scripts would have made.
func finishPeerRoot(root, name string, list *peerList) error {
	var packages []string
	if _, err := readJSON(filepath.Join(root, "packages.json"), &packages); err != nil {
		return err
	}
	list.Packages[name] = packages
	for _, trimmed := range append(peersTrimmed, "packages.json") {
		if err := os.RemoveAll(filepath.Join(root, trimmed)); err != nil {
			return err
		}
	}
	for _, directory := range []string{"dev", "proc", "sys", "tmp", "run", "root", "usr/lib64", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, directory), 0o755); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil && !os.IsExist(err) {
			return err
		}
	}
	for _, file := range []string{"etc/passwd", "etc/group", "etc/hosts", "etc/nsswitch.conf"} {
		if err := os.WriteFile(filepath.Join(root, file), []byte(userlandFiles[file]), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// addPeers attaches the disk.
func (m *machine) addPeers(ctx context.Context) error {
	image, err := m.fetcher.peers(ctx)
	if err != nil {
		return err
	}
	m.spec.Peers = true
	m.hw.disks = append(m.hw.disks, disk{image: image, serial: peersID})
	return nil
}

// mountPeers makes the disk's root directories fit to enter: what they write goes to the guest's own /tmp.
func mountPeers() error {
	if err := mountDisk(peersID, peersMount); err != nil {
		return err
	}
	roots, err := os.ReadDir(peersMount)
	if err != nil {
		return err
	}
	for _, root := range roots {
		for _, shared := range []string{"/proc", "/dev", "/tmp"} {
			place := filepath.Join(peersMount, root.Name(), shared)
			if err := unix.Mount(shared, place, "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("mount %s on %s: %w", shared, place, err)
			}
		}
	}
	return nil
}
