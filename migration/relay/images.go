package relay

import (
	"encoding/binary"
	"fmt"
	"io"

	"heliotrope/migration/wan"
)

// Images is what a host has of the images that VMs' disks stand on, as pages of memory: the source finds them by their
// content, and the destination has them by their numbers. An image is named by its content.
//
// The source offers the image of the VM's own disk, and no other: what it learns of the destination
// is whether that has it too, and which parts. Nothing is fetched for it.
type Images interface {
	// Indexed says how many bytes of memory an image's index takes; 0: there is none.
	Indexed(image string) int64
	// Index reads it. Nothing is found before Only has said what the destination has.
	Index(image string) (ImageIndex, error)
	// Open opens what is here of an image.
	Open(image string) (ImagePages, error)
	// Spoil says that a stream which used an image did not come out right: the next one goes without.
	Spoil(image string)
}

// ImageIndex finds pages of an image.
type ImageIndex interface {
	wan.ImageIndex
	// Only reads what ImagePages.Here has told.
	Only(told []byte) error
}

// ImagePages gives pages of an image out.
type ImagePages interface {
	wan.Pages
	// Here tells which parts are here.
	Here() []byte
	Close() error
}

// maxHere is how much a destination may tell of what it has of an image, in bytes.
const maxHere = 1 << 20

// offerImage is the image that a source offers, with room for its index until done is called.
func (e *Encoding) offerImage(image string, done func()) (offered string, gives func()) {
	if e == nil || e.Images == nil || image == "" {
		return "", done
	}
	pages := int((e.Images.Indexed(image) + pageBytes - 1) / pageBytes)
	got := e.Room.take(pages)
	if got < pages || pages == 0 {
		e.Room.give(got)
		return "", done
	}
	return image, func() { done(); e.Room.give(got) }
}

const pageBytes = 4096

// takeImage opens the image that a source offers, if something of it is here.
func (e *Encoding) takeImage(image string) ImagePages {
	if e.Images == nil || image == "" {
		return nil
	}
	p, err := e.Images.Open(image)
	if err != nil {
		return nil // it is not here: that is why it is asked
	}
	return p
}

// index is what a source reads of the image that was taken; nil: the stream goes without, which changes nothing for
// the destination.
func (e *Encoding) index(taken Offer) ImageIndex {
	if taken.Image == "" {
		return nil
	}
	x, err := e.Images.Index(taken.Image)
	if err != nil {
		return nil // it was there when it was offered, and is made again
	}
	return x
}

// tellHere tells what is here of an image.
func tellHere(w io.Writer, p ImagePages) error {
	told := p.Here()
	if len(told) > maxHere {
		told = nil
	}
	if _, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(told))), told...)); err != nil {
		return fmt.Errorf("tell what is here of an image: %w", err)
	}
	return nil
}

// readHere reads that.
func readHere(r io.Reader) ([]byte, error) {
	var size [4]byte
	_, err := io.ReadFull(r, size[:])
	n := binary.BigEndian.Uint32(size[:])
	if err == nil && n > maxHere {
		err = fmt.Errorf("%d bytes", n)
	}
	if err != nil {
		return nil, fmt.Errorf("read what the destination has of an image: %w", err)
	}
	told := make([]byte, n)
	if _, err := io.ReadFull(r, told); err != nil {
		return nil, fmt.Errorf("read what the destination has of an image: %w", noEOF(err))
	}
	return told, nil
}
