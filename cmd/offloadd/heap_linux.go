// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// smallPages has the kernel give this process, and those it starts, no huge pages. It fills
// up a huge page in which a few small ones are in use, so that what the heap gave back is
// occupied again (khugepaged, max_ptes_none), and with memory that is locked, it stays.
func smallPages() error {
	return os.NewSyscallError("prctl PR_SET_THP_DISABLE", unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0))
}
