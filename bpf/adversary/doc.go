// SPDX-License-Identifier: Apache-2.0

// Package adversary is the adversary of the tests: it tries every way that is known to get an application byte out of a
// TCP socket, to get at the TLS keys of one, and to reach into another process, and says of each by its name what
// the kernel answered. It is written to succeed. What it cannot do on a kernel without any guard is listed, way by
// way, with the kernel's answer, so that an attack which fails for a reason of its own cannot pass for one that was
// stopped.
//
// The attacker is a process of its own, this executable once more: the program that uses the package calls Main
// before anything else. It holds the sockets because it inherited them, and runs as the user it is told.
//
// An answer alone proves little. An asynchronous way may be told of success and send nothing, and the reverse: so
// each way to send sends its own marker, and what the peer received is the judgement.
//
// What is not here, because no guard on sockets or on processes can stop it: a root that loads its own BPF programs
// or kernel modules, removes pins, reads physical memory (/dev/mem, /proc/kcore; lockdown refuses both), samples the
// whole machine with perf events, or forges segments with raw sockets.
package adversary
