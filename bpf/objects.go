// SPDX-License-Identifier: Apache-2.0

package bpf

import _ "embed"

// The objects are committed: `make bpf` makes them of src, always the same bytes, and a test of test/vm compares.
var (
	//go:embed keyguard.o
	keyguardObject []byte
	//go:embed shield.o
	shieldObject []byte
)

// An object is one file of programs. Maps of the same name are shared between all.
type object struct {
	name  string
	bytes []byte
}

func objects() []object {
	return []object{
		{name: "keyguard", bytes: keyguardObject},
		{name: "shield", bytes: shieldObject},
	}
}
