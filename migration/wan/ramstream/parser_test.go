package ramstream

import (
	"bytes"
	"fmt"
	"testing"

	"heliotrope/migration/wan/ramstream/golden"
	"pgregory.net/rapid"
)

// capture is a stream that QEMU made.
func capture(t testing.TB, name string) []byte {
	t.Helper()
	stream, err := golden.Stream(name)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// rebuild writes what parser makes of stream, cut where cut says; "" is an error.
func rebuild(p *Parser, stream []byte, cut func(left int) int, each func(Token)) error {
	var out []byte
	take := func(t Token) error {
		head := AppendHead(nil, t.Kind, t.Block, t.Spelled, t.Offset)
		if t.Kind != Other && !bytes.Equal(append(head, t.Data...), t.Raw) {
			return fmt.Errorf("%+v is not what stands for it", t)
		}
		out = append(out, t.Raw...)
		each(t)
		return nil
	}
	for left := stream; len(left) > 0; {
		n := cut(len(left))
		for in := left[:n]; ; {
			t, rest, ok := p.Next(in)
			if !ok {
				break
			}
			if err := take(t); err != nil {
				return err
			}
			in = rest
		}
		left = left[n:]
		if p.Ended() && len(left) > 0 {
			return fmt.Errorf("%d bytes before its end it is said to have ended", len(left))
		}
		if held := len(stream) - len(left) - len(out); held != p.held() || held > 2<<maxPageBits {
			return fmt.Errorf("held back: got %d, want %d", held, p.held())
		}
	}
	if t, ok := p.Drain(); ok {
		out = append(out, t.Raw...)
	}
	if !bytes.Equal(out, stream) {
		return fmt.Errorf("%d bytes came out, not the %d that went in", len(out), len(stream))
	}
	return nil
}

func whole(left int) int { return left }

func TestCaptures(t *testing.T) {
	for name, want := range map[string]struct{ pages, zeros int }{
		"qemu10-bios":   {114, 4112}, // as QEMU counts them
		"qemu10-rounds": {650, 1742},
		"qemu10-xbzrle": {543, 1742}, // and those that are encoded
		"qemu72-rounds": {541, 1744},
	} {
		t.Run(name, func(t *testing.T) {
			var p Parser
			var pages, zeros, spelled int
			err := rebuild(&p, capture(t, name), whole, func(tok Token) {
				switch tok.Kind {
				case Page:
					pages++
				case Zero:
					zeros++
				}
				if tok.Spelled {
					spelled++
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if !p.Whole() || !p.Ended() {
				t.Errorf("not parsed to its end: lost %d times, state %d", p.Lost(), p.state)
			}
			if pages != want.pages || zeros != want.zeros || spelled == 0 {
				t.Errorf("got %d pages, %d of zeros, %d with a name, want %+v", pages, zeros, spelled, want)
			}
		})
	}
}

func TestCapturesInPieces(t *testing.T) {
	stream := capture(t, "qemu10-bios")
	rapid.Check(t, func(t *rapid.T) {
		var p Parser
		sizes := rapid.SliceOfN(rapid.IntRange(1, 9000), 2, 8).Draw(t, "sizes")
		i, pages := 0, 0
		err := rebuild(&p, stream, func(left int) int { i++; return min(left, sizes[i%len(sizes)]) }, func(tok Token) {
			if tok.Kind == Page {
				pages++
			}
		})
		if err != nil || !p.Whole() || pages != 114 {
			t.Fatalf("%v, whole: %t, %d pages", err, p.Whole(), pages)
		}
	})
}

// TestFindsItsWay puts bytes that no parser knows into a stream, at the end of some section.
func TestFindsItsWay(t *testing.T) {
	stream := capture(t, "qemu10-rounds")
	var p Parser
	var ends []int // of parts of RAM
	at := 0
	err := rebuild(&p, stream, whole, func(tok Token) {
		if at += len(tok.Raw); bytes.Equal(tok.Raw, []byte{markFooter, 0, 0, 0, byte(p.ram)}) && p.state == atSection {
			ends = append(ends, at)
		}
	})
	if err != nil || len(ends) < 4 {
		t.Fatal(err, ends)
	}
	rapid.Check(t, func(t *rapid.T) {
		end := rapid.SampledFrom(ends[:len(ends)-2]).Draw(t, "where")
		var strange []byte
		switch rapid.IntRange(0, 2).Draw(t, "what") {
		case 0: // noise
			first := rapid.ByteRange(markCommand+1, markFooter-1).Draw(t, "first") // no mark
			strange = append([]byte{first}, rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "noise")...)
			strange = append(strange, markFooter, 0, 0, 0, 99)
		case 1: // a part of another live section
			strange = append([]byte{markPart, 0, 0, 0, 7}, rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "part")...)
			strange = append(strange, markFooter, 0, 0, 0, 7)
		case 2: // its begin
			strange = append([]byte{markStart, 0, 0, 0, 7, 3, 'x', 'y', 'z', 0, 0, 0, 0, 0, 0, 0, 1}, rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "begin")...)
			strange = append(strange, markFooter, 0, 0, 0, 7)
		}
		mixed := bytes.Join([][]byte{stream[:end], strange, stream[end:]}, nil)
		var p Parser
		pages := 0
		size := rapid.IntRange(100, 90000).Draw(t, "size")
		err := rebuild(&p, mixed, func(left int) int { return min(left, size) }, func(tok Token) {
			if tok.Kind == Page {
				pages++
			}
		})
		if err != nil || pages != 650 {
			t.Fatalf("%v, %d pages, lost %d times", err, pages, p.Lost())
		}
	})
}

func TestDrainInAPage(t *testing.T) {
	stream := capture(t, "qemu10-bios")
	at, pages, last := 0, 0, 0
	var p Parser
	err := rebuild(&p, stream, whole, func(tok Token) {
		if at += len(tok.Raw); tok.Kind == Page {
			pages, last = pages+1, at
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, back := range []int{1, 100, 4095, 4096} {
		var p Parser
		var out []byte
		got := 0
		feed := func(in []byte) {
			for {
				t, rest, ok := p.Next(in)
				if !ok {
					return
				}
				if out = append(out, t.Raw...); t.Kind == Page {
					got++
				}
				in = rest
			}
		}
		feed(stream[:last-back])
		if t, ok := p.Drain(); ok {
			out = append(out, t.Raw...)
		}
		if len(out) != last-back {
			t.Errorf("%d bytes before a page's end: %d are held back", back, last-back-len(out))
		}
		feed(stream[last-back:])
		if !bytes.Equal(out, stream) || got != pages-1 {
			t.Errorf("%d bytes before a page's end: got %d pages of %d", back, got, pages)
		}
	}
}

// TestVariants has forms that captures of ours do not.
func TestVariants(t *testing.T) {
	page := bytes.Repeat([]byte{7}, 4096)
	const (
		head     = "QEVM\x00\x00\x00\x03"
		ram      = "\x01\x00\x00\x00\x02\x03ram\x00\x00\x00\x00\x00\x00\x00\x04"
		size     = "\x00\x00\x00\x00\x00\x00\x20\x04" // 8 KiB
		block    = "\x01m\x00\x00\x00\x00\x00\x00\x20\x00"
		eos      = "\x00\x00\x00\x00\x00\x00\x00\x10"
		footer   = "\x7e\x00\x00\x00\x02"
		part     = "\x02\x00\x00\x00\x02"
		end      = "\x03\x00\x00\x00\x02"
		eof      = "\x00"
		ignore   = "\x07\x00\x00\x00\x02pc\x05\x1aconfiguration/capabilities\x00\x00\x00\x01\x00\x00\x00\x01\x0fx-ignore-shared"
		pageBits = "\x07\x00\x00\x00\x02pc\x05\x1econfiguration/target-page-bits\x00\x00\x00\x01\x00\x00\x00\x0d"
		pageSize = "\x00\x00\x00\x00\x00\x20\x00\x00"
		flush    = "\x00\x00\x00\x00\x00\x00\x02\x00"
	)
	record := "\x00\x00\x00\x00\x00\x00\x10\x08\x01m" + string(page)
	eight := "\x00\x00\x00\x00\x00\x00\x20\x08\x01m" + string(page) + string(page)
	for name, stream := range map[string]string{
		"plain":      head + ram + size + block + eos + footer + part + record + eos + footer + end + eos + footer + eof,
		"no footers": head + ram + size + block + eos + part + record + eos + end + eos + eof,
		"multifd flush": head + ram + size + block + flush + eos + footer + part + record + flush + eos + footer + end + eos + footer +
			eof,
		"postcopy, huge pages": head + ram + size + block + pageSize + eos + footer + part + record + eos + footer + end + eos + footer + eof,
		"addresses": head + ignore + ram + size + block + "\x00\x00\x00\x00\x00\x00\x00\x00" + eos + footer + part + record + eos +
			footer + end + eos + footer + eof,
		"pages of 8 KiB": head + pageBits + ram + size + block + eos + footer + part + eight + eos + footer + end + eos + footer + eof,
		"package":        head + ram + size + block + eos + footer + "\x08\x00\x07\x00\x04\x00\x00\x00\x09\x04package!" + part + record + eos + footer + eof,
	} {
		var p Parser
		pages := 0
		err := rebuild(&p, []byte(stream), whole, func(tok Token) {
			if tok.Kind == Page {
				pages++
			}
		})
		if err != nil || !p.Whole() || pages != 1 {
			t.Errorf("%s: %v, whole: %t, lost %d times, %d pages", name, err, p.Whole(), p.Lost(), pages)
		}
	}
}

func FuzzParser(f *testing.F) {
	stream := capture(f, "qemu10-rounds")
	f.Add(stream[:5000], uint16(4096))
	f.Add(stream[len(stream)-3000:], uint16(1))
	f.Add(capture(f, "qemu72-rounds")[:300], uint16(7))
	f.Fuzz(func(t *testing.T, data []byte, size uint16) {
		var p Parser
		if err := rebuild(&p, data, func(left int) int { return min(left, int(size)+1) }, func(Token) {}); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkParser(b *testing.B) {
	stream := capture(b, "qemu10-rounds")
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	for b.Loop() {
		var p Parser
		for left := stream; len(left) > 0; {
			n := min(len(left), 256<<10)
			for in := left[:n]; ; {
				_, rest, ok := p.Next(in)
				if !ok {
					break
				}
				in = rest
			}
			left = left[n:]
		}
	}
}
