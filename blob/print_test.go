// SPDX-License-Identifier: Apache-2.0

package blob

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// checkNeverPrints formats every value with every verb, flag and encoder, and
// looks for the needles in each of the ways bytes are written.
func checkNeverPrints(t *testing.T, needles [][]byte, values map[string]any) {
	t.Helper()
	for name, v := range values {
		for how, text := range printed(v) {
			for _, n := range needles {
				if way := findSecret(text, n); way != "" {
					t.Errorf("%s under %s shows the secret as %s", name, how, way)
				}
			}
		}
	}
}

func printed(v any) map[string]string {
	out := map[string]string{}
	for verb := rune(' ' + 1); verb < 127; verb++ {
		for _, flag := range []string{"", "+", "#", " ", "0", "-20", ".40"} {
			format := "%" + flag + string(verb)
			out[format] = fmt.Sprintf(format, v)
		}
	}
	if b, err := json.Marshal(v); err == nil {
		out["json"] = string(b)
	}
	if b, err := xml.Marshal(v); err == nil {
		out["xml"] = string(b)
	}
	for how, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"slog text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"slog json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var b bytes.Buffer
		slog.New(handler(&b)).Info("m", "v", v)
		out[how] = b.String()
	}
	return out
}

func findSecret(text string, n []byte) string {
	lower := strings.ToLower(text)
	decimal := strings.Trim(fmt.Sprint(n), "[]")
	goSyntax := strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", n), "[]byte{"), "}")
	for way, form := range map[string]string{
		"raw bytes": string(n), "hex": hex.EncodeToString(n), "spaced hex": fmt.Sprintf("% x", n),
		"decimal": decimal, "comma decimal": strings.ReplaceAll(decimal, " ", ","), "Go syntax": goSyntax,
		"octal": strings.Trim(fmt.Sprintf("%o", n), "[]"), "binary": strings.Trim(fmt.Sprintf("%b", n), "[]"),
		"quoted": strings.Trim(fmt.Sprintf("%+q", n), `"`),
	} {
		if strings.Contains(text, form) || strings.Contains(lower, form) {
			return way
		}
	}
	if strings.Contains(text, base64.StdEncoding.EncodeToString(n[:len(n)/3*3])) {
		return "base64"
	}
	return ""
}

// TestTheSearchForSecretsFindsThem keeps the test above honest.
func TestTheSearchForSecretsFindsThem(t *testing.T) {
	n := []byte{0xa7, 0xa7, 0xa7, 0xa7, 0xa7, 0xa7}
	type leaky struct{ Key []byte }
	for _, how := range []string{"%v", "%x", "%X", "%#v", "%s", "%q", "%+q", "%d", "%o", "%b", "% x", "json", "slog text", "slog json"} {
		if findSecret(printed(leaky{n})[how], n) == "" {
			t.Errorf("a leak under %s is not found: %q", how, printed(leaky{n})[how])
		}
	}
}
