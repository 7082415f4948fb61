// SPDX-License-Identifier: Apache-2.0

//go:build !goexperiment.runtimesecret

package handshaker

// ErasesSecrets reports whether this build erases what the handshake leaves on
// stacks, in registers and on the heap. This one does not, as it was built without
// GOEXPERIMENT=runtimesecret: copies made by crypto/tls and the runtime live until
// the process ends.
func ErasesSecrets() bool { return false }

func erasing(f func()) { f() }
