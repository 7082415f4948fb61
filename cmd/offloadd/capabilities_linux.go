// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// capability is one that the daemon keeps after its start.
type capability struct {
	value  cap.Value
	reason string
}

// daemonCapabilities are all that the daemon has once its sockets are open. What only
// the start needs is not among them: binding low ports, loading modules, the
// application sockets' owners, reading files of others, raising limits.
func daemonCapabilities() []capability {
	return []capability{
		{cap.SETUID, "workers are started as worker_user"},
		{cap.SETGID, "and with its group, and no other"},
		{cap.KILL, "a worker that hangs is killed, and it belongs to another user"},
		{cap.NET_ADMIN, "revoked connections are ended, and their ends heard of, through sock_diag; before Linux 7 only an administrator is told which path a socket's TLS takes (net/ipv4/tcp_diag.c)"},
	}
}

// keepCapabilities drops from all threads, sets and the bounding set all but those
// to keep, and the means to get any back.
func keepCapabilities(keep []capability) error {
	has := cap.GetProc()
	kept := make([]cap.Value, 0, len(keep))
	for _, k := range keep {
		if ok, err := has.GetFlag(cap.Permitted, k.value); err != nil || !ok {
			return machineError("serve was started without %v, which it needs (%s): grant it in the unit or container", k.value, k.reason)
		}
		kept = append(kept, k.value)
	}
	var drop []cap.Value
	for v := cap.Value(0); v < cap.MaxBits(); v++ {
		if bound, err := cap.GetBound(v); err == nil && bound && !slices.Contains(kept, v) {
			drop = append(drop, v)
		}
	}
	if err := cap.DropBound(drop...); err != nil {
		return machineError("drop capabilities from the bounding set: %w: serve needs CAP_SETPCAP for that at its start", err)
	}
	if err := cap.ResetAmbient(); err != nil {
		return fmt.Errorf("drop ambient capabilities: %w", err)
	}
	set := cap.NewSet()
	for _, flag := range []cap.Flag{cap.Permitted, cap.Effective} {
		if err := set.SetFlag(flag, true, kept...); err != nil {
			return fmt.Errorf("capabilities: %w", err)
		}
	}
	if err := set.SetProc(); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_NO_NEW_PRIVS: %w", err)
	}
	return nil
}
