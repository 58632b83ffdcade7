package record

import (
	"testing"

	"pgregory.net/rapid"
)

// TestEveryByteCounts changes one byte of a page, the version or the number: each is seen.
func TestEveryByteCounts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := make([]byte, PageSize)
		block, version := rapid.Uint64().Draw(t, "block"), rapid.Uint64().Draw(t, "version")
		Fill(p, block, version)
		if !Intact(p, block, version) {
			t.Fatal("a page as it was filled is bad")
		}
		if Intact(p, block, version+1) || Intact(p, block+1, version) {
			t.Fatal("another page or version is taken for it")
		}
		p[rapid.IntRange(0, PageSize-1).Draw(t, "at")] ^= byte(1 << rapid.IntRange(0, 7).Draw(t, "bit"))
		if Intact(p, block, version) {
			t.Fatal("a changed bit is not seen")
		}
	})
}
