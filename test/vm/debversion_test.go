// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestCompareVersions(t *testing.T) {
	// Each is older than the next.
	ascending := []string{
		"6.1.176-1", "6.1.192-2", "6.1.192-10", "6.12.95-1~bpo12+1", "6.12.95-1", "6.12.107-1", "6.12.117-1",
		"6.12.117+deb13-1", "7.0~rc7-1~exp1", "7.0-1", "7.3.4-1~bpo13+1", "7.3.4-1", "7.3.4-1+b1", "1:1.0-1",
	}
	for i, older := range ascending {
		for j, newer := range ascending {
			got := compareVersions(older, newer)
			if (i < j && got >= 0) || (i == j && got != 0) || (i > j && got <= 0) {
				t.Errorf("compareVersions(%q, %q) = %d", older, newer, got)
			}
		}
	}
	if compareVersions("1.0-1", "0:1.00-1") != 0 {
		t.Error("an epoch of zero and leading zeros should make no difference")
	}
}
