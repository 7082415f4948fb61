// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"archive/tar"
)

func TestGuestEnvironment(t *testing.T) {
	host := []string{"PATH=/host", "HOME=/host", "TERM=xterm", "GOPATH=/host", "GODEBUG=a=1", "OFFLOADD_X=1", "SECRET=s", "WANTED=w"}
	got := guestEnvironment(host, []string{"WANTED", "MISSING", "TERM=dumb"}, "/dir", &kernel{Release: "6.12.1-x", Series: "6.12"})
	slices.Sort(got)
	want := []string{"GODEBUG=a=1", "HOME=/root", "LOGNAME=root", "OFFLOADD_KERNEL_SERIES=6.12", "OFFLOADD_VM_KERNEL=6.12.1-x",
		"OFFLOADD_X=1", "PATH=" + guestSearch, "PWD=/dir", "TERM=dumb", "USER=root", "WANTED=w"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPairs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]filePair{
		file:           {host: file, guest: file},
		file + ":/a/b": {host: file, guest: "/a/b"},
	} {
		if got, err := parsePut(value); err != nil || got != want {
			t.Errorf("--file %s: %+v, %v", value, got, err)
		}
	}
	for _, value := range []string{file + ":relative", "/does/not/exist"} {
		if _, err := parsePut(value); err == nil {
			t.Errorf("--file %s is accepted", value)
		}
	}
	if got, err := parseGet("/a:" + file); err != nil || got != (filePair{host: file, guest: "/a"}) {
		t.Errorf("--get: %+v, %v", got, err)
	}
	for _, value := range []string{"/a", "/a:", "a:b"} {
		if _, err := parseGet(value); err == nil {
			t.Errorf("--get %s is accepted", value)
		}
	}
}

func TestTestResults(t *testing.T) {
	r := &runFiles{}
	r.addTestResults([]string{"a.test", "-test.v=true", "-test.coverprofile=/w/cover.out", "-test.cpuprofile=cpu.out",
		"-test.outputdir=/out", "-test.gocoverdir=/w/dir", "-test.trace="}, "/pkg")
	if want := []string{"/w/cover.out", "/out/cpu.out", "/w/dir"}; !slices.Equal(r.wanted(), want) {
		t.Errorf("wanted %q, want %q", r.wanted(), want)
	}
	if want := []string{"/w", "/out", "/w/dir"}; !slices.Equal(r.dirs, want) {
		t.Errorf("directories %q, want %q", r.dirs, want)
	}
}

// tarOf makes what a guest sends.
func tarOf(t *testing.T, names ...string) []byte {
	t.Helper()
	var buffer bytes.Buffer
	archive := tar.NewWriter(&buffer)
	for _, name := range names {
		header := &tar.Header{Name: name, Mode: 0o644, Size: 4}
		if err := archive.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Write([]byte("data")); err != nil {
			t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

func TestReceive(t *testing.T) {
	dir := t.TempDir()
	newFiles := func() *runFiles {
		return &runFiles{get: []filePair{{host: filepath.Join(dir, "one")}, {host: filepath.Join(dir, "tree")},
			{host: filepath.Join(dir, "never"), optional: true}}}
	}
	r := newFiles()
	if err := r.receive(tarOf(t, "0", "1/sub/file")); err != nil {
		t.Fatal(err)
	}
	if err := r.finishGets(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "tree/sub/file"} {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != "data" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	if err := newFiles().finishGets(); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("files that did not come: %v", err)
	}
	for _, name := range []string{"1/../../escape", "7", "x", "/etc/passwd"} {
		r := newFiles()
		err := r.receive(tarOf(t, name))
		if finishErr := r.finishGets(); err == nil {
			err = finishErr
		}
		if err == nil || !strings.Contains(err.Error(), "not asked for") {
			t.Errorf("a file named %q gives %v", name, err)
		}
	}
}

func TestMergedUsr(t *testing.T) {
	for name, want := range map[string]string{"./bin/sh": "usr/bin/sh", "/lib64/ld.so": "usr/lib64/ld.so", "./": "", "usr/bin": "usr/bin", "./bin": "bin",
		"library/x": "library/x"} {
		if got := mergedUsr(name); got != want {
			t.Errorf("%q becomes %q, want %q", name, got, want)
		}
	}
}
