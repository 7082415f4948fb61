// SPDX-License-Identifier: Apache-2.0

//go:build pkcs11 && cgo

package token

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"sync"

	"github.com/miekg/pkcs11"
)

// sessionsMost bounds the sessions with one token, and with it the signatures made at
// the same time.
const sessionsMost = 8

// slot is a token in use: its sessions and whether it takes our PIN.
type slot struct {
	*module
	id     uint
	places chan struct{} // holds one token per session in use

	mu      sync.Mutex
	idle    []pkcs11.SessionHandle // guarded by mu: logged in
	pin     []byte                 // guarded by mu: the one that the token took
	refused error                  // guarded by mu: the token refused a PIN
}

func newSlot(m *module, id uint) *slot {
	return &slot{module: m, id: id, places: make(chan struct{}, sessionsMost)}
}

// use runs f in a session that is logged in. A session with an error is not used again.
func (s *slot) use(pin []byte, f func(pkcs11.SessionHandle) error) error {
	s.places <- struct{}{}
	defer func() { <-s.places }()
	session, err := s.session(pin)
	if err != nil {
		return err
	}
	if err := f(session); err != nil {
		s.CloseSession(session)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = append(s.idle, session)
	return nil
}

func (s *slot) session(pin []byte) (pkcs11.SessionHandle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pin != nil && subtle.ConstantTimeCompare(s.pin, pin) == 0 {
		// A login is for all sessions of a process, so a second PIN could not even be tried.
		return 0, fmt.Errorf("%w: other keys of this token are used with another PIN", ErrPIN)
	}
	if last := len(s.idle) - 1; last >= 0 {
		session := s.idle[last]
		s.idle = s.idle[:last]
		return session, nil
	}
	session, err := s.OpenSession(s.id, pkcs11.CKF_SERIAL_SESSION) // read-only
	if err != nil {
		return 0, fmt.Errorf("C_OpenSession: %w", err)
	}
	if err := s.login(session, pin); err != nil {
		s.CloseSession(session)
		return 0, err
	}
	return session, nil
}

// login logs in, for who holds mu. Being logged in belongs to all sessions of a
// process and ends with the last of them.
func (s *slot) login(session pkcs11.SessionHandle, pin []byte) error {
	if s.refused != nil {
		return s.refused
	}
	info, err := s.GetTokenInfo(s.id)
	if err != nil {
		return fmt.Errorf("C_GetTokenInfo: %w", err)
	}
	switch {
	case info.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0 && pin == nil:
		return nil
	case pin == nil:
		return errors.New("the token wants a PIN; write it into a file and add ?pin-source=file:/path")
	case info.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return fmt.Errorf("%w: it is locked", ErrPIN)
	case info.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return fmt.Errorf("%w before, and one more wrong one locks it: not tried; log in once with another program", ErrPIN)
	}
	err = s.Login(session, pkcs11.CKU_USER, string(pin))
	switch {
	case err == nil || isCode(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN):
		s.pin = pin
		return nil
	case isCode(err, pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED):
		s.refused = fmt.Errorf("%w (C_Login: %v)", ErrPIN, err)
		return s.refused
	}
	return fmt.Errorf("C_Login: %w", err)
}

// reset closes the idle sessions.
func (s *slot) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range s.idle {
		s.CloseSession(session)
	}
	s.idle = nil
}

// forget drops the sessions, which the module is about to close.
func (s *slot) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = nil
}

func isCode(err error, codes ...uint) bool {
	var e pkcs11.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if uint(e) == c {
			return true
		}
	}
	return false
}
