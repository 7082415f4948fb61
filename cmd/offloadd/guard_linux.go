// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/bpf"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
)

// Policies of a daemon towards the BPF guards.
const (
	guardRequire = "require" // no service without
	guardPrefer  = "prefer"  // without if there are none, and say so
	guardOff     = "off"     // never
)

// guardian tells the BPF guards of this daemon's connections and processes. A nil one
// does nothing: there are no guards.
type guardian struct {
	guard *bpf.Guard
	log   *slog.Logger
	// silent: the guards were found not to act any more.
	silent atomic.Bool
	// waiting has, for each connection without keys, the channel to close when bytes in
	// clear were about to leave it.
	waiting sync.Map // of uint64 to chan struct{}
}

func addBPFDirFlag(f *pflag.FlagSet, dir *string) {
	f.StringVar(dir, "bpf-dir", bpf.DefaultDir, "`directory` where \"offloadd bpf load\" has pinned the guards")
}

// guardInterval is how often the guards are tried.
const guardInterval = 10 * time.Second

// openGuardian opens the guards as the policy wants, proves that they act, and gives
// this process its roles. It needs no capability.
func openGuardian(config *config, log *slog.Logger) (*guardian, error) {
	if config.Guard == guardOff {
		log.Warn("keys are not guarded: whoever holds a socket can ask the kernel for them", "reason", "guard = \"off\"")
		return nil, nil
	}
	g, err := tryGuardian(config, log)
	switch {
	case err == nil:
		log.Info("guards act", "form", string(g.guard.Form()), "pins", config.BPFDir)
		if err := g.guard.Sound(); err != nil {
			log.Warn("the guards can be outrun", "reason", err.Error())
		}
		return g, nil
	case config.Guard == guardRequire:
		return nil, machineError("guard = %q: %w", guardRequire, err)
	}
	log.Warn("keys are not guarded: whoever holds a socket can ask the kernel for them", "reason", err.Error())
	return nil, nil
}

func tryGuardian(config *config, log *slog.Logger) (*guardian, error) {
	guard, err := bpf.OpenGuard(config.BPFDir)
	if err != nil {
		return nil, err
	}
	if err := guard.Sound(); err != nil && config.Guard == guardRequire {
		guard.Close()
		return nil, err
	}
	g := &guardian{guard: guard, log: log}
	if err := errors.Join(guard.SelfTest(), g.admit(os.Getpid(), bpf.KeyHolder|bpf.Shielded)); err != nil {
		guard.Close()
		return nil, err
	}
	return g, nil
}

// envShielded tells a daemon that it has begun anew under the shield: its own number.
const envShielded = "OFFLOADD_SHIELDED"

// beginShielded begins this process anew under the shield, before it has a secret. The
// shield denies to open its memory; who had opened that before could go on reading it,
// were it not of the program that is no more.
func beginShielded(env *environment, config *config) error {
	self := strconv.Itoa(os.Getpid())
	if env.exec == nil || config.Guard == guardOff || os.Getenv(envShielded) == self {
		return nil
	}
	guard, err := bpf.OpenGuard(config.BPFDir)
	if err != nil {
		return nil // what that means is for openGuardian to say
	}
	defer guard.Close()
	g := &guardian{guard: guard}
	if err := g.admit(os.Getpid(), bpf.Shielded); err != nil {
		return err
	}
	if err := os.Setenv(envShielded, self); err != nil {
		return err
	}
	return os.NewSyscallError("execve", env.exec("/proc/self/exe", os.Args, os.Environ()))
}

// admit gives a process its roles: this one, or a child that nobody has waited for, so
// that the number is still its own.
func (g *guardian) admit(pid int, roles bpf.Role) error {
	if g == nil {
		return nil
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(pidfd)
	return g.guard.Admit(pidfd, roles)
}

var errGuardsSilent = errors.New("the BPF guards do not act any more, perhaps they were unloaded; run \"offloadd bpf load\" and restart the daemon")

// pending makes a fresh connection managed: until ready, nobody but a worker sends on
// it, and only records. The caller refuses a connection that cannot be guarded. The
// channel is closed if other bytes were about to leave; without guards it is nil.
func (g *guardian) pending(socket uint64) (<-chan struct{}, error) {
	if g == nil {
		return nil, nil
	}
	if g.silent.Load() {
		return nil, errGuardsSilent
	}
	inClear := make(chan struct{})
	g.waiting.Store(socket, inClear)
	if err := g.guard.Pending(socket); err != nil {
		g.waiting.Delete(socket)
		return nil, err
	}
	return inClear, nil
}

// Destroyed forgets a socket that the kernel has freed, in case that its programs did
// not notice.
func (g *guardian) Destroyed(socket uint64) {
	if g == nil {
		return
	}
	if err := g.guard.Forget(socket); err != nil {
		g.log.Warn("a guarded socket that ended is still listed", "error", err)
	}
}

// Reconciled has nothing to do: what is not known to be freed stays guarded.
func (g *guardian) Reconciled(*custody.Census) {}

// settled: the connection has its keys, or has ended.
func (g *guardian) settled(socket uint64) {
	if g != nil {
		g.waiting.Delete(socket)
	}
}

// stopped hears of what the guards stop.
func (g *guardian) stopped(s bpf.Stop) {
	if s.Reason != bpf.PacketInClear {
		return
	}
	if inClear, ok := g.waiting.LoadAndDelete(s.Socket); ok {
		close(inClear.(chan struct{}))
	}
}

// ready says that the keys are in.
func (g *guardian) ready(socket uint64) error {
	if g == nil {
		return nil
	}
	return g.guard.Ready(socket)
}

// watch logs what the guards stop, and tries them from time to time, until ctx ends.
func (g *guardian) watch(ctx context.Context) {
	if g == nil {
		return
	}
	go func() {
		told := &stopsLog{log: g.log}
		if err := g.guard.Stops(ctx, func(s bpf.Stop) {
			g.stopped(s)
			told.stop(s)
		}); err != nil && ctx.Err() == nil {
			g.log.Error("what the guards stop is counted only", "error", err)
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(guardInterval):
			g.try()
		}
	}
}

// try finds out whether the guards act. Once they do not, what was managed before is
// not guarded, whatever is loaded later.
func (g *guardian) try() {
	if g.silent.Load() {
		return
	}
	if err := g.guard.SelfTest(); err != nil && g.silent.CompareAndSwap(false, true) {
		g.log.Error("keys are not guarded any more; no further connection is accepted", "error", err, "remedy", errGuardsSilent.Error())
	}
}

// stopsLog writes at most stopsPerSecond lines, since an attacker makes as many stops
// as he likes. All are counted in the kernel.
type stopsLog struct {
	log     *slog.Logger
	second  time.Time
	written int
	held    uint64
}

const stopsPerSecond = 10

func (l *stopsLog) stop(s bpf.Stop) {
	if now := time.Now().Truncate(time.Second); now != l.second {
		if l.held > 0 {
			l.log.Warn("more was stopped", "times", l.held)
		}
		l.second, l.written, l.held = now, 0, 0
	}
	if l.written++; l.written > stopsPerSecond {
		l.held++
		return
	}
	args := []any{"what", s.Reason, "by_pid", s.PID, "by_uid", s.UID, "by_command", printable([]byte(s.Command))}
	if s.Socket != 0 {
		args = append(args, "socket", s.Socket)
	}
	if s.Target != 0 {
		args = append(args, "target_pid", s.Target)
	}
	l.log.Warn("stopped by a guard", args...)
}

// guardedSelf lets this command touch keys of guarded sockets, as root, if there are
// guards.
func guardedSelf(dir string) error {
	guard, err := bpf.OpenGuard(dir)
	if errors.Is(err, bpf.ErrNotLoaded) {
		return nil
	}
	if err != nil {
		return err
	}
	defer guard.Close()
	g := &guardian{guard: guard}
	if err := g.admit(os.Getpid(), bpf.KeyHolder); err != nil {
		return fmt.Errorf("ask the guards for access: %w", err)
	}
	return nil
}
