// SPDX-License-Identifier: Apache-2.0

// Package blob holds the state of one traffic key of a TLS connection and its
// sealed, single-use form, the OPAQUEKEYBLOB.
//
// A [State] is all that one direction of a connection needs to go on in another
// process: role, direction, version, cipher suite, key, IV, sequence number, and
// the traffic secret that the next KeyUpdate switches to. [Sealer.Seal] consumes a
// State: the blob exists and the State is destroyed, or there is no blob and the
// State is destroyed as well. [Opener.Open] turns the blob back into exactly the
// State that was sealed, once, for the socket it was sealed for. FORMAT.md is the
// normative description of the bytes.
//
// A key that a network device holds stays there: its State has Held set in place of key
// and IV, its blob is a reference, and destroying either destroys a name.
//
// A blob is sealed to a [PublicKey] which the opening process makes afresh at each
// start. The sealing process holds one ratchet per [Sealer]: it can seal the next
// blob, and it cannot open any, its own earlier ones included.
//
// What this package does not do: it makes no system call, opens no socket, does
// not know the clock (the caller passes the time), does not shake hands
// (handshaker does) and does not install keys (ktls does). It cannot promise that
// the Go runtime kept no copy of a secret it moved: Destroy overwrites the bytes
// the State holds, and only the end of the process destroys the rest.
package blob
