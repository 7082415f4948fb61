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
// It needs no descriptor and nobody's cooperation.
//
// The keys stay in the dead socket until its last descriptor is closed, and a holder
// could read them there with getsockopt. Nothing can be encrypted with them any more:
// the socket is in no table of the kernel, cannot be connected again (net/tls forbids
// disconnect), and takes no other key.
func (t *Table) Revoke(socket uint64) (Outcome, error) {
	t.mu.Lock()
	r := t.records[socket]
	if r == nil || r.Condition != Live {
		t.mu.Unlock()
		return NotThere, nil
	}
	id := r.id
	t.mu.Unlock()
	found, err := find(id, socket)
	switch {
	case err != nil:
		return Refused, err
	case found == nil:
		return NotThere, nil
	case found.orphan:
		// Every descriptor is closed, and with the last one went the software keys. What is
		// left sends what was queued, and FIN. Linux before 6.12 would forget its timers and
		// keep it for ever if it were aborted now (net/ipv4/tcp.c, tcp_abort).
		return NotThere, errors.New("closed by its application already; the kernel is sending the rest")
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
	if r := t.records[socket]; r != nil && r.Condition == Live {
		r.over(Revoked)
	}
	return Ended, nil
}
