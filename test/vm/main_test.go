// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"
)

func TestPrepareArgs(t *testing.T) {
	for args, want := range map[string]string{
		"exec -kernel 6.12 /tmp/a.test -test.v -kernel x": "exec --kernel 6.12 -- /tmp/a.test -test.v -kernel x",
		"exec -kernel=7 -- openssl version":               "exec --kernel=7 -- openssl version",
		"exec --stdin -without-tls cat -":                 "exec --stdin --without-tls -- cat -",
		"exec -append a=b -env A=1 -env B sh -c x":        "exec --append a=b --env A=1 --env B -- sh -c x",
		"test -kernels 6.1,7 -run X -v ./...":             "test --kernels 6.1,7 -- -run X -v ./...",
		"test ./...":                                      "test -- ./...",
		"test -json -- -json ./...":                       "test --json -- -json ./...",
		"exec -h":                                         "exec --help",
		"kernels --json":                                  "kernels --json",
		"--help":                                          "--help",
		"":                                                "",
		"exec -kernel":                                    "exec --kernel",
	} {
		got := strings.Join(prepareArgs(rootCommand(), strings.Fields(args)), " ")
		if got != want {
			t.Errorf("vm %s becomes %q, want %q", args, got, want)
		}
	}
}

func TestTimeoutFor(t *testing.T) {
	for args, want := range map[string]time.Duration{
		"/tmp/a.test -test.timeout=10m0s": 11 * time.Minute,
		"/tmp/a.test -test.timeout=0":     time.Hour,
		"sleep 10":                        time.Hour,
	} {
		if got := timeoutFor(strings.Fields(args), time.Hour); got != want {
			t.Errorf("%s: %v, want %v", args, got, want)
		}
	}
}

func TestQuoteWord(t *testing.T) {
	for word, want := range map[string]string{"plain": "plain", "two words": "'two words'", "it's": `"it's"`, "": "''"} {
		if got := quoteWord(word); got != want {
			t.Errorf("%q becomes %s, want %s", word, got, want)
		}
	}
}
