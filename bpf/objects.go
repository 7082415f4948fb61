// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	_ "embed"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
)

// The objects are committed: `make bpf` makes them of src, always the same bytes, and a test of test/vm compares.
var (
	//go:embed keyguard.o
	keyguardObject []byte
	//go:embed shield.o
	shieldObject []byte
	//go:embed plaintext.o
	plaintextObject []byte
	//go:embed egress.o
	egressObject []byte
	//go:embed observer.o
	observerObject []byte
)

// An object is one file of programs. Its maps are shared with all others, by name.
type object struct {
	name    string
	feature string // what a person calls it
	bytes   []byte
	// optional: without it the others are of use, and loaded. Each of its programs is, if it can be.
	optional bool
	// module is one of the kernel's into which the programs look. It is loaded before them.
	module string
	// needless are programs without which this kernel is as safe. They would cost all the same.
	needless func() []string
}

func objects() []object {
	return []object{
		{name: "keyguard", feature: "key guard", bytes: keyguardObject},
		{name: "shield", feature: "process shield", bytes: shieldObject},
		{name: "plaintext", feature: "plaintext guard", bytes: plaintextObject, needless: needlessForPlaintext},
		{name: "egress", feature: "backstop of the plaintext guard", bytes: egressObject},
	}
}

// observerObjects are loaded apart from the guards: neither needs the other, and maps of the observer may change their
// shape without a word to the guards.
func observerObjects() []object {
	return []object{{name: "observer", feature: "observer", bytes: observerObject, optional: true, module: "tls"}}
}

// A program is one of an object, as it is in the file.
type program struct {
	object object
	name   string
	spec   *ebpf.CollectionSpec // of this program alone, and of all its object's maps
}

// A set is all that is loaded together.
type set struct {
	programs []program // in the order of objects and names
	maps     map[string]*ebpf.MapSpec
}

func readObjects(objects []object) (*set, error) {
	all := &set{maps: map[string]*ebpf.MapSpec{}}
	owner := map[string]string{}
	for _, o := range objects {
		spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(o.bytes))
		if err != nil {
			return nil, fmt.Errorf("read object %s: %w", o.name, err)
		}
		for name, m := range spec.Maps {
			if first := all.maps[name]; first != nil && !sameShape(first, m) {
				return nil, fmt.Errorf("object %s: its map %s has another shape than in the objects before it: build all of them", o.name, name)
			}
			all.maps[name] = m
		}
		if o.needless != nil {
			for _, name := range o.needless() {
				delete(spec.Programs, name)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
			if owner[name] != "" {
				return nil, fmt.Errorf("objects %s and %s both have a program named %s", owner[name], o.name, name)
			}
			owner[name] = o.name
			one := spec.Copy()
			maps.DeleteFunc(one.Programs, func(other string, _ *ebpf.ProgramSpec) bool { return other != name })
			all.programs = append(all.programs, program{object: o, name: name, spec: one})
		}
	}
	return all, nil
}

// resize changes the sizes of maps, by name.
func (s *set) resize(entries map[string]uint32) {
	for name, n := range entries {
		s.maps[name].MaxEntries = n
		for i := range s.programs {
			if m := s.programs[i].spec.Maps[name]; m != nil {
				m.MaxEntries = n
			}
		}
	}
}

func sameShape(a, b *ebpf.MapSpec) bool {
	return a.Type == b.Type && a.KeySize == b.KeySize && a.ValueSize == b.ValueSize && a.MaxEntries == b.MaxEntries && a.Flags == b.Flags
}

// in returns the program in one form. What is not a guard has one form only. A guard is written for the hook of the LSM;
// the function of the kernel that calls the hook has the same arguments, and its name begins with security_. A program
// that modifies that function's return value gets what the other gets, and its answer means the same.
func (p *program) in(form Form) *ebpf.CollectionSpec {
	spec := p.spec.Copy()
	one := spec.Programs[p.name]
	if one.Type == ebpf.LSM && form == FormModifyReturn {
		one.Type, one.AttachType, one.AttachTo = ebpf.Tracing, ebpf.AttachModifyReturn, "security_"+one.AttachTo
	}
	return spec
}

// guards says whether any program is a guard.
func (s *set) guards() bool {
	return slices.ContainsFunc(s.programs, func(p program) bool { return p.isGuard() })
}

// isGuard says whether the program has the two forms.
func (p *program) isGuard() bool { return p.spec.Programs[p.name].Type == ebpf.LSM }

// describe is the program's line of a report, as far as the object tells.
func (p *program) describe(form Form) Program {
	one := p.in(form).Programs[p.name]
	return Program{Name: p.name, Object: p.object.name, Feature: p.object.feature, Optional: p.object.optional,
		Hook: one.AttachTo, Attach: attachName(one.Type, one.AttachType)}
}
