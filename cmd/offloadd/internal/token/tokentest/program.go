// SPDX-License-Identifier: Apache-2.0

package tokentest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// EnvExpect makes it a failure, and no skip, that a program is missing. In a virtual
// machine it is one anyway: there they are installed.
const EnvExpect = "OFFLOADD_EXPECT_TOKENS"

// need skips without the program.
func need(t testing.TB, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv(EnvExpect) != "" || os.Getenv("OFFLOADD_VM_KERNEL") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// openDir makes a directory that other users can enter.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "offloadd-token-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// giveTo makes all below dir a user's.
func giveTo(t testing.TB, dir string, uid int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, uid)
	})
	if err != nil {
		t.Fatal(err)
	}
}
