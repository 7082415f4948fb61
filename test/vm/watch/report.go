// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"fmt"
	"strings"
)

// A Report is what a watch has seen.
type Report struct {
	Connections int            // with kernel TLS at one end or both
	Judged      int            // directions with a write key in the kernel
	Cut         int            // of these, ended within a record
	Keyless     int            // directions with the ULP and without a write key
	Opened      int            // records
	Framed      int            // records that were not opened
	Keys        int            // installations, for reading and for writing
	NotJudged   map[string]int // directions, by reason
	Violations  []Violation
	Pardoned    int     // announced violations that happened
	Dropped     uint32  // packets that the capture missed
	Failures    []error // of the watch itself
}

func (r *Report) add(j *judge) {
	switch {
	case j.reason != "":
		r.skip(j.reason)
	case j.current == nil:
		r.Keyless++
	default:
		r.Judged++
		if j.cut {
			r.Cut++
		}
	}
	r.Opened += j.opened
	r.Framed += j.framed
}

func (r *Report) skip(why string) {
	if r.NotJudged == nil {
		r.NotJudged = map[string]int{}
	}
	r.NotJudged[why]++
}

// String is one line.
func (r *Report) String() string {
	skipped, why := 0, ""
	for reason, n := range r.NotJudged {
		skipped += n
		why += fmt.Sprintf(" (%d: %s)", n, reason)
	}
	return fmt.Sprintf("%d connections, %d directions judged, %d of them cut off, %d without key, %d not judged%s; "+
		"%d records opened, %d by their frames; %d keys; %d packets dropped; %d violations, %d more were announced",
		r.Connections, r.Judged, r.Cut, r.Keyless, skipped, why, r.Opened, r.Framed, r.Keys, r.Dropped, len(r.Violations), r.Pardoned)
}

// fewLost is how many directions may be lost to the capture, and how many more for each
// that was judged. A socket that is ended from outside counts bytes that it never sends.
const (
	fewLost     = 5
	fewLostEach = 0.02
)

// Err is nil if no rule was broken and the watch saw enough to say so.
func (r *Report) Err() error {
	var text []string
	for _, v := range r.Violations {
		text = append(text, v.String())
	}
	for _, err := range r.Failures {
		text = append(text, "the watch failed: "+err.Error())
	}
	if lost := r.NotJudged[reasonLost]; float64(lost) > fewLost+fewLostEach*float64(r.Judged) {
		text = append(text, fmt.Sprintf("the watch failed: of %d directions %s", lost, reasonLost))
	}
	if len(text) == 0 {
		return nil
	}
	const most = 40
	if rest := len(text) - most; rest > 0 {
		text = append(text[:most], fmt.Sprintf("and %d more", rest))
	}
	return fmt.Errorf("the watch on kernel TLS found:\n\t%s", strings.Join(text, "\n\t"))
}
