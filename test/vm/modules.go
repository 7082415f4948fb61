// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// Debian ships no modules.dep (depmod writes it on installation), so the dependencies are read from the modules
// themselves, and the guest's modules.dep and modules.alias are written from them.

// A moduleSet is the modules of one kernel by name, with underscores.
type moduleSet struct {
	files   map[string]*moduleFile
	builtin map[string]bool
	expand  func(*moduleFile) error // reads the file's ELF image and modinfo
}

type moduleFile struct {
	path    string // below /usr/lib/modules/<release>, without .xz
	packed  []byte // as the package has it
	image   []byte // ELF
	depends []string
	aliases []string
}

func moduleName(file string) string {
	name := path.Base(file)
	for _, suffix := range []string{".xz", ".ko"} {
		name = strings.TrimSuffix(name, suffix)
	}
	return strings.ReplaceAll(name, "-", "_")
}

// parseBuiltin reads modules.builtin.
func parseBuiltin(list string) map[string]bool {
	builtin := map[string]bool{}
	for line := range strings.Lines(list) {
		builtin[moduleName(strings.TrimSpace(line))] = true
	}
	return builtin
}

// modinfo reads the NUL-separated name=value pairs of a module.
func (m *moduleFile) modinfo() error {
	file, err := elf.NewFile(bytes.NewReader(m.image))
	if err != nil {
		return fmt.Errorf("%s: %w", m.path, err)
	}
	section := file.Section(".modinfo")
	if section == nil {
		return fmt.Errorf("%s: no .modinfo section", m.path)
	}
	data, err := section.Data()
	if err != nil {
		return fmt.Errorf("%s: %w", m.path, err)
	}
	m.parseModinfo(string(data))
	return nil
}

func (m *moduleFile) parseModinfo(pairs string) {
	for pair := range strings.SplitSeq(pairs, "\x00") {
		name, value, _ := strings.Cut(pair, "=")
		switch name {
		case "alias":
			m.aliases = append(m.aliases, value)
		case "depends", "softdep":
			m.depends = append(m.depends, parseDepends(name, value)...)
		}
	}
}

// parseDepends reads "a,b" or, of a soft dependency, the names after "pre:".
func parseDepends(kind, value string) (names []string) {
	if kind == "softdep" {
		before, _, _ := strings.Cut(value, "post:")
		_, before, _ = strings.Cut(before, "pre:")
		value = strings.Join(strings.Fields(before), ",")
	}
	for name := range strings.SplitSeq(value, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, strings.ReplaceAll(name, "-", "_"))
		}
	}
	return names
}

// order lists the wanted modules, each after all it depends on, and leaves out what is built in.
func (s *moduleSet) order(release string, wanted []module) ([]string, error) {
	var ordered []string
	done := map[string]bool{}
	for _, want := range wanted {
		_, found := s.files[want.name]
		if !found && (want.optional || s.builtin[want.name]) {
			continue
		}
		if !found {
			return nil, fmt.Errorf("kernel %s has no module %s, neither as a file nor built in; mark it optional in "+
				"packages.go if this series does without it", release, want.name)
		}
		var err error
		if ordered, err = s.visit(ordered, done, want.name); err != nil {
			return nil, fmt.Errorf("kernel %s, module %s: %w", release, want.name, err)
		}
	}
	return ordered, nil
}

// visit appends a module after its dependencies. Marking it first ends a cycle, which soft dependencies can form.
func (s *moduleSet) visit(ordered []string, done map[string]bool, name string) ([]string, error) {
	file := s.files[name]
	if done[name] || file == nil {
		// Built in, or the alias of a soft dependency. If a hard one were missing, loading would say so.
		return ordered, nil
	}
	done[name] = true
	if file.image == nil {
		if err := s.expand(file); err != nil {
			return nil, err
		}
	}
	for _, dependency := range file.depends {
		var err error
		if ordered, err = s.visit(ordered, done, dependency); err != nil {
			return nil, err
		}
	}
	return append(ordered, name), nil
}

// dependencyFile is modules.dep: a module's path, a colon, and the paths of all it needs, nearest first.
func (s *moduleSet) dependencyFile(names []string) (string, error) {
	var text strings.Builder
	for _, name := range names {
		needs, err := s.visit(nil, map[string]bool{}, name)
		if err != nil {
			return "", err
		}
		needs = needs[:len(needs)-1] // itself
		slices.Reverse(needs)
		fmt.Fprintf(&text, "%s:", s.files[name].path)
		for _, need := range needs {
			fmt.Fprintf(&text, " %s", s.files[need].path)
		}
		text.WriteByte('\n')
	}
	return text.String(), nil
}

// aliasFile is modules.alias, by which the kernel's requests find a module.
func (s *moduleSet) aliasFile(names []string) string {
	var text strings.Builder
	for _, name := range names {
		for _, alias := range s.files[name].aliases {
			fmt.Fprintf(&text, "alias %s %s\n", alias, name)
		}
	}
	return text.String()
}

func builtinFile(builtin map[string]bool) string {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(builtin)) {
		fmt.Fprintf(&text, "kernel/%s.ko\n", name)
	}
	return text.String()
}
