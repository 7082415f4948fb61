// SPDX-License-Identifier: Apache-2.0

// Package bench measures paths that bytes take to a peer: plain TCP, crypto/tls, kernel TLS
// by write and by sendfile, the record layer in this process, connections handed over by
// the daemon, and TLS proxies.
//
// Server, Proxy and Client speak a small part of HTTP/1.1 (RFC 9112), so that the same
// client measures nginx, and curl can ask our server:
//
//	GET /N      N bytes of a pattern that both ends know
//	GET /usage  what the server's process has used so far, as JSON
//	PUT /       takes a body, and answers how many bytes it had; PUT /sha256 its sum, too
//	POST /echo  answers with the body, of 256 KiB at most
//
// Their own cost is part of what is measured, so requests are not served by package
// net/http: heads are parsed in place, bodies go by what the path is named after, and a
// connection that waits for a request holds a small buffer only.
//
// What this package does not do: it is no server for strangers. It bounds what a request can
// take, not how many there are or how long they last.
package bench
