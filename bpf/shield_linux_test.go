// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A memory is where a victim keeps a secret.
type memory struct{ Address, Size int }

var secret = []byte("a secret of the victim")

// victimProcess also opens its own memory, which needs no permission of the kernel's.
func victimProcess() any {
	if own, err := os.ReadFile("/proc/self/status"); err != nil || len(own) == 0 {
		panic(err)
	}
	if own, err := os.Open("/proc/self/mem"); err != nil {
		panic(err)
	} else {
		own.Close()
	}
	return memory{int(uintptr(unsafe.Pointer(&secret[0]))), len(secret)}
}

// An intrusion is a way into another process.
type intrusion struct {
	name string
	try  func(pid int, m memory) error
}

var intrusions = []intrusion{
	{"pidfd_getfd", func(pid int, _ memory) error {
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return err
		}
		defer unix.Close(pidfd)
		fd, err := unix.PidfdGetfd(pidfd, 1, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}},
	{"process_vm_readv", func(pid int, m memory) error {
		got := make([]byte, m.Size)
		_, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &got[0], Len: uint64(m.Size)}},
			[]unix.RemoteIovec{{Base: uintptr(m.Address), Len: m.Size}}, 0)
		return sees(got, err)
	}},
	{"process_vm_writev", func(pid int, m memory) error {
		same := bytes.Clone(secret)
		_, err := unix.ProcessVMWritev(pid, []unix.Iovec{{Base: &same[0], Len: uint64(m.Size)}},
			[]unix.RemoteIovec{{Base: uintptr(m.Address), Len: m.Size}}, 0)
		return err
	}},
	{"/proc/PID/mem", func(pid int, m memory) error {
		file, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
		if err != nil {
			return err
		}
		defer file.Close()
		got := make([]byte, m.Size)
		_, err = file.ReadAt(got, int64(m.Address))
		return sees(got, err)
	}},
	{"/proc/PID/task/PID/mem", func(pid int, m memory) error {
		file, err := os.Open(fmt.Sprintf("/proc/%d/task/%d/mem", pid, pid))
		if err == nil {
			file.Close()
		}
		return err
	}},
	{"/proc/PID/syscall", func(pid int, _ memory) error {
		_, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
		return err
	}},
	{"PTRACE_SEIZE", func(pid int, _ memory) error {
		_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0, 0, 0)
		if errno != 0 {
			return errno
		}
		return detach(pid, unix.PtraceInterrupt(pid))
	}},
	{"PTRACE_ATTACH", func(pid int, _ memory) error {
		if err := unix.PtraceAttach(pid); err != nil {
			return err
		}
		return detach(pid, nil)
	}},
}

// lookAtDescriptor is what goes on.
const lookAtDescriptor = "look at a descriptor"

func sees(got []byte, err error) error {
	if err == nil && !bytes.Equal(got, secret) {
		err = errors.New("something else was read")
	}
	return err
}

func detach(pid int, err error) error {
	_, waited := unix.Wait4(pid, nil, unix.WALL, nil)
	return errors.Join(err, waited, unix.PtraceDetach(pid))
}

// intruderProcess tries all on a process, and what must go on.
func intruderProcess() any {
	runtime.LockOSThread() // the tracer is a thread
	pid, _ := strconv.Atoi(os.Args[1])
	address, _ := strconv.Atoi(os.Args[2])
	size, _ := strconv.Atoi(os.Args[3])
	answers := map[string]string{}
	for _, i := range intrusions {
		err := i.try(pid, memory{address, size})
		if errors.Is(err, os.ErrPermission) {
			err = unix.EPERM // the file system's EACCES is the same answer
		}
		answers[i.name] = answer(err)
	}
	_, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/1", pid)) // as ss -p and lsof do, with PTRACE_MODE_READ
	answers[lookAtDescriptor] = answer(err)
	return answers
}

func intrude(t *testing.T, uid uint32, pid int, m memory) map[string]string {
	t.Helper()
	answers := map[string]string{}
	start(t, "intruder", uid, nil, fmt.Sprint(pid), fmt.Sprint(m.Address), fmt.Sprint(m.Size)).read(t, &answers)
	return answers
}

func shieldsFromOthers(t *testing.T, g *Guard) {
	for _, uid := range []uint32{root, nobody} {
		victim := start(t, "victim", uid, nil)
		var m memory
		victim.read(t, &m)
		for name, got := range intrude(t, uid, victim.Process.Pid, m) {
			if got != "success" {
				t.Errorf("uid %d without a shield: %s was answered with: %s", uid, name, got)
			}
		}
		if err := g.Admit(victim.pidfd, Shielded); err != nil {
			t.Fatal(err)
		}
		before := counted(t, g, "attach")
		for name, got := range intrude(t, uid, victim.Process.Pid, m) {
			want := unix.EPERM.Error()
			if name == lookAtDescriptor {
				want = "success"
			}
			if got != want {
				t.Errorf("uid %d: %s was answered with: %s", uid, name, got)
			}
		}
		if n := counted(t, g, "attach") - before; n != uint64(len(intrusions)) {
			t.Errorf("uid %d: %d intrusions were counted, not %d", uid, n, len(intrusions))
		}
		// Its own threads see its memory as before, and it can be ended.
		victim.kill()
	}
}

// leavesOwnMemoryAlone: the kernel asks nobody within one process.
func leavesOwnMemoryAlone(t *testing.T, g *Guard) {
	self := pidfdOf(t, os.Getpid())
	if err := g.Admit(self, Shielded); err != nil {
		t.Fatal(err)
	}
	defer g.Admit(self, 0)
	got := make([]byte, len(secret))
	file, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.ReadAt(got, int64(uintptr(unsafe.Pointer(&secret[0])))); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("read %q, %v", got, err)
	}
}

// shieldsChildren: until a child executes another program it has its parent's memory.
func shieldsChildren(t *testing.T, g *Guard) {
	self := pidfdOf(t, os.Getpid())
	if err := g.Admit(self, Shielded|KeyHolder); err != nil {
		t.Fatal(err)
	}
	child := start(t, "victim", root, nil)
	if err := g.Admit(self, 0); err != nil {
		t.Fatal(err)
	}
	var m memory
	child.read(t, &m)
	if err := takeDescriptor(child.pidfd); err != unix.EPERM {
		t.Errorf("taking a descriptor from the child was answered with: %s", answer(err))
	}
	var roles uint32
	if err := g.tasks.Lookup(uint32(child.pidfd), &roles); err != nil || Role(roles) != Shielded {
		t.Errorf("the child's roles are %d, %v", roles, err)
	}
	other := start(t, "victim", root, nil)
	other.read(t, &m)
	if err := takeDescriptor(other.pidfd); err != nil {
		t.Errorf("a child that was born without: %v", err)
	}
}

// keepsTheShieldOverExec, whichever thread executes the program; the other roles go.
func keepsTheShieldOverExec(t *testing.T, g *Guard) {
	for _, thread := range []string{"leader", "other"} {
		p := start(t, "executor", root, nil, thread)
		p.read(t, new(string))
		if err := g.Admit(p.pidfd, Shielded|KeyHolder|Handshaker); err != nil {
			t.Fatal(err)
		}
		if _, err := p.stdin.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		p.read(t, new(memory)) // it is the victim now
		var roles uint32
		if err := g.tasks.Lookup(uint32(p.pidfd), &roles); err != nil || Role(roles) != Shielded {
			t.Errorf("the roles after an exec by thread %q are %d, %v", thread, roles, err)
		}
		if err := takeDescriptor(p.pidfd); err != unix.EPERM {
			t.Errorf("thread %q: taking a descriptor was answered with: %s", thread, answer(err))
		}
	}
}

// executorProcess becomes the victim when it reads a byte.
func executorProcess() any {
	os.Stdout.WriteString("\"waiting\"\n")
	_, _ = os.Stdin.Read(make([]byte, 1))
	execute := func() error {
		os.Setenv(envProcess, "victim")
		return unix.Exec("/proc/self/exe", os.Args[:1], os.Environ())
	}
	if os.Args[1] == "leader" {
		return execute().Error()
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread()
		failed <- execute()
	}()
	return (<-failed).Error()
}

func refusesTheTraced(t *testing.T, g *Guard) {
	victim := start(t, "victim", root, nil)
	victim.read(t, &memory{})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceAttach(victim.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := g.Admit(victim.pidfd, Shielded); err == nil {
		t.Error("no error")
	}
	if err := detach(victim.Process.Pid, nil); err != nil {
		t.Fatal(err)
	}
	if err := g.Admit(victim.pidfd, Shielded); err != nil {
		t.Error(err)
	}
}

func counted(t *testing.T, g *Guard, reason string) uint64 {
	t.Helper()
	counts, err := g.Stopped()
	if err != nil {
		t.Fatal(err)
	}
	return counts[reason]
}
