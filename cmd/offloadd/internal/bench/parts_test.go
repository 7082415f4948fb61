// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"crypto/sha256"
	"io"
	"testing"
	"time"
)

// TestThePatternIsTheSameHoweverItIsCut: from memory in windows and from the file.
func TestThePatternIsTheSameHoweverItIsCut(t *testing.T) {
	const n = patternPeriod + 12345
	want := newPattern(1 << 20).sum(n)
	for _, window := range []int{1, 64 << 10, 2 << 20} {
		var got bytes.Buffer
		if err := sendPattern(&got, newPattern(window), n, max(window, 100), nil); err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(got.Bytes()) != want {
			t.Errorf("in writes of %d bytes it is another", window)
		}
	}
	p := newPattern(1)
	f, err := p.newFile(2*patternPeriod + 1)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const fileSize = 3 * patternPeriod
	if f.size != fileSize {
		t.Errorf("the file has %d bytes, want %d", f.size, fileSize)
	}
	for _, at := range []int64{0, patternPeriod - 1, fileSize - 7, fileSize, 2*fileSize + 5} {
		part, err := f.part(at, 100)
		if err != nil {
			t.Fatal(err)
		}
		want := min(100, fileSize-at%fileSize)
		got, err := io.ReadAll(part)
		if err != nil || int64(len(got)) != want || !bytes.Equal(got, p.at(at, want)) {
			t.Errorf("at %d of the file: %d bytes, %v", at, len(got), err)
		}
	}
	a, b := p.sum(1000), p.sum(1001)
	if a == b {
		t.Error("two bodies have one sum")
	}
}

// TestAPieceThatIsLostShows: where records or pages are left out, the sum differs.
func TestAPieceThatIsLostShows(t *testing.T) {
	p := newPattern(1)
	var all bytes.Buffer
	if err := sendPattern(&all, p, 2<<20, 1<<20, nil); err != nil {
		t.Fatal(err)
	}
	want := p.sum(2 << 20)
	for _, lost := range []int{1, 4096, maxContent, 1 << 20} {
		without := append(bytes.Clone(all.Bytes()[lost:]), all.Bytes()[:lost]...)
		if sha256.Sum256(without) == want {
			t.Errorf("%d bytes moved, and the sum is the same", lost)
		}
	}
}

func TestRecordsAreCountedWhereverReadsEnd(t *testing.T) {
	var stream []byte
	sizes := []int{0, 1, 5, 17, 300, 16406}
	for _, n := range sizes {
		stream = append(stream, 23, 3, 3, byte(n>>8), byte(n))
		stream = append(stream, make([]byte, n)...)
	}
	for _, cut := range []int{1, 2, 3, 4, 5, 6, 7, 100, 16384, len(stream)} {
		var s recordScan
		got := int64(0)
		for rest := stream; len(rest) > 0; {
			n := min(cut, len(rest))
			got += s.scan(rest[:n])
			rest = rest[n:]
		}
		if got != int64(len(sizes)) || s.left != 0 || s.have != 0 {
			t.Errorf("in pieces of %d: %d records, want %d, state %+v", cut, got, len(sizes), s)
		}
	}
}

func TestPercentilesAreTimesThatWereMeasured(t *testing.T) {
	if NewLatency(nil) != nil {
		t.Error("percentiles of nothing")
	}
	var times []time.Duration
	for n := 1000; n >= 1; n-- {
		times = append(times, time.Duration(n)*time.Microsecond)
	}
	want := Latency{Count: 1000, Min: 1, Mean: 500.5, P50: 500, P90: 900, P99: 990, P999: 999, Max: 1000}
	if got := NewLatency(times); *got != want {
		t.Errorf("%+v, want %+v", *got, want)
	}
	one := NewLatency([]time.Duration{1500 * time.Nanosecond})
	if want := (Latency{1, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5}); *one != want {
		t.Errorf("of one: %+v", *one)
	}
	if got := NewLatency([]time.Duration{1000, 2000, 3000}); got.P50 != 2 || got.P90 != 3 {
		t.Errorf("of three: %+v", *got)
	}
}

func TestShareIsOfWhatWasMoved(t *testing.T) {
	calls := func(n int64) *int64 { return &n }
	before := Usage{UserUS: 100, SystemUS: 50, Syscalls: calls(10)}
	after := Usage{UserUS: 300, SystemUS: 150, Syscalls: calls(522), RSSBytes: 7}
	s := spentBetween(before, after, 512<<20)
	if s.UserUS != 200 || s.SystemUS != 100 || *s.CPUUSPerGiB != 600 || *s.Syscalls != 512 || *s.SyscallsPerMiB != 1 || s.RSSBytes != 7 {
		t.Errorf("%+v", s)
	}
	if s := spentBetween(before, Usage{SyscallsWhy: "no"}, 0); s.CPUUSPerGiB != nil || s.Syscalls != nil || s.SyscallsPerMiB != nil || s.SyscallsWhy != "no" {
		t.Errorf("of nothing: %+v", s)
	}
}
