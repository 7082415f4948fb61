// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"encoding/binary"
	"iter"
)

// nlAttribute is one netlink attribute (struct nlattr: u16 length, u16 type).
type nlAttribute struct {
	kind  uint16
	value []byte
}

const nlAttributeHeader = 4

// eachAttribute yields the attributes in b; it stops at the first that does not
// fit.
func eachAttribute(b []byte) iter.Seq[nlAttribute] {
	return func(yield func(nlAttribute) bool) {
		for len(b) >= nlAttributeHeader {
			size := int(binary.NativeEndian.Uint16(b))
			if size < nlAttributeHeader || size > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) & nlaTypeMask
			if !yield(nlAttribute{kind, b[nlAttributeHeader:size]}) {
				return
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

// attribute follows a path of nested attributes.
func attribute(b []byte, path ...uint16) ([]byte, bool) {
	for _, kind := range path {
		found := false
		for a := range eachAttribute(b) {
			if a.kind == kind {
				b, found = a.value, true
				break
			}
		}
		if !found {
			return nil, false
		}
	}
	return b, true
}
