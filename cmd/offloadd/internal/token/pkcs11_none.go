// SPDX-License-Identifier: Apache-2.0

//go:build !pkcs11 || !cgo

package token

import (
	"crypto"
	"errors"
)

// modules stands in for PKCS#11 where it is not built in.
type modules struct{}

func pkcs11Supported() error {
	return errors.New("this offloadd was built without PKCS#11, which needs C: build it with \"CGO_ENABLED=1 go build -tags pkcs11 ./cmd/offloadd\"")
}

func (modules) find(*pkcs11URI, []byte) (crypto.Signer, error) { return nil, pkcs11Supported() }

func (modules) close() error { return nil }
