// SPDX-License-Identifier: Apache-2.0

// Package handshaker completes a TLS handshake with crypto/tls and yields the
// state of both traffic keys, so that something else can be the record layer from
// the next byte on.
//
// [Server] and [Client] run an unmodified crypto/tls over the given connection and
// return a [Session]: one [blob.State] to read with and one to write with, each in
// exactly the state it is in, and what there is to know of the peer. On success the
// next unread byte of the connection is the first byte of a record that the read
// state opens, and the next byte written must be the first of a record that the
// write state seals. Only the Session can go on; the tls.Conn is gone.
//
// Three public seams of crypto/tls make that possible, and no others are used (no
// fork, no unsafe, no reflection):
//
//   - Config.KeyLogWriter, one per connection and in memory only, gives the traffic
//     secrets of TLS 1.3 and the master secret of TLS 1.2.
//   - The net.Conn it runs on is ours. It never lets a read cross a record boundary,
//     so no application record gets stuck in user memory, and it remembers the
//     protected records, so that sequence numbers are counted and not assumed.
//   - Config.WrapSession, UnwrapSession and ClientSessionCache show the session that
//     is resumed. In TLS 1.2 that is the only place to learn its master secret:
//     crypto/tls logs none on resumption.
//
// Everything derived is checked against the wire before it is returned: client
// randoms must agree, every record protected with an application key must open with
// the exported one, and it must contain what may be consumed at this point and
// nothing else. What does not fit is an error and never a guess.
//
// What this package does not do: it does not seal states (package blob does) and
// does not install them (ktls does). It handles no message after the hand-over:
// KeyUpdate, later session tickets and alerts belong to the next owner, as does the
// limit on records per key (RFC 8446, Section 5.5). It does not hand over 0-RTT data
// (crypto/tls accepts none outside QUIC), and it does not do renegotiation.
//
// It cannot promise that crypto/tls and the Go runtime kept no copy of a secret:
// all bytes this package can reach are overwritten, and for the rest there are two
// ways, to end the process or to build it with GOEXPERIMENT=runtimesecret
// ([ErasesSecrets] tells).
package handshaker
