package ramstream

import (
	"bytes"
	"encoding/binary"
)

// start takes magic and version. What begins otherwise is not for us.
func (p *Parser) start(b []byte) int {
	if len(b) < 8 {
		for i, c := range b {
			if i < 4 && c != byte(uint32(magic)>>(24-8*i)) {
				return p.pass(len(b))
			}
		}
		return 8
	}
	if binary.BigEndian.Uint32(b) != magic || binary.BigEndian.Uint32(b[4:]) != version {
		return p.pass(8)
	}
	p.state = atConfiguration
	return 8
}

// pass takes n bytes and passes everything behind them on.
func (p *Parser) pass(n int) int {
	p.state = passing
	return n
}

// machine takes the configuration's head: the name of the machine.
func (p *Parser) machine(b []byte) int {
	if len(b) < 5 {
		return 5
	}
	n := binary.BigEndian.Uint32(b[1:])
	if n > maxMachineName {
		return unknownBytes
	}
	p.skip, p.state = uint64(n), inConfiguration
	return 5
}

// subsection takes one of the configuration's. Those that it knows are all there are.
func (p *Parser) subsection(b []byte) int {
	if len(b) < 2 {
		return 2
	}
	head := 2 + int(b[1]) + 4
	if len(b) < head {
		return head
	}
	switch name := b[2 : head-4]; string(name) {
	case "configuration/target-page-bits":
		if len(b) < head+4 {
			return head + 4
		}
		bits := binary.BigEndian.Uint32(b[head:])
		if bits < minPageBits || bits > maxPageBits {
			return unknownBytes
		}
		p.pageSize = 1 << bits
		return head + 4
	case "configuration/uuid":
		p.skip = 16
		return head
	case "configuration/capabilities":
		return p.capabilities(b, head)
	}
	return unknownBytes
}

// capabilities takes the list of those on which both ends must agree.
func (p *Parser) capabilities(b []byte, n int) int {
	if len(b) < n+4 {
		return n + 4
	}
	count := binary.BigEndian.Uint32(b[n:])
	if count > 64 {
		return unknownBytes
	}
	n += 4
	mapped, address := false, p.address
	for range count {
		if len(b) < n+1 {
			return n + 1
		}
		end := n + 1 + int(b[n])
		if len(b) < end {
			return end
		}
		switch string(b[n+1 : end]) {
		case "x-ignore-shared":
			address = true
		case "mapped-ram":
			mapped = true
		}
		n = end
	}
	p.address = address
	if mapped {
		return p.pass(n)
	}
	return n
}

// mark takes the begin of a section, or what stands between two.
func (p *Parser) mark(b []byte) int {
	switch b[0] {
	case markStart, markFull:
		return p.begin(b)
	case markPart, markEnd:
		if len(b) < 5 {
			return 5
		}
		if id := binary.BigEndian.Uint32(b[1:]); p.hasRAM && id == p.ram {
			p.state = atRecord
		} else {
			p.look(id, true)
		}
		return 5
	case markFooter:
		p.state = atSection
		return 5
	case markCommand:
		return p.command(b)
	case markEOF:
		p.state = atEnd
		return 1
	}
	return unknownBytes
}

// begin takes the head of a section's first part: its number, name, instance and version.
func (p *Parser) begin(b []byte) int {
	if len(b) < 6 {
		return 6
	}
	n := 6 + int(b[5]) + 8
	if n == 14 {
		return unknownBytes
	}
	if len(b) < n {
		return n
	}
	id, name := binary.BigEndian.Uint32(b[1:]), b[6:n-8]
	if b[0] == markStart && string(name) == "ram" && binary.BigEndian.Uint32(b[n-4:]) == ramVersion {
		p.ram, p.hasRAM, p.state = id, true, atRecord
	} else {
		p.look(id, true)
	}
	return n
}

// command takes a command to the destination.
func (p *Parser) command(b []byte) int {
	if len(b) < 5 {
		return 5
	}
	n := binary.BigEndian.Uint16(b[3:])
	if binary.BigEndian.Uint16(b[1:]) == commandPackaged && n == 4 {
		if len(b) < 9 {
			return 9
		}
		p.skip, p.state = uint64(binary.BigEndian.Uint32(b[5:])), atSection
		return 9
	}
	p.skip, p.state = uint64(n), atSection
	return 5
}

// entry takes a RAM block's name and size, or a word that belongs to the entry before.
func (p *Parser) entry(b []byte) int {
	name := int(b[0])
	if name == 0 { // no block is without a name: a page size
		return 8
	}
	n := 1 + name + 8
	if len(b) < n {
		return n
	}
	size := binary.BigEndian.Uint64(b[1+name:])
	if size > p.blocks || bytes.IndexByte(b[1:1+name], 0) >= 0 {
		return unknownBytes
	}
	if p.address {
		p.skip = 8
	}
	if p.blocks -= size; p.blocks == 0 {
		p.state = afterBlocks
	}
	return n
}

// afterEntries takes the page size of the list's last block, or the first record behind it.
func (p *Parser) afterEntries(b []byte, t *Token) int {
	if len(b) < 8 {
		return 8
	}
	p.state = atRecord
	if !p.address && binary.BigEndian.Uint64(b) > allFlags {
		return 8
	}
	return p.record(b, t)
}

// description takes the head of the sections' description, behind which nothing comes.
func (p *Parser) description(b []byte) int {
	if b[0] != markDescription {
		return unknownBytes
	}
	if len(b) < 5 {
		return 5
	}
	p.skip, p.state, p.told = uint64(binary.BigEndian.Uint32(b[1:])), passing, true
	return 5
}
