// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"os"
)

// needlessForPlaintext: where there is one way into TCP only, the hook of the other is for nothing. It is asked for each
// read and write of each file of the machine, and costs some 250 instructions each time.
func needlessForPlaintext() []string {
	if sendsByPages("/sys/kernel/btf/vmlinux") {
		return nil
	}
	return []string{"plaintext_write"}
}

// sendsByPages says whether the kernel's types know the name sendpage, a member of struct proto_ops until Linux 6.4. To read
// the types and not only their names would take as long as to load all programs. In doubt it does.
func sendsByPages(types string) bool {
	names, err := os.ReadFile(types)
	return err != nil || bytes.Contains(names, []byte("\x00sendpage\x00"))
}
