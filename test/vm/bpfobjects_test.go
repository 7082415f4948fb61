// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func buildBPF(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the compiler needs root, for chroot")
	}
	fetcher, err := newFetcher()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := fetcher.bpfObjects(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func TestCommittedBPFObjectsAreWhatTheirSourcesCompileTo(t *testing.T) {
	if err := compareObjects("../../bpf", buildBPF(t, "../../bpf/src")); err != nil {
		t.Error(err)
	}
}

func TestBPFObjectsAreCompared(t *testing.T) {
	built := map[string][]byte{"one.o": []byte("one"), "two.o": []byte("two")}
	for _, test := range []struct {
		name   string
		change map[string]string // of the directory; empty: the file is not there
		want   string            // in the error
	}{
		{"all as built", nil, ""},
		{"one is another", map[string]string{"two.o": "2"}, "make bpf"},
		{"one is missing", map[string]string{"two.o": ""}, "make bpf"},
		{"one too many", map[string]string{"three.o": "three"}, "has no source"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			there := map[string]string{"one.o": "one", "two.o": "two"}
			maps.Copy(there, test.change)
			for name, text := range there {
				if text == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			err := compareObjects(dir, built)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestBPFObjectsDoNotDependOnWhereTheyAreBuilt(t *testing.T) {
	const source = "#include <bpf/bpf_helpers.h>\nchar LICENSE[] SEC(\"license\") = \"GPL\";\n" +
		"SEC(\"socket\")\nint one(void *ctx) { return 1; }\n"
	prefix := "typedef unsigned int __u32; typedef unsigned long long __u64; typedef unsigned short __u16;" +
		" typedef __u16 __be16; typedef __u32 __be32; typedef __u32 __wsum; typedef int __s32; typedef long long __s64;\n"
	first := buildBPF(t, writeSource(t, "a", map[string]string{"one.bpf.c": prefix + source}))
	again := buildBPF(t, writeSource(t, "another", map[string]string{"one.bpf.c": prefix + source, "unused.h": "int x;"}))
	if string(first["one.o"]) != string(again["one.o"]) {
		t.Error("the same source makes other bytes")
	}
	other := buildBPF(t, writeSource(t, "a", map[string]string{"one.bpf.c": prefix + strings.Replace(source, "return 1", "return 0", 1)}))
	if string(first["one.o"]) == string(other["one.o"]) {
		t.Error("another source makes the same bytes")
	}
}
