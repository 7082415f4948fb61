// SPDX-License-Identifier: Apache-2.0

package main

// What is taken from Debian, in one place. A later test that needs another program in the guest adds its package to
// guestPackages; one that needs another module adds it to loadedModules or loadableModules. The images are named by
// these lists, so a change builds a new one.

// userlandSuite is where the guest's programs and the host's tools come from. It is one suite whatever the host is:
// both are unpacked with all their libraries, so nothing of the host's own release is mixed in. The first release
// whose OpenSSL (3.5) knows ML-KEM and whose QEMU (10) runs several CPUs under TCG.
const userlandSuite = "trixie"

// suites are the releases the private apt state reads. Kernels are found in all of them.
var suites = []suite{
	{name: "bookworm"},
	{name: "bookworm-security", security: true},
	{name: "bookworm-backports"},
	{name: "trixie"},
	{name: "trixie-updates"},
	{name: "trixie-security", security: true},
	{name: "trixie-backports"},
}

type suite struct {
	name     string
	security bool // is on the security mirror, not on the main one
}

// kernelMetaPackage depends on the newest kernel of its suite. The cloud flavour is small and boots fastest.
const kernelMetaPackage = "linux-image-cloud-amd64"

// kernelSeries are the kernels that `vm test` runs by default: the dotted prefix of a version.
var kernelSeries = []string{"6.1", "6.12", "7"}

const defaultKernel = "6.12"

// hostPackages run here: the emulator, and xz because modules come as .ko.xz.
var hostPackages = []string{"qemu-system-x86", "xz-utils"}

// toolchainPackages build kernel modules for the tests, see toolchain.go. The libraries are those of the programs in
// the kernel's own packages (objtool, modpost), which are unpacked without their dependencies.
var toolchainPackages = []string{"gcc-14", "make", "binutils", "coreutils", "dash", "grep", "mawk", "sed",
	"libelf1t64", "libssl3t64", "zlib1g"}

// compilerPackages build BPF objects, see bpfobjects.go. The compiler is of one release, as every other would make other
// bytes of the same source. Libbpf's headers declare the kernel's helpers.
var compilerPackages = []string{"clang-19", "llvm-19", "libbpf-dev"}

// guestPackages are what a test finds in the guest, with all their dependencies. Every megabyte is copied by an
// emulated CPU at each boot.
var guestPackages = []string{
	"bash",
	"busybox-static",
	"curl",
	"dash", // as sh: busybox's shell prefers its own commands to those of other packages
	"gnutls-bin",
	"iproute2",
	"nginx",
	"openssl",
	"strace",
	"swtpm",
}

// languagePackages are on the disk of --languages, with all their dependencies; squashfs-tools makes it.
var languagePackages = []string{"coreutils", "gcc", "libc6-dev", "nodejs", "openjdk-21-jdk-headless", "python3",
	"squashfs-tools"}

// languagesTrimmed are the paths that no test needs.
var languagesTrimmed = []string{
	"usr/lib/jvm/java-21-openjdk-amd64/jmods",
	"usr/lib/jvm/java-21-openjdk-amd64/man",
	"usr/share/perl",
	"usr/share/perl5",
}

// peerPackages are on the disk of --peers, from the guest's own suite; squashfs-tools makes it.
var peerPackages = []string{"haproxy", "hitch", "iperf3", "libnginx-mod-stream", "nginx", "squashfs-tools",
	"stunnel4"}

// newPeerPackages come from releases of their own, newPeerSuites: the first HAProxy with kernel TLS is in no stable one.
var newPeerPackages = []string{"haproxy=3.4*", "libnginx-mod-stream", "nginx"}

// newPeerSuites are read only for the disk of --peers: the lists of all others would grow by half.
var newPeerSuites = []suite{{name: "sid"}, {name: "experimental"}}

// peersTrimmed are the directories that no peer needs, in each root.
var peersTrimmed = []string{"usr/share/perl", "usr/share/perl5", "usr/lib/x86_64-linux-gnu/perl", "usr/share/haproxy",
	"usr/lib/systemd", "usr/share/doc", "usr/share/bash-completion"}

// userlandTrimmed are the path prefixes of the packages that no test needs.
var userlandTrimmed = []string{
	"usr/share/",
	"usr/lib/x86_64-linux-gnu/gconv/",
	"usr/lib/x86_64-linux-gnu/perl",
	"usr/lib/systemd/",
	"usr/lib/udev/",
	"usr/include/",
	"usr/bin/certtool", // and other programs of gnutls-bin
	"usr/bin/danetool",
	"usr/bin/gnutls-cli-debug",
	"usr/bin/ocsptool",
	"usr/bin/p11tool",
	"usr/bin/psktool",
	"usr/bin/srptool",
	"usr/bin/tpmtool",
	"etc/apt/",
	"etc/systemd/",
	"etc/init.d/",
	"var/lib/dpkg/",
}

// A module is wanted in the guest.
type module struct {
	name string
	// optional: this name exists in some series only, because the code was merged into another module or into the
	// kernel. A module that is not optional must be there, as a file or built in.
	optional bool
}

// loadedModules are loaded by init before the command runs, in this order, each after what it depends on.
var loadedModules = []module{
	// The way out of the guest. Built in from 6.12 on.
	{name: "virtio_pci"},
	{name: "virtio_console"},

	// AES-GCM, the one every TLS connection uses, and CCM for the suites of that name.
	{name: "aesni_intel"},
	{name: "gcm"},
	{name: "ccm"},
	// Without a synchronous AES-GCM, for its software fallback, the kernel does not offer a write key to a device.
	{name: "ctr", optional: true},           // built in on 6.12
	{name: "ghash_generic", optional: true}, // gone from 7 on
	{name: "crypto_null", optional: true},   // gone from 7 on

	// ChaCha20-Poly1305: three layouts in three series.
	{name: "chacha_x86_64", optional: true},
	{name: "poly1305_x86_64", optional: true},
	{name: "chacha_generic", optional: true},
	{name: "poly1305_generic", optional: true},
	{name: "chacha", optional: true},
	{name: "chacha20poly1305"},

	// What ss and the observers ask.
	{name: "inet_diag"},
	{name: "tcp_diag"},
	{name: "udp_diag"},
	{name: "unix_diag"},
	{name: "netlink_diag"},

	// Networks made by tests.
	{name: "af_packet"},
	{name: "veth"},
	{name: "dummy"},
	{name: tlsModule},
}

// loadableModules are in the guest for modprobe and for the kernel's own requests, but are not loaded.
var loadableModules = []module{
	{name: "bridge"},
	{name: "sch_netem"},
	{name: "sch_tbf"},
	{name: "sch_ingress"},
	{name: "cls_bpf"},
	{name: "virtio_blk"},
	{name: "virtio_net"},
	{name: "overlay"},
	{name: "squashfs"},
}

// tlsModule is the one that --without-tls leaves out.
const tlsModule = "tls"
