package traffic

import (
	"cmp"
	"maps"
	"slices"
)

// Measure is what cells are ordered by.
type Measure string

// The measures of a cell.
const (
	ByBytes   Measure = "bytes"
	ByPackets Measure = "packets"
	ByFlows   Measure = "flows"
	ByRTT     Measure = "rtt"
	ByBurst   Measure = "burst"
)

func (by Measure) of(c *Cell) float64 {
	switch by {
	case ByPackets:
		return c.Packets
	case ByFlows:
		return c.Flows
	case ByRTT:
		return float64(c.RTT)
	case ByBurst:
		return c.Burst
	}
	return c.Bytes
}

// Top returns the n largest cells, the largest first.
func Top(m Matrix, n int, by Measure) []Cell {
	cells := slices.Clone(m.Cells)
	slices.SortStableFunc(cells, func(c, d Cell) int { return cmp.Compare(by.of(&d), by.of(&c)) })
	return cells[:min(max(n, 0), len(cells))]
}

// EndTotal is what an end sent and got in a window.
type EndTotal struct {
	End   End     `json:"end"`
	Sent  float64 `json:"sent"`
	Got   float64 `json:"got"`
	Peers int     `json:"peers"` // ends that it sent to or got from
}

// EndTotals returns all ends, those with the most bytes first.
func EndTotals(m Matrix) []EndTotal {
	totals := map[End]*EndTotal{}
	peers := make(map[[2]End]bool, len(m.Cells))
	of := func(e End) *EndTotal {
		if totals[e] == nil {
			totals[e] = &EndTotal{End: e}
		}
		return totals[e]
	}
	for _, c := range m.Cells {
		src, dst := of(c.Src), of(c.Dst)
		src.Sent += c.Bytes
		dst.Got += c.Bytes
		for _, pair := range [][2]End{{c.Src, c.Dst}, {c.Dst, c.Src}} {
			if !peers[pair] {
				peers[pair] = true
				of(pair[0]).Peers++
			}
		}
	}
	list := make([]EndTotal, 0, len(totals))
	for _, t := range totals {
		list = append(list, *t)
	}
	slices.SortFunc(list, func(a, b EndTotal) int {
		return cmp.Or(cmp.Compare(b.Sent+b.Got, a.Sent+a.Got), a.End.Compare(b.End))
	})
	return list
}

// ServiceTotal is what a service's two directions had in a window.
type ServiceTotal struct {
	Service  Service `json:"service"`
	Requests float64 `json:"requests"` // bytes to the side that answers
	Replies  float64 `json:"replies"`  // bytes from it
	Pairs    int     `json:"pairs"`    // of ends, each way counted
}

// ServiceTotals returns all services, those with the most bytes first.
func ServiceTotals(m Matrix) []ServiceTotal {
	totals := map[Service]ServiceTotal{}
	for _, c := range m.Cells {
		for _, s := range c.Services {
			t := totals[s.Service]
			t.Service = s.Service
			t.Pairs++
			if s.Reply {
				t.Replies += s.Bytes
			} else {
				t.Requests += s.Bytes
			}
			totals[s.Service] = t
		}
	}
	return slices.SortedFunc(maps.Values(totals), func(a, b ServiceTotal) int {
		return cmp.Or(cmp.Compare(b.Requests+b.Replies, a.Requests+a.Replies),
			cmp.Compare(a.Service.Protocol, b.Service.Protocol), cmp.Compare(a.Service.Port, b.Service.Port))
	})
}
