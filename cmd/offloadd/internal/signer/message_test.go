// SPDX-License-Identifier: Apache-2.0

package signer

import (
	"bytes"
	"crypto"
	"errors"
	"strings"
	"testing"
)

func goodRequest() *request {
	return &request{operation: opSign, key: 0x0102, number: 0x03040506, public: [32]byte{7}, scheme: schemePSS, hash: crypto.SHA384, digest: bytes.Repeat([]byte{9}, 48)}
}

func TestARequestHasTheBytesOfItsDescription(t *testing.T) {
	want := "\x01\x02\x01\x02\x03\x04\x05\x06" + "\x07" + strings.Repeat("\x00", 31) + "\x02\x05\x00\x30" + strings.Repeat("\x09", 48)
	if got := goodRequest().encode(); string(got) != want {
		t.Errorf("% x\nwant % x", got, want)
	}
	response := response{status: statusDone, number: 0x03040506, signature: []byte("abc")}
	if got := response.encode(); string(got) != "\x01\x00\x00\x03\x03\x04\x05\x06abc" {
		t.Errorf("% x", got)
	}
}

func TestWhatIsNotOfTheFormIsMalformed(t *testing.T) {
	good := goodRequest().encode()
	if _, err := decodeRequest(good); err != nil {
		t.Fatal(err)
	}
	change := func(at int, b ...byte) []byte {
		changed := bytes.Clone(good)
		copy(changed[at:], b)
		return changed
	}
	for name, b := range map[string][]byte{
		"nothing":              {},
		"half a header":        good[:20],
		"a digest cut off":     good[:len(good)-1],
		"a byte too many":      append(bytes.Clone(good), 0),
		"another version":      change(0, 2),
		"operation 0":          change(1, 0),
		"operation 3":          change(1, 3),
		"a check with digest":  change(1, 1),
		"scheme 0":             change(40, 0),
		"scheme 5":             change(40, 5),
		"no hash":              change(41, 0),
		"hash SHA-1":           change(41, 2),
		"hash of another size": change(41, 4),
		"another size":         change(43, 0x2f),
		"Ed25519 with a hash":  change(40, 4),
	} {
		if r, err := decodeRequest(b); !errors.Is(err, errMalformed) || r != nil {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	long := &request{operation: opSign, scheme: schemeEd25519, digest: make([]byte, mostMessage+1)}
	if _, err := decodeRequest(long.encode()); !errors.Is(err, errMalformed) {
		t.Errorf("a message of %d bytes: %v", mostMessage+1, err)
	}
	for name, b := range map[string]string{
		"half a response": "\x01\x00\x00", "another version": "\x02\x00\x00\x00\x00\x00\x00\x00", "unknown status": "\x01\x05\x00\x00\x00\x00\x00\x00",
		"a byte too many": "\x01\x00\x00\x00\x00\x00\x00\x00x", "a signature and a failure": "\x01\x01\x00\x01\x00\x00\x00\x00x",
		"too long": "\x01\x00\x04\x01\x00\x00\x00\x00" + strings.Repeat("x", 1025),
	} {
		if r, err := decodeResponse([]byte(b)); !errors.Is(err, errMalformed) || r != nil {
			t.Errorf("response, %s: %+v, %v", name, r, err)
		}
	}
}

// FuzzDecodeRequest: no panic; what decodes encodes to the same bytes.
func FuzzDecodeRequest(f *testing.F) {
	f.Add(goodRequest().encode())
	f.Add((&request{operation: opCheck}).encode())
	f.Add((&request{operation: opSign, scheme: schemeEd25519, digest: []byte("message")}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRequest(b)
		if err != nil {
			if r != nil {
				t.Error("a result beside an error")
			}
			return
		}
		if again := r.encode(); !bytes.Equal(again, b) || len(b) > requestFixed+mostMessage {
			t.Errorf("% x\nencodes to % x", b, again)
		}
	})
}

// FuzzDecodeResponse: the same for what a worker decodes.
func FuzzDecodeResponse(f *testing.F) {
	f.Add((&response{number: 1, signature: []byte("signature")}).encode())
	f.Add((&response{status: statusToken}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeResponse(b)
		if err != nil {
			return
		}
		if again := r.encode(); !bytes.Equal(again, b) {
			t.Errorf("% x\nencodes to % x", b, again)
		}
		if r.status != statusDone && r.status.Error() == "" {
			t.Errorf("status %d says nothing", r.status)
		}
	})
}
