package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

// diskServer is an NBD server that carries requests out in any order, as it may.
type diskServer struct {
	disk  []byte
	order *rand.Rand
	fails func(*nbdRequest) bool
	fua   bool
	zeros bool // it says that its disk is

	mu      sync.Mutex
	durable []byte // what is on the disk whatever happens
}

func newDiskServer(order uint64, fua bool) *diskServer {
	return &diskServer{disk: make([]byte, diskSize), durable: make([]byte, diskSize), order: rand.New(rand.NewPCG(order, 1)), fua: fua}
}

const diskSize = 64 << 10

// serve answers rounds of requests, shuffled, until the client ends.
func (s *diskServer) serve(conn *net.UnixConn) error {
	defer conn.Close()
	requests := make(chan *nbdRequest, maxRequests)
	go func() {
		defer close(requests)
		for {
			r, err := readRequest(conn)
			if err != nil || r.kind == nbdDisconnect {
				return
			}
			requests <- r
		}
	}()
	for r := range requests {
		round := []*nbdRequest{r}
		for more := true; more && len(round) < 20; {
			select {
			case r, more = <-requests:
				if more {
					round = append(round, r)
				}
			default:
				more = false
			}
		}
		s.order.Shuffle(len(round), func(i, j int) { round[i], round[j] = round[j], round[i] })
		for _, r := range round {
			if err := s.carryOut(conn, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// export is what its handshake would tell.
func (s *diskServer) export() Export {
	e := Export{Name: "a", Size: diskSize, Zeros: s.zeros}
	if s.fua {
		e.Flags = nbdSendFUA
	}
	return e
}

func (s *diskServer) carryOut(conn io.Writer, r *nbdRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	reply := simpleReply(r.cookie)
	switch {
	case s.fails != nil && s.fails(r):
		reply[7] = 5
	case r.kind == nbdWrite:
		copy(s.disk[r.offset:], r.data)
	case r.changes():
		clear(s.disk[r.offset : r.offset+uint64(r.length)])
	case r.kind == nbdRead:
		reply = append(reply, s.disk[r.offset:r.offset+uint64(r.length)]...)
	case r.kind == nbdFlush:
		copy(s.durable, s.disk)
	}
	if r.changes() && r.flags&nbdFlagFUA != 0 {
		copy(s.durable[r.offset:], s.disk[r.offset:r.offset+uint64(r.length)])
	}
	_, err := conn.Write(reply)
	return err
}

// diskClient speaks as a hypervisor does.
type diskClient struct {
	conn   *net.UnixConn
	cookie uint64
}

// do sends a request and waits for its reply, with n bytes of data.
func (c *diskClient) do(r nbdRequest, n int) ([]byte, error) {
	c.cookie++
	if err := r.write(c.conn, c.cookie); err != nil {
		return nil, err
	}
	reply, err := readReply(c.conn)
	if err != nil {
		return nil, err
	}
	if reply.cookie() != c.cookie || reply.failed {
		return nil, errors.New("not the reply to the request")
	}
	data := make([]byte, n)
	_, err = io.ReadFull(c.conn, data)
	return data, err
}

func unixPair(t require) (a, b *net.UnixConn) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err == nil {
		b, err = l.AcceptUnix()
	}
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

type require interface {
	TempDir() string
	Fatal(...any)
	Cleanup(func())
}

// carried joins a client and a server by a stream; the function returned waits for both.
func carried(t require, s *diskServer) (*diskClient, *atomic.Int64, func() error) {
	hypervisor, local := unixPair(t)
	remote, server := unixPair(t)
	count := new(Count)
	var group sync.WaitGroup
	var streamErr, serverErr error
	group.Go(func() { serverErr = s.serve(server) })
	group.Go(func() {
		streamErr = Carry(remote, local, s.export(), func() { remote.Close(); local.Close() }, count)
		remote.Close()
		local.Close()
	})
	wait := func() error { hypervisor.Close(); group.Wait(); return errors.Join(streamErr, serverErr) }
	t.Cleanup(func() { hypervisor.Close(); group.Wait() })
	return &diskClient{conn: hypervisor}, &count.owed, wait
}

// Whatever is written in whatever order, the destination's disk is what the client wrote
// when it asks for a flush after its first, when it reads, and when it ends.
func TestDiskIsWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newDiskServer(rapid.Uint64().Draw(rt, "order"), rapid.Bool().Draw(rt, "server knows FUA"))
		s.zeros = rapid.Bool().Draw(rt, "server tells of zeros")
		want, flushes := make([]byte, diskSize), 0
		client, owed, wait := carried(rapidT{rt, t}, s)
		for range rapid.IntRange(1, 60).Draw(rt, "requests") {
			r := nbdRequest{kind: rapid.SampledFrom([]uint16{nbdWrite, nbdWrite, nbdWrite, nbdWrite, nbdTrim, nbdWriteZeroes, nbdRead, nbdFlush}).Draw(rt, "kind")}
			// Few places, so that requests meet.
			r.offset, r.length = uint64(rapid.IntRange(0, 5).Draw(rt, "place"))*512, uint32(rapid.IntRange(1, 3).Draw(rt, "clusters"))*512
			if r.mayWait() && rapid.IntRange(0, 9).Draw(rt, "fua") == 0 {
				r.flags |= nbdFlagFUA
			}
			n := 0
			switch {
			case r.kind == nbdWrite:
				r.data = bytes.Repeat([]byte{rapid.Byte().Draw(rt, "byte")}, int(r.length))
				copy(want[r.offset:], r.data)
			case r.kind == nbdTrim: // which changes nothing
			case r.changes():
				clear(want[r.offset : r.offset+uint64(r.length)])
			case r.kind == nbdRead:
				n = int(r.length)
			case r.kind == nbdFlush:
				r.offset, r.length = 0, 0
			}
			data, err := client.do(r, n)
			if err != nil {
				rt.Fatal(err)
			}
			if r.kind == nbdRead && !bytes.Equal(data, want[r.offset:r.offset+uint64(r.length)]) {
				rt.Fatalf("a read at %d is not what was written", r.offset)
			}
			if r.kind == nbdFlush {
				flushes++
			}
			if r.kind == nbdFlush && flushes > 1 {
				s.mu.Lock()
				same := bytes.Equal(s.durable, want)
				s.mu.Unlock()
				if !same {
					rt.Fatal("after a flush not all that was written is on the destination's disk")
				}
			}
		}
		if err := (&nbdRequest{kind: nbdDisconnect}).write(client.conn, 0); err != nil {
			rt.Fatal(err)
		}
		if err := wait(); err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(s.disk, want) || owed.Load() != 0 {
			rt.Fatalf("the destination's disk differs, %d writes owed", owed.Load())
		}
	})
}

// rapidT lends a property's run what outlives it.
type rapidT struct {
	*rapid.T
	t *testing.T
}

func (r rapidT) TempDir() string { return r.t.TempDir() }

// A write that was answered and then failed ends the stream, and stays owed.
func TestFailedWriteEndsStream(t *testing.T) {
	s := newDiskServer(1, true)
	s.fails = func(r *nbdRequest) bool { return r.offset == 512 }
	client, owed, wait := carried(t, s)
	for i := range 3 {
		if _, err := client.do(nbdRequest{kind: nbdWrite, offset: uint64(i) * 512, length: 512, data: make([]byte, 512)}, 0); err != nil {
			break // it may end at once
		}
	}
	client.do(nbdRequest{kind: nbdFlush}, 0) // the first is answered early
	if _, err := client.do(nbdRequest{kind: nbdFlush}, 0); err == nil {
		t.Error("the flush succeeded")
	}
	if err := wait(); err == nil {
		t.Error("the stream says that it is whole")
	}
	if owed.Load() == 0 {
		t.Error("no write is owed")
	}
}

// The first flush is answered while the destination is yet to carry it out, and is owed until it has.
func TestFirstFlushDoesNotWait(t *testing.T) {
	for name, fails := range map[string]bool{"succeeds": false, "fails": true} {
		t.Run(name, func(t *testing.T) {
			s := newDiskServer(1, true)
			answered := make(chan struct{})
			s.fails = func(r *nbdRequest) bool {
				if r.kind == nbdFlush {
					<-answered
				}
				return fails && r.kind == nbdFlush
			}
			client, owed, wait := carried(t, s)
			_, err := client.do(nbdRequest{kind: nbdWrite, length: 512, data: make([]byte, 512)}, 0)
			if err == nil {
				_, err = client.do(nbdRequest{kind: nbdFlush}, 0)
			}
			if n := owed.Load(); err != nil || n == 0 {
				t.Errorf("after the first flush %d requests are owed, %v", n, err)
			}
			close(answered)
			if err := wait(); fails != (err != nil) || fails != (owed.Load() > 0) {
				t.Errorf("the stream ended with %d owed, %v", owed.Load(), err)
			}
		})
	}
}

// failingFlush is a server without FUA whose second flush fails.
func failingFlush() (s *diskServer, flushes *int) {
	s, flushes = newDiskServer(1, false), new(int)
	s.fails = func(r *nbdRequest) bool {
		if r.kind == nbdFlush {
			*flushes++
		}
		return r.kind == nbdFlush && *flushes == 2
	}
	return s, flushes
}

var aWrite = nbdRequest{kind: nbdWrite, length: 512, data: make([]byte, 512)}

// A flush that failed has made nothing durable, so the next one is not answered for it.
func TestFlushAgainAfterFailure(t *testing.T) {
	s, flushes := failingFlush()
	client, _, wait := carried(t, s)
	for i, r := range []nbdRequest{aWrite, {kind: nbdFlush}, aWrite, {kind: nbdFlush}, {kind: nbdFlush}} {
		if _, err := client.do(r, 0); (err != nil) != (i == 3) {
			t.Errorf("request %d: %v", i+1, err)
		}
	}
	if err := wait(); err != nil || *flushes != 3 {
		t.Errorf("%d flushes arrived, %v", *flushes, err)
	}
}

// Nor is one that comes while the first, which will fail, is on its way.
func TestFlushBesideFailure(t *testing.T) {
	s, flushes := failingFlush()
	client, _, wait := carried(t, s)
	var requests bytes.Buffer
	all := []nbdRequest{aWrite, {kind: nbdFlush}, aWrite, {kind: nbdFlush}, {kind: nbdFlush}}
	for i, r := range all {
		if err := r.write(&requests, uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.conn.Write(requests.Bytes()); err != nil {
		t.Fatal(err)
	}
	failed := 0
	for range all {
		reply, err := readReply(client.conn)
		if err != nil {
			t.Fatal(err)
		}
		if reply.failed {
			failed++
		}
	}
	if err := wait(); err != nil || *flushes != 3 || failed != 1 {
		t.Errorf("%d flushes arrived, %d failed, %v", *flushes, failed, err)
	}
}

// A destination that hangs up with writes unconfirmed is no good end.
func TestDiskHangsUp(t *testing.T) {
	hypervisor, local := unixPair(t)
	remote, server := unixPair(t)
	defer hypervisor.Close()
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() {
		defer server.Close()
		if _, err := readRequest(server); err != nil {
			t.Error(err)
		}
	})
	group.Go(func() {
		client := diskClient{conn: hypervisor}
		if _, err := client.do(nbdRequest{kind: nbdWrite, length: 512, data: make([]byte, 512)}, 0); err != nil {
			t.Error(err)
		}
	})
	var count Count
	if err := Carry(remote, local, Export{}, func() { remote.Close(); local.Close() }, &count); err == nil || count.owed.Load() != 1 {
		t.Errorf("the stream ended with %v, %d owed", err, count.owed.Load())
	}
}

func FuzzNBDRequest(f *testing.F) {
	var b bytes.Buffer
	for _, r := range []nbdRequest{{kind: nbdWrite, length: 3, data: []byte("abc")}, {kind: nbdFlush}, {kind: nbdRead, offset: 512, length: 1 << 31}} {
		_ = r.write(&b, 7)
		f.Add(bytes.Clone(b.Bytes()))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		in := bytes.NewReader(raw)
		for {
			r, err := readRequest(in)
			if err != nil {
				return
			}
			if len(r.data) > len(raw) {
				t.Fatal("more data than came")
			}
			var out bytes.Buffer
			if err := r.write(&out, r.cookie); err != nil || !bytes.HasPrefix(raw[len(raw)-in.Len()-out.Len():], out.Bytes()) {
				t.Fatalf("read and written again it differs: %v", err)
			}
		}
	})
}

func FuzzNBDReply(f *testing.F) {
	f.Add(simpleReply(9))
	f.Add(append(binary.BigEndian.AppendUint32(nil, nbdChunkMagic), make([]byte, 16)...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		in := bytes.NewReader(raw)
		for {
			r, err := readReply(in)
			if err != nil {
				return
			}
			if len(r.head) != 16 && len(r.head) != 20 || r.payload > nbdPayloadLimit {
				t.Fatalf("read %+v", r)
			}
		}
	})
}
