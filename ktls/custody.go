// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/offloadd/offloadd/blob"
)

// Custody is what stays outside the kernel of a connection whose keys are in it: the
// traffic secrets that the next KeyUpdate of either direction switches to (RFC 8446,
// Section 7.2), and where the connection stood when they were taken over. Without it
// nobody can take the keys back by [Conn.Export].
//
// It belongs to one owner at a time and is not safe for concurrent use. With a Conn that
// [NewConnKeeping] returned, the owner is that Conn.
type Custody struct {
	role                  blob.Role
	suite                 blob.CipherSuite
	cookie                uint64
	readEpoch, writeEpoch uint32
	// nextRead and nextWrite are empty in TLS 1.2.
	nextRead, nextWrite blob.Secret
	// sent and received are where the two directions stood.
	sent, received mark
}

// half is what custody has of one direction.
type half struct {
	direction blob.Direction
	next      *blob.Secret
	epoch     *uint32
	at        *mark
}

func (c *Custody) half(option int) half {
	if option == optRX {
		return half{blob.Read, &c.nextRead, &c.readEpoch, &c.received}
	}
	return half{blob.Write, &c.nextWrite, &c.writeEpoch, &c.sent}
}

// mark is a point in one direction: the number of the next record, and the bytes that
// TLS had given to TCP, or taken from it, up to there.
type mark struct{ seq, tcp uint64 }

// takeCustody takes over what the states hold beside the keys. The states are
// destroyed by the caller.
func takeCustody(read, write *blob.State, m marks) *Custody {
	return &Custody{
		role: read.Role, suite: read.Suite, cookie: read.Cookie,
		readEpoch: read.Epoch, writeEpoch: write.Epoch,
		nextRead: moveSecret(&read.NextSecret), nextWrite: moveSecret(&write.NextSecret),
		sent: mark{write.Seq, m.given}, received: mark{read.Seq, m.taken},
	}
}

// marks are the bytes of a connection at one time, while nobody uses it.
type marks struct{ given, taken uint64 }

func marksOf(fd int) (m marks, err error) {
	if m.given, err = givenToTCP(fd); err != nil {
		return m, err
	}
	m.taken, err = takenFromTCP(fd)
	return m, err
}

// moveSecret leaves nothing behind that Destroy of the source could overwrite.
func moveSecret(from *blob.Secret) blob.Secret {
	s := *from
	*from = blob.Secret{}
	return s
}

// Destroy overwrites the secrets. It may be called on nil and more than once.
func (c *Custody) Destroy() {
	if c == nil {
		return
	}
	c.nextRead.Destroy()
	c.nextWrite.Destroy()
}

// String names the connection without telling a secret.
func (c *Custody) String() string {
	if c == nil {
		return "no custody"
	}
	return fmt.Sprintf("custody of socket %d, %v, %v, epochs %d and %d", c.cookie, c.role, c.suite, c.readEpoch, c.writeEpoch)
}

// Format writes String for every verb.
func (c *Custody) Format(f fmt.State, _ rune) { io.WriteString(f, c.String()) }

// LogValue is String.
func (c *Custody) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText is String: custody has no textual form.
func (c *Custody) MarshalText() ([]byte, error) { return []byte(c.String()), nil }
