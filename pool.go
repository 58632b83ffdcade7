package heliotrope

import (
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // a time zone is the same on a machine that has no data of them
)

// PoolID names a pool, PolicyID a policy, WeightID a number of one, RuleID a rule.
type (
	PoolID   string
	PolicyID string
	WeightID string
	RuleID   string
)

// What the autopilot of a pool does with what it would move.
const (
	AutopilotOff     = "off"     // it looks at nothing
	AutopilotAdvise  = "advise"  // it says so
	AutopilotConfirm = "confirm" // it waits for somebody to apply the plan
	AutopilotAuto    = "auto"    // it applies the plan itself
)

// Pool is VMs that are placed in one way.
type Pool struct {
	VMs       []VMID   `yaml:"vms,omitempty" json:"vms,omitempty"`                                         // empty: all that are in no other pool
	Autopilot string   `yaml:"autopilot,omitempty" json:"autopilot,omitempty"`                             // off, advise, confirm or auto; empty: off
	Policy    PolicyID `yaml:"policy,omitempty" json:"policy,omitempty"`                                   // what matters; empty: balanced
	Window    Duration `yaml:"window,omitempty" json:"window,omitempty"`                                   // of traffic that decides; zero: 10m
	Interval  Duration `yaml:"interval,omitempty" json:"interval,omitempty"`                               // from one plan to the next; zero: a tenth of Window
	MinGain   float64  `yaml:"min_gain_usd_per_hour,omitempty" json:"min_gain_usd_per_hour,omitempty"`     // of a plan; zero: as the policy has it
	Budget    float64  `yaml:"budget_usd_per_hour,omitempty" json:"budget_usd_per_hour,omitempty"`         // of compute and egress; zero: any
	MoveUSD   float64  `yaml:"move_budget_usd_per_day,omitempty" json:"move_budget_usd_per_day,omitempty"` // of the egress of copies, in any 24 hours; zero: any
	MaxPause  Duration `yaml:"max_pause,omitempty" json:"max_pause,omitempty"`                             // of a VM, predicted; zero: any
	Pace      `yaml:",inline"`

	// Forecast is how many hours ahead demand is expected and planned for; zero: as it is now.
	// It is a time and no switch, since how early a VM goes depends on it. ForecastLoss is what
	// that may cost more than without, in any 24 hours.
	Forecast     Duration `yaml:"forecast,omitempty" json:"forecast,omitempty"`
	ForecastLoss float64  `yaml:"forecast_loss_usd_per_day,omitempty" json:"forecast_loss_usd_per_day,omitempty"`
}

// What a policy does with the hosts of a site.
const (
	HostsSpread = "spread" // the emptiest first
	HostsFill   = "fill"   // the fullest first
)

// Policy is what matters where VMs are placed: one of the scheduler's policies, with other
// weights. What it does not say is as Base has it.
type Policy struct {
	Base    PolicyID             `yaml:"base,omitempty" json:"base,omitempty"`       // one of the scheduler's; empty: balanced
	Weights map[WeightID]float64 `yaml:"weights,omitempty" json:"weights,omitempty"` // prices and least gains, by the scheduler's names of them
	Hosts   string               `yaml:"hosts,omitempty" json:"hosts,omitempty"`     // spread or fill; empty: as Base does
}

// Pace says how much may be on the move, and when. It is for moves that are made because
// they gain something. The zero value allows everything.
type Pace struct {
	CoolDownPerVM   Duration `yaml:"cool_down,omitempty" json:"cool_down,omitempty"`                   // from one move of a VM to its next
	MaxMovesPerHour int      `yaml:"max_moves_per_hour,omitempty" json:"max_moves_per_hour,omitempty"` // in any 60 minutes; zero: any number
	MaxMovesPerDay  int      `yaml:"max_moves_per_day,omitempty" json:"max_moves_per_day,omitempty"`   // in any 24 hours; zero: any number
	Quiet           []Hours  `yaml:"quiet,omitempty" json:"quiet,omitempty"`                           // times in which no move begins
}

// Hours are a time of the week: one in which no move begins (Pace.Quiet), or in which images
// may come (ImagePolicy.Windows). One whose end is not after its beginning ends on the next day.
type Hours struct {
	Days []Weekday `yaml:"days,omitempty" json:"days,omitempty"` // on which it begins; empty: each
	From DayTime   `yaml:"from" json:"from"`
	To   DayTime   `yaml:"to" json:"to"` // no longer in it
	Zone Zone      `yaml:"zone,omitempty" json:"zone,omitempty"`
}

// Window is the time that begins on the day of t, if one does.
func (h Hours) Window(t time.Time) (from, to time.Time, ok bool) {
	t = t.In(h.Zone.location())
	if len(h.Days) > 0 && !slices.Contains(h.Days, Weekday(t.Weekday())) {
		return from, to, false
	}
	at := func(d DayTime, days int) time.Time {
		return time.Date(t.Year(), t.Month(), t.Day()+days, 0, int(d), 0, 0, t.Location())
	}
	from, to = at(h.From, 0), at(h.To, 0)
	if h.To <= h.From {
		to = at(h.To, 1)
	}
	return from, to, true
}

// dayStride, and not a day, leads from one day of the calendar to the next: a day on which
// clocks change has 23 hours, and a day's step from late on one ends after it.
const dayStride = 12 * time.Hour

// Holds says whether t is in it.
func (h Hours) Holds(t time.Time) bool {
	for d := -24 * time.Hour; d <= 0; d += dayStride {
		if from, to, ok := h.Window(t.Add(d)); ok && !t.Before(from) && t.Before(to) {
			return true
		}
	}
	return false
}

// Changes are the times at which it begins or ends in the week after t and a day more, in no order.
func (h Hours) Changes(t time.Time) (all []time.Time) {
	for d := -24 * time.Hour; d <= 8*24*time.Hour; d += dayStride {
		if from, to, ok := h.Window(t.Add(d)); ok {
			all = append(all, from, to)
		}
	}
	return all
}

// What VMs share, or must not: Rule.Together, Rule.Apart.
const (
	AtHost = "host"
	AtSite = "site"
)

// Rule is a constraint on where VMs may be. It has exactly one of Together, Apart, MaxRTT,
// Sites and NotSites.
type Rule struct {
	VMs      []VMID   `yaml:"vms" json:"vms"`
	Together string   `yaml:"together,omitempty" json:"together,omitempty"`   // host or site: all of VMs at one
	Apart    string   `yaml:"apart,omitempty" json:"apart,omitempty"`         // host or site: no two of VMs at one
	MaxRTT   Duration `yaml:"max_rtt,omitempty" json:"max_rtt,omitempty"`     // from any of VMs to any of To
	To       []VMID   `yaml:"to,omitempty" json:"to,omitempty"`               // what MaxRTT is to
	Sites    []SiteID `yaml:"sites,omitempty" json:"sites,omitempty"`         // nowhere else
	NotSites []SiteID `yaml:"not_sites,omitempty" json:"not_sites,omitempty"` // not there
}

// Weekday is a time.Weekday written as mon, tue, wed, thu, fri, sat or sun.
type Weekday time.Weekday

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

func (d Weekday) String() string               { return weekdays[d] }
func (d Weekday) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d *Weekday) UnmarshalText(text []byte) error {
	i := slices.Index(weekdays, strings.ToLower(string(text)))
	if i < 0 {
		return fmt.Errorf("%q is no day: write mon, tue, wed, thu, fri, sat or sun", text)
	}
	*d = Weekday(i)
	return nil
}

// DayTime is minutes since midnight, written as 22:30; 24:00 is the day's end.
type DayTime int

func (t DayTime) String() string               { return fmt.Sprintf("%02d:%02d", t/60, t%60) }
func (t DayTime) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

func (t *DayTime) UnmarshalText(text []byte) error {
	if string(text) == "24:00" {
		*t = 24 * 60
		return nil
	}
	v, err := time.Parse("15:04", string(text))
	if err != nil {
		return fmt.Errorf("%q is no time of day: write it as 22:30", text)
	}
	*t = DayTime(v.Hour()*60 + v.Minute())
	return nil
}

// Zone is a time zone by its name, as Europe/Vienna; empty: UTC.
type Zone string

func (z Zone) location() *time.Location {
	at, err := time.LoadLocation(string(z))
	if err != nil {
		return time.UTC
	}
	return at
}

func (z Zone) String() string               { return string(z) }
func (z Zone) MarshalText() ([]byte, error) { return []byte(z), nil }

func (z *Zone) UnmarshalText(text []byte) error {
	if _, err := time.LoadLocation(string(text)); err != nil || string(text) == "Local" {
		return fmt.Errorf("%q is no time zone: write a name as Europe/Vienna, or UTC", text)
	}
	*z = Zone(text)
	return nil
}
