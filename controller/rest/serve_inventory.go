package rest

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"heliotrope"
	"heliotrope/controller/api"
)

type (
	siteRef struct {
		Site heliotrope.SiteID `path:"site"`
	}
	hostRef struct {
		Host heliotrope.HostID `path:"host"`
	}
	networkRef struct {
		Network heliotrope.NetworkID `path:"network"`
	}
	vmRef struct {
		VM heliotrope.VMID `path:"vm"`
	}
	hostFilter struct {
		Site heliotrope.SiteID `query:"site" doc:"Only those of this site."`
	}
	vmFilter struct {
		Site heliotrope.SiteID `query:"site" doc:"Only those whose owner is at this site."`
		Host heliotrope.HostID `query:"host" doc:"Only those that this host owns."`
	}
	drainRequest struct {
		Host heliotrope.HostID `path:"host"`
		Body api.DrainRequest
	}
	tokenRequest struct {
		Host heliotrope.HostID `path:"host"`
		Key  string            `header:"Idempotency-Key" doc:"Same key: same token; for a day."`
	}
)

func (h *handler) registerInventory(routes huma.API) {
	handle(h, routes, operation("GET", "/v1/sites", "list-sites", "All sites"), h.listSites)
	handle(h, routes, operation("GET", "/v1/sites/{site}", "get-site", "One site", 404), h.getSite)
	handle(h, routes, operation("GET", "/v1/demand", "list-demand", "What clients ask by what the topology says, region by region, and now"), h.listDemand)
	handle(h, routes, operation("GET", "/v1/networks", "list-networks", "All networks"), h.listNetworks)
	handle(h, routes, operation("GET", "/v1/networks/{network}", "get-network", "One network", 404), h.getNetwork)
	handle(h, routes, operation("GET", "/v1/vms", "list-vms", "All VMs, with where they are and how they do"), h.listVMs)
	handle(h, routes, operation("GET", "/v1/vms/{vm}", "get-vm", "One VM", 404), h.getVM)
	handle(h, routes, operation("GET", "/v1/hosts", "list-hosts", "All hosts, with what is connected"), h.listHosts)
	handle(h, routes, operation("GET", "/v1/hosts/{host}", "get-host", "One host", 404), h.getHost)

	token := operation("POST", "/v1/hosts/{host}/token", "create-token", "A token with which the host joins, once, within an hour", 404, 409, 422)
	token.DefaultStatus = http.StatusCreated
	handle(h, routes, token, func(ctx context.Context, in *tokenRequest) (*body[api.JoinToken], error) {
		t, err := h.Membership.CreateToken(ctx, in.Host)
		return &body[api.JoinToken]{t}, err
	})
	drain := operation("POST", "/v1/hosts/{host}/drain", "drain-host", "Have all VMs leave the host, and let none come", 404, 422)
	drain.DefaultStatus = http.StatusNoContent
	handle(h, routes, drain, func(ctx context.Context, in *drainRequest) (*nothing, error) {
		return &nothing{}, h.Membership.DrainHost(ctx, in.Host, in.Body)
	})
	undrain := operation("POST", "/v1/hosts/{host}/undrain", "undrain-host", "Let VMs come to the host again", 404)
	undrain.DefaultStatus = http.StatusNoContent
	handle(h, routes, undrain, func(ctx context.Context, in *hostRef) (*nothing, error) {
		return &nothing{}, h.Membership.UndrainHost(ctx, in.Host)
	})
	revoke := operation("DELETE", "/v1/hosts/{host}", "revoke-host", "Refuse the host's certificate from now on and drop its connections", 404, 409)
	revoke.DefaultStatus = http.StatusNoContent
	handle(h, routes, revoke, func(ctx context.Context, in *hostRef) (*nothing, error) {
		return &nothing{}, h.Membership.RevokeHost(ctx, in.Host)
	})
}

// one picks the element that is called name.
func one[T any](items []T, kind, name string, is func(T) bool) (*body[T], error) {
	i := slices.IndexFunc(items, is)
	if i < 0 {
		return nil, api.NotFound(kind, name)
	}
	return &body[T]{items[i]}, nil
}

func (h *handler) sites(ctx context.Context) ([]api.Site, error) {
	t, _, err := h.Topologies.Topology(ctx)
	if err != nil {
		return nil, err
	}
	vms, err := h.Inventory.VMs(ctx)
	if err != nil {
		return nil, err
	}
	var sites []api.Site
	for _, name := range slices.Sorted(maps.Keys(t.Sites)) {
		s := api.Site{Name: name, Site: t.Sites[name], Hosts: []heliotrope.HostID{}, VMs: []heliotrope.VMID{}}
		for _, host := range slices.Sorted(maps.Keys(t.Hosts)) {
			if t.Hosts[host].Site == name {
				s.Hosts = append(s.Hosts, host)
			}
		}
		for _, vm := range vms {
			if vm.Site == name {
				s.VMs = append(s.VMs, vm.Name)
			}
		}
		sites = append(sites, s)
	}
	return sites, nil
}

func (h *handler) listSites(ctx context.Context, _ *nothing) (*body[api.List[api.Site]], error) {
	sites, err := h.sites(ctx)
	return listOf(sites), err
}

func (h *handler) getSite(ctx context.Context, in *siteRef) (*body[api.Site], error) {
	sites, err := h.sites(ctx)
	if err != nil {
		return nil, err
	}
	return one(sites, "site", string(in.Site), func(s api.Site) bool { return s.Name == in.Site })
}

func (h *handler) listDemand(ctx context.Context, _ *nothing) (*body[api.List[api.Demand]], error) {
	t, _, err := h.Topologies.Topology(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	var all []api.Demand
	for _, id := range slices.Sorted(maps.Keys(t.Demand)) {
		d := t.Demand[id]
		all = append(all, api.Demand{Region: id, Demand: d, LocalTime: d.Local(now), Now: d.At(now)})
	}
	return listOf(all), nil
}

func (h *handler) networks(ctx context.Context) ([]api.Network, error) {
	t, _, err := h.Topologies.Topology(ctx)
	var networks []api.Network
	for _, name := range slices.Sorted(maps.Keys(t.Networks)) {
		n := api.Network{Name: name, Network: t.Networks[name], VMs: []heliotrope.VMID{}}
		for _, vm := range slices.Sorted(maps.Keys(t.VMs)) {
			if slices.ContainsFunc(t.VMs[vm].NICs, func(nic heliotrope.NIC) bool { return nic.Network == name }) {
				n.VMs = append(n.VMs, vm)
			}
		}
		networks = append(networks, n)
	}
	return networks, err
}

func (h *handler) listNetworks(ctx context.Context, _ *nothing) (*body[api.List[api.Network]], error) {
	networks, err := h.networks(ctx)
	return listOf(networks), err
}

func (h *handler) getNetwork(ctx context.Context, in *networkRef) (*body[api.Network], error) {
	networks, err := h.networks(ctx)
	if err != nil {
		return nil, err
	}
	return one(networks, "network", string(in.Network), func(n api.Network) bool { return n.Name == in.Network })
}

func (h *handler) listVMs(ctx context.Context, in *vmFilter) (*body[api.List[api.VM]], error) {
	vms, err := h.Inventory.VMs(ctx)
	vms = slices.DeleteFunc(slices.Clone(vms), func(v api.VM) bool {
		return in.Site != "" && v.Site != in.Site || in.Host != "" && v.Host != in.Host
	})
	return listOf(vms), err
}

func (h *handler) getVM(ctx context.Context, in *vmRef) (*body[api.VM], error) {
	vms, err := h.Inventory.VMs(ctx)
	if err != nil {
		return nil, err
	}
	return one(vms, "vm", string(in.VM), func(v api.VM) bool { return v.Name == in.VM })
}

func (h *handler) listHosts(ctx context.Context, in *hostFilter) (*body[api.List[api.Host]], error) {
	hosts, err := h.Inventory.Hosts(ctx)
	hosts = slices.DeleteFunc(slices.Clone(hosts), func(x api.Host) bool { return in.Site != "" && x.Site != in.Site })
	return listOf(hosts), err
}

func (h *handler) getHost(ctx context.Context, in *hostRef) (*body[api.Host], error) {
	hosts, err := h.Inventory.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	return one(hosts, "host", string(in.Host), func(x api.Host) bool { return x.Name == in.Host })
}
