// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// TestGuardsOutliveWhoMadeThem: the loader and the daemon are killed, and nothing changes for the others.
func TestGuardsOutliveWhoMadeThem(t *testing.T) {
	require(t)
	unloadLater(t)
	loader := start(t, "loader", root, nil, "load")
	var stopped string
	if loader.read(t, &stopped); stopped != "" {
		t.Fatal(stopped)
	}
	loader.kill()
	p, held := foreign(t)
	daemon := start(t, "daemon", root, []*os.File{held})
	if daemon.read(t, &stopped); stopped != "" {
		t.Fatal(stopped)
	}
	daemon.kill()
	for name, got := range attack(t, root, held) {
		if got != unix.EPERM.Error() {
			t.Errorf("%s was answered with: %s", name, got)
		}
	}
	exchange(t, p)
}

// daemonProcess has no capability, and takes the socket that it holds under guard. It is the only one that has the key.
func daemonProcess() any {
	if err := cap.NewSet().SetProc(); err != nil { // of all threads
		return fmt.Sprint("drop capabilities: ", err)
	}
	g, err := OpenGuard("")
	if err != nil {
		return err.Error()
	}
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return err.Error()
	}
	cookie, err := unix.GetsockoptUint64(heldFD, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err := errors.Join(err, g.SelfTest(), g.Pending(cookie), g.Admit(self, KeyHolder|Shielded), g.Ready(cookie)); err != nil {
		return err.Error()
	}
	if _, err := getKey(heldFD, tlsTX); err != nil {
		return err.Error()
	}
	if _, err := g.Stopped(); err != nil {
		return err.Error()
	}
	if _, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1}); err == nil {
		return "it can make maps, so it has capabilities"
	}
	return ""
}

func TestAFullMapIsAnError(t *testing.T) {
	require(t)
	g := load(t, "")
	n := g.sockets.MaxEntries()
	cookies, values := make([]uint64, n), make([]managed, n)
	for i := range cookies {
		cookies[i] = 1<<48 + uint64(i)
	}
	if _, err := g.sockets.BatchUpdate(cookies, values, nil); err != nil {
		t.Fatal(err)
	}
	if err := g.Pending(1 << 50); !errors.Is(err, ErrFull) {
		t.Errorf("one more than can be: %v", err)
	}
	if err := g.Ready(cookies[0]); err != nil {
		t.Errorf("one that is there: %v", err)
	}
}
