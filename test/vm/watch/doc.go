// SPDX-License-Identifier: Apache-2.0

// Package watch is an independent witness of what kernel TLS does with its keys while
// tests run in a virtual machine: it stands beside the product, shares no code with it,
// learns each key from the kernel, and looks at the packets.
//
// # What it checks
//
// A kprobe tells of each key that was installed (tls_setsockopt: connection, direction,
// key, sequence number, and tcp_sock.write_seq, which is where in the stream it begins),
// and of each socket that got the ULP (tls_init). A packet socket sees every TCP packet
// of the network namespace. So it knows:
//
//   - that no key is installed twice in the same direction, be it on the same socket,
//     another one, or in another process ([SecondInstall]), in all network namespaces;
//   - that from the place where a write key begins the stream consists of records that
//     open under it at exactly the next sequence number, up to the place where a rekey
//     takes over ([Gap], [Repeat], [Forged], [Clear]); for TLS 1.2 with AES-GCM also that
//     the explicit nonce of every record is one more than that of the last;
//   - that no record follows a KeyUpdate under the same key ([Late]);
//   - that what user space wrote under the same key before ends right below the
//     installed sequence number ([Gap], [Repeat]);
//   - that a socket with the ULP and without a write key sends whole TLS records, of a
//     handshake ([Clear]);
//   - that nowhere the same number of the same key was used twice ([Repeat]).
//
// The direction of a user-space peer is not judged, its keys are the peer's.
//
// # What it does not
//
// Opening a record costs as much as sealing it. Opened are: the first 256 KiB of each
// direction, every record below 2 KiB, every 16th, the last one, and all while a rekey
// is pending. Of the others it sees header and length, and, with TLS 1.2 and AES-GCM,
// the explicit nonce; that none is missing or too much between two opened ones follows
// from their numbers, but not that each was sealed under its own.
//
// Of a stream without the ULP the first 128 KiB are kept in case it gets a key. Packets
// are read ten times a second. In an emulated machine all this costs about a tenth of
// the time of a bulk transfer, one hundredth of an idle machine's, and two seconds at
// the start, where the kernel's BTF tells the place of write_seq.
//
// A record cut short by the end of its connection cannot be opened: only its header is
// judged, and the direction is counted as cut. Directions are counted as not judged,
// and listed, if packets of theirs are missing in the capture, if they are in another
// network namespace, and if a network device has the key, where a packet socket sees
// clear text.
//
// # Breaking the rules on purpose
//
// A test that does so announces it before, in a line to the trace marker of the
// instance that [Instance] names:
//
//	expect KIND on port PORT
//
// KIND is one of the kinds above, PORT either end's. One line pardons one violation. An
// announced violation that does not happen is one itself ([Missing]).
package watch
