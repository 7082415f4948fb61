// SPDX-License-Identifier: Apache-2.0

// Package bpf guards managed sockets from inside the kernel, and watches them.
//
// A socket is managed while its number (SO_COOKIE) is in a map. Nobody but a KEYHOLDER gets or sets the keys of such a
// socket, and no other process looks into the memory of a SHIELDED one, root neither.
//
// While such a socket is PENDING only a HANDSHAKER sends on it, and once it has ENDED nobody does, by none of the ways in
// package adversary. Behind that guard stands one at the network, which follows the framing of TLS records in what leaves:
// what has not that framing stays, also from a HANDSHAKER and also when the keys have come. TCP goes on trying to send it,
// so such a connection can only be ended, and without lingering. What a HANDSHAKER puts into records nobody looks at, and
// under IPsec the guard at the network sees no TCP.
//
// A write and its read over loopback, without TLS, are 20,000 instructions for 100 bytes and 25,000 for 16 KiB (Linux 6.12,
// median of 6 times 2,000, BenchmarkSend). With all guards they are more by 1,000 to 1,200 on a socket that nobody asked
// for its cookie, 1,400 on one that is not managed or is READY, and 3,000 on one that is PENDING. Both forms cost the same.
// Where it is needed (Linux before 6.5) the hook of files adds some 250 to each read and write of any file.
//
// Load needs privileges, once: it attaches the programs and pins them, with their maps, below a directory of the BPF file
// system. From then on they act by themselves, whoever is killed. OpenGuard needs no capability, only that the pins may be
// opened: it tells the programs what is managed and who has which role.
//
// What this does not protect from: a root who loads BPF programs or kernel modules, traces the kernel or a program's file
// (perf, uprobes), reads /dev/mem, or removes the pins or changes the maps. Nor does the shield keep from a core dump (a
// process says itself that it is not dumpable), or from opening once more, by /proc/PID/fd, what is no socket: what is only
// read there, by name, is also what ss and lsof need. Sockets that are not managed are not touched at all.
package bpf
