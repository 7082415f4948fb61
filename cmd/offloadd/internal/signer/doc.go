// SPDX-License-Identifier: Apache-2.0

// Package signer lets a worker sign with private keys that another process holds.
//
// # Protocol
//
// The channel is a SOCK_SEQPACKET pair of unix sockets, one per worker, inherited by
// both ends. It belongs to one worker: there is nothing to authenticate. Each packet
// is one message. Numbers are big-endian. The worker sends requests; the signer sends
// exactly one response to each, in any order.
//
// A request has 44 bytes and then the digest:
//
//	offset  size
//	0       1     version, 1
//	1       1     operation: 1 check, 2 sign
//	2       2     number of the key
//	4       4     number of the request
//	8       32    SHA-256 of the SubjectPublicKeyInfo of the key that is meant
//	40      1     scheme: 0 with check; 1 RSASSA-PKCS1-v1_5, 2 RSASSA-PSS, 3 ECDSA, 4 Ed25519
//	41      1     hash, as in RFC 5246, Section 7.4.1.4.1: 4 SHA-256, 5 SHA-384, 6 SHA-512;
//	              0 with check and with Ed25519
//	42      2     size of the digest in bytes
//	44      …     the digest, and nothing after it
//
// A digest MUST have the size of its hash. The salt of RSASSA-PSS has that size too
// (RFC 8446, Section 4.2.3); there is no other option. With check there is no digest.
// Ed25519 does not sign digests: there, in place of the digest is the message of at
// most 512 bytes, and the signer MUST refuse what no TLS server signs. A TLS 1.3 server
// signs 64 spaces, "TLS 1.3, server CertificateVerify", a zero byte, and a hash of 32
// or 48 bytes (RFC 8446, Section 4.4.3). A TLS 1.2 server signs both randoms, of 32
// bytes each, and its ECDHE parameters (RFC 8422, Section 5.4: a byte 3, a curve in 2
// bytes, a point after its size in 1 byte).
//
// A response has 8 bytes and then the signature:
//
//	offset  size
//	0       1     version, 1
//	1       1     status: 0 done; others see Status
//	2       2     size of the signature in bytes, at most 1024
//	4       4     number of the request
//	8       …     the signature if something was signed, and nothing after it
//
// A message that is not of this form MUST end the channel. So MUST a response to no
// request. A worker SHOULD use request numbers in rising order; it may give up waiting
// and then ignores the response. The signer serves at most 16 requests of a channel
// at a time and leaves the others in it. A request that is well-formed and not
// allowed gets its status and is counted.
//
// No message asks for, or carries, a private key, a PIN, or a word about the token.
package signer
