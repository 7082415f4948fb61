// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/signer"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/token"
)

func signCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "sign",
		Short: "Sign for workers with keys in hardware (started by serve, not by people)",
		Long: `The signer role. "offloadd serve" starts it, as signer_user, if the key of a
certificate is in a PKCS#11 token or a TPM. It opens the token and signs what workers
ask for, with the keys of the configuration and no others. It changes nothing in the
token. It exits with the daemon.`,
		Example: "  offloadd serve -c /etc/offloadd.toml   starts one of these if a key begins with pkcs11: or tpm:",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := confineSigner(); err != nil {
				return machineError("signer: %w", err)
			}
			if isSocket(channelFD) != nil {
				return usageError("sign is started by \"offloadd serve\": descriptor %d is no channel to a daemon", channelFD)
			}
			control, err := newSignControl(os.NewFile(channelFD, "control"))
			if err != nil {
				return err
			}
			return runSigner(control)
		},
	}
}

// signing is the signer process.
type signing struct {
	control *signControl
	store   *token.Store
	server  *signer.Server
	keys    []*heldKey
	serving sync.WaitGroup
}

// heldKey is a key of the configuration.
type heldKey struct {
	reference *token.Reference
	pin       []byte
	key       crypto.Signer
}

// signControlTimeout bounds a message to the daemon.
const signControlTimeout = 2 * time.Second

func runSigner(control *signControl) error {
	s := &signing{control: control, store: token.NewStore()}
	s.server = signer.NewServer(s.tell)
	if err := s.setUp(); err != nil {
		control.send(&signMessage{Event: signReady, Error: err.Error(), PIN: errors.Is(err, token.ErrPIN)}, nil, signControlTimeout)
		return errors.Join(err, s.store.Close())
	}
	if err := control.send(&signMessage{Event: signReady}, nil, signControlTimeout); err != nil {
		return err
	}
	for {
		m, fd, err := control.receive()
		switch {
		case errors.Is(err, io.EOF):
			return s.leave()
		case err != nil:
			return err
		case m.Event != signGrant:
			return fmt.Errorf("unexpected %s message", m.Event)
		}
		s.grant(m.Grant, fd)
	}
}

// setUp finds the keys of the setup and tries them.
func (s *signing) setUp() error {
	m, _, err := s.control.receive()
	if err != nil {
		return err
	}
	if m.Event != signSetup {
		return fmt.Errorf("unexpected %s message, want %s", m.Event, signSetup)
	}
	for _, k := range m.Keys {
		held := &heldKey{}
		if held.reference, err = token.Parse(k.Reference); err != nil {
			return err
		}
		if k.PIN != 0 {
			if held.pin, err = readPIN(k.PIN); err != nil {
				return fmt.Errorf("%s: PIN file %s: %w", held.reference, held.reference.PINFile, err)
			}
		}
		if err := s.find(held); err != nil {
			return err
		}
		s.keys = append(s.keys, held)
	}
	return nil
}

// readPIN reads an inherited file: a line with the PIN.
func readPIN(fd int) ([]byte, error) {
	b, err := readInherited(fd)
	if err != nil {
		return nil, err
	}
	pin := bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	if len(pin) == 0 || len(pin) > 255 || bytes.ContainsAny(pin, "\r\n\x00") {
		return nil, errors.New("want one line of 1 to 255 bytes: the PIN")
	}
	return pin, nil
}

// find looks a key up in its token. One that is new is tried.
func (s *signing) find(held *heldKey) error {
	key, err := s.store.Find(held.reference, held.pin)
	if err != nil {
		return err
	}
	if held.key == nil || !samePublic(held.key, key) {
		if err := token.Try(key); err != nil {
			return fmt.Errorf("%s: %w", held.reference, err)
		}
	}
	held.key = key
	return nil
}

func samePublic(a, b crypto.Signer) bool {
	public, ok := a.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(b.Public())
}

// grant serves one more worker. Keys are looked up anew for it, as certificates are
// read anew. Where that fails the worker gets the key as it was: while a token is away,
// connections to other certificates go on.
func (s *signing) grant(number uint64, fd int) {
	keys := make(map[uint16]crypto.Signer, len(s.keys))
	for i, held := range s.keys {
		if err := s.find(held); err != nil {
			s.tell("cannot find the key again", uint16(i), err)
		}
		keys[uint16(i)] = held.key
	}
	s.serving.Go(func() {
		err := s.server.Serve(fd, keys)
		ended := &signMessage{Event: signEnded, Grant: number}
		if err != nil {
			ended.Error = err.Error()
		}
		s.control.send(ended, nil, signControlTimeout)
	})
	s.control.send(&signMessage{Event: signGranted, Grant: number}, nil, signControlTimeout)
}

func (s *signing) tell(what string, key uint16, err error) {
	s.control.send(&signMessage{Event: signTold, What: what, Key: key, Error: err.Error()}, nil, signControlTimeout)
}

// leave ends in order: the daemon has said that it needs no more signatures, or is
// gone. What is under way is completed, for the token's sake.
func (s *signing) leave() error {
	done := make(chan struct{})
	go func() {
		s.serving.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(signControlTimeout): // the daemon kept the channel of a worker that hangs
	}
	counts := s.server.Counts()
	s.control.send(&signMessage{Event: signLeaving, Count: &counts}, nil, signControlTimeout)
	select {
	case <-done:
		return s.store.Close()
	default:
		return nil // a module must not be unloaded while it is in use
	}
}
