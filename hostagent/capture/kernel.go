package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

const (
	kernelFlows = 1 << 15 // of a second
	kernelBatch = 4096    // that are read at once
	kernelSYNs  = 1 << 21 // bytes of those that are not read yet
)

// kernel counts packets by flow in the kernel, in the map of the second that they pass in:
// there is a map for even seconds and one for odd ones. So a second is read, and its map
// emptied, while nobody writes to it. It may count one of N packets, and tells TCP's SYNs
// among those that it counts, which say who serves and how far it is.
type kernel struct {
	clock    *ebpf.Map    // nanoseconds from the monotonic clock to the wall's
	flows    [2]*ebpf.Map // kernelKey -> kernelValue of each processor, the least recently used give way
	totals   *ebpf.Map    // of even seconds' counted and unreadable packets, then of odd ones'
	syns     *ebpf.Map    // ring of kernelSYN
	programs [2]*ebpf.Program
	sampling uint32 // the programs'

	told   *ringbuf.Reader // of syns
	record ringbuf.Record
	ran    time.Duration // programs that were replaced
	empty  time.Duration // what the kernel takes down of a program that does nothing
	dice   time.Duration // in which it is found that a packet is not to be counted
	toWall int64         // what clock has
	cpus   int
	keys   []kernelKey
	values []kernelValue
}

// kernelKey has the sampling, so that packets of one second that were chosen otherwise are
// told apart.
type kernelKey struct {
	Src, Dst         address
	Index            uint32
	SrcPort, DstPort [2]byte // in the network's order
	Protocol         uint8
	Direction        uint8
	Pad              [2]byte
	Sampling         uint32
}

type kernelValue struct{ Packets, Bytes, Squares uint64 }

func (v *kernelValue) add(w kernelValue) {
	v.Packets, v.Bytes, v.Squares = v.Packets+w.Packets, v.Bytes+w.Bytes, v.Squares+w.Squares
}

// kernelSYN is a SYN or SYN-ACK that was counted.
type kernelSYN struct {
	Key   kernelKey
	At    int64 // nanoseconds of the monotonic clock
	Flags uint64
}

func openKernel() (_ *kernel, err error) {
	k := &kernel{}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	if k.cpus, err = ebpf.PossibleCPU(); err != nil {
		return nil, fmt.Errorf("count processors: %w", err)
	}
	k.keys, k.values = make([]kernelKey, kernelBatch), make([]kernelValue, kernelBatch*k.cpus)
	flows := &ebpf.MapSpec{Name: "flows", Type: ebpf.LRUCPUHash, KeySize: keySize, ValueSize: valueSize, MaxEntries: kernelFlows}
	for _, m := range []struct {
		at   **ebpf.Map
		spec *ebpf.MapSpec
	}{
		{&k.clock, &ebpf.MapSpec{Name: "clock", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}},
		{&k.totals, &ebpf.MapSpec{Name: "totals", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: valueSize, MaxEntries: 4}},
		{&k.syns, &ebpf.MapSpec{Name: "syns", Type: ebpf.RingBuf, MaxEntries: kernelSYNs}},
		{&k.flows[0], flows}, {&k.flows[1], flows},
	} {
		if *m.at, err = ebpf.NewMap(m.spec); err != nil {
			return nil, fmt.Errorf("make map %s: %w", m.spec.Name, err)
		}
	}
	if k.told, err = ringbuf.NewReader(k.syns); err != nil {
		return nil, fmt.Errorf("read ring of SYNs: %w", err)
	}
	if err := k.setClock(); err != nil {
		return nil, err
	}
	return k, k.throw()
}

// sample makes the programs count one of so many packets. Whoever has attached them is to attach
// them again. The dice are thrown by the number in the program's text: one in a map would be out
// of the processor's caches for each packet that passes by.
func (k *kernel) sample(sampling uint32) error {
	for direction := range k.programs {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "count", Type: ebpf.SchedCLS, License: "Apache-2.0", Instructions: k.count(direction, sampling),
		})
		if err != nil {
			return fmt.Errorf("load program: %w", err)
		}
		k.ran += k.spentBy(k.programs[direction])
		k.programs[direction].Close()
		k.programs[direction] = p
	}
	k.sampling = sampling
	return nil
}

// throw finds out what a die's throw takes on this machine.
func (k *kernel) throw() error {
	if err := k.sample(math.MaxUint32); err != nil {
		return err
	}
	frame := make([]byte, ethernet+ipv4Header+tcpHeader)
	if err := k.runEmpty(frame); err != nil {
		return err
	}
	for i := range 4 { // the fastest: others were interrupted
		_, took, err := k.programs[fromVM].Benchmark(frame, 1000, nil)
		if err != nil {
			return fmt.Errorf("try program: %w", err)
		}
		if i == 0 || took < k.dice {
			k.dice = took
		}
	}
	return k.sample(1)
}

// runEmpty finds out what the kernel's taking down of times takes by itself.
func (k *kernel) runEmpty(frame []byte) error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "empty", Type: ebpf.SchedCLS, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, tcxNext), asm.Return()}})
	if err != nil {
		return fmt.Errorf("load program: %w", err)
	}
	defer p.Close()
	if _, _, err := p.Benchmark(frame, 4000, nil); err != nil {
		return fmt.Errorf("try program: %w", err)
	}
	if stats, err := p.Stats(); err == nil && stats.RunCount > 0 {
		k.empty = stats.Runtime / time.Duration(stats.RunCount)
	}
	return nil
}

func (k *kernel) close() {
	for _, p := range k.programs {
		p.Close()
	}
	if k.told != nil {
		k.told.Close()
	}
	for _, m := range []*ebpf.Map{k.clock, k.totals, k.syns, k.flows[0], k.flows[1]} {
		m.Close()
	}
}

// setClock tells the programs what the wall clock says, which may be stepped.
func (k *kernel) setClock() error {
	var monotonic, wall unix.Timespec
	err := errors.Join(unix.ClockGettime(unix.CLOCK_MONOTONIC, &monotonic), unix.ClockGettime(unix.CLOCK_REALTIME, &wall))
	if err == nil {
		k.toWall = wall.Nano() - monotonic.Nano()
		err = k.clock.Put(uint32(0), uint64(k.toWall))
	}
	if err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}

// handshakes calls f for each SYN and SYN-ACK that has come, with the wall clock's time.
func (k *kernel) handshakes(f func(syn *kernelSYN, at int64)) (n int, err error) {
	for k.told.AvailableBytes() > 0 {
		if err := k.told.ReadInto(&k.record); err != nil {
			return n, fmt.Errorf("read ring of SYNs: %w", err)
		}
		var syn kernelSYN
		if _, err := binary.Decode(k.record.RawSample, binary.NativeEndian, &syn); err != nil {
			return n, fmt.Errorf("read ring of SYNs: %w", err)
		}
		f(&syn, syn.At+k.toWall)
		n++
	}
	return n, nil
}

// attach counts at a device; closing the links ends it. Each hook takes milliseconds: what
// the VM sends comes last, so that the time after it is when that begins to be counted.
func (k *kernel) attach(index int) (links [2]link.Link, err error) {
	hooks := [2]ebpf.AttachType{fromVM: ebpf.AttachTCXIngress, toVM: ebpf.AttachTCXEgress}
	for _, direction := range []int{toVM, fromVM} {
		links[direction], err = link.AttachTCX(link.TCXOptions{Interface: index, Program: k.programs[direction], Attach: hooks[direction]})
		if err != nil {
			detach(links)
			return [2]link.Link{}, err // it says what failed
		}
	}
	return links, nil
}

// update replaces attached programs by those of another sampling.
func (k *kernel) update(links [2]link.Link) error {
	for direction, l := range links {
		if err := l.Update(k.programs[direction]); err != nil {
			return fmt.Errorf("replace program: %w", err)
		}
	}
	return nil
}

func detach(links [2]link.Link) {
	for _, l := range links {
		if l != nil {
			l.Close()
		}
	}
}

// read calls f for each flow of a second that is over, and forgets them. What the kernel
// counted and lost again, because there were more flows than it keeps, is lost.
func (k *kernel) read(second int64, f func(*kernelKey, kernelValue)) (lost, unreadable uint64, err error) {
	half := uint32(second & 1)
	counted, err := k.total(2 * half)
	if err != nil {
		return 0, 0, err
	}
	bad, err := k.total(2*half + 1)
	if err != nil || counted.Packets == 0 {
		return 0, bad.Packets, err
	}
	var told uint64
	var cursor ebpf.MapBatchCursor
	for done := false; !done; {
		n, err := k.flows[half].BatchLookupAndDelete(&cursor, k.keys, k.values, nil)
		if done = errors.Is(err, ebpf.ErrKeyNotExist); err != nil && !done {
			return 0, bad.Packets, fmt.Errorf("read flows: %w", err)
		}
		for i := range n {
			var sum kernelValue
			for _, v := range k.values[i*k.cpus : (i+1)*k.cpus] {
				sum.add(v)
			}
			told += sum.Packets
			f(&k.keys[i], sum)
		}
	}
	return counted.Packets - min(told, counted.Packets), bad.Packets, nil
}

// total returns one of the totals, and sets it to 0.
func (k *kernel) total(index uint32) (sum kernelValue, err error) {
	values := make([]kernelValue, k.cpus)
	if err := k.totals.Lookup(index, &values); err != nil {
		return sum, fmt.Errorf("read total: %w", err)
	}
	for _, v := range values {
		sum.add(v)
	}
	if sum.Packets > 0 {
		if err := k.totals.Put(index, make([]kernelValue, k.cpus)); err != nil {
			return sum, fmt.Errorf("reset total: %w", err)
		}
	}
	return sum, nil
}

// spent is the time that the programs ran, which the kernel only takes down if it is asked
// to (kernel.bpf_stats_enabled).
func (k *kernel) spent() time.Duration {
	return k.ran + k.spentBy(k.programs[0]) + k.spentBy(k.programs[1])
}

func (k *kernel) spentBy(p *ebpf.Program) time.Duration {
	if p == nil {
		return 0
	}
	stats, err := p.Stats()
	if err != nil {
		return 0 // an old kernel
	}
	return max(0, stats.Runtime-time.Duration(stats.RunCount)*k.empty)
}

// header is what the key has of one.
func (k *kernelKey) header() header {
	return header{
		src: k.Src, dst: k.Dst, protocol: k.Protocol,
		srcPort: binary.BigEndian.Uint16(k.SrcPort[:]), dstPort: binary.BigEndian.Uint16(k.DstPort[:]),
	}
}
