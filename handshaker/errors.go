// SPDX-License-Identifier: Apache-2.0

package handshaker

import "errors"

// The ways in which [Server] and [Client] fail, by whose fault it is. Every error
// they return wraps exactly one of them.
var (
	// ErrConfig: the caller's fault. The arguments cannot work, whatever the peer does.
	ErrConfig = errors.New("config cannot be handed over")
	// ErrHandshake: crypto/tls ended the handshake, and its error is wrapped as well:
	// a refused certificate, an alert, a lost connection. It also wraps the error of a
	// context that ended.
	ErrHandshake = errors.New("handshake")
	// ErrPeer: the peer's fault. It broke a limit of the protocol or of this package.
	ErrPeer = errors.New("peer misbehaved")
	// ErrPending: the peer's doing, and harmless with an ordinary TLS stack. Data that
	// belongs to the application, or part of a message, was consumed together with the
	// handshake and would be lost by a hand-over.
	ErrPending = errors.New("pending data")
	// ErrUnsupported: nobody's fault. What was negotiated cannot be handed over.
	ErrUnsupported = errors.New("cannot be handed over")
	// ErrLocal: this side's fault: the machine refused something, or this package and
	// crypto/tls disagree about what is on the wire.
	ErrLocal = errors.New("local failure")
)
