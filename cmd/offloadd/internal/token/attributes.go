// SPDX-License-Identifier: Apache-2.0

package token

import (
	"errors"
	"fmt"
	"strings"
)

// Characters that stand for themselves in a value, beside letters and digits
// (RFC 7512, Section 2.3: unreserved, pk11-path-res-avail, pk11-query-res-avail).
const (
	pathMarks  = "-._~" + ":[]@!$'()*+,=" + "&"
	queryMarks = "-._~" + ":[]@!$'()*+,=" + "/?|"
)

// attributes splits a path or a query into its attributes. No error tells a value:
// somebody may have written a PIN there.
func attributes(text, separator, marks string) (map[string]string, error) {
	values := make(map[string]string)
	if text == "" {
		return values, nil
	}
	for i, part := range strings.Split(text, separator) {
		name, value, ok := strings.Cut(part, "=")
		if !ok || name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz-") != "" {
			return nil, fmt.Errorf("attribute %d is not \"name=value\"", i+1)
		}
		if _, twice := values[name]; twice {
			return nil, fmt.Errorf("%s is given twice", name)
		}
		decoded, err := unescape(value, marks)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if decoded == "" {
			return nil, fmt.Errorf("%s is empty", name)
		}
		values[name] = decoded
	}
	return values, nil
}

// unescape decodes percent-encoding (RFC 3986, Section 2.1).
func unescape(s, marks string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%':
			if i+2 >= len(s) {
				return "", errors.New("ends within a percent-encoding")
			}
			high, low := hexDigit(s[i+1]), hexDigit(s[i+2])
			if high < 0 || low < 0 {
				return "", errors.New("has a percent sign without two hexadecimal digits; write % itself as %25")
			}
			b.WriteByte(byte(high<<4 | low))
			i += 2
		case isAlphanumeric(c) || strings.IndexByte(marks, c) >= 0:
			b.WriteByte(c)
		default:
			return "", errors.New("has a character that must be percent-encoded, a space for example as %20")
		}
	}
	return b.String(), nil
}

func hexDigit(c byte) int {
	if !isAlphanumeric(c) {
		return -1
	}
	return strings.IndexByte("0123456789abcdef", c|0x20)
}

func isAlphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}
