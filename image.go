package heliotrope

import (
	"slices"
	"time"
)

// ImageID names an image of the hosts' image store.
type ImageID string

// What is done with a new version of an image: ImagePolicy.Policy.
const (
	ImageEverywhere = "everywhere" // it comes to all hosts that have an image store
	ImageFollow     = "follow"     // to those of sites where VMs of the image are, are to be, or were lately
	ImageOnDemand   = "on-demand"  // nowhere: it comes as VMs read it
)

// Who goes first where images share a link: ImagePolicy.Priority.
const (
	ImageLow    = "low"
	ImageNormal = "normal"
	ImageHigh   = "high"
)

// ImagePriorities are all priorities, the lowest first.
var ImagePriorities = []string{ImageLow, ImageNormal, ImageHigh}

// ImagePolicy says where the newest version of an image is to be before a VM there needs it, and
// when it may come there.
type ImagePolicy struct {
	Policy   string   `yaml:"policy,omitempty" json:"policy,omitempty"`     // everywhere, follow or on-demand; empty: on-demand
	Sites    []SiteID `yaml:"sites,omitempty" json:"sites,omitempty"`       // nowhere else; empty: all
	Rate     BitRate  `yaml:"rate,omitempty" json:"rate,omitempty"`         // most that crosses the WAN to a site; zero: any
	Priority string   `yaml:"priority,omitempty" json:"priority,omitempty"` // over links that images share: low, normal or high; empty: normal
	Windows  []Hours  `yaml:"windows,omitempty" json:"windows,omitempty"`   // times in which it may cross a WAN; empty: always
}

// Open says whether it may cross a WAN at t, and when that is otherwise; zero: never.
func (p ImagePolicy) Open(t time.Time) (open bool, until time.Time) { return InHours(p.Windows, t) }

// InHours says whether t is in one of these times, and when that is otherwise; zero: never. No times
// at all are always.
func InHours(all []Hours, t time.Time) (in bool, until time.Time) {
	holds := func(t time.Time) bool { return slices.ContainsFunc(all, func(h Hours) bool { return h.Holds(t) }) }
	if len(all) == 0 {
		return true, until
	}
	in = holds(t)
	var changes []time.Time
	for _, h := range all {
		changes = append(changes, h.Changes(t)...)
	}
	slices.SortFunc(changes, time.Time.Compare)
	for _, c := range changes {
		if c.After(t) && holds(c) != in {
			return in, c
		}
	}
	return in, until
}
