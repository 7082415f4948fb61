// SPDX-License-Identifier: Apache-2.0

package token

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// pkcs11URI says where a key is. Each attribute that is given must match; nil and ""
// match all.
type pkcs11URI struct {
	module     string
	token      map[string]string // the tokenAttributes that are given
	object, id string            // CKA_LABEL, CKA_ID
}

// tokenAttributes are those that choose the token (RFC 7512, Section 2.3).
var tokenAttributes = []string{
	"token", "manufacturer", "serial", "model",
	"library-manufacturer", "library-description", "library-version",
	"slot-manufacturer", "slot-description", "slot-id",
}

// parsePKCS11 parses a URI's path, and takes what it knows out of the query. More is
// asked for than RFC 7512 does: which module, since there is no right one to guess;
// something about the token, since a PIN must not be tried on a token that happens to
// be there; and which object.
func parsePKCS11(path string, query map[string]string) (*pkcs11URI, error) {
	if _, ok := query["module-name"]; ok {
		return nil, errors.New("module-name depends on a search path; give the module's file with module-path=/path")
	}
	u := &pkcs11URI{module: query["module-path"], token: make(map[string]string)}
	delete(query, "module-path")
	if !filepath.IsAbs(u.module) {
		return nil, errors.New("module-path must be there, with an absolute path: the shared library that comes with the token, for example ?module-path=/usr/lib/softhsm/libsofthsm2.so")
	}
	values, err := attributes(path, ";", pathMarks)
	if err != nil {
		return nil, err
	}
	for _, name := range tokenAttributes {
		if v, ok := values[name]; ok {
			u.token[name] = v
			delete(values, name)
		}
	}
	u.object, u.id = values["object"], values["id"]
	kind, given := values["type"]
	if given && kind != "private" {
		return nil, errors.New("type must be private, or left out")
	}
	for _, name := range []string{"object", "id", "type"} {
		delete(values, name)
	}
	for name := range values {
		return nil, fmt.Errorf("%s is not an attribute of RFC 7512, Section 2.3, or does not belong before the question mark", name)
	}
	return u, u.check()
}

func (u *pkcs11URI) check() error {
	if u.object == "" && u.id == "" {
		return errors.New("names no key; add object=LABEL or id=%01 or both")
	}
	if u.token["token"] == "" && u.token["serial"] == "" && u.token["slot-id"] == "" {
		return errors.New("names no token; add token=LABEL, serial=NUMBER or slot-id=NUMBER")
	}
	if slot, ok := u.token["slot-id"]; ok {
		n, err := strconv.ParseUint(slot, 10, 64)
		if err != nil {
			return errors.New("slot-id is not a decimal number")
		}
		u.token["slot-id"] = strconv.FormatUint(n, 10)
	}
	if version, ok := u.token["library-version"]; ok {
		major, minor, dotted := strings.Cut(version, ".")
		if !dotted {
			minor = "0" // RFC 7512, Section 2.3
		}
		a, errA := strconv.ParseUint(major, 10, 8)
		b, errB := strconv.ParseUint(minor, 10, 8)
		if errA != nil || errB != nil {
			return errors.New("library-version is not MAJOR or MAJOR.MINOR")
		}
		u.token["library-version"] = fmt.Sprintf("%d.%d", a, b)
	}
	return nil
}
