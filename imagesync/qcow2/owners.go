package qcow2

// owner is what a host cluster is used for.
type owner byte

const (
	free owner = iota
	metadata
	guest  // data of one guest cluster
	packed // compressed guest clusters
)

// maxHostClusters bounds the owners' memory to 256 MiB, which an image of 64 TiB in clusters
// of 64 KiB may need, or one of 512 GiB in clusters of 512 bytes.
const maxHostClusters = 1 << 30

// ownersPage is how many clusters one page of owners covers; 4 KiB, at two bits each.
const ownersPage = 4 * 4096

// owners says who uses which host cluster. Pages come with the first use, so a file that
// is large because it is sparse costs a pointer for each ownersPage clusters.
type owners struct {
	clusters int64
	pages    []*[4096]byte
}

func newOwners(fileSize int64, clusterBits uint32) (owners, error) {
	n := (fileSize-1)>>clusterBits + 1
	if n > maxHostClusters {
		return owners{}, unsupported("a file of %d clusters, of at most %d; give it larger ones with qemu-img convert -O qcow2 -o cluster_size=64k",
			n, maxHostClusters)
	}
	return owners{n, make([]*[4096]byte, (n+ownersPage-1)/ownersPage)}, nil
}

// claim gives clusters first to last to an owner, and returns the first of them that
// another has already. Clusters beyond the file's end are the caller's to refuse.
func (o *owners) claim(first, last int64, as owner) (taken int64, ok bool) {
	for c := first; c <= last && c < o.clusters; c++ {
		page := &o.pages[c/ownersPage]
		if *page == nil {
			*page = new([4096]byte)
		}
		at, shift := c%ownersPage/4, c%4*2
		was := owner((*page)[at]>>shift) & 3
		if was != free && (was != packed || as != packed) {
			return c, false
		}
		(*page)[at] |= byte(as << shift)
	}
	return 0, true
}
