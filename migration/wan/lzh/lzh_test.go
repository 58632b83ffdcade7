package lzh

import (
	"bytes"
	"heliotrope/migration/wan/ramstream/golden"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/s2"
	"pgregory.net/rapid"
)

func TestPacker(t *testing.T) {
	text, err := golden.Stream("qemu10-rounds")
	if err != nil {
		t.Fatal(err)
	}
	var packer Packer
	var unpacker Unpacker
	try := func(t interface{ Fatalf(string, ...any) }, data []byte) int {
		packed := packer.Append(nil, data)
		got, err := unpacker.Unpack(make([]byte, 0, len(data)+Slack), packed, len(data))
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("unpack %d bytes: %v, or others", len(data), err)
		}
		return len(packed)
	}
	whole := text[:min(len(text), MaxColumn)]
	fast, light := try(t, whole), len(s2.Encode(nil, whole))
	t.Logf("%d bytes are %d, and %d by S2 alone", len(whole), fast, light)
	if fast > light*9/10 {
		t.Errorf("%d bytes are %d, and %d by S2 alone", len(whole), fast, light)
	}
	rapid.Check(t, func(t *rapid.T) {
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 4))
		values := rapid.IntRange(1, 256).Draw(t, "values")
		var data []byte
		for n := rapid.IntRange(1, 300000).Draw(t, "length"); len(data) < n; {
			switch rnd.IntN(4) {
			case 0:
				for range rnd.IntN(100) {
					data = append(data, byte(rnd.IntN(values)))
				}
			case 1: // long, and near or far
				from := rnd.IntN(len(data) + 1)
				data = append(data, data[from:min(len(data), from+1+rnd.IntN(70000))]...)
			case 2:
				from := rnd.IntN(len(data) + 1)
				data = append(data, data[from:min(len(data), from+4+rnd.IntN(20))]...)
			case 3:
				data = append(data, make([]byte, rnd.IntN(10000))...)
			}
			data = append(data, byte(rnd.IntN(values)))
		}
		try(t, data)
	})
}

func FuzzUnpacker(f *testing.F) {
	var s Packer
	rnd := rand.New(rand.NewPCG(2, 5))
	for _, text := range []string{"a", string(classed(rnd, 4<<10)), string(digits(rnd, 4<<10, 200)), "abcabcabcabcabcabcabcabcabcabcabcabcabc, abc", string(make([]byte, 70000))} {
		f.Add(s.Append(nil, []byte(text)), len(text))
	}
	var p Unpacker
	f.Fuzz(func(t *testing.T, packed []byte, n int) {
		n = min(max(n, 0), MaxColumn)
		if got, err := p.Unpack(make([]byte, 0, n+Slack), packed, n); err == nil && len(got) != n {
			t.Errorf("%d bytes of %d", len(got), n)
		}
	})
}
