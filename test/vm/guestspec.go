// SPDX-License-Identifier: Apache-2.0

package main

// A guestSpec tells init what to do. It travels in the initramfs.
type guestSpec struct {
	Modules  []string // paths, in the order of loading
	Args     []string
	Env      []string
	Dir      string
	Stdin    bool           // pass on the host's standard input
	Terminal *windowMessage // give the command a terminal of this size
	Get      []string       // paths to send back after the command
	Watch    bool           // watch what the command does with kernel TLS
	// Languages: a disk with compilers and interpreters is attached.
	Languages bool
	// Peers: a disk with the programs that we are compared with is attached.
	Peers bool
}

const (
	guestSpecPath = "/offloadd-vm.json"
	guestInitPath = "/init"
	guestHostname = "offloadd-vm"
	guestPortName = "offloadd.vm"
	watchPrefix   = "watch: " // of the line that a watch ends with
	guestSearch   = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)
