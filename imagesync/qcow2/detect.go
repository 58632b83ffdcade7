package qcow2

import (
	"bytes"
	"encoding/binary"
)

// Format is what a disk image is kept in, by the name that qemu-img knows it by where it
// has one.
type Format string

// Formats that Detect tells apart. Raw is what is none of the others: a disk byte for byte.
const (
	Raw       Format = "raw"
	QCOW2     Format = "qcow2"
	QCOW      Format = "qcow"
	QED       Format = "qed"
	VMDK      Format = "vmdk"
	VHDX      Format = "vhdx"
	VHD       Format = "vpc"
	VDI       Format = "vdi"
	Parallels Format = "parallels"
	Gzip      Format = "gzip"
	XZ        Format = "xz"
	Zstandard Format = "zstd"
	Bzip2     Format = "bzip2"
	Zip       Format = "zip"
	Tar       Format = "tar"
	HTML      Format = "html" // the error page of a download that failed
)

// HeadSize is how many bytes of a file's beginning Detect can make use of.
const HeadSize = 512

// magics are found at fixed places of a file's beginning: qemu's block drivers, RFC 1952,
// the .xz file format §2.1.1.1, RFC 8878 §3.1.1, APPNOTE.TXT §4.3.7, POSIX pax.
var magics = []struct {
	at     int // bytes
	magic  string
	format Format
}{
	{0, "QED\x00", QED},
	{0, "KDMV", VMDK},
	{0, "COWD", VMDK},
	{0, "# Disk DescriptorFile", VMDK},
	{0, "vhdxfile", VHDX},
	{0, "conectix", VHD},
	{64, "\x7f\x10\xda\xbe", VDI},
	{0, "WithoutFreeSpace", Parallels},
	{0, "WithouFreSpacExt", Parallels},
	{0, "\x1f\x8b", Gzip},
	{0, "\xfd7zXZ\x00", XZ},
	{0, "\x28\xb5\x2f\xfd", Zstandard},
	{0, "BZh", Bzip2},
	{0, "PK\x03\x04", Zip},
	{257, "ustar", Tar},
	{0, "<!DOCTYPE", HTML},
	{0, "<!doctype", HTML},
	{0, "<html", HTML},
}

// Detect says what format a file is in by its first HeadSize bytes, or by as many as it
// has. It trusts nothing else of the file; what it calls Raw may be anything.
func Detect(head []byte) Format {
	if len(head) >= 8 && bytes.HasPrefix(head, []byte(magic)) {
		if binary.BigEndian.Uint32(head[4:]) == 1 {
			return QCOW
		}
		return QCOW2
	}
	for _, m := range magics {
		if len(head) >= m.at && bytes.HasPrefix(head[m.at:], []byte(m.magic)) {
			return m.format
		}
	}
	return Raw
}
