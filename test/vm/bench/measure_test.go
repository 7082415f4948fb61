// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

// What was measured is only counted if it is what the row says.
func TestAMeasurementIsRefusedUnlessItIsWhatItSays(t *testing.T) {
	kernel := request{args: []string{"--tls", "discard"}, units: 10, done: answered, suite: suiteAES, kernel: true}
	user, upload := kernel, kernel
	user.kernel = false
	upload.args = []string{"--tls", "ktls", "-P", "2"}
	uploadUser := upload
	uploadUser.kernel = false
	resumed := user
	resumed.resumed = 10
	whole := answer{Suite: suiteAES, Requests: 10, TLSResumed: 10}
	for name, test := range map[string]struct {
		request request
		said    answer
		keys    int // that the kernel was given meanwhile
		why     string
	}{
		"kernel TLS":                        {kernel, whole, 1, ""},
		"no kernel TLS":                     {kernel, whole, 0, "did not use the kernel's"},
		"user space":                        {user, whole, 0, ""},
		"kernel TLS instead of user space":  {user, whole, 1, "and should not"},
		"the key is the client's":           {upload, whole, 1, "did not use the kernel's"},
		"both ends":                         {upload, whole, 4, ""},
		"the client's alone":                {uploadUser, whole, 2, ""},
		"more than the client's":            {uploadUser, whole, 4, "and should not"},
		"less work":                         {kernel, answer{Suite: suiteAES, Requests: 9}, 1, "9 of 10"},
		"more work":                         {kernel, answer{Suite: suiteAES, Requests: 11}, 1, "11 of 10"},
		"another suite":                     {kernel, answer{Suite: suiteChaCha, Requests: 10}, 1, "suite"},
		"no TLS":                            {kernel, answer{Requests: 10}, 1, "suite"},
		"resumed":                           {resumed, whole, 0, ""},
		"one full handshake among the rest": {resumed, answer{Suite: suiteAES, Requests: 10, TLSResumed: 9}, 0, "9 of 10 handshakes"},
	} {
		err := test.request.check(test.said, test.keys)
		if (err == nil) != (test.why == "") || err != nil && !strings.Contains(err.Error(), test.why) {
			t.Errorf("%s: %v, want %q", name, err, test.why)
		}
	}
}

// Each row of the gate exists, and is marked for it; all names are unique, as the raw figures are found by them.
func TestDisciplinesAreSound(t *testing.T) {
	for _, o := range []options{{}, {quick: true}, {gate: true}} {
		names := map[string]bool{}
		for _, d := range o.disciplines() {
			if names[d.Name] {
				t.Errorf("two disciplines are %s", d.Name)
			}
			names[d.Name] = true
			rows := map[string]bool{}
			for _, one := range d.rows {
				if rows[one.Name] {
					t.Errorf("two rows of %s are %s", d.Name, one.Name)
				}
				rows[one.Name] = true
				if d.work == nil && one.work == nil {
					t.Errorf("%s, %s does nothing", d.Name, one.Name)
				}
				if one.gate && one.Kind == result.Peer && one.Name != rowTLS {
					t.Errorf("the gate needs a peer, %s, and has no disk of them", one.Name)
				}
			}
			if d.Baseline != "" && !rows[d.Baseline] {
				t.Errorf("%s has no row %s", d.Name, d.Baseline)
			}
		}
	}
}

func TestTheChoiceIsByDisciplineAndRow(t *testing.T) {
	b := &bench{options: options{only: regexp.MustCompile("^download-1/nginx")}}
	count := 0
	for _, d := range b.disciplines() {
		count += len(b.chosen(d))
	}
	if count != 3 {
		t.Errorf("%d rows of nginx in the first discipline", count)
	}
	b.options = options{only: regexp.MustCompile(""), gate: true}
	if rows := b.chosen(b.disciplines()[0]); len(rows) != 2 {
		t.Errorf("the gate looks at %d downloads", len(rows))
	}
	if err := b.run(nil); err == nil {
		t.Error("a choice of nothing is a bench")
	}
}

func TestNumbersOfTheKernelAndOfPrograms(t *testing.T) {
	stat := []byte("usage_usec 300\nuser_usec 100\nsystem_usec 200\nlonely\n")
	if value, err := field(stat, "user_usec"); value != 100 || err != nil {
		t.Errorf("%v, %v", value, err)
	}
	for _, name := range []string{"user", "lonely", "absent"} {
		if _, err := field(stat, name); err == nil {
			t.Errorf("%s has a value", name)
		}
	}
	values, err := flatten([]byte(`{"count": 2, "steps": {"seal_us": {"p50": 1.5}}, "text": "x"}`))
	if err != nil || len(values) != 2 || values["steps_seal_us_p50"] != 1.5 {
		t.Errorf("%v, %v", values, err)
	}
	if got := (cpu{300, 100}).minus(cpu{100, 50}); got != (cpu{200, 50}) {
		t.Errorf("%+v", got)
	}
}
