// SPDX-License-Identifier: Apache-2.0

// Package tokentest makes tokens for tests: TPMs of swtpm and tokens of SoftHSM, both
// real implementations in software.
package tokentest
