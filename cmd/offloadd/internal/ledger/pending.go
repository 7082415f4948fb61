// SPDX-License-Identifier: Apache-2.0

package ledger

import "github.com/offloadd/offloadd/blob"

// Pending holds the two states of a connection that came out of their blobs. Nobody
// gets at them but through [Ledger.Enter], so that none is installed without an entry.
type Pending struct{ read, write *blob.State }

// NewPending takes both states over.
func NewPending(read, write *blob.State) *Pending { return &Pending{read, write} }

// Destroy destroys the states, unless they were entered. It may be called on nil.
func (p *Pending) Destroy() {
	if p == nil {
		return
	}
	p.read.Destroy()
	p.write.Destroy()
	p.read, p.write = nil, nil
}

// Entered holds two states that are in the ledger, to be installed once.
type Entered struct{ read, write *blob.State }

// Take gives the states away; from then on there are none.
func (e *Entered) Take() (read, write *blob.State) {
	read, write = e.read, e.write
	e.read, e.write = nil, nil
	return read, write
}
