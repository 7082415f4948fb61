// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/offloadd/offloadd/blob"
)

func TestASessionNeverPrintsAKey(t *testing.T) {
	for _, suite := range []blob.CipherSuite{blob.TLS_AES_128_GCM_SHA256, blob.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256} {
		s := &Session{Read: testState(t, suite, blob.Server, blob.Read), Write: testState(t, suite, blob.Server, blob.Write)}
		type outer struct{ s, S any }
		var out []string
		for _, v := range []any{s, *s, outer{s, s}, outer{*s, *s}, []*Session{s}, map[string]*Session{"s": s}} {
			for _, verb := range "vsqxXdbotTpeEfFgGcUw" {
				for _, flags := range []string{"", "+", "#", "-", " ", "0", "#+"} {
					out = append(out, fmt.Sprintf("%"+flags+string(verb), v))
				}
			}
			j, _ := json.Marshal(v)
			out = append(out, string(j))
			var log bytes.Buffer
			slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v)
			slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v)
			out = append(out, log.String())
		}
		for _, secret := range []blob.Secret{s.Read.Key, s.Read.IV, s.Read.NextSecret, s.Write.Key, s.Write.IV, s.Write.NextSecret} {
			b := secret.Bytes()
			if len(b) == 0 {
				continue
			}
			for _, needle := range []string{string(b), hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)),
				base64.StdEncoding.EncodeToString(b), fmt.Sprint(b), fmt.Sprintf("%#v", b), fmt.Sprintf("%# x", b)} {
				for _, o := range out {
					if strings.Contains(o, strings.Trim(needle, "[]=")) {
						t.Errorf("%q tells a secret", o)
					}
				}
			}
		}
		if got := s.String(); !strings.Contains(got, "sequence number 0") {
			t.Errorf("%q says too little", got)
		}
		s.Destroy()
		s.Destroy()
		if !bytes.Equal(s.Read.Key.Bytes(), make([]byte, s.Read.Key.Len())) {
			t.Error("not destroyed")
		}
	}
	var none *Session
	none.Destroy()
	if none.String() != "no session" {
		t.Error(none.String())
	}
}
