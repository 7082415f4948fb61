// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"crypto/sha256"
	"hash"
	"io"
	"math/rand/v2"
	"os"
)

// patternPeriod is after how many bytes the pattern repeats: a prime, so that what was lost
// in pieces of records or pages shifts what follows.
const patternPeriod = 1<<20 - 3

// filePeriods is how often the pattern is in the largest file, a little over 64 MiB, so that a
// body of that size is one sendfile.
const filePeriods = 65

// pattern is the content of every body: random bytes, the same on both ends.
type pattern struct {
	// bytes is one period and then its beginning again, for the largest window.
	bytes []byte
}

// newPattern makes a pattern that gives up to window bytes at a time.
func newPattern(window int) *pattern {
	p := &pattern{make([]byte, patternPeriod+max(window, small))}
	rand.NewChaCha8([32]byte{'o', 'f', 'f', 'l', 'o', 'a', 'd', 'd'}).Read(p.bytes[:patternPeriod])
	for n := patternPeriod; n < len(p.bytes); {
		n += copy(p.bytes[n:], p.bytes[:patternPeriod])
	}
	return p
}

// at returns the bytes of a body at this offset, at most a window of them.
func (p *pattern) at(offset, most int64) []byte {
	from := int(offset % patternPeriod)
	return p.bytes[from : from+int(min(int64(len(p.bytes)-patternPeriod), most))]
}

// sum is the SHA-256 of a body of n bytes.
func (p *pattern) sum(n int64) [sha256.Size]byte {
	h := sha256.New()
	for at := int64(0); at < n; {
		window := p.at(at, n-at)
		h.Write(window)
		at += int64(len(window))
	}
	return digest(h)
}

func digest(h hash.Hash) (sum [sha256.Size]byte) {
	h.Sum(sum[:0])
	return sum
}

// patternFile is a file that begins with the pattern, some times over.
type patternFile struct {
	*os.File
	size int64 // of whole periods
}

// newFile puts the pattern into a file in memory, which is in the page cache by nature. It is
// no larger than bodies of this size need.
func (p *pattern) newFile(body int64) (*patternFile, error) {
	f, err := memoryFile("offloadd-bench")
	if err != nil {
		return nil, err
	}
	file := &patternFile{f, 0}
	for file.size == 0 || file.size < body && file.size < filePeriods*patternPeriod {
		n, err := f.Write(p.bytes[:patternPeriod])
		file.size += int64(n)
		if err != nil {
			f.Close()
			return nil, err
		}
	}
	return file, nil
}

// reopen returns another descriptor of the file, with an offset of its own.
func (f *patternFile) reopen() (*patternFile, error) {
	again, err := reopen(f.File)
	return &patternFile{again, f.size}, err
}

// part positions the file for a body's offset and returns a reader of what follows, at most to
// its end.
func (f *patternFile) part(offset, left int64) (*io.LimitedReader, error) {
	at := offset % f.size
	if _, err := f.Seek(at, io.SeekStart); err != nil {
		return nil, err
	}
	return &io.LimitedReader{R: f.File, N: min(left, f.size-at)}, nil
}
