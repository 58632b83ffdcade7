// Package record is content by which a page tells whether it is what it was: a wrong, missing or
// stale byte is seen. The lab's guest fills its memory and its disk with it, and who makes a
// guest's disk beforehand does too (package guest).
package record

import "encoding/binary"

const (
	// PageSize is what Fill fills and Intact looks at, in bytes.
	PageSize = 4096
	// Disk is the block of records on disks; their version is their sequence number, from 1 on,
	// and their place that number modulo the disk's pages.
	Disk = 0x68656c696f747270 // heliotrp
)

// Fill writes the content that block has in version version.
func Fill(p []byte, block, version uint64) {
	binary.LittleEndian.PutUint64(p, block)
	binary.LittleEndian.PutUint64(p[8:], version)
	state := seed(block, version)
	for i := 16; i < PageSize; i += 8 {
		state += gamma
		binary.LittleEndian.PutUint64(p[i:], scramble(state))
	}
}

// Intact compares p with that content, byte for byte.
func Intact(p []byte, block, version uint64) bool {
	if binary.LittleEndian.Uint64(p) != block || Version(p) != version {
		return false
	}
	state := seed(block, version)
	for i := 16; i < PageSize; i += 8 {
		state += gamma
		if binary.LittleEndian.Uint64(p[i:]) != scramble(state) {
			return false
		}
	}
	return true
}

// Version is what a page says that its version is.
func Version(p []byte) uint64 { return binary.LittleEndian.Uint64(p[8:]) }

const gamma = 0x9e3779b97f4a7c15 // of splitmix64

func seed(block, version uint64) uint64 { return scramble(block*gamma + scramble(version+1)) }

// scramble is the output function of splitmix64.
func scramble(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
