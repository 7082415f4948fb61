// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"github.com/offloadd/offloadd/ktls"
)

// checkParkedHides parks an attendant that has a secret.
func checkParkedHides(t *testing.T, attendant *ktls.Attendant, secret []byte) {
	t.Helper()
	var parked ktls.Parked
	if !attendant.Park(&parked) {
		t.Fatal("it cannot be parked")
	}
	memory := func() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(&parked)), unsafe.Sizeof(parked)) }
	if !bytes.Contains(memory(), secret) {
		t.Error("a parked attendant has no secret")
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q", "%Z"} {
		text := fmt.Sprintf(verb+verb, parked, &parked)
		for _, form := range []string{string(secret), fmt.Sprintf("%x", secret), fmt.Sprint(secret)[1:40]} {
			if strings.Contains(text, form) {
				t.Errorf("%s prints the secret of a parked attendant", verb)
			}
		}
	}
	parked.Destroy()
	if bytes.Contains(memory(), secret) {
		t.Error("Destroy left a secret in a parked attendant")
	}
}
