// SPDX-License-Identifier: Apache-2.0

// Package bpf guards managed sockets from inside the kernel, and watches them.
//
// A socket is managed while its number (SO_COOKIE) is in a map. Nobody but a KEYHOLDER gets or sets the keys of such a
// socket, and no other process looks into the memory of a SHIELDED one, root neither.
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
