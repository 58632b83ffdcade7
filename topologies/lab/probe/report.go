package probe

import "time"

// Report is what one window saw. Times are UTC with nanoseconds, made from the monotonic
// clock of this machine, so they can be compared with those of other processes on it.
type Report struct {
	Name   string    `json:"name,omitempty"`
	Target string    `json:"target"`
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	UDP    UDPReport `json:"udp"`
	TCP    TCPReport `json:"tcp"`
}

// UDPReport accounts for the probes sent in the window: Sent = Answered + Lost + Pending.
type UDPReport struct {
	Sent       int `json:"sent"`
	Answered   int `json:"answered"`   // within 5 s
	Lost       int `json:"lost"`       // no answer within 5 s
	Pending    int `json:"pending"`    // sent less than 5 s ago and not answered yet
	Duplicated int `json:"duplicated"` // answers beyond the first of a probe
	Reordered  int `json:"reordered"`  // answered after a later probe was
	// Skipped are probes that were not sent because this process could not run when they
	// were due. A report with many of them says little.
	Skipped int `json:"skipped"`

	RTT         RTT     `json:"rtt"`
	LongestGap  Span    `json:"longest_gap"`  // between two answers, whole also where it reaches out of the window
	LongestLoss LossRun `json:"longest_loss"` // lost probes in a row
}

// RTT is the distribution of round trip times, milliseconds.
type RTT struct {
	MinMS    float64 `json:"min_ms"`
	MeanMS   float64 `json:"mean_ms"`
	MedianMS float64 `json:"median_ms"`
	P99MS    float64 `json:"p99_ms"`
	MaxMS    float64 `json:"max_ms"`
}

// Span is a time and where it lies.
type Span struct {
	MS   float64   `json:"ms"`
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
}

// LossRun is a row of lost probes; From and To are when its first and last were sent.
type LossRun struct {
	Probes int       `json:"probes"`
	From   time.Time `json:"from,omitzero"`
	To     time.Time `json:"to,omitzero"`
}

// TCPReport is about the one connection that the probe opens and never opens again.
// Connected, Broken, Error, Local and Since are of now, the rest is of the window.
type TCPReport struct {
	Connected bool      `json:"connected"` // it was set up, and goes on unless Broken
	Broken    bool      `json:"broken"`
	Error     string    `json:"error,omitempty"`
	BrokenAt  time.Time `json:"broken_at,omitzero"`
	Local     string    `json:"local,omitempty"`
	Since     time.Time `json:"since,omitzero"`

	Sent         int   `json:"sent"`   // numbers of 8 bytes
	Echoed       int   `json:"echoed"` // of them
	BytesSent    int64 `json:"bytes_sent"`
	BytesEchoed  int64 `json:"bytes_echoed"`
	LongestStall Span  `json:"longest_stall"` // between two echoes
}

// clock turns times of the monotonic clock into UTC.
type clock struct {
	wall time.Time
	mono int64
}

func (c clock) utc(mono int64) time.Time {
	return c.wall.Add(time.Duration(mono - c.mono)).UTC().Round(0)
}

func (c clock) monotonic(t time.Time) int64 { return c.mono + int64(t.Sub(c.wall)) }

func (c clock) span(s span) Span {
	if s == (span{}) {
		return Span{}
	}
	return Span{MS: ms(s.length()), From: c.utc(s.from), To: c.utc(s.to)}
}

func (c clock) udp(t tally) UDPReport {
	r := UDPReport{
		Sent: t.sent, Answered: t.answered, Lost: t.lost, Pending: t.pending,
		Duplicated: t.duplicated, Reordered: t.reordered, Skipped: t.skipped,
		RTT: RTT{
			MinMS: ms(quantile(t.rtt, 0)), MeanMS: mean(t.rtt), MedianMS: ms(quantile(t.rtt, 0.5)),
			P99MS: ms(quantile(t.rtt, 0.99)), MaxMS: ms(quantile(t.rtt, 1)),
		},
		LongestGap: c.span(t.gap),
	}
	if t.run.probes > 0 {
		r.LongestLoss = LossRun{Probes: t.run.probes, From: c.utc(t.run.from), To: c.utc(t.run.to)}
	}
	return r
}

func (c clock) tcp(t tally, conn connection) TCPReport {
	r := TCPReport{
		Connected: conn.since != 0, Broken: conn.since != 0 && conn.err != nil, Local: conn.local,
		Sent: t.sent, Echoed: t.answered,
		BytesSent: int64(t.sent) * numberSize, BytesEchoed: int64(t.answered) * numberSize,
		LongestStall: c.span(t.gap),
	}
	if conn.since != 0 {
		r.Since = c.utc(conn.since)
	}
	if conn.err != nil {
		r.Error = conn.err.Error()
	}
	if r.Broken {
		r.BrokenAt = c.utc(conn.brokenAt)
	}
	return r
}

func ms(ns int64) float64 { return float64(ns) / 1e6 }

// mean is in milliseconds, 0 of none.
func mean(ns []int64) float64 {
	var sum float64
	for _, v := range ns {
		sum += ms(v)
	}
	return sum / float64(max(1, len(ns)))
}
