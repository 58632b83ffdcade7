//go:build lab

package libvirt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/migration"
)

// numbered is a frame for the guest, which counts such frames by their number; the
// highest number makes it report.
func numbered(n uint32) []byte {
	frame := make([]byte, 60)
	copy(frame, testMAC[:])
	copy(frame[6:], []byte{0x02, 't', 'e', 's', 't', 0, 0x88, 0xb5})
	binary.BigEndian.PutUint32(frame[14:], n)
	return frame
}

// prepared takes a move up to the copy.
func (p *pair) prepared(rate int) (Outgoing, wires) {
	p.t.Helper()
	w := p.wire(rate)
	var d Description
	timed(p.t, "begin", func() { p.src.call("Begin", testVM, &d) })
	out := Outgoing{VM: testVM, XML: d.XML, MemorySocket: w.memory, DiskSocket: w.disk}
	in := Incoming{VM: testVM, Epoch: 9, XML: d.XML, Cookie: d.Cookie, Disks: d.Disks, DiskDir: diskDir, MemorySocket: w.memory, DiskSocket: w.disk}
	timed(p.t, "prepare", func() { p.dst.call("Prepare", in, &out.Cookie) })
	p.dst.wantState(heliotrope.VMIncoming)
	return out, w
}

func timed(t *testing.T, what string, f func()) {
	t.Helper()
	start := time.Now()
	f()
	t.Logf("%s: %v", what, time.Since(start).Round(100*time.Microsecond))
}

// wantNothing fails unless a node has nothing of the VM.
func (n *node) wantNothing() {
	n.t.Helper()
	n.wantState(heliotrope.VMAbsent)
	left, err := os.ReadDir(n.path(diskDir))
	if err != nil || len(left) > 0 {
		n.t.Errorf("disks left at %s: %v %v", n.name, left, err)
	}
	var open int
	n.call("Moves", nothing, &open)
	if open != 0 {
		n.t.Errorf("%s still has %d moves open", n.name, open)
	}
}

// copying starts a Perform and waits until some of it is copied.
func (p *pair) copying(out Outgoing, past uint64) <-chan error {
	p.t.Helper()
	p.src.call("Forget", nothing, nil)
	done := make(chan error, 1)
	go func() { done <- p.src.try("Perform", out, new(Performed)) }()
	await(p.t, "the copy", 10*time.Second, func() bool {
		var now Performed
		p.src.call("Progress", nothing, &now)
		return now.Latest.DoneBytes > past
	})
	return done
}

func TestMove(t *testing.T) {
	dir := images(t)
	p := &pair{t: t, src: startNode(t, "east"), dst: startNode(t, "west")}
	p.src.start(dir)
	t.Logf("QEMU %s", func() string { var h Host; p.src.call("Host", nothing, &h); return fmt.Sprintf("%+v", h) }())
	for _, step := range []struct {
		name string
		run  func(t *testing.T, p *pair)
	}{
		{"begun and given up", testGivenUp},
		{"aborted in the copy of disks", func(t *testing.T, p *pair) { testAborted(t, p, 1) }},
		{"aborted in the copy of memory", func(t *testing.T, p *pair) { testAborted(t, p, 30<<20) }},
		{"link cut in the copy", testCut},
		{"slowed down", testSlowedDown},
		{"failed after the copy", testFailedAfterCopy},
		{"agents die in the copy", testAgentsDieInCopy},
		{"agents die after the copy", testAgentsDieAfterCopy},
		{"memory is the same", testMemory},
		{"packets arrive once", testPackets},
		{"packets arrive once, back again", testPackets},
	} {
		ok := t.Run(step.name, func(t *testing.T) {
			p.t, p.src.t, p.dst.t = t, t, t
			step.run(t, p)
		})
		p.t, p.src.t, p.dst.t = t, t, t
		if !ok {
			return // what follows builds on it
		}
	}
}

func testGivenUp(t *testing.T, p *pair) {
	var d, again Description
	p.src.call("Begin", testVM, &d)
	p.src.call("Begin", testVM, &again)
	if d.XML != again.XML || !slices.Equal(d.Disks, []migration.Disk{{Target: "vda", Bytes: 16 << 20, Format: "raw"}}) {
		t.Errorf("described are disks %v", d.Disks)
	}
	bad := Incoming{VM: testVM, XML: d.XML, Cookie: d.Cookie, Disks: d.Disks, DiskDir: "/elsewhere"}
	if err := p.dst.try("Prepare", bad, new([]byte)); err == nil || !strings.Contains(err.Error(), "not in /elsewhere") {
		t.Errorf("a disk outside of the directory: %v", err)
	}
	p.dst.wantNothing()
	p.src.call("Confirm", Last{VM: testVM, Cancelled: true}, nil)
	p.src.wantLife()
}

func testAborted(t *testing.T, p *pair, after uint64) {
	out, _ := p.prepared(20e6)
	done := p.copying(out, after)
	p.src.counts()
	timed(t, "abort", func() {
		p.src.call("CancelPerform", nothing, nil)
		if err := <-done; err == nil {
			t.Fatal("an aborted copy says that it was done")
		}
	})
	p.rollBack()
}

// rollBack ends a move that failed, and wants the VM to run at its source as before.
func (p *pair) rollBack() {
	p.t.Helper()
	timed(p.t, "finish cancelled", func() { p.dst.call("Finish", Last{VM: testVM, Cancelled: true}, new(time.Time)) })
	p.dst.wantNothing()
	timed(p.t, "confirm cancelled", func() { p.src.call("Confirm", Last{VM: testVM, Cancelled: true}, nil) })
	p.src.wantLife()
	// Both again: an order may be repeated.
	p.dst.call("Finish", Last{VM: testVM, Cancelled: true}, new(time.Time))
	p.src.call("Confirm", Last{VM: testVM, Cancelled: true}, nil)
	p.src.wantState(heliotrope.VMRunning)
}

func testCut(t *testing.T, p *pair) {
	out, w := p.prepared(20e6)
	done := p.copying(out, 30<<20)
	timed(t, "cut", func() {
		w.cut()
		if err := <-done; err == nil {
			t.Fatal("a copy over a dead link says that it was done")
		}
	})
	p.rollBack()
}

// testSlowedDown narrows the way until the guest changes as much as crosses: QEMU takes nothing from it before it
// is told to, and then as much as it may.
func testSlowedDown(t *testing.T, p *pair) {
	out, w := p.prepared(40e6)
	out.MaxDowntime, out.MaxSlowdown = time.Millisecond, 60
	done := p.copying(out, 30<<20)
	var now Performed
	latest := func() migration.Progress { p.src.call("Progress", nothing, &now); return now.Latest }
	await(t, "the third pass", 60*time.Second, func() bool {
		if p := latest(); p.Slowed > 0 && p.Rounds <= 2 {
			t.Fatalf("slowed down by %d %% in pass %d", p.Slowed, p.Rounds)
		}
		return latest().Rounds > 2
	})
	w.rate(1e6)
	timed(t, "slow down", func() {
		await(t, "a guest that is slowed down", 60*time.Second, func() bool { return latest().Slowed == 60 })
	})
	w.rate(40e6)
	p.src.call("CancelPerform", nothing, nil)
	if err := <-done; err == nil {
		t.Fatal("an aborted copy says that it was done")
	}
	p.rollBack()
}

func testFailedAfterCopy(t *testing.T, p *pair) {
	out, _ := p.prepared(0)
	p.src.call("Perform", out, new(Performed))
	p.src.wantState(heliotrope.VMPaused)
	p.rollBack()

	// The same when the destination had shown already that it is able to run it.
	out, _ = p.prepared(0)
	var done Performed
	p.src.call("Perform", out, &done)
	p.dst.call("Settle", Last{VM: testVM, Cookie: done.Cookie}, nil)
	p.dst.wantState(heliotrope.VMPaused)
	p.rollBack()
}

func testAgentsDieInCopy(t *testing.T, p *pair) {
	out, _ := p.prepared(20e6)
	done := p.copying(out, 30<<20)
	for _, n := range []*node{p.src, p.dst} {
		n.call("Drop", nothing, nil)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), ErrClosed.Error()) {
		t.Fatalf("perform on a dead connection says %v", err)
	}
	for _, n := range []*node{p.src, p.dst} {
		n.call("Dial", nothing, nil)
	}
	timed(t, "abort by another connection", func() { p.src.call("Abort", testVM, nil) })
	await(t, "the end of the incoming VM", 5*time.Second, func() bool { return p.dst.vm().State == heliotrope.VMAbsent })
	p.dst.call("Sweep", diskDir, nil)
	p.rollBack()
}

func testAgentsDieAfterCopy(t *testing.T, p *pair) {
	out, _ := p.prepared(0)
	p.src.call("Perform", out, new(Performed))
	p.src.call("Drop", nothing, nil)
	p.src.call("Dial", nothing, nil)
	p.src.wantState(heliotrope.VMPaused)
	p.dst.call("Drop", nothing, nil)
	p.dst.call("Dial", nothing, nil)
	await(t, "the end of the incoming VM", 5*time.Second, func() bool { return p.dst.vm().State == heliotrope.VMAbsent })
	p.dst.call("Sweep", diskDir, nil)
	p.rollBack()
}

// testMemory compares the memory of the stopped source with that of the stopped
// destination, and then lets the destination run.
func testMemory(t *testing.T, p *pair) {
	out, _ := p.prepared(60e6) // slow enough for several rounds
	p.src.counts()
	var done Performed
	timed(t, "perform", func() { p.src.call("Perform", out, &done) })
	t.Logf("progress: %d reports, the last %+v", done.Reports, done.Latest)
	if done.Latest.Rounds < 2 || done.Latest.DoneBytes < 16<<20 {
		t.Errorf("copy of a busy VM took %+v", done.Latest)
	}
	if err := p.dst.try("Settle", Last{VM: testVM}, nil); err == nil {
		t.Error("settled without the source's cookie")
	}
	timed(t, "settle", func() { p.dst.call("Settle", Last{VM: testVM, Cookie: done.Cookie}, nil) })
	p.dst.call("Drop", nothing, nil) // a settled VM outlives the agent
	p.dst.call("Dial", nothing, nil)
	var memory [2][]byte
	for i, n := range []*node{p.src, p.dst} {
		n.wantState(heliotrope.VMPaused)
		n.call("DumpMemory", Dump{testVM, "/run/memory", testMiB}, nil)
		var err error
		if memory[i], err = os.ReadFile(n.path("/run/memory")); err != nil || len(memory[i]) != testMiB<<20 {
			t.Fatalf("memory at %s: %d bytes, %v", n.name, len(memory[i]), err)
		}
		os.Remove(n.path("/run/memory"))
	}
	differ, zero := 0, 0
	for at := 0; at < testMiB<<20; at += 4096 {
		a, b := memory[0][at:at+4096], memory[1][at:at+4096]
		if !bytes.Equal(a, b) {
			differ++
		}
		if bytes.Count(a, []byte{0}) == 4096 {
			zero++
		}
	}
	t.Logf("%d pages, %d zero, %d differ", testMiB<<8, zero, differ)
	if differ != 0 {
		t.Errorf("%d pages differ", differ)
	}
	disks := [2][]byte{}
	for i, n := range []*node{p.src, p.dst} {
		disks[i], _ = os.ReadFile(n.path(diskDir + "/vm1.img"))
	}
	if len(disks[0]) != 16<<20 || !bytes.Equal(disks[0], disks[1]) {
		t.Error("the disks differ")
	}
	p.dst.call("Finish", Last{VM: testVM}, new(time.Time))
	p.src.call("Confirm", Last{VM: testVM}, nil)
	p.arrived()
}

// arrived wants the VM at the destination and nothing at the source, and swaps the two.
func (p *pair) arrived() guestReport {
	p.t.Helper()
	p.src.wantNothing()
	life := p.dst.wantLife()
	if got := p.dst.vm().Epoch; got != 9 {
		p.t.Errorf("epoch at %s is %d, want 9", p.dst.name, got)
	}
	p.src, p.dst = p.dst, p.src
	return life
}

// unasked is a frame that a card drops, since its guest did not ask for the group.
var unasked = append([]byte{0x33, 0x33, 0, 0, 0x77, 0x77, 0x02, 't', 'e', 's', 't', 0, 0x88, 0xb5}, make([]byte, 46)...)

// testPackets moves the VM while frames are sent to it, first to the source's bridge and
// from the commit on to the destination's, and wants the guest to get each of them once.
// Among them are some that its card drops.
func testPackets(t *testing.T, p *pair) {
	p.src.call("Forget", nothing, nil)
	first := uint32(p.src.ask().last)
	out, _ := p.prepared(0)
	src, logged := p.src, len(p.src.agentLog())
	p.src.call("Catch", testVM, nil)
	p.dst.call("Listen", TapName(testVM, 0), nil)
	s := startStream(p.src, first)
	s.last(500) // looks at the accounts agree after some; a copy that takes a quarter of a second has a dozen
	var done Performed
	start := time.Now()
	p.src.call("Perform", out, &done)
	released := time.Now()
	s.last(25) // the commit takes 50 ms
	s.to(p.dst)
	s.last(10) // some wait at the destination too
	var runs time.Time
	p.dst.call("Finish", Last{VM: testVM, Cookie: done.Cookie}, &runs)
	t.Logf("perform %v, stopped for %v of which the copy %v, finish %v", released.Sub(start), runs.Sub(done.Paused), released.Sub(done.Paused), time.Since(released))
	var caught, late []Frame
	timed(t, "drain", func() { p.src.call("Frames", nothing, &caught) })
	p.src.call("Frames", nothing, &late)
	var frames [][]byte
	for _, f := range append(caught, late...) {
		frames = append(frames, f.Data)
	}
	p.dst.call("Inject", Shipment{TapName(testVM, 0), frames}, nil)
	p.src.call("EndCatch", nothing, nil)
	timed(t, "confirm", func() { p.src.call("Confirm", Last{VM: testVM, Cookie: nil}, nil) })
	s.last(10)
	sent := s.stop()
	t.Logf("sent %d, caught %d, the first %d, late %d", sent-first, len(caught), binary.BigEndian.Uint32(caught[0].Data[14:]), len(late))
	var heard []time.Time
	await(t, "QEMU's announcement", 5*time.Second, func() bool {
		p.dst.call("Heard", nothing, &heard)
		return len(heard) >= 3
	})
	for _, at := range heard {
		t.Logf("announced %v after the end of the copy, %v after the VM ran", at.Sub(released), at.Sub(runs))
	}
	got := p.arrived()
	if got.last != int(sent) || got.total != got.last || got.doubled != 0 || got.missing != "" {
		t.Errorf("guest has %+v of the frames up to %d", got, sent)
	}
	if log := src.agentLog()[logged:]; strings.Contains(log, "may be lost") {
		t.Errorf("the accounts were not sure: %s", log)
	}
	if len(caught) < 25 {
		t.Errorf("caught %d frames, in the commit alone came 25", len(caught))
	}
}

// stream sends numbered frames at 500 a second to a node's bridge.
type stream struct {
	mu     sync.Mutex
	node   *node
	next   uint32
	err    error
	ended  chan struct{}
	stopIt func()
}

func startStream(n *node, first uint32) *stream {
	quit := make(chan struct{})
	s := &stream{node: n, next: first, ended: make(chan struct{}), stopIt: sync.OnceFunc(func() { close(quit) })}
	n.t.Cleanup(func() { s.stopIt(); <-s.ended })
	go func() {
		defer close(s.ended)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			s.mu.Lock()
			if s.err == nil {
				frames := [][]byte{numbered(s.next)}
				if s.next%5 == 0 {
					frames = append(frames, unasked)
				}
				s.err = s.node.try("Send", Shipment{"br-int", frames}, nil)
				s.next++
			}
			s.mu.Unlock()
		}
	}()
	return s
}

// to sends what follows to another node.
func (s *stream) to(n *node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.node = n
}

// last waits until so many more frames are sent.
func (s *stream) last(frames uint32) {
	s.mu.Lock()
	n, until := s.node, s.next+frames
	s.mu.Unlock()
	await(n.t, "frames to be sent", 10*time.Second, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.next >= until
	})
}

func (s *stream) stop() (next uint32) {
	s.stopIt()
	<-s.ended
	if s.err != nil {
		s.node.t.Fatalf("send frame %d: %v", s.next-1, s.err)
	}
	return s.next
}
