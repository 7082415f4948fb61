// SPDX-License-Identifier: Apache-2.0

// Package token finds private keys in PKCS#11 tokens and TPMs and signs with them.
//
// It reads: nothing here makes, changes, moves or removes an object of a token, and
// nothing asks for a key's private part. What it may ask of a PKCS#11 module is the
// interface cryptoki; of a TPM it asks TPM2_ReadPublic and TPM2_Sign with persistent
// handles, so there is nothing to flush.
//
// Every signature is verified with the key's public part before it is returned: a
// signature with one wrong bit can tell an RSA key (Boneh, DeMillo and Lipton, 1997).
//
// PKCS#11 modules are C libraries. They are there in builds with cgo and the tag
// pkcs11 only.
package token
