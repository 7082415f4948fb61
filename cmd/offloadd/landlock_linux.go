// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsyscall "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

var errNoLandlock = errors.New("this kernel has no Landlock, or it was left out at boot")

const landlockRemedy = "a kernel with CONFIG_SECURITY_LANDLOCK, and landlock in the lsm= parameter if there is one"

// landlockABI returns what Landlock can do here, as the number of its interface.
func landlockABI() (int, error) {
	abi, err := llsyscall.LandlockGetABIVersion()
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		return 0, errNoLandlock
	}
	return abi, err
}

// landlockScope says what a ruleset without rules denies at this ABI
// (Documentation/userspace-api/landlock.rst, "Previous limitations").
func landlockScope(abi int) string {
	scope := "opening files"
	if abi >= 4 {
		scope += ", TCP bind and connect"
	}
	if abi >= 6 {
		scope += ", abstract unix sockets, signals"
	}
	return scope
}

// denyAll takes from all threads everything Landlock can take: there is no rule that
// gives a path or a port back. errNoLandlock says that it was not to be had.
func denyAll() error {
	if _, err := landlockABI(); err != nil {
		return err
	}
	// BestEffort: the most this kernel has. It tells nobody if that is nothing, so try it.
	if err := landlock.V11.BestEffort().Restrict(); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	if err != unix.EACCES {
		return fmt.Errorf("landlock is on, and opening / says %v instead of %w", err, unix.EACCES)
	}
	return nil
}
