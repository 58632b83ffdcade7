package qcow2

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
)

// Entries of an L2 table.
const (
	l2Zero       = 1 << 0 // reads as zeros, whether or not it has a host cluster
	l2Compressed = 1 << 62
	l2Reserved   = 0x3f000000000001fe
	l1Reserved   = 0x7f000000000001ff
	refReserved  = 0x1ff

	sector = 512 // bytes, the unit in which compressed lengths are counted
)

type kind byte

const (
	kindHole kind = iota // the backing file's, or zeros
	kindZero
	kindData
	kindPacked
)

// piece is a run of guest bytes of one kind within a cluster, or a whole L2 table of holes.
type piece struct {
	kind   kind
	host   int64 // where the file has the first of its bytes; for kindPacked the cluster's first compressed byte
	packed int64 // compressed bytes at most, up to a sector's end
	n      int64 // guest bytes
}

// entry is an L2 entry that has been checked.
type entry struct {
	kind   kind
	host   int64 // the cluster's beginning, 0 for none
	packed int64
	alloc  uint32 // subclusters with data; all, without extended entries, for kindData
	zeros  uint32 // subclusters that read as zeros
}

// table is an L2 table as it is in the file.
type table struct {
	index int
	data  []byte
}

// tableCache is how many bytes of L2 tables an image keeps, but always two tables.
const tableCache = 4 << 20

// l1Needed is how many entries of the L1 table the disk makes use of.
func (im *Image) l1Needed() int {
	per := im.l2Entries()
	return int((im.clusters() + per - 1) / per)
}

// readTables reads L1 and refcount tables and gives their clusters, and those that they
// point to, their owner.
func (im *Image) readTables() error {
	if err := im.claim("header", 0, 1, metadata); err != nil {
		return err
	}
	if err := im.claim("L1 table", im.l1Offset, int64(im.l1Entries)*8, metadata); err != nil {
		return err
	}
	if err := im.claim("refcount table", im.refOffset, im.refBytes, metadata); err != nil {
		return err
	}
	var err error
	if im.refs, err = im.readTable("refcount table", im.refOffset, int(im.refBytes/8)); err != nil {
		return err
	}
	if err := im.claimAll("refcount block", im.refs, refReserved); err != nil {
		return err
	}
	if im.l1, err = im.readTable("L1 table", im.l1Offset, im.l1Entries); err != nil {
		return err
	}
	im.checked = make([]uint64, (im.l1Entries+63)/64)
	return im.claimAll("L2 table", im.l1, l1Reserved)
}

func (im *Image) readTable(what string, at int64, entries int) ([]uint64, error) {
	data := make([]byte, entries*8)
	if err := readFull(im.r, data, at); err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	all := make([]uint64, entries)
	for i := range all {
		all[i] = binary.BigEndian.Uint64(data[8*i:])
	}
	return all, nil
}

// claimAll claims the clusters that a table's entries point to.
func (im *Image) claimAll(what string, entries []uint64, reserved uint64) error {
	for i, e := range entries {
		if e&reserved != 0 {
			return corrupt("entry %d for a %s has reserved bits set: %#x", i, what, e)
		}
		if e&^entryCopied == 0 {
			continue
		}
		host := e &^ entryCopied
		if host&uint64(im.cluster()-1) != 0 || host > uint64(im.fileSize) || im.cluster() > im.fileSize-int64(host) {
			return corrupt("%s %d is at %d, which is no cluster of the file", what, i, host)
		}
		if err := im.claim(what, int64(host), im.cluster(), metadata); err != nil {
			return err
		}
	}
	return nil
}

func (im *Image) claim(what string, host, n int64, as owner) error {
	if n == 0 {
		return nil
	}
	taken, ok := im.owners.claim(host>>im.clusterBits, (host+n-1)>>im.clusterBits, as)
	if !ok {
		return corrupt("%s at %d overlaps %s at %d", what, host, im.describe(taken), taken<<im.clusterBits)
	}
	return nil
}

// describe says what a host cluster that has an owner is used for.
func (im *Image) describe(cluster int64) string {
	at := cluster << im.clusterBits
	within := func(from, n int64) bool { return at >= from && at < from+n }
	switch {
	case cluster == 0:
		return "the header"
	case im.l1Entries > 0 && within(im.l1Offset, int64(im.l1Entries)*8):
		return "the L1 table"
	case within(im.refOffset, im.refBytes):
		return "the refcount table"
	}
	points := func(e uint64) bool { return int64(e&entryOffset) == at }
	switch {
	case slices.ContainsFunc(im.refs, points):
		return "a refcount block"
	case slices.ContainsFunc(im.l1, points):
		return "an L2 table"
	}
	return "another guest cluster"
}

// table returns the L2 table at an index of L1 that has one, and sees to it that all its
// clusters have been given their owner.
func (im *Image) table(index int) ([]byte, error) {
	for i, t := range im.tables {
		if t.index == index {
			copy(im.tables[1:i+1], im.tables[:i])
			im.tables[0] = t
			return t.data, nil
		}
	}
	t := table{index: index}
	if room := max(2, tableCache>>im.clusterBits); len(im.tables) < room {
		t.data = make([]byte, im.cluster())
	} else {
		t.data = im.tables[len(im.tables)-1].data
		im.tables = im.tables[:len(im.tables)-1]
	}
	if err := readFull(im.r, t.data, int64(im.l1[index]&entryOffset)); err != nil {
		return nil, fmt.Errorf("read L2 table %d: %w", index, err)
	}
	if im.checked[index/64]>>(index%64)&1 == 0 {
		if err := im.checkTable(t); err != nil {
			return nil, err
		}
		im.checked[index/64] |= 1 << (index % 64)
	}
	im.tables = append(im.tables, table{})
	copy(im.tables[1:], im.tables)
	im.tables[0] = t
	return t.data, nil
}

// checkTable checks every entry that is for a cluster of the disk, and claims its clusters.
func (im *Image) checkTable(t table) error {
	per := im.l2Entries()
	first := int64(t.index) * per
	for slot := range min(per, im.clusters()-first) {
		guestAt := (first + slot) << im.clusterBits
		e, err := im.entry(t.data, slot, guestAt)
		if err != nil {
			return err
		}
		switch {
		case e.kind == kindPacked:
			err = im.claim(fmt.Sprintf("compressed data of guest cluster %d", guestAt), e.host, e.packed, packed)
		case e.host != 0:
			err = im.claim(fmt.Sprintf("data of guest cluster %d", guestAt), e.host, im.cluster(), guest)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entry reads and checks one entry of an L2 table, for the guest cluster at guestAt.
func (im *Image) entry(data []byte, slot, guestAt int64) (entry, error) {
	var word, bitmap uint64
	if im.extended {
		word, bitmap = binary.BigEndian.Uint64(data[16*slot:]), binary.BigEndian.Uint64(data[16*slot+8:])
	} else {
		word = binary.BigEndian.Uint64(data[8*slot:])
	}
	if word&l2Compressed != 0 {
		if bitmap != 0 {
			return entry{}, corrupt("guest cluster %d is compressed and has subclusters %#x", guestAt, bitmap)
		}
		return im.packedEntry(word, guestAt)
	}
	e := entry{host: int64(word & entryOffset)}
	switch {
	case word&l2Reserved != 0:
		return e, corrupt("the entry of guest cluster %d has reserved bits set: %#x", guestAt, word)
	case e.host&(im.cluster()-1) != 0:
		return e, corrupt("guest cluster %d is at %d, which is no cluster's beginning", guestAt, e.host)
	case word&l2Zero != 0 && (im.version < 3 || im.extended):
		return e, corrupt("guest cluster %d has the zero flag, which version %d (extended entries: %t) does not know", guestAt, im.version, im.extended)
	}
	if im.extended {
		e.alloc, e.zeros = uint32(bitmap), uint32(bitmap>>32)
	} else if word&l2Zero != 0 {
		e.kind, e.zeros = kindZero, 1<<32-1
	} else if e.host != 0 {
		e.kind, e.alloc = kindData, 1<<32-1
	}
	if e.alloc&e.zeros != 0 {
		return e, corrupt("subclusters of guest cluster %d are data and zeros at once: %#x", guestAt, bitmap)
	}
	if e.alloc != 0 && e.host == 0 {
		return e, corrupt("subclusters of guest cluster %d have data, and the cluster has none: %#x", guestAt, bitmap)
	}
	return e, im.checkEnd(e, guestAt)
}

// checkEnd refuses data that the file is too short for. QEMU would read zeros there; what
// it means is a download that broke off.
func (im *Image) checkEnd(e entry, guestAt int64) error {
	if e.host == 0 {
		return nil
	}
	need := int64(1)
	if e.alloc != 0 {
		need = im.cluster() >> 5 * int64(bits.Len32(e.alloc))
		need = min(need, im.size-guestAt)
	}
	if e.host > im.fileSize-need {
		return corrupt("guest cluster %d is at %d and needs %d bytes, and the file ends at %d: it was cut off", guestAt, e.host, need, im.fileSize)
	}
	return nil
}

// packedEntry reads the entry of a compressed cluster: where its bytes begin, and how many
// sectors it has beyond the one they begin in. The last sector is shared with what follows.
func (im *Image) packedEntry(word uint64, guestAt int64) (entry, error) {
	shift := 62 - (im.clusterBits - 8)
	at := word & (1<<shift - 1)
	sectors := word&(l2Compressed-1)>>shift + 1
	if at < uint64(headerV2) || at >= uint64(im.fileSize) {
		return entry{}, corrupt("the compressed data of guest cluster %d is at %d, and the file ends at %d", guestAt, at, im.fileSize)
	}
	end := int64(at)&^(sector-1) + int64(sectors)*sector
	if end-im.fileSize >= sector { // QEMU does not fill the file's last sector up
		return entry{}, corrupt("the compressed data of guest cluster %d ends at %d, and the file at %d: it was cut off", guestAt, end, im.fileSize)
	}
	return entry{kind: kindPacked, host: int64(at), packed: min(end, im.fileSize) - int64(at)}, nil
}

// lookup says what the guest byte at off, and those behind it, come from.
func (im *Image) lookup(off int64) (piece, error) {
	span := im.cluster() * im.l2Entries()
	index := int(off / span)
	if im.l1[index]&entryOffset == 0 {
		return piece{kind: kindHole, n: span - off%span}, nil
	}
	data, err := im.table(index)
	if err != nil {
		return piece{}, err
	}
	within := off & (im.cluster() - 1)
	e, err := im.entry(data, off%span>>im.clusterBits, off-within)
	if err != nil {
		return piece{}, err
	}
	switch {
	case e.kind == kindPacked:
		return piece{kind: kindPacked, host: e.host, packed: e.packed, n: im.cluster() - within}, nil
	case im.extended:
		return im.subclusters(e, within), nil
	}
	return piece{kind: e.kind, host: e.host + within, n: im.cluster() - within}, nil
}

// subclusters finds the run of subclusters of one kind that begins within bytes into a
// cluster with extended entry e.
func (im *Image) subclusters(e entry, within int64) piece {
	size := im.cluster() >> 5
	of := func(i int64) kind {
		switch {
		case e.zeros>>i&1 != 0:
			return kindZero
		case e.alloc>>i&1 != 0:
			return kindData
		}
		return kindHole
	}
	i := within / size
	last := i
	for last < 31 && of(last+1) == of(i) {
		last++
	}
	return piece{kind: of(i), host: e.host + within, n: (last+1)*size - within}
}
