// SPDX-License-Identifier: Apache-2.0

//go:build pkcs11 && cgo

package token

import (
	"crypto"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// cryptoki is all that this program asks of a PKCS#11 module. No function in it makes,
// changes or destroys an object of a token.
type cryptoki interface {
	Initialize(...pkcs11.InitializeOption) error
	Finalize() error
	GetInfo() (pkcs11.Info, error)
	GetSlotList(tokenPresent bool) ([]uint, error)
	GetSlotInfo(slot uint) (pkcs11.SlotInfo, error)
	GetTokenInfo(slot uint) (pkcs11.TokenInfo, error)
	OpenSession(slot, flags uint) (pkcs11.SessionHandle, error)
	CloseSession(pkcs11.SessionHandle) error
	Login(s pkcs11.SessionHandle, user uint, pin string) error
	FindObjectsInit(pkcs11.SessionHandle, []*pkcs11.Attribute) error
	FindObjects(s pkcs11.SessionHandle, most int) ([]pkcs11.ObjectHandle, bool, error)
	FindObjectsFinal(pkcs11.SessionHandle) error
	GetAttributeValue(pkcs11.SessionHandle, pkcs11.ObjectHandle, []*pkcs11.Attribute) ([]*pkcs11.Attribute, error)
	SignInit(pkcs11.SessionHandle, []*pkcs11.Mechanism, pkcs11.ObjectHandle) error
	Sign(pkcs11.SessionHandle, []byte) ([]byte, error)
}

func pkcs11Supported() error { return nil }

// modules holds the modules that are loaded, by path.
type modules struct {
	mu     sync.Mutex
	loaded map[string]*module // guarded by mu
}

// module is one PKCS#11 library with the tokens of it that are in use.
type module struct {
	cryptoki
	unload func()
	mu     sync.Mutex
	slots  map[uint]*slot // guarded by mu

	// life is held for reading while handles of sessions and objects are in use.
	life       sync.RWMutex
	generation int           // guarded by life: handles are valid within one
	renewed    time.Time     // guarded by life
	pause      time.Duration // between two renewals
}

// renewPause is between two renewals, which disturb all tokens of the module.
const renewPause = 5 * time.Second

func (m *modules) load(path string) (*module, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if loaded, ok := m.loaded[path]; ok {
		return loaded, nil
	}
	library := pkcs11.New(path)
	if library == nil {
		return nil, fmt.Errorf("module-path: %s cannot be loaded as a PKCS#11 module: it is missing, not readable for this user, or no such library", path)
	}
	if err := library.Initialize(); err != nil {
		library.Destroy()
		return nil, fmt.Errorf("C_Initialize: %w", err)
	}
	loaded := &module{cryptoki: library, unload: library.Destroy, slots: make(map[uint]*slot), pause: renewPause}
	if m.loaded == nil {
		m.loaded = make(map[string]*module)
	}
	m.loaded[path] = loaded
	return loaded, nil
}

func (m *modules) find(u *pkcs11URI, pin []byte) (crypto.Signer, error) {
	mod, err := m.load(u.module)
	if err != nil {
		return nil, err
	}
	key := &pkcs11Key{module: mod, uri: u, pin: pin}
	if key.at, key.public, err = key.find(); err != nil {
		return nil, err
	}
	return key, nil
}

func (m *modules) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for path, mod := range m.loaded {
		errs = append(errs, mod.Finalize()) // closes all sessions
		mod.unload()
		delete(m.loaded, path)
	}
	return errors.Join(errs...)
}

// renew initialises the module anew: some see a token again that was away, or a server
// to which the connection broke, only then. All handles become invalid, and may even
// mean other objects. It reports whether that was done since generation.
func (m *module) renew(generation int) bool {
	m.life.Lock()
	defer m.life.Unlock()
	if m.generation != generation {
		return true
	}
	if time.Since(m.renewed) < m.pause {
		return false
	}
	m.renewed = time.Now()
	m.generation++
	m.mu.Lock()
	for _, s := range m.slots {
		s.forget()
	}
	m.mu.Unlock()
	m.Finalize() // fails where it is not initialised
	return m.Initialize() == nil
}

// slot returns the one slot whose token matches. It is found before a PIN is given to
// any, so that none is given to a wrong one.
func (m *module) slot(u *pkcs11URI) (*slot, error) {
	present, err := m.GetSlotList(true)
	if err != nil {
		return nil, fmt.Errorf("C_GetSlotList: %w", err)
	}
	var matching []uint
	for _, id := range present {
		ok, err := m.matches(id, u.token)
		if err != nil {
			continue // taken out just now, or not initialised
		}
		if ok {
			matching = append(matching, id)
		}
	}
	switch len(matching) {
	case 0:
		return nil, fmt.Errorf("%w: none of the %d tokens matches; list them with pkcs11-tool --module %s --list-slots", ErrNotFound, len(present), u.module)
	case 1:
	default:
		return nil, fmt.Errorf("%w: %d tokens match; tell them apart with serial=NUMBER", ErrAmbiguous, len(matching))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.slots[matching[0]]
	if s == nil {
		s = newSlot(m, matching[0])
		m.slots[s.id] = s
	}
	return s, nil
}

// matches compares the token in a slot with the attributes that are given.
func (m *module) matches(id uint, want map[string]string) (bool, error) {
	token, err := m.GetTokenInfo(id)
	if err != nil {
		return false, err
	}
	slot, err := m.GetSlotInfo(id)
	if err != nil {
		return false, err
	}
	library, err := m.GetInfo()
	if err != nil {
		return false, err
	}
	have := map[string]string{
		"token": token.Label, "manufacturer": token.ManufacturerID, "serial": token.SerialNumber, "model": token.Model,
		"library-manufacturer": library.ManufacturerID, "library-description": library.LibraryDescription,
		"library-version":   fmt.Sprintf("%d.%d", library.LibraryVersion.Major, library.LibraryVersion.Minor),
		"slot-manufacturer": slot.ManufacturerID, "slot-description": slot.SlotDescription,
		"slot-id": strconv.FormatUint(uint64(id), 10),
	}
	if token.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
		return false, nil
	}
	for name, value := range want {
		if have[name] != value {
			return false, nil
		}
	}
	return true, nil
}
