// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"encoding/binary"
	"errors"
	"os"

	"github.com/cilium/ebpf"
)

// Inspect says what is pinned in a directory. It changes nothing. ErrNotLoaded: nothing is.
func Inspect(dir string) (Report, error) {
	return pins{cmp.Or(dir, DefaultDir)}.inspectAll(objects())
}

func (p pins) inspectAll(objects []object) (Report, error) {
	all, err := readObjects(objects)
	if err != nil {
		return Report{}, err
	}
	there, err := p.loaded()
	if err != nil {
		return Report{}, err
	}
	if !there {
		return Report{}, ErrNotLoaded
	}
	r := Report{Dir: p.dir, Lockdown: lockdown()}
	if _, err := os.Stat(p.skippable()); err == nil {
		if r.Skippable = ErrSkippable.Error(); CanBeSkipped() != nil {
			r.Skippable = CanBeSkipped().Error()
		}
	}
	for i := range all.programs {
		one, form, err := p.inspect(&all.programs[i])
		if err != nil {
			return Report{}, err
		}
		if form != "" {
			r.Form = form
		}
		r.Programs = append(r.Programs, one)
	}
	sockets, err := ebpf.LoadPinnedMap(p.mapPin(mapSockets), nil)
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return Report{}, privilege("open map "+mapSockets, err)
	}
	defer sockets.Close()
	r.Managed = countSockets(sockets)
	return r, nil
}

// inspect looks for a program in each form it may have, and returns that of a guard.
func (p pins) inspect(one *program) (Program, Form, error) {
	forms := []Form{FormLSM}
	if one.isGuard() {
		forms = append(forms, FormModifyReturn)
	}
	for _, form := range forms {
		info := one.describe(form)
		attached, err := pinnedProgram(p.linkPin(info.pin()))
		if err != nil {
			return Program{}, "", privilege("look at "+p.linkPin(info.pin()), err)
		}
		if attached == nil {
			continue
		}
		info.ID, info.Tag = uint32(attached.id), attached.tag
		if !one.isGuard() {
			form = ""
		}
		return info, form, nil
	}
	info := one.describe(FormLSM)
	info.Off = "not attached; to complete it, run: offloadd bpf load"
	return info, "", nil
}

// Unload removes everything from a directory: programs, maps, and the directory. ErrNotLoaded: there is nothing.
func Unload(dir string) error {
	p := pins{cmp.Or(dir, DefaultDir)}
	unlock, err := p.lock()
	if err != nil {
		return err
	}
	defer unlock()
	there, err := p.loaded()
	if err != nil {
		return err
	}
	if !there {
		return ErrNotLoaded
	}
	return privilege("remove "+p.dir, p.remove())
}

// countSockets counts the entries of the map. While sockets come and go the number may be off.
func countSockets(sockets *ebpf.Map) (n int) {
	var cookie uint64
	var value []byte // which may be of another shape than ours
	for entries := sockets.Iterate(); entries.Next(&cookie, &value); {
		if probe := len(value) == 8 && binary.NativeEndian.Uint32(value[4:])&flagProbe != 0; !probe {
			n++
		}
	}
	return n
}
