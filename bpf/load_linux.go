// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
)

// Options say where and how to load. The zero value is good.
type Options struct {
	// Dir is the directory of the pins, in a BPF file system. Empty: DefaultDir.
	Dir string
	// Form of the guards. Empty: the LSM's where it is active, else the other.
	Form Form
	// Cgroup is the one whose sockets are looked at on their way out. Empty: the root of cgroup 2.
	Cgroup string

	entries map[string]uint32 // sizes of maps, for tests
}

const rootCgroup = "/sys/fs/cgroup"

// Load attaches and pins everything, and proves that the guards act. What an earlier Load pinned stays if it is the same;
// else the new program is attached before the old one goes, so that there is no moment without a guard, and the maps stay
// with all that is in them. If it fails, what was there before is still there, and what was not is not.
//
// It may be called at any time, and by several processes at once.
func Load(o Options) (Report, error) {
	all, err := readObjects(objects())
	if err != nil {
		return Report{}, err
	}
	return all.load(o)
}

func (all *set) load(o Options) (Report, error) {
	p := pins{cmp.Or(o.Dir, DefaultDir)}
	unlock, err := p.lock()
	if err != nil {
		return Report{}, err
	}
	defer unlock()
	all.resize(o.entries)
	// Before the types are read: those of a module come with it.
	for _, one := range all.programs {
		if one.object.module != "" {
			requestModule(one.object.module)
		}
	}
	types := btf.NewCache()
	form := FormLSM // of what has one form only
	if all.guards() {
		if form, err = chooseForm(all, o.Form, types); err != nil {
			return Report{}, err
		}
	}
	var skippable error
	if all.guards() && form == FormModifyReturn {
		skippable = CanBeSkipped()
	}
	l := &loading{pins: p, set: all, form: form, skippable: skippable, cgroup: cmp.Or(o.Cgroup, rootCgroup), types: types, maps: map[string]*ebpf.Map{}}
	defer l.close()
	if err := l.run(); err != nil {
		return Report{}, errors.Join(err, l.undo())
	}
	return l.report(), nil
}

// A loading is one call of Load.
type loading struct {
	pins pins
	set  *set
	form Form
	// skippable says why guards of this form can be outrun; nil if they cannot.
	skippable error
	cgroup    string
	types     *btf.Cache // of the kernel: to read them takes as long as all else
	existed   bool       // the directory did, before
	maps      map[string]*ebpf.Map
	steps     []*step
	pinned    []string // paths that this call added
}

// A step is what is done with one program.
type step struct {
	program *program
	loaded  *ebpf.Program
	info    Program
	link    link.Link // that is new; nil if the pinned one stays
}

// run changes nothing that is pinned before everything that may be refused has been done.
func (l *loading) run() (err error) {
	if l.existed, err = l.pins.loaded(); err != nil {
		return err
	}
	for _, do := range []func() error{l.pins.make, l.note, l.openMaps, l.loadPrograms, l.attach, l.pin, l.test, l.removeOthers, l.takeNote} {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// note is made before there is anything to note, and taken away when it is true no longer.
func (l *loading) note() error {
	if l.skippable == nil {
		return nil
	}
	return privilege("note in "+l.pins.dir, l.pins.markSkippable(true))
}

func (l *loading) takeNote() error {
	if l.skippable != nil || !l.set.guards() {
		return nil
	}
	return privilege("note in "+l.pins.dir, l.pins.markSkippable(false))
}

// test tries the guards. What an earlier load attached elsewhere is still there, and may be what answers; but that the
// form works was tried without.
func (l *loading) test() error {
	if !l.set.guards() {
		return nil
	}
	return errors.Join(testKeyGuard(l.maps[mapSockets]), testPlaintextGuard(l.maps[mapSockets]), testShield(l.maps[mapTasks]))
}

// openMaps takes the maps that are pinned, and makes the others.
func (l *loading) openMaps() error {
	for name, spec := range l.set.maps {
		m, err := ebpf.LoadPinnedMap(l.pins.mapPin(name), nil)
		switch {
		case errors.Is(err, os.ErrNotExist):
			if m, err = ebpf.NewMap(spec); err != nil {
				return privilege("make map "+name, err)
			}
			l.maps[name] = m
			if err := m.Pin(l.pins.mapPin(name)); err != nil {
				return privilege("pin map "+name, err)
			}
			l.pinned = append(l.pinned, l.pins.mapPin(name))
		case err != nil:
			return privilege("open map "+name, err)
		default:
			l.maps[name] = m
			if err := spec.Compatible(m); err != nil {
				return &ShapeError{Map: name, Managed: l.countManaged(), Err: err}
			}
		}
	}
	return nil
}

// countManaged opens the map, as it may not have been its turn.
func (l *loading) countManaged() int {
	m, err := ebpf.LoadPinnedMap(l.pins.mapPin(mapSockets), nil)
	if err != nil {
		return 0
	}
	defer m.Close()
	return countSockets(m)
}

// loadPrograms has the kernel verify every program. That of an optional object may fail.
func (l *loading) loadPrograms() error {
	for i := range l.set.programs {
		p := &l.set.programs[i]
		s := &step{program: p, info: p.describe(l.form)}
		l.steps = append(l.steps, s)
		if err := s.load(p.in(l.form), l.maps, l.types); err != nil {
			err = privilege(fmt.Sprintf("load program %s of %s", p.name, p.object.name), err)
			if !p.object.optional {
				return err
			}
			s.info.Off = err.Error()
		}
	}
	return nil
}

func (s *step) load(spec *ebpf.CollectionSpec, all map[string]*ebpf.Map, types *btf.Cache) error {
	replacements := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		replacements[name] = all[name]
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements, Cache: types})
	if err != nil {
		return err
	}
	defer collection.Close()
	s.loaded = collection.DetachProgram(s.program.name)
	info, err := s.loaded.Info()
	if err != nil {
		return err
	}
	id, _ := info.ID()
	s.info.ID, s.info.Tag = uint32(id), info.Tag
	return nil
}

// attach attaches what is not attached already. Where another program is, both are from here on.
func (l *loading) attach() error {
	for _, s := range l.steps {
		if s.loaded == nil {
			continue
		}
		old, err := pinnedProgram(l.pins.linkPin(s.info.pin()))
		if err != nil {
			return privilege("look at "+l.pins.linkPin(s.info.pin()), err)
		}
		if old.is(s.loaded) {
			s.info.Change, s.info.ID = "same", uint32(old.id)
			continue
		}
		s.info.Change = "new"
		if old != nil {
			s.info.Change = "replaced"
		}
		if s.link, err = attachProgram(s.loaded, l.attachType(s), l.cgroup); err != nil {
			err = privilege(fmt.Sprintf("attach program %s of %s to %s", s.program.name, s.program.object.name, s.info.Hook), err)
			if !s.program.object.optional {
				return err
			}
			s.info.Change, s.info.Off = "", err.Error()
		}
	}
	return nil
}

func (l *loading) attachType(s *step) ebpf.AttachType {
	return s.program.in(l.form).Programs[s.program.name].AttachType
}

// pin gives each new link the place of the one that it replaces, in one step. The kernel then lets go of the old one.
func (l *loading) pin() error {
	for _, s := range l.steps {
		if s.link == nil {
			continue
		}
		next, place := l.pins.nextPin(s.info.pin()), l.pins.linkPin(s.info.pin())
		// One is left there by a load that was killed.
		if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
			return privilege("remove "+next, err)
		}
		if err := s.link.Pin(next); err != nil {
			return privilege("pin program "+s.program.name, err)
		}
		if err := os.Rename(next, place); err != nil {
			return privilege("pin program "+s.program.name, errors.Join(err, os.Remove(next)))
		}
		if s.info.Change == "new" {
			l.pinned = append(l.pinned, place)
		}
		if err := l.pinProgram(s); err != nil {
			return privilege("pin program "+s.program.name, err)
		}
	}
	return nil
}

// pinProgram lets processes without capabilities ask for a program's statistics. It keeps nothing attached.
func (l *loading) pinProgram(s *step) error {
	place := l.pins.programPin(s.info.pin())
	if err := os.Remove(place); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l.pinned = append(l.pinned, place)
	return s.loaded.Pin(place)
}

// removeOthers removes what an earlier version attached and this one does not, and what a killed load left.
func (l *loading) removeOthers() error {
	names, err := l.pins.links()
	if err != nil {
		return privilege("look into "+l.pins.dir, err)
	}
	for _, name := range names {
		if slices.ContainsFunc(l.steps, func(s *step) bool { return s.info.pin() == name && s.info.Off == "" }) {
			continue
		}
		if err := os.Remove(l.pins.linkPin(name)); err != nil {
			return privilege("remove "+l.pins.linkPin(name), err)
		}
		if err := os.Remove(l.pins.programPin(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return privilege("remove "+l.pins.programPin(name), err)
		}
	}
	return privilege("remove what was pinned by halves", l.pins.emptyNext())
}

// undo removes what this call pinned. What it replaced stays replaced: it guards as well.
func (l *loading) undo() error {
	if !l.existed {
		return l.pins.remove()
	}
	var errs []error
	for _, path := range l.pinned {
		errs = append(errs, os.Remove(path))
	}
	return errors.Join(errs...)
}

func (l *loading) close() {
	for _, m := range l.maps {
		m.Close()
	}
	for _, s := range l.steps {
		if s.link != nil {
			s.link.Close()
		}
		if s.loaded != nil {
			s.loaded.Close()
		}
	}
}

func (l *loading) report() Report {
	r := Report{Dir: l.pins.dir, Lockdown: lockdown()}
	if l.set.guards() {
		r.Form, r.Managed = l.form, countSockets(l.maps[mapSockets])
		if l.skippable != nil {
			r.Skippable = l.skippable.Error()
		}
	}
	for _, s := range l.steps {
		r.Programs = append(r.Programs, s.info)
	}
	return r
}
