// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// formProgram is the one with which a form is tried.
const formProgram = "key_get"

// chooseForm returns the wanted form, or the first of all that works on this kernel.
func chooseForm(all *set, wanted Form, types *btf.Cache) (Form, error) {
	var errs []error
	for _, form := range []Form{FormLSM, FormModifyReturn} {
		if wanted != "" && wanted != form {
			continue
		}
		err := tryForm(all, form, types)
		if err == nil {
			return form, nil
		}
		errs = append(errs, fmt.Errorf("as %s: %w", form, err))
	}
	if len(errs) == 0 {
		return "", fmt.Errorf("there is no form %q of guards: use %s or %s", wanted, FormLSM, FormModifyReturn)
	}
	return "", &UnavailableError{"guard sockets", errors.Join(errs...), "a kernel needs CONFIG_DEBUG_INFO_BTF and CONFIG_BPF_LSM " +
		"with bpf in lsm= for the first, or CONFIG_BPF_KPROBE_OVERRIDE for the second; offloadd then works only without guards"}
}

// tryForm attaches one guard for a moment, with maps of its own: a guard that acts already knows none of their sockets,
// and cannot be what answers.
func tryForm(all *set, form Form, types *btf.Cache) error {
	p := all.program(formProgram)
	if p == nil {
		return fmt.Errorf("no object has a program %s", formProgram)
	}
	spec := p.in(form)
	spec.Maps[mapSockets].MaxEntries = 1
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: types})
	if err != nil {
		return privilege("load", err)
	}
	defer collection.Close()
	link, err := attachProgram(collection.Programs[p.name], spec.Programs[p.name].AttachType, "")
	if err != nil {
		return privilege("attach", err)
	}
	defer link.Close()
	return tryKeyGuard(collection.Maps[mapSockets], keyAttempts[:1])
}

func (s *set) program(name string) *program {
	for i := range s.programs {
		if s.programs[i].name == name {
			return &s.programs[i]
		}
	}
	return nil
}

// securityModules are the active ones, for an error.
func securityModules() string {
	text, err := os.ReadFile("/sys/kernel/security/lsm")
	if err != nil {
		return "unknown, as securityfs is not mounted"
	}
	return strings.TrimSpace(string(text))
}
