// SPDX-License-Identifier: Apache-2.0

package token

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Reference names one private key in a token:
//
//	pkcs11:token=web;object=tls?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/offloadd/pin
//	tpm:handle=0x81000001;device=/dev/tpmrm0
//
// The first is a PKCS#11 URI (RFC 7512) with the restrictions of parsePKCS11; the
// second is written with the same grammar, see parseTPM.
type Reference struct {
	pkcs11 *pkcs11URI
	tpm    *tpmURI
	// name is the text before the query: what logs and errors may show.
	name string
	// PINFile is the file that holds the PIN, "" for none.
	PINFile string
}

const (
	pkcs11Scheme = "pkcs11:"
	tpmScheme    = "tpm:"
)

func hasScheme(s, scheme string) bool {
	return len(s) >= len(scheme) && strings.EqualFold(s[:len(scheme)], scheme)
}

// Names reports whether s is meant as a Reference, and not as the path of a file.
func Names(s string) bool { return hasScheme(s, pkcs11Scheme) || hasScheme(s, tpmScheme) }

// Parse parses a reference. Its errors show no values.
func Parse(s string) (*Reference, error) {
	name, query, _ := strings.Cut(s, "?")
	values, err := attributes(query, "&", queryMarks)
	if err != nil {
		return nil, fmt.Errorf("after the question mark: %w", err)
	}
	r := &Reference{name: name}
	if r.PINFile, err = pinFile(values); err != nil {
		return nil, err
	}
	switch {
	case hasScheme(s, pkcs11Scheme):
		r.pkcs11, err = parsePKCS11(name[len(pkcs11Scheme):], values)
	case hasScheme(s, tpmScheme):
		r.tpm, err = parseTPM(name[len(tpmScheme):])
	default:
		err = errors.New("begins with neither \"pkcs11:\" nor \"tpm:\"")
	}
	if err != nil {
		return nil, err
	}
	for name := range values {
		return nil, fmt.Errorf("%s is not an attribute this program knows after the question mark", name)
	}
	return r, nil
}

// pinFile takes the PIN's attributes out of values.
func pinFile(values map[string]string) (string, error) {
	source, given := values["pin-source"]
	if _, ok := values["pin-value"]; ok {
		return "", errors.New("pin-value would put the PIN where configurations are read and copied; write it into a file and name that with pin-source=file:/path")
	}
	if !given {
		return "", nil
	}
	delete(values, "pin-source")
	path, ok := strings.CutPrefix(source, "file:")
	path = strings.TrimPrefix(path, "//") // file:///path, RFC 8089
	if !ok || !filepath.IsAbs(path) {
		return "", errors.New("pin-source must be file:/path with an absolute path; programs and other sources are not run")
	}
	return path, nil
}

// String returns the reference without what follows the question mark.
func (r *Reference) String() string { return r.name }

// Supported tells what this build lacks to use the reference.
func (r *Reference) Supported() error {
	if r.pkcs11 != nil {
		return pkcs11Supported()
	}
	return nil
}
