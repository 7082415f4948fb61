// SPDX-License-Identifier: Apache-2.0

package adversary

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Kind is what a way is after.
type Kind string

const (
	Send    Kind = "send"    // an application byte to the peer
	Key     Kind = "key"     // a TLS key, or the state it is in
	Process Kind = "process" // the memory or a descriptor of a process
)

// Way is one way to do what nobody must.
type Way struct {
	Name string
	Kind Kind
	// Fresh ways connect their socket themselves.
	Fresh bool
	// Unseen ways are not told that the kernel dropped what they sent.
	Unseen bool
	// Elsewhere ways are another process's than the attacker's.
	Elsewhere bool
	// Needs is what a way at keys must find.
	Needs State
	// lacking are the answers of kernels that do not know this way, by series, "" for all; and to an unprivileged
	// user, unprivileged.
	lacking      map[string]unix.Errno
	unprivileged unix.Errno
	do           func(*target) error
}

// target is what a way has at hand.
type target struct {
	*memory
	fd      int
	text    []byte   // what to send
	peer    [16]byte // struct sockaddr_in, for Fresh ways
	pid     int      // of the process to reach into
	tid     int      // a thread of it
	theirs  int      // a descriptor of it
	address uintptr
	name    string
}

// Succeeded is the outcome of a way that did it. Any other is the name of the error.
const Succeeded = "succeeded"

// errShort is of a way that sent less than it had to.
var errShort = errors.New("short")

func outcome(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return Succeeded
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// Unguarded is the outcome on a kernel series without any guard, for root or another user.
func (w *Way) Unguarded(series string, uid int) string {
	if errno, ok := w.lacking[series]; ok {
		return unix.ErrnoName(errno)
	}
	if errno, ok := w.lacking[""]; ok {
		return unix.ErrnoName(errno)
	}
	if uid != 0 && w.unprivileged != 0 {
		return unix.ErrnoName(w.unprivileged)
	}
	return Succeeded
}

// Ways are all ways of a kind.
func Ways(kind Kind) []*Way {
	all := slices.Concat(sendWays(), fileWays(), aioWays(), uringWays(), compatWays(), placeWays(), sockmapWays(),
		keyWays(), processWays())
	return slices.DeleteFunc(all, func(w *Way) bool { return w.Kind != kind })
}

func find(name string) (*Way, error) {
	for _, kind := range []Kind{Send, Key, Process} {
		for _, w := range Ways(kind) {
			if w.Name == name {
				return w, nil
			}
		}
	}
	return nil, fmt.Errorf("there is no way %q", name)
}

// everywhere is for ways that no kernel of ours knows.
func everywhere(errno unix.Errno) map[string]unix.Errno { return map[string]unix.Errno{"": errno} }

// call is a system call.
func call(number uintptr, args ...uintptr) (int, error) {
	var a [6]uintptr
	copy(a[:], args)
	r, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// call32 is a system call of i386, by its numbers and with its structures.
func call32(number uintptr, args ...uintptr) (int, error) {
	var a [6]uint32
	for i, arg := range args {
		a[i] = uint32(arg)
	}
	r := int80(uint32(number), a[0], a[1], a[2], a[3], a[4], a[5])
	if r < 0 && r > -4096 {
		return 0, unix.Errno(-r)
	}
	return int(r), nil
}

// int80 enters the kernel by its gate for i386 programs, which any program may use.
func int80(number, a, b, c, d, e, f uint32) int32

// all turns the result of a call that moved n bytes into that of sending the text.
func (t *target) all(n int, err error) error {
	if err == nil && n != len(t.text) {
		return fmt.Errorf("%w: %d of %d bytes", errShort, n, len(t.text))
	}
	return err
}
