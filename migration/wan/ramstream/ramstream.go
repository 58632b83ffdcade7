// Package ramstream finds the pages of a guest in the stream that QEMU sends when it
// migrates it.
//
// The stream is a file: magic and version, the machine's configuration, then sections,
// then their description as JSON. The section "ram" comes in parts, each a row of records
// of 8 bytes and what they announce: a page of zeros, a page and its content, an end. The
// other sections hold devices, in forms that only these devices know; they have no length,
// only a footer.
//
// A Parser cuts the stream into tokens, which laid end to end are the stream again: pages,
// and everything else, which is to be passed on as it is. What it takes for a page is
// therefore a matter of how well the stream is compressed, and never of whether it arrives:
// a reader that knows what a page token stands for rebuilds its very bytes. So the parser
// may guess. What it does not understand it passes on, and goes on to look for the next
// part of the section "ram": behind the footer of a device's section, or, when all is lost,
// by the pattern of its header. It holds back less than one page, allocates nothing per
// token and nothing by a length it was told.
//
// Read from captures of QEMU 10.0 and 7.2; of the variants, machines without configuration,
// without footers or without description are known, blocks' page sizes (postcopy) and
// addresses (x-ignore-shared), and pages that QEMU itself has compressed. A mapped-ram file
// is no stream, and passed on as it is; so is a channel of multifd.
package ramstream

import "encoding/binary"

// Kind says what a Token is.
type Kind uint8

const (
	Other Kind = iota // whatever is no page
	Zero              // a page of zeros
	Page              // a page and its content
)

// Token is a part of the stream. Its slices hold until the Parser's next call.
type Token struct {
	Kind Kind
	Raw  []byte // all of it, as it was in the stream

	// Of a page: the RAM block that it is in, whether its name is spelled in Raw (if not, the
	// block is the one of the page before), and its offset there in bytes.
	Block   []byte
	Spelled bool
	Offset  uint64
	Data    []byte // Page: the content, the end of Raw
}

// The records of the section "ram": flags in the low bits of a word, an offset or a size
// in the others. migration/ram.c names them RAM_SAVE_FLAG_*.
const (
	flagZero         = 0x02
	flagMemSize      = 0x04
	flagPage         = 0x08
	flagEOS          = 0x10
	flagContinue     = 0x20 // the block is the one before, and not spelled
	flagXBZRLE       = 0x40
	flagHook         = 0x80
	flagCompress     = 0x100
	flagMultifdFlush = 0x200
	allFlags         = 0x3ff
)

// What a section begins with. migration/savevm.h names them QEMU_VM_*.
const (
	markEOF           = 0x00
	markStart         = 0x01
	markPart          = 0x02
	markEnd           = 0x03
	markFull          = 0x04
	markSubsection    = 0x05
	markDescription   = 0x06
	markConfiguration = 0x07
	markCommand       = 0x08
	markFooter        = 0x7e
)

const (
	magic   = 0x5145564d // QEVM
	version = 3

	ramVersion      = 4
	commandPackaged = 7 // a stream within the stream, of a length that it tells

	// DefaultPageSize is a target page's in bytes, where the stream does not say another.
	DefaultPageSize = 4096

	minPageBits, maxPageBits = 10, 16 // below, the flags would have no room
	maxName                  = 255
	maxMachineName           = 1 << 10
)

// AppendHead appends what stands before a page's content: the record's word and, if
// spelled, its block's name; of a page of zeros, all of it.
func AppendHead(dst []byte, kind Kind, block []byte, spelled bool, offset uint64) []byte {
	word := offset | flagPage
	if kind == Zero {
		word = offset | flagZero
	}
	if spelled {
		dst = binary.BigEndian.AppendUint64(dst, word)
		dst = append(dst, byte(len(block)))
		dst = append(dst, block...)
	} else {
		dst = binary.BigEndian.AppendUint64(dst, word|flagContinue)
	}
	if kind == Zero {
		dst = append(dst, 0)
	}
	return dst
}
