// SPDX-License-Identifier: Apache-2.0

package adversary

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// envRun has the orders of an attacker's process, and envVictim makes a process one to be attacked.
const (
	envRun    = "OFFLOADD_ATTACK"
	envVictim = "OFFLOADD_ATTACK_VICTIM"
)

// Attempt is one way against one target.
type Attempt struct {
	Way    string
	Text   string         // of Send: what to send
	Socket *os.File       `json:"-"` // of Send and Key
	Peer   netip.AddrPort // of Fresh ways, IPv4
	Victim VictimInfo     // of Process
	FD     int            // of the socket in the attacker; filled in by Run
}

// Attacker is the process that makes attempts.
type Attacker struct {
	UID int
	// Started is called before the first attempt.
	Started func(pid int) error
	// Attr is for the process, to put it elsewhere.
	Attr *syscall.SysProcAttr
}

// firstFD is the number of the first descriptor in exec.Cmd.ExtraFiles.
const firstFD = 3

// Run makes the attempts in order and returns the outcome of each.
func (a Attacker) Run(ctx context.Context, attempts []Attempt) ([]string, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	for i := range attempts {
		if attempts[i].Socket != nil {
			attempts[i].FD = firstFD + len(cmd.ExtraFiles)
			cmd.ExtraFiles = append(cmd.ExtraFiles, attempts[i].Socket)
		}
	}
	orders, err := json.Marshal(attempts)
	if err != nil {
		return nil, err
	}
	cmd.Env = append(os.Environ(), envRun+"="+string(orders))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = a.Attr
	if a.UID != os.Getuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(a.UID), Gid: uint32(a.UID)}}
	}
	start, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	answers, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the attacker: %w", err)
	}
	decoded := json.NewDecoder(answers)
	// That it was started does not mean that the kernel is done with its exec, which may change what a process is.
	if err = decoded.Decode(new(string)); err == nil && a.Started != nil {
		err = a.Started(cmd.Process.Pid)
	}
	start.Close() // the attacker waits for this
	var outcomes []string
	for err == nil && len(outcomes) < len(attempts) {
		var o string
		if err = decoded.Decode(&o); err == nil {
			outcomes = append(outcomes, o)
		}
	}
	if err = errors.Join(err, cmd.Wait()); err != nil && len(outcomes) < len(attempts) {
		err = fmt.Errorf("the attacker ended in way %q: %w", attempts[len(outcomes)].Way, err)
	}
	return outcomes, err
}

// Main is to be called first by a program that attacks. In the process of an attacker or a victim it does not return.
func Main() {
	if os.Getenv(envVictim) != "" {
		exit(beVictim())
	}
	if orders := os.Getenv(envRun); orders != "" {
		exit(attack(orders))
	}
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "attack:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func attack(orders string) error {
	var attempts []Attempt
	if err := json.Unmarshal([]byte(orders), &attempts); err != nil {
		return err
	}
	os.Unsetenv(envRun) // of the attacker's own children
	answers := json.NewEncoder(os.Stdout)
	if err := answers.Encode("ready"); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	runtime.LockOSThread() // for what ends with a thread: tracing, and places
	for _, a := range attempts {
		err := a.do()
		if err := answers.Encode(outcome(err)); err != nil {
			return err
		}
	}
	return nil
}

func (a *Attempt) do() error {
	way, err := find(a.Way)
	if err != nil {
		return err
	}
	t := &target{fd: a.FD, text: []byte(a.Text), name: a.Way,
		pid: a.Victim.PID, tid: a.Victim.TID, theirs: a.Victim.FD, address: uintptr(a.Victim.Address)}
	if t.memory, err = newMemory(); err != nil {
		return err
	}
	if a.Peer.IsValid() {
		ip := a.Peer.Addr().As4()
		copy(t.peer[:], layout{}.u16(unix.AF_INET))
		t.peer[2], t.peer[3] = byte(a.Peer.Port()>>8), byte(a.Peer.Port())
		copy(t.peer[4:], ip[:])
	}
	return way.do(t)
}

// again makes one attempt of another way at the same socket in a process elsewhere.
func (t *target) again(way string, attr *syscall.SysProcAttr) error {
	f := os.NewFile(uintptr(t.fd), strconv.Itoa(t.fd))
	defer runtime.KeepAlive(f)
	outcomes, err := Attacker{UID: os.Getuid(), Attr: attr}.Run(context.Background(),
		[]Attempt{{Way: way, Text: string(t.text), Socket: f}})
	if err != nil {
		return err
	}
	if outcomes[0] != Succeeded {
		return named(outcomes[0])
	}
	return nil
}

// named is the error of that name.
func named(name string) error {
	for errno := unix.Errno(1); errno < 256; errno++ {
		if unix.ErrnoName(errno) == name {
			return errno
		}
	}
	return errors.New(name)
}
