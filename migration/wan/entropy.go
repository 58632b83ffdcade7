package wan

import "encoding/binary"

// random says whether a page looks like one that no compressor makes shorter: compressed or
// encrypted already. Among 512 bytes from all over the page, it counts how often each value
// occurs, and looks for words that occur twice. Of random ones, the expected sum of squares of
// the counts is 512 + 512*511/256 = 1534, give or take 32; of text, code and tables it is above
// 3000; and no word of 32 bits occurs twice. A page that is wrongly called random goes as it is,
// so the bound is near.
func random(page *[pageSize]byte) bool {
	const (
		samples = 512
		step    = 64 // bytes between groups of samples
		group   = samples * step / pageSize
		bound   = samples + samples*(samples-1)/256 + 160
		slots   = 512
	)
	var counts [256]uint16
	var seen [slots]uint32
	squares, twice := 0, 0
	for at := 0; at < pageSize; at += step {
		// From another place of the line each time: records have their likes at like places.
		from := at + at/step*group%(step-group)
		for _, c := range page[from : from+group] {
			squares += 2*int(counts[c]) + 1
			counts[c]++
		}
		for i := from; i < from+group; i += 4 {
			w := binary.LittleEndian.Uint32(page[i:])
			slot := &seen[w*0x9e3779b1>>23]
			if *slot == w {
				twice++
			}
			*slot = w
		}
		if at == pageSize/8 && squares > 4*samples/8 {
			return false
		}
	}
	return squares < bound && twice < 2
}
