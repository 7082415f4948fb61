// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The attacker holds a socket as descriptor 3.
const heldFD = 3

const (
	tcpRepair          = 19
	tcpZerocopyReceive = 35
)

// An attempt on a socket that has keys, with what the guard counts it as. The last ones end the connection if they
// succeed.
type attempt struct {
	name   string
	reason string
	try    func(fd int) error
}

var attempts = []attempt{
	{"get TLS_TX", "key_get", func(fd int) error { _, err := getKey(fd, tlsTX); return err }},
	{"get TLS_RX", "key_get", func(fd int) error { _, err := getKey(fd, tlsRX); return err }},
	{"set TLS_TX", "key_set", func(fd int) error { return setOption(fd, unix.SOL_TLS, tlsTX, make([]byte, 40)) }},
	{"set TLS_RX", "key_set", func(fd int) error { return setOption(fd, unix.SOL_TLS, tlsRX, make([]byte, 40)) }},
	{"set TCP_ULP", "ulp", func(fd int) error { return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_ULP, "tls") }},
	{"get TCP_ZEROCOPY_RECEIVE", "zerocopy_receive", func(fd int) error { return getOption(fd, unix.IPPROTO_TCP, tcpZerocopyReceive, make([]byte, 64)) }},
	{"set TCP_REPAIR", "repair", func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, tcpRepair, 1) }},
	{"get TCP_REPAIR", "repair", func(fd int) error { return getOption(fd, unix.IPPROTO_TCP, tcpRepair, make([]byte, 4)) }},
	{"listen", "listen", func(fd int) error { return unix.Listen(fd, 1) }},
	{"connect AF_UNSPEC", "disconnect", connectNowhere},
}

// attackerProcess tries all on the socket that it holds, and reports the errors.
func attackerProcess() any {
	answers := map[string]string{}
	for _, a := range attempts {
		answers[a.name] = answer(a.try(heldFD))
	}
	return answers
}

// spinnerResult is what came of trying to read the key all the time.
type spinnerResult struct {
	Tries, Successes int
	Other            string // an answer that was neither EPERM nor success
}

// spinnerProcess reads the write key all the time, until its standard input ends.
func spinnerProcess() any {
	ended := make(chan struct{})
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		close(ended)
	}()
	os.Stdout.WriteString("\"spinning\"\n")
	var r spinnerResult
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); r.Tries++ {
		switch _, err := getKey(heldFD, tlsTX); err {
		case nil:
			r.Successes++
		case unix.EPERM:
		default:
			r.Other = err.Error()
		}
		select {
		case <-ended:
			return r
		default:
		}
	}
	return r
}

// getKey returns the kernel's state of a direction: 40 bytes of AES-128-GCM.
func getKey(fd, direction int) ([]byte, error) {
	key := make([]byte, 40)
	return key, getOption(fd, unix.SOL_TLS, direction, key)
}

func getOption(fd, level, option int, value []byte) error {
	size := uint32(len(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func setOption(fd, level, option int, value []byte) error {
	return unix.SetsockoptString(fd, level, option, string(value))
}
