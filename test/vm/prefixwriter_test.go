// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestLinesOfSeveralKernelsStayWhole(t *testing.T) {
	var out strings.Builder
	shared := &sharedOutput{w: &out}
	a, b := &prefixWriter{prefix: "a| ", shared: shared}, &prefixWriter{prefix: "b| ", shared: shared}
	for _, w := range []struct {
		to   *prefixWriter
		text string
	}{{a, "one"}, {b, "two\nth"}, {a, " more\n"}, {b, "ree\n\n"}} {
		if n, err := w.to.Write([]byte(w.text)); n != len(w.text) || err != nil {
			t.Fatal(n, err)
		}
	}
	if want := "b| two\na| one more\nb| three\nb| \n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
