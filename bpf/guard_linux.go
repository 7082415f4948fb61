// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A Guard tells the attached programs which sockets are managed, and what processes may do with them. It needs no
// capability. Its methods may be called at once by several goroutines.
type Guard struct {
	form    Form
	sound   error
	sockets *ebpf.Map
	tasks   *ebpf.Map
	stopped *ebpf.Map
	stops   *ebpf.Map
}

// ErrFull: as many sockets as can be are managed.
var ErrFull = errors.New("262144 sockets are managed, and no more can be")

// ErrNotManaged: the socket is not managed, or it is gone.
var ErrNotManaged = errors.New("the socket is not managed, or it is gone")

// OpenGuard opens what Load pinned. Empty: DefaultDir. ErrNotLoaded: there is nothing. That the programs act is for
// SelfTest to tell.
func OpenGuard(dir string) (_ *Guard, err error) {
	p := pins{cmp.Or(dir, DefaultDir)}
	g := &Guard{}
	defer func() {
		if err != nil {
			_ = g.Close()
		}
	}()
	for name, into := range map[string]**ebpf.Map{mapSockets: &g.sockets, mapTasks: &g.tasks, mapStopped: &g.stopped, mapStops: &g.stops} {
		*into, err = ebpf.LoadPinnedMap(p.mapPin(name), nil)
		if errors.Is(err, os.ErrNotExist) {
			return nil, ErrNotLoaded
		}
		if err != nil {
			return nil, privilege("open map "+p.mapPin(name), err)
		}
	}
	if g.form, err = p.form(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(p.skippable()); err == nil {
		g.sound = ErrSkippable
	}
	return g, nil
}

// Sound is ErrSkippable if the guards act, and can be outrun.
func (g *Guard) Sound() error { return g.sound }

// form is that of the program with which forms are tried.
func (p pins) form() (Form, error) {
	names, err := p.links()
	if err != nil {
		return "", privilege("look into "+p.dir, err)
	}
	for _, form := range []Form{FormLSM, FormModifyReturn} {
		for _, name := range names {
			if strings.HasPrefix(name, formProgram+"-"+string(form)+"-") {
				return form, nil
			}
		}
	}
	return "", ErrNotLoaded
}

// Close closes the maps. The programs go on.
func (g *Guard) Close() error {
	var errs []error
	for _, m := range []*ebpf.Map{g.sockets, g.tasks, g.stopped, g.stops} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// Form is how the guards are attached.
func (g *Guard) Form() Form { return g.form }

// SelfTest proves on sockets of its own that the guards act now. Roles of the process that calls do not matter.
func (g *Guard) SelfTest() error {
	return errors.Join(testKeyGuard(g.sockets), testPlaintextGuard(g.sockets))
}

// Pending makes a socket managed: TLS is expected on it, and there is no key yet. Only a Handshaker may send. The caller
// holds a descriptor of the socket, else it might be gone and its entry would stay for ever. An error means that the
// socket is not guarded.
func (g *Guard) Pending(cookie uint64) error {
	if cookie == 0 {
		return errors.New("guard a socket: it has no cookie")
	}
	err := g.sockets.Update(cookie, managed{Phase: pending}, ebpf.UpdateAny)
	if errors.Is(err, unix.E2BIG) {
		err = ErrFull
	}
	if err != nil {
		return fmt.Errorf("guard socket %d: %w", cookie, err)
	}
	return nil
}

// Ready says that the keys are in the kernel: whoever holds the socket may send.
func (g *Guard) Ready(cookie uint64) error { return g.change(cookie, ready) }

// Ended says that nobody may send any more.
func (g *Guard) Ended(cookie uint64) error { return g.change(cookie, ended) }

// Forget ends the care for a socket that the kernel has freed. The programs do that themselves, unless the kernel skipped
// one (see CanBeSkipped).
func (g *Guard) Forget(cookie uint64) error {
	if err := g.sockets.Delete(cookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forget socket %d: %w", cookie, err)
	}
	return nil
}

// change is refused for a socket that is gone: an entry for it would never go.
func (g *Guard) change(cookie uint64, to phase) error {
	err := g.sockets.Update(cookie, managed{Phase: to}, ebpf.UpdateExist)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = ErrNotManaged
	}
	if err != nil {
		return fmt.Errorf("guard socket %d: %w", cookie, err)
	}
	return nil
}

// Admit gives a process exactly these roles, and none else. The process is named by a pidfd, so it cannot be another of
// the same number. Its children do not get them, but the shield; when it executes another program it keeps the shield
// alone. To shield a process that is being traced is an error, as its tracer goes on seeing all of its memory; the roles it
// has then all the same. Whoever opened /proc/PID/mem before goes on, too, and is not seen: shield a process before it has
// secrets, and let it execute itself after, or let it be born of one that is shielded.
func (g *Guard) Admit(pidfd int, roles Role) error {
	if err := g.tasks.Put(uint32(pidfd), uint32(roles)); err != nil {
		return fmt.Errorf("give a process its roles: %w", err)
	}
	if roles&Shielded == 0 {
		return nil
	}
	pid, err := numberFrom(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd), "Pid:")
	if err != nil {
		return fmt.Errorf("shield a process: %w", err)
	}
	tracer, err := numberFrom(fmt.Sprintf("/proc/%d/status", pid), "TracerPid:")
	if errors.Is(err, os.ErrNotExist) {
		return nil // it has ended, or /proc does not show it (hidepid)
	}
	if err != nil {
		return fmt.Errorf("shield process %d: %w", pid, err)
	}
	if tracer != 0 {
		return fmt.Errorf("shield process %d: process %d traces it already, and reads its memory; end the tracer and start again", pid, tracer)
	}
	return nil
}

// numberFrom finds the number that follows a word at the beginning of a line.
func numberFrom(path, word string) (int, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), word); ok {
			return strconv.Atoi(strings.TrimSpace(rest))
		}
	}
	return 0, fmt.Errorf("%s has no line %s", path, word)
}

// Stopped counts what was stopped, by name, since the first Load.
func (g *Guard) Stopped() (map[string]uint64, error) {
	counts := map[string]uint64{}
	var reason uint32
	var n uint64
	entries := g.stopped.Iterate()
	for entries.Next(&reason, &n) {
		if n != 0 || reasons[reason] != "" {
			counts[reasonName(reason)] = n
		}
	}
	return counts, entries.Err()
}
