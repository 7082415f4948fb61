// SPDX-License-Identifier: Apache-2.0

package bpf

import "kernel.org/pub/linux/libs/security/libcap/cap"

// dropCapabilities leaves this process, in all its threads, what its user owns and nothing else.
func dropCapabilities() error { return cap.NewSet().SetProc() }
