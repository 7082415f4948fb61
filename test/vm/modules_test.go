// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"
)

// fakeModules makes a set from lines "name: dependency dependency".
func fakeModules(builtin string, lines ...string) *moduleSet {
	set := &moduleSet{files: map[string]*moduleFile{}, builtin: parseBuiltin(builtin)}
	for _, line := range lines {
		name, depends, _ := strings.Cut(line, ":")
		set.files[name] = &moduleFile{path: "kernel/" + name + ".ko", image: []byte("elf"), depends: strings.Fields(depends)}
	}
	set.expand = func(*moduleFile) error { return nil }
	return set
}

func TestModuleOrder(t *testing.T) {
	set := fakeModules("kernel/net/packet/af_packet.ko\nkernel/drivers/virtio/virtio-pci.ko\n",
		"tls:", "crypto_simd: cryptd", "cryptd:", "aesni_intel: crypto_simd gf128mul", "gf128mul:", "unused:",
		"loop_a: loop_b", "loop_b: loop_a af_packet", "soft: some_alias")
	got, err := set.order("6.0", []module{{name: "aesni_intel"}, {name: "virtio_pci"}, {name: "gone", optional: true},
		{name: "tls"}, {name: "loop_a"}, {name: "soft"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"cryptd", "crypto_simd", "gf128mul", "aesni_intel", "tls", "loop_b", "loop_a", "soft"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := set.order("6.0", []module{{name: "gone"}}); err == nil || !strings.Contains(err.Error(), "kernel 6.0 has no module gone") {
		t.Errorf("a missing module gives %v", err)
	}
}

func TestModuleTables(t *testing.T) {
	set := fakeModules("", "aesni_intel: crypto_simd", "crypto_simd: cryptd", "cryptd:", "tls:")
	set.files["tls"].parseModinfo("license=GPL\x00alias=tcp-ulp-tls\x00depends=\x00name=tls\x00")
	dependencies, err := set.dependencyFile([]string{"aesni_intel", "tls"})
	if err != nil {
		t.Fatal(err)
	}
	if want := "kernel/aesni_intel.ko: kernel/crypto_simd.ko kernel/cryptd.ko\nkernel/tls.ko:\n"; dependencies != want {
		t.Errorf("modules.dep is %q, want %q", dependencies, want)
	}
	if got, want := set.aliasFile([]string{"tls"}), "alias tcp-ulp-tls tls\n"; got != want {
		t.Errorf("modules.alias is %q, want %q", got, want)
	}
}

func TestParseModinfo(t *testing.T) {
	file := &moduleFile{}
	file.parseModinfo("depends=crypto-simd,cryptd\x00softdep=pre: gcm ccm post: other\x00softdep=post: late\x00alias=a\x00alias=b")
	if want := []string{"crypto_simd", "cryptd", "gcm", "ccm"}; !slices.Equal(file.depends, want) {
		t.Errorf("depends on %q, want %q", file.depends, want)
	}
	if want := []string{"a", "b"}; !slices.Equal(file.aliases, want) {
		t.Errorf("aliases %q, want %q", file.aliases, want)
	}
}
