// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/offloadd/offloadd/blob"
)

// Attach puts the ULP "tls" on a socket; it is no error if it is on already. Do it
// when a connection is accepted: the kernel refuses it once the peer has sent a
// FIN. Until Install the socket sends and receives clear text, which the handshake
// needs, so whatever fails in between must end with [Shutdown].
func Attach(c syscall.Conn) error {
	return control(c, func(fd int) error {
		if err := checkTCP(fd); err != nil {
			return fmt.Errorf("attach TLS: %w", err)
		}
		return explain(opAttach, "attach TLS", attachULP(fd))
	})
}

// Shutdown ends both directions of a socket, so that nothing more leaves it
// whoever still holds the descriptor. Every failure after Attach ends with it.
func Shutdown(c syscall.Conn) error { return control(c, shutdownBoth) }

// Cookie returns the socket's cookie (SO_COOKIE), which the kernel gives to no
// other socket until the next boot.
func Cookie(c syscall.Conn) (uint64, error) {
	var n uint64
	err := control(c, func(fd int) (err error) {
		n, err = cookie(fd)
		return err
	})
	return n, err
}

// Install moves the states of both directions into the kernel's record layer for
// c. It consumes both: they are destroyed, whether it succeeds or not.
//
// Nobody may be reading from the socket meanwhile, and its receive queue must
// begin at a record boundary.
//
// A socket that has keys already is left as it is. In every other case in which
// the ULP is on when Install fails, be it that Install or the caller attached it,
// the socket has been shut down.
func Install(c syscall.Conn, read, write *blob.State) (Info, error) {
	custody, info, err := InstallKeeping(c, read, write)
	custody.Destroy()
	return info, err
}

// InstallKeeping is Install, and keeps what goes on with the connection outside the
// kernel needs: see [Custody].
func InstallKeeping(c syscall.Conn, read, write *blob.State) (*Custody, Info, error) {
	return Settings{}.InstallKeeping(c, read, write)
}

// Settings are what is set beside the keys. The zero value sets nothing.
type Settings struct {
	// NoPad makes the kernel expect TLS 1.3 records without padding
	// (TLS_RX_EXPECT_NO_PAD): it opens a record in the buffer of who reads, if it fits
	// whole, where it otherwise copies it. It opens a record that has padding, or is no
	// data, twice. Only where [TryNoPad] says that the kernel does it right.
	NoPad bool
}

// InstallKeeping is the function of this name, with settings.
func (s Settings) InstallKeeping(c syscall.Conn, read, write *blob.State) (*Custody, Info, error) {
	defer read.Destroy()
	defer write.Destroy()
	var custody *Custody
	var info Info
	err := control(c, func(fd int) error {
		in := &installation{fd: fd, read: read, write: write, settings: s, readBack: readKey}
		if err := in.run(); err != nil {
			in.abandon()
			return fmt.Errorf("install TLS keys: %w", err)
		}
		custody, info = takeCustody(read, write, in.marks), infoOf(fd)
		return nil
	})
	return custody, info, err
}

// installation is one run of Install.
type installation struct {
	fd          int
	read, write *blob.State
	settings    Settings
	// readBack is readKey; a test has a kernel that returns something else.
	readBack func(fd, option, size int) ([]byte, error)
	// marks are from before TLS took the first byte.
	marks marks
	// crossed says that a key was about to be set: the point of no return.
	crossed bool
}

func (in *installation) run() error {
	for _, step := range []func() error{
		in.checkStates,
		in.checkSocket,
		in.checkKeys,
		in.checkTCPState,
		in.attach,
		in.mark,
		in.setRX,
		in.setTX,
		in.applySettings,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (in *installation) checkStates() error { return checkMaterial(in.read, in.write) }

// checkMaterial refuses two states that are not the keys of one connection.
func checkMaterial(r, w *blob.State) error {
	if err := checkPair(r, w); err != nil {
		return err
	}
	for _, s := range []*blob.State{r, w} {
		if s.Kind() == blob.KindReference {
			return fmt.Errorf("%w (the %v key, in %s)", ErrHeld, s.Direction, s.Held.Device)
		}
	}
	if r.Key.Equal(w.Key) {
		return fmt.Errorf("%w: one key for both directions", blob.ErrState)
	}
	return nil
}

// checkPair checks that the two states are the two directions of one connection.
func checkPair(r, w *blob.State) error {
	if r == nil || w == nil {
		return fmt.Errorf("%w: a direction is missing", blob.ErrState)
	}
	for _, s := range []*blob.State{r, w} {
		if err := s.Validate(); err != nil {
			return err
		}
	}
	var differ string
	switch {
	case r.Direction != blob.Read || w.Direction != blob.Write:
		return fmt.Errorf("%w: a %v state to read with and a %v state to write with", blob.ErrDirection, r.Direction, w.Direction)
	case r.Role != w.Role:
		return fmt.Errorf("%w: a %v reads and a %v writes", blob.ErrDirection, r.Role, w.Role)
	case r.Version != w.Version:
		differ = "version"
	case r.Suite != w.Suite:
		differ = "cipher suite"
	case r.Cookie != w.Cookie:
		return fmt.Errorf("%w: the two states belong to two sockets", blob.ErrCookie)
	}
	if differ != "" {
		return fmt.Errorf("%w: the %ss of the two directions differ", blob.ErrState, differ)
	}
	return nil
}

func (in *installation) checkSocket() error { return checkSocket(in.fd, in.read.Cookie) }

// checkSocket checks that this is the TCP socket that a state was made for.
func checkSocket(fd int, want uint64) error {
	if err := checkTCP(fd); err != nil {
		return err
	}
	n, err := cookie(fd)
	if err != nil {
		return err
	}
	if n != want {
		return fmt.Errorf("%w: made for socket %d, not for %d", blob.ErrCookie, want, n)
	}
	return nil
}

// checkKeys refuses a socket that has keys. It has to ask: from Linux 6.14 on a
// second TLS_TX of TLS 1.3 is a rekey, takes any sequence number, and succeeds.
func (in *installation) checkKeys() error {
	var held error
	for _, d := range []struct {
		option int
		state  *blob.State
	}{{optRX, in.read}, {optTX, in.write}} {
		_, err := keyHeader(in.fd, d.option)
		switch err = explain(opAskKey, "ask for "+optionName(d.option), err); {
		case err == nil && in.rewinds(d.option, d.state):
			return ErrRewind
		case err == nil:
			held = ErrInstalled
		case !errors.Is(err, ErrNoKeys):
			return err
		}
	}
	return held
}

// rewinds reports whether the key in the socket is s at a higher sequence number.
// If the kernel does not tell, it is just an installed key.
func (in *installation) rewinds(option int, s *blob.State) bool {
	want := encodeCryptoInfo(s)
	defer clear(want)
	got, err := readKey(in.fd, option, len(want))
	defer clear(got)
	return err == nil && rewinds(want, got, s.Suite.AEAD())
}

// checkTCPState refuses a connection that cannot carry TLS any more. With the ULP
// on, a peer that has sent its FIN may still be written to.
func (in *installation) checkTCPState() error {
	state, err := tcpState(in.fd)
	if err != nil {
		return err
	}
	if state == stateEstablished || state == stateCloseWait && ulpName(in.fd) == "tls" {
		return nil
	}
	return fmt.Errorf("%w (state %v)", ErrPeerClosed, state)
}

func (in *installation) attach() error {
	if err := attachULP(in.fd); err != nil {
		return explain(opAttach, "attach TLS", err)
	}
	in.crossed = true
	return nil
}

// mark notes where the connection stands. Once there is a key, TLS may take a part of
// a record from TCP at any time, if memory is short (net/tls/tls_strp.c).
func (in *installation) mark() (err error) {
	in.marks, err = marksOf(in.fd)
	return err
}

func (in *installation) setRX() error { return in.set(optRX, in.read) }
func (in *installation) setTX() error { return in.set(optTX, in.write) }

// set installs one direction and compares what the kernel then holds with what it
// was given.
func (in *installation) set(option int, s *blob.State) error {
	want := encodeCryptoInfo(s)
	defer clear(want)
	if err := setKey(in.fd, option, want); err != nil {
		return in.refused(option, err)
	}
	return compareKey(in.fd, option, want, s.Suite.AEAD(), in.readBack)
}

// applySettings sets what is set beside the keys, and reads it back.
func (in *installation) applySettings() error {
	if !in.settings.NoPad || in.read.Version != blob.TLS13 {
		return nil
	}
	if err := expectNoPad(in.fd); err != nil {
		return fmt.Errorf("set TLS_RX_EXPECT_NO_PAD: %w", err)
	}
	if on, err := expectsNoPad(in.fd); err != nil || !on {
		return fmt.Errorf("read back TLS_RX_EXPECT_NO_PAD: %v, %w", on, err)
	}
	return nil
}

// compareKey compares what the kernel holds with what it was given.
func compareKey(fd, option int, want []byte, aead blob.AEAD, readBack func(fd, option, size int) ([]byte, error)) error {
	got, err := readBack(fd, option, len(want))
	if err != nil {
		return explain(opAskKey, "read back "+optionName(option), err)
	}
	defer clear(got)
	if err := compareCryptoInfo(want, got, aead); err != nil {
		return fmt.Errorf("%s: %w", optionName(option), err)
	}
	return nil
}

// refused explains why a key was not taken. EINVAL may mean the suite or the
// socket: only another socket can tell.
func (in *installation) refused(option int, err error) error {
	what := "set " + optionName(option)
	if errors.Is(err, syscall.EINVAL) && TrySuite(in.read.Suite) == nil {
		return fmt.Errorf("%s: %w", what, ErrSockmap)
	}
	return explain(opSetKey, what, err)
}

// abandon shuts the socket down unless that is certainly not needed: it has no
// ULP, or it had a write key before we came, so that it sends no clear text. A kernel
// that does not say whether there is a key counts as one without.
func (in *installation) abandon() {
	_, err := keyHeader(in.fd, optTX)
	if in.crossed || err != nil && ulpName(in.fd) == "tls" {
		// Nothing to be done if it fails: then there is no connection.
		_ = shutdownBoth(in.fd)
	}
}

func optionName(option int) string {
	if option == optRX {
		return "TLS_RX"
	}
	return "TLS_TX"
}

// tcpStateCode is a state of a TCP connection (include/net/tcp_states.h).
type tcpStateCode uint8

const (
	stateEstablished tcpStateCode = 1
	stateClose       tcpStateCode = 7
	stateCloseWait   tcpStateCode = 8
)

func (s tcpStateCode) String() string {
	names := [...]string{1: "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT",
		"CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV"}
	if s == 0 || int(s) >= len(names) {
		return fmt.Sprintf("%d", uint8(s))
	}
	return names[s]
}
