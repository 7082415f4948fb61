// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/offloadd/offloadd/blob"
)

// TestAKernelThatHoldsSomethingElseIsNoticed has one bit of each field come back
// wrong, in each direction.
func TestAKernelThatHoldsSomethingElseIsNoticed(t *testing.T) {
	l := layouts[probeSuite13.AEAD()]
	for field, s := range map[string]span{"key": l.key, "salt": l.salt, "iv": l.iv, "rec_seq": l.seq, "cipher_type": infoCipher} {
		for _, wrong := range []int{optRX, optTX} {
			t.Run(field+" of "+optionName(wrong), func(t *testing.T) {
				limitedConns(t, 1) // skips where there is no TLS
				a, b, err := loopback()
				if err != nil {
					t.Fatal(err)
				}
				defer a.Close()
				defer b.Close()
				err = control(a, func(fd int) error {
					in := &installation{fd: fd, read: installable(t, fd, blob.Read), write: installable(t, fd, blob.Write)}
					in.readBack = func(fd, option, size int) ([]byte, error) {
						got, err := readKey(fd, option, size)
						if option == wrong && err == nil {
							got[s.at] ^= 1
						}
						return got, err
					}
					err := in.run()
					if err != nil {
						in.abandon()
					}
					return err
				})
				if !errors.Is(err, ErrMismatch) || !strings.HasSuffix(err.Error(), field) {
					t.Errorf("%v", err)
				}
				// With a write key in the kernel a write claims success after a shutdown.
				_, _ = a.Write([]byte("sent?"))
				if n, err := b.Read(make([]byte, 100)); n != 0 || err != io.EOF {
					t.Errorf("%d bytes arrived, %v", n, err)
				}
			})
		}
	}
}

// installable returns a random state for the socket.
func installable(t *testing.T, fd int, d blob.Direction) *blob.State {
	t.Helper()
	n, err := cookie(fd)
	if err != nil {
		t.Fatal(err)
	}
	s := probeState(probeSuite13)
	s.Role, s.Direction, s.Cookie = blob.Client, d, n
	s.NextSecret = counting(byte(d), 32)
	return s
}
