package wan

// Mirror is the last version of each page that went by, up to a number of pages. Both ends
// fill it by the same rule from the same pages, so a slot's number means the same page at
// both. A page keeps its slot. At the stream's end both have the same Mirror; if both keep
// it, the VM's next stream can begin with it, whichever way that goes.
type Mirror struct {
	max    int
	n      int
	chunks []*[chunkPages * pageSize]byte // grown as pages come, never by what is announced
	blocks [][]byte                       // names of RAM blocks, in the order in which they came
	where  []where                        // of each slot
	leaves map[leafKey]*leaf
	key    leafKey // of recent
	recent *leaf
}

// where is a page's place in the guest.
type where struct {
	block int
	page  uint64
}

const (
	chunkPages = 64
	leafPages  = 512
)

type leafKey struct {
	block  int
	number uint64 // of the page, in leaves
}

// leaf has the slots of neighbouring pages, each plus 1.
type leaf [leafPages]uint32

func newMirror(maxPages int) *Mirror {
	return &Mirror{max: min(maxPages, 1<<31), leaves: map[leafKey]*leaf{}}
}

// mirror is the one that a stream begins with.
func (c Config) mirror() *Mirror {
	if c.Mirror == nil {
		m := newMirror(c.MirrorPages)
		if c.Disk {
			m.blocks = [][]byte{nil} // the disk, which has no name
		}
		return m
	}
	c.Mirror.max = min(c.MirrorPages, 1<<31)
	return c.Mirror
}

// slot returns the page's slot, if it has one.
func (m *Mirror) slot(block int, page uint64) (slot uint32, ok bool) {
	k := leafKey{block, page / leafPages}
	if m.recent == nil || m.key != k {
		l := m.leaves[k]
		if l == nil {
			return 0, false
		}
		m.key, m.recent = k, l
	}
	s := m.recent[page%leafPages]
	return s - 1, s != 0
}

// place gives a page that has none a slot, if one is left.
func (m *Mirror) place(block int, page uint64) (slot uint32, ok bool) {
	if m.n >= m.max {
		return 0, false
	}
	k := leafKey{block, page / leafPages}
	if m.recent == nil || m.key != k {
		l := m.leaves[k]
		if l == nil {
			l = new(leaf)
			m.leaves[k] = l
		}
		m.key, m.recent = k, l
	}
	if m.n%chunkPages == 0 {
		m.chunks = append(m.chunks, new([chunkPages * pageSize]byte))
	}
	slot = uint32(m.n)
	m.n++
	m.where = append(m.where, where{block, page})
	m.recent[page%leafPages] = slot + 1
	return slot, true
}

// page is a slot's content.
func (m *Mirror) page(slot uint32) *[pageSize]byte {
	at := int(slot%chunkPages) * pageSize
	return (*[pageSize]byte)(m.chunks[slot/chunkPages][at:])
}

// Len is how many pages there are.
func (m *Mirror) Len() int { return m.n }

// Page is the last version of the page that came as the i-th.
func (m *Mirror) Page(i int) *[4096]byte { return m.page(uint32(i)) }
