// SPDX-License-Identifier: Apache-2.0

package blob

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
)

// FuzzInspect: a header that parses has exactly one encoding, and nothing comes
// back beside an error.
func FuzzInspect(f *testing.F) {
	seedVectors(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Inspect(b)
		if err != nil {
			outcome(t, err)
			if h != (Header{}) {
				t.Errorf("header %v beside error %v", h, err)
			}
			return
		}
		if again := h.append(nil, len(b)-HeaderSize-tagSize); !bytes.Equal(again, b[:HeaderSize]) {
			t.Errorf("re-encoded as % x\nwas           % x", again, b[:HeaderSize])
		}
	})
}

// FuzzOpen: whatever is done to a good blob, it opens only unchanged, and the good
// one opens afterwards.
func FuzzOpen(f *testing.F) {
	f.Add(uint16(0), []byte{1}, uint16(0))
	f.Add(uint16(70), []byte{0xff, 0xff}, uint16(3))
	f.Fuzz(func(t *testing.T, at uint16, change []byte, cut uint16) {
		sealer, opener := testPair(t)
		state := testState(TLS_AES_256_GCM_SHA384, Client, Write)
		want, sealed := binding(state), cloneState(state)
		b := mustSeal(t, sealer, state)
		bad := bytes.Clone(b)
		for i, c := range change {
			bad[(int(at)+i)%len(bad)] ^= c
		}
		bad = bad[:len(bad)-int(cut)%len(bad)]
		if got, err := opener.Open(bad, want); !bytes.Equal(bad, b) && (err == nil || got != nil) {
			t.Fatalf("a changed blob opened: %v, %v", got, err)
		} else if err != nil {
			outcome(t, err)
			if got, err = opener.Open(b, want); err != nil || !equalState(got, sealed) {
				t.Fatalf("the good blob does not open afterwards: %v", err)
			}
		}
	})
}

func seedVectors(f *testing.F) {
	files, _ := filepath.Glob("testdata/vectors/*.txt")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for line := range bytes.Lines(text) {
			if value, ok := bytes.CutPrefix(line, []byte("blob: ")); ok {
				b := make([]byte, len(value)/2)
				if _, err := hex.Decode(b, bytes.TrimSpace(value)); err == nil {
					f.Add(b)
				}
			}
		}
	}
}
