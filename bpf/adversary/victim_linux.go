// SPDX-License-Identifier: Apache-2.0

package adversary

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// VictimInfo is where an attacker finds what it is after.
type VictimInfo struct {
	PID, TID int // a thread that is not the leader
	FD       int // a socket
	Address  uint64
}

// Secret is in the victim's memory.
const Secret = "what the victim has to hide"

// Victim is a process with a secret in its memory and a socket, that waits to be attacked.
type Victim struct {
	VictimInfo
	cmd  *exec.Cmd
	stop io.Closer
}

// StartVictim starts one.
func StartVictim() (*Victim, error) {
	v := &Victim{cmd: exec.Command("/proc/self/exe")}
	v.cmd.Env = append(os.Environ(), envVictim+"=1")
	v.cmd.Stderr = os.Stderr
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if v.stop, err = v.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := v.cmd.Start(); err != nil {
		return nil, err
	}
	if err := json.NewDecoder(out).Decode(&v.VictimInfo); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// Close ends the process. An error says that it did not live until then.
func (v *Victim) Close() error {
	return errors.Join(v.stop.Close(), v.cmd.Wait())
}

func beVictim() error {
	m, err := newMemory()
	if err != nil {
		return err
	}
	info := VictimInfo{PID: os.Getpid(), Address: uint64(m.put([]byte(Secret)))}
	if info.FD, err = loopbackPair(); err != nil {
		return err
	}
	for info.TID = info.PID; info.TID == info.PID; info.TID = waitingThread() {
	}
	if err := json.NewEncoder(os.Stdout).Encode(info); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// waitingThread is a thread, which may be the leader, that nobody else uses.
func waitingThread() int {
	thread := make(chan int)
	go func() {
		runtime.LockOSThread()
		thread <- unix.Gettid()
		select {}
	}()
	return <-thread
}
