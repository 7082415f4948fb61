// SPDX-License-Identifier: Apache-2.0

//go:build goexperiment.runtimesecret

package handshaker

import (
	"runtime"
	"runtime/secret"
)

// ErasesSecrets reports whether this build erases what the handshake leaves on
// stacks, in registers and on the heap: it was built with
// GOEXPERIMENT=runtimesecret, for a platform where that works. Heap memory is erased
// when the garbage collector finds it unused.
func ErasesSecrets() bool {
	return runtime.GOOS == "linux" && (runtime.GOARCH == "amd64" || runtime.GOARCH == "arm64")
}

// erasing runs f and erases what it leaves behind. It does not cover goroutines
// that f starts.
func erasing(f func()) { secret.Do(f) }
