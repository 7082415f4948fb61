// SPDX-License-Identifier: Apache-2.0

// Package ktlstest helps to test what uses kernel TLS: connected pairs of sockets,
// matching states for both ends, the bytes that the kernel must then hold, and a
// capture of what really went over the wire.
package ktlstest
