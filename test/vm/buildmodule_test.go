// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func writeSource(t *testing.T, name string, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, text := range files {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const (
	goodModule = "#include <linux/module.h>\n#include \"a.h\"\n" +
		"static int __init begin(void) { return 0; }\nstatic void __exit end(void) { }\n" +
		"module_init(begin);\nmodule_exit(end);\nMODULE_LICENSE(\"GPL\");\nMODULE_DESCRIPTION(TEXT);\n"
	badModule = "int this_does_not_compile\n"
)

func TestModuleSource(t *testing.T) {
	files := map[string]string{"Kbuild": "obj-m := one.o\n", "one.c": goodModule, "a.h": "#define TEXT \"one\"\n"}
	first, err := readModuleSource(writeSource(t, "one", files))
	if err != nil {
		t.Fatal(err)
	}
	if first.name != "one" || len(first.files) != 3 {
		t.Errorf("read %q with %d files", first.name, len(first.files))
	}
	files["one.ko"], files["one.mod.c"], files["README.md"] = "built", "built", "text"
	if same, err := readModuleSource(writeSource(t, "one", files)); err != nil || same.digest != first.digest {
		t.Errorf("what the compiler does not read changes the digest, %v", err)
	}
	files["a.h"] = "#define TEXT \"two\"\n"
	if other, err := readModuleSource(writeSource(t, "one", files)); err != nil || other.digest == first.digest {
		t.Errorf("a header does not change the digest, %v", err)
	}
	delete(files, "Kbuild")
	if _, err := readModuleSource(writeSource(t, "one", files)); err == nil || !strings.Contains(err.Error(), "Kbuild") {
		t.Errorf("without a Kbuild: %v", err)
	}
	if _, err := readModuleSource("/does/not/exist"); err == nil {
		t.Error("a directory that is not there is accepted")
	}
}

// A module that uses what the kernel exports to GPL code only is GPL, and it is built for each kernel anew.
func TestTheModulesLicence(t *testing.T) {
	entries, err := os.ReadDir("tlsnic")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.Name() == "LICENSE" { // the text itself
			continue
		}
		text, err := os.ReadFile(filepath.Join("tlsnic", entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(string(text), "\n")
		if !strings.Contains(first, "SPDX-License-Identifier: GPL-2.0-only") {
			t.Errorf("%s has no licence line", entry.Name())
		}
	}
}

func TestHeadersOf(t *testing.T) {
	const shown = `Package: linux-headers-6.1.0-56-cloud-amd64
Version: 6.1.192-1
Depends: linux-kbuild-6.1 (>= 6.1.192-1)

Package: linux-headers-6.1.0-56-cloud-amd64
Version: 6.1.192-2
Depends: linux-headers-6.1.0-56-common (= 6.1.192-2), linux-kbuild-6.1 (>= 6.1.192-2), linux-compiler-gcc-12-x86
`
	k := &kernel{Release: "6.1.0-56-cloud-amd64", Version: "6.1.192-2"}
	got, err := headersOf(k, parseStanzas(shown))
	want := []string{"linux-headers-6.1.0-56-cloud-amd64=6.1.192-2", "linux-headers-6.1.0-56-common=6.1.192-2", "linux-kbuild-6.1=6.1.192-2"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
	k.Version = "6.1.192-3"
	if _, err := headersOf(k, parseStanzas(shown)); err == nil || !strings.Contains(err.Error(), "vm fetch") {
		t.Errorf("a version that the mirror does not have: %v", err)
	}
}

func TestTestRunNamesModulesAbsolutely(t *testing.T) {
	run := &testRun{machine: execOptions{testModules: []string{"/a b/tlsnic"}}}
	if got := run.execPrefix("/vm", "6.12"); !strings.Contains(got, "--module '/a b/tlsnic'") {
		t.Errorf("go test gets -exec %q", got)
	}
}

// A module is built for the kernel that boots, lies where the command is told, and can be loaded.
func TestVMModule(t *testing.T) {
	dir := writeSource(t, "one", map[string]string{"Kbuild": "obj-m := one.o\n", "one.c": goodModule, "a.h": "#define TEXT \"one\"\n"})
	for _, series := range kernelSeries {
		t.Run(series, func(t *testing.T) {
			got := vmExec(t, "", "-kernel", series, "-no-dir", "-module", dir, "-module", "tlsnic", "sh", "-c",
				"insmod $OFFLOADD_TEST_MODULES/one.ko && insmod $OFFLOADD_TEST_MODULES/tlsnic.ko && lsmod")
			got.want(t, 0)
			for _, name := range []string{"one ", "tlsnic "} {
				if !strings.Contains(got.stdout, name) {
					t.Errorf("%snot loaded: %s", name, got.stdout)
				}
			}
		})
	}
}

func TestVMModuleThatDoesNotCompile(t *testing.T) {
	dir := writeSource(t, "bad", map[string]string{"Kbuild": "obj-m := bad.o\n", "bad.c": badModule})
	got := vmExec(t, "", "-no-dir", "-module", dir, "true")
	got.want(t, exitMachine)
	for _, words := range []string{"build module bad for kernel 6.12", "bad.c:1"} {
		if !strings.Contains(got.stderr, words) {
			t.Errorf("stderr lacks %q: %s", words, got.stderr)
		}
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil || strings.Contains(string(mounts), toolchainName) {
		t.Errorf("something is still mounted, %v", err)
	}
}
