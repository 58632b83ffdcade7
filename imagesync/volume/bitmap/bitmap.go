// Package bitmap keeps large sets of numbers that are mostly runs: which blocks of a disk are
// in an overlay, and which chunks of an image have come.
//
// A set is cut into pages of 4,096 numbers. A page without members is not there, and a page that
// was added as a whole is one that all sets share, so a disk of tebibytes of which nothing was
// written, or that was trimmed as a whole, costs next to nothing; any other page costs half a
// KiB. Runs goes over the pages that are there, where these are fewer than those of the range.
//
// Numbers are 0 and above. Ranges are from the first number to the one behind the last. There are
// no locks: who shares a set guards it.
package bitmap

import (
	"iter"
	"maps"
	"math/bits"
	"slices"
)

// pageBits is how many members a page of a set covers: 16 MiB of a disk, in blocks.
const pageBits = 64 * 64

type bitPage [64]uint64

// fullPage stands for every page of which all bits are set, so that a disk that is trimmed
// as a whole costs no memory to speak of. It never changes.
var fullPage = func() *bitPage {
	var p bitPage
	for i := range p {
		p[i] = ^uint64(0)
	}
	return &p
}()

// Set is a set of numbers of blocks or chunks. Pages come with the first member: what
// is never touched costs nothing, however large the disk is. The zero value is empty. A copy
// shares the pages, so only one of the two may be used from then on; Clone makes one of its own.
type Set struct{ pages map[int64]*bitPage }

// Has says whether i is a member.
func (b *Set) Has(i int64) bool {
	p := b.pages[i/pageBits]
	return p != nil && p[i%pageBits/64]>>(i%64)&1 != 0
}

// words calls f for each word of a page that members from up to to fall into.
func words(page, from, to int64, f func(word int64, mask uint64)) {
	first, last := max(from-page*pageBits, 0), min(to-page*pageBits, pageBits)
	for at := first; at < last; at = (at/64 + 1) * 64 {
		mask := ^uint64(0) << (at % 64)
		if end := last - at/64*64; end < 64 {
			mask &= 1<<end - 1
		}
		f(at/64, mask)
	}
}

// Add makes members of the numbers from from on and before to.
func (b *Set) Add(from, to int64) {
	if b.pages == nil {
		b.pages = make(map[int64]*bitPage)
	}
	for page := from / pageBits; page*pageBits < to; page++ {
		if from <= page*pageBits && to >= (page+1)*pageBits {
			b.pages[page] = fullPage
			continue
		}
		p := b.pages[page]
		if p == fullPage {
			continue
		}
		if p == nil {
			p = new(bitPage)
			b.pages[page] = p
		}
		words(page, from, to, func(w int64, mask uint64) { p[w] |= mask })
	}
}

// Remove takes the numbers from from on and before to out.
func (b *Set) Remove(from, to int64) {
	if len(b.pages) == 0 {
		return
	}
	for page := from / pageBits; page*pageBits < to; page++ {
		p := b.pages[page]
		if p == nil {
			continue
		}
		if from <= page*pageBits && to >= (page+1)*pageBits {
			delete(b.pages, page)
			continue
		}
		if p == fullPage {
			own := *p
			p = &own
			b.pages[page] = p
		}
		words(page, from, to, func(w int64, mask uint64) { p[w] &^= mask })
		if *p == (bitPage{}) {
			delete(b.pages, page)
		}
	}
}

// Find returns the first number from from on that is a member, or is not one; to if there
// is none before.
func (b *Set) Find(from, to int64, member bool) int64 {
	for at := from; at < to; {
		p := b.pages[at/pageBits]
		if p == nil && !member {
			return at
		}
		if p == nil || p == fullPage && !member {
			at = (at/pageBits + 1) * pageBits
			continue
		}
		w := p[at%pageBits/64]
		if !member {
			w = ^w
		}
		if w >>= at % 64; w != 0 {
			return min(at+int64(bits.TrailingZeros64(w)), to)
		}
		at = (at/64 + 1) * 64
	}
	return to
}

// Any says whether there is a member from from on and before to.
func (b *Set) Any(from, to int64) bool { return b.Find(from, to, true) < to }

// Runs are the longest runs of members within from and to, in order. The set may change
// behind the run that was yielded last.
func (b *Set) Runs(from, to int64) iter.Seq2[int64, int64] {
	return func(yield func(from, to int64) bool) {
		for first, end := range b.stretches(from, to) {
			for at := first; ; {
				start := b.Find(at, end, true)
				if start >= end {
					break
				}
				at = b.Find(start, end, false)
				if !yield(start, at) {
					return
				}
			}
		}
	}
}

// Gaps are the longest runs of numbers that are not members within from and to, in order. The
// set may change behind the run that was yielded last.
func (b *Set) Gaps(from, to int64) iter.Seq2[int64, int64] {
	return func(yield func(from, to int64) bool) {
		for at := from; at < to; {
			start := b.Find(at, to, false)
			at = b.Find(start, to, true)
			if start < at && !yield(start, at) {
				return
			}
		}
	}
}

// stretches are the parts of a range that there are pages for: a disk has many more pages
// than a guest touches between two flushes.
func (b *Set) stretches(from, to int64) iter.Seq2[int64, int64] {
	return func(yield func(from, to int64) bool) {
		if int64(len(b.pages)) >= (to-from)/pageBits {
			yield(from, to)
			return
		}
		pages := slices.Sorted(maps.Keys(b.pages))
		for i := 0; i < len(pages); i++ {
			first := pages[i]
			for i+1 < len(pages) && pages[i+1] == pages[i]+1 {
				i++
			}
			start, end := max(from, first*pageBits), min(to, (pages[i]+1)*pageBits)
			if start < end && !yield(start, end) {
				return
			}
		}
	}
}

// Count is how many members there are.
func (b *Set) Count() int64 {
	n := 0
	for _, p := range b.pages {
		for _, w := range p {
			n += bits.OnesCount64(w)
		}
	}
	return int64(n)
}

// Clone is a set of the same members, which changes on its own.
func (b *Set) Clone() Set {
	c := Set{make(map[int64]*bitPage, len(b.pages))}
	for i, p := range b.pages {
		if p != fullPage {
			own := *p
			p = &own
		}
		c.pages[i] = p
	}
	return c
}

// Union adds the members of o.
func (b *Set) Union(o *Set) {
	for i := range o.pages {
		for from, to := range o.Runs(i*pageBits, (i+1)*pageBits) {
			b.Add(from, to)
		}
	}
}

// Subtract removes the members of o.
func (b *Set) Subtract(o *Set) {
	for i, p := range o.pages {
		if b.pages[i] == nil {
			continue
		}
		if p == fullPage {
			delete(b.pages, i)
			continue
		}
		for from, to := range o.Runs(i*pageBits, (i+1)*pageBits) {
			b.Remove(from, to)
		}
	}
}
