// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/offloadd/offloadd/blob"
)

func TestParseStats(t *testing.T) {
	s, err := parseStats(strings.NewReader("TlsCurrTxSw                     \t3\nTlsDecryptError 7\n\nTlsNew 9\n"))
	if err != nil || s.CurrTxSw != 3 || s.DecryptError != 7 || s.Other["TlsNew"] != 9 || len(s.Other) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"TlsTxSw", "TlsTxSw x", "TlsTxSw 1 2", "TlsTxSw -1"} {
		if _, err := parseStats(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestReadStatsCountsOurSockets(t *testing.T) {
	before, err := ReadStats()
	if errors.Is(err, ErrNoTLS) && os.Getenv("OFFLOADD_VM_KERNEL") == "" {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	limitedConns(t, 10)
	after, err := ReadStats()
	if err != nil || after.TxSw < before.TxSw+2 || after.RxSw < before.RxSw+2 || len(after.Other) > 0 {
		t.Errorf("%+v, %v", after, err)
	}
}

// nlattr encodes one attribute, padded.
func nlattr(kind uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(nlAttributeHeader+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func TestDecodeULP(t *testing.T) {
	u16 := func(n uint16) []byte { return binary.NativeEndian.AppendUint16(nil, n) }
	var tls []byte
	for _, a := range [][]byte{
		nlattr(1, u16(0x0303)...), nlattr(tlsInfoTXConf, u16(3)...), nlattr(tlsInfoRXConf, u16(2)...),
		nlattr(tlsInfoZeroCopyRO), nlattr(tlsInfoRXNoPad), nlattr(tlsInfoTXMaxPayload, u16(1000)...), nlattr(99, 1),
	} {
		tls = append(tls, a...)
	}
	name := nlattr(1, []byte("tls\x00")...)
	message := append(nlattr(3, 1, 2, 3), nlattr(diagULPInfo, append(name, nlattr(ulpInfoTLS|0x8000, tls...)...)...)...)
	got, ok := decodeULP(message)
	if want := (ulpTLS{HW, SW, true, true, 1000}); !ok || got != want {
		t.Errorf("%+v", got)
	}
	for i := range len(message) {
		decodeULP(message[:i]) // must not panic
	}
	if _, ok := decodeULP(nlattr(3, 1)); ok {
		t.Error("there was nothing to decode")
	}
}

func TestInfoSaysWhyNotBetter(t *testing.T) {
	for _, c := range []struct {
		info Info
		want string
	}{
		{Info{blob.TLS12, blob.AES128GCM, HW, HW, "", true, false, 0}, ""},
		{Info{blob.TLS12, blob.AES128GCM, SW, HW, "", false, false, 0}, "stops sending"},
		{Info{blob.TLS12, blob.AES128GCM, SW, SW, "", false, false, 0}, "device"},
		{Info{blob.TLS13, blob.AES128GCM, SW, SW, "", false, false, 0}, "only TLS 1.2"},
		{Info{blob.TLS12, blob.ChaCha20Poly1305, SW, SW, "", false, false, 0}, "only AES-GCM"},
		{Info{blob.TLS13, blob.AES128GCM, Base, SW, "", false, false, 0}, "clear text"},
	} {
		got := c.info.whyNotHardware()
		if !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%v: %q", c.info, got)
		}
	}
	info := Info{Version: blob.TLS13, AEAD: blob.AES128GCM, TX: SW, RX: SW, Reason: "why"}
	if got, want := info.String(), "TLS 1.3 AES-128-GCM, tx sw, rx sw (why)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	b, err := json.Marshal(info)
	want := `{"version":"TLS 1.3","aead":"AES-128-GCM","tx":"sw","rx":"sw","reason":"why"}`
	if err != nil || string(b) != want {
		t.Errorf("%s, %v", b, err)
	}
}
