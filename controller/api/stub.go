package api

import (
	"context"
	"net/netip"
	"time"

	"heliotrope"
)

// Stub is a resource that is bound to a place, and who uses it.
type Stub struct {
	Name        heliotrope.StubID    `json:"name"`
	Description string               `json:"description,omitempty"`
	Host        heliotrope.HostID    `json:"host"`
	Site        heliotrope.SiteID    `json:"site"`
	Port        string               `json:"port" doc:"The network device of the host that it is behind."`
	Network     heliotrope.NetworkID `json:"network"`
	Address     netip.Addr           `json:"address" doc:"Where it is reached from, the same everywhere."`
	MAC         string               `json:"mac"`
	Access      string               `json:"access" doc:"auto, proxy or local."`
	Uses        []StubUse            `json:"uses" nullable:"false" doc:"By VMs that have used it lately."`
}

// What becomes of a VM's use of a stub.
const (
	UseNear    = "near"    // the VM is at the stub's site
	UseCarried = "carried" // its packets go over the mesh
	UseWaiting = "waiting" // its packets are dropped until it is there
	UseMoving  = "moving"  // it is on its way there
	UseIdle    = "idle"    // it is elsewhere, and does not use the stub any more
)

// StubUse is what a VM makes of a stub, and what that costs.
type StubUse struct {
	VM             heliotrope.VMID   `json:"vm"`
	Site           heliotrope.SiteID `json:"site"`
	State          string            `json:"state" doc:"near, carried, waiting, moving or idle." example:"carried"`
	Since          time.Time         `json:"since" doc:"Of its first access."`
	Last           time.Time         `json:"last" doc:"When it was last seen."`
	BytesPerSecond float64           `json:"bytes_per_second" doc:"To the stub and from it, lately."`

	GainUSDPerHour        float64 `json:"gain_usd_per_hour" doc:"What its use of the stub would cost less at the stub's site, by the traffic of now; less what the VM would cost more there."`
	SpentUSD              float64 `json:"spent_usd" doc:"What that has come to so far."`
	MoveUSD               float64 `json:"move_usd" doc:"What moving it there would cost."`
	BreakEvenBytesPerHour float64 `json:"break_even_bytes_per_hour,omitempty" doc:"From so many on, moving pays within the hours of the policy; 0: at any, or never."`
	Says                  string  `json:"says" doc:"All that in words."`
}

// Stubs are those of the topology, by name.
func (c *Client) Stubs(ctx context.Context) ([]Stub, error) {
	return list[Stub](ctx, c, nil, "/v1/stubs")
}

// Stub is one of them.
func (c *Client) Stub(ctx context.Context, name heliotrope.StubID) (Stub, error) {
	return get[Stub](ctx, c, nil, "/v1/stubs/%s", name)
}
