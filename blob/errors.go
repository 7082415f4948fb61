// SPDX-License-Identifier: Apache-2.0

package blob

import "errors"

// One error for each way in which a blob is refused (FORMAT.md, section 6). Every
// error of [Inspect] and [Opener.Open] wraps exactly one of them.
var (
	// ErrMalformed: the bytes are not a blob: bad magic, length, or field value.
	ErrMalformed = errors.New("malformed blob")
	// ErrVersion: a blob of a format version or kind this build does not know.
	ErrVersion = errors.New("unknown blob version or kind")
	// ErrRecipient: sealed for another daemon, another start of it, or by a sealer
	// that never introduced itself.
	ErrRecipient = errors.New("blob sealed for another recipient")
	// ErrCookie: sealed for another socket.
	ErrCookie = errors.New("blob bound to another socket")
	// ErrDirection: sealed for the other direction or the other role.
	ErrDirection = errors.New("blob of the other direction or role")
	// ErrExpired: the blob came too late.
	ErrExpired = errors.New("blob expired")
	// ErrReplayed: this blob, or a later one of its sealer, was opened before.
	ErrReplayed = errors.New("blob opened before")
	// ErrSkipped: so many earlier blobs of the sealer are missing that something is
	// wrong.
	ErrSkipped = errors.New("blob too far ahead of its sealer's last one")
	// ErrSealed: the blob does not authenticate.
	ErrSealed = errors.New("blob does not open")
	// ErrState: what the blob contains, or what was to be sealed, is not the state
	// of a key.
	ErrState = errors.New("not a valid key state")
)
