package wan

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
		coded := coder.append([]byte("head"), src)[4:]
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
		if n := len(h.append(nil, src)); float64(n) > entropy*1.04+150 {
			t.Errorf("skew %v: %d bytes, entropy %.0f", skew, n, entropy)
		}
	}
}
