// SPDX-License-Identifier: Apache-2.0

package ktlstest

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// TakeModule takes a module out of the kernel until the test ends, and keeps the
// kernel from loading it again by itself. It skips the test but in a virtual machine:
// only a machine of our own may lose a module.
func TakeModule(t testing.TB, name string) {
	t.Helper()
	if !InVM() {
		t.Skip("takes a module out of the kernel, which only a machine of our own may lose")
	}
	const helper = "/proc/sys/kernel/modprobe"
	before, err := os.ReadFile(helper)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(helper, []byte("/nowhere"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(helper, before, 0); err != nil {
			t.Error(err)
		}
		if out, err := exec.Command("modprobe", name).CombinedOutput(); err != nil {
			t.Errorf("modprobe %s: %v: %s", name, err, out)
		}
	})
	if err := unix.DeleteModule(name, 0); err != nil {
		t.Fatalf("take %s out: %v", name, err)
	}
}
