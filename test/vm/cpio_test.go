// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// readCPIO is an independent reading of the format: path to mode and content.
func readCPIO(t *testing.T, data []byte) (names []string, modes map[string]uint32, contents map[string]string) {
	t.Helper()
	modes, contents = map[string]uint32{}, map[string]string{}
	align := func(n int) int { return (n + 3) &^ 3 }
	for at := 0; ; {
		if string(data[at:at+6]) != "070701" {
			t.Fatalf("no magic at offset %d", at)
		}
		field := func(number int) int {
			value, err := strconv.ParseUint(string(data[at+6+8*number:at+14+8*number]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(value)
		}
		nameEnd := at + 110 + field(11)
		name := string(data[at+110 : nameEnd-1])
		if name == cpioTrailer {
			if len(data)%512 != 0 {
				t.Errorf("archive of %d bytes, want a multiple of 512", len(data))
			}
			return names, modes, contents
		}
		body := align(nameEnd)
		names = append(names, name)
		modes[name], contents[name] = uint32(field(1)), string(data[body:body+field(6)])
		at = align(body + field(6))
	}
}

func TestCPIO(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub/deep/program"), []byte("#!"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("deep/program", filepath.Join(dir, "sub/link")); err != nil {
		t.Fatal(err)
	}
	var buffer bytes.Buffer
	archive := newCPIOWriter(&buffer)
	for _, err := range []error{
		archive.writeString("/etc/odd", 0o600, "12345"),
		archive.writeString("etc/empty", 0o644, ""),
		archive.writeLink("lib", "usr/lib"),
		archive.writeTree("/data", filepath.Join(dir, "sub")),
		archive.writeTree("/followed", filepath.Join(dir, "sub/link")),
		archive.close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	names, modes, contents := readCPIO(t, buffer.Bytes())
	want := "etc etc/odd etc/empty lib data data/deep data/deep/program data/link followed"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("entries %q, want %q", got, want)
	}
	for name, mode := range map[string]uint32{
		"etc": unix.S_IFDIR | 0o755, "etc/odd": unix.S_IFREG | 0o600, "lib": unix.S_IFLNK | 0o777,
		"data/deep/program": unix.S_IFREG | 0o755, "data/link": unix.S_IFLNK | 0o777, "followed": unix.S_IFREG | 0o755,
	} {
		if modes[name] != mode {
			t.Errorf("%s: mode %o, want %o", name, modes[name], mode)
		}
	}
	for name, content := range map[string]string{"etc/odd": "12345", "lib": "usr/lib", "data/link": "deep/program",
		"followed": "#!"} {
		if contents[name] != content {
			t.Errorf("%s: %q, want %q", name, contents[name], content)
		}
	}
}
