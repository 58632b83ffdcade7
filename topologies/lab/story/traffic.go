package story

import (
	"context"
	"errors"
	"fmt"
	"math"
	"text/tabwriter"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/report"
	"heliotrope/topologies/lab/claim"
)

// datagramBytes are the IP bytes of one of the client's UDP probes: 32 of its own.
const datagramBytes = 20 + 8 + 32

// census is what the hosts counted of the client's probes while the VM moved, against what
// the client sent.
type census struct {
	From    time.Time     `json:"from"`
	To      time.Time     `json:"to"`
	Sent    int           `json:"probes_sent"`
	Counted float64       `json:"probes_counted"`
	Report  report.Report `json:"report"`

	Plans []scheduler.Plan `json:"plans"` // where the VMs ought to be by that traffic
}

// wrong is the share by which the count is off.
func (c census) wrong() float64 {
	return math.Abs(c.Counted-float64(c.Sent)) / max(float64(c.Sent), 1)
}

// counted waits until the hosts count what the client sends.
func (d *Demo) counted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return d.until(ctx, func(ctx context.Context) error {
		r, err := d.client.TrafficReport(ctx, api.TrafficQuery{Window: time.Second})
		if err == nil && probesIn(r) == 0 {
			err = errors.New("the hosts count nothing of the client yet")
		}
		return err
	})
}

// probesIn are the client's UDP probes in a report: what reaches the VM's UDP port from outside.
func probesIn(r report.Report) (n float64) {
	for _, p := range r.Pairs {
		if p.Dst.IsVM() && !p.Src.IsVM() {
			for _, s := range p.Services {
				if s.Service.Protocol == traffic.UDP && !s.Reply {
					n += s.Bytes / datagramBytes
				}
			}
		}
	}
	return n
}

// census holds what was counted since a whole second against what was sent.
func (d *Demo) census(ctx context.Context, since time.Time) (c census, err error) {
	c.From, c.To = since, time.Now().Truncate(time.Second)
	err = d.until(ctx, func(ctx context.Context) error {
		var err error
		c.Report, err = d.client.TrafficReport(ctx, api.TrafficQuery{Window: c.To.Sub(c.From), End: c.To})
		if err == nil && time.Since(c.To) < 3*time.Second {
			err = errors.New("the last second is not there yet")
		}
		return err
	})
	if err != nil {
		return c, err
	}
	sent, err := d.probe.Window(ctx, c.From, c.To)
	c.Sent, c.Counted = sent.UDP.Sent, probesIn(c.Report)
	if err != nil {
		return c, err
	}
	for _, policy := range []string{"cheapest", "closest"} {
		p, err := d.client.SimulatePlan(ctx, api.PlanRequest{Policy: heliotrope.PolicyID(policy), WindowS: time.Since(c.From).Truncate(time.Second).Seconds()})
		if err != nil {
			return c, err
		}
		c.Plans = append(c.Plans, p)
	}
	return c, nil
}

// tell prints who talked to whom, as 'heliotrope traffic report' does in full.
func (c census) tell(d *Demo) {
	fmt.Fprintf(d.Out, "\nwho talked to whom in these %.0f s, counted at the VMs' ports, wherever they were\n\n", c.To.Sub(c.From).Seconds())
	w := tabwriter.NewWriter(d.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "from\tto\tlargest service\tpackets/s\tkB/s\tRTT ms\t")
	for _, p := range c.Report.Pairs {
		rtt := "-"
		if p.RTTMs > 0 {
			rtt = fmt.Sprintf("%.1f", p.RTTMs)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%.1f\t%.2f\t%s\t\n", p.Src, p.Dst, p.Service, p.Packets, p.Rate/1e3, rtt)
	}
	w.Flush()
	fmt.Fprintf(d.Out, "\nthe client sent %d UDP probes in this time; %.0f were counted, each once, at three hosts in turn\n\n", c.Sent, c.Counted)
	fmt.Fprintf(d.Out, "where the VMs ought to be by that traffic, their prices and distances ('heliotrope plan simulate')\n\n")
	for _, p := range c.Plans {
		fmt.Fprintf(d.Out, "%s\n", p)
	}
}

func (c census) claims() []claim.Claim {
	broken := 0.0
	for _, p := range c.Plans {
		broken += float64(len(p.Broken))
	}
	return []claim.Claim{
		claim.New("probes that were counted, share that is wrong", c.wrong(), "<=", 0.01),
		claim.New("constraints that plans do not keep", broken, "==", 0),
	}
}
