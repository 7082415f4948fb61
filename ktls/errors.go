// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"fmt"
	"syscall"
)

// One error for each way in which [Attach], [Install] and [NewConn] refuse a
// socket. A socket bound to another cookie is refused with [blob.ErrCookie], a
// state that is none with [blob.ErrState].
var (
	// ErrNoTLS: the kernel has no TLS record layer, or its module is not loaded.
	ErrNoTLS = errors.New("this kernel offers no TLS: load the module with \"modprobe tls\" " +
		"(it is loaded on demand only for CAP_NET_ADMIN of the initial user namespace), " +
		"or use a kernel built with CONFIG_TLS, in a virtual machine if need be")
	// ErrSuite: the kernel's TLS does not know version or cipher, or the module of
	// the cipher is missing.
	ErrSuite = errors.New("this kernel's TLS lacks the cipher suite (is the gcm or chacha20poly1305 module loaded?)")
	// ErrMPTCP: the kernel refuses TLS on Multipath TCP sockets.
	ErrMPTCP = errors.New("a Multipath TCP socket cannot carry kernel TLS: " +
		"listen with net.ListenConfig.SetMultipathTCP(false)")
	// ErrNotTCP: not a TCP socket.
	ErrNotTCP = errors.New("not a TCP socket")
	// ErrPeerClosed: the connection is no longer, or not yet, established.
	ErrPeerClosed = errors.New("the TCP connection is not established")
	// ErrOtherULP: another upper layer protocol than "tls" owns the socket.
	ErrOtherULP = errors.New("another upper layer protocol is attached to the socket")
	// ErrNoKeys: a direction of the socket has no key.
	ErrNoKeys = errors.New("the socket has no TLS keys in the kernel")
	// ErrInstalled: the socket has keys already. It is left as it is.
	ErrInstalled = errors.New("the socket has TLS keys already")
	// ErrRewind: the socket has this very key already, at a higher sequence number:
	// installing it again would use nonces twice. The socket is left as it is.
	ErrRewind = errors.New("the socket has this key already and is past its sequence number")
	// ErrMismatch: the kernel returned another state than the one it was given.
	ErrMismatch = errors.New("the state read back from the kernel differs")
	// ErrHeld: a state that names a key in a device cannot be installed; Adopt takes it.
	ErrHeld = errors.New("a key that a network device holds cannot be installed, only adopted with its socket")
	// ErrNotHeld: a state says that a device holds the key, and the socket's is in
	// software, or in another device.
	ErrNotHeld = errors.New("the key is not held by the network device that the state names")
	// ErrSockmap: the kernel takes such a key, but not on this socket.
	ErrSockmap = errors.New("the kernel takes this suite but refused it on this socket: " +
		"the socket is probably in a BPF sockmap, which excludes kernel TLS")
	// ErrDenied: a security policy forbids it.
	ErrDenied = errors.New("a security policy (LSM, BPF or seccomp) denies access to TLS keys")
	// ErrNotSupported is the answer of a probe that could tell: the kernel cannot.
	ErrNotSupported = errors.New("not supported by this kernel")
)

// operation is what we asked the kernel for when it said no.
type operation uint8

const (
	opAttach operation = iota + 1
	opSetKey
	opAskKey
)

// errnoTable turns errnos into errors, once (kernel files net/ipv4/tcp_ulp.c and
// net/tls/tls_main.c, functions tcp_set_ulp, tls_init, do_tls_setsockopt_conf).
var errnoTable = []struct {
	op    operation
	errno syscall.Errno
	err   error
}{
	{opAttach, syscall.ENOENT, ErrNoTLS},
	{opAttach, syscall.ENOTCONN, ErrPeerClosed},
	{opAttach, syscall.EEXIST, ErrOtherULP},
	{opAttach, syscall.EPERM, ErrDenied},
	{opAttach, syscall.EACCES, ErrDenied},
	{opSetKey, syscall.ENOENT, ErrSuite},
	{opSetKey, syscall.EINVAL, ErrSuite},
	{opSetKey, syscall.EBUSY, ErrInstalled},
	{opSetKey, syscall.ENOPROTOOPT, ErrNoTLS},
	{opSetKey, syscall.EPERM, ErrDenied},
	{opSetKey, syscall.EACCES, ErrDenied},
	{opAskKey, syscall.EBUSY, ErrNoKeys},
	{opAskKey, syscall.EOPNOTSUPP, ErrNoKeys},
	{opAskKey, syscall.ENOPROTOOPT, ErrNoKeys},
	{opAskKey, syscall.EPERM, ErrDenied},
	{opAskKey, syscall.EACCES, ErrDenied},
}

// explain wraps err with the sentence of the table, if there is one. The errno
// itself is kept as text, so that nobody compares with it by accident.
func explain(op operation, what string, err error) error {
	if err == nil {
		return nil
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("%s: %w", what, err)
	}
	for _, line := range errnoTable {
		if line.op == op && line.errno == errno {
			return fmt.Errorf("%s: %w (%v)", what, line.err, errno)
		}
	}
	return fmt.Errorf("%s: %w", what, errno)
}

// Errors of a [Conn].
var (
	// ErrRecordLimit: the write key has protected as many records as its AEAD may.
	ErrRecordLimit = errors.New("the write key has reached the record limit of its AEAD (RFC 8446, Section 5.5)")
	// ErrKeyUpdate: the peer changed its key, and this Conn, or the kernel, cannot.
	ErrKeyUpdate = errors.New("the peer sent a KeyUpdate, which kernel TLS cannot follow here")
	// ErrNoUpdate: UpdateKey on a connection whose keys cannot change.
	ErrNoUpdate = errors.New("the keys of this connection cannot be changed")
	// ErrRekey: a KeyUpdate was sent or received, and the key after it could not be set.
	// The connection has been shut down.
	ErrRekey = errors.New("the key could not be changed, so the connection is at its end")
	// ErrRecord: a record did not authenticate, or was no TLS record. What follows it
	// cannot be read.
	ErrRecord = errors.New("bad TLS record")
	// ErrProtocol: the peer sent a message that is malformed or out of place.
	ErrProtocol = errors.New("TLS protocol violation by the peer")
	// ErrClosedWrite: Write after CloseWrite.
	ErrClosedWrite = errors.New("the write side is closed")
	// ErrUndelivered: Close could not hand all accepted data to TCP in time.
	ErrUndelivered = errors.New("the peer did not take all data in time: data accepted by Write may be lost")
)

// ErrMoved: Export has moved the connection away.
var ErrMoved = errors.New("the connection was moved to another owner")

// NotQuietError says why [Conn.Export] cannot take a connection's state now. The
// connection goes on as if nothing had been asked.
type NotQuietError struct {
	What string
	// Unread is how many bytes of the record that was read in part are left: reading
	// just those makes it quiet. 0 if it is not known, or not what is in the way.
	Unread int
}

func (e *NotQuietError) Error() string { return "the connection is not quiet: " + e.What }

// AlertError is a TLS alert that the peer sent, other than close_notify.
type AlertError struct {
	// Description is the alert's number (RFC 8446, Section 6).
	Description uint8
}

func (e *AlertError) Error() string {
	return fmt.Sprintf("the peer sent TLS alert %d (%s)", e.Description, alertName(e.Description))
}
