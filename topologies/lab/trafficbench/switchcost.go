package trafficbench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/hostagent/capture/flood"
	"heliotrope/scheduler/traffic"
	"heliotrope/topologies/lab"
	"heliotrope/topologies/lab/claim"
)

// What counting by the switch's flows takes is not in one process. The kernel's datapath
// counts what it forwards anyway, but has to tell more packets apart; ovs-vswitchd adds
// that up; the controller reads it. So a stream between two VMs of one host is measured with
// and without counting, in turn.

const (
	switchTime = 5 * time.Second
	floodName  = "flood"
)

// switchFigures are one stream.
type switchFigures struct {
	Counting   bool    `json:"counting"`
	Asked      int     `json:"asked_pps"`
	Offered    float64 `json:"offered_pps"`
	Passed     float64 `json:"passed_pps"`    // that the switch brought to the other VM
	Counted    float64 `json:"counted_share"` // of those
	Switch     float64 `json:"vswitchd_cpu_share"`
	Controller float64 `json:"controller_cpu_share"` // it reads four switches
	PerPacket  float64 `json:"sender_ns_per_packet"` // the datapath runs in the sender's system call
}

// flooded is what the hidden command flood prints.
type flooded struct {
	Sent uint64
	CPU  time.Duration
}

// floodCommand sends frames from the namespaces that it runs in.
func floodCommand() *cobra.Command {
	var from, to string
	var src, dst netip.Addr
	var pps int
	var d time.Duration
	cmd := &cobra.Command{Use: floodName, Hidden: true, Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := flood.Frames{Src: src, Dst: func(int) netip.Addr { return dst }}
			if err := errors.Join(f.From.UnmarshalText([]byte(from)), f.To.UnmarshalText([]byte(to))); err != nil {
				return err
			}
			before := processTime("self")
			sent, err := f.Flood(cmd.Context(), "eth0", pps, d)
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(flooded{sent, processTime("self") - before})
		}}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "")
	f.StringVar(&to, "to", "", "")
	f.TextVar(&src, "src", netip.Addr{}, "")
	f.TextVar(&dst, "dst", netip.Addr{}, "")
	f.IntVar(&pps, "pps", 1000, "")
	f.DurationVar(&d, "for", time.Second, "")
	return cmd
}

// switchCost measures what counting by flows takes.
func switchCost(ctx context.Context, b *Bench) (claims []claim.Claim, figures any, err error) {
	l, err := bringUp(ctx, b, "bench-switch")
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, l.down(ctx)) }()
	s, err := l.stream(ctx)
	if err != nil {
		return nil, nil, err
	}
	var rows []switchFigures
	w := tabwriter.NewWriter(b.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "counting\tasked/s\toffered/s\tpassed/s\tcounted\tvswitchd, of a core\tcontroller, of a core\tsender, ns a packet\t")
	counted := 1.0
	for _, pps := range []int{10_000, 100_000, 1_000_000} {
		for _, counting := range []bool{false, true} {
			source := heliotrope.CaptureOff
			if counting {
				source = string(traffic.SourceCounters)
			}
			if err := l.count(ctx, heliotrope.Capture{Source: source}); err != nil {
				return nil, rows, err
			}
			f, err := s.measure(ctx, counting, pps)
			if err != nil {
				return nil, rows, err
			}
			rows = append(rows, f)
			share := "-"
			if counting {
				counted = min(counted, f.Counted)
				share = fmt.Sprintf("%.4f", f.Counted)
			}
			fmt.Fprintf(w, "%v\t%d\t%.0f\t%.0f\t%s\t%.4f\t%.4f\t%.0f\t\n", f.Counting, pps, f.Offered, f.Passed, share, f.Switch, f.Controller, f.PerPacket)
		}
	}
	w.Flush()
	return []claim.Claim{claim.New("packets of a stream that the switch's flows count, over those that it passed on, least", counted, ">=", 0.999)}, rows, nil
}

// stream is between two VMs of one host and network.
type stream struct {
	light
	from, to   heliotrope.VMID
	pid, peer  int // of the two's namespaces
	argv       []string
	vswitchd   string // process
	controller string
}

func (l light) stream(ctx context.Context) (s stream, err error) {
	s.light = l
	vms := l.vms()
	s.from = vms[0]
	home, nic := l.top.VMs[s.from].Host, l.top.VMs[s.from].NICs[0]
	for _, vm := range vms[1:] {
		if other := l.top.VMs[vm]; other.Host == home && other.NICs[0].Network == nic.Network {
			s.to = vm
			break
		}
	}
	peer := l.top.VMs[s.to].NICs[0]
	self, err := os.Executable()
	if err != nil {
		return s, fmt.Errorf("find own program: %w", err)
	}
	s.argv = []string{self, "lab", "bench-traffic", floodName, "--from", nic.MAC.String(), "--to", peer.MAC.String(),
		"--src", nic.Address.String(), "--dst", peer.Address.String(), "--for", switchTime.String()}
	status, err := lab.Read(ctx, l.target)
	if err != nil {
		return s, err
	}
	for _, n := range status.Nodes {
		switch {
		case n.Kind == lab.KindVM && n.VM == s.from:
			s.pid = n.PID
		case n.Kind == lab.KindVM && n.VM == s.to:
			s.peer = n.PID
		case n.Kind == lab.KindHost && n.Host == home:
			s.vswitchd, err = processIn(n.PID, "ovs-vswitchd")
		case n.Kind == lab.KindController:
			s.controller, err = processIn(n.PID, "heliotrope controller")
		}
		if err != nil {
			return s, err
		}
	}
	return s, nil
}

// measure sends for a while.
func (s stream) measure(ctx context.Context, counting bool, pps int) (f switchFigures, err error) {
	f.Counting, f.Asked = counting, pps
	got, err := received(s.peer)
	if err != nil {
		return f, err
	}
	from, vswitchd, controller := time.Now(), processTime(s.vswitchd), processTime(s.controller)
	var out, said bytes.Buffer
	code, err := lab.Enter(ctx, s.pid, append(s.argv, "--pps", strconv.Itoa(pps)), lab.Stdio{Out: &out, Err: &said})
	if err == nil && code != 0 {
		err = fmt.Errorf("flood: exit %d: %s", code, said.String())
	}
	if err != nil {
		return f, err
	}
	took := time.Since(from).Seconds()
	f.Switch = (processTime(s.vswitchd) - vswitchd).Seconds() / took
	f.Controller = (processTime(s.controller) - controller).Seconds() / took
	var sent flooded
	if err := json.Unmarshal(out.Bytes(), &sent); err != nil {
		return f, fmt.Errorf("read what flood sent: %w", err)
	}
	after, err := received(s.peer)
	if err != nil {
		return f, err
	}
	f.Passed = float64(after-got) / switchTime.Seconds()
	f.Offered = float64(sent.Sent) / switchTime.Seconds()
	f.PerPacket = float64(sent.CPU.Nanoseconds()) / float64(max(sent.Sent, 1))
	if !counting {
		return f, nil
	}
	m, err := s.counted(ctx, from, time.Now())
	if err != nil {
		return f, err
	}
	for _, c := range m.Cells {
		if c.Src == traffic.VM(s.from) && c.Dst == traffic.VM(s.to) {
			f.Counted = c.Packets / float64(after-got)
		}
	}
	return f, nil
}

// received is how many packets a VM's eth0 has got.
func received(pid int) (n uint64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return 0, fmt.Errorf("read what a VM got: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if name, counters, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "eth0" {
			if fields := strings.Fields(counters); len(fields) > 1 {
				return strconv.ParseUint(fields[1], 10, 64)
			}
		}
	}
	return 0, errors.New("read what a VM got: it has no eth0")
}

// processIn finds a process of a program in the network namespace of another.
func processIn(pid int, program string) (string, error) {
	home, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return "", fmt.Errorf("find %s: %w", program, err)
	}
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return "", fmt.Errorf("find %s: %w", program, err)
	}
	for _, path := range all {
		name, err := os.ReadFile(path)
		at, err2 := os.Readlink(filepath.Join(filepath.Dir(path), "ns/net"))
		if err == nil && err2 == nil && strings.Contains(strings.ReplaceAll(string(name), "\x00", " "), program) && at == home {
			return filepath.Base(filepath.Dir(path)), nil
		}
	}
	return "", fmt.Errorf("find %s: there is none in that namespace", program)
}

// processTime is what a process has used of processors: fields 14 and 15 of /proc/PID/stat,
// in hundredths of a second (proc(5)).
func processTime(pid string) time.Duration {
	text, _ := os.ReadFile("/proc/" + pid + "/stat")
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0 // it is gone
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}
