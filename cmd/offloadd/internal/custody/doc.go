// SPDX-License-Identifier: Apache-2.0

// Package custody knows, for each live connection that the daemon gave keys to,
// where each key is and through which hands it went.
//
// The table holds no key and no descriptor: a lasting duplicate of a socket would
// delay its FIN. It knows sockets by their cookie (SO_COOKIE), which the kernel never
// reuses within a boot, and learns of their end from the kernel, which tells each TCP
// socket that it frees to whoever listens (SKNLGRP_INET_TCP_DESTROY of
// include/uapi/linux/sock_diag.h). What could be lost on that way is found by
// comparing with a dump of all sockets: at the start, after a loss, every minute.
//
// A key in a network device can be lost while the kernel goes on saying that it is
// there (net/tls/tls_device.c, tls_device_down). The table hears of it from the links
// of rtnetlink, and marks what is degraded.
//
// With an entry the daemon keeps what it needs to take the connection back ([Kept]);
// the table does not look into it, and destroys it with the entry.
//
// What it cannot know: to whom an application passes its socket past the daemon, and
// what happens in other network namespaces than the daemon's.
package custody
