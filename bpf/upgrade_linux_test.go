// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/asm"
)

// otherVersion has an instruction more in each program, which does nothing.
func otherVersion(t *testing.T) *set {
	t.Helper()
	all := readAll(t)
	for i := range all.programs {
		one := all.programs[i].spec.Programs[all.programs[i].name]
		one.Instructions = slices.Insert(one.Instructions, 1, asm.Mov.Imm(asm.R5, 0))
	}
	return all
}

// broken has a program that the verifier does not accept.
func broken(t *testing.T, name string, optional bool) *set {
	t.Helper()
	all := readAll(t)
	p := all.program(name)
	p.object.optional = optional
	one := p.spec.Programs[name]
	one.Instructions = slices.Insert(one.Instructions, 1, asm.LoadMem(asm.R0, asm.R9, 0, asm.DWord))
	return all
}

// changes are what a load did, by program.
func changes(r Report) map[string]string {
	all := map[string]string{}
	for _, p := range r.Programs {
		all[p.Name] = p.Change
	}
	return all
}

func TestLoadingTheSameAgainChangesNothing(t *testing.T) {
	require(t)
	unloadLater(t)
	first, err := Load(Options{})
	if err != nil {
		t.Fatal(err)
	}
	again, err := Load(Options{})
	if err != nil {
		t.Fatal(err)
	}
	seen, err := Inspect("")
	if err != nil || seen.Form != first.Form || seen.Dir != DefaultDir {
		t.Errorf("inspected %+v, %v", seen, err)
	}
	for i, p := range first.Programs {
		if p.Change != "new" || p.ID == 0 || p.Tag == "" {
			t.Errorf("the first time: %+v", p)
		}
		p.Change = "same"
		if again.Programs[i] != p {
			t.Errorf("the second time: %+v, not %+v", again.Programs[i], p)
		}
		p.Change = ""
		if seen.Programs[i] != p {
			t.Errorf("inspected: %+v, not %+v", seen.Programs[i], p)
		}
	}
}

// TestAnUpgradeLeavesNoGap: between versions, and from one form to the other, with somebody who tries all the time.
func TestAnUpgradeLeavesNoGap(t *testing.T) {
	require(t)
	forms := formsHere()
	g := load(t, forms[0])
	p, held := guarded(t, g)
	attacker := start(t, "spinner", root, []*os.File{held})
	attacker.read(t, new(string))
	for round, all := range []*set{otherVersion(t), readAll(t)} {
		form := forms[round%len(forms)]
		r, err := all.load(Options{Form: form})
		if err != nil {
			t.Fatal(err)
		}
		for name, change := range changes(r) {
			if change != "replaced" && (change != "new" || round != 1) {
				t.Errorf("round %d: program %s is %s", round, name, change)
			}
		}
		if r.Managed != 1 {
			t.Errorf("%d sockets are managed after an upgrade", r.Managed)
		}
		exchange(t, p)
	}
	attacker.stdin.Close()
	var result spinnerResult
	attacker.read(t, &result)
	if result.Successes > 0 || result.Other != "" || result.Tries < 100 {
		t.Errorf("the attacker: %+v", result)
	}
	everything(t)
}

// TestALoadThatIsKilledIsCompletedByTheNext, and can be unloaded, wherever it was.
func TestALoadThatIsKilledIsCompletedByTheNext(t *testing.T) {
	require(t)
	unloadLater(t)
	for _, moment := range []string{"maps", "links"} { // the first is there
		if err := Unload(""); err != nil && !errors.Is(err, ErrNotLoaded) {
			t.Fatal(err)
		}
		nothing(t)
		loader := start(t, "loader", root, nil, "load")
		for deadline := time.Now().Add(20 * time.Second); ; {
			entries, _ := os.ReadDir(filepath.Join(DefaultDir, moment))
			if len(entries) > 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("nothing in %s", moment)
			}
		}
		loader.kill()
		r, err := Inspect("")
		t.Logf("killed at the first of %s: %d of %d programs are off, %v", moment, len(r.Off()), len(r.Programs), err)
	}
	r, err := Load(Options{})
	if err != nil || len(r.Off()) > 0 {
		t.Errorf("loaded %+v, %v", r, err)
	}
	everything(t)
}

func TestAMissingProgramIsSeenAndMadeUpFor(t *testing.T) {
	require(t)
	g := load(t, "")
	r, err := Inspect("")
	if err != nil {
		t.Fatal(err)
	}
	p := pins{DefaultDir}
	missing := []string{"key_set", "key_listen", "key_free", "shield_access"}
	for _, one := range r.Programs {
		if !slices.Contains(missing, one.Name) {
			continue
		}
		if err := os.Remove(p.linkPin(one.pin())); err != nil {
			t.Fatal(err)
		}
		test := g.SelfTest
		if one.Name == "shield_access" {
			test = func() error { return testShield(g.tasks) }
		}
		if tested := eventually(test); !errors.Is(tested, ErrSilent) {
			t.Errorf("without %s the self-test says: %v", one.Name, tested)
		}
	}
	seen, err := Inspect("")
	if off := seen.Off(); err != nil || len(off) != len(missing) {
		t.Errorf("%+v, %v", off, err)
	}
	again, err := Load(Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range changes(again) {
		if (change == "new") != slices.Contains(missing, name) {
			t.Errorf("%s is %s", name, change)
		}
	}
	if err := g.SelfTest(); err != nil {
		t.Error(err)
	}
}

// eventually is an error as soon as there is one, as the kernel detaches in its own time.
func eventually(f func() error) (err error) {
	for deadline := time.Now().Add(2 * time.Second); err == nil && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		err = f()
	}
	return err
}

// TestALostMapIsMadeUpFor: programs that are the same, but look into a map that nobody can open any more, are not the same.
func TestALostMapIsMadeUpFor(t *testing.T) {
	require(t)
	load(t, "")
	if err := os.Remove(pins{DefaultDir}.mapPin(mapSockets)); err != nil {
		t.Fatal(err)
	}
	r, err := Load(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if all := changes(r); all["key_get"] != "replaced" || all["shield_access"] != "same" {
		t.Errorf("changed: %v", all)
	}
}

func TestALoadThatFailsChangesNothing(t *testing.T) {
	require(t)
	unloadLater(t)
	bad := broken(t, "shield_fork", false)
	if _, err := bad.load(Options{}); err == nil || !strings.Contains(err.Error(), "shield_fork") {
		t.Fatalf("a broken program: %v", err)
	}
	nothing(t)
	first, err := Load(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bad.load(Options{}); err == nil {
		t.Fatal("a broken program is loaded")
	}
	larger := readAll(t)
	larger.maps[mapSockets].MaxEntries *= 2
	var shape *ShapeError
	if _, err := larger.load(Options{}); !errors.As(err, &shape) || shape.Map != mapSockets || !strings.Contains(err.Error(), "offloadd bpf unload") {
		t.Errorf("a map of another shape: %v", err)
	}
	again, err := Inspect("")
	if err != nil || len(again.Off()) > 0 || again.Programs[0].ID != first.Programs[0].ID {
		t.Errorf("inspected %+v, %v", again, err)
	}
	everything(t)
}

func TestAnOptionalProgramMayFailAndIsReported(t *testing.T) {
	require(t)
	unloadLater(t)
	r, err := broken(t, "shield_fork", true).load(Options{})
	if err != nil {
		t.Fatal(err)
	}
	off := r.Off()
	if len(off) != 1 || off[0].Name != "shield_fork" || !strings.Contains(off[0].Off, "load program") {
		t.Errorf("off are %+v", off)
	}
}
