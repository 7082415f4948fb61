// SPDX-License-Identifier: Apache-2.0

package main

import "strings"

// compareVersions orders two Debian package versions as deb-version(7) does: negative if a is older than b, zero if
// they are the same, positive if a is newer.
func compareVersions(a, b string) int {
	epochA, upstreamA, revisionA := splitVersion(a)
	epochB, upstreamB, revisionB := splitVersion(b)
	if d := compareVersionPart(epochA, epochB); d != 0 {
		return d
	}
	if d := compareVersionPart(upstreamA, upstreamB); d != 0 {
		return d
	}
	return compareVersionPart(revisionA, revisionB)
}

// splitVersion takes [epoch:]upstream[-revision] apart.
func splitVersion(v string) (epoch, upstream, revision string) {
	epoch, upstream, found := strings.Cut(v, ":")
	if !found {
		epoch, upstream = "0", v
	}
	if i := strings.LastIndexByte(upstream, '-'); i >= 0 {
		upstream, revision = upstream[:i], upstream[i+1:]
	}
	return epoch, upstream, revision
}

// compareVersionPart alternates between text and numbers, both possibly empty, until one differs.
func compareVersionPart(a, b string) int {
	for a != "" || b != "" {
		var textA, textB, numberA, numberB string
		textA, a = splitAt(a, isDigit)
		textB, b = splitAt(b, isDigit)
		if d := compareVersionText(textA, textB); d != 0 {
			return d
		}
		numberA, a = splitAt(a, isNoDigit)
		numberB, b = splitAt(b, isNoDigit)
		if d := compareNumber(numberA, numberB); d != 0 {
			return d
		}
	}
	return 0
}

func compareVersionText(a, b string) int {
	for i := range max(len(a), len(b)) {
		if d := weight(a, i) - weight(b, i); d != 0 {
			return d
		}
	}
	return 0
}

// weight makes a tilde sort before the end of the string, and letters before all other characters.
func weight(s string, i int) int {
	switch {
	case i >= len(s):
		return 0
	case s[i] == '~':
		return -1
	case s[i] >= 'a' && s[i] <= 'z', s[i] >= 'A' && s[i] <= 'Z':
		return int(s[i])
	default:
		return int(s[i]) + 256
	}
}

// compareNumber works on digits of any length.
func compareNumber(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}

func splitAt(s string, stop func(byte) bool) (head, rest string) {
	for i := range len(s) {
		if stop(s[i]) {
			return s[:i], s[i:]
		}
	}
	return s, ""
}

func isDigit(c byte) bool   { return c >= '0' && c <= '9' }
func isNoDigit(c byte) bool { return !isDigit(c) }
