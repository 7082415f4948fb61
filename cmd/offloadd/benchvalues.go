// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// byteSize is a flag with a number of bytes: 4096, 256KiB, 64M.
type byteSize int64

var byteUnits = []struct {
	letter string
	shift  uint
}{{"G", 30}, {"M", 20}, {"K", 10}}

func (b *byteSize) Set(text string) error {
	number, shift := strings.TrimSuffix(strings.TrimSuffix(text, "B"), "i"), uint(0)
	for _, u := range byteUnits {
		if cut, ok := strings.CutSuffix(strings.ToUpper(number), u.letter); ok {
			number, shift = cut, u.shift
		}
	}
	n, err := strconv.ParseUint(number, 10, 62)
	if err != nil || n > 1<<62>>shift {
		return fmt.Errorf("%q is no number of bytes; want, for example, 4096, 256KiB or 64M", text)
	}
	*b = byteSize(n << shift)
	return nil
}

func (b *byteSize) String() string {
	for _, u := range byteUnits {
		if *b != 0 && *b%(1<<u.shift) == 0 {
			return fmt.Sprintf("%d%siB", *b>>u.shift, u.letter)
		}
	}
	return strconv.FormatInt(int64(*b), 10)
}

func (b *byteSize) Type() string { return "bytes" }

// seconds is a flag with a time: 10, or as Go writes it.
type seconds time.Duration

func (s *seconds) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil {
		d, err = time.ParseDuration(text + "s")
	}
	if err != nil || d < 0 {
		return fmt.Errorf("%q is no time; want, for example, 10 (seconds) or 500ms", text)
	}
	*s = seconds(d)
	return nil
}

func (s *seconds) String() string { return time.Duration(*s).String() }

func (s *seconds) Type() string { return "seconds" }
