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
// The observer is apart from the guards (LoadObserver, OpenObserver). It lists every kernel TLS socket of the network
// namespace, also of other programs, with live sequence numbers, and counts for each what it did since its first key. A
// record costs nothing: numbers of records come from the kernel's sequence numbers, which are exact. A call costs: a write
// and its read together, of one record, are about 1,000 to 1,700 instructions more, which is 3 to 5 % at 100 bytes and
// about 1 % at 16 KiB (instruction clock, median of 7 times 2,000; Linux 6.1 in instructions without and with: 36,250 and
// 37,830 at 100 bytes, 120,500 and 121,630 at 16 KiB; 6.12 and 7 are as much within their spread of 1,000). Nobody pays for
// lists, totals and alarms but who asks. A connection has 192 bytes in the kernel, and the map has room for 262,144.
//
// The kernel runs a program of this kind (fentry, fexit) once at a time on a CPU. A call that ends while another task was
// preempted within the program is skipped, and counted as missed (Sums): that is where the kernel preempts itself, as from
// Linux 7 on, and then bytes, calls and errors are lower bounds. Sockets that had keys before the observer came are listed
// without totals. Under lockdown=confidentiality it is off, as it must read kernel memory by address. While it is loaded,
// the tls module cannot be unloaded.
//
// Load needs privileges, once: it attaches the programs and pins them, with their maps, below a directory of the BPF file
// system. From then on they act by themselves, whoever is killed. OpenGuard needs no capability, only that the pins may be
// opened: it tells the programs what is managed and who has which role.
//
// In form fmod_ret, and on a kernel that preempts itself, guards can be outrun: see CanBeSkipped. Load and Guard.Sound say
// so.
//
// What this does not protect from: a root who loads BPF programs or kernel modules, traces the kernel or a program's file
// (perf, uprobes), reads /dev/mem, or removes the pins or changes the maps. Nor does the shield keep from a core dump (a
// process says itself that it is not dumpable), or from opening once more, by /proc/PID/fd, what is no socket: what is only
// read there, by name, is also what ss and lsof need. Sockets that are not managed are not touched at all.
package bpf
