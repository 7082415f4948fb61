// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"
)

func TestParseMirrors(t *testing.T) {
	tests := map[string]struct {
		output string
		want   mirrors
	}{
		"main and security": {
			output: "'http://one.test/debian/dists/bookworm/InRelease' one_InRelease 0 \n" +
				"'http://one.test/debian/dists/bookworm-updates/InRelease' one_InRelease 0 \n" +
				"'http://one.test/debian-security/dists/bookworm-security/InRelease' one_InRelease 0 \n" +
				"'http://one.test/debian/dists/bookworm/main/binary-amd64/Packages.xz' one_Packages 0 \n",
			want: mirrors{"http://one.test/debian", "http://one.test/debian-security"},
		},
		"a third party with the same code name": {
			output: "'https://party.test/linux/debian/dists/trixie/InRelease' x 0 \n" +
				"'http://two.test/mirror/dists/trixie-updates/InRelease' x 0 \n" +
				"'https://cloud.test/apt/dists/cloud-sdk-trixie/InRelease' x 0 \n",
			want: mirrors{main: "http://two.test/mirror"},
		},
		"one suite only": {
			output: "'http://three.test/debian/dists/sid/InRelease' x 0 \n",
			want:   mirrors{main: "http://three.test/debian"},
		},
		"none": {output: "'http://four.test/ubuntu/dists/noble/InRelease' x 0 \n"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := parseMirrors(test.output); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestSourcesList(t *testing.T) {
	list := sourcesList(mirrors{main: "http://m.test/debian"}, true, suites)
	if strings.Contains(list, "security") {
		t.Errorf("a machine without a security mirror has no such suite:\n%s", list)
	}
	if !strings.Contains(list, "signed-by="+keyring+"] http://m.test/debian trixie-backports main\n") {
		t.Errorf("no backports:\n%s", list)
	}
}

func TestParseStatus(t *testing.T) {
	if percent, ok := parseStatus("dlstatus:1:37.9000:Retrieving file 1 of 7"); !ok || percent != 37.9 {
		t.Errorf("got %v, %v", percent, ok)
	}
	for _, line := range []string{"", "Reading package lists...", "pmstatus:libc6:20:Preparing", "dlstatus:1:x:y"} {
		if _, ok := parseStatus(line); ok {
			t.Errorf("%q is no download status", line)
		}
	}
}

const shown = `Package: linux-image-cloud-amd64
Version: 7.3.4-1~bpo13+1
Depends: linux-base-cloud-amd64 (= 7.3.4-1~bpo13+1), linux-image-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1)
Description: Linux
 Several lines: of text

Package: linux-image-cloud-amd64
Version: 6.12.95-1~bpo12+1
Depends: linux-image-6.12.95+deb12-cloud-amd64 (= 6.12.95-1~bpo12+1)

Package: linux-image-cloud-amd64
Version: 6.12.117-1
Depends: linux-image-6.12.117+deb13-cloud-amd64 (= 6.12.117-1), kmod, linux-base (>= 4.3~)

Package: linux-image-cloud-amd64
Version: 6.1.192-2
Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)
`

func TestParseKernels(t *testing.T) {
	kernels := parseKernels(parseStanzas(shown))
	var got []string
	for _, k := range kernels {
		got = append(got, k.Series+" "+k.Release)
	}
	want := []string{"7 7.3.4+deb13-cloud-amd64", "6.12 6.12.117+deb13-cloud-amd64", "6.12 6.12.95+deb12-cloud-amd64",
		"6.1 6.1.0-56-cloud-amd64"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for word, release := range map[string]string{"6.1": want[3][4:], "6.12": want[1][5:], "7": want[0][2:], "7.3": want[0][2:],
		"6.12.95": want[2][5:], "6.1.192": want[3][4:], "6.1.0-56-cloud-amd64": want[3][4:]} {
		if k := pickKernel(kernels, word); k == nil || k.Release != release {
			t.Errorf("kernel %q is %+v, want %s", word, k, release)
		}
	}
	for _, word := range []string{"6.2", "6.", "", "5"} {
		if k := pickKernel(kernels, word); k != nil {
			t.Errorf("kernel %q is %s, want none", word, k.Release)
		}
	}
}

func TestSeriesOf(t *testing.T) {
	for version, want := range map[string]string{"6.1.192": "6.1", "6.12.117": "6.12", "6.16.3": "6.16", "7.3.4": "7", "7.0": "7", "8": "8"} {
		if got := seriesOf(version); got != want {
			t.Errorf("series of %s is %s, want %s", version, got, want)
		}
	}
}

func TestJoinKernels(t *testing.T) {
	kernels := parseKernels(parseStanzas(shown))
	rows := joinKernels(kernels[:2], kernels[2:])
	var got []string
	for _, row := range rows {
		got = append(got, row.Version+map[bool]string{true: " cached"}[row.Cached]+map[bool]string{true: " newest"}[row.Newest])
	}
	want := []string{"7.3.4-1~bpo13+1 newest", "6.12.117-1 newest", "6.12.95-1~bpo12+1 cached", "6.1.192-2 cached newest"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
