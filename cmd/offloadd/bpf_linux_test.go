// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/offloadd/offloadd/bpf"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// TestBPFIsLoadedShownAndUnloaded in a directory of its own.
func TestBPFIsLoadedShownAndUnloaded(t *testing.T) {
	if !ktlstest.InVM() {
		t.Skip("this loads BPF programs into the kernel: run it with test/vm")
	}
	const dir = "/sys/fs/bpf/test-of-commands"
	t.Cleanup(func() { call("", "bpf", "unload", "--dir", dir) })
	for _, step := range []struct {
		args   []string
		before func() error
		code   int
		want   []string // in what is printed
	}{
		{[]string{"status"}, nil, exitMachine, []string{"offloadd bpf load"}},
		{[]string{"unload"}, nil, exitOK, []string{"nothing was loaded"}},
		{[]string{"load", "--form", "fmod_ret"}, nil, exitOK, []string{"guards act as fmod_ret", "security_socket_getsockopt", "new\n"}},
		{[]string{"load", "--form", "fmod_ret", "--json"}, nil, exitOK, []string{`"form": "fmod_ret"`, `"change": "same"`}},
		{[]string{"status"}, nil, exitOK, []string{"guards act as fmod_ret", "0 sockets are managed", dir}},
		{[]string{"status", "--json"}, func() error { return os.Remove(dir + "/links/key_set-fmod_ret-security_socket_setsockopt") },
			exitMachine, []string{`"off": "not attached`, "key_set of the key guard is off"}},
		{[]string{"unload"}, nil, exitOK, []string{"unloaded"}},
		{[]string{"status"}, nil, exitMachine, []string{"offloadd bpf load"}},
	} {
		if step.before != nil {
			if err := step.before(); err != nil {
				t.Fatal(err)
			}
		}
		code, out, stderr := call("", append(append([]string{"bpf"}, step.args...), "--dir", dir)...)
		if code != step.code {
			t.Fatalf("%q exits with %d: %s", step.args, code, stderr)
		}
		for _, want := range step.want {
			if !strings.Contains(out+stderr, want) {
				t.Errorf("%q says %q, without %q", step.args, out+stderr, want)
			}
		}
		if slices.Contains(step.args, "--json") && json.Unmarshal([]byte(out), new(bpf.Report)) != nil {
			t.Errorf("%q is no JSON: %s", step.args, out)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}
