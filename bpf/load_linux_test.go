// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// envNoLSM says that the machine was booted without the BPF security module. Every kernel of the runner has it.
const envNoLSM = "OFFLOADD_EXPECT_NO_BPF_LSM"

// envLockdown says that the machine was booted with lockdown=confidentiality.
const envLockdown = "OFFLOADD_EXPECT_LOCKDOWN"

func lsmActive() bool { return slices.Contains(strings.Split(securityModules(), ","), "bpf") }

// inKernel counts what is ours in the kernel.
type inKernel struct{ Programs, Maps, Links int }

func countInKernel(t *testing.T) (n inKernel) {
	t.Helper()
	all := readAll(t)
	ours := map[ebpf.ProgramID]bool{}
	for id, err := ebpf.ProgramGetNextID(0); err == nil; id, err = ebpf.ProgramGetNextID(id) {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // just gone
		}
		info, err := p.Info()
		p.Close()
		// The kernel keeps 15 bytes of a name.
		if err == nil && slices.ContainsFunc(all.programs, func(one program) bool { return strings.HasPrefix(one.name, info.Name) }) {
			ours[id] = true
			n.Programs++
		}
	}
	for id, err := ebpf.MapGetNextID(0); err == nil; id, err = ebpf.MapGetNextID(id) {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue
		}
		info, err := m.Info()
		m.Close()
		if err == nil && all.maps[info.Name] != nil {
			n.Maps++
		}
	}
	links := new(link.Iterator)
	defer links.Close()
	for links.Next() {
		if info, err := links.Link.Info(); err == nil && ours[info.Program] {
			n.Links++
		}
	}
	return n
}

// expectInKernel waits until the kernel has just this much, as it frees in its own time.
func expectInKernel(t *testing.T, want inKernel) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		now := countInKernel(t)
		if now == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("in the kernel are %+v, not %+v", now, want)
		}
	}
}

// nothing waits until nothing of ours is in the kernel, and looks for pins.
func nothing(t *testing.T) {
	t.Helper()
	expectInKernel(t, inKernel{})
	if _, err := os.Lstat(DefaultDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there, %v", DefaultDir, err)
	}
}

// everything waits until one of each is.
func everything(t *testing.T) {
	t.Helper()
	all := readAll(t)
	expectInKernel(t, inKernel{len(all.programs), len(all.maps), len(all.programs)})
}

func readAll(t *testing.T) *set {
	t.Helper()
	all, err := readObjects(objects())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// otherVersion has an instruction more in each program, which does nothing.
func otherVersion(t *testing.T) *set {
	t.Helper()
	all := readAll(t)
	for i := range all.programs {
		one := all.programs[i].spec.Programs[all.programs[i].name]
		one.Instructions = slices.Insert(one.Instructions, 1, asm.Mov.Reg(asm.R9, asm.R1))
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

func TestLoadingTwiceAtOnceIsSafe(t *testing.T) {
	require(t)
	unloadLater(t)
	first, second := start(t, "loader", root, nil, "load"), start(t, "loader", root, nil, "load")
	_, err := Load(Options{})
	for _, p := range []*peer{first, second} {
		var stopped string
		p.read(t, &stopped)
		if err != nil || stopped != "" {
			t.Errorf("loading: %v, %s", err, stopped)
		}
	}
	r, err := Inspect("")
	if err != nil || len(r.Off()) > 0 {
		t.Errorf("inspected %+v, %v", r, err)
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

func TestAFullMapIsAnError(t *testing.T) {
	require(t)
	g := load(t, "")
	n := g.sockets.MaxEntries()
	cookies, values := make([]uint64, n), make([]managed, n)
	for i := range cookies {
		cookies[i] = 1<<48 + uint64(i)
	}
	if _, err := g.sockets.BatchUpdate(cookies, values, nil); err != nil {
		t.Fatal(err)
	}
	if err := g.Pending(1 << 50); !errors.Is(err, ErrFull) {
		t.Errorf("one more than can be: %v", err)
	}
	if err := g.Ready(cookies[0]); err != nil {
		t.Errorf("one that is there: %v", err)
	}
}

// eventually is an error as soon as there is one, as the kernel detaches in its own time.
func eventually(f func() error) (err error) {
	for deadline := time.Now().Add(2 * time.Second); err == nil && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		err = f()
	}
	return err
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

// TestGuardsOutliveWhoMadeThem: the loader and the daemon are killed, and nothing changes for the others.
func TestGuardsOutliveWhoMadeThem(t *testing.T) {
	require(t)
	unloadLater(t)
	loader := start(t, "loader", root, nil, "load")
	var stopped string
	if loader.read(t, &stopped); stopped != "" {
		t.Fatal(stopped)
	}
	loader.kill()
	p, held := foreign(t)
	daemon := start(t, "daemon", root, []*os.File{held})
	if daemon.read(t, &stopped); stopped != "" {
		t.Fatal(stopped)
	}
	daemon.kill()
	for name, got := range attack(t, root, held) {
		if got != unix.EPERM.Error() {
			t.Errorf("%s was answered with: %s", name, got)
		}
	}
	exchange(t, p)
}

// daemonProcess has no capability, and takes the socket that it holds under guard. It is the only one that has the key.
func daemonProcess() any {
	if err := dropCapabilities(); err != nil {
		return fmt.Sprint("drop capabilities: ", err)
	}
	g, err := OpenGuard("")
	if err != nil {
		return err.Error()
	}
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return err.Error()
	}
	cookie, err := unix.GetsockoptUint64(heldFD, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err := errors.Join(err, g.SelfTest(), g.Pending(cookie), g.Admit(self, KeyHolder|Shielded), g.Ready(cookie)); err != nil {
		return err.Error()
	}
	if _, err := getKey(heldFD, tlsTX); err != nil {
		return err.Error()
	}
	if _, err := g.Stopped(); err != nil {
		return err.Error()
	}
	if _, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1}); err == nil {
		return "it can make maps, so it has capabilities"
	}
	return ""
}
