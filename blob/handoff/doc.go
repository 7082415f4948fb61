// SPDX-License-Identifier: Apache-2.0

// Package handoff carries a connection across a process boundary: a message of
// hard limited size over a unix SOCK_SEQPACKET socket, with the connection's
// descriptor, its two blobs and the facts of its handshake. PROTOCOL.md beside this
// file is normative.
//
// Each message names its type, and each type has one shape: a descriptor or none,
// blobs or none (see the table in message.go). What does not have the shape is
// refused as a whole, and the descriptors that came with it are closed. A message
// that carries a descriptor carries exactly one, which arrives close-on-exec, and
// its SO_COOKIE is read afresh and compared with the message's.
//
// The kernel vouches for the sender of every message (SCM_CREDENTIALS), and
// [Conn.Expect] refuses all others.
//
// [Listen] gives a Go application its connections as a net.Listener, and
// [Listener.Return] gives one back while it is in use. [Listener.Ask] asks the daemon what a
// read met, and has it change keys.
//
// What this package does not do: it neither opens blobs nor installs keys, and it
// does not encrypt: a unix socket does not leave the machine.
package handoff
