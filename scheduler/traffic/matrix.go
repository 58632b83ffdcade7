package traffic

import (
	"time"

	"heliotrope"
)

// Matrix is what was counted in one window. It is a value: nothing changes it.
type Matrix struct {
	From  time.Time `json:"from"`
	To    time.Time `json:"to"`
	Cells []Cell    `json:"cells"` // ordered by Src, then Dst

	// Hosts that were to count in the window and of which a part of it is missing, and
	// which share (0 to 1).
	Missing map[heliotrope.HostID]float64 `json:"missing,omitempty"`
	Shed    uint64                        `json:"shed,omitempty"` // packets that were not looked at, of all hosts

	// A pair that is not in Cells sent less, with 97.5 % confidence; 0 where all packets were counted.
	Unseen float64 `json:"unseen,omitempty"`
}

// Cell is all that went from Src to Dst in a window, all services together.
type Cell struct {
	Src     End     `json:"src"`
	Dst     End     `json:"dst"`
	Bytes   float64 `json:"bytes"`
	Packets float64 `json:"packets"`
	Flows   float64 `json:"flows,omitempty"`

	// The true number of bytes is in [Low, High] with 95 % confidence; both are Bytes
	// where all packets were counted.
	Low  float64 `json:"low"`
	High float64 `json:"high"`

	Services []ServiceShare `json:"services,omitempty"` // the largest first
	RTT      time.Duration  `json:"rtt,omitempty"`      // mean of the samples; 0: none
	RTTMin   time.Duration  `json:"rtt_min,omitempty"`
	Burst    float64        `json:"burst,omitempty"` // peak rate over 10 ms, as a multiple of the mean rate while active; 0: not known
}

// ServiceShare is a service's part of a cell.
type ServiceShare struct {
	Service Service `json:"service"`
	Reply   bool    `json:"reply,omitempty"` // Src is the side that answers
	Bytes   float64 `json:"bytes"`
}
