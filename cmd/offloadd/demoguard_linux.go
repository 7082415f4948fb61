// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/bpf"
	"github.com/offloadd/offloadd/ktls"
)

// loadGuards loads guards for this demo alone, if the machine can, and returns the
// flags for serve.
func (d *demo) loadGuards(report *demoReport) (flags []string, unload func()) {
	dir := filepath.Join(filepath.Dir(bpf.DefaultDir), fmt.Sprintf("offloadd-demo-%d", os.Getpid()))
	loaded, err := bpf.Load(bpf.Options{Dir: dir})
	if err != nil {
		report.Guards.Off = err.Error()
		return []string{"--guard", guardOff}, func() {}
	}
	report.Guards.Form = string(loaded.Form)
	return []string{"--guard", guardRequire, "--bpf-dir", dir}, func() {
		if err := bpf.Unload(dir); err != nil {
			fmt.Fprintln(d.env.stderr, "offloadd demo: unload the guards:", err)
		}
	}
}

// askForKey takes the connection that is not among the seen from the application, as root can, and asks the kernel for its write key: for the length that
// tells version and cipher only, since a key has no place here. It returns the answer.
func (d *demo) askForKey(ctx context.Context, seen []int64) string {
	handed, err := d.handedOver(ctx, seen)
	if err != nil {
		return err.Error()
	}
	// It may be on its way to the application still.
	for range 100 {
		answer, err := askInProcess(int(handed.number("application_pid")), handed.number("socket"))
		if answer != "" || err != nil {
			return cmp.Or(answer, fmt.Sprint(err))
		}
		time.Sleep(20 * time.Millisecond)
	}
	return "the application does not hold it any more"
}

// askInProcess asks for the key of one socket of a process; "" if it has no such.
func askInProcess(pid int, socket int64) (answer string, err error) {
	err = eachSocket(pid, func(sock *os.File) {
		if cookie, err := ktls.Cookie(sock); err != nil || int64(cookie) != socket {
			return
		}
		// Not by Fd, which would make the application's socket a blocking one.
		raw, err := sock.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { answer = askForHeader(int(fd)) })
		}
		if err != nil {
			answer = err.Error()
		}
	})
	return answer, err
}

func askForHeader(fd int) string {
	const tlsTX = 1 // include/uapi/linux/tls.h
	if _, err := unix.GetsockoptInt(fd, unix.SOL_TLS, tlsTX); err != nil {
		return err.Error()
	}
	return "granted"
}
