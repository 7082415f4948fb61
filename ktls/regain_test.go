// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
)

// regain gives k's connection up and takes it back.
func regain(k *kept) error {
	return k.conn.Release(func(a ktls.Account) error { return regainWith(k, a) })
}

func regainWith(k *kept, a ktls.Account) error {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, err := k.custody.Regain(ctx, k.tcp, a)
	return err
}

// TestWhoHasCustodyRegainsALiveConnection: again and again, and nothing in the kernel
// changes.
func TestWhoHasCustodyRegainsALiveConnection(t *testing.T) {
	for _, suite := range blob.CipherSuites() {
		t.Run(suite.String(), func(t *testing.T) {
			k, peer := newKept(t, suite)
			size := 56 // of struct tls12_crypto_info_*
			if suite.AEAD() == blob.AES128GCM {
				size = 40
			}
			for range 3 {
				exchange(t, k.conn, peer)
				exchange(t, peer, k.conn)
				before := kernelState(t, k.tcp, optTX, size)
				if err := regain(k); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(before, kernelState(t, k.tcp, optTX, size)) {
					t.Error("the kernel's state is another one")
				}
				if _, err := k.conn.Write([]byte("x")); !errors.Is(err, ktls.ErrMoved) {
					t.Errorf("the old owner may write: %v", err)
				}
				k.conn = newConn(t, k.tcp)
			}
			exchange(t, k.conn, peer)
			exchange(t, peer, k.conn)
		})
	}
}

// TestRegainRefusesWhatIsNotQuietOrNotTrue: and the owner goes on.
func TestRegainRefusesWhatIsNotQuietOrNotTrue(t *testing.T) {
	for _, c := range []struct {
		name    string
		account func(ktls.Account) ktls.Account
		disturb func(t *testing.T, k *kept, peer *ktls.Conn)
		want    string
		unread  int
	}{
		{"a record read in part", nil, func(t *testing.T, k *kept, peer *ktls.Conn) {
			mustWrite(t, peer, "half and half")
			mustRead(t, k.conn, "half")
		}, "in part", len(" and half")},
		{"more written than is said", func(a ktls.Account) ktls.Account {
			a.Written--
			return a
		}, nil, "more or other bytes", 0},
		{"less written than is said", func(a ktls.Account) ktls.Account {
			a.Written++
			return a
		}, nil, "1 bytes of records are not with TCP", 0},
		{"another socket", nil, func(_ *testing.T, k *kept, _ *ktls.Conn) {
			k.tcp = nil // see below
		}, "socket", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, peer := newKept(t, suite13)
			exchange(t, k.conn, peer)
			exchange(t, peer, k.conn)
			tcp := k.tcp
			if c.disturb != nil {
				c.disturb(t, k, peer)
			}
			if k.tcp == nil {
				other, _ := newKept(t, suite13)
				k.tcp = other.tcp
			}
			err := k.conn.Release(func(a ktls.Account) error {
				if c.account != nil {
					a = c.account(a)
				}
				return regainWith(k, a)
			})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			var notQuiet *ktls.NotQuietError
			if errors.As(err, &notQuiet) && notQuiet.Unread != c.unread {
				t.Errorf("%d unread, want %d", notQuiet.Unread, c.unread)
			}
			k.tcp = tcp
			if c.unread > 0 {
				mustRead(t, k.conn, " and half")
			}
			exchange(t, k.conn, peer)
			if err := regain(k); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}
