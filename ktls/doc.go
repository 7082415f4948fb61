// SPDX-License-Identifier: Apache-2.0

// Package ktls puts the state of a TLS connection into the record layer of the
// Linux kernel (Documentation/networking/tls.rst) and works with sockets that
// have it there.
//
// [Install] takes one [blob.State] per direction and one TCP socket, checks that
// they belong together and that the socket has no keys yet, attaches the upper
// layer protocol (ULP) "tls", sets TLS_RX and TLS_TX, reads both back and compares
// them with what it set. From the moment the ULP is on, every failure ends with
// the socket shut down: a socket with the ULP and without a key sends clear text.
//
// [Conn] is a net.Conn over such a socket for Go programs; a program in another
// language uses plain system calls. [InfoOf] tells whether the kernel or the NIC
// protects the records, [Probe] what this machine can do. Probing tries things: a
// kernel version appears in this package only in comments that say where a fact
// was seen.
//
// A live connection moves to another process by [Conn.Export], which takes its states
// back from the kernel at a quiet point, and [Adopt], which compares them with the
// socket that came with them and never sets a key. A key that a network device holds is
// recognised, and stays there. Who has the [Custody] of a connection that another process
// uses takes it back by [Custody.Regain], after [Conn.Release] there.
//
// Keys change in a Conn that has the custody of its connection ([NewConnKeeping]), where
// the kernel can: on a KeyUpdate of the peer, before the record limit of the AEAD, and by
// [Conn.UpdateKey]. For a user in another process an [Attendant] does that, and a Conn asks
// it, if its socket comes with a way to. Without either, a KeyUpdate of the peer ends the
// connection with [ErrKeyUpdate], before a byte behind it is read.
//
// [Rules] and [CheckStates] are for package userspace, which does in the process what the
// kernel cannot do.
//
// What this package does not do: it does not shake hands (handshaker does), and it
// keeps no key after Install returned, and no secret but in a [Custody] or an [Attendant] that was asked
// for. It cannot prevent others who hold the descriptor from asking the kernel for the
// keys with getsockopt. It cannot follow a KeyUpdate that the peer cuts into two records,
// nor go on behind a later record of a long ticket that happens to begin with the byte 24:
// for the kernel both are a KeyUpdate, and it opens no more without another key.
//
// Package ktls is for Linux only.
package ktls
