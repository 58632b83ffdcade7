package wan

import (
	"heliotrope/migration/wan/nbdstream"
	"heliotrope/migration/wan/ramstream"
)

// parser cuts a stream into tokens, which laid end to end are the stream.
type parser interface {
	Next(in []byte) (t ramstream.Token, rest []byte, ok bool)
	Drain() (t ramstream.Token, ok bool)
	Whole() bool
	Ended() bool
	Lost() int
}

func (c *Config) parser() parser {
	if c.Disk {
		return new(nbdstream.Parser)
	}
	return new(ramstream.Parser)
}

// places is where both ends begin.
func (c *Config) places() places { return places{spelled: c.Disk} }

// appendHead appends what stands before the content of a page; of a page of zeros, all of it.
func (c *Config) appendHead(dst []byte, kind ramstream.Kind, block []byte, spelled bool, page uint64) []byte {
	if c.Disk {
		return nbdstream.AppendHead(dst, kind)
	}
	return ramstream.AppendHead(dst, kind, block, spelled, page*pageSize)
}

// zeroBytes is how many bytes of the stream a page of zeros has, or more.
func (c *Config) zeroBytes() uint64 {
	if c.Disk {
		return pageSize
	}
	return 9
}
