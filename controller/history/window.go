package history

import (
	"cmp"
	"math"
	"os"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
)

// Row is what went from one end to another, of one service, as one host counted it in one
// window. Rows of the same window and ends add up.
type Row struct {
	From    time.Time
	Length  time.Duration
	Host    heliotrope.HostID
	Src     traffic.End
	Dst     traffic.End
	Service traffic.Service
	Reply   bool // Src is the side that answers

	Bytes, Low, High float64 // IP bytes, and between which bounds with 95 % confidence
	Packets, Flows   float64
	RTT, RTTMin      time.Duration // 0: none
}

func (r *record) row() (Row, error) {
	src, err := end(r.srcVM, r.srcPrefix)
	if err != nil {
		return Row{}, err
	}
	dst, err := end(r.dstVM, r.dstPrefix)
	if err != nil {
		return Row{}, err
	}
	return Row{
		From: time.UnixMicro(r.windowStart).UTC(), Length: time.Duration(r.windowSeconds) * time.Second, Host: heliotrope.HostID(r.host),
		Src: src, Dst: dst, Service: traffic.Service{Protocol: uint8(r.protocol), Port: uint16(r.port)}, Reply: r.reply,
		Bytes: float64(r.bytes), Low: float64(r.bytesLow), High: float64(r.bytesHigh), Packets: float64(r.packets), Flows: float64(r.flows),
		RTT: time.Duration(r.rtt) * time.Microsecond, RTTMin: time.Duration(r.rttMin) * time.Microsecond,
	}, nil
}

func end(vm, prefix string) (e traffic.End, err error) {
	if vm != "" {
		return traffic.VM(heliotrope.VMID(vm)), nil
	}
	err = e.UnmarshalText([]byte(prefix))
	return e, err
}

// text is how an end is in a record's two columns.
func text(e traffic.End) (vm, prefix string) {
	if e.IsVM() {
		return string(e.VM), ""
	}
	return "", e.Prefix.String()
}

// window is the bins of a time that are not in a file yet.
type window struct {
	name    string // of its journal and its file, without what follows the dot
	from    time.Time
	length  time.Duration
	journal *os.File
	counts  map[countKey]*count
}

type countKey struct {
	host heliotrope.HostID
	traffic.Key
}

// count adds the bins' counts of one key up.
type count struct {
	bytes                traffic.Estimate
	packets, flows, rtts uint64
	rttSum, rttMin       time.Duration
}

func (w *window) add(b *traffic.Bin) {
	for i := range b.Counts {
		c := &b.Counts[i]
		key := countKey{b.Host, c.Key}
		n, ok := w.counts[key]
		if !ok {
			n = &count{}
			w.counts[key] = n
		}
		n.bytes.Count(c, b.Sampling)
		n.packets += c.Packets
		n.flows += uint64(c.Flows)
		if c.RTTs > 0 {
			if n.rtts == 0 || c.RTTMin < n.rttMin {
				n.rttMin = c.RTTMin
			}
			n.rtts += uint64(c.RTTs)
			n.rttSum += c.RTTSum
		}
	}
}

// records are the window's rows, those of one sender together: files get smaller.
func (w *window) records() []record {
	all := make([]record, 0, len(w.counts))
	for k, n := range w.counts {
		r := record{
			windowStart: w.from.UnixMicro(), windowSeconds: int32(w.length / time.Second), host: string(k.host),
			protocol: int32(k.Service.Protocol), port: int32(k.Service.Port), reply: k.Reply,
			packets: int64(n.packets), flows: int64(n.flows),
		}
		r.srcVM, r.srcPrefix = text(k.Src)
		r.dstVM, r.dstPrefix = text(k.Dst)
		low, high := n.bytes.Interval()
		r.bytes, r.bytesLow, r.bytesHigh = int64(math.Round(n.bytes.Bytes)), int64(math.Floor(low)), int64(math.Ceil(high))
		if n.rtts > 0 {
			r.rtt = (n.rttSum / time.Duration(n.rtts)).Microseconds()
			r.rttMin = n.rttMin.Microseconds()
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b record) int {
		return cmp.Or(cmp.Compare(a.host, b.host), cmp.Compare(a.srcVM, b.srcVM), cmp.Compare(a.srcPrefix, b.srcPrefix),
			cmp.Compare(a.dstVM, b.dstVM), cmp.Compare(a.dstPrefix, b.dstPrefix),
			cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.port, b.port))
	})
	return all
}
