// SPDX-License-Identifier: Apache-2.0

//go:build pkcs11 && cgo

package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"
)

// objects reads the objects of a token in one session.
type objects struct {
	*slot
	session pkcs11.SessionHandle
}

// search returns up to most handles of objects with these attributes.
func (o objects) search(most int, template ...*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	if err := o.FindObjectsInit(o.session, template); err != nil {
		return nil, fmt.Errorf("C_FindObjectsInit: %w", err)
	}
	var found []pkcs11.ObjectHandle
	for len(found) < most {
		some, _, err := o.FindObjects(o.session, most-len(found))
		if err != nil {
			o.FindObjectsFinal(o.session)
			return nil, fmt.Errorf("C_FindObjects: %w", err)
		}
		if len(some) == 0 {
			break
		}
		found = append(found, some...)
	}
	if err := o.FindObjectsFinal(o.session); err != nil {
		return nil, fmt.Errorf("C_FindObjectsFinal: %w", err)
	}
	return found, nil
}

// value reads one attribute; nil where the object does not have it.
func (o objects) value(object pkcs11.ObjectHandle, attribute uint) []byte {
	values, err := o.GetAttributeValue(o.session, object, []*pkcs11.Attribute{pkcs11.NewAttribute(attribute, nil)})
	if err != nil || len(values) != 1 {
		return nil
	}
	return values[0].Value
}

func (o objects) isTrue(object pkcs11.ObjectHandle, attribute uint) bool {
	v := o.value(object, attribute)
	return len(v) == 1 && v[0] != 0
}

func (o objects) number(object pkcs11.ObjectHandle, attribute uint) uint {
	v := o.value(object, attribute)
	if len(v) != 8 {
		return pkcs11.CK_UNAVAILABLE_INFORMATION
	}
	return uint(binary.NativeEndian.Uint64(v)) // CK_ULONG
}

// privateKey finds the one private key that the URI names.
func (o objects) privateKey(u *pkcs11URI) (pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
	}
	if u.object != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, u.object))
	}
	if u.id != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(u.id)))
	}
	found, err := o.search(2, template...)
	switch {
	case err != nil:
		return 0, err
	case len(found) == 0:
		return 0, fmt.Errorf("%w: the token has no such private key; list what it has with pkcs11-tool --module %s --login --list-objects", ErrNotFound, u.module)
	case len(found) > 1:
		return 0, fmt.Errorf("%w: more than one private key of the token matches; tell them apart with id=%%01", ErrAmbiguous)
	}
	key := found[0]
	if !o.isTrue(key, pkcs11.CKA_SIGN) {
		return 0, fmt.Errorf("%w: the token does not let it sign (CKA_SIGN)", ErrUnsuitable)
	}
	if o.isTrue(key, pkcs11.CKA_ALWAYS_AUTHENTICATE) {
		return 0, fmt.Errorf("%w: the token wants the PIN for each signature (CKA_ALWAYS_AUTHENTICATE); a server's key must not", ErrUnsuitable)
	}
	return key, nil
}

// publicPart returns the public key that belongs to a private one. An RSA private key
// object tells it. For others it is in a public key object or a certificate with the
// same CKA_ID. It is only a claim; Try proves it.
func (o objects) publicPart(private pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	kind := o.number(private, pkcs11.CKA_KEY_TYPE)
	switch kind {
	case pkcs11.CKK_RSA, pkcs11.CKK_EC, ckkECEdwards:
	default:
		return nil, fmt.Errorf("%w: key type %#x, want RSA, ECDSA or Ed25519", ErrUnsuitable, kind)
	}
	if kind == pkcs11.CKK_RSA {
		if public := o.rsaKey(private); public != nil {
			return public, nil
		}
	}
	id := o.value(private, pkcs11.CKA_ID)
	if len(id) != 0 {
		if public, err := o.besides(kind, id); public != nil || err != nil {
			return public, err
		}
	}
	return nil, fmt.Errorf("%w: the token has no public key object and no certificate with the private key's CKA_ID (%x) to tell its public part; store one", ErrNotFound, id)
}

// besides looks for the public part in other objects with this CKA_ID.
func (o objects) besides(kind uint, id []byte) (crypto.PublicKey, error) {
	sameID := pkcs11.NewAttribute(pkcs11.CKA_ID, id)
	keys, err := o.search(1, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, kind), sameID)
	if err != nil {
		return nil, err
	}
	if len(keys) == 1 {
		switch kind {
		case pkcs11.CKK_RSA:
			if public := o.rsaKey(keys[0]); public != nil {
				return public, nil
			}
		case pkcs11.CKK_EC:
			return o.ecdsaKey(keys[0])
		default:
			return o.ed25519Key(keys[0])
		}
	}
	certificates, err := o.search(1, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE), sameID)
	if err != nil || len(certificates) == 0 {
		return nil, err
	}
	c, err := x509.ParseCertificate(o.value(certificates[0], pkcs11.CKA_VALUE))
	if err != nil {
		return nil, fmt.Errorf("the certificate in the token beside the key: %w", err)
	}
	return c.PublicKey, nil
}

// rsaKey returns nil where the object does not tell.
func (o objects) rsaKey(object pkcs11.ObjectHandle) crypto.PublicKey {
	modulus, exponent := o.value(object, pkcs11.CKA_MODULUS), o.value(object, pkcs11.CKA_PUBLIC_EXPONENT)
	e := new(big.Int).SetBytes(exponent)
	if len(modulus) == 0 || e.Sign() == 0 || !e.IsInt64() || e.BitLen() > 31 {
		return nil
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(e.Int64())}
}

// The named curves of RFC 5480, Section 2.1.1.1, as CKA_EC_PARAMS holds them.
var curves = []struct {
	oid   asn1.ObjectIdentifier
	curve elliptic.Curve
}{
	{asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, elliptic.P256()},
	{asn1.ObjectIdentifier{1, 3, 132, 0, 34}, elliptic.P384()},
}

func (o objects) ecdsaKey(object pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	var oid asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(o.value(object, pkcs11.CKA_EC_PARAMS), &oid); err != nil || len(rest) != 0 {
		return nil, fmt.Errorf("%w: CKA_EC_PARAMS names no curve", ErrUnsuitable)
	}
	for _, c := range curves {
		if !c.oid.Equal(oid) {
			continue
		}
		size := (c.curve.Params().BitSize + 7) / 8
		public, err := ecdsa.ParseUncompressedPublicKey(c.curve, point(o.value(object, pkcs11.CKA_EC_POINT), 1+2*size))
		if err != nil {
			return nil, fmt.Errorf("%w: CKA_EC_POINT: %v", ErrUnsuitable, err)
		}
		return public, nil
	}
	return nil, fmt.Errorf("%w: curve %v, want P-256 or P-384", ErrUnsuitable, oid)
}

func (o objects) ed25519Key(object pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	p := point(o.value(object, pkcs11.CKA_EC_POINT), ed25519.PublicKeySize)
	if len(p) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%w: CKA_EC_POINT has %d bytes, want Ed25519's %d", ErrUnsuitable, len(p), ed25519.PublicKeySize)
	}
	return ed25519.PublicKey(p), nil
}

// point takes CKA_EC_POINT out of the OCTET STRING that PKCS#11 wraps it in and some
// tokens do not.
func point(b []byte, size int) []byte {
	if len(b) == size {
		return b
	}
	var inner []byte
	if rest, err := asn1.Unmarshal(b, &inner); err != nil || len(rest) != 0 {
		return nil
	}
	return inner
}
