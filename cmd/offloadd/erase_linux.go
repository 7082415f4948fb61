// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
	"github.com/offloadd/offloadd/ktls"
)

// What became of the keys in a socket that was revoked.
const (
	keysErased = "erased"
	keysKept   = "kept"
	keysGone   = "gone" // nobody holds the socket
)

// eraseKeys overwrites the keys of revoked sockets, in whichever processes hold them.
// All holders share the socket, so one descriptor is enough; the others are named.
// Guards that are loaded in bpfDir are asked to let this process. It does not look into
// the processes of a guarded daemon, where a connection is for a moment only; nobody
// else may ask that daemon's sockets for keys.
func eraseKeys(results []*revokeResult, bpfDir string) error {
	wanted := make(map[uint64]*revokeResult)
	for _, r := range results {
		if r.Outcome == custody.Ended {
			r.Keys = keysGone
			wanted[r.Socket] = r
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	if err := guardedSelf(bpfDir); err != nil {
		return err
	}
	return eachHolder(func(socket uint64) bool { return wanted[socket] != nil }, func(socket uint64, sock *os.File, h holder) {
		r := wanted[socket]
		r.Holders = addHolder(r.Holders, h)
		if r.Keys == keysErased {
			return
		}
		if err := ktls.Erase(sock); err != nil {
			r.Keys, r.KeysDetail = keysKept, err.Error()
			return
		}
		r.Keys, r.KeysDetail = keysErased, ""
	})
}
