// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"context"
	"errors"
	"io"
	"testing"
)

// TestAPeerThatPadsIsQuietOnceAllIsRead: padding makes the account of bytes fail, and
// then only the proof counts that there is nothing at all to read.
func TestAPeerThatPadsIsQuietOnceAllIsRead(t *testing.T) {
	limitedConns(t, 1) // skips where there is no TLS
	p, err := newProbePair(probeSuite13)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	// The peer has no keys in the kernel: its records are made here.
	if err := errors.Join(setProbeKey(p.b, optRX, p.ab), setProbeKey(p.b, optTX, p.ba)); err != nil {
		t.Fatal(err)
	}
	conn, err := NewConn(p.b)
	if err != nil {
		t.Fatal(err)
	}
	var custody *Custody
	err = control(p.b, func(fd int) (err error) {
		if p.ab.Cookie, err = cookie(fd); err != nil {
			return err
		}
		m, err := marksOf(fd)
		custody = takeCustody(p.ab, p.ba, m)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	wire, err := sealPadded(p.ab, []string{"one", "two"}, 300)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.a.Write(wire); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"one", "two"} {
		got := make([]byte, 3)
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
			t.Fatalf("read %q, %v", got, err)
		}
		read, _, err := conn.Export(context.Background(), custody)
		var notQuiet *NotQuietError
		switch {
		case i == 0 && !errors.As(err, &notQuiet):
			t.Fatalf("with a record unread: %v", err)
		case i == 1 && (err != nil || read.Seq != 2):
			t.Fatalf("with all read: %v, %v", read, err)
		}
	}
}
