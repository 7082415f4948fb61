// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The guest's side: what runs as pid 1 in the virtual machine.

// isGuest says whether this process is init. In a container we may be pid 1 too, but not under this name.
func isGuest() bool { return os.Getpid() == 1 && os.Args[0] == guestInitPath }

// guestMain never returns: if pid 1 ended, the kernel would panic. (It does, if we panic, and the host sees that.)
func guestMain() {
	// The host shows the end of the console when a machine ends without a status, and the log is printed there.
	writeKernelLog("offloadd-vm init: " + runGuest().Error())
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // with -no-reboot this ends QEMU, with a status that is not ours
	select {}
}

// runGuest returns why the guest could not do its work. If it could, the machine has ended.
func runGuest() error {
	for _, m := range guestMounts {
		if err := m.mount(); err != nil {
			return err
		}
	}
	spec, err := readSpec()
	if err != nil {
		return err
	}
	if err := loadModules(spec.Modules); err != nil {
		return err
	}
	if err := configureGuest(); err != nil {
		return err
	}
	if spec.Languages {
		if err := mountLanguages(); err != nil {
			return err
		}
	}
	if spec.Peers {
		if err := mountPeers(); err != nil {
			return err
		}
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	if err := serve(port, spec); err != nil {
		return err
	}
	return endMachine()
}

// serve runs the command and reports over the port.
func serve(port *os.File, spec *guestSpec) error {
	out := &frameWriter{out: port}
	if err := out.writeJSON(frameStarted, startedMessage{Release: kernelRelease()}); err != nil {
		return fmt.Errorf("greet the host: %w", err)
	}
	command := &guestCommand{spec: spec, out: out, bye: make(chan struct{})}
	code, err := command.runWatched(port)
	exit := exitMessage{Code: code, Locked: lockedDown()}
	if command.pid == 0 {
		go command.receive(port)
	}
	if err != nil {
		exit.Error = err.Error()
	}
	if err := sendFiles(out.stream(frameArchive), spec.Get); err != nil && exit.Error == "" {
		exit.Code, exit.Error = exitMachine, err.Error()
	}
	// The serial console may lag behind. The log itself does not.
	if err := out.write(frameKernel, readKernelLog()); err != nil {
		return err
	}
	if err := out.writeJSON(frameExit, exit); err != nil {
		return err
	}
	if err := out.write(frameEnd, nil); err != nil {
		return err
	}
	<-command.bye
	return nil
}

func readSpec() (*guestSpec, error) {
	data, err := os.ReadFile(guestSpecPath)
	if err != nil {
		return nil, err
	}
	spec := &guestSpec{}
	return spec, json.Unmarshal(data, spec)
}

func loadModules(paths []string) error {
	for _, path := range paths {
		file, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("load module: %w", err)
		}
		err = unix.FinitModule(int(file.Fd()), "", 0)
		file.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("load module %s: %w", filepath.Base(path), err)
		}
	}
	return nil
}

// portPatience is how long the port may take to appear after its driver was loaded.
const portPatience = 20 * time.Second

// openPort finds the virtio port by its name.
func openPort() (*os.File, error) {
	for end := time.Now().Add(portPatience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			content, err := os.ReadFile(name)
			if err != nil || strings.TrimSpace(string(content)) != guestPortName {
				continue // not named yet
			}
			file, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_RDWR, 0)
			if err == nil {
				return file, nil
			}
		}
	}
	return nil, fmt.Errorf("no virtio port %q after %v", guestPortName, portPatience)
}

func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}

func writeKernelLog(line string) {
	_ = os.WriteFile("/dev/kmsg", []byte("<3>"+line+"\n"), 0) // the last resort has no other
}

// readKernelLog returns all of the kernel's log, one message a line.
func readKernelLog() []byte {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return []byte(err.Error())
	}
	defer unix.Close(fd)
	var log []byte
	record := make([]byte, 8192)
	for range 100_000 { // the log is a ring and may grow while we read
		n, err := unix.Read(fd, record)
		if err == unix.EPIPE || err == syscall.EINTR {
			continue // overtaken: the next read starts at the oldest that is left
		}
		if err != nil || n == 0 {
			break
		}
		if message := kernelMessage(string(record[:n])); message != "" {
			log = append(append(log, message...), '\n')
		}
	}
	return log
}

// kernelMessage takes the text from a record "priority,sequence,time,flags;text\n KEY=value\n".
func kernelMessage(record string) string {
	_, text, _ := strings.Cut(record, ";")
	text, _, _ = strings.Cut(text, "\n")
	return text
}
