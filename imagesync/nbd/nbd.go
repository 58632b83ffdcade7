// Package nbd serves disks over the NBD protocol (doc/proto.md of the NBD project): the
// network end of a VM's disk.
//
// # What is spoken
//
// The fixed newstyle handshake with all of its options but extended headers, which are
// refused; TLS where there is a configuration, and then nothing before it; structured replies
// with holes; block status of base:allocation, and of heliotrope:dirty where the device knows
// what changed since its last commit. Each command is there that the protocol has for
// compact headers.
//
// # Who waits for whom
//
// A connection has one loop that reads requests. A read that the device answers without
// waiting (Immediate) is answered there: all requests that one system call brought, and all
// of their replies by one system call. Anything else may wait, for a disk or for a wide area
// network, and goes to one of the connection's workers; so such a read holds up nobody. A
// worker whose reply is ready first lets the others go on that are able to run, then writes
// all that is ready at once. Replies come in whatever order they are ready.
//
// # Who copies
//
// A large read of what stands in a file (Backed) reaches a unix socket without a copy of ours:
// pages go from the page cache by a pipe to the client. Where data must be copied, one buffer
// after the other is filled and written, while the processor's cache has it.
//
// # What always holds
//
//   - Memory for requests under way is bounded for each connection (memoryLimit): what goes
//     beyond is not read from the socket. Nothing is allocated because of a length that a
//     peer announced before it was held against a bound; the largest is MaxRequest.
//   - A flush covers every write that was answered before it came, from any connection of the
//     export; so does FUA its own request. What a device answers only has to be true.
//   - Bytes from a client lead to replies, an error and the connection's end, never to a panic.
//   - Every goroutine has ended when Serve returns. The end of its context ends connections:
//     devices see theirs end, and what they had not done is answered with ESHUTDOWN, or not at all
//     (Server.Cut) where another server goes on.
//
// Overlapping requests under way at the same time are carried out in any order, as the
// protocol says; clients wait.
package nbd

// Block sizes that clients are told, in bytes. MaxRequest is the most that a read or a write
// may have; other commands carry no data and may be about all that their 32 bits can say.
const (
	minBlock       = 1
	preferredBlock = 64 << 10
	MaxRequest     = 32 << 20
)

// The handshake.
const (
	magicServer = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption = 0x49484156454f5054 // "IHAVEOPT"
	magicReply  = 0x0003e889045565a9

	handshakeFixed    = 1 << 0
	handshakeNoZeroes = 1 << 1

	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMeta        = 9
	optSetMeta         = 10

	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4

	repErrorBit       = 1 << 31
	repErrUnsupported = repErrorBit | 1
	repErrPolicy      = repErrorBit | 2
	repErrInvalid     = repErrorBit | 3
	repErrTLSRequired = repErrorBit | 5
	repErrUnknown     = repErrorBit | 6
	repErrTooBig      = repErrorBit | 9

	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Flags of an export.
const (
	flagHasFlags     = 1 << 0
	flagReadOnly     = 1 << 1
	flagFlush        = 1 << 2
	flagFUA          = 1 << 3
	flagTrim         = 1 << 5
	flagWriteZeroes  = 1 << 6
	flagDF           = 1 << 7
	flagMultiConn    = 1 << 8
	flagCache        = 1 << 10
	flagFastZero     = 1 << 11
	flagsOfReadWrite = flagFUA | flagTrim | flagWriteZeroes
)

// Requests and replies.
const (
	magicRequest = 0x25609513
	magicSimple  = 0x67446698
	magicChunk   = 0x668e33ef

	requestSize = 28 // bytes, without a write's data
	simpleSize  = 16
	chunkSize   = 20
	offsetSize  = 8 // of a chunk of data, before the data
	holeSize    = 12

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	cmdFlagFUA      = 1 << 0
	cmdFlagNoHole   = 1 << 1
	cmdFlagDF       = 1 << 2
	cmdFlagReqOne   = 1 << 3
	cmdFlagFastZero = 1 << 4

	chunkDone       = 1 << 0 // a flag
	chunkOffsetData = 1
	chunkOffsetHole = 2
	chunkStatus     = 5
	chunkError      = 1<<15 | 1

	stateHole  = 1 << 0 // of base:allocation
	stateZero  = 1 << 1
	stateDirty = 1 << 0 // of heliotrope:dirty
)

// Names of metadata contexts, and the numbers that they have in replies.
const (
	contextAllocation = "base:allocation"
	contextDirty      = "heliotrope:dirty"
	idAllocation      = 1
	idDirty           = 2
)

var commandNames = map[uint16]string{
	cmdRead: "read", cmdWrite: "write", cmdFlush: "flush", cmdTrim: "trim", cmdCache: "cache", cmdWriteZeroes: "write zeroes", cmdBlockStatus: "block status",
}
