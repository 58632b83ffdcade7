package ramstream

import "encoding/binary"

// state is what the parser expects next.
type state uint8

const (
	atStart         state = iota // magic and version
	atConfiguration              // perhaps, or a section
	inConfiguration              // its subsections, or a section
	atSection
	atBlocks    // an entry of the list of RAM blocks
	afterBlocks // a word that belongs to the list's last entry, or a record
	atRecord    // of the section "ram"
	atEnd       // behind the last section: perhaps the description
	scanning    // for the footer of section, or for RAM
	passing     // everything, to the end
)

// unknownBytes is what a state answers about bytes that it does not understand.
const unknownBytes = 0

// Parser cuts a stream into tokens. The zero value is ready.
type Parser struct {
	state    state
	pageSize int
	carry    []byte // the begin of a token whose end has not arrived
	taken    bool   // carry was handed out
	skip     uint64 // bytes to pass on before state goes on
	lost     int

	ram     uint32 // the section's number
	hasRAM  bool
	told    bool   // the description's head, behind which nothing comes but the description
	blocks  uint64 // bytes of RAM whose blocks are still to be listed
	address bool   // entries of the list have an address (x-ignore-shared)

	section    uint32 // scanning: whose footer; known if inSection
	inSection  bool
	high, last uint64 // scanning: the last 16 bytes

	block    [maxName]byte
	blockLen int
}

// Lost is how often the parser met bytes it did not understand and had to look for RAM.
func (p *Parser) Lost() int { return p.lost }

// Whole says whether the stream so far is one that the parser understood to its very end.
func (p *Parser) Whole() bool {
	return p.lost == 0 && p.hasRAM && p.skip == 0 && p.held() == 0 && (p.state == passing || p.state == atEnd)
}

// Ended says whether all has come: the description too, which is the last that a hypervisor sends. It
// may never be said of a stream that is whole, since not all have one.
func (p *Parser) Ended() bool { return p.told && p.skip == 0 && p.held() == 0 }

func (p *Parser) held() int {
	if p.taken {
		return 0
	}
	return len(p.carry)
}

// Next returns the first token of what was held back and in, and the rest of in. Without
// a token in it, ok is false, and what there is of it is held back.
func (p *Parser) Next(in []byte) (t Token, rest []byte, ok bool) {
	if p.pageSize == 0 {
		p.pageSize = DefaultPageSize
	}
	if p.taken {
		p.carry, p.taken = p.carry[:0], false
	}
	if len(p.carry) > 0 {
		return p.complete(in)
	}
	if len(in) == 0 {
		return Token{}, nil, false
	}
	if n, ok := p.passOn(in); ok {
		return Token{Raw: in[:n]}, in[n:], true
	}
	n := p.token(in, &t)
	switch {
	case n == unknownBytes:
		p.lose()
		n = p.scan(in)
		return Token{Raw: in[:n]}, in[n:], true
	case n <= len(in):
		t.Raw = in[:n]
		return t, in[n:], true
	}
	p.carry = append(p.carry, in...)
	return Token{}, nil, false
}

// complete adds to what is held back as much of in as its token needs.
func (p *Parser) complete(in []byte) (t Token, rest []byte, ok bool) {
	for {
		n := p.token(p.carry, &t)
		switch {
		case n < len(p.carry):
			p.lose()
			p.scan(p.carry) // shorter than what it looks for
			p.taken = true
			return Token{Raw: p.carry}, in, true
		case n == len(p.carry):
			t.Raw, p.taken = p.carry, true
			return t, in, true
		case len(in) == 0:
			return Token{}, nil, false
		}
		k := min(n-len(p.carry), len(in))
		p.carry = append(p.carry, in[:k]...)
		in = in[k:]
	}
}

// passOn says how many bytes of b are no matter of state.
func (p *Parser) passOn(b []byte) (n int, ok bool) {
	switch {
	case p.skip > 0:
		n = int(min(p.skip, uint64(len(b))))
		p.skip -= uint64(n)
		return n, true
	case p.state == passing:
		return len(b), true
	case p.state == scanning:
		return p.scan(b), true
	}
	return 0, false
}

// Drain gives up what is held back: it is to be passed on as it is. A stream that stands
// still may have been misunderstood, and whoever waits for its bytes would wait for ever.
func (p *Parser) Drain() (t Token, ok bool) {
	if p.held() == 0 {
		return Token{}, false
	}
	p.taken = true
	// If the token is a page, its content and the records behind it are still to come.
	var page Token
	if n := p.token(p.carry, &page); p.state == atRecord && n > p.pageSize {
		if head := n - p.pageSize; len(p.carry) >= head {
			p.skip = uint64(n - len(p.carry))
			p.spell(p.carry[8:head])
			return Token{Raw: p.carry}, true
		}
	}
	p.lose()
	p.scan(p.carry)
	return Token{Raw: p.carry}, true
}

func (p *Parser) lose() {
	p.lost++
	p.look(0, false)
}

// look begins to scan.
func (p *Parser) look(section uint32, known bool) {
	p.state, p.section, p.inSection, p.high, p.last = scanning, section, known, 0, 0
}

// scan looks for a place where the parser knows its way again, and returns how many bytes
// lie before it: all, if there is none.
func (p *Parser) scan(b []byte) int {
	const (
		ramName    = 3<<24 | 'r'<<16 | 'a'<<8 | 'm'
		ramEnd     = ramVersion // instance 0 before it
		fiveBytes  = 1<<40 - 1
		footerByte = 9 // bytes before a part's last one
	)
	footer, part, end := uint64(markFooter)<<32|uint64(p.section), uint64(markPart)<<32|uint64(p.ram), uint64(markEnd)<<32|uint64(p.ram)
	high, last := p.high, p.last
	for i, c := range b {
		high, last = high<<8|last>>56, last<<8|uint64(c)
		switch five := last & fiveBytes; {
		case p.inSection && five == footer:
			p.state = atSection
		case p.hasRAM && (five == part || five == end) && byte(high>>(8*(footerByte-8))) == markFooter:
			p.state = atRecord
		case last == ramEnd && uint32(high) == ramName:
			p.ram, p.hasRAM, p.state = uint32(high>>32), true, atRecord
		default:
			continue
		}
		return i + 1
	}
	p.high, p.last = high, last
	return len(b)
}

// token returns the length of the token that b begins with, or, if that is more than
// len(b), how much of it must be there to learn more. If it is all there, the parser has
// taken it.
func (p *Parser) token(b []byte, t *Token) int {
	switch p.state {
	case atRecord:
		return p.record(b, t)
	case atStart:
		return p.start(b)
	case atConfiguration:
		if b[0] == markConfiguration {
			return p.machine(b)
		}
		return p.mark(b)
	case inConfiguration:
		if b[0] == markSubsection {
			return p.subsection(b)
		}
		return p.mark(b)
	case atBlocks:
		return p.entry(b)
	case afterBlocks:
		return p.afterEntries(b, t)
	case atEnd:
		return p.description(b)
	default:
		return p.mark(b)
	}
}

// record takes a record of the section "ram".
func (p *Parser) record(b []byte, t *Token) int {
	if len(b) < 8 {
		return 8
	}
	word := binary.BigEndian.Uint64(b)
	flags := word & uint64(p.pageSize-1)
	switch flags {
	case flagEOS:
		p.state = atSection
		return 8
	case flagHook, flagMultifdFlush:
		return 8
	case flagMemSize:
		p.blocks = word &^ flagMemSize
		p.state = atBlocks
		if p.blocks == 0 {
			p.state = atRecord
		}
		return 8
	}
	n := 8
	if flags&flagContinue == 0 {
		if len(b) < 9 {
			return 9
		}
		if n = 9 + int(b[8]); n == 9 {
			return unknownBytes
		}
	} else if p.blockLen == 0 {
		return unknownBytes
	}
	head := n
	switch flags &^ flagContinue {
	case flagPage:
		n += p.pageSize
	case flagZero:
		n++
	case flagXBZRLE:
		n = p.encoded(b, n, 1, 2)
	case flagCompress:
		n = p.encoded(b, n, 0, 4)
	default:
		return unknownBytes
	}
	if n > len(b) || n == unknownBytes {
		return n
	}
	p.spell(b[8:head])
	p.page(t, b[:n], head, word&^uint64(p.pageSize-1))
	return n
}

// page makes the token of a record, if it is a page that AppendHead knows.
func (p *Parser) page(t *Token, b []byte, head int, offset uint64) {
	switch flags := b[7] &^ flagContinue; {
	case b[6]&(allFlags>>8) != 0 || flags&flagXBZRLE != 0 || flags&flagZero != 0 && b[head] != 0:
		return
	case flags&flagZero != 0:
		t.Kind = Zero
	default:
		t.Kind, t.Data = Page, b[head:]
	}
	t.Block, t.Spelled, t.Offset = p.block[:p.blockLen], head > 8, offset
}

// encoded is the end of a page that QEMU has encoded, behind n bytes: there may be a tag,
// 1, and there is a length, of that many bytes.
func (p *Parser) encoded(b []byte, n, tag, length int) int {
	if len(b) < n+tag+length {
		return n + tag + length
	}
	if tag > 0 && b[n] != 1 {
		return unknownBytes
	}
	size := 0
	for _, c := range b[n+tag:][:length] {
		size = size<<8 | int(c)
	}
	if size > 2*p.pageSize {
		return unknownBytes
	}
	return n + tag + length + size
}

// spell takes the name of a block with its length before it; without it, it stays the same.
func (p *Parser) spell(name []byte) {
	if len(name) > 0 {
		p.blockLen = copy(p.block[:], name[1:])
	}
}
