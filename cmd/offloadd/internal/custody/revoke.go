// SPDX-License-Identifier: Apache-2.0

package custody

import (
	"errors"
	"fmt"
	"syscall"
)

// Outcome is what a revocation did.
type Outcome string

// The outcomes.
const (
	// Ended: the connection is no more, for every holder of a descriptor.
	Ended Outcome = "ended"
	// NotThere: no live connection of ours has this number.
	NotThere Outcome = "not there"
	// Refused: it goes on; the error says why.
	Refused Outcome = "refused"
)

// Revoke ends a connection at once: the peer gets a reset, and every process that
// has a descriptor gets ECONNABORTED from its next call, then end of file or EPIPE.
// It needs no descriptor and nobody's cooperation. A connection that its application
// has closed already ends too, and what was queued is not sent.
//
// The keys stay in the dead socket until its last descriptor is closed, and a holder
// could read them there with getsockopt. Nothing can be sent with them any more: the
// socket is in no table of the kernel and cannot be connected again (tls_disconnect
// refuses). Overwriting them needs a descriptor: the daemon keeps none, and fetching one
// from the application (pidfd_getfd) takes CAP_SYS_PTRACE, which is worth more than the
// key. The revoke command, which root runs, does that.
func (t *Table) Revoke(socket uint64) (Outcome, error) {
	t.mu.Lock()
	p := t.records[socket]
	if p == nil || conditions[p.condition] != Live {
		t.mu.Unlock()
		return NotThere, nil
	}
	id := p.id
	t.mu.Unlock()
	found, err := find(id, socket)
	if err != nil {
		return Refused, err
	}
	if found == nil {
		return NotThere, nil
	}
	switch err := destroy(found.id, socket); {
	case errors.Is(err, syscall.ENOENT):
		return NotThere, nil
	case errors.Is(err, syscall.EOPNOTSUPP):
		return Refused, errors.New("this kernel cannot end a socket from outside: it lacks CONFIG_INET_DIAG_DESTROY")
	case errors.Is(err, syscall.EPERM):
		return Refused, errors.New("the daemon lacks CAP_NET_ADMIN in its network namespace")
	case err != nil:
		return Refused, fmt.Errorf("SOCK_DESTROY: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.totals.Revoked++
	if p := t.records[socket]; p != nil && conditions[p.condition] == Live {
		p.end(Revoked)
	}
	return Ended, nil
}
