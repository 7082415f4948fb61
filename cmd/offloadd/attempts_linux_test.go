// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attempt is something that a worker must not be able to do. Its function runs in a
// worker's process, behind newWorker and with a connection that has its keys.
type attempt struct {
	do func(*prisoner) error
	// confined and free are the outcomes with seccomp and Landlock, and without.
	confined, free string
}

// prisoner is what an attempt has at hand.
type prisoner struct {
	TCP      int `json:"-"` // the connection it was given
	Daemon   int // a pid
	Victim   int // the pid of another process of the same user, which can be debugged
	Abstract string
	Port     int
	code     uintptr // see int80
}

// Outcomes, beside the names of errors.
const (
	killed   = "killed"
	succeeds = "succeeds"
)

func refused(errno unix.Errno) string { return unix.ErrnoName(errno) }

func call3(number, a, b, c uintptr) error {
	if _, _, errno := unix.Syscall(number, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

func call6(number, a, b, c, d, e, f uintptr) error {
	if _, _, errno := unix.Syscall6(number, a, b, c, d, e, f); errno != 0 {
		return errno
	}
	return nil
}

// makes is an attempt to make a descriptor.
func makes(f func() (int, error)) attempt {
	return attempt{func(*prisoner) error { _, err := f(); return err }, killed, succeeds}
}

func socket(family, kind int) attempt {
	return makes(func() (int, error) { return unix.Socket(family, kind, 0) })
}

// opens is an attempt to open a file.
func opens(path, free string) attempt {
	return attempt{func(*prisoner) error { _, err := unix.Open(path, unix.O_RDONLY, 0); return err }, refused(unix.EPERM), free}
}

// fork makes a process, which ends at once.
func fork(flags uintptr) func(*prisoner) error {
	return func(*prisoner) error {
		runtime.LockOSThread()
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, flags|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if pid == 0 && errno == 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		if errno != 0 {
			return errno
		}
		return nil
	}
}

func descriptorAttempts() map[string]attempt {
	var path = []byte("/\x00")
	return map[string]attempt{
		"open a file":             opens("/proc/version", succeeds),
		"open a directory":        opens("/", succeeds),
		"open by openat2":         {func(p *prisoner) error { return call6(unix.SYS_OPENAT2, 0, 0, 0, 0, 0, 0) }, killed, refused(unix.EINVAL)},
		"look at a file":          {func(*prisoner) error { var s unix.Stat_t; return unix.Stat("/", &s) }, refused(unix.EPERM), succeeds},
		"make a directory":        {func(*prisoner) error { return unix.Mkdir("/tmp", 0o700) }, killed, refused(unix.EEXIST)},
		"unlink":                  {func(*prisoner) error { return unix.Unlink("/nowhere") }, killed, refused(unix.ENOENT)},
		"chroot":                  {func(*prisoner) error { return call3(unix.SYS_CHROOT, uintptr(unsafe.Pointer(&path[0])), 0, 0) }, killed, refused(unix.EPERM)},
		"a TCP socket":            socket(unix.AF_INET, unix.SOCK_STREAM),
		"a UDP socket":            socket(unix.AF_INET, unix.SOCK_DGRAM),
		"a unix socket":           socket(unix.AF_UNIX, unix.SOCK_STREAM),
		"a netlink socket":        socket(unix.AF_NETLINK, unix.SOCK_RAW),
		"a pair of sockets":       makes(func() (int, error) { p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); return p[0], err }),
		"a pipe":                  makes(func() (int, error) { var p [2]int; return 0, unix.Pipe2(p[:], 0) }),
		"a file in memory":        makes(func() (int, error) { return unix.MemfdCreate("x", 0) }),
		"an eventfd":              makes(func() (int, error) { return unix.Eventfd(0, 0) }),
		"a poller":                makes(func() (int, error) { return unix.EpollCreate1(0) }),
		"an inotify":              makes(func() (int, error) { return unix.InotifyInit1(0) }),
		"a duplicate at a number": makes(func() (int, error) { return 0, unix.Dup3(1, 100, 0) }),
		"connect the connection": {func(p *prisoner) error {
			var a [16]byte
			return call3(unix.SYS_CONNECT, uintptr(p.TCP), uintptr(unsafe.Pointer(&a)), 16)
		}, killed, refused(unix.ENOTSUP)},
		"bind the connection":      {func(p *prisoner) error { return unix.Bind(p.TCP, &unix.SockaddrInet4{}) }, killed, refused(unix.EINVAL)},
		"listen on the connection": {func(p *prisoner) error { return unix.Listen(p.TCP, 1) }, killed, refused(unix.EINVAL)},
		"accept":                   {func(p *prisoner) error { _, _, err := unix.Accept4(p.TCP, 0); return err }, killed, refused(unix.EINVAL)},
		"ask for the TLS key":      {func(p *prisoner) error { return askKey(p.TCP) }, killed, succeeds},
		"ask about TCP": {func(p *prisoner) error {
			_, err := unix.GetsockoptTCPInfo(p.TCP, unix.IPPROTO_TCP, unix.TCP_INFO)
			return err
		}, killed, succeeds},
		"attach the ULP": {func(p *prisoner) error { return unix.SetsockoptString(p.TCP, unix.IPPROTO_TCP, unix.TCP_ULP, "tls") }, killed, refused(unix.EEXIST)},
		"set a TLS key": {func(p *prisoner) error {
			return call6(unix.SYS_SETSOCKOPT, uintptr(p.TCP), unix.SOL_TLS, tlsTX, 0, 0, 0)
		}, killed, refused(unix.EINVAL)},
		"set another option":      {func(p *prisoner) error { return unix.SetsockoptInt(p.TCP, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }, killed, succeeds},
		"an ioctl":                {func(p *prisoner) error { _, err := unix.IoctlGetInt(p.TCP, unix.SIOCINQ); return err }, killed, succeeds},
		"signals of a descriptor": {func(p *prisoner) error { _, err := unix.FcntlInt(uintptr(p.TCP), unix.F_SETOWN, p.Victim); return err }, killed, succeeds},
		"io_uring":                {func(*prisoner) error { return call3(unix.SYS_IO_URING_SETUP, 1, 0, 0) }, killed, refused(unix.EFAULT)},
		"bpf":                     {func(*prisoner) error { return makeMap() }, killed, refused(unix.EPERM)},
		"perf events":             {func(*prisoner) error { return call3(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0) }, killed, refused(unix.EFAULT)},
		"userfaultfd":             {func(*prisoner) error { return call3(unix.SYS_USERFAULTFD, 0, 0, 0) }, killed, refused(unix.EPERM)},
		"keyrings":                {func(*prisoner) error { return call3(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, ^uintptr(2), 1) }, killed, succeeds},
	}
}

func processAttempts() map[string]attempt {
	var nowhere = []byte("/nowhere\x00")
	path := uintptr(unsafe.Pointer(&nowhere[0]))
	return map[string]attempt{
		"execute":                           {func(*prisoner) error { return call3(unix.SYS_EXECVE, path, 0, 0) }, killed, refused(unix.ENOENT)},
		"execute by descriptor":             {func(*prisoner) error { return call6(unix.SYS_EXECVEAT, 1, path, 0, 0, 0, 0) }, killed, refused(unix.ENOENT)},
		"fork":                              {fork(0), killed, succeeds},
		"vfork":                             {fork(unix.CLONE_VFORK), killed, succeeds},
		"fork with namespaces":              {fork(unix.CLONE_NEWUSER | unix.CLONE_NEWNET), killed, succeeds},
		"clone3":                            {func(*prisoner) error { return call3(unix.SYS_CLONE3, 0, 0, 0) }, refused(unix.ENOSYS), refused(unix.EINVAL)},
		"unshare":                           {func(*prisoner) error { return unix.Unshare(unix.CLONE_FS) }, killed, succeeds},
		"mount":                             {func(*prisoner) error { return unix.Mount("", "/", "", unix.MS_REMOUNT, "") }, killed, refused(unix.EPERM)},
		"setns":                             {func(*prisoner) error { return unix.Setns(100, 0) }, killed, refused(unix.EBADF)},
		"be root":                           {func(*prisoner) error { return call3(unix.SYS_SETUID, 0, 0, 0) }, killed, refused(unix.EPERM)},
		"be root again":                     {func(*prisoner) error { return call3(unix.SYS_SETRESUID, 0, 0, 0) }, killed, refused(unix.EPERM)},
		"trace the daemon":                  {func(p *prisoner) error { return trace(p.Daemon) }, killed, refused(unix.EPERM)},
		"trace a worker":                    {func(p *prisoner) error { return trace(p.Victim) }, killed, succeeds},
		"read the daemon's memory":          {func(p *prisoner) error { return readMemory(p.Daemon) }, killed, refused(unix.EPERM)},
		"read a worker's memory":            {func(p *prisoner) error { return readMemory(p.Victim) }, killed, refused(unix.EFAULT)},
		"write a worker's memory":           {func(p *prisoner) error { return call6(unix.SYS_PROCESS_VM_WRITEV, uintptr(p.Victim), 0, 0, 0, 0, 0) }, killed, succeeds},
		"open the daemon's memory":          {func(p *prisoner) error { return openMemory(p.Daemon) }, refused(unix.EPERM), refused(unix.EACCES)},
		"open a worker's memory":            {func(p *prisoner) error { return openMemory(p.Victim) }, refused(unix.EPERM), succeeds},
		"signal the daemon":                 {func(p *prisoner) error { return unix.Kill(p.Daemon, 0) }, killed, refused(unix.EPERM)},
		"signal a worker":                   {func(p *prisoner) error { return unix.Kill(p.Victim, 0) }, killed, succeeds},
		"signal a thread of a worker":       {func(p *prisoner) error { return unix.Tgkill(p.Victim, p.Victim, 0) }, killed, succeeds},
		"queue a signal":                    {func(p *prisoner) error { return call3(unix.SYS_RT_SIGQUEUEINFO, uintptr(p.Victim), 0, 0) }, killed, refused(unix.EFAULT)},
		"pidfd_open":                        {func(p *prisoner) error { _, err := unix.PidfdOpen(p.Victim, 0); return err }, killed, succeeds},
		"pidfd_getfd":                       {func(*prisoner) error { _, err := unix.PidfdGetfd(100, 0, 0); return err }, killed, refused(unix.EBADF)},
		"pidfd_send_signal":                 {func(*prisoner) error { return unix.PidfdSendSignal(100, 0, nil, 0) }, killed, refused(unix.EBADF)},
		"limits of a worker":                {func(p *prisoner) error { return unix.Prlimit(p.Victim, unix.RLIMIT_CORE, nil, &unix.Rlimit{}) }, killed, succeeds},
		"be debugged again":                 {func(*prisoner) error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) }, refused(unix.EPERM), succeeds},
		"unlock memory":                     {func(*prisoner) error { return unix.Munlockall() }, killed, succeeds},
		"executable memory":                 {func(*prisoner) error { return mapExecutable() }, killed, succeeds},
		"memory made executable":            {func(*prisoner) error { return makeExecutable() }, killed, succeeds},
		"memory that reading makes execute": {func(*prisoner) error { return call3(unix.SYS_PERSONALITY, readImpliesExec, 0, 0) }, killed, succeeds},
		"a call of the i386 kind":           {func(p *prisoner) error { return p.int80() }, killed, succeeds},
		"a call of the x32 kind":            {func(*prisoner) error { return call3(0x40000000|unix.SYS_GETPID, 0, 0, 0) }, killed, refused(unix.ENOSYS)},
		"another filter":                    {func(*prisoner) error { return seccompReady() }, killed, succeeds},
		"more Landlock":                     {func(*prisoner) error { _, err := landlockABI(); return err }, killed, succeeds},
	}
}

// landlockAttempts run with Landlock alone: what it adds where somebody finds a hole
// in the filter.
func landlockAttempts(abi int) map[string]attempt {
	from := func(needs int, errno unix.Errno) string {
		if abi < needs {
			return succeeds
		}
		return refused(errno)
	}
	return map[string]attempt{
		"open a file":      {opens("/proc/version", "").do, from(1, unix.EACCES), succeeds},
		"open a directory": {opens("/", "").do, from(1, unix.EACCES), succeeds},
		"connect by TCP": {func(p *prisoner) error {
			return connect(unix.AF_INET, &unix.SockaddrInet4{Port: p.Port, Addr: [4]byte{127, 0, 0, 1}})
		}, from(4, unix.EACCES), succeeds},
		"connect to an abstract socket": {func(p *prisoner) error {
			return connect(unix.AF_UNIX, &unix.SockaddrUnix{Name: p.Abstract})
		}, from(6, unix.EPERM), succeeds},
		"signal a worker": {func(p *prisoner) error { return unix.Kill(p.Victim, 0) }, from(6, unix.EPERM), succeeds},
		"trace a worker":  {func(p *prisoner) error { return trace(p.Victim) }, from(1, unix.EPERM), succeeds},
	}
}

func connect(family int, to unix.Sockaddr) error {
	fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	return unix.Connect(fd, to)
}

// Of include/uapi/linux/tls.h and personality.h.
const (
	tlsTX           = 1
	readImpliesExec = 0x0400000
)

func askKey(fd int) error {
	var key [40]byte // struct tls12_crypto_info_aes_gcm_128
	size := uint32(len(key))
	return call6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_TLS, tlsTX, uintptr(unsafe.Pointer(&key)), uintptr(unsafe.Pointer(&size)), 0)
}

// makeMap asks for a BPF map of one number.
func makeMap() error {
	attr := [18]uint32{unix.BPF_MAP_TYPE_ARRAY, 4, 4, 1}
	return call3(unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
}

func trace(pid int) error { return unix.PtraceSeize(pid) }

func readMemory(pid int) error {
	var b [8]byte
	_, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &b[0], Len: 8}}, []unix.RemoteIovec{{Base: 8, Len: 8}}, 0)
	return err
}

func openMemory(pid int) error {
	_, err := unix.Open(fmt.Sprintf("/proc/%d/mem", pid), unix.O_RDONLY, 0)
	return err
}

func mapExecutable() error {
	_, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	return err
}

func makeExecutable() error {
	b, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	return unix.Mprotect(b, unix.PROT_READ|unix.PROT_EXEC)
}

// prepare writes the code of int80 while that is still possible.
func (p *prisoner) prepare() error {
	b, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	// mov eax, 20 (getpid of i386); int 0x80; ret. Go's calling convention has no register
	// that the callee must keep but the stack's and that of g.
	copy(b, []byte{0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3})
	p.code = uintptr(unsafe.Pointer(&b[0]))
	return nil
}

// int80 calls the kernel by the i386 gate.
func (p *prisoner) int80() error {
	code := &p.code
	f := *(*func() int)(unsafe.Pointer(&code))
	if pid := f(); pid != os.Getpid() {
		return unix.Errno(-pid)
	}
	return nil
}
