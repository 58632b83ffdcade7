package agentapi

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"

	"heliotrope"
)

// ImageStatus is what a host has of images of its store, and what its server of disks has done
// since that began: the counters only grow, and begin anew with Boot.
type ImageStatus struct {
	Store   string        `json:"store"`
	Server  string        `json:"server"` // its program's version
	Boot    string        `json:"boot"`   // changes when the server restarts
	PID     int           `json:"pid"`
	Volumes []ImageVolume `json:"volumes,omitempty"`
	Caches  []ImageCache  `json:"caches,omitempty"`
	// Snapshots are those of VMs' disks that are under way, or ended lately.
	Snapshots []ImageSnapshot `json:"snapshots,omitempty"`
	Budget    int64           `json:"cache_budget_bytes,omitempty"` // 0: none
	Used      int64           `json:"cache_used_bytes"`

	Kept       int64 `json:"kept_bytes"` // of disks that have left, in case they come back
	KeptDisks  int   `json:"kept_disks"`
	KeptBudget int64 `json:"kept_budget_bytes"`
	Spared     int64 `json:"spared_bytes"` // that moves out of here did not have to copy

	Hits       int64 `json:"cache_hits"`        // reads that were answered by what was here
	Demand     int64 `json:"chunks_demanded"`   // chunks that a guest waited for
	Background int64 `json:"chunks_background"` // chunks that came before anybody asked
	Fetched    int64 `json:"fetched_bytes"`     // of content, from the store
	Near       int64 `json:"near_bytes"`        // of content, that other versions here had
	FromHosts  int64 `json:"from_hosts_bytes"`  // of content, that other hosts passed on
	Failed     int64 `json:"fetches_failed"`    // chunks that did not come
	Evicted    int64 `json:"caches_evicted"`
}

// ImageVolume is the disk of a VM.
type ImageVolume struct {
	VM      heliotrope.VMID `json:"vm"`
	Base    string          `json:"base"` // IMAGE@VERSION
	Bytes   int64           `json:"bytes"`
	Written int64           `json:"written_bytes"` // that the host keeps of what the VM wrote
	Error   string          `json:"error,omitempty"`
}

// ImageCache is what has come of a version of an image.
type ImageCache struct {
	Image   string `json:"image"`         // IMAGE@VERSION
	Bytes   int64  `json:"content_bytes"` // of the version, zeros not counted
	Here    int64  `json:"here_bytes"`
	Volumes int    `json:"volumes"`
	Note    string `json:"note,omitempty"` // why the rest of it does not come now, for people
	Full    bool   `json:"full,omitempty"` // it is for lack of room

	// Of a version that an order has come.
	Pushed   bool               `json:"pushed,omitempty"`
	Priority string             `json:"priority,omitempty"`
	Rate     heliotrope.BitRate `json:"rate,omitempty"`   // the order's
	Wants    bool               `json:"wants,omitempty"`  // the rest is to come from the store, and might now
	Waits    bool               `json:"waits,omitempty"`  // nothing of it comes now, and nothing is wrong
	Shared   bool               `json:"shared,omitempty"` // it comes from the store by ImageParts
	Part     heliotrope.BitRate `json:"part,omitempty"`   // that it has now
}

// PullOrder has a version of an image come to a host before a VM there needs it.
type PullOrder struct {
	Term  uint64 `json:"term"`
	Image string `json:"image"` // IMAGE, or IMAGE@VERSION
	// Windows are times in which it may cross a WAN; none: always. What a VM's disk needs comes at any.
	Windows []heliotrope.Hours `json:"windows,omitempty"`
	// Rate is the most that may cross a WAN, of content; 0: any. What somebody waits for counts for nothing.
	Rate heliotrope.BitRate `json:"rate,omitempty"`
	// Chain are the hosts of the site along which it comes, in order, this one among them: each gets it from the
	// one before it, while that gets it, and the first from the store; a host that died is passed over. None: from the store.
	Chain []ImagePeer `json:"chain,omitempty"`
	// Lend is that the host was told already when it may come, or has it: it is to pass it on.
	Lend bool `json:"lend,omitempty"`
	// Priority is that of a heliotrope.ImagePolicy. The host tells it, and does not go by it.
	Priority string `json:"priority,omitempty"`
	// Shared is that images share a link on the way from the store: nothing comes from there, but by the ImageParts
	// that are given after this. What somebody waits for counts for nothing.
	Shared bool `json:"shared,omitempty"`
	// Part is given to a version that an order has come already. The rest of this order says nothing then.
	Part *ImagePart `json:"part,omitempty"`
}

// ImagePart is what a version may take of links that images share.
type ImagePart struct {
	Shared bool                `json:"shared"`         // false: none is shared any more, and the order's rate is all that counts
	Rate   heliotrope.BitRate  `json:"rate,omitempty"` // of content; zero: it waits
	For    heliotrope.Duration `json:"for,omitempty"`  // from when it is given; then it waits, until it is given again
	Held   bool                `json:"held,omitempty"` // it waits at all hosts of the site
}

// ImagePeer is a host that passes images on, and the port where its agent lets others in.
type ImagePeer struct {
	Host  heliotrope.HostID `json:"host"`
	Relay netip.AddrPort    `json:"relay"`
}

// PullImage gives a PullOrder and returns what the host has of the version now; HostStatus.Images
// says how it goes on.
func (a *Agent) PullImage(ctx context.Context, order PullOrder) (ImageCache, error) {
	var c ImageCache
	if err := call(ctx, a.http, http.MethodPost, "/v1/images", order, &c); err != nil {
		return c, fmt.Errorf("pull image to %s: %w", a.host, err)
	}
	return c, nil
}
