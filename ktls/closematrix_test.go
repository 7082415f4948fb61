// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/offloadd/offloadd/ktls/ktlstest"
)

var updateCloseTable = flag.Bool("update-close-table", false, "write CLOSE.md from the table of the test")

// closeParallel is how many cells are played at once: most of the time each waits.
const closeParallel = 24

// closeCell is a cell to be played.
type closeCell struct {
	application string
	act         closeAct
	state       closeState
	want        outcome
	end         newEnd
	version     uint16
}

func (c *closeCell) String() string {
	return fmt.Sprintf("%s, %s, %s, %s", tls.VersionName(c.version), c.application, c.act, c.state)
}

// closeCells are all cells of both tables.
func closeCells() (cells []closeCell) {
	for _, r := range connTable {
		crypto := r.conn
		if r.crypto != nil {
			crypto = *r.crypto
		}
		cells = append(cells,
			closeCell{"ktls.Conn", r.act, r.state, r.conn, newConnEnd, tls.VersionTLS13},
			closeCell{"ktls.Conn", r.act, r.state, r.conn, newConnEnd, tls.VersionTLS12})
		// That of crypto/tls is for the kernel's TCP alone: one kernel will do.
		if slices.Contains([]string{"", "6.12"}, os.Getenv("OFFLOADD_KERNEL_SERIES")) {
			cells = append(cells, closeCell{"crypto/tls", r.act, r.state, crypto, newCryptoEnd, tls.VersionTLS13})
		}
	}
	for _, r := range plainTable {
		end := newPlainEnd
		if r.act == goodbyeClose || r.act == goodbyeShutdown {
			end = newGoodbyeEnd
		}
		cells = append(cells, closeCell{"plain calls", r.act, r.state, r.want, end, tls.VersionTLS13})
	}
	slices.SortStableFunc(cells, func(a, b closeCell) int { // those that wait longest begin
		rank := map[bool]int{true: -1}
		return rank[a.state.dead()] - rank[b.state.dead()]
	})
	return cells
}

// matches says whether what happened is what the table says. Where that is a matter of
// time, the table names what may be.
func (want outcome) matches(got outcome) bool {
	allows := func(want, got string) bool { return slices.Contains(strings.Split(want, " or "), got) }
	return allows(want.read, got.read) && allows(want.write, got.write) &&
		allows(want.close, got.close) && allows(want.peer, got.peer)
}

// TestEveryEndOfAConnectionIsAsTheTableSays plays every cell of the tables in
// closetable_test.go, and each of a Conn with crypto/tls in its place.
func TestEveryEndOfAConnectionIsAsTheTableSays(t *testing.T) {
	ktlstest.Require(t)
	cert, _, _ := newIdentity(t)
	cells := closeCells()
	results := make([]struct {
		outcome
		err error
	}, len(cells))
	var wg sync.WaitGroup
	turns := make(chan struct{}, closeParallel)
	for i := range cells {
		turns <- struct{}{}
		p := ktlstest.NewPair(t)
		wg.Go(func() {
			defer func() { <-turns }()
			results[i].outcome, results[i].err = cells[i].play(p, cert)
		})
	}
	wg.Wait()
	for i, c := range cells {
		t.Run(c.String(), func(t *testing.T) {
			got := results[i]
			// On a machine that others keep busy, what is to happen first may not. By itself a
			// cell has it; what the peer gets is never a matter of that.
			if got.err == nil && !c.want.matches(got.outcome) && c.want.peer == got.peer {
				t.Logf("at first %q", got.outcome)
				got.outcome, got.err = c.play(ktlstest.NewPair(t), cert)
			}
			if got.err != nil {
				t.Error(got.err)
			} else if !c.want.matches(got.outcome) {
				t.Errorf("got  %q\nwant %q", got.outcome, c.want)
			}
		})
	}
}

// play shakes hands over the connection and plays the cell.
func (c *closeCell) play(p *ktlstest.Pair, cert tls.Certificate) (outcome, error) {
	if err := errors.Join(p.Server.SetWriteBuffer(64<<10), p.Client.SetReadBuffer(16<<10)); err != nil {
		return outcome{}, err
	}
	theirs := &watchedTCP{TCPConn: p.Client}
	peer := tls.Client(theirs, &tls.Config{InsecureSkipVerify: true, MinVersion: c.version, MaxVersion: c.version,
		CurvePreferences: []tls.CurveID{tls.X25519}}) // others are slow to emulate
	shaken := make(chan error, 1)
	go func() { shaken <- peer.Handshake() }()
	ours, err := c.end(p.Server, &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		p.Client.Close()
		return outcome{}, errors.Join(err, <-shaken)
	}
	if err := <-shaken; err != nil {
		return outcome{}, err
	}
	s := &closeScript{act: c.act, state: c.state, ours: ours, peer: peer, theirs: theirs}
	return s.run()
}

// TestNoRowOfAConnLosesWhatWasAccepted: of a peer that lives and does not reset.
func TestNoRowOfAConnLosesWhatWasAccepted(t *testing.T) {
	seen := map[[2]string]bool{}
	for _, r := range connTable {
		if gone := r.act == peerResets || r.state.dead(); !gone && r.conn.peer != "all, close_notify" {
			t.Errorf("%s, %s: the peer gets %s", r.act, r.state, r.conn.peer)
		}
		if (r.crypto == nil) != (r.why == "") {
			t.Errorf("%s, %s: crypto/tls does otherwise, and no reason is given", r.act, r.state)
		}
		seen[[2]string{string(r.act), string(r.state)}] = true
	}
	if want := 5 * len(closeStates); len(seen) != want {
		t.Errorf("%d cells, want %d", len(seen), want)
	}
	for _, r := range plainTable {
		said := r.act == goodbyeClose && r.state != dataUnread || r.act == goodbyeShutdown
		if said && !r.state.dead() && r.want.peer != "all, close_notify" {
			t.Errorf("%s, %s: the peer gets %s", r.act, r.state, r.want.peer)
		}
		delete(seen, [2]string{string(r.act), string(r.state)})
	}
	if len(seen) > 0 {
		t.Errorf("plain calls lack %v", seen)
	}
}

func TestTheCloseTableIsWrittenDown(t *testing.T) {
	const name = "CLOSE.md"
	want := closeDocument()
	if *updateCloseTable {
		if err := os.WriteFile(name, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what the table says: go test -run CloseTable -update-close-table ./ktls", name)
	}
}

// closeDocument renders CLOSE.md.
func closeDocument() []byte {
	var b bytes.Buffer
	b.WriteString(closeIntroduction)
	b.WriteString("| How it ends | While | Read says | Write says | Close says | The peer gets | crypto/tls |\n|---|---|---|---|---|---|---|\n")
	for _, r := range connTable {
		crypto := "the same"
		if r.crypto != nil {
			crypto = fmt.Sprintf("%s. %s", r.conn.differences(*r.crypto), r.why)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n",
			r.act, r.state, r.conn.read, r.conn.write, r.conn.close, r.conn.peer, crypto)
	}
	b.WriteString(plainIntroduction)
	b.WriteString("| How it ends | While | read | write | The last call | The peer gets |\n|---|---|---|---|---|---|\n")
	for _, r := range plainTable {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.act, r.state, r.want.read, r.want.write, r.want.close, r.want.peer)
	}
	return b.Bytes()
}

// differences names what is otherwise in the other.
func (o outcome) differences(other outcome) string {
	var list []string
	for _, f := range []struct{ name, ours, theirs string }{
		{"Read", o.read, other.read}, {"Write", o.write, other.write},
		{"Close", o.close, other.close}, {"peer", o.peer, other.peer},
	} {
		if f.ours != f.theirs {
			list = append(list, f.name+": "+f.theirs)
		}
	}
	return strings.Join(list, "; ")
}
