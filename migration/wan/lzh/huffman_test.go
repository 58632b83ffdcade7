package lzh

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

func TestHuffman(t *testing.T) {
	var coder, decoder huffman
	rapid.Check(t, func(t *rapid.T) {
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 5))
		src := make([]byte, rapid.SampledFrom([]int{0, 1, 2, 3, 7, 8, 9, 100, 1000, blockBytes - 1, blockBytes, blockBytes + 1, 3 * blockBytes}).Draw(t, "length"))
		symbols, skew := rapid.IntRange(1, 256).Draw(t, "symbols"), rapid.Float64Range(0.01, 8).Draw(t, "skew")
		for i := range src {
			src[i] = byte(float64(symbols) * math.Pow(rnd.Float64(), skew))
		}
		if rapid.Bool().Draw(t, "dependent") {
			depend(src)
		}
		coded := coder.append([]byte("head"), src, rapid.Bool().Draw(t, "classed"))[4:]
		got, rest, ok := decoder.read(nil, append(coded, "rest"...), len(src))
		if !ok || !bytes.Equal(got, src) || string(rest) != "rest" {
			t.Fatalf("%d bytes of %d, %t, then %q", len(got), len(src), ok, rest)
		}
		if len(coded) > len(src)+len(src)/blockBytes+1 {
			t.Fatalf("%d bytes have become %d", len(src), len(coded))
		}
	})
}

// TestHuffmanIsShort holds codes against the entropy.
func TestHuffmanIsShort(t *testing.T) {
	var h huffman
	rnd := rand.New(rand.NewPCG(1, 5))
	for _, skew := range []float64{0.2, 1, 2, 8} {
		src := make([]byte, blockBytes)
		var counts [256]float64
		for i := range src {
			src[i] = byte(90 * math.Pow(rnd.Float64(), skew))
			counts[src[i]]++
		}
		entropy := 0.0
		for _, c := range counts {
			if c > 0 {
				entropy -= c * math.Log2(c/blockBytes) / 8
			}
		}
		if n := len(h.append(nil, src, true)); float64(n) > entropy*1.04+150 {
			t.Errorf("skew %v: %d bytes, entropy %.0f", skew, n, entropy)
		}
	}
}

// depend makes bytes depend on those before.
func depend(src []byte) {
	for i := range src[min(1, len(src)):] {
		if before := src[i]; before >= 64 {
			src[i+1] = before&^63 | src[i+1]>>2
		}
	}
}

// classed is bytes of three classes, in runs.
func classed(rnd *rand.Rand, n int) []byte {
	src := make([]byte, n)
	for i := range src {
		src[i] = []byte{0, 'a', 0xc0}[i/32%3] + byte(rnd.IntN(8))
	}
	return src
}

// TestClassesAreShort holds codes by the byte before against one for all.
func TestClassesAreShort(t *testing.T) {
	var h huffman
	rnd := rand.New(rand.NewPCG(2, 5))
	for _, n := range []int{classLeast - 1, classLeast, 8 << 10, blockBytes} {
		src := classed(rnd, n)
		coded := h.append(nil, src, true)
		divided := coded[0] == blockClassed
		if want := n >= 8<<10; divided != want && n != classLeast { // there it is a matter of taste
			t.Errorf("%d bytes: divided %t, want %t", n, divided, want)
		}
		if got := float64(len(coded)) / float64(n); n >= 8<<10 && got > 0.5 {
			t.Errorf("%d bytes: %.3f of them", n, got)
		}
		got, rest, ok := h.read(nil, coded, n)
		if !ok || len(rest) > 0 || !bytes.Equal(got, src) {
			t.Errorf("%d bytes: %t, %d left, or others", n, ok, len(rest))
		}
		// What is cut off or has a fault must not be read beyond its end.
		for range 200 {
			bad := bytes.Clone(coded[:1+rnd.IntN(len(coded))])
			bad[rnd.IntN(min(len(bad), 300))] ^= byte(1 << rnd.IntN(8))
			if got, _, ok := h.read(nil, bad, n); ok && len(got) != n {
				t.Errorf("%d bytes of %d", len(got), n)
			}
		}
		// One code for all is as it was, after codes for classes.
		same := bytes.Repeat([]byte("0123456789abcdef;"), 99)
		if got, _, ok := h.read(nil, h.append(nil, same, true), len(same)); !ok || !bytes.Equal(got, same) {
			t.Errorf("one code after %d bytes: %t, or others", n, ok)
		}
	}
}

// digits are those of hexadecimal numbers, with something between them at every so many.
func digits(rnd *rand.Rand, n, every int) []byte {
	src := make([]byte, n)
	for i := range src {
		if src[i] = "0123456789abcdef"[rnd.IntN(16)]; i%every == every-1 {
			src[i] = ";=\x00"[rnd.IntN(3)]
		}
	}
	return src
}

// TestDigitsAreShort: digits take half a byte, and little more with what is between them.
func TestDigitsAreShort(t *testing.T) {
	var h huffman
	rnd := rand.New(rand.NewPCG(3, 5))
	same := func(src []byte) []byte {
		t.Helper()
		coded := h.append(nil, src, true)
		if got, rest, ok := h.read(nil, coded, len(src)); !ok || len(rest) > 0 || !bytes.Equal(got, src) {
			t.Errorf("%d bytes: %t, %d left, or others", len(src), ok, len(rest))
		}
		return coded
	}
	for _, n := range []int{classLeast + 100, classLeast + 101, blockBytes - 3, blockBytes, 3*blockBytes + 5} {
		for _, every := range []int{150, 500, n + 1} {
			src := digits(rnd, n, every)
			coded := same(src)
			// 12 bits for each that is another, and tables.
			if most := n/2 + n/every*12/8 + (n/blockBytes+1)*250; coded[0] != blockFew || len(coded) > most {
				t.Errorf("%d digits, another at every %d: %d bytes, at most %d, as %d", n, every, len(coded), most, coded[0])
			}
			for range 100 {
				bad := bytes.Clone(coded[:1+rnd.IntN(len(coded))])
				bad[rnd.IntN(len(bad))] ^= byte(1 << rnd.IntN(8))
				if got, _, ok := h.read(nil, bad, n); ok && len(got) != n {
					t.Errorf("%d bytes of %d", len(got), n)
				}
			}
		}
	}
	// What comes after digits is only looked at here and there: others may be where nobody looks.
	first, second := digits(rnd, blockBytes, 500), digits(rnd, blockBytes, 500)
	for i := range second {
		if i%(8*sampled) >= 8 {
			second[i] = byte(i % 251)
		}
	}
	same(append(append(first, second...), make([]byte, blockBytes)...))
	if skewed := same(bytes.Repeat([]byte("0123456789abcdef0000000000000000000000000000000000000000"), 100)); skewed[0] == blockFew {
		t.Error("digits of which one is most are told as if all were as many")
	}
}
