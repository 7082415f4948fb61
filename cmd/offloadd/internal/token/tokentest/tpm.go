// SPDX-License-Identifier: Apache-2.0

package tokentest

import (
	"bytes"
	"crypto"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// TPM is a TPM 2.0 in software.
type TPM struct {
	Socket string
	t      testing.TB
	dir    string
	cmd    *exec.Cmd
	next   uint32
	made   byte
}

// StartTPM starts a new TPM, which ends with the test.
func StartTPM(t testing.TB) *TPM {
	t.Helper()
	need(t, "swtpm")
	m := &TPM{t: t, dir: openDir(t), next: 0x81000001}
	m.Socket = filepath.Join(m.dir, "tpm.sock")
	m.Start()
	t.Cleanup(m.Stop)
	return m
}

// Start starts the TPM, with what it had when it was stopped.
func (m *TPM) Start() {
	m.t.Helper()
	m.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+m.dir, "--flags", "not-need-init,startup-clear",
		"--server", "type=unixio,path="+m.Socket, "--ctrl", "type=unixio,path="+m.Socket+".ctrl")
	var said bytes.Buffer
	m.cmd.Stdout, m.cmd.Stderr = &said, &said
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", m.Socket); err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			m.cmd.Process.Kill()
			m.cmd.Wait()
			m.t.Fatalf("swtpm does not start: %s", said.String())
		}
	}
	if err := os.Chmod(m.Socket, 0o666); err != nil {
		m.t.Fatal(err)
	}
}

// Stop takes the TPM away.
func (m *TPM) Stop() {
	if m.cmd != nil {
		m.cmd.Process.Kill()
		m.cmd.Wait()
		os.Remove(m.Socket)
		m.cmd = nil
	}
}

func (m *TPM) do(f func(transport.TPM) error) {
	m.t.Helper()
	tpm, err := linuxudstpm.Open(m.Socket)
	if err == nil {
		err = f(tpm)
		tpm.Close()
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// Signing attributes of keys.
var signing = tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true}

// RSA and ECC are templates of signing keys.
var (
	RSA = tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: signing,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048}),
	}
	P256 = ecc(tpm2.TPMECCNistP256)
	P384 = ecc(tpm2.TPMECCNistP384)
)

func ecc(curve tpm2.TPMECCCurve) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: signing,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: curve}),
	}
}

// Make makes a persistent key and returns its reference and public part.
func (m *TPM) Make(template tpm2.TPMTPublic, pin string) (reference string, public crypto.PublicKey) {
	m.t.Helper()
	handle := m.next
	m.next++
	m.made++
	template.Unique = unique(template.Type, m.made)
	m.do(func(t transport.TPM) error {
		key, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.TPMRHOwner,
			InPublic:      tpm2.New2B(template),
			InSensitive:   tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte(pin)}}},
		}.Execute(t)
		if err != nil {
			return fmt.Errorf("TPM2_CreatePrimary: %w", err)
		}
		defer tpm2.FlushContext{FlushHandle: key.ObjectHandle}.Execute(t)
		area, err := key.OutPublic.Contents()
		if err != nil {
			return err
		}
		if public, err = tpm2.Pub(*area); err != nil {
			return err
		}
		_, err = tpm2.EvictControl{
			Auth:             tpm2.TPMRHOwner,
			ObjectHandle:     &tpm2.NamedHandle{Handle: key.ObjectHandle, Name: key.Name},
			PersistentHandle: tpm2.TPMHandle(handle),
		}.Execute(t)
		if err != nil {
			return fmt.Errorf("TPM2_EvictControl: %w", err)
		}
		return nil
	})
	return fmt.Sprintf("tpm:handle=%#x;device=%s", handle, m.Socket), public
}

// unique tells keys of one template apart, which would be one key otherwise.
func unique(kind tpm2.TPMAlgID, n byte) tpm2.TPMUPublicID {
	if kind == tpm2.TPMAlgRSA {
		return tpm2.NewTPMUPublicID(kind, &tpm2.TPM2BPublicKeyRSA{Buffer: []byte{n}})
	}
	return tpm2.NewTPMUPublicID(kind, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: []byte{n}}})
}

// Objects lists all objects, persistent and transient, by handle and name.
func (m *TPM) Objects() string {
	m.t.Helper()
	var list bytes.Buffer
	m.do(func(t transport.TPM) error {
		for _, first := range []uint32{0x80000000, 0x81000000} {
			answer, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(t)
			if err != nil {
				return err
			}
			handles, err := answer.CapabilityData.Data.Handles()
			if err != nil {
				return err
			}
			for _, h := range handles.Handle {
				public, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(t)
				if err != nil {
					return err
				}
				fmt.Fprintf(&list, "%#x %x\n", uint32(h), public.Name.Buffer)
			}
		}
		return nil
	})
	return list.String()
}

// LockoutCounter returns how many wrong PINs the TPM has counted.
func (m *TPM) LockoutCounter() (n uint32) {
	m.t.Helper()
	m.do(func(t transport.TPM) error {
		answer, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTLockoutCounter), PropertyCount: 1}.Execute(t)
		if err != nil {
			return err
		}
		properties, err := answer.CapabilityData.Data.TPMProperties()
		if err == nil && len(properties.TPMProperty) == 1 {
			n = properties.TPMProperty[0].Value
		}
		return err
	})
	return n
}

// Renew puts a new key in the place of another.
func (m *TPM) Renew(reference string, template tpm2.TPMTPublic) crypto.PublicKey {
	m.t.Helper()
	var handle uint32
	if _, err := fmt.Sscanf(reference, "tpm:handle=0x%x;", &handle); err != nil {
		m.t.Fatal(err)
	}
	m.do(func(t transport.TPM) error {
		old, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(handle)}.Execute(t)
		if err != nil {
			return err
		}
		_, err = tpm2.EvictControl{
			Auth:             tpm2.TPMRHOwner,
			ObjectHandle:     &tpm2.NamedHandle{Handle: tpm2.TPMHandle(handle), Name: old.Name},
			PersistentHandle: tpm2.TPMHandle(handle),
		}.Execute(t)
		return err
	})
	next := m.next
	m.next = handle
	_, public := m.Make(template, "")
	m.next = next
	return public
}
