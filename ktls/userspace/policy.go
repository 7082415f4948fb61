// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
)

// Policy says which record layer connections get.
type Policy uint8

const (
	// Require is the kernel's: a connection that it cannot have is no connection.
	Require Policy = iota
	// Prefer is the kernel's, and this one for connections that it cannot have.
	Prefer
	// Never is this one.
	Never
)

func (p Policy) String() string {
	switch p {
	case Require:
		return "require"
	case Prefer:
		return "prefer"
	case Never:
		return "never"
	}
	return fmt.Sprintf("policy %d", uint8(p))
}

// ErrPolicy is why a connection is not in the kernel that could be.
var ErrPolicy = errors.New("the policy never uses the kernel's record layer")

// Chooser opens connections by a policy. Its zero value requires the kernel. It is safe
// for concurrent use, and its fields do not change once it is used.
type Chooser struct {
	Policy Policy
	// FollowKeyUpdates: a connection of TLS 1.3 whose keys the kernel cannot change is one
	// that it cannot have. Without, a KeyUpdate of the peer ends it there.
	FollowKeyUpdates bool

	// worked has what the kernel was seen to do. What it does not do is tried again: a
	// module may have been loaded.
	worked sync.Map // of feature to struct{}
}

// Layer is a connection with the keys of TLS, wherever its records are made.
type Layer interface {
	net.Conn
	// CloseWrite sends close_notify.
	CloseWrite() error
	// UpdateKey changes the key that we write with, and asks the peer to do the same.
	UpdateKey(requestPeer bool) error
}

// Choice is a connection and the record layer that it got.
type Choice struct {
	Layer
	// Reason is why the records are made in this process; nil if the kernel makes them.
	Reason error
	// Info is the kernel's, the zero value in this process.
	Info ktls.Info
}

// Path names where the records are made, and why nowhere better.
func (c *Choice) Path() string {
	if c.Reason != nil {
		return fmt.Sprintf("user space (%v)", c.Reason)
	}
	path := fmt.Sprintf("kernel, sending %v, receiving %v", c.Info.TX, c.Info.RX)
	if c.Info.Reason != "" {
		path += " (" + c.Info.Reason + ")"
	}
	return path
}

// Open takes over a connection whose states were exported, as NewConn does. Which record
// layer it gets is settled before a state is touched.
//
// It consumes both states, whether it succeeds or not. If it fails nothing more leaves the
// socket, which the caller closes.
func (c *Chooser) Open(inner net.Conn, read, write *blob.State) (*Choice, error) {
	defer read.Destroy()
	defer write.Destroy()
	tcp, err := ktls.TCPConn(inner)
	if err != nil {
		return nil, err
	}
	choice, err := c.open(inner, tcp, read, write)
	if err != nil {
		return nil, errors.Join(err, ktls.Shutdown(tcp))
	}
	return choice, nil
}

func (c *Chooser) open(inner net.Conn, tcp *net.TCPConn, read, write *blob.State) (*Choice, error) {
	if err := ktls.CheckStates(tcp, read, write); err != nil {
		return nil, fmt.Errorf("take over TLS keys: %w", err)
	}
	reason := c.KernelCannot(tcp, read.Suite)
	switch {
	case reason == nil:
		return openInKernel(tcp, read, write)
	case c.Policy == Require:
		return nil, fmt.Errorf("the kernel cannot have the connection, and the policy is %q: %w", Require, reason)
	}
	conn, err := NewConn(inner, read, write)
	if err != nil {
		return nil, err
	}
	return &Choice{Layer: conn, Reason: reason}, nil
}

func openInKernel(tcp *net.TCPConn, read, write *blob.State) (*Choice, error) {
	custody, info, err := ktls.InstallKeeping(tcp, read, write)
	if err != nil {
		return nil, err
	}
	conn, err := ktls.NewConnKeeping(tcp, custody)
	if err != nil {
		custody.Destroy()
		return nil, err
	}
	return &Choice{Layer: conn, Info: info}, nil
}

// KernelCannot says why the kernel cannot have a connection of the suite, or nil. The ULP
// is put on its socket: without that, a peer which sends its FIN right now would make the
// installation fail when the states are gone. A socket with the ULP and without keys
// carries what is written to it, which are our records.
func (c *Chooser) KernelCannot(tcp *net.TCPConn, suite blob.CipherSuite) error {
	switch c.Policy {
	case Require, Prefer:
	case Never:
		return ErrPolicy
	default:
		return fmt.Errorf("%w: unknown %v", ErrPolicy, c.Policy)
	}
	if err := ktls.Attach(tcp); err != nil {
		return err
	}
	if err := c.try(ktls.SuiteFeature(suite), func() error { return ktls.TrySuite(suite) }); err != nil {
		return fmt.Errorf("%v: %w", suite, err)
	}
	if c.FollowKeyUpdates && suite.Version() == blob.TLS13 {
		if err := c.try(ktls.FeatureRekeyTX, ktls.TryRekey); err != nil {
			return fmt.Errorf("changing keys: %w", err)
		}
	}
	return nil
}

// try tries a feature until it has worked once.
func (c *Chooser) try(feature string, f func() error) error {
	if _, ok := c.worked.Load(feature); ok {
		return nil
	}
	err := f()
	if err == nil {
		c.worked.Store(feature, struct{}{})
	}
	return err
}
