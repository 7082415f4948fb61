// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// topColumn is a column of the table.
type topColumn struct {
	name string
	// need decides which columns a narrow terminal shows: those with the lowest number.
	need    int
	width   int
	left    bool // text; numbers stand right
	cell    func(*topRow) string
	compare func(a, b *topRow) int
}

func byNumber[N cmp.Ordered](of func(*topRow) N) func(a, b *topRow) int {
	// The greatest first: that is what one looks for.
	return func(a, b *topRow) int { return cmp.Compare(of(b), of(a)) }
}

func byText(of func(*topRow) string) func(a, b *topRow) int {
	return func(a, b *topRow) int { return cmp.Compare(of(a), of(b)) }
}

func rateOf(r *float64) float64 {
	if r == nil {
		return -1
	}
	return *r
}

// topColumns in the order in which they are shown.
func topColumns() []topColumn {
	number := func(name string, need, width int, of func(*topRow) uint64) topColumn {
		return topColumn{name: name, need: need, width: width, cell: func(r *topRow) string { return fmt.Sprint(of(r)) }, compare: byNumber(of)}
	}
	text := func(name string, need, width int, of func(*topRow) string) topColumn {
		return topColumn{name: name, need: need, width: width, left: true, cell: of, compare: byText(of)}
	}
	// counted leaves a number out that is not known.
	counted := func(c topColumn) topColumn {
		cell := c.cell
		c.cell = func(r *topRow) string {
			if !r.Counted {
				return "-"
			}
			return cell(r)
		}
		return c
	}
	size := func(name string, need int, of func(*topRow) uint64) topColumn {
		return topColumn{name: name, need: need, width: 7, compare: byNumber(of), cell: func(r *topRow) string {
			if !r.Counted {
				return "~" + shortNumber(float64(of(r)), 1024)
			}
			return shortNumber(float64(of(r)), 1024)
		}}
	}
	rate := func(name string, need int, of func(*topRow) *float64, unit float64) topColumn {
		return topColumn{name: name, need: need, width: 7, compare: byNumber(func(r *topRow) float64 { return rateOf(of(r)) }), cell: func(r *topRow) string {
			if of(r) == nil {
				return "-"
			}
			return shortNumber(*of(r), unit)
		}}
	}
	socket := number("SOCKET", 0, 8, func(r *topRow) uint64 { return r.Socket })
	socket.compare = func(a, b *topRow) int { return cmp.Compare(a.Socket, b.Socket) }
	return []topColumn{
		socket,
		text("OWNER", 1, 15, (*topRow).ownerName),
		number("APP", 9, 7, func(r *topRow) uint64 { return uint64(r.Application) }),
		text("PEER", 2, 21, func(r *topRow) string { return r.Peer.String() }),
		text("LOCAL", 14, 21, func(r *topRow) string { return r.Local.String() }),
		text("TLS", 10, 3, func(r *topRow) string { return strings.TrimPrefix(r.Version, "TLS ") }),
		text("CIPHER", 12, 17, func(r *topRow) string { return r.Cipher }),
		text("PATH", 11, 7, func(r *topRow) string { return shortPath(r.Sent.Path) + "/" + shortPath(r.Received.Path) }),
		rate("OUT/s", 3, func(r *topRow) *float64 { return r.Sent.ByteRate }, 1024),
		rate("IN/s", 4, func(r *topRow) *float64 { return r.Received.ByteRate }, 1024),
		size("OUT", 15, func(r *topRow) uint64 { return r.Sent.Bytes }),
		size("IN", 16, func(r *topRow) uint64 { return r.Received.Bytes }),
		rate("REC/s>", 17, func(r *topRow) *float64 { return r.Sent.RecordRate }, 1000),
		rate("REC/s<", 18, func(r *topRow) *float64 { return r.Received.RecordRate }, 1000),
		number("SEQ OUT", 7, 10, func(r *topRow) uint64 { return r.Sent.Sequence }),
		number("SEQ IN", 8, 10, func(r *topRow) uint64 { return r.Received.Sequence }),
		counted(number("ERR", 5, 4, func(r *topRow) uint64 { return uint64(r.errors()) })),
		{name: "KEY %", need: 6, width: 6, compare: byNumber((*topRow).spent), cell: func(r *topRow) string { return fmt.Sprintf("%.2f", r.spent()) }},
		{name: "AGE", need: 13, width: 7, compare: compareAge, cell: func(r *topRow) string {
			if r.Since == nil {
				return "-"
			}
			return age(*r.Since)
		}},
	}
}

// compareAge: the oldest first, and those whose age is not known before.
func compareAge(a, b *topRow) int {
	since := func(r *topRow) time.Time {
		if r.Since == nil {
			return time.Time{}
		}
		return *r.Since
	}
	return since(a).Compare(since(b))
}

func shortPath(p string) string {
	switch p {
	case "software":
		return "sw"
	case "device":
		return "dev"
	}
	return "-"
}

// shortNumber has at most six characters.
func shortNumber(n, unit float64) string {
	if n < unit {
		return fmt.Sprintf("%.0f", n)
	}
	for _, suffix := range "KMGTP" {
		n /= unit
		if n < 9.95 {
			return fmt.Sprintf("%.1f%c", n, suffix)
		}
		if n < unit-0.5 {
			return fmt.Sprintf("%.0f%c", n, suffix)
		}
	}
	return fmt.Sprintf("%.0fE", n/unit)
}

// columnGap is between two columns, for the mark of the sorted one too.
const columnGap = 1

// fitColumns chooses the columns that are needed most and fit into width. The first is
// there in any case.
func fitColumns(all []topColumn, width int) []int {
	byNeed := make([]int, len(all))
	for i := range all {
		byNeed[i] = i
	}
	slices.SortFunc(byNeed, func(a, b int) int { return cmp.Compare(all[a].need, all[b].need) })
	var chosen []int
	used := -columnGap
	for _, i := range byNeed {
		if used+columnGap+all[i].width > width && len(chosen) > 0 {
			break
		}
		used += columnGap + all[i].width
		chosen = append(chosen, i)
	}
	slices.Sort(chosen)
	return chosen
}

// fitText pads or cuts a text of ASCII, which all cells are.
func fitText(s string, width int, left bool) string {
	if len(s) > width {
		if width < 2 {
			return s[:width]
		}
		return s[:width-1] + ">"
	}
	if left {
		return s + strings.Repeat(" ", width-len(s))
	}
	return strings.Repeat(" ", width-len(s)) + s
}

// tableLine renders one row of the chosen columns.
func tableLine(all []topColumn, chosen []int, r *topRow) string {
	cells := make([]string, len(chosen))
	for i, column := range chosen {
		c := &all[column]
		cells[i] = fitText(printable([]byte(c.cell(r))), c.width, c.left)
	}
	return strings.Join(cells, strings.Repeat(" ", columnGap))
}

// matches says whether any column has the text, whatever its case.
func (r *topRow) matches(all []topColumn, text string) bool {
	text = strings.ToLower(text)
	return slices.ContainsFunc(all, func(c topColumn) bool { return strings.Contains(strings.ToLower(c.cell(r)), text) })
}
