// SPDX-License-Identifier: Apache-2.0

// Package ledger remembers which traffic keys were imported on this machine since it
// booted. A key is entered before it is installed, so that a second import is refused
// and named as a replay, also by the next daemon after a crash.
//
// A replay is any of these: the same socket, direction and epoch again; an earlier
// epoch; a sequence number below the one entered; or the same key again, for whichever
// socket, direction and epoch. Keys are compared by a digest, and no key byte is kept.
//
// An entry ends with its socket. The kernel gives a socket's cookie to no other until
// the next boot, so a blob of a socket that is gone is refused by its cookie and needs
// no entry. What the ledger does not recognise is a key whose socket is gone in a
// fresh blob for another socket: only who has the key in the clear can make one, and
// who has it needs no blob to use it twice. The same holds for all but the last eight
// keys of a direction that was often rekeyed: on their own socket they are refused as
// earlier epochs, on another they are not known.
//
// # The file
//
// A file on a file system that the next boot does not see in use, /run by default:
//
//	header  magic (8) version (4) boot id (16) network namespace (8) checksum (4)
//	record  kind (1) role (1) direction (1) more (1) epoch (4) cookie (8)
//	        sequence number (8) entered, Unix ms (8) digest (16) instance (16) checksum (4)
//
// All integers are big-endian. A checksum is CRC-32C over all that precedes it, from
// the start of the file on: it also notices records that are missing or exchanged.
// Where more is 1, the next record belongs to the same act: both count, or none does.
//
// The cookie is unique in the whole boot (since Linux 5.4; before, in its network
// namespace). The namespace is in the header for another reason: only sockets of the
// own namespace can be asked for, so a daemon in another one would take all entries
// for dead. It is refused.
//
// The file need not reach a disk: it has to survive the process and not the machine,
// after whose crash there is another boot and no old socket.
package ledger
