// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/offloadd/offloadd/blob"
)

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

// digest names a key without telling it: the first bytes of SHA-256.
type digest [16]byte

const digestLabel = "offloadd ledger v1" // 18 bytes

// digestOf hashes label (18), suite (2), key (32) and IV (12), the latter two padded
// with zeros: the suite tells their sizes. That is exactly one block of SHA-256, which
// is hashed where it is: a part of a block would stay behind in the hash's own buffer.
func digestOf(s *blob.State) digest {
	var block [sha256.BlockSize]byte
	copy(block[:18], digestLabel)
	binary.BigEndian.PutUint16(block[18:], uint16(s.Suite))
	copy(block[20:52], s.Key.Bytes())
	copy(block[52:], s.IV.Bytes())
	sum := sha256.Sum256(block[:])
	clear(block[:])
	return digest(sum[:len(digest{})])
}
