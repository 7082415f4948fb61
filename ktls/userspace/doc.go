// SPDX-License-Identifier: Apache-2.0

// Package userspace is the record layer of a TLS connection in this process, for where
// the kernel's cannot be: no kernel TLS at all, a suite it does not know, Multipath TCP,
// or a connection that must follow a KeyUpdate on a kernel that changes no key.
//
// [NewConn] takes the same two states as ktls.Install and goes on from the same record,
// and [Conn] does what ktls.Conn does, with the same errors and the same rules for what
// is no data ([ktls.Rules]): whoever has one need not know which. It is also what the
// kernel's record layer is compared with in the tests.
//
// [Chooser] puts a connection on the one or the other, by a [Policy], before its states are
// touched, and says which and why.
//
// [Relay] gives a plain unix stream to a program that has neither the kernel's record layer
// nor the keys, and tells it the end of the connection as exactly as a stream can.
//
// What differs follows from where the keys are. They are in this process's memory: the
// standard library expands them, and nobody can overwrite what it made before the process
// ends. There is no sendfile and no splice, and whoever else writes to the socket sends
// clear text. A KeyUpdate can always be followed, also where the peer cuts it into
// two records. An error of the record layer is the same [ktls.ErrRecord], but the alert is
// always that of RFC 8446, Section 5, where the kernel cannot tell some cases apart.
package userspace
