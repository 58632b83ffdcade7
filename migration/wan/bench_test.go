package wan

import (
	"syscall"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"github.com/zeebo/xxh3"
)

// cpu reports MB of b.N turns of size bytes per second of this process's processor time,
// which others on the machine do not change as much as they do the clock.
func cpu(b *testing.B, size int) func() {
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	before := used()
	return func() {
		b.ReportMetric(float64(size)*float64(b.N)/1e6/(used()-before).Seconds(), "cpuMB/s")
	}
}

func BenchmarkEncode(b *testing.B) {
	stream := moved(16384, 6, 1)
	for l := range Level(Levels) {
		b.Run(l.String(), func(b *testing.B) {
			defer cpu(b, len(stream))()
			frame := make([]byte, 0, MaxFrame)
			for b.Loop() {
				var p Packer
				enc := NewEncoder(config, new(Batch), func(batch *Batch) (*Batch, error) {
					frame = p.Pack(frame[:0], batch)
					batch.Reset()
					return batch, nil
				})
				enc.SetLevel(l)
				for left := stream; len(left) > 0; {
					n := min(len(left), 256<<10)
					enc.Write(left[:n])
					left = left[n:]
				}
				enc.Drain()
			}
		})
	}
}

// BenchmarkClassify is Encode without compression.
func BenchmarkClassify(b *testing.B) {
	stream := moved(16384, 6, 1)
	defer cpu(b, len(stream))()
	for b.Loop() {
		enc := NewEncoder(config, new(Batch), func(batch *Batch) (*Batch, error) { batch.Reset(); return batch, nil })
		enc.Write(stream)
		enc.Drain()
	}
}

func BenchmarkDecode(b *testing.B) {
	stream := moved(16384, 6, 1)
	for l := range Level(Levels) {
		b.Run(l.String(), func(b *testing.B) {
			p := newPair(config, config)
			p.keep = true
			p.enc.SetLevel(l)
			if err := p.same(stream, whole); err != nil {
				b.Fatal(err)
			}
			defer cpu(b, len(stream))()
			for b.Loop() {
				p.dec = NewDecoder(config)
				for _, f := range p.frames {
					p.out = p.out[:0]
					if err := p.arrive(f); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkCaptures is Encode of what QEMU sent, a small guest.
func BenchmarkCaptures(b *testing.B) {
	for _, name := range []string{"qemu10-bios", "qemu10-rounds", "qemu72-rounds"} {
		stream := capture(b, name)
		b.Run(name, func(b *testing.B) {
			defer cpu(b, len(stream))()
			var p Packer
			frame := make([]byte, 0, MaxFrame)
			for b.Loop() {
				enc := NewEncoder(config, new(Batch), func(batch *Batch) (*Batch, error) {
					frame = p.Pack(frame[:0], batch)
					batch.Reset()
					return batch, nil
				})
				enc.Write(stream)
				enc.Drain()
			}
		})
	}
}

func BenchmarkDelta(b *testing.B) {
	g := newGuest(64, 1)
	changed := g.pages[0]
	changed[100]++
	changed[3000] += 3
	var delta []byte
	defer cpu(b, pageSize)()
	for b.Loop() {
		delta, _ = appendDelta(delta[:0], &g.pages[0], &changed)
	}
}

func BenchmarkHashes(b *testing.B) {
	g := newGuest(64, 1)
	b.Run("xxh3", func(b *testing.B) {
		defer cpu(b, pageSize)()
		for b.Loop() {
			xxh3.Hash(g.pages[0][:])
		}
	})
	b.Run("xxh3 stream", func(b *testing.B) {
		h := xxh3.NewSeed(1)
		defer cpu(b, pageSize)()
		for b.Loop() {
			h.Write(g.pages[0][:])
		}
	})
	b.Run("keyed blake3", func(b *testing.B) {
		h, _ := blake3.NewKeyed(make([]byte, 32))
		defer cpu(b, pageSize)()
		for b.Loop() {
			digest(h, &g.pages[0])
		}
	})
	b.Run("random", func(b *testing.B) {
		defer cpu(b, pageSize)()
		for b.Loop() {
			random(&g.pages[64-1])
		}
	})
}
