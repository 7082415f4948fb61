// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A cache is the directory that holds everything fetched or built. What is in it is complete: directories are made
// beside their place and renamed into it.
type cache struct{ dir string }

// openCache finds ${OFFLOADD_CACHE:-the user's cache directory}/offloadd and makes it.
func openCache() (*cache, error) {
	base := os.Getenv("OFFLOADD_CACHE")
	if base == "" {
		var err error
		if base, err = os.UserCacheDir(); err != nil {
			return nil, fmt.Errorf("find a cache directory: %w; set OFFLOADD_CACHE", err)
		}
	}
	base, err := filepath.Abs(base)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(base, "offloadd")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the cache: %w; set OFFLOADD_CACHE to a directory you may write to", err)
	}
	return &cache{dir: dir}, nil
}

func (c *cache) path(elements ...string) string {
	return filepath.Join(append([]string{c.dir}, elements...)...)
}

func (c *cache) has(elements ...string) bool {
	_, err := os.Stat(c.path(elements...))
	return err == nil
}

// lock keeps other processes from fetching the same things. The kernel drops it when the process ends.
func (c *cache) lock(progress *progress) (unlock func(), err error) {
	file, err := os.OpenFile(c.path("lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		progress.warn("another process is filling the cache; waiting for it")
		err = flockPatiently(int(file.Fd()))
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	return func() { file.Close() }, nil
}

// flockPatiently retries when a signal to the Go runtime interrupts the wait.
func flockPatiently(fd int) error {
	for {
		if err := unix.Flock(fd, unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// build makes the directory name by calling fill with an empty one beside it.
func (c *cache) build(name string, fill func(dir string) error) error {
	place := c.path(name)
	if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
		return err
	}
	temporary, err := os.MkdirTemp(filepath.Dir(place), ".partial-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	if err := fill(temporary); err != nil {
		return err
	}
	if err := os.Chmod(temporary, 0o755); err != nil {
		return err
	}
	return os.Rename(temporary, place)
}

// readJSON reports false if there is no such file.
func readJSON(path string, into any) (bool, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return false, fmt.Errorf("%s: %w; remove it", path, err)
	}
	return true, nil
}

// writeJSON replaces the file in one step.
func writeJSON(path string, value any) error {
	data, err := json.MarshalIndent(value, "", "\t")
	if err != nil {
		return err
	}
	temporary := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(temporary, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
