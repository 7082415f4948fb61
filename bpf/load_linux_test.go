// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// envNoLSM says that the machine was booted without the BPF security module. Every kernel of the runner has it.
const envNoLSM = "OFFLOADD_EXPECT_NO_BPF_LSM"

// envLockdown says that the machine was booted with lockdown=confidentiality.
const envLockdown = "OFFLOADD_EXPECT_LOCKDOWN"

func lsmActive() bool { return slices.Contains(strings.Split(securityModules(), ","), "bpf") }

func unloadLater(t *testing.T) {
	t.Cleanup(func() {
		if err := Unload(""); err != nil && !errors.Is(err, ErrNotLoaded) {
			t.Error(err)
		}
	})
}

func TestUnloadLeavesNothing(t *testing.T) {
	require(t)
	for _, form := range formsHere() {
		nothing(t)
		if _, err := Load(Options{Form: form}); err != nil {
			t.Fatal(err)
		}
		everything(t)
		if err := Unload(""); err != nil {
			t.Fatal(err)
		}
	}
	nothing(t)
	if err := Unload(""); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("unloading what is not loaded: %v", err)
	}
}

func TestPinsAreRootsAlone(t *testing.T) {
	require(t)
	unloadLater(t)
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	if _, err := Load(Options{}); err != nil {
		t.Fatal(err)
	}
	files := 0
	err := filepath.WalkDir(DefaultDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if entry.IsDir() {
			want = fs.ModeDir | 0o700
		} else {
			files++
		}
		if owner := info.Sys().(*syscall.Stat_t); info.Mode() != want || owner.Uid != 0 || owner.Gid != 0 {
			t.Errorf("%s is %v of %d:%d", path, info.Mode(), owner.Uid, owner.Gid)
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("%d pins, %v", files, err)
	}
	var stopped string
	start(t, "loader", nobody, nil, "open").read(t, &stopped)
	if !strings.Contains(stopped, "permission denied") {
		t.Errorf("another user opens the guard: %s", stopped)
	}
}

// TestTheFormThatActsIsChosen: where the BPF security module is not active its programs attach, and never run.
func TestTheFormThatActsIsChosen(t *testing.T) {
	require(t)
	unloadLater(t)
	want := FormLSM
	if os.Getenv(envNoLSM) != "" {
		want = FormModifyReturn
	}
	r, err := Load(Options{})
	if err != nil || r.Form != want {
		t.Errorf("form %q, %v; active security modules: %s", r.Form, err, securityModules())
	}
	if lsmActive() {
		return
	}
	// The guards that are loaded must not be mistaken for the ones that are tried.
	_, err = Load(Options{Form: FormLSM})
	var unavailable *UnavailableError
	if !errors.As(err, &unavailable) || !errors.Is(err, ErrSilent) || !strings.Contains(err.Error(), "lsm=") {
		t.Errorf("loading in the form that does not act: %v", err)
	}
	if r, err := Inspect(""); err != nil || r.Form != FormModifyReturn || len(r.Off()) > 0 {
		t.Errorf("and afterwards: %+v, %v", r, err)
	}
}

// TestNothingIsOffUnderLockdown: in its strictest form the kernel accepts no program that reads memory by address.
func TestNothingIsOffUnderLockdown(t *testing.T) {
	if os.Getenv(envLockdown) == "" {
		t.Skip("this needs a machine booted with lockdown=confidentiality")
	}
	unloadLater(t)
	r, err := Load(Options{})
	if err != nil || r.Lockdown != "confidentiality" {
		t.Fatalf("lockdown is %s, %v", r.Lockdown, err)
	}
	for _, p := range r.Off() {
		if !p.Optional {
			t.Errorf("program %s is off: %s", p.Name, p.Off)
		}
	}
}

func TestLoadingTwiceAtOnceIsSafe(t *testing.T) {
	require(t)
	unloadLater(t)
	other := start(t, "loader", root, nil, "load")
	began := time.Now()
	_, err := Load(Options{})
	took := time.Since(began)
	var stopped string
	if other.read(t, &stopped); err != nil || stopped != "" {
		t.Fatalf("loading: %v, %s", err, stopped)
	}
	everything(t)
	if err := Unload(""); err != nil {
		t.Fatal(err)
	}
	// That they did not meet may have been luck.
	unlock, err := pins{DefaultDir}.lock()
	if err != nil {
		t.Fatal(err)
	}
	loaded := make(chan error, 1)
	go func() { _, err := Load(Options{}); loaded <- err }()
	time.Sleep(2 * took)
	if _, err := os.Stat(DefaultDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a load does not wait for its turn: %v", err)
	}
	unlock()
	if err := <-loaded; err != nil {
		t.Error(err)
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	require(t)
	var unavailable *UnavailableError
	if _, err := Load(Options{Dir: filepath.Join(t.TempDir(), "offloadd")}); !errors.As(err, &unavailable) || !strings.Contains(err.Error(), "mount -t bpf") {
		t.Errorf("no BPF file system: %v", err)
	}
	if _, err := Load(Options{Form: "other"}); err == nil || !strings.Contains(err.Error(), "other") {
		t.Errorf("a form that there is not: %v", err)
	}
	if _, err := OpenGuard(""); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("opening what is not loaded: %v", err)
	}
	if _, err := Inspect(""); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("inspecting what is not loaded: %v", err)
	}
	var stopped string
	start(t, "loader", nobody, nil, "load").read(t, &stopped)
	if !strings.Contains(stopped, "CAP_BPF") {
		t.Errorf("another user loads: %s", stopped)
	}
}

// loaderProcess loads, or opens what is loaded.
func loaderProcess() any {
	var err error
	if os.Args[1] == "load" {
		_, err = Load(Options{})
	} else {
		_, err = OpenGuard("")
	}
	if err != nil {
		return err.Error()
	}
	return ""
}
