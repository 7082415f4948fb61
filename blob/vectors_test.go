// SPDX-License-Identifier: Apache-2.0

package blob

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata/vectors anew")

// vector is one file of testdata/vectors (FORMAT.md, section 8).
type vector struct {
	comment, expect             string
	seed, instance, setup, blob []byte
	opened                      uint64
	cookie                      uint64
	role                        Role
	direction                   Direction
	now                         int64 // Unix milliseconds
	state                       string
}

var outcomes = map[string]error{
	"ok": nil, "malformed": ErrMalformed, "version": ErrVersion, "recipient": ErrRecipient, "cookie": ErrCookie,
	"direction": ErrDirection, "expired": ErrExpired, "replayed": ErrReplayed, "skipped": ErrSkipped,
	"sealed": ErrSealed, "state": ErrState,
}

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	files, _ := filepath.Glob("testdata/vectors/*.txt")
	seen := map[string]bool{}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			v := readVector(t, file)
			want, ok := outcomes[v.expect]
			if !ok {
				t.Fatalf("unknown expect: %q", v.expect)
			}
			seen[v.expect] = true
			opener, err := v.key(t).NewOpener(v.setup)
			if err != nil {
				t.Fatal(err)
			}
			for range v.opened {
				if _, _, err := opener.ratchet.next(); err != nil {
					t.Fatal(err)
				}
			}
			state, err := opener.Open(v.blob, Binding{v.cookie, v.role, v.direction, time.UnixMilli(v.now)})
			if got := outcome(t, err); got != want {
				t.Fatalf("%s: got %v, want %v", v.comment, err, want)
			}
			if err == nil && describe(state) != v.state {
				t.Errorf("state %s\nwant  %s", describe(state), v.state)
			}
		})
	}
	for name := range outcomes {
		if !seen[name] {
			t.Errorf("no vector expects %q", name)
		}
	}
}

func (v *vector) key(t *testing.T) *PrivateKey {
	kem, _, _ := hpkeSuite()
	key, err := kem.DeriveKeyPair(v.seed)
	if err != nil {
		t.Fatal(err)
	}
	return &PrivateKey{instance: Instance(v.instance), key: key, seen: map[SealerID]struct{}{}}
}

func describe(s *State) string {
	if s.Kind() == KindReference {
		return fmt.Sprintf("epoch=%d seq=%d device=%s digest=%v next=%x", s.Epoch, s.Seq, s.Held.Device, s.Held.Digest, s.NextSecret.Bytes())
	}
	return fmt.Sprintf("epoch=%d seq=%d key=%x iv=%x next=%x", s.Epoch, s.Seq, s.Key.Bytes(), s.IV.Bytes(), s.NextSecret.Bytes())
}

func readVector(t *testing.T, file string) *vector {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fields := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), ": ")
		if !ok {
			t.Fatalf("line %q is not name: value", lines.Text())
		}
		fields[name] = value
	}
	number := func(name string) uint64 {
		n, err := strconv.ParseUint(fields[name], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return &vector{
		comment: fields["comment"], expect: fields["expect"], state: fields["state"],
		seed: unhex(t, fields["seed"]), instance: unhex(t, fields["instance"]),
		setup: unhex(t, fields["setup"]), blob: unhex(t, fields["blob"]),
		opened: number("opened"), cookie: number("cookie"), now: int64(number("now")),
		role: Role(number("role")), direction: Direction(number("direction")),
	}
}

// writeVectors makes every vector from a good blob by one change.
func writeVectors(t *testing.T) {
	base := vector{seed: bytes.Repeat([]byte{0x42}, 32), instance: []byte("instance-of-test"), cookie: 77, role: Server, direction: Write, now: testTime.UnixMilli()}
	sealer, setup, err := NewSealer(base.key(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	base.setup = setup
	good := func(suite CipherSuite) (Blob, string) {
		secret := bytes.Repeat([]byte{0x33}, max(suite.secretSize(), 48))
		var s *State
		if suite.Version() == TLS13 {
			s, err = NewState13(suite, Server, Write, NewSecret(secret[:suite.secretSize()]))
		} else {
			_, s, err = NewStates12(suite, Server, NewSecret(secret), make([]byte, 32), make([]byte, 32))
		}
		if err != nil {
			t.Fatal(err)
		}
		s.Cookie, s.Seq = base.cookie, 1
		described := describe(s)
		return mustSeal(t, sealer, s), described
	}
	write := func(name, expect, comment string, suite CipherSuite, change func(*vector)) {
		v := base
		v.expect, v.comment, v.opened = expect, comment, sealer.ratchet.index
		v.blob, v.state = good(suite)
		change(&v)
		var out bytes.Buffer
		for _, f := range [][2]string{
			{"expect", v.expect}, {"comment", v.comment}, {"seed", hex.EncodeToString(v.seed)},
			{"instance", hex.EncodeToString(v.instance)}, {"setup", hex.EncodeToString(v.setup)},
			{"opened", fmt.Sprint(v.opened)}, {"cookie", fmt.Sprint(v.cookie)},
			{"role", fmt.Sprint(uint8(v.role))}, {"direction", fmt.Sprint(uint8(v.direction))},
			{"now", fmt.Sprint(v.now)}, {"blob", hex.EncodeToString(v.blob)}, {"state", v.state},
		} {
			fmt.Fprintf(&out, "%s: %s\n", f[0], f[1])
		}
		if err := os.WriteFile("testdata/vectors/"+name+".txt", out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const suite = TLS_AES_128_GCM_SHA256
	for _, s := range CipherSuites() {
		write("ok_"+strings.ToLower(s.String()), "ok", "a good blob of "+s.String(), s, func(*vector) {})
	}
	set := func(offset int, value ...byte) func(*vector) {
		return func(v *vector) { copy(v.blob[offset:], value) }
	}
	write("malformed_empty", "malformed", "no bytes", suite, func(v *vector) { v.blob = nil })
	write("malformed_magic", "malformed", "the magic is wrong", suite, set(0, 'o'))
	write("malformed_truncated", "malformed", "the last byte is missing", suite, func(v *vector) { v.blob = v.blob[:len(v.blob)-1] })
	write("malformed_trailing", "malformed", "a byte follows", suite, func(v *vector) { v.blob = append(v.blob, 0) })
	write("malformed_role", "malformed", "role 3", suite, set(10, 3))
	write("malformed_direction", "malformed", "direction 0", suite, set(11, 0))
	write("malformed_suite", "malformed", "a suite that is not in the table", suite, set(14, 0x13, 0x04))
	write("malformed_tls_version", "malformed", "a TLS 1.3 suite with TLS 1.2", suite, set(12, 3, 3))
	write("malformed_epoch", "malformed", "an epoch in TLS 1.2", TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, set(19, 1))
	write("malformed_cookie", "malformed", "cookie 0", suite, set(48, make([]byte, 8)...))
	write("malformed_expiry", "malformed", "an expiry after the year 9999", suite, set(56, 0xff))
	write("malformed_length", "malformed", "length is not the suite's", suite, set(67, 0))
	write("version_format", "version", "format version 2", suite, set(8, 2))
	write("version_kind", "version", "kind 3", suite, set(9, 3))
	write("recipient_instance", "recipient", "another instance", suite, set(24, 0))
	write("recipient_sealer", "recipient", "another sealer", suite, func(v *vector) { v.blob[40] ^= 1 })
	write("cookie", "cookie", "the descriptor is another socket", suite, func(v *vector) { v.cookie++ })
	write("direction", "direction", "the other direction is wanted", suite, func(v *vector) { v.direction = Read })
	write("direction_role", "direction", "the other role is wanted", suite, func(v *vector) { v.role = Client })
	write("expired", "expired", "now is the expiry", suite, func(v *vector) { v.now = testTime.Add(time.Minute).UnixMilli() })
	write("replayed", "replayed", "opened before", suite, func(v *vector) { v.opened++ })
	write("skipped", "skipped", "1025 blobs are missing", suite, func(v *vector) {
		binary.BigEndian.PutUint32(v.blob[20:], uint32(v.opened)+1025)
	})
	write("sealed_tag", "sealed", "a bit of the tag is flipped", suite, func(v *vector) { v.blob[len(v.blob)-1] ^= 1 })
	write("sealed_body", "sealed", "a bit of the ciphertext is flipped", suite, func(v *vector) { v.blob[HeaderSize] ^= 1 })
	write("sealed_epoch", "sealed", "the header claims another epoch", suite, set(19, 9))
	write("sealed_index", "sealed", "the header claims a later index", suite, func(v *vector) { v.blob[23]++ })
	write("state_zero_key", "state", "authentic, but the key is all zero", suite, func(v *vector) { v.blob = sealRaw(t, sealer, v.blob, make([]byte, 16)); v.opened++ })
	const held = TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
	reference := func(body ...byte) func(*vector) {
		return func(v *vector) {
			v.blob, v.opened = sealRaw(t, sealer, asReference(v.blob), body), v.opened+1
			v.state = "epoch=0 seq=1 device=nic0 digest=" + strings.Repeat("44", 16) + " next="
		}
	}
	digest, seq := bytes.Repeat([]byte{0x44}, 16), []byte{0, 0, 0, 0, 0, 0, 0, 1}
	device := func(name string) []byte { return append([]byte(name), make([]byte, 16-len(name))...) }
	write("ok_reference", "ok", "a good reference to a key in a device", held, reference(slices.Concat(digest, device("nic0"), seq)...))
	write("malformed_kind_length", "malformed", "a blob of material that claims to be a reference", held, set(9, 2))
	write("state_device_empty", "state", "authentic, but a reference to no device", held, reference(slices.Concat(digest, device(""), seq)...))
	write("state_device_padding", "state", "authentic, but a byte follows the device's name", held, reference(slices.Concat(digest, device("nic0\x00x"), seq)...))
	write("state_device_long", "state", "authentic, but a device's name of 16 bytes", held, reference(slices.Concat(digest, device("abcdefghijklmnop"), seq)...))
	write("state_digest", "state", "authentic, but a reference to no key", held, reference(slices.Concat(make([]byte, 16), device("nic0"), seq)...))
	write("state_seq", "state", "authentic, but the sequence number is 2^64-1", suite, func(v *vector) {
		body := bytes.Repeat([]byte{0xff}, bodySize(KindMaterial, suite))
		v.blob = sealRaw(t, sealer, v.blob, body)
		v.opened++
	})
}

// asReference changes the kind in the header of b, and the length with it.
func asReference(b Blob) Blob {
	h, err := Inspect(b)
	if err != nil {
		panic(err)
	}
	h.Kind = KindReference
	size := bodySize(KindReference, h.Suite)
	return append(h.append(nil, size), make([]byte, size+tagSize)...)
}

// sealRaw seals a body that Seal would refuse, with the header of b.
func sealRaw(t *testing.T, s *Sealer, b Blob, body []byte) Blob {
	h, err := Inspect(b)
	if err != nil {
		t.Fatal(err)
	}
	index, key, err := s.ratchet.next()
	if err != nil {
		t.Fatal(err)
	}
	h.Index = index
	full := make([]byte, bodySize(h.Kind, h.Suite))
	copy(full, body)
	out := h.append(nil, len(full))
	return blobAEAD(key).Seal(out, blobNonce(), full, bytes.Clone(out))
}
